"""A batch of originals can be trusted: crashes, hangs, full disks, odd names, what is told."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import clips
import cv2
import numpy as np
import pytest
from PIL import Image
from test_cli import ENVIRONMENT, FAST, JOURNAL, everything, llenhance, ok, picture, refused, size

from llenhance import worker
from llenhance.choice import Choice
from llenhance.cli import cli
from llenhance.errors import Appeared, DeviceError, LLEnhanceError, Refusal
from llenhance.jobs import Batch, Loading, Settings, Watch, Work
from llenhance.media import files
from llenhance.media.picture import MAX_PIXELS
from llenhance.plan import Job
from llenhance.report import Report

CRASHING = """
import os, sys, time
from llenhance.media import images

read = images.read

def odd(data, **options):  # a decoder with a bug, in the worker only
    if data.endswith(b"ABORT"):
        os.abort()
    if data.endswith(b"SLEEP"):
        time.sleep(1000)
    if data.endswith(b"ERROR"):
        raise RuntimeError("a bug of ours")
    return read(data, **options)

images.read = odd

if __name__ == "__main__":
    from llenhance.cli import main
    main()
"""


@pytest.fixture
def batch(tmp_path):
    for number in range(6):
        picture(tmp_path / "in" / f"{number}.png", seed=number)
    return tmp_path


def spoil(folder, name, word):
    with (folder / "in" / name).open("ab") as file:
        file.write(word)


def crashing(folder, *arguments, timeout=120):
    """The command with a decoder that crashes or hangs on some files."""
    (folder / "crashing.py").write_text(CRASHING)
    return subprocess.run(
        [sys.executable, "crashing.py", *arguments],
        cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=timeout,
    )  # fmt: skip


def leftovers(folder):
    return [p.name for p in folder.rglob("*") if p.name.endswith(files.SUFFIX)]


# --- crashes and hangs ----------------------------------------------------------------------------


def test_a_decoder_that_crashes_takes_one_file_with_it(batch):
    spoil(batch, "2.png", b"ABORT")
    spoil(batch, "4.png", b"ABORT")
    result = crashing(batch, "in", *FAST, "--report", "r.json")
    assert result.returncode == 1
    assert everything(batch / "in_lightweight") == ["0.png", "1.png", "3.png", "5.png"]
    lines = result.stderr.splitlines()
    assert "in/2.png: the process crashed (SIGABRT) while decoding it" in lines
    assert "in/4.png: the process crashed (SIGABRT) while decoding it" in lines
    assert lines[-1] == "4 done, 2 failed"
    assert lines[6] == "failed:"
    assert len(lines) == 10  # six files, the failed once more, and no noise of the crash
    counts = json.loads((batch / "r.json").read_text())["counts"]
    assert counts == {"done": 4, "skipped": 0, "failed": 2, "not done": 0}
    assert leftovers(batch) == []


def test_a_decoder_that_hangs_is_given_up(batch):
    spoil(batch, "1.png", b"SLEEP")
    result = crashing(batch, "in", *FAST, "--timeout", "3")
    assert result.returncode == 1
    assert everything(batch / "in_lightweight") == ["0.png", "2.png", "3.png", "4.png", "5.png"]
    assert "in/1.png: took longer than 3 s (--timeout)" in result.stderr.splitlines()
    assert leftovers(batch) == []


BUSY = (
    CRASHING.replace("os.abort()", "time.sleep(1); os.abort()")
    + """
else:
    encode = images.encode

    def slowly(*values, **options):  # so that it is at work when the decoder crashes
        time.sleep(0.7)
        return encode(*values, **options)

    images.encode = slowly
"""
)


def test_the_one_that_crashes_is_found_among_several_at_work(batch):
    spoil(batch, "2.png", b"ABORT")
    (batch / "crashing.py").write_text(BUSY)
    result = subprocess.run(
        [sys.executable, "crashing.py", "in", *FAST],
        cwd=batch, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=120,
    )  # fmt: skip
    assert result.stderr.splitlines()[-1] == "5 done, 1 failed"
    assert "in/2.png: the process crashed (SIGABRT) while decoding it" in result.stderr
    assert everything(batch / "in_lightweight") == ["0.png", "1.png", "3.png", "4.png", "5.png"]


VIDEOS = """
import os
from llenhance import footage

