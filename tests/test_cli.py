"""The real entry point in a subprocess: names, statuses, streams, signals."""

import io
import json
import os
import re
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

from llenhance.report import Report

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "LLENHANCE_WEIGHTS"}
FAST = ("-m", "lightweight", "--device", "cpu")
TIMEOUT = 300  # seconds
JOURNAL = ".llenhance-journal.jsonl"


def llenhance(*arguments, cwd=None, data=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "llenhance", *map(str, arguments)],
        cwd=cwd,
        input=data,
        capture_output=True,
        env=ENVIRONMENT | environment,
        check=False,
        timeout=TIMEOUT,
    )


def ok(*arguments, **keywords):
    result = llenhance(*arguments, **keywords)
    assert result.returncode == 0, result.stderr.decode()
    return result


def refused(*arguments, status=2, **keywords):
    """Exactly one line on stderr, no traceback; returns it."""
    result = llenhance(*arguments, **keywords)
    text = result.stderr.decode()
    assert result.returncode == status, text
    assert "Traceback" not in text
    return text


def picture(path: Path, height=20, width=30, seed=0, **saving) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 40, (height, width, 3), np.uint8)
    Image.fromarray(cv2.GaussianBlur(values, (0, 0), 2)).save(path, **saving)
    return path


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


@pytest.fixture
def photo(tmp_path):
    return picture(tmp_path / "photo.jpg")


@pytest.fixture
def tree(tmp_path):
    picture(tmp_path / "dir" / "a.jpg", seed=1)
    picture(tmp_path / "dir" / "sub" / "b.png", seed=2)
    (tmp_path / "dir" / "notes.txt").write_text("no picture")
    return tmp_path / "dir"


def everything(folder: Path) -> list[str]:  # but the journal
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != JOURNAL)
    return sorted(str(p.relative_to(folder)) for p in found)


# --- names ----------------------------------------------------------------------------------------


def test_one_photo_to_a_named_file(photo, tmp_path):
    ok("photo.jpg", "-m", "dln", "-o", "out.jpg", cwd=tmp_path)
    assert size(tmp_path / "out.jpg") == (30, 20)
    before, after = (np.asarray(Image.open(p)).mean() for p in (photo, tmp_path / "out.jpg"))
    assert after > 1.5 * before


@pytest.mark.usefixtures("photo")
def test_enhance_is_the_default_command(tmp_path):
    ok("enhance", "photo.jpg", *FAST, cwd=tmp_path)
    assert everything(tmp_path) == ["photo.jpg", "photo_lightweight.jpg"]


@pytest.mark.usefixtures("photo")
def test_options_stand_before_and_after_inputs(tmp_path):
    ok("-q", "-m", "lightweight", "photo.jpg", "-o", "out.png", "--device", "cpu", cwd=tmp_path)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_named_like_a_command(tmp_path):
    picture(tmp_path / "x.png").rename(tmp_path / "train")
    ok("./train", *FAST, cwd=tmp_path)
    assert "train_lightweight.png" in everything(tmp_path)


def test_a_folder_is_mirrored_beside_itself(tree, tmp_path):
    ok("dir/", *FAST, cwd=tmp_path)
    assert everything(tmp_path / "dir_lightweight") == ["a.jpg"]
    ok("dir/", "--recursive", *FAST, "--on-exists", "skip", cwd=tmp_path)
    assert everything(tmp_path / "dir_lightweight") == ["a.jpg", "sub/b.png"]
    assert everything(tree) == ["a.jpg", "notes.txt", "sub/b.png"]


def test_the_folder_one_stands_in(tree, tmp_path):
    ok(".", *FAST, cwd=tree)
    assert everything(tmp_path / "dir_lightweight") == ["a.jpg"]


def test_several_inputs_into_a_folder(tmp_path):
    for n, name in enumerate(("a.jpg", "b.png", "c d.tif")):
        picture(tmp_path / name, seed=n)
    ok("a.jpg", "b.png", "c d.tif", "-o", "outdir/", *FAST, cwd=tmp_path)
    assert everything(tmp_path / "outdir") == ["a.jpg", "b.png", "c d.tif"]


