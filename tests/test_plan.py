"""Which files are taken, where they go, and what is refused before anything runs."""

import os
import sys
from pathlib import Path

import av
import clips
import cv2
import numpy as np
import pytest

from llenhance import journal
from llenhance import plan as planning
from llenhance.errors import Refusal
from llenhance.media import files
from llenhance.names import shown

PNG = cv2.imencode(".png", np.full((3, 4, 3), 9, np.uint8))[1].tobytes()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(*names):
    for name in names:
        path = os.fsencode(name)
        os.makedirs(os.path.dirname(path) or b".", exist_ok=True)
        with open(path, "wb") as file:
            file.write(PNG)


def plan(*inputs, output="out/", **options):
    return planning.plan(inputs, output, models=options.pop("models", ["dln"]), **options)


def targets(*inputs, **options):
    found = plan(*inputs, **options)
    assert found.failures == []
    return [(str(job.source), str(job.target)) for job in found.jobs]


# --- names ----------------------------------------------------------------------------------------


def test_what_follows_a_dot_is_not_always_a_suffix():
    make("d/IMG.0001", "d/IMG.0002", "d/a 1.5 beta", "d/b.jpg")
    inside = [target for _, target in targets("d", output=None)]
    assert inside == [
        "d_dln/IMG.0001.png", "d_dln/IMG.0002.png", "d_dln/a 1.5 beta.png", "d_dln/b.jpg",
    ]  # fmt: skip
    assert targets("d/IMG.0001", output=None) == [("d/IMG.0001", "d/IMG.0001_dln.png")]


def test_a_video_that_its_bytes_tell_keeps_no_second_suffix():
    for name in ("d/clip.y4m", "d/disc.vob", "d/talk.ogg"):
        make(name)
        with open(name, "wb") as file:
            file.write(b"YUV4MPEG2 W4 H4 F25:1\n")
    assert [target for _, target in targets("d", output=None)] == [
        "d_dln/clip.mp4", "d_dln/disc.mp4", "d_dln/talk.mp4",
    ]  # fmt: skip


def test_a_file_named_twice():
    make("a.png")
    with pytest.raises(Refusal, match=r"^a\.png is named twice$"):
        plan("a.png", "a.png")


def test_a_name_that_is_too_long():
    make("n" * 250 + ".png")
    with pytest.raises(Refusal, match="the name is too long"):
        plan("n" * 250 + ".png", output=None)


@pytest.mark.parametrize("template", ["{stem[x]}{ext}", "{stem.x}{ext}", "{0}", "{", "{x}"])
def test_a_template_that_cannot_be_filled(template):
    make("a.png")
    with pytest.raises(Refusal, match=r"it may hold \{stem\}, \{model\} and \{ext\}"):
        plan("a.png", output=None, template=template)


def test_nothing_is_left_to_do():
    make("a.png", "b.png")
    (open("notes.txt", "w")).close()
    for inputs, options in (
        (["a.png"], {"include": ["*.jpg"]}),
        (["a.png", "b.png"], {"exclude": ["*.png"]}),
        (["*.txt"], {}),
    ):
        found = plan(*inputs, **options)
        assert found.jobs == []
        assert [reason for _, reason in found.failures] == ["nothing of it is to be enhanced"]


# --- patterns -------------------------------------------------------------------------------------


def test_a_quoted_pattern_is_expanded():
    make("b.png", "a.png", "c.jpg", ".hidden.png", "sub/d.png")
    (open("notes.png.txt", "w")).close()
    assert targets("*.png") == [("a.png", "out/a.png"), ("b.png", "out/b.png")]
    assert targets("[ab].p?g", output=None) == [("a.png", "a_dln.png"), ("b.png", "b_dln.png")]
    assert targets("*", output="out/")[:1] == [("a.png", "out/a.png")]  # notes are passed over