def odd(jobs, scales, choice, at):
    for job in jobs:
        with at(job):
            if job.source.name == "crash.mp4":
                os.abort()

footage.check = odd
footage.enhance = lambda job, *_, **__: os.abort()

if __name__ == "__main__":
    from llenhance.cli import main
    main()
"""


def test_videos_that_crash_take_only_themselves(batch):
    for name in ("crash.mp4", "late.mp4"):
        (batch / "in" / name).write_bytes(b"\0\0\0\x20ftypisom" + bytes(80))
    (batch / "in" / "empty.png").write_bytes(b"")
    (batch / "crashing.py").write_text(VIDEOS)
    result = subprocess.run(
        [sys.executable, "crashing.py", "in", *FAST],
        cwd=batch, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=120,
    )  # fmt: skip
    lines = result.stderr.splitlines()
    assert lines[-1] == "6 done, 3 failed"
    assert "in/crash.mp4: the process crashed (SIGABRT) while reading its header" in lines
    assert "in/late.mp4: the process crashed (SIGABRT) while working on it" in lines
    assert "in/empty.png: is empty" in lines


def test_one_file_that_hangs_is_given_up(batch):
    spoil(batch, "1.png", b"SLEEP")
    result = crashing(batch, "in/1.png", *FAST, "--timeout", "0.5")
    assert result.returncode == 1
    assert result.stderr.splitlines() == ["in/1.png: took longer than 0.5 s (--timeout)"]


SLOW_DISK = """
import time
from llenhance.media import files

rename = files._rename_to_free

def odd(temporary, target):
    if target.name == "1.png":
        time.sleep(1000)
    rename(temporary, target)

files._rename_to_free = odd

if __name__ == "__main__":
    from llenhance.cli import main
    main()
"""


def test_what_a_killed_worker_leaves_is_removed(batch):
    (batch / "crashing.py").write_text(SLOW_DISK)
    result = subprocess.run(
        [sys.executable, "crashing.py", "in/1.png", "-o", "1.png", *FAST, "--timeout", "1"],
        cwd=batch, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=120,
    )  # fmt: skip
    assert result.stderr.splitlines() == ["in/1.png: took longer than 1 s (--timeout)"]
    assert leftovers(batch) == []


ANOTHER_RUN = """
from llenhance import segments
from llenhance.media import files

segments.FRAMES = 10

rename = files._rename_to_free

def odd(temporary, target):
    if target.name.startswith("1."):
        target.write_bytes(b"another run's")
    rename(temporary, target)

files._rename_to_free = odd

if __name__ == "__main__":
    from llenhance.cli import main
    main()
