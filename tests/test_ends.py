"""Where videos come from and go to beside video files: numbered pictures, pipes, a camera."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import click
import clips
import cv2
import numpy as np
import pictures
import pytest
from PIL import Image

from llenhance import footage
from llenhance.cli import cli
from llenhance.errors import MediaError, Refusal
from llenhance.media import colour, images, videos
from llenhance.media.picture import Picture
from llenhance.media.video import camera as cameras
from llenhance.media.video.places import RawFormat, find, frame_rate, is_numbered, raw_format
from llenhance.options import SECONDS
from llenhance.plan import Job
from llenhance.report import Report

MODEL = ("-m", "lightweight", "--device", "cpu")
AS_IS = ("--strength", "0", "--stabilize", "off")  # the frames can then be told apart
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "LLENHANCE_WEIGHTS"}


def command(
    *arguments: object, status: int = 0, data: bytes | None = None, cwd: Path | None = None
) -> tuple[bytes, str]:
    """(stdout, stderr) of the real command, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "llenhance", *map(str, arguments)],
        input=data,
        capture_output=True,
        env=ENVIRONMENT,
        cwd=cwd,
        check=False,
        timeout=120,
    )
    err = done.stderr.decode()
    assert done.returncode == status, err
    assert "Traceback" not in err
    return done.stdout, err


def do(source: Path | None, target: Path | None, **choices: Any) -> Report:
    """One video job with nothing in the place of the network."""
    report = Report(-1, keep=True)
    job = Job(source, target, "video", "lightweight")
    choice = footage.Choice(**{"stabilize": "off", **choices})
    footage.check([job], {"lightweight": 1}, choice)
    footage.enhance(job, lambda image: image, 1, choice, report, recipe="", overwrite=False)
    return report


def sequence(folder: Path, count: int = 12, first: int = 1, name: str = "f_{:05d}.png") -> Path:
    """Numbered pictures; their pattern."""
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.fromarray(clips.picture(index)).save(folder / name.format(first + index))
    return folder / name.replace("{:05d}", "%05d").replace("{:d}", "%d")


def positions(path: Path) -> list[int]:
    return [clips.position(frame.to_ndarray(format="rgb24")) for frame in clips.decoded(path)[1]]


# --- names ----------------------------------------------------------------------------------------


def test_a_name_is_a_pattern_only_where_no_file_has_it(tmp_path: Path) -> None:
    pattern = sequence(tmp_path, 3)
    assert is_numbered(pattern)
    assert [number for number, _ in find(pattern)] == [1, 2, 3]
    for other in ("100%.png", "%05d%d.png", "%s.png", "%5d.png", "%d"):
        assert not is_numbered(tmp_path / other)
    pattern.write_bytes(b"")
    assert not is_numbered(pattern)