def test_two_stars_stand_for_any_number_of_folders():
    make("p/a.png", "p/x/b.png", "p/x/y/c.png", "p/x/y/d.jpg", "p/.git/e.png")
    assert targets("p/**/*.png") == [
        ("p/a.png", "out/a.png"), ("p/x/b.png", "out/x/b.png"), ("p/x/y/c.png", "out/x/y/c.png"),
    ]  # fmt: skip
    assert [source for source, _ in targets("**/y/*")] == ["p/x/y/c.png", "p/x/y/d.jpg"]
    assert [source for source, _ in targets("**/*.jpg", output=None)] == ["p/x/y/d.jpg"]


@pytest.mark.parametrize("pattern", ["**/*.png", "*/*.png", "p/*/*.png"])
def test_a_pattern_does_not_take_what_an_earlier_run_made(pattern):
    make("p/x/a.png", "x/b.png", "p/out/x/a.png", "p/out/a.png", "out/b.png", "out/x/b.png")
    folder = "p/out" if pattern.startswith("p") else "out"
    found = plan(pattern, output=folder, on_exists="skip")
    sources = [job.source.parts for job in found.jobs]
    assert sources
    assert not [
        parts for parts in sources if parts[: len(folder.split("/"))] == (*folder.split("/"),)
    ]
    assert {reason for _, reason in found.left_out} == {"lies in the output folder"}


def test_a_pattern_that_matches_outputs_alone_matches_nothing():
    make("out/a.png")
    assert plan("**/*.png", output="out").failures == [("**/*.png", "nothing matches this pattern")]


def sound(path, codec):
    with av.open(path, "w") as file:
        stream = file.add_stream(codec, rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), "fltp", "mono")
        frame.rate = 48000
        for packet in [*stream.encode(frame), *stream.encode()]:
            file.mux(packet)


def test_sound_and_source_code_in_a_folder_are_passed_over():
    """Named one by one they are taken at their name, and fail."""
    make("in/a.jpg")
    Path("in/index.ts").write_text("import { x } from 'y';\n" * 20)
    Path("in/global.ts").write_text("Globals.ready = true;\n" * 20)
    Path("in/short.ts").write_text("let x;\n")
    sound("in/song.ogg", "libopus")
    sound("in/speech.opus", "libopus")
    sound("in/memo.m4a", "aac")
    sound("in/music.mka", "aac")
    assert targets("in") == [("in/a.jpg", "out/a.jpg")]
    assert targets("in/*") == [("in/a.jpg", "out/a.jpg")]
    assert [job.kind for job in plan("in/index.ts", "in/song.ogg").jobs] == ["video", "video"]


def test_videos_in_a_folder_that_could_be_something_else():
    Path("in").mkdir()
    for name, codec in (("a.ts", "mpeg2video"), ("b.m2ts", "mpeg2video"), ("d.mp4", "mpeg4")):
        clips.clip(Path("in") / name, codec=codec, frames=3, audio=["aac"])
    packets = Path("in/a.ts").read_bytes()
    Path("in/c.ts").write_bytes(  # with a time before each packet
        b"".join(bytes(4) + packets[at : at + 188] for at in range(0, len(packets), 188))
    )
    # Its streams begin in any order.
    theora = b"OggS" + bytes(24) + b"\x80theora" + bytes(50)
    Path("in/e.ogg").write_bytes(b"OggS" + bytes(24) + b"\x01vorbis" + bytes(50) + theora)
    assert len(targets("in")) == 5


def test_a_pattern_may_write_beside_what_it_reads():
    make("d/a.png")
    assert targets("d/*.png", output="d", models=["dln", "neid"]) == [
        ("d/a.png", "d/a_dln.png"), ("d/a.png", "d/a_neid.png"),
    ]  # fmt: skip


def test_two_stars_do_not_follow_links_in_circles():
    make("p/a.png")
    for name in ("one", "two", "three"):
        os.symlink(".", f"p/{name}")
    found = plan("p/**")
    assert [str(job.source) for job in found.jobs] == ["p/a.png"]
    assert len(found.left_out) == 3