"""


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("kind", ["picture", "video", "long video"])
def test_two_runs_that_skip_what_exists_share_a_folder(batch, kind, several):
    """What another run made in the meantime is skipped, as if it had been there before."""
    (batch / "crashing.py").write_text(ANOTHER_RUN)
    long = kind == "long video"
    if kind != "picture":
        (batch / "in" / "1.png").unlink()
        clips.clip(batch / "in" / "1.mp4", frames=25 if long else 3)
    name = "1.png" if kind == "picture" else "1.mp4"
    words = ["in"] if several else [f"in/{name}"]
    for policy, status in (("skip", 0), ("error", 1)):
        out = f"out-{policy}/"
        result = subprocess.run(
            [sys.executable, "crashing.py", *words, *FAST, "-o", out, "--on-exists", policy, "-v",
             "--report", f"{policy}.json"],
            cwd=batch, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=120,
        )  # fmt: skip
        assert result.returncode == status, result.stderr
        assert (batch / out / name).read_bytes() == b"another run's"
        told = f"{out}{name}"
        if policy == "skip":
            assert f"in/{name}: skipped, {told}: the file exists" in result.stderr
        else:
            kept = " (25 frames are kept: the same command goes on from there)" if long else ""
            assert f"in/{name}: cannot write {told}: the file exists{kept}\n" in result.stderr
        counts = json.loads((batch / f"{policy}.json").read_text())["counts"]
        one = {"skipped": 1, "failed": 0} if policy == "skip" else {"skipped": 0, "failed": 1}
        assert counts == {"done": (5 if several else 0), **one, "not done": 0}
        parts = batch / out / ".1.mp4.llenhance-parts"
        assert parts.is_dir() == (long and policy == "error")
        shutil.rmtree(parts, ignore_errors=True)
        assert leftovers(batch) == []


def test_a_refusal_after_work_was_begun_is_a_failure(batch, monkeypatch):
    """A later worker may find that the GPU or the room is gone; then much may have been done."""
    report = Report(-1)
    jobs = [Job(batch / "in" / f"{n}.png", None, "picture", "lightweight") for n in range(2)]

    class Dying:
        late, writing, starts = (), (), 0

        def __init__(self, *_):
            self.active = {0: worker.Stage("read", 0.0)}

        def follow(self, _over, loaded, _timeout):
            Dying.starts += 1
            if Dying.starts == refused:
                raise DeviceError("the GPU is gone")
            loaded()
            return "crashed"

        def seconds(self, _number):
            return 0.0

        def stop(self):
            pass

    monkeypatch.setattr(worker, "Worker", Dying)
    todo = Batch(jobs, Loading(), Settings(1, None, {}, "auto", None, False), Choice())
    refused = 2
    with pytest.raises(LLEnhanceError, match="the GPU is gone") as told:
        worker.run_in_workers(todo, report, lambda: None)
    assert not isinstance(told.value, Refusal)
    assert report.failures == [(str(jobs[0].source), "the process crashed while decoding it")]
    Dying.starts, refused = 0, 1
    with pytest.raises(DeviceError):
        worker.run_in_workers(todo, report, lambda: None)


def test_a_crash_ends_all_methods_of_its_file_only(batch):
    spoil(batch, "0.png", b"ABORT")
    result = crashing(batch, "in", "-m", "lightweight,residual", "-o", "out")
    assert result.returncode == 1
    assert len(everything(batch / "out")) == 10
    assert result.stderr.splitlines()[-1] == "10 done, 2 failed"


def test_a_bug_in_the_worker_keeps_its_traceback(batch):
    spoil(batch, "3.png", b"ERROR")
    # RuntimeError is what decoders raise too, but not through images.read.
    result = crashing(batch, "in", *FAST)
    assert result.returncode == 1
    assert "a bug of ours" in result.stderr
    assert "line 13, in odd" in result.stderr
    assert leftovers(batch) == []


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of Unix")
def test_a_batch_with_a_decoder_that_hangs_can_be_stopped(batch):
    spoil(batch, "1.png", b"SLEEP")
    (batch / "crashing.py").write_text(CRASHING)
    process = subprocess.Popen(
        [sys.executable, "crashing.py", "in", *FAST], cwd=batch,
        stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (batch / "in_lightweight" / "0.png").exists():
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - began < 12
    assert process.returncode == 143
    assert b"Traceback" not in stderr
    assert leftovers(batch) == []


def test_a_single_file_needs_no_worker(batch):
    code = (
        "import sys; sys.argv = ['llenhance', 'in/0.png', '-m', 'lightweight', '--device', 'cpu']\n"
        "from llenhance.cli import main\n"
        "try: main()\n"
        "except SystemExit as error: print(error.code, 'llenhance.worker' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=batch, capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["0", "False"]


def test_a_refusal_in_the_worker_is_a_refusal(batch):
    (batch / "w").mkdir()
    (batch / "w" / "lightweight.safetensors").write_bytes(b"rubbish")
    text = refused("in", *FAST, "--report", "r.json", cwd=batch, LLENHANCE_WEIGHTS=str(batch / "w"))
    assert len(text.splitlines()) == 1
    assert "not a safetensors file" in text
    assert everything(batch / "in_lightweight") == []
    assert not (batch / "r.json").exists()


def test_workers_that_die_at_once_are_not_started_for_ever(monkeypatch, tmp_path):
    class Dead(worker.Worker):
        def __post_init__(self):
            pass

        def follow(self, *_):
            return "crashed (SIGSEGV)"

        def stop(self):
            pass

    from llenhance.errors import LLEnhanceError
    from llenhance.jobs import Batch, Settings
    from llenhance.plan import Job

    monkeypatch.setattr(worker, "Worker", Dead)
    settings = Settings(1.0, None, {}, "auto", None, False)
    jobs = [Job(tmp_path / "a", tmp_path / "b", "picture", "dln")]
    with pytest.raises(LLEnhanceError, match="dies without work: crashed"):
        worker.run_in_workers(Batch(jobs, Loading(), settings, Choice()), Report(-1), lambda: None)


# --- the report -----------------------------------------------------------------------------------


def test_the_report_lists_every_input(batch):
    (batch / "in" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (batch / "in" / "empty.png").write_bytes(b"")
    (batch / "out").mkdir()
    (batch / "out" / "0.png").write_bytes(b"mine")
    result = llenhance(
        "in", "absent.png", "-o", "out", *FAST, "--on-exists", "skip", "--report", "r.json",
        "--strength", "0.5", cwd=batch,
    )  # fmt: skip
    assert result.returncode == 1
    # Two inputs: the folder keeps its name below the output.
    report = json.loads((batch / "r.json").read_text())
    assert report["exit_status"] == 1
    assert report["settings"]["strength"] == 0.5
    assert len(report["settings"]["digests"]["lightweight"]) == 64
    rows = {row["source"]: row for row in report["files"]}
    assert len(rows) == len(report["files"]) == 9
    assert rows["in/1.png"]["status"] == "done"
    assert rows["in/1.png"]["target"] == "out/in/1.png"
    assert rows["in/1.png"]["model"] == "lightweight"
    assert rows["in/1.png"]["seconds"] >= 0
    assert rows["in/bad.jpg"]["status"] == "failed"
    assert rows["in/bad.jpg"]["target"] == "out/in/bad.jpg"
    assert "JPEG" in rows["in/bad.jpg"]["error"]
    assert rows["in/empty.png"]["error"] == "is empty"
    assert rows["absent.png"]["error"] == "no such file"
    assert all(
        {"target", "status", "error", "seconds", "warnings"} <= set(r) for r in rows.values()
    )


@pytest.mark.parametrize("several", [True, False])
def test_the_report_lists_a_video_once(tmp_path, several):
    """Whatever became of it, in a worker or here."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bad.mp4").write_text("no video")
    if several:
        clips.clip(folder / "good.mp4", frames=3)
        clips.audio_only(folder / "sound.mp4")
    refused("in", "-o", "out/", *FAST, "--report", "r.json", status=1, cwd=tmp_path)
    report = json.loads((tmp_path / "r.json").read_text())
    count = {"done": int(several), "skipped": 0, "failed": 1 + several, "not done": 0}
    assert report["counts"] == count
    row = report["files"][0]
    assert (row["source"], row["target"]) == ("in/bad.mp4", "out/bad.mp4")
    assert (row["model"], row["kind"], row["status"]) == ("lightweight", "video", "failed")
    if several:
        ok("in/good.mp4", *FAST, "--preview", "--report", "p.json", cwd=tmp_path)
        report = json.loads((tmp_path / "p.json").read_text())
        assert report["counts"] == {"done": 1, "skipped": 0, "failed": 0, "not done": 0}
        assert report["files"][0]["target"] == "in/good_lightweight.preview.png"
        assert report["files"][0]["kind"] == "video"