@pytest.mark.usefixtures("photo")
def test_name_template(tmp_path):
    ok("photo.jpg", *FAST, "--name-template", "{model}-{stem}{ext}", cwd=tmp_path)
    assert (tmp_path / "lightweight-photo.jpg").exists()
    assert "name template" in refused("photo.jpg", *FAST, "--name-template", "{nix}", cwd=tmp_path)
    assert "not a file name" in refused("photo.jpg", *FAST, "--name-template", "../x", cwd=tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--name-template", "{nix}"), "name template '{nix}'"),
        (("--name-template", "a/{stem}"), "not a file name"),
        (("--codec", "nix"), "no encoder 'nix' here"),
    ],
)
@pytest.mark.usefixtures("photo")
def test_a_wrong_word_is_told_where_it_is_not_used_too(tmp_path, words, said):
    for output in (("-o", "out.png"), ("-o", "out/"), ("--dry-run", "-o", "out.png")):
        assert said in refused("photo.jpg", *FAST, *words, *output, cwd=tmp_path)
    assert everything(tmp_path) == ["photo.jpg"]


def test_streams_have_no_time_of_change(photo, tmp_path):
    text = refused(photo, *FAST, "--preserve-times", "-o", "-")
    assert "--preserve-times goes with files" in text
    data = photo.read_bytes()
    text = refused("-", *FAST, "--preserve-times", "-o", tmp_path / "out.png", data=data)
    assert "--preserve-times goes with files" in text
    clips.clip(tmp_path / "clip.mp4", frames=2)
    picture(tmp_path / "p1.png")
    for words in (("clip.mp4", "-o", "o%d.png"), ("p%d.png", "-o", "o.mp4")):
        text = refused(*words, *FAST, "--preserve-times", cwd=tmp_path)
        assert "--preserve-times goes with files" in text


@pytest.mark.usefixtures("photo")
def test_all_methods_and_a_comparison(tmp_path):
    picture(tmp_path / "truth.png", seed=0)
    ok("photo.jpg", "-m", "all", "--compare", "grid.png", "--reference", "truth.png", cwd=tmp_path)
    names = ["dln", "enlightengan", "lightweight", "neid", "residual"]
    expected = [f"photo_{name}.jpg" for name in names]
    assert set(expected) < set(everything(tmp_path))
    width, height = size(tmp_path / "grid.png")
    assert width > 300
    assert height > 200


@pytest.mark.usefixtures("photo")
def test_a_comparison_may_show_outputs_that_are_larger_than_inputs_may_be(tmp_path):
    width, height = size(tmp_path / "photo.jpg")
    words = ("-m", "neid", "--scale", "2", "--max-pixels", str(width * height))
    (tmp_path / "photo.jpg").chmod(0o600)
    ok("photo.jpg", *words, "--compare", "grid.png", cwd=tmp_path)
    assert (tmp_path / "grid.png").stat().st_mode & 0o777 == 0o600  # it shows the same
    assert size(tmp_path / "photo_neid.jpg") == (2 * width, 2 * height)
    assert (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("sheet", ["photo.jpg", "./photo.jpg", "out.png", "truth.png"])
@pytest.mark.usefixtures("photo")
def test_a_comparison_replaces_nothing_that_it_shows(tmp_path, sheet):
    picture(tmp_path / "truth.png", seed=0)
    before = {name: (tmp_path / name).read_bytes() for name in ("photo.jpg", "truth.png")}
    for policy in ("error", "overwrite"):
        words = ("photo.jpg", *FAST, "-o", "out.png", "--compare", sheet, "--on-exists", policy)
        text = refused(*words, "--reference", "truth.png", cwd=tmp_path)
        assert f"--compare {sheet}: that is an input, an output or the reference" in text
    assert {name: (tmp_path / name).read_bytes() for name in everything(tmp_path)} == before


@pytest.mark.parametrize("sheet", ["folder.png", "-", "sheet", "sheet.txt", "sheet.heic"])
@pytest.mark.usefixtures("photo")
def test_a_comparison_is_a_picture_file(tmp_path, sheet):
    (tmp_path / "folder.png").mkdir()
    text = refused("photo.jpg", *FAST, "--compare", sheet, "--on-exists", "overwrite", cwd=tmp_path)
    assert "is a folder" in text or "give the file of a picture, such as sheet.png" in text
    assert everything(tmp_path) == ["photo.jpg"]


@pytest.mark.usefixtures("photo")
def test_the_folders_of_a_comparison_and_a_report_are_made(tmp_path):
    ok("photo.jpg", *FAST, "--compare", "a/b.png", "--report", "c/d.json", cwd=tmp_path)
    expected = ["a/b.png", "c/d.json", "photo.jpg", "photo_lightweight.jpg"]
    assert everything(tmp_path) == expected


@pytest.mark.usefixtures("photo")
def test_a_comparison_that_lacks_a_picture_is_not_made(tmp_path):
    (tmp_path / "bad.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:300])
    text = refused("bad.jpg", *FAST, "--compare", "sheet.png", status=1, cwd=tmp_path)
    assert "sheet.png: is not written, since not every picture was" in text
    assert everything(tmp_path) == ["bad.jpg", "photo.jpg"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--reference", "bad.txt"), "bad.txt: is not a picture of a format that is read"),
        (("--reference", "nix.png"), "nix.png: no such file"),
        (("--report", "sheet.png"), "the report and --compare are the same file"),
    ],
)
@pytest.mark.usefixtures("photo")
def test_a_comparison_is_checked_before_the_work(tmp_path, words, told):
    (tmp_path / "bad.txt").write_text("words")
    assert told in refused("photo.jpg", *FAST, "--compare", "sheet.png", *words, cwd=tmp_path)
    assert everything(tmp_path) == ["bad.txt", "photo.jpg"]


@pytest.mark.usefixtures("photo")
def test_a_comparison_of_nothing(tmp_path):
    words = ("photo.jpg", *FAST, "--compare", "sheet.png", "--exclude", "*.jpg")
    assert "nothing of it is to be enhanced" in refused(*words, status=1, cwd=tmp_path)
    assert everything(tmp_path) == ["photo.jpg"]


@pytest.mark.usefixtures("photo")
def test_a_comparison_of_a_truncated_picture(tmp_path):
    cut = tmp_path / "cut.jpg"
    data = picture(tmp_path / "whole.jpg", 200, 300).read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3])
    ok("cut.jpg", *FAST, "--allow-truncated", "--compare", "sheet.png", cwd=tmp_path)
    assert size(tmp_path / "sheet.png")[0] > 300