def test_a_pattern_is_special_only_where_no_file_has_that_name():
    make("a[1].png", "a1.png", "*.png", "@list.png")
    assert targets("a[1].png", output="out/") == [("a[1].png", "out/a[1].png")]
    assert targets("*.png") == [("*.png", "out/*.png")]
    assert targets("@list.png") == [("@list.png", "out/@list.png")]
    os.unlink("a[1].png")
    assert targets("a[1].png") == [("a1.png", "out/a1.png")]


def test_a_pattern_or_name_without_a_file_fails():
    make("a.png")
    found = plan("*.tif", "", "x" * 5000, "a.png")
    assert [reason for _, reason in found.failures] == [
        "nothing matches this pattern", "no such file", "File name too long",
    ]  # fmt: skip
    assert [str(job.source) for job in found.jobs] == ["a.png"]


# --- lists ----------------------------------------------------------------------------------------


def test_a_list_names_paths_as_they_are(tmp_path):
    names = ["a b.png", "-c.png", "*.png", "@x.png", "e\udcff.png"]
    make(*names, "dir/in.png")
    for end in (b"\n", b"\r\n", b"\0"):
        data = end.join(os.fsencode(name) for name in [*names, "dir"])
        (tmp_path / "list.txt").write_bytes(data + end)
        found = [source for source, _ in targets("@list.txt")]
        assert found == [*names, "dir/in.png"]
    (tmp_path / "list.txt").write_bytes(b"new\nline.png\0")
    make("new\nline.png")
    assert targets("@list.txt") == [("new\nline.png", "out/new\nline.png")]


def test_a_list_on_standard_input(monkeypatch):
    make("a.png", "b.png")
    read, write = os.pipe()
    os.write(write, b"\xef\xbb\xbfb.png\n\na.png")
    os.close(write)
    with open(read) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert [source for source, _ in targets("@-")] == ["b.png", "a.png"]


def test_a_list_as_windows_writes_it(tmp_path, monkeypatch):
    make("dark \u6708.png")
    for encoding in ("utf-16", "utf-8-sig"):
        (tmp_path / "list").write_text("dark \u6708.png\r\n", encoding)
        assert [source for source, _ in targets("@list")] == ["dark \u6708.png"]
    (tmp_path / "list").write_bytes(b"\xff\xfea")
    assert plan("@list").failures == [("@list", "is not UTF-16, as which it begins")]
    monkeypatch.setattr(os, "fsdecode", lambda name: name.decode())
    (tmp_path / "list").write_bytes(b"dark\x81.png")
    assert plan("@list").failures == [("@list", "is not UTF-8")]


def test_a_list_that_is_not_there_or_names_what_is_not_there(tmp_path):
    make("a.png")
    (tmp_path / "list").write_text("a.png\nabsent.png\n")
    (tmp_path / "empty").write_text("\n")
    found = plan("@list", "@nowhere", "@empty")
    assert sorted(found.failures) == [
        ("@empty", "an empty list"), ("@nowhere", "no such file"), ("absent.png", "no such file"),
    ]  # fmt: skip
    assert len(found.jobs) == 1


# --- include and exclude --------------------------------------------------------------------------


def test_include_and_exclude():
    make("d/a.png", "d/b.jpg", "d/raw/c.png", "d/raw/deep/e.png", "d/thumbs/f.png")

    def chosen(**patterns):
        return [source[2:] for source, _ in targets("d", recursive=True, **patterns)]

    assert chosen(include=["*.jpg"]) == ["b.jpg"]
    assert chosen(include=["*.jpg", "a*"]) == ["a.png", "b.jpg"]
    assert chosen(exclude=["thumbs", "raw/deep/*"]) == ["a.png", "b.jpg", "raw/c.png"]
    assert chosen(include=["*.png"], exclude=["raw"]) == ["a.png", "thumbs/f.png"]
    found = plan("d", exclude=["*"])
    assert found.failures == [("d", "no pictures or videos in this folder that the patterns leave")]
    assert targets("d/*.png", "d/b.jpg", exclude=["b*"]) == [("d/a.png", "out/a.png")]