def test_the_report_carries_warnings_and_any_name(batch):
    name = os.fsdecode(b"in/\xff\n\x1b.png")
    Image.fromarray(np.full((8, 8, 4), 99, np.uint8)).save(batch / "in" / "a.png")
    (batch / "in" / "a.png").rename(batch / name)
    result = ok(
        name, "in/1.png", "-o", "out", "--ext", "jpg", *FAST, "--report", "r.json", cwd=batch
    )
    row = json.loads((batch / "r.json").read_text())["files"][0]
    assert row["source"] == name
    assert row["warnings"] == ["transparency is lost"]
    lines = result.stderr.decode().splitlines()
    assert lines[0] == "in/\\xff\\n\\x1b.png: transparency is lost"
    assert len(lines) == 4


def test_a_report_of_an_interrupted_run(tmp_path):
    for number in range(30):
        picture(tmp_path / "in" / f"{number:02}.png", 300, 400, seed=number)
    process = subprocess.Popen(
        [sys.executable, "-m", "llenhance", "in", "-m", "residual", "--device", "cpu",
         "--report", "r.json"],
        cwd=tmp_path, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    out = tmp_path / "in_residual"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out.exists() and any(out.glob("*.png"))):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["exit_status"] == 130
    assert len(report["files"]) == 30
    statuses = {row["status"] for row in report["files"]}
    assert statuses == {"done", "not done"}


