"""A batch goes on where it stopped: the journal of an output folder."""

import json
import os
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from test_cli import FAST, JOURNAL, ok, picture, refused

from llenhance import journal
from llenhance.journal import Journal

RECIPE = {"model": "dln", "controls": {"alpha": 1.5}, "weights": "ab" * 32}


def lines(folder):
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


def stamps(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != JOURNAL}


@pytest.fixture
def pair(tmp_path):
    source, target = tmp_path / "in.png", tmp_path / "out" / "a.png"
    target.parent.mkdir()
    source.write_bytes(b"source")
    target.write_bytes(b"target")
    return source, target


def judged(source, target, recipe=RECIPE):
    entries = journal.read(target.parent)
    key = journal.key(target.parent, target)
    return journal.judge(entries.get(key), source, journal.state(source), target, recipe)


# --- the file -------------------------------------------------------------------------------------


def test_what_was_added_is_known_again(pair):
    source, target = pair
    assert judged(source, target) == "foreign"
    with Journal(target.parent) as book:
        book.add(source, journal.state(source), target, RECIPE)
    assert judged(source, target) == "same"
    assert judged(source, target, RECIPE | {"model": "neid"}) == "changed"
    source.write_bytes(b"another source")
    assert judged(source, target) == "changed"


def test_an_input_that_no_name_can_be_is_another_one(pair):
    source, target = pair
    with Journal(target.parent) as book:
        book.add(source, journal.state(source), target, RECIPE)
    path = target.parent / JOURNAL
    path.write_text(path.read_text().replace(str(source), "/a\\u0000b"))
    assert judged(source, target) == "same"  # it has not changed, and is not there
    path.write_text(path.read_text().replace("u0000", "ud83d"))
    assert judged(source, target) == "same"


def test_an_input_by_another_way_to_it_is_the_same_one(pair):
    """As Photos and photos are where a system takes them for one name."""
    source, target = pair
    with Journal(target.parent) as book:
        book.add(source, journal.state(source), target, RECIPE)
    link = source.parent / "link"
    link.symlink_to(source.parent)
    assert judged(link / source.name, target) == "same"
    source.write_bytes(b"another source")
    assert judged(link / source.name, target) == "changed"


def test_only_the_time_of_the_input_changed(pair):
    source, target = pair
    with Journal(target.parent) as book:
        book.add(source, journal.state(source), target, RECIPE)
    os.utime(source, ns=(0, 0))
    assert judged(source, target) == "changed"


def test_a_target_that_someone_touched_is_not_ours(pair):
    source, target = pair
    with Journal(target.parent) as book:
        book.add(source, journal.state(source), target, RECIPE)
    target.write_bytes(b"edited by hand")
    assert judged(source, target, RECIPE | {"model": "neid"}) == "foreign"


def test_a_target_made_of_another_input_is_not_replaced(pair, tmp_path):
    source, target = pair
    with Journal(target.parent) as book:
        book.add(source, journal.state(source), target, RECIPE)
    other = tmp_path / "other.png"
    other.write_bytes(b"other")
    assert judged(other, target) == "foreign"
    twin = tmp_path / "twin.png"  # of a camera whose files have one size, in the same second
    twin.write_bytes(source.read_bytes()[::-1])
    shutil.copystat(source, twin)
    assert journal.state(twin) == journal.state(source)
    assert judged(twin, target) == "foreign"
    moved = source.rename(tmp_path / "moved.png")
    assert judged(moved, target) == "same"
    assert judged(moved, target, RECIPE | {"model": "neid"}) == "changed"
    assert judged(other, target) == "foreign"


def test_a_torn_line_is_passed_over_and_not_glued_to_the_next(pair):
    source, target = pair
    with Journal(target.parent) as book:
        book.add(source, journal.state(source), target, RECIPE)
    path = target.parent / JOURNAL
    whole = path.read_bytes()
    for cut in (1, 2, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:-cut])
        with Journal(target.parent) as book:
            book.add(source, journal.state(source), target, RECIPE)
        assert judged(source, target) == "same"
        assert path.read_bytes().endswith(b"\n" + whole)