def test_a_comparison_holds_one_large_picture_at_a_time(tmp_path):
    """Of seven, six as large as they are would be 72 MB."""
    photo = picture(tmp_path / "photo.png", 2000, 2000)
    code = """
import sys, tracemalloc
from pathlib import Path
from llenhance import comparison, jobs, sheets
from llenhance.plan import Job
from llenhance.report import Report
settings = jobs.Settings(1.0, None, {}, "auto", None, False)
photo = Path(sys.argv[1])
made = [Job(photo, photo, "picture", "dln")] * 6
tracemalloc.start()
comparison.write(made, Path(sys.argv[2]), None, settings, Report())
print(tracemalloc.get_traced_memory()[1])
"""
    words = [sys.executable, "-c", code, photo, tmp_path / "sheet.png"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    assert size(tmp_path / "sheet.png")[0] == 2400
    assert int(done.stdout) < 70e6


@pytest.mark.usefixtures("photo")
def test_a_comparison_that_fails_is_in_the_report(tmp_path):
    picture(tmp_path / "bad.png", 200, 300)
    data = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(data[: len(data) // 2])
    words = ("--compare", "sheet.png", "--reference", "bad.png", "--report", "r.json")
    text = refused("photo.jpg", *FAST, *words, status=1, cwd=tmp_path)
    assert "sheet.png: bad.png: " in text
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["exit_status"] == 1
    assert report["counts"]["failed"] == 1


@pytest.mark.usefixtures("photo")
def test_several_methods_into_a_folder(tmp_path):
    ok("photo.jpg", "-m", "lightweight,residual", "-o", "out", cwd=tmp_path)
    assert everything(tmp_path / "out") == ["photo_lightweight.jpg", "photo_residual.jpg"]


def test_a_list_of_methods_is_checked(photo):
    assert "'moon' is not a method" in refused(photo, "-m", "dln,moon")


# --- what is refused, before anything happens -----------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("policy", ["error", "skip", "overwrite", "rename"])
def test_only_files_are_replaced(photo, tmp_path, policy):
    os.mkfifo(tmp_path / "pipe.jpg")
    for target in ("pipe.jpg", "/dev/stdout"):
        text = refused(photo, *FAST, "-o", target, "--on-exists", policy, cwd=tmp_path)
        assert "is not a regular file (-o - writes to standard output)" in text
    assert sorted(os.listdir(tmp_path)) == ["photo.jpg", "pipe.jpg"]
    assert (tmp_path / "pipe.jpg").is_fifo()


@pytest.mark.parametrize("suffix", [".mp4", ".pdf", ".txt", ".jxl", ".heic"])
def test_a_picture_is_written_as_a_picture(photo, tmp_path, suffix):
    text = refused(photo, *FAST, "-o", f"out{suffix}", cwd=tmp_path)
    assert f"pictures are not written as {suffix}" in text
    assert everything(tmp_path) == ["photo.jpg"]


def test_numbers_that_are_none_are_refused(photo):
    assert "strength" in refused(photo, *FAST, "--strength", "nan")
    assert "alpha" in refused(photo, "-m", "residual", "--alpha", "nan")


def test_a_preview_is_of_videos(photo, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom")  # a video by its first bytes
    for inputs in ((photo,), (photo, tmp_path / "clip.mp4")):
        text = refused(*inputs, *FAST, "-o", "out/", "--preview", cwd=tmp_path)
        assert "--preview takes videos" in text
    assert everything(tmp_path) == ["clip.mp4", "photo.jpg"]


def test_a_checkpoint_is_no_weights(photo, tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"x")
    text = refused(photo, *FAST, "--weights", "mine.pth", cwd=tmp_path)
    assert "mine.pth: not a .safetensors file ('llenhance weights import'" in text


def test_two_methods_need_two_names(photo):
    words = (photo, "-m", "lightweight,residual", "--name-template", "{stem}_x{ext}")
    assert "lightweight and residual (the template needs {model})" in refused(*words)


def test_a_folder_of_folders_is_pointed_to(tree):
    (tree / "a.jpg").unlink()
    assert "--recursive looks into the folders in it" in refused(tree, *FAST, status=1)


def test_mistakes_in_the_command_are_told_in_one_line(photo):
    for words in (
        (), ("weights",), ("train",), ("-m", "moon", photo), ("--nix", photo),
        ("--scale", "x", photo), ("--timeout", "nan", photo), ("--weights", "w" * 300, photo),
        ("--compare", "c" * 300 + ".png", photo), ("--dry-run", "--weights", "nix", photo),
    ):  # fmt: skip
        text = refused(*words)
        assert text.startswith("llenhance: ")
        assert "\\n" not in text
        assert text.count("\n") == 1


def test_names_are_told_as_they_are(tmp_path):
    picture(tmp_path / "a:smile:b.jpg")
    text = ok("a:smile:b.jpg", *FAST, "-v", cwd=tmp_path).stderr.decode()
    assert "a:smile:b_lightweight.jpg" in text


def test_an_existing_target(photo, tmp_path):
    out = tmp_path / "out.jpg"
    out.write_bytes(b"old")
    assert "out.jpg exists" in refused(photo, "-o", out, *FAST)
    assert out.read_bytes() == b"old"
    ok(photo, "-o", out, *FAST, "--on-exists", "skip")
    assert out.read_bytes() == b"old"
    ok(photo, "-o", out, *FAST, "--on-exists", "rename")
    assert size(tmp_path / "out-1.jpg") == (30, 20)
    assert out.read_bytes() == b"old"
    ok(photo, "-o", out, *FAST, "--on-exists", "overwrite")
    assert size(out) == (30, 20)


def test_input_equal_to_output(photo, tmp_path):
    before = photo.read_bytes()
    (tmp_path / "soft.jpg").symlink_to(photo)
    os.link(photo, tmp_path / "hard.jpg")
    for name in ("photo.jpg", "soft.jpg", "hard.jpg", "../" + tmp_path.name + "/photo.jpg"):
        for policy in ("overwrite", "error", "skip", "rename"):
            text = refused("photo.jpg", "-o", name, *FAST, "--on-exists", policy, cwd=tmp_path)
            assert "same file" in text
    assert photo.read_bytes() == before


def test_two_inputs_for_one_target(tmp_path):
    for folder in ("a", "b"):
        picture(tmp_path / folder / "x.jpg")
    text = refused("a/x.jpg", "b/x.jpg", "-o", "out/", *FAST, cwd=tmp_path)
    assert "would both write" in text
    assert not (tmp_path / "out").exists()


def test_output_that_is_another_input(tmp_path):
    picture(tmp_path / "x.jpg")
    picture(tmp_path / "x_lightweight.jpg")
    text = refused("x.jpg", "x_lightweight.jpg", *FAST, "--on-exists", "overwrite", cwd=tmp_path)
    assert "is another input" in text


def test_output_inside_the_input_folder(tree, tmp_path):
    assert "inside the input folder" in refused("dir", "-o", "dir/out", *FAST, cwd=tmp_path)
    assert "inside the input folder" in refused("dir", "-o", "dir", *FAST, cwd=tmp_path)
    assert everything(tmp_path) == ["dir/a.jpg", "dir/notes.txt", "dir/sub/b.png"]


def test_a_folder_as_target(photo, tmp_path):
    (tmp_path / "photo_lightweight.jpg").mkdir()
    assert "is a folder" in refused(photo, *FAST, "--on-exists", "overwrite")


def test_a_target_below_a_file(photo, tmp_path):
    assert "not a folder" in refused(photo, "-o", photo / "out.jpg", *FAST)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--device", "cuda"),
        ("--device", "cuda", "--dry-run"),
        ("--device", "cuda:7"),
        ("--device", "tpu"),
    ],
)
def test_a_device_that_is_not_there(tree, tmp_path, arguments):
    if "cuda" in arguments and Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    text = refused("dir/", "--recursive", *arguments, cwd=tmp_path)
    assert len(text.splitlines()) == 1
    assert everything(tmp_path) == ["dir/a.jpg", "dir/notes.txt", "dir/sub/b.png"]


@pytest.mark.usefixtures("photo")
def test_controls_of_other_methods(tmp_path):
    text = refused("photo.jpg", "-m", "dln", "--alpha", "1.5", cwd=tmp_path)
    assert "residual has it" in text
    assert "neid has 2" in refused("photo.jpg", "-m", "dln", "--scale", "2", cwd=tmp_path)
    assert "0 to 2" in refused("photo.jpg", "-m", "residual", "--alpha", "9", cwd=tmp_path)
    refused("photo.jpg", "--strength", "2", cwd=tmp_path)
    assert everything(tmp_path) == ["photo.jpg"]


def test_weights_that_do_not_match(photo, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "lightweight.safetensors").write_bytes(b"rubbish")
    text = refused(photo, *FAST, LLENHANCE_WEIGHTS=str(tmp_path / "w"))
    assert "not a safetensors file" in text


def test_usage(photo):
    assert "INPUT" in refused("-m", "dln")
    assert "--nonsense" in refused(photo, "--nonsense")
    assert "--reference goes with" in refused(photo, "--reference", photo)


# --- controls -------------------------------------------------------------------------------------


def test_alpha_and_scale_and_strength(tmp_path):
    picture(tmp_path / "p.png")
    for alpha in ("0.5", "2"):
        ok("p.png", "-m", "residual", "--alpha", alpha, "-o", f"a{alpha}.png", cwd=tmp_path)
    means = [np.asarray(Image.open(tmp_path / f"a{a}.png")).mean() for a in ("0.5", "2")]
    assert means[0] < means[1]
    ok("p.png", "-m", "neid", "--scale", "2", "-o", "big.png", cwd=tmp_path)
    assert size(tmp_path / "big.png") == (60, 40)
    ok("p.png", "-m", "neid", "-o", "same.png", cwd=tmp_path)
    assert size(tmp_path / "same.png") == (30, 20)
    ok("p.png", *FAST, "--strength", "0", "-o", "zero.png", cwd=tmp_path)
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "zero.png")), np.asarray(Image.open(tmp_path / "p.png"))
    )