def test_a_report_replaces_nothing_but_a_report(batch):
    text = refused("in", *FAST, "--report", "in/0.png", cwd=batch)
    assert "is not a report" in text
    assert not (batch / "in_lightweight").exists()
    ok("in/0.png", "-o", "a.png", *FAST, "--report", "r.json", cwd=batch)
    ok("in/0.png", "-o", "b.png", *FAST, "--report", "r.json", cwd=batch)
    assert json.loads((batch / "r.json").read_text())["files"][0]["target"] == "b.png"
    text = refused("in/0.png", "-o", "c.png", *FAST, "--report", "c.png", cwd=batch)
    assert "same file" in text


# --- policies -------------------------------------------------------------------------------------


def test_fail_fast_stops_at_the_first_failure(batch):
    (batch / "in" / "1.png").write_bytes((batch / "in" / "1.png").read_bytes()[:-40])
    result = llenhance("in", *FAST, "--fail-fast", "--report", "r.json", cwd=batch)
    assert result.returncode == 1
    counts = json.loads((batch / "r.json").read_text())["counts"]
    assert counts["failed"] == 1
    assert counts["not done"] >= 3
    assert len(everything(batch / "in_lightweight")) == counts["done"]
    # What is known before is the first failure.
    result = llenhance("absent.png", "in", "-o", "out/", *FAST, "--fail-fast", cwd=batch)
    assert result.returncode == 1
    assert everything(batch / "out") == []


def test_preserve_times(batch):
    for number in range(3):
        os.utime(batch / "in" / f"{number}.png", ns=(10**18 + number, 10**18 + number))
    ok("in", *FAST, "--preserve-times", cwd=batch)
    for number in range(3):
        found = (batch / "in_lightweight" / f"{number}.png").stat().st_mtime_ns
        assert found == 10**18 + number
    text = ok("in", *FAST, "--preserve-times", "--on-exists", "skip", cwd=batch).stderr.decode()
    assert "6 skipped" in text
    assert "journal" not in text


# --- fidelity: the options reach the room that keeps it -------------------------------------------