@pytest.mark.parametrize(
    "data",
    [b"", b"\n\n", b"[]\n", b"1\n", b'{"target": []}\n', b"\xff\xfe\0\n", b'{"a": 1}\n', b"["],
)
def test_rubbish_in_a_journal_is_passed_over(pair, data):
    source, target = pair
    (target.parent / JOURNAL).write_bytes(data)
    assert judged(source, target) == "foreign"
    with Journal(target.parent) as book:
        book.add(source, journal.state(source), target, RECIPE)
    assert judged(source, target) == "same"


def test_any_name_comes_back(tmp_path):
    name = os.fsdecode(b"a\n\"'\xff %d [x] \xf0\x9f\x98\x80.png")
    (tmp_path / name).write_bytes(b"x")
    with Journal(tmp_path) as book:
        book.add(tmp_path / name, (1, 2), tmp_path / name, {})
    (entry,) = journal.read(tmp_path).values()
    assert entry["target"] == name
    assert (tmp_path / JOURNAL).read_bytes().count(b"\n") == 1


def test_a_journal_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_bytes(b"p")
    (tmp_path / JOURNAL).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"symbolic links|Too many"):
        Journal(tmp_path)
    assert (tmp_path / "precious").read_bytes() == b"p"


def fill(folder, times):
    """A journal in which each of twenty targets is told of so many times; what it says."""
    for name in range(20):
        (folder / f"{name}.png").write_bytes(b"x")
    with Journal(folder) as book:
        for turn in range(times):
            for name in range(20):
                path = folder / f"{name}.png"
                book.add(path, (1, turn), path, RECIPE)
    return journal.read(folder)


def test_a_journal_that_is_mostly_out_of_date_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SMALL", 10_000)
    entries = fill(tmp_path, 10)
    path = tmp_path / JOURNAL
    path.chmod(0o640)
    before = path.read_bytes()
    with Journal(tmp_path) as book:
        assert path.read_bytes() == b"".join(before.splitlines(keepends=True)[-20:])
        assert journal.read(tmp_path) == entries
        book.add(tmp_path / "0.png", (7, 7), tmp_path / "0.png", RECIPE)
    assert journal.read(tmp_path)["0.png"]["input"] == [7, 7]
    assert path.stat().st_mode & 0o777 == 0o640
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    again = path.read_bytes()
    Journal(tmp_path).close()
    assert path.read_bytes() == again


def test_a_journal_is_not_written_anew_for_little_or_under_another_run(tmp_path, monkeypatch):
    fill(tmp_path, 10)
    path = tmp_path / JOURNAL
    before = path.read_bytes()
    Journal(tmp_path).close()
    assert path.read_bytes() == before  # it is small
    with Journal(tmp_path) as first:
        monkeypatch.setattr(journal, "SMALL", 100)
        second = Journal(tmp_path)
        assert path.read_bytes() == before
        for number, book in enumerate((first, second)):
            book.add(tmp_path / "0.png", (9, number), tmp_path / f"{number}.png", RECIPE)
        second.close()
    found = journal.read(tmp_path)
    assert [found[f"{number}.png"]["input"] for number in range(2)] == [[9, 0], [9, 1]]


def test_who_opens_a_journal_while_it_is_written_anew_gets_the_new_one(tmp_path, monkeypatch):
    entries = fill(tmp_path, 3)
    path, real = tmp_path / JOURNAL, journal._shared
    calls = []

    def late(file, place):
        if not calls:  # between the opening and the lock, another run has been at work
            other = tmp_path / "other"
            other.write_bytes(path.read_bytes())
            other.replace(path)
        calls.append(place)
        return real(file, place)

    monkeypatch.setattr(journal, "_shared", late)
    with Journal(tmp_path) as book:
        book.add(tmp_path / "0.png", (5, 5), tmp_path / "0.png", RECIPE)
    assert len(calls) == 2
    assert journal.read(tmp_path) == entries | {"0.png": journal.read(tmp_path)["0.png"]}
    assert journal.read(tmp_path)["0.png"]["input"] == [5, 5]