# --- links and odd files --------------------------------------------------------------------------


def test_links_that_lead_out_are_left_out_and_named(tmp_path):
    make("tree/a.png", "tree/sub/b.png", "else/c.png")
    os.symlink("../else/c.png", "tree/out.png")
    os.symlink("sub/b.png", "tree/in.png")
    os.symlink("../else", "tree/folder")
    found = plan("tree", recursive=True)
    assert [str(job.source) for job in found.jobs] == [
        "tree/a.png",
        "tree/in.png",
        "tree/sub/b.png",
    ]
    assert [name for name, _ in found.left_out] == ["tree/folder", "tree/out.png"]
    assert plan("tree/out.png").jobs  # named itself it is taken


def test_nothing_is_written_through_a_link_out_of_the_output(tmp_path):
    make("tree/sub/a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refusal, match="leads out of the output folder"):
        plan("tree", recursive=True)


def test_what_will_fail_is_known_to_the_plan(tmp_path):
    make("d/good.png")
    (tmp_path / "d" / "empty.jpg").write_bytes(b"")
    (tmp_path / "d" / "text.jpg").write_text("I am no picture")
    (tmp_path / "d" / "notes.txt").write_text("nor I")
    (tmp_path / "d" / "named.png").mkdir()
    os.mkfifo("d/fifo.png")
    os.symlink("nowhere", "d/dangling.png")
    found = plan("d")
    assert [str(job.source) for job in found.jobs] == ["d/good.png"]
    assert dict(found.failures) == {
        "d/dangling.png": "a link that leads nowhere",
        "d/empty.jpg": "is empty",
        "d/fifo.png": "not a regular file",
        "d/text.jpg": "is not a picture of a format that is read",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_a_failure(tmp_path):
    make("d/good.png", "d/closed.png", "d/sub/b.png")
    (tmp_path / "d" / "closed.png").chmod(0)
    (tmp_path / "d" / "sub").chmod(0)
    found = plan("d", recursive=True)
    (tmp_path / "d" / "sub").chmod(0o755)
    assert len(found.failures) == 2
    assert len(found.jobs) == 1


def test_a_folder_that_cannot_be_read_takes_only_itself(monkeypatch):
    make("d/a.png", "d/sub/b.png")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(files.os, "scandir", denied)
    found = plan("d", recursive=True)
    assert found.failures == [("d/sub", "cannot be read: Permission denied")]
    assert [str(job.source) for job in found.jobs] == ["d/a.png"]


# --- formats --------------------------------------------------------------------------------------


def test_ext_chooses_the_format(tmp_path):
    make("d/a.png")
    (tmp_path / "d" / "v.avi").write_bytes(b"RIFF\0\0\0\0AVI " + bytes(50))
    assert targets("d", ext="jpg") == [("d/a.png", "out/a.jpg"), ("d/v.avi", "out/v.mp4")]
    assert targets("d", ext=".MKV") == [("d/a.png", "out/a.png"), ("d/v.avi", "out/v.mkv")]
    assert targets("d/a.png", ext="tif", output=None) == [("d/a.png", "d/a_dln.tif")]
    for wrong in ("xyz", "heic", ""):
        with pytest.raises(Refusal, match="--ext"):
            plan("d", ext=wrong)
    with pytest.raises(Refusal, match=r"--ext goes with .* not with -o b\.png"):
        plan("d/a.png", output="b.png", ext="jpg")


def test_a_format_that_is_only_read_is_refused_as_output():
    make("a.png")
    with pytest.raises(Refusal, match=r"not written as \.heic"):
        plan("a.png", output="b.heic")


# --- names that are shown -------------------------------------------------------------------------


def test_names_are_shown_in_one_line():
    assert shown("a b — é 日本 👩‍👧.jpg") == "a b — é 日本 👩‍👧.jpg"
    assert shown("a\nb\tc\x1b[31m\u202e\udcff\u2028") == "a\\nb\\tc\\x1b[31m\\u202e\\xff\\u2028"


# --- numbered pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize("on_exists", ["error", "skip", "overwrite", "rename"])
@pytest.mark.parametrize("output", ["f_%04d.png", "./f_%04d.png", "linked/f_%04d.png"])
def test_another_pattern_of_the_same_pictures_does_not_replace_them(output, on_exists):
    make("f_999.png", "f_1000.png", "f_1001.png")
    os.symlink(".", "linked")
    with pytest.raises(Refusal, match=r"^f_%d.png: its output .* replace its input f_1000\.png$"):
        plan("f_%d.png", output=output, on_exists=on_exists)


def test_pictures_with_other_numbers_are_no_input():
    make("f_1.png", "f_2.png")
    assert targets("f_%d.png", output="f_%04d.png") == [("f_%d.png", "f_%04d.png")]


def test_numbered_pictures_of_two_inputs_that_would_meet_are_refused():
    make("a/f_1000.png", "a/f_1001.png", "f_1000.png", "f_1000x.png")
    with pytest.raises(Refusal, match=r"would both write out/f_1000\.png"):
        plan("a/f_%d.png", "f_%04d.png", output="out/")
    with pytest.raises(Refusal, match="is another input"):
        plan("f_%d.png", "f_1000x.png", output=None, template="{stem}x{ext}", on_exists="overwrite")


def test_an_output_without_a_name_is_refused():
    """As of a variable that is not set."""
    make("a.jpg", "d/b.jpg")
    for inputs in (["a.jpg"], ["d"]):
        with pytest.raises(Refusal, match="empty name"):
            plan(*inputs, output="")


def test_numbered_pictures_are_written_without_gaps():
    make("a/f_1.png", "a/f_2.png", "a/f_10.png", "b/f_3.png")
    with pytest.raises(Refusal, match=r"would both write out/f_3\.png"):
        plan("a/f_%d.png", "b/f_3.png")


def test_what_was_to_be_made_again_is_not_replaced_once_it_is_another():
    make("a.png", "out/a.png")
    source, target = Path("a.png"), Path("out/a.png")
    job = planning.Job(source, target, "picture", "dln", target_state=journal.state(target))
    assert job.may_replace()
    target.write_bytes(b"by hand, meanwhile")
    assert not job.may_replace()
    target.unlink()
    assert not job.may_replace()


def test_numbered_pictures_take_the_suffix_that_is_asked_for():
    make("f_1.png")
    assert targets("f_%d.png", output=None, ext="tif") == [("f_%d.png", "f_%d_dln.tif")]


def test_standard_input_without_an_output_goes_alone():
    make("a.jpg")
    for inputs, models in ((("-", "a.jpg"), None), (("-", "-"), None), (("-",), ["dln", "neid"])):
        with pytest.raises(Refusal, match="standard output takes one picture of one method"):
            plan(*inputs, output=None, **({} if models is None else {"models": models}))


def test_several_outputs_do_not_make_a_folder_that_looks_like_a_file():
    make("a.jpg", "d/b.jpg")
    for inputs in (("a.jpg", "d/b.jpg"), ("d",)):
        for output in ("o.jpg", "o.mp4"):
            with pytest.raises(Refusal, match=f"{output}/ makes one"):
                plan(*inputs, output=output)
        assert targets(*inputs, output="o.jpg/")[-1] == ("d/b.jpg", "o.jpg/b.jpg")


def test_a_free_name_for_numbered_pictures_is_found_each_time():
    make("f_1.png")
    for number in ("", "-1", "-2", "-3"):
        name = f"out/f_%d{number}.png"
        assert targets("f_%d.png", on_exists="rename") == [("f_%d.png", name)]
        make(name.replace("%d", "1"))