def test_numbers_are_taken_as_they_are_written(tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "a10.png", "a01.png", "a_3.png", "xa4.png", "a5.png.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [n for n, _ in find(tmp_path / "a%d.png")] == [1, 2, 10]
    assert [n for n, _ in find(tmp_path / "a%02d.png")] == [1, 10]


@pytest.mark.parametrize(
    ("text", "rate"), [("25", 25), ("23.976", Fraction(23976, 1000)), ("30000/1001", None)]
)
def test_frame_rates(text: str, rate: Any) -> None:
    assert frame_rate(text) == pytest.approx(float(rate or Fraction(30000, 1001)), abs=1e-4)
    for wrong in ("0", "-1", "x", "1/0", "inf", "2000"):
        with pytest.raises(Refusal):
            frame_rate(wrong)


def test_raw_formats() -> None:
    assert raw_format("rgb24:1280x720@25") == RawFormat("rgb24", 1280, 720, Fraction(25))
    for wrong in ("rgb24", "rgb24:0x720@25", "rgb24:1280x720", "rgb24:1280x720@0", "x:1x1@1;"):
        with pytest.raises(Refusal):
            raw_format(wrong)
    with pytest.raises(Refusal, match="no pixel format 'nonsense'"):
        videos.check_raw(raw_format("nonsense:8x8@25"))


# --- numbered pictures ----------------------------------------------------------------------------


def test_pictures_become_a_video_and_a_video_pictures(tmp_path: Path) -> None:
    pattern = sequence(tmp_path / "in", 12, first=7)
    target = tmp_path / "out.mkv"
    do(pattern, target, frame_rate="10", codec="ffv1", pix_fmt="bgr0")
    times, frames = clips.decoded(target)
    assert times == pytest.approx([index / 10 for index in range(12)], abs=0.001)
    for index, frame in enumerate(frames):
        assert np.array_equal(frame.to_ndarray(format="rgb24"), clips.picture(index))
    do(target, tmp_path / "p%d.png")
    names = {f"p{number}.png" for number in range(1, 13)}
    assert names == {path.name for path in tmp_path.glob("p*")}
    for index in range(12):
        assert np.array_equal(
            np.array(Image.open(tmp_path / f"p{index + 1}.png")), clips.picture(index)
        )


def test_pictures_become_pictures_with_their_numbers(tmp_path: Path) -> None:
    pattern = sequence(tmp_path / "in", 4, first=98, name="f{:d}.png")
    do(pattern, tmp_path / "out%04d.png")
    assert {path.name for path in tmp_path.glob("out*")} == {
        "out0098.png",
        "out0099.png",
        "out0100.png",
        "out0101.png",
    }


def test_a_first_picture_that_cannot_be_read_is_a_damaged_frame(tmp_path: Path) -> None:
    pattern = sequence(tmp_path / "in", 5)
    for index in range(1, 3):
        (tmp_path / "in" / f"f_0000{index}.png").write_bytes(b"broken")
    report = do(pattern, tmp_path / "out.mkv", codec="ffv1", frame_rate="10")
    assert report.failures == []
    assert report.rows[-1]["warnings"] == [
        "the frame at 0:00:00.0 is damaged: it is left out",
        "2 damaged frames in all, left out",
    ]
    assert positions(tmp_path / "out.mkv") == [2, 3, 4]
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(MediaError, match="not a picture"):
        videos.SequenceReader(pattern, Fraction(10))


def test_what_frames_alone_do_not_have_is_named(tmp_path: Path) -> None:
    uneven = clips.clip(
        tmp_path / "in.mp4", times=[0, 4, 8, 12, 512], time_base=Fraction(1, 100), options={}
    )
    even = clips.clip(tmp_path / "even.mkv", frames=40)  # of whole milliseconds
    deep = clips.clip(
        tmp_path / "hdr.mkv",
        frames=2,
        codec="libx265",
        pix_fmt="yuv420p10le",
        colour=(9, 16, 9, 1),
        deep=True,
    )
    for target in (tmp_path / "out.y4m", tmp_path / "p%d.png"):
        times = "the times of the frames are dropped: they follow evenly now"
        values = "the values stay PQ, which nothing beside the frames says"
        assert do(uneven, target, restart=True).rows[-1]["warnings"] == [times]
        for path in tmp_path.glob("[po]*"):
            path.unlink()
        assert do(uneven, target, constant_rate=True).rows[-1]["warnings"] == []
        for path in tmp_path.glob("[po]*"):
            path.unlink()
        assert do(even, target).rows[-1]["warnings"] == []
        for path in tmp_path.glob("[po]*"):
            path.unlink()
        assert do(deep, target).rows[-1]["warnings"] == [values]


@pytest.mark.parametrize("opaque", [True, False])
def test_transparency_of_pictures_is_dropped_and_named(tmp_path: Path, opaque: bool) -> None:
    pattern = sequence(tmp_path / "in", 3)
    for path in (tmp_path / "in").iterdir():
        image = Image.open(path).convert("RGBA")
        image.putalpha(255 if opaque else 128)
        image.save(path)
    lost = [] if opaque else ["transparency is dropped"]
    for target in ("out.mkv", "out%d.png", "out.y4m"):
        assert do(pattern, tmp_path / target).rows[-1]["warnings"] == lost


def test_sixteen_bits_stay(tmp_path: Path) -> None:
    image = (clips.picture(3).astype(np.uint16) << 8) + 77
    for index in range(2):
        cv2.imwrite(str(tmp_path / f"d{index}.png"), image[..., ::-1])
    do(tmp_path / "d%d.png", tmp_path / "e%d.png")
    assert np.array_equal(cv2.imread(str(tmp_path / "e0.png"), -1), image[..., ::-1])
    do(tmp_path / "d%d.png", tmp_path / "e.mp4", codec="hevc", preset="ultrafast")
    frame = clips.decoded(tmp_path / "e.mp4")[1][0]
    assert max(part.bits for part in frame.format.components) >= 10


def test_a_range_a_gap_and_a_damaged_picture(tmp_path: Path) -> None:
    pattern = sequence(tmp_path / "in", 12)
    (tmp_path / "in" / "f_00004.png").unlink()
    (tmp_path / "in" / "f_00006.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with videos.SequenceReader(pattern, Fraction(10), start=0.2, end=0.6) as reader:
        frames = list(reader)
    assert [clips.position(frame.image) for frame in frames] == [2, 4, 4, 6]
    assert [frame.repeated for frame in frames] == [False, False, True, False]
    assert reader.notes == [
        "1 numbers between the first and the last have no file",
        "the frame at 0:00:00.4 is damaged: the frame before it is shown again",
    ]
    Image.fromarray(clips.picture(0, 64, 64)).save(tmp_path / "in" / "f_00008.png")
    with (
        videos.SequenceReader(pattern, Fraction(10)) as reader,
        pytest.raises(MediaError, match=r"changes from 160x96 to 64x64 at f_00008.png"),
    ):
        list(reader)


def test_a_link_that_leads_nowhere_is_a_damaged_picture(tmp_path: Path) -> None:
    pattern = sequence(tmp_path / "in", 4)
    (tmp_path / "in" / "f_00003.png").unlink()
    (tmp_path / "in" / "f_00003.png").symlink_to("elsewhere.png")
    (tmp_path / "dark.png").write_bytes((tmp_path / "in" / "f_00001.png").read_bytes())
    command(pattern, tmp_path / "dark.png", "-o", f"{tmp_path}/out/", *MODEL, *AS_IS)
    made = sorted((tmp_path / "out").glob("f_*"))
    assert [clips.position(np.array(Image.open(path))) for path in made] == [0, 1, 1, 3]
    assert (tmp_path / "out" / "dark.png").exists()


def test_a_video_that_goes_while_it_is_looked_at_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, probe = clips.clip(tmp_path / "in.mp4", frames=2), videos.probe

    def gone(path: Path, most: int) -> Any:
        info = probe(path, most)
        path.unlink()
        return info

    monkeypatch.setattr(videos, "probe", gone)
    report = do(source, tmp_path / "out.mp4")
    assert [failure for failure in report.failures if "no such file" in str(failure).lower()]


def test_sequences_through_the_command(tmp_path: Path) -> None:
    pattern = sequence(tmp_path, 5)
    command(pattern.name, *MODEL, cwd=tmp_path)
    made = sorted(tmp_path.glob("*lightweight*"))
    assert [path.name for path in made] == [f"f_{n:05d}_lightweight.png" for n in range(1, 6)]
    assert np.array(Image.open(made[0])).mean() > clips.picture(0).mean()
    _, err = command(pattern.name, *MODEL, cwd=tmp_path, status=2)
    assert "f_%05d_lightweight.png exists" in err
    command(
        pattern.name, "-o", "out.mp4", *MODEL, *AS_IS, "--frame-rate", "30000/1001", cwd=tmp_path
    )
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
    assert positions(tmp_path / "out.mp4") == list(range(5))
    _, err = command("out.mp4", "-o", "x.mp4", *MODEL, "--frame-rate", "5", cwd=tmp_path, status=2)
    assert "--frame-rate goes with numbered pictures" in err
    _, err = command("out.mp4", "-o", "x_%d.txt", *MODEL, cwd=tmp_path, status=2)
    assert "pictures are not written as .txt" in err
    _, err = command("nothing_%d.png", *MODEL, cwd=tmp_path, status=1)
    assert "no such file" in err


def test_a_folder_knows_the_sequences_that_it_holds(tmp_path: Path) -> None:
    """The journal tells of numbered pictures too: done once, done again where they changed."""
    pattern = sequence(tmp_path / "in", 4)
    words = (pattern, "-o", f"{tmp_path}/out/", *MODEL, "--on-exists", "skip")
    times = []
    for extra in ((), (), ("--strength", "0.5")):
        _, err = command(*words, *extra)
        assert "journal" not in err
        made = sorted((tmp_path / "out").glob("f_*"))
        assert len(made) == 4
        times.append([path.stat().st_mtime_ns for path in made])
    assert times[0] == times[1]
    assert all(before != after for before, after in zip(times[1], times[2], strict=True))
    made[0].write_bytes(b"someone's own")
    command(*words)
    assert made[0].read_bytes() == b"someone's own"


def test_quality_provenance_and_permissions_of_a_sequence(tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=3)
    source.chmod(0o600)
    command(source, "-o", tmp_path / "a%d.jpg", *MODEL, "--quality", "20")
    command(source, "-o", tmp_path / "b%d.jpg", *MODEL, "--no-provenance")
    for number in (1, 2, 3):
        one, other = tmp_path / f"a{number}.jpg", tmp_path / f"b{number}.jpg"
        assert one.stat().st_size < other.stat().st_size / 2
        with Image.open(one) as signed, Image.open(other) as plain:
            assert signed.getexif()[305].startswith("llenhance")
            assert 305 not in plain.getexif()
        assert one.stat().st_mode & 0o777 == 0o600


def test_a_file_with_such_a_name_is_a_file(tmp_path: Path) -> None:
    sequence(tmp_path, 3)
    Image.fromarray(clips.picture(1)).save(tmp_path / "f_%05d.png")
    command("f_%05d.png", *MODEL, cwd=tmp_path)
    assert [path.name for path in tmp_path.glob("*lightweight*")] == ["f_%05d_lightweight.png"]


@pytest.mark.parametrize("words", ["1e30", "nan", "-1", "1:2:3:4", "soon"])
def test_what_is_no_time(words: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a time"):
        SECONDS.convert(words, None, None)


# --- pipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pix_fmt", ["rgb24", "bgr24", "yuv420p", "yuv444p", "rgb48le", "nv12"])
def test_raw_frames_go_through_a_pipe(pix_fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b""
    for index in range(6):
        frame = av.VideoFrame.from_ndarray(clips.picture(index), "rgb24")
        data += frame.reformat(format=pix_fmt).to_ndarray().tobytes()
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    report = do(None, None, raw=f"{pix_fmt}:160x96@25")
    monkeypatch.undo()
    assert report.failures == []
    assert len(out.getvalue()) == len(data)
    before, after = (np.frombuffer(part, np.uint8) for part in (data, out.getvalue()))
    if pix_fmt in ("rgb24", "bgr24", "rgb48le"):
        assert np.array_equal(before, after)
    else:
        assert np.abs(before.astype(int) - after).mean() < 1.5


def test_raw_frames_through_the_command(tmp_path: Path) -> None:
    data = b"".join(clips.picture(index).tobytes() for index in range(6))
    out, _ = command("-", "-o", "-", "--raw", "rgb24:160x96@25", *MODEL, data=data)
    assert len(out) == len(data)
    assert np.frombuffer(out, np.uint8).mean() > np.frombuffer(data, np.uint8).mean()
    same, _ = command("-", "-o", "-", "--raw", "rgb24:160x96@25", *MODEL, *AS_IS, data=data)
    assert same == data
    raw = ("--raw", "rgb24:160x96@10")
    command("-", "-o", tmp_path / "o.mp4", *raw, *MODEL, *AS_IS, data=data)
    assert clips.decoded(tmp_path / "o.mp4")[0] == pytest.approx([n / 10 for n in range(6)])
    assert positions(tmp_path / "o.mp4") == list(range(6))
    _, err = command("-", "-o", "-", "--raw", "rgb24", *MODEL, data=data, status=2)
    assert "write it as rgb24:1280x720@25" in err
    _, err = command("-", "-o", "-", "--raw", "rgb24:160x96@25", *MODEL, data=b"", status=1)
    assert "no frames" in err


@pytest.mark.parametrize(
    ("pix_fmt", "size"),
    [("yuv420p", (160, 96)), ("yuv444p", (161, 97)), ("yuv422p10le", (160, 96))],
)
def test_y4m_both_ways(tmp_path: Path, pix_fmt: str, size: tuple[int, int]) -> None:
    """A video to Y4M and back: read by FFmpeg's own demuxer in between."""
    source = clips.clip(
        tmp_path / "in.mkv", frames=6, codec="ffv1", size=size, pix_fmt=pix_fmt, audio=("aac",)
    )
    report = do(source, tmp_path / "out.y4m")
    assert report.failures == []
    with av.open(str(tmp_path / "out.y4m"), format="yuv4mpegpipe") as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25
        assert stream.codec_context.pix_fmt == pix_fmt
        frames = list(container.decode(video=0))
    assert len(frames) == 6
    for frame, original in zip(frames, clips.decoded(source)[1], strict=True):
        one, other = (f.to_ndarray().astype(int) for f in (frame, original))
        assert np.abs(one - other).mean() < (4 if "10" in pix_fmt else 1)
    do(tmp_path / "out.y4m", tmp_path / "back.mp4", preset="ultrafast")
    assert len(clips.decoded(tmp_path / "back.mp4")[1]) == 6


def test_the_fields_of_a_frame_keep_their_colours_on_a_pipe(tmp_path: Path) -> None:
    """Y4M says that its frames are interlaced: a colour row is then of one field only."""
    source = clips.two_fields(tmp_path / "in.mpg")
    assert do(source, tmp_path / "out.y4m").failures == []
    data = (tmp_path / "out.y4m").read_bytes()
    assert b" It " in data or b" Ib " in data
    with av.open(str(tmp_path / "out.y4m"), format="yuv4mpegpipe") as container:
        frame = next(container.decode(video=0))
    for plane, values in zip(frame.planes[1:], ((90, 54), (240, 34)), strict=True):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1).astype(int)
        for first, value in enumerate(values):
            assert np.abs(rows[8 + first : 24 : 2, 8:24] - value).mean() < 8
    with videos.VideoReader(tmp_path / "out.y4m") as reader:
        image = next(iter(reader)).image[16:48, 16:48].astype(int)
    assert np.abs(image[0::2] - (255, 0, 0)).mean() < 12
    assert np.abs(image[1::2] - (0, 255, 0)).mean() < 12


def test_y4m_through_the_command(tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=6)
    out, _ = command(source, "-o", "-", *MODEL, *AS_IS)
    assert out.startswith(b"YUV4MPEG2 W160 H96 F25:1 ")
    again, _ = command("-", "-o", "-", *MODEL, *AS_IS, data=out)  # known by its first bytes
    assert len(again) == len(out)
    command("-", "-o", tmp_path / "o.mkv", *MODEL, *AS_IS, data=out)
    assert positions(tmp_path / "o.mkv") == list(range(6))
    slow = f"(head -c 4 in.y4m; sleep 2; tail -c +5 in.y4m) | {sys.executable} -m llenhance -"
    (tmp_path / "in.y4m").write_bytes(out)
    words = [*map(str, MODEL), *map(str, AS_IS), "-o", "slow.mkv"]
    subprocess.run(["sh", "-c", f"{slow} {' '.join(words)}"], cwd=tmp_path, check=True)
    assert positions(tmp_path / "slow.mkv") == list(range(6))


def test_a_y4m_that_was_cut_off_is_named(tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=6)
    do(source, tmp_path / "whole.y4m")
    data = (tmp_path / "whole.y4m").read_bytes()
    assert videos.probe(tmp_path / "whole.y4m").frames == 6
    for cut in (1, 20_000, 23_043):
        (tmp_path / "cut.y4m").write_bytes(data[:-cut])
        report = do(tmp_path / "cut.y4m", tmp_path / f"{cut}.mp4")
        missing = f"cut off: {cut:,} bytes are missing at the end of the file"
        assert missing in report.failures[0][1]


def test_a_y4m_that_was_cut_off_on_a_pipe_is_named(tmp_path: Path) -> None:
    """FFmpeg drops the rest of a frame without a word; raw frames are held to the same."""
    do(clips.clip(tmp_path / "in.mp4", frames=4), tmp_path / "whole.y4m")
    data = (tmp_path / "whole.y4m").read_bytes()
    for cut, shown, told in (
        (0, 4, False),
        (1, 4, True),
        (23_045, 4, True),
        (23_046, 3, False),
        (2 * 23_046 + 8, 2, True),
    ):
        out, err = command("-", "-o", "-", *MODEL, *AS_IS, data=data[: len(data) - cut])
        assert out.count(b"FRAME\n") == shown
        assert ("is damaged: the frame before it is shown again" in err) is told
    other = data.replace(b"FRAME\n", b"FRAME Ip\n")  # such frames are longer than we count
    out, err = command("-", "-o", "-", *MODEL, *AS_IS, data=other)
    assert out.count(b"FRAME\n") == 4
    assert "damaged" not in err
    command("-", "-o", "-", *MODEL, "--on-error", "fail", data=data[:-1], status=1)


def test_what_numbered_pictures_lose_is_named(tmp_path: Path) -> None:
    for number in (1, 2):
        frames = [Image.fromarray(clips.picture(number + n)) for n in range(2)]
        path = tmp_path / f"a{number}.png"
        frames[0].save(path, icc_profile=pictures.icc("p3"), exif=pictures.exif())
        frames[0].save(tmp_path / f"b{number}.gif", save_all=True, append_images=frames[1:])
        light = np.full((8, 8, 3), 8, np.float32)
        data = images.encode(Picture([light], "exr", icc=colour.linear_profile()), "exr")
        (tmp_path / f"c{number}.exr").write_bytes(data)
    told = {}
    for name in ("a%d.png", "b%d.gif", "c%d.exr"):
        report = do(tmp_path / name, tmp_path / f"o{name}")
        told[name] = report.rows[0]["warnings"]
    assert told == {
        "a%d.png": [
            "their colour profile is dropped: frames are sRGB",
            "their metadata is dropped",
        ],
        "b%d.gif": ["of several frames or pages in a file the first is taken"],
        "c%d.exr": ["light above white is compressed, and floats become 16 bits"],
    }


def test_what_a_pipe_cannot_take_is_refused_before_a_network_is_loaded(tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=2)
    _, err = command(source, "-o", "-", "--pix-fmt", "rgb24", *MODEL, status=2)
    assert "using" not in err
    words = ("-", "--raw", "rgb24:160x96@25", "-o", tmp_path / "x.mp4", "--codec", "nonsense")
    _, err = command(*words, *MODEL, status=2, data=b"")
    assert "using" not in err


def test_a_frame_that_is_too_large_is_refused_wherever_it_comes_from(tmp_path: Path) -> None:
    source, pattern = clips.clip(tmp_path / "in.mp4", frames=3), sequence(tmp_path / "in", 2)
    y4m, _ = command(source, "-o", "-", *MODEL)
    raw = ("--raw", "rgb24:160x96@25")
    for number, (name, data, extra) in enumerate(
        ((source, None, ()), (pattern, None, ()), ("-", y4m, ()), ("-", b"\0" * 46080, raw))
    ):
        words = (name, "-o", tmp_path / f"{number}.mp4", *MODEL, *extra, "--max-pixels")
        _, err = command(*words, 160 * 96 - 1, data=data, status=1)
        assert "claims 160x96 pixels, more than the limit of 15359 (--max-pixels)" in err
        command(*words, 160 * 96, data=data)


def test_a_reader_that_leaves_ends_the_run_quietly(tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=200)
    process = subprocess.Popen(
        [sys.executable, "-m", "llenhance", str(source), "-o", "-", *MODEL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1000)
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 1
    assert err == ""


# --- a camera; none is tried here, a stand-in takes its place -------------------------------------


class Camera:
    """Thirty frames a second for ever, as OpenCV's capture."""

    def __init__(self, frames: int = 10**6) -> None:
        self.count, self.frames, self.released = 0, frames, False

    def read(self) -> tuple[bool, Any]:
        if self.count >= self.frames:
            return False, None
        self.count += 1
        time.sleep(0.005)
        return True, np.ascontiguousarray(clips.picture(self.count % 24)[..., ::-1])

    def get(self, _what: int) -> float:
        return 30.0

    def release(self) -> None:
        self.released = True


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Camera:
    found = Camera()
    monkeypatch.setattr(cameras, "open_capture", lambda _: found)
    return found


def test_a_camera_to_a_file_for_a_while(tmp_path: Path, camera: Camera) -> None:
    report = do(Path("camera:0"), tmp_path / "out.mp4", duration=0.5, preset="ultrafast")
    assert report.failures == []
    times, frames = clips.decoded(tmp_path / "out.mp4")
    assert 2 < len(frames) <= camera.count
    assert times[0] == 0
    assert times[-1] == pytest.approx(0.5, abs=0.3)  # at the times when they came
    assert all(later > earlier for earlier, later in pairwise(times))
    assert camera.released


def test_a_live_window_shows_before_and_after(
    camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    closed: list[bool] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if len(shown) == 5 else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: closed.append(True))
    with pytest.raises(SystemExit) as ended:
        cli.main(["camera:0", *MODEL], prog_name="llenhance")
    assert ended.value.code == 0
    assert len(shown) == 5
    assert shown[0].shape == (96, 320, 3)
    assert shown[0][:, 160:].mean() > shown[0][:, :160].mean()
    assert closed == [True]
    assert camera.released


def test_a_camera_that_ends_is_an_error_and_what_it_gave_is_kept(
    tmp_path: Path, camera: Camera
) -> None:
    camera.frames = 8
    target = tmp_path / "out.mp4"
    report = do(Path("camera:0"), target, duration=60, preset="ultrafast")
    assert [reason for _, reason in report.failures] == [
        f"the camera gives no more pictures (what came until then is in {target})"
    ]
    assert len(clips.decoded(target)[1]) == 8
    assert list(tmp_path.iterdir()) == [target]
    assert camera.released


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_recording_that_is_stopped_is_kept(tmp_path: Path, number: str, status: int) -> None:
    """Ctrl-C is how people end a recording: the file is finished as at its end."""
    program = (
        "import sys, test_ends\n"
        "from llenhance import cli\n"
        "from llenhance.media.video import camera\n"
        "camera.open_capture = lambda _: test_ends.Camera()\n"
        "cli.main()\n"
    )
    target = tmp_path / "out.mp4"
    words = ("camera:0", "-o", target, "--duration", "3600", *MODEL, "--json")
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words), "--preset", "ultrafast"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("frames_done", 0) > 5:
            break
    process.send_signal(getattr(signal, number))
    out, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["status"] == "done"
    assert len(clips.decoded(target)[1]) == json.loads(out.splitlines()[-1])["frames"] > 5
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_camera_cannot_do_is_said(
    tmp_path: Path, camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refusal, match="--duration"):
        do(Path("camera:0"), tmp_path / "out.mp4")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if sys.platform.startswith("linux"):
        with pytest.raises(Refusal, match="no display"):
            do(Path("camera:0"), None)
    with pytest.raises(Refusal, match="goes with a camera"):
        do(clips.clip(tmp_path / "in.mp4"), tmp_path / "out.mp4", duration=5)
    with pytest.raises(Refusal, match=r"no container '\.txt'"):
        do(Path("camera:0"), tmp_path / "out.txt", duration=5)
    with pytest.raises(Refusal, match="takes a file"):
        do(Path("camera:0"), tmp_path / "out.mp4", duration=5, preview=True)


def test_a_recording_that_is_not_right_is_kept_and_named(
    tmp_path: Path, camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not come again."""

    def verify(*_: object) -> None:
        raise MediaError("a frame is missing")

    monkeypatch.setattr(footage.videos, "verify", verify)
    report = do(Path("camera:0"), tmp_path / "out.mp4", duration=0.5, preset="ultrafast")
    assert report.failures == []
    assert report.rows[-1]["warnings"] == ["a frame is missing"]
    assert len(clips.decoded(tmp_path / "out.mp4")[1]) <= camera.count


def test_a_camera_has_no_timeout(tmp_path: Path) -> None:
    words = ("--duration", 1, "--timeout", 5, *MODEL)
    _, err = command("camera:99", "-o", tmp_path / "o.mp4", *words, status=2)
    assert "standard input or a camera" in " ".join(err.split())


def test_no_camera_is_one_line(tmp_path: Path) -> None:
    _, err = command("camera:99", "-o", tmp_path / "o.mp4", "--duration", 1, *MODEL, status=1)
    assert "there is no camera 99" in err
    assert len(err.strip().splitlines()) == 1, err