def test_who_comes_second_to_write_a_journal_anew_keeps_what_the_first_one_added(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(journal, "SMALL", 100)
    fill(tmp_path, 10)
    real = journal._lock
    others = []

    def late(file, *, alone):
        if alone and not others:  # between the opening and the lock, another run has been at work
            others.append(None)
            others[0] = Journal(tmp_path)
            others[0].add(tmp_path / "0.png", (5, 5), tmp_path / "0.png", RECIPE)
        return real(file, alone=alone)

    monkeypatch.setattr(journal, "_lock", late)
    with Journal(tmp_path) as book:
        book.add(tmp_path / "1.png", (6, 6), tmp_path / "1.png", RECIPE)
    others[0].close()
    found = journal.read(tmp_path)
    assert [found[f"{n}.png"]["input"] for n in range(2)] == [[5, 5], [6, 6]]


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png", seed=number)
    return tmp_path


def test_skip_goes_on_by_the_journal(folder):
    again = ("in", "-o", "out/", *FAST, "--on-exists", "skip")
    ok("in", "-o", "out/", *FAST, cwd=folder)
    out = folder / "out"
    entries = {entry["target"]: entry for entry in lines(out)}  # in the order they were finished
    assert set(entries) == {"0.png", "1.png", "2.png"}
    entry = entries["0.png"]
    assert entry["input"][0] == (folder / "in" / "0.png").stat().st_size
    recipe = entry["recipe"]
    assert set(recipe) == {
        "version", "model", "weights", "controls", "scale", "strength", "fast", "precision",
        "quality", "strip", "signed",
    }  # fmt: skip
    before = stamps(out)
    assert "3 skipped" in ok(*again, cwd=folder).stderr.decode()
    assert stamps(out) == before

    picture(folder / "in" / "1.png", seed=9)  # an input that changed
    dry = ok(*again, "--dry-run", cwd=folder).stdout.decode().splitlines()
    assert dry[1].split("\t")[-1] == "its input or a setting changed"
    (out / "2.png").unlink()  # a target that is gone
    text = ok(*again, cwd=folder).stderr.decode()
    assert "2 done, 1 skipped" in text
    assert "journal" not in text
    after = stamps(out)
    assert after["0.png"] == before["0.png"]
    assert after["1.png"] != before["1.png"]

    text = ok(*again, "--precision", "fp32", cwd=folder).stderr.decode()  # a setting that changed
    assert "3 done" in text

    # And another one: all again. What someone else made is kept and counted.
    (out / "0.png").write_bytes(b"edited")
    text = ok(*again, "--strength", "0.5", cwd=folder).stderr.decode()
    assert "2 done, 1 skipped (1 not in the journal)" in text
    assert (out / "0.png").read_bytes() == b"edited"
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]