def test_max_pixels_and_allow_truncated(batch):
    picture(batch / "t.jpg", 256, 256)
    whole = (batch / "t.jpg").read_bytes()
    (batch / "t.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    assert "--allow-truncated" in refused("t.jpg", *FAST, status=1, cwd=batch)
    result = ok("t.jpg", *FAST, "--allow-truncated", "--report", "r.json", cwd=batch)
    assert "t.jpg: is damaged" in result.stderr.decode()
    (row,) = json.loads((batch / "r.json").read_text())["files"]
    assert row["truncated"] is True
    assert row["warnings"]
    assert size(batch / "t_lightweight.jpg") == (256, 256)
    text = refused("in/0.png", *FAST, "--max-pixels", "599", status=1, cwd=batch)
    assert "30x20 pixels" in text
    ok("in/0.png", *FAST, "--max-pixels", "600", cwd=batch)
    options = {option.name: option for option in cli.commands["enhance"].params}
    assert options["max_pixels"].default == MAX_PIXELS


def test_provenance_strip_and_ext(batch):
    exif = Image.Exif()
    exif[271] = "Camera"
    picture(batch / "c.jpg", exif=exif)

    def software(name):
        with Image.open(batch / name) as image:
            found = image.getexif()
            return found.get(271), found.get(305)

    digest = Loading().digest("lightweight")
    ok("c.jpg", "-o", "a.jpg", *FAST, "--strength", "0.5", cwd=batch)
    make, made_by = software("a.jpg")
    assert make == "Camera"
    assert made_by.startswith("llenhance ")
    assert made_by.endswith(f"lightweight, strength 0.5, weights {digest[:12]}")
    ok("c.jpg", "-o", "b.jpg", *FAST, "--no-provenance", cwd=batch)
    assert software("b.jpg") == ("Camera", None)
    ok("c.jpg", "-o", "s.jpg", *FAST, "--strip", cwd=batch)
    assert software("s.jpg") == (None, None)
    ok("c.jpg", *FAST, "--ext", "png", cwd=batch)
    assert (batch / "c_lightweight.png").read_bytes().startswith(b"\x89PNG")
    data = (batch / "c.jpg").read_bytes()
    assert ok("-", *FAST, "--ext", "png", data=data).stdout.startswith(b"\x89PNG")
    assert "--ext xyz" in refused("c.jpg", *FAST, "--ext", "xyz", cwd=batch)


# --- names ----------------------------------------------------------------------------------------

ODD = [b"\xff\xfe.png", b"new\nline.png", b"-dash.png", b"quo'te\".png", b"100%d.png", b"[a].png",
       b"\xf0\x9f\x98\x80 \xe6\x97\xa5.png", b" space .png", b"{stem}.png", b"a\x1b[31mred.png",
       b"@at.png", b"$(touch x).png", b"back\\slash.png"]  # fmt: skip


def test_every_name_works(tmp_path):
    names = [os.fsdecode(name) for name in ODD]
    for name in names:
        picture(tmp_path / name)
    result = ok(*FAST, "--", *names, cwd=tmp_path)
    made = set(os.listdir(os.fsencode(tmp_path))) - set(ODD)
    assert made == {name.replace(b".png", b"_lightweight.png") for name in ODD}
    assert len(result.stderr.splitlines()) == len(names) + 1
    assert b"\x1b" not in result.stderr


def test_an_error_is_one_line_whatever_the_name(tmp_path):
    for name in ODD:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\nrubbish")
    result = llenhance(*FAST, ".", "-o", "../out/", "--json", cwd=tmp_path)
    assert result.returncode == 1
    lines = result.stderr.decode().splitlines()
    assert lines[-1] == f"0 done, {len(ODD)} failed"
    assert len(lines) == len(ODD) + 1
    assert all(".png: " in line for line in lines[:-1])
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {os.fsencode(row["source"]) for row in rows} == set(ODD)
    dry = llenhance(*FAST, ".", "-o", "../out/", "--dry-run", cwd=tmp_path)
    assert len(dry.stdout.splitlines()) == len(ODD)


# --- disks ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("no right to mount; test_files.py has a limit on file size")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def large(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(3):
        noise = rng.integers(0, 60, (250, 300, 3), np.uint8)  # 170 kB each as PNG
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), noise)
    return tmp_path


def test_a_disk_that_fills_up(large, small_disk):
    arguments = ("in", "-o", "disk/out/", *FAST, "--on-exists", "skip", "--report", "r.json")
    result = llenhance(*arguments, cwd=large)
    text = result.stderr.decode()
    assert result.returncode == 1
    assert "Traceback" not in text
    assert "in/2.png: cannot write disk/out/2.png: the disk is full" in text.splitlines()
    done = everything(small_disk / "out")
    assert done
    told = (small_disk / "out" / JOURNAL).read_text().splitlines()
    assert [json.loads(line)["target"] for line in told] == done  # of targets that are there only
    assert all(size(small_disk / "out" / name) == (300, 250) for name in done)  # and no leftovers
    assert json.loads((large / "r.json").read_text())["counts"]["failed"] == 3 - len(done)
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    ok(*arguments, cwd=large)
    assert everything(small_disk / "out") == ["0.png", "1.png", "2.png"]


def test_a_disk_that_is_full_or_read_only_is_refused(large, small_disk):
    (small_disk / "ballast").write_bytes(bytes(380_000))
    assert "the disk is full" in refused("in", "-o", "disk/out", *FAST, cwd=large)
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    text = refused("in", "-o", "disk/out", *FAST, cwd=large)
    assert text == "llenhance: cannot write into disk: a read-only file system\n"
    dry = refused("in", "-o", "disk/out", *FAST, "--dry-run", cwd=large)
    assert "read-only" in dry