# --- what fails -----------------------------------------------------------------------------------


def test_one_bad_file_does_not_stop_a_folder(tree, tmp_path):
    (tree / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (tree / "empty.png").write_bytes(b"")
    result = llenhance("dir", "-r", *FAST, cwd=tmp_path)
    text = result.stderr.decode()
    assert result.returncode == 1
    assert "Traceback" not in text
    assert everything(tmp_path / "dir_lightweight") == ["a.jpg", "sub/b.png"]
    assert any(line.startswith("dir/broken.jpg: ") for line in text.splitlines())
    assert any(line.startswith("dir/empty.png: ") for line in text.splitlines())
    heading, *failed, total = text.splitlines()[-4:]
    assert heading == "failed:"
    assert {line.partition(": ")[0] for line in failed} == {"  dir/broken.jpg", "  dir/empty.png"}
    assert total == "2 done, 2 failed"


def test_what_failed_last_is_not_named_twice(capsys):
    report = Report()
    report.done("a", "b", 1.0)
    report.failed("c", "broken")
    report.summary()
    assert capsys.readouterr().err.splitlines() == [
        "a -> b (1.00 s)", "c: broken", "1 done, 1 failed",
    ]  # fmt: skip


def test_auto_says_what_it_chose(tmp_path):
    picture(tmp_path / "p.png")
    for engine in ("auto", "onnx"):
        command = ("p.png", "-m", "lightweight", "--engine", engine, "-o", f"{engine}.png")
        said = llenhance(*command, cwd=tmp_path).stderr.decode()
        assert re.search("^using (openvino|onnx|torch) on ", said, re.MULTILINE), said


@pytest.mark.parametrize("kind", ["missing", "dangling", "fifo", "text", "empty folder"])
def test_a_named_input_that_cannot_be_read(photo, tmp_path, kind):
    bad = tmp_path / "bad"
    if kind == "dangling":
        bad.symlink_to(tmp_path / "nowhere")
    elif kind == "fifo":
        os.mkfifo(bad)
    elif kind == "text":
        bad.write_text("hello")
    elif kind == "empty folder":
        bad.mkdir()
    text = refused("bad", "photo.jpg", "-o", "out/", *FAST, status=1, cwd=tmp_path)
    assert text.splitlines()[0].startswith("bad: ")
    assert everything(tmp_path / "out") == ["photo.jpg"]


# --- streams --------------------------------------------------------------------------------------


def test_pipe_keeps_the_format_and_only_the_picture_is_on_stdout(photo):
    result = ok("-", *FAST, "-o", "-", data=photo.read_bytes())
    image = Image.open(io.BytesIO(result.stdout))
    assert image.format == "JPEG"
    assert image.size == (30, 20)
    png = io.BytesIO()
    Image.open(photo).save(png, "PNG")
    assert Image.open(io.BytesIO(ok("-", *FAST, data=png.getvalue()).stdout)).format == "PNG"


def test_rubbish_on_a_pipe(tmp_path):
    result = llenhance("-", *FAST, "-o", "-", data=b"rubbish")
    assert result.returncode == 1
    assert result.stdout == b""
    assert result.stderr.decode().startswith("standard input: ")


def test_a_full_standard_output_is_an_error(photo):
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "llenhance", photo, "-o", "-", *FAST],
            stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr
    assert b"No space left" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux opens")