def test_overwriting_again_and_again_does_not_grow_the_journal(folder):
    """The real command, after as many runs as leave more than a mebibyte."""
    words = ("in", "-o", "out/", *FAST)
    ok(*words, cwd=folder)
    path = folder / "out" / JOURNAL
    once = path.read_bytes()
    path.write_bytes(once * (journal.SMALL // len(once) + 1))
    ok(*words, "--on-exists", "overwrite", cwd=folder)
    assert path.stat().st_size < 3 * len(once)
    assert "3 skipped" in ok(*words, "--on-exists", "skip", cwd=folder).stderr.decode()


def test_weights_are_a_setting(folder):
    import shutil

    from llenhance import checkpoints
    from llenhance.methods import METHODS

    ok("in", "-o", "out/", *FAST, cwd=folder)
    shipped = checkpoints.find(METHODS["lightweight"]).path
    (folder / "w").mkdir()
    for path in (shipped, shipped.with_suffix(".onnx")):
        shutil.copy(path, folder / "w")
    again = (
        "in",
        "-o",
        "out/",
        *FAST,
        "--on-exists",
        "skip",
        "--weights",
        "w/lightweight.safetensors",
    )
    assert "3 skipped" in ok(*again, cwd=folder).stderr.decode()  # by their hash, not their place


def test_targets_without_a_journal_are_kept_and_counted(folder):
    (folder / "out").mkdir()
    (folder / "out" / "1.png").write_bytes(b"mine")
    arguments = ("in", "-o", "out", *FAST, "--on-exists", "skip")
    dry = ok(*arguments, "--dry-run", cwd=folder).stdout.decode()
    assert "skip\tpicture\tlightweight\tin/1.png\tout/1.png\tout/1.png exists and is not" in dry
    assert not (folder / "out" / JOURNAL).exists()
    text = ok(*arguments, cwd=folder).stderr.decode()
    assert "2 done, 1 skipped (1 not in the journal)" in text
    assert (folder / "out" / "1.png").read_bytes() == b"mine"


def test_a_mirrored_folder_has_a_journal_and_a_single_file_has_none(folder):
    ok("in", *FAST, cwd=folder)
    assert len(lines(folder / "in_lightweight")) == 3
    ok("in/0.png", *FAST, cwd=folder)
    ok("in/0.png", "-o", "x.png", *FAST, cwd=folder)
    assert not (folder / JOURNAL).exists()
    assert not (folder / "in" / JOURNAL).exists()


def test_a_killed_batch_is_finished_by_the_same_command(tmp_path):
    for number in range(30):
        picture(tmp_path / "in" / f"{number:02}.png", 200, 300, seed=number)
    command = ("in", "-o", "out/", "-m", "residual", "--device", "cpu", "--on-exists", "skip")
    process = subprocess.Popen(
        [sys.executable, "-m", "llenhance", *command], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    out = tmp_path / "out"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out.exists() and len(list(out.glob("*.png"))) > 2):
        time.sleep(0.02)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20  # the worker hears that its parent has gone
    while time.monotonic() < deadline and list(out.glob("*.tmp")):
        time.sleep(0.1)
    done = {p.name for p in out.glob("*.png")}
    assert 0 < len(done) < 30
    # What has its name is in the journal, but for one that it got in the last moment.
    known = set(journal.read(out))
    assert known <= done
    assert len(done - known) <= 1
    text = ok(*command, cwd=tmp_path).stderr.decode()
    assert f"{30 - len(done)} done, {len(done)} skipped" in text
    assert not list(out.glob("*.tmp"))
    assert len(list(out.glob("*.png"))) == 30


def test_refusals_come_before_weights_are_hashed(folder):
    (folder / "in_lightweight").mkdir()
    text = refused(
        "in/0.png", "-o", "in/0.png", *FAST, "--on-exists", "skip",
        cwd=folder, LLENHANCE_WEIGHTS=str(folder),
    )  # fmt: skip
    assert "same file" in text


def rerun(folder, count):
    """Run a batch as if it had been done, again; seconds, and what was imported."""
    data = cv2.imencode(".png", np.full((2, 2, 3), 9, np.uint8))[1].tobytes()
    (folder / "in").mkdir()
    for number in range(count):
        (folder / "in" / f"{number:05}.png").write_bytes(data)
    ok("in", "-o", "out/", *FAST, "-q", cwd=folder)
    code = (
        "import sys; sys.argv = ['llenhance', 'in', '-o', 'out/', '-m', 'lightweight',"
        " '--on-exists', 'skip']\n"
        "from llenhance.cli import main\n"
        "try: main()\n"
        "except SystemExit as error: print(error.code)\n"
        "print({'onnxruntime', 'torch', 'multiprocessing.connection'} & set(sys.modules))"
    )
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["0", "set()"]
    assert f"{count} skipped" in result.stderr
    return time.monotonic() - began


def test_a_finished_batch_loads_nothing_when_run_again(tmp_path):
    assert rerun(tmp_path, 300) < 10


@pytest.mark.slow
def test_a_finished_batch_of_10000_is_run_again_in_seconds(tmp_path, monkeypatch):
    import test_cli

    monkeypatch.setattr(test_cli, "TIMEOUT", 3000)
    assert rerun(tmp_path, 10_000) < 15