def test_permission_denied(tmp_path):
    drop = []
    if os.geteuid() == 0:  # root, but without the right to pass over permissions
        if shutil.which("setpriv") is None:
            pytest.skip("root may do everything")
        lost = "-dac_override,-dac_read_search"
        drop = ["setpriv", f"--bounding-set={lost}", f"--inh-caps={lost}"]
    picture(tmp_path / "in" / "good.png")
    picture(tmp_path / "in" / "closed.png").chmod(0)
    picture(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "in" / "sub").chmod(0)
    (tmp_path / "out").mkdir(0o555)

    def run(output):
        return subprocess.run(
            [*drop, sys.executable, "-m", "llenhance", "in", "-r", *FAST, "-o", output],
            cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=120,
        )  # fmt: skip

    result = run("out/new")
    assert result.stderr == "llenhance: cannot write into out: permission denied\n"
    assert result.returncode == 2
    result = run("made/")
    (tmp_path / "in" / "sub").chmod(0o755)
    assert result.returncode == 1
    assert result.stderr.splitlines()[:2] == [
        "in/closed.png: Permission denied",
        "in/sub: cannot be read: Permission denied",
    ]
    assert everything(tmp_path / "made") == ["good.png"]


def test_a_journal_that_cannot_be_written_is_no_failure(batch):
    (batch / "in_lightweight" / ".llenhance-journal.jsonl").mkdir(parents=True)
    text = ok("in", *FAST, cwd=batch).stderr.decode()
    assert text.count("journal cannot be written") == 1
    assert "6 done" in text


def test_a_reader_of_json_that_leaves(batch):
    process = subprocess.Popen(
        [sys.executable, "-m", "llenhance", "in", *FAST, "--json", "-q"], cwd=batch,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    process.stdout.close()
    stderr = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 1
    assert stderr == ""
    assert leftovers(batch) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "words",
    [
        ("in/0.png", "-o", "-", *FAST),
        ("in/0.png", "-o", "a.png", *FAST, "--json"),
        ("in", "-o", "b/", *FAST, "--json"),
        ("in", "-o", "c/", *FAST, "--dry-run"),
        ("in", "-o", "c/", *FAST, "--dry-run", "--json"),
        ("methods",),
        ("methods", "--json"),
    ],
)
def test_a_standard_output_that_is_full_is_one_line(batch, words):
    """On a full disk, say; the picture's own line names the picture."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "llenhance", *words], cwd=batch, env=ENVIRONMENT,
            stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    text = done.stderr.decode()
    assert done.returncode == 1, text
    assert "Traceback" not in text
    assert text.splitlines()[-1].endswith("standard output: No space left on device")
    assert leftovers(batch) == []


def test_a_file_that_is_longer_than_a_picture_can_be_takes_no_memory(batch):
    """A sparse file of 8 GB, and a standard input without an end."""
    header = (batch / "in" / "0.png").read_bytes()
    with (batch / "sparse.png").open("wb") as file:
        file.write(header)
        file.truncate(8 << 30)
    text = refused("sparse.png", *FAST, status=1, cwd=batch)
    assert "sparse.png: has more than 4,556,435,456 bytes, too many for a picture within" in text
    (batch / "sparse.png").unlink()
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run(
            [sys.executable, "-m", "llenhance", "-", "-o", "x.png", *FAST, "--max-pixels", "1000"],
            stdin=endless, cwd=batch, env=ENVIRONMENT, capture_output=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.decode().startswith("standard input: has more than 268,451,456 bytes")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    "start", [b"\xff\xd8\xff", b"YUV4MPEG2 W64 H48 F25:1\nFRAME\n" + bytes(5000)]
)
def test_a_silent_pipe_does_not_hold_up_the_end(tmp_path, start):
    """The other end neither sends nor closes; told to stop, the command does."""
    import array
    import fcntl
    import termios

    words = ["-", "-o", str(tmp_path / f"out{'.mp4' if start[0] == 89 else '.jpg'}"), *FAST]
    process = subprocess.Popen(
        [sys.executable, "-m", "llenhance", *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        process.stdin.write(start)
        process.stdin.flush()
        unread = [1]
        while unread[0] and process.poll() is None:  # until it has read what there is
            time.sleep(0.1)
            unread = array.array("i", [0])
            fcntl.ioctl(process.stdin, termios.FIONREAD, unread)
        time.sleep(1)
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 143
    finally:
        process.kill()
        process.communicate()
    assert list(tmp_path.iterdir()) == []


# --- the long run ---------------------------------------------------------------------------------


def resident(pid):
    """Bytes that a process and its children hold."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            status = dict(
                line.split(":", 1) for line in (entry / "status").read_text().splitlines()
            )
        except OSError:
            continue
        if int(entry.name) == pid or int(status["PPid"]) == pid:
            total += int(status.get("VmRSS", "0 kB").split()[0]) * 1024
    return total