def test_too_few_open_files_are_not_the_fault_of_standard_output(tmp_path):
    for name in "ab":
        picture(tmp_path / "in" / f"{name}.png")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12));"
        "from llenhance.cli import main; main()"
    )
    words = [sys.executable, "-c", code, "in", *FAST]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, env=ENVIRONMENT, check=False, timeout=TIMEOUT
    )
    told = done.stderr.decode()
    assert done.returncode == 1
    assert "Too many open files" in told
    assert "standard output" not in told
    assert "Traceback" not in told


def test_more_threads_than_any_machine_has(photo):
    assert "--threads" in refused(photo, *FAST, "--threads", "99999999999")


def test_a_reader_that_leaves_ends_the_run_quietly(tmp_path):
    picture(tmp_path / "big.png", 400, 600)
    process = subprocess.Popen(
        [sys.executable, "-m", "llenhance", "big.png", "-o", "-", *FAST],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    process.stdout.close()
    stderr = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 1
    assert stderr == ""


def test_json_lines(tree, tmp_path):
    (tree / "bad.jpg").write_bytes(b"")
    result = llenhance("dir", "-r", *FAST, "--json", "-q", cwd=tmp_path)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {(row["status"], row["source"]) for row in rows} == {
        ("done", "dir/a.jpg"), ("done", "dir/sub/b.png"), ("failed", "dir/bad.jpg"),
    }  # fmt: skip
    done = next(row for row in rows if row["source"] == "dir/a.jpg")
    assert done["target"] == "dir_lightweight/a.jpg"
    assert done["model"] == "lightweight"
    assert (done["width"], done["height"]) == (30, 20)


def test_dry_run_touches_nothing(tree, tmp_path):
    result = ok("dir/", "-r", "-o", "bright/", "--dry-run", cwd=tmp_path)
    lines = [line.split("\t") for line in result.stdout.decode().splitlines()]
    assert lines == [
        ["enhance", "picture", "dln", "dir/a.jpg", "bright/a.jpg"],
        ["enhance", "picture", "dln", "dir/sub/b.png", "bright/sub/b.png"],
    ]
    assert not (tmp_path / "bright").exists()


def test_quiet_and_verbose(photo, tmp_path):
    assert ok(photo, *FAST, "-o", tmp_path / "q.jpg", "-q").stderr == b""
    text = ok(photo, *FAST, "-o", tmp_path / "v.jpg", "-v").stderr.decode()
    assert re.search(r"lightweight: openvino (fp32|bf16|fp16) on cpu ", text)
    assert ok(photo, *FAST, "-o", tmp_path / "n.jpg").stdout == b""


# --- standard streams that are closed, as under cron ----------------------------------------------


def closed(photo, words):
    """What the shell gets of a command in whose words a stream is closed."""
    command = f"{sys.executable} -m llenhance {words}"
    return subprocess.run(
        ["sh", "-c", command], cwd=photo.parent, capture_output=True, env=ENVIRONMENT,
        check=False, timeout=TIMEOUT,
    )  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="the words are a shell's")