def soak(folder, count, early):
    """(resident after ``early`` pictures, and after ``count`` of them)."""
    (folder / "in").mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        values = rng.integers(0, 40, (24, 32, 3), np.uint8)
        cv2.imwrite(str(folder / "in" / f"{number:05}.png"), values)
    first = last = number = 0
    with subprocess.Popen(
        [sys.executable, "-m", "llenhance", "in", *FAST, "--threads", "1", "--json", "-q"],
        cwd=folder, stdout=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        for number, line in enumerate(process.stdout, 1):
            assert json.loads(line)["status"] == "done"
            if number == early:
                first = resident(process.pid)
            if number == count - 20:
                last = resident(process.pid)
    assert process.returncode == 0
    assert number == count
    return first, last


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_ten_thousand_pictures_in_flat_memory(tmp_path):
    first, last = soak(tmp_path, 10_000, 500)
    print(f"{first / 1e6:.0f} MB after 500, {last / 1e6:.0f} MB after 10,000")
    assert first > 50e6  # it was measured
    assert last < 1.1 * first


# --- what file systems do -------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_fails_with_its_own_pictures_alone(tmp_path, monkeypatch):
    """As on a memory card, for a name with a colon in it."""
    made = files.make_folder

    def make_folder(folder):
        if ":" in folder.name:
            raise Refusal(f"cannot make the folder {folder}: Invalid argument")
        made(folder)

    monkeypatch.setattr(files, "make_folder", make_folder)
    jobs = [
        Job(tmp_path / "a.png", tmp_path / "out" / folder / "a.png", "picture", "lightweight")
        for folder in ("18:30", "plain")
    ]
    report = Report(-1, keep=True)
    settings = Settings(1.0, None, {}, "auto", None, overwrite=False)
    with Work({}, report, settings, Choice(), Watch()) as work:
        assert work.with_folders(jobs) == jobs[1:]
    assert report.failures[0][0] == str(jobs[0].source)
    assert "Invalid argument" in report.failures[0][1]
    assert report.exit_status == 1
    assert (tmp_path / "out" / "plain").is_dir()


def test_names_that_are_one_file_are_not_written_over_each_other(tmp_path):
    """IMG.jpg and img.jpg on a memory card: here two names of one file."""
    upper, lower = tmp_path / "IMG.jpg", tmp_path / "img.jpg"
    jobs = [Job(Path("x") / t.name, t, "picture", "lightweight") for t in (upper, lower)]
    settings = Settings(1.0, None, {}, "auto", None, overwrite=True)
    with Work({}, Report(-1), settings, Choice(), Watch()) as work:
        work.with_folders(jobs)
        with work._alone(upper), files.publish(upper, overwrite=True) as temporary:
            temporary.write_bytes(b"one")
        os.link(upper, lower)
        with (
            pytest.raises(Appeared, match="another output of this run"),
            work._alone(lower),
            files.publish(lower, overwrite=True) as temporary,
        ):
            temporary.write_bytes(b"two")
        lower.unlink()
        with work._alone(lower), files.publish(lower, overwrite=True) as temporary:
            temporary.write_bytes(b"two")
    assert (upper.read_bytes(), lower.read_bytes()) == (b"one", b"two")