def test_closed_standard_streams(photo, tmp_path):
    shutil.copy(photo, tmp_path / "b.jpg")
    done = closed(photo, "photo.jpg -m lightweight -o out.jpg 2>&-")
    assert (done.returncode, size(tmp_path / "out.jpg")) == (0, (30, 20))
    done = closed(photo, "photo.jpg b.jpg -m lightweight -o many/ <&- >&- 2>&-")  # with a worker
    assert (done.returncode, everything(tmp_path / "many")) == (0, ["b.jpg", "photo.jpg"])
    done = closed(photo, "- -m lightweight -o none.jpg <&-")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, b"standard input: is empty")
    for words in ("- -o none.jpg 0>/dev/null", "@- -o many/ 0>/dev/null"):  # as nohup leaves it
        done = closed(photo, f"{words} -m lightweight")
        assert done.returncode == 1
        told = b": cannot be read: Bad file descriptor"
        assert done.stderr.splitlines()[-1] in (b"standard input" + told, b"@-" + told)
    for words in ("-o - >&-", "--json -o told.jpg >&-"):
        done = closed(photo, f"photo.jpg -m lightweight {words}")
        assert done.returncode == 1
        assert b"cannot write standard output: Bad file descriptor" in done.stderr
        assert b"Traceback" not in done.stderr
    assert not (tmp_path / "none.jpg").exists()


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_whole_files_only(tmp_path, number):
    for n in range(40):
        picture(tmp_path / "dir" / f"{n:02}.png", 300, 400, seed=n)
    process = subprocess.Popen(
        [sys.executable, "-m", "llenhance", "dir", "-m", "residual", "--device", "cpu"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    out = tmp_path / "dir_residual"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out.exists() and any(out.glob("*.png"))):
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert b"Traceback" not in stderr
    told = {"SIGINT": b"interrupted", "SIGTERM": b"terminated", "SIGHUP": b"hung up"}
    assert stderr.splitlines()[-1] == b"llenhance: " + told[signal.Signals(number).name]
    found = everything(out)
    assert 0 < len(found) < 40
    assert all(size(out / name) == (400, 300) for name in found)  # and no temporary files


# --- the other commands ---------------------------------------------------------------------------


def test_methods():
    rows = json.loads(ok("methods", "--json").stdout)
    assert next(row["name"] for row in rows) == "dln"
    assert {row["name"] for row in rows if row["controls"]} == {"residual"}
    assert all("general" in row["weights"] for row in rows)
    text = ok("methods", COLUMNS="200").stdout.decode()
    assert "--alpha 0..2" in text
    assert "--scale 2" in text


def test_version_and_help():
    assert ok("--version").stdout.decode().startswith("llenhance, version ")
    text = ok("--help").stdout.decode()
    for word in ("--alpha", "--scale", "--device", "methods", "train", "Exit status"):
        assert word in text


def test_an_encoding_that_lacks_letters(tmp_path):
    picture(tmp_path / "фото.jpg")
    latin = {"PYTHONIOENCODING": "latin-1"}
    assert b"jpg, png, tif, \\u2026" in ok("--help", **latin).stdout
    for command in (["train", "--help"], ["evaluate", "--help"], ["methods"]):
        ok(*command, **latin)
    told = ok("фото.jpg", "--dry-run", cwd=tmp_path, **latin).stdout
    assert b"\\u0444\\u043e\\u0442\\u043e.jpg" in told


def test_doctor_finds_what_drivers_raise(monkeypatch, capsys):
    from llenhance import doctor, enhancer

    def broken(name, **options):
        if options["engine"] == "torch":
            raise RuntimeError("CUDA error: no kernel image\nmany lines of advice")
        return enhancer.load(name, **options)

    monkeypatch.setattr(doctor, "load", broken)
    monkeypatch.setattr(doctor, "METHODS", {"lightweight": doctor.METHODS["lightweight"]})
    monkeypatch.setattr(doctor, "cuda_devices", lambda: 0)
    monkeypatch.setenv("COLUMNS", "200")
    assert doctor.examine()
    told = capsys.readouterr().out
    assert "no: CUDA error: no kernel image" in told
    assert "advice" not in told


def test_doctor_misses_weights_that_are_not_there(monkeypatch, capsys):
    from llenhance import checkpoints, doctor

    monkeypatch.setattr(checkpoints, "folders", list)
    monkeypatch.setattr(doctor, "METHODS", {"lightweight": doctor.METHODS["lightweight"]})
    monkeypatch.setattr(doctor, "cuda_devices", lambda: 0)
    monkeypatch.setenv("COLUMNS", "200")
    assert not doctor.examine()
    assert "no: " in capsys.readouterr().out


def test_doctor():
    text = ok("doctor", COLUMNS="200").stdout.decode()
    for word in ("lightweight", "torch", "general", "mild"):
        assert word in text


def test_the_script_that_is_installed(photo, tmp_path):
    script = Path(sys.executable).with_name("llenhance")
    words = [script, photo, "-m", "lightweight", "-o", tmp_path / "out.jpg"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert re.match(r"using \w+ on (cpu|mps|cuda:0) \(", done.stderr)
    assert size(tmp_path / "out.jpg") == size(photo)


def test_completion(tmp_path):
    result = llenhance(
        _LLENHANCE_COMPLETE="bash_complete", COMP_WORDS="llenhance photo.jpg --mo", COMP_CWORD="2"
    )
    assert b"--model" in result.stdout
    result = llenhance(
        _LLENHANCE_COMPLETE="bash_complete", COMP_WORDS="llenhance -m dln,re", COMP_CWORD="2"
    )
    assert b"dln,residual" in result.stdout
    for shell in ("bash", "zsh", "fish"):
        assert b"_LLENHANCE_COMPLETE" in llenhance(_LLENHANCE_COMPLETE=f"{shell}_source").stdout


def test_weights_import_runs(photo, tmp_path):
    import references
    import torch

    state = references.random_state(references.sci_shapes())
    torch.save(state, tmp_path / "sci.pt")
    ok("weights", "import", "lightweight", "sci.pt", "-o", "my.safetensors", cwd=tmp_path)
    assert (tmp_path / "my.onnx").exists()
    ok("photo.jpg", *FAST, "--weights", "my.safetensors", "-o", "out.png", cwd=tmp_path)
    x = torch.from_numpy(np.asarray(Image.open(photo)).copy()).permute(2, 0, 1)[None] / 255
    expected = (references.sci(state, x)[0].permute(1, 2, 0) * 255).round().numpy()
    found = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.abs(found - expected).max() <= 1
    assert "a state dict expected" in refused(
        "weights", "import", "dln", "photo.jpg", "-o", "x.safetensors", cwd=tmp_path
    )
    assert "exists" in refused(
        "weights", "import", "lightweight", "sci.pt", "-o", "my.safetensors", cwd=tmp_path
    )
    graph = tmp_path / "other.onnx"
    graph.write_bytes(b"mine")
    assert "other.onnx exists" in refused(
        "weights", "import", "lightweight", "sci.pt", "-o", "other.safetensors", cwd=tmp_path
    )
    assert graph.read_bytes() == b"mine"
