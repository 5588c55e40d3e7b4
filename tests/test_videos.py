"""Reading videos: every frame in its place, damage said, hostile files refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import cv2
import numpy as np
import pytest

from llenhance.errors import MediaError
from llenhance.media import videos
from llenhance.media.video import capture, opening, reading
from llenhance.media.video.info import Turn

REAL = Path(__file__).parents[2] / "shared" / "data" / "videos"
FAST = {"h264": "ultrafast", "hevc": "ultrafast", "av1": "12", "vp9": "8"}


def through(source: Path, target: Path, **settings: Any) -> tuple[Any, Any]:
    """Read and write a video with nothing in between; the finished reader and writer."""
    info = videos.probe(source)
    cut, plan = settings.pop("cut", (0, None)), settings.pop("plan", None)
    words = {name: settings.pop(name) for name in ("part", "strip", "tags") if name in settings}
    if plan is None:
        container = settings.pop("container", target.suffix)
        plan = videos.plan_encoding(info, container=container, **settings)
    with (
        videos.VideoReader(
            source, info=info, threads=1, start=cut[0] or None, end=cut[1]
        ) as reader,
        videos.VideoWriter(target, info, plan, cut=cut, threads=1, **words) as writer,
    ):
        for frame in reader:
            writer.write(frame.image, frame.pts, frame.duration)
    videos.verify(target, writer.frames, writer.duration)
    return reader, writer


def shown(path: Path) -> list[int]:
    """Which frame of the clip each frame of a file shows."""
    return [clips.position(frame.to_ndarray(format="rgb24")) for frame in clips.decoded(path)[1]]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return clips.clip(tmp_path / "plain.mp4", audio=("aac",))


# --- reading --------------------------------------------------------------------------------------


def test_an_ordinary_clip_comes_through_opencv_as_pyav_shows_it(plain: Path) -> None:
    times, frames = clips.decoded(plain)
    with videos.VideoReader(plain) as reader:
        read = list(reader)
    assert reader.decoder == "OpenCV"
    assert reader.notes == []
    assert [float(frame.pts * reader.info.time_base) for frame in read] == times
    assert [clips.position(frame.image) for frame in read] == list(range(20))
    for mine, theirs in zip(read, frames, strict=True):
        assert mine.image.dtype == np.uint8
        assert np.array_equal(mine.image, theirs.to_ndarray(format="rgb24"))


def test_the_colour_matrix_and_range_are_honoured(tmp_path: Path) -> None:
    for matrix, levels in ((1, 1), (5, 1), (9, 1), (5, 2), (1, 2)):
        path = clips.clip(
            tmp_path / "c.mkv",
            frames=2,
            codec="ffv1",
            pix_fmt="yuv444p",
            colour=(1, 1, matrix, levels),
        )
        with videos.VideoReader(path) as reader:
            frame = next(iter(reader))
        assert reader.decoder == "OpenCV"
        difference = np.abs(frame.image.astype(int) - clips.picture(0))
        assert difference.mean() < 1
        assert difference.max() <= 3


@pytest.mark.parametrize("matrix", [8, 10, 14])
def test_colours_that_nothing_converts_are_an_error_that_says_so(
    tmp_path: Path, matrix: int
) -> None:
    path = clips.clip(tmp_path / "a.mp4", frames=2, colour=(1, 1, matrix, 1))
    with (
        videos.VideoReader(path) as reader,
        pytest.raises(MediaError, match=f"matrix {matrix} of H.273.* cannot be converted"),
    ):
        next(iter(reader))


@pytest.mark.parametrize("name", ["night_highway_640x360_audio.mp4", "tiny_rot90.mov"])
def test_real_clips_agree_with_pyav(name: str) -> None:
    path = REAL / name
    if not path.exists():
        pytest.skip("the real clips are not here")
    with av.open(str(path)) as container:
        expected = [
            frame.pts for _, frame in zip(range(100), container.decode(video=0), strict=False)
        ]
    with videos.VideoReader(path, threads=1) as reader:
        got = [frame.pts for _, frame in zip(range(100), reader, strict=False)]
    assert got == expected
    assert reader.decoder == "OpenCV"


def test_probe_tells_what_is_there(tmp_path: Path) -> None:
    path = clips.clip(
        tmp_path / "a.mkv",
        audio=("aac", "libopus"),
        subtitles=[(0.1, 0.5, "hello")],
        chapters=[(0, 0.4, "one"), (0.4, 0.8, "two")],
        tags={"title": "Night"},
        aspect=Fraction(4, 3),
        colour=(5, 6, 5, 1),
    )
    info = videos.probe(path)
    assert (info.width, info.height, info.turn) == (160, 96, Turn())
    assert info.sample_aspect == Fraction(4, 3)
    assert (info.frame_rate, info.frames, info.start) == (25, 20, 0)
    assert info.duration == pytest.approx(0.8)
    assert (info.codec, info.pixel_format, info.bit_depth) == ("h264", "yuv420p", 8)
    assert (info.color_primaries, info.color_transfer, info.color_matrix) == (5, 6, 5)
    assert (info.color_range, info.hdr, info.interlaced, info.missing) == (1, False, False, 0)
    assert [(s.kind, s.codec, s.language) for s in info.streams] == [
        ("audio", "aac", "eng"),
        ("audio", "opus", "deu"),
        ("subtitle", "srt", "eng"),
    ]
    assert info.chapters == 2
    assert info.tags["title"] == "Night"


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pictures_come_upright(tmp_path: Path, rotation: int, mirrored: bool) -> None:
    path = clips.clip(tmp_path / "r.mp4", frames=3, rotation=rotation, mirrored=mirrored)
    stored = clips.decoded(path)[1][0].to_ndarray(format="rgb24")
    expected = np.rot90(stored, rotation // 90)
    if mirrored:
        expected = expected[:, ::-1]
    with videos.VideoReader(path) as reader:
        frame = next(iter(reader))
    assert frame.image.shape == (reader.info.height, reader.info.width, 3)
    assert np.array_equal(frame.image, expected)
    if not mirrored:  # OpenCV turns such clips by code of its own
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        assert np.array_equal(frame.image, capture.read()[1][..., ::-1])


def test_interlaced_mpeg2_is_not_black_and_fields_do_not_mix(tmp_path: Path) -> None:
    path = clips.clip(
        tmp_path / "i.mpg", codec="mpeg2video", options={"flags": "+ildct+ilme", "qscale": "1"}
    )
    with videos.VideoReader(path) as reader:
        read = [frame.image for frame in reader]
    assert reader.info.interlaced
    assert reader.decoder == "PyAV"
    assert [clips.position(image) for image in read] == list(range(20))
    assert np.abs(read[4].astype(float) - clips.picture(4)).mean() < 4


def test_colour_of_one_field_stays_in_it(tmp_path: Path) -> None:
    """Red even rows, green odd ones: with the rows mixed both would come out brownish."""
    clips.two_fields(tmp_path / "f.mpg")
    with videos.VideoReader(tmp_path / "f.mpg") as reader:
        image = next(iter(reader)).image[16:48, 16:48].astype(int)
    assert np.abs(image[0::2] - (255, 0, 0)).mean() < 12
    assert np.abs(image[1::2] - (0, 255, 0)).mean() < 12


def test_pyav_takes_over_where_opencv_is_black(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def black(_capture: Any, _pts: int) -> Any:
        return np.zeros((96, 160, 3), np.uint8)

    monkeypatch.setattr(capture.Capture, "read", black)
    with videos.VideoReader(plain) as reader:
        assert [clips.position(frame.image) for frame in reader] == list(range(20))
    assert reader.decoder == "PyAV"


def test_pyav_takes_over_where_opencv_loses_a_frame(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = capture.Capture.read

    def lossy(capture: Any, pts: int) -> Any:
        return None if pts >= 7 * 512 else real(capture, pts)

    monkeypatch.setattr(capture.Capture, "read", lossy)
    with videos.VideoReader(plain) as reader:
        read = list(reader)
    assert reader.decoder == "OpenCV, PyAV"
    assert [clips.position(frame.image) for frame in read] == list(range(20))
    assert [frame.pts for frame in read] == [512 * index for index in range(20)]


def test_the_pixels_are_those_of_the_stream_that_is_read(tmp_path: Path) -> None:
    """OpenCV takes the first video stream; players, the one that is marked as the default."""
    whole = clips.clip(tmp_path / "whole.mp4", frames=8)
    still = clips.clip(tmp_path / "still.mp4", frames=8, options={"bf": "0"}, gop=1)
    path = tmp_path / "two.mkv"
    passed = {"default_mode": "passthrough"}
    with (
        av.open(str(path), "w", container_options=passed) as out,
        av.open(str(still)) as one,
        av.open(str(whole)) as two,
    ):
        streams = [out.add_stream_from_template(file.streams.video[0]) for file in (one, two)]
        streams[0].disposition = av.stream.Disposition(0)
        streams[1].disposition = av.stream.Disposition.default
        first = next(bytes(packet) for packet in one.demux(video=0))
        for packet in two.demux(video=0):
            if packet.size:
                packet.stream = streams[1]
                shown, base = packet.dts, packet.time_base
                out.mux(packet)
                again = av.Packet(first)  # the first frame of both is the same
                again.stream, again.time_base = streams[0], base
                again.pts = again.dts = shown
                again.is_keyframe = True
                out.mux(again)
    with videos.VideoReader(path) as reader:
        assert [clips.position(frame.image) for frame in reader] == list(range(8))
    assert reader.info.stream == 1


def test_a_machine_without_opencv_reads_by_pyav(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with videos.VideoReader(plain) as reader:
        assert [clips.position(frame.image) for frame in reader] == list(range(20))
    assert reader.decoder == "PyAV"


def test_the_door_opens_without_opencv() -> None:
    code = (
        "import sys, llenhance.media.videos\n"
        "sys.exit('cv2' in sys.modules or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def beyond_two_gibibytes(path: Path) -> None:
    """Put 3 GiB of nothing (a hole) between the frames and the index of an MP4 file."""
    data = path.read_bytes()
    at = data.index(b"moov") - 4
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\0\0\0\1free" + (3 << 30).to_bytes(8, "big"))
        file.seek(at + (3 << 30))
        file.write(data[at:])


def test_files_of_more_than_two_gibibytes(plain: Path) -> None:
    beyond_two_gibibytes(plain)
    if plain.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no holes")
    with videos.VideoReader(plain) as reader:
        assert [clips.position(frame.image) for frame in reader] == list(range(20))
    assert reader.decoder == "OpenCV"


@pytest.mark.parametrize("name", [b"plain.mp4", b"100%d.mp4", b"caf\xe9.mp4", b"a\nb.mp4"])
def test_where_open_files_have_no_names_only_plain_names_reach_opencv(
    plain: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    path = Path(os.fsdecode(os.fsencode(plain.parent) + b"/" + name))
    path.write_bytes(plain.read_bytes())
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    with videos.VideoReader(path) as reader:
        assert [clips.position(frame.image) for frame in reader] == list(range(20))
    assert reader.decoder == ("OpenCV" if name == b"plain.mp4" else "PyAV")


def test_avi_without_presentation_times_keeps_every_frame_in_order(tmp_path: Path) -> None:
    for codec in ("mpeg4", "libx264"):
        path = clips.clip(tmp_path / "a.avi", codec=codec, options={"bf": "2"})
        with videos.VideoReader(path) as reader:
            read = list(reader)
        assert [clips.position(frame.image) for frame in read] == list(range(20))
        assert set(np.diff([frame.pts for frame in read])) == {1}


def test_invisible_reference_frames_are_not_lost_ones(tmp_path: Path) -> None:
    path = clips.clip(
        tmp_path / "v.webm",
        frames=40,
        codec="libvpx",
        options={"auto-alt-ref": "1", "lag-in-frames": "16", "b": "200k"},
    )
    with videos.VideoReader(path) as reader:
        assert len(list(reader)) == len(clips.decoded(path)[0])
    assert reader.damaged == 0


def test_start_and_end_choose_frames(plain: Path) -> None:
    with videos.VideoReader(plain, start=0.2, end=0.4) as reader:
        assert [clips.position(frame.image) for frame in reader] == [5, 6, 7, 8, 9]
    with (
        videos.VideoReader(plain, start=5) as reader,
        pytest.raises(MediaError, match="no frames in this range"),
    ):
        list(reader)


@pytest.fixture(params=[".mp4", ".mkv"])
def screen(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A recording of a screen: every half second up to 3.5 s, then nothing moves until 14 s."""
    times = [*range(0, 4000, 500), 14_000, 14_500]
    return clips.clip(
        tmp_path / f"screen{request.param}",
        times=times,
        time_base=Fraction(1, 1000),
        audio=("aac",),
    )


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (2.8, 5.0, [(3.0, 6), (3.5, 7)]),
        (5.0, 10.0, [(5.0, 7)]),
        (5.0, 14.2, [(5.0, 7), (14.0, 8)]),
        (3.5, 14.2, [(3.5, 7), (14.0, 8)]),
    ],
)
@pytest.mark.parametrize("opencv", [True, False])
def test_a_range_inside_a_frame_that_is_shown_for_long(
    screen: Path, start: float, end: float, expected: list[tuple[float, int]], opencv: bool
) -> None:
    info = videos.probe(screen)
    if start == 2.8:  # the frame before is on screen until 3.0
        expected = [(2.8, 5), *expected]
    with videos.VideoReader(screen, start=start, end=end, opencv=opencv) as reader:
        frames = list(reader)
    seen = [((f.pts - info.start) * info.time_base, clips.position(f.image)) for f in frames]
    assert [shown for _, shown in seen] == [shown for _, shown in expected]
    assert [float(at) for at, _ in seen] == pytest.approx([at for at, _ in expected], abs=0.001)
    last = frames[-1]
    assert (last.pts + last.duration - info.start) * info.time_base <= end + 0.001
    with videos.VideoReader(screen) as reader:
        real = {frame.pts for frame in reader}
    assert all(f.pts in real if f.origin is None else f.origin in real for f in frames)


def test_a_cut_inside_a_long_frame_lasts_as_long_as_asked(screen: Path) -> None:
    out = screen.with_name("out.mp4")
    for cut, seconds in (((2.0, 5.0), 3.0), ((5.0, 10.0), 5.0), ((5.0, 14.2), 9.2)):
        if screen.suffix == ".mkv" and cut[0] == 2.0:
            continue  # which does not say how long a frame is shown
        through(screen, out, cut=cut, preset="ultrafast")
        assert clips.decoded(out)[0][0] == pytest.approx(0, abs=0.001)
        assert videos.probe(out).duration == pytest.approx(seconds, abs=0.05)


def test_a_long_frame_at_a_constant_rate_keeps_where_it_came_from(screen: Path) -> None:
    """A run that goes on inside it begins to read there."""
    info = videos.probe(screen)
    info = type(info)(**{**info.__dict__, "frame_rate": Fraction(5)})
    with videos.VideoReader(screen, start=5, end=10) as reader:
        even = list(videos.constant_rate(reader, info))
    assert len(even) == 25
    assert {clips.position(frame.image) for frame in even} == {7}
    assert {(frame.origin - info.start) * info.time_base for frame in even} == {Fraction(7, 2)}
    begin = even[10].pts
    start = (even[10].origin - info.start) * info.time_base
    with videos.VideoReader(screen, start=start, end=10) as reader:
        again = list(videos.constant_rate(reader, info, begin))
    assert [frame.pts for frame in again] == [frame.pts for frame in even[10:]]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_a_late_start_gives_the_same_frames_without_decoding_all(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips.clip(tmp_path / f"long{suffix}", frames=250)
    with videos.VideoReader(path) as reader:
        whole = {frame.pts: frame.image for frame in reader}
    decoded: list[int] = []
    real = reading.decode

    def counting(*given: Any) -> Iterator[tuple[int, Any]]:
        for pts, frame in real(*given):
            decoded.append(pts)
            yield pts, frame

    monkeypatch.setattr(reading, "decode", counting)
    info = videos.probe(path)
    decoded.clear()
    with videos.VideoReader(path, info=info, start=8) as reader:
        late = list(reader)
    assert [frame.pts for frame in late] == sorted(whole)[200:]
    for frame in late:
        assert np.array_equal(frame.image, whole[frame.pts])
    assert (len(decoded) < 120) == (suffix in (".mp4", ".mkv"))


def test_constant_rate_shows_at_each_moment_what_is_shown_then(tmp_path: Path) -> None:
    times = [0, 40, 41, 80, 240, 280]  # milliseconds; a doublet, then a gap
    path = clips.clip(tmp_path / "v.mkv", times=times, time_base=Fraction(1, 1000))
    info = videos.probe(path)
    info = type(info)(**{**info.__dict__, "frame_rate": Fraction(25)})
    with videos.VideoReader(path) as reader:
        even = list(videos.constant_rate(reader, info))
    assert [frame.pts for frame in even] == [0, 40, 80, 120, 160, 200, 240, 280]
    assert [clips.position(frame.image) for frame in even] == [0, 2, 3, 3, 3, 3, 4, 5]


def test_constant_rate_leaves_a_steady_video_alone(tmp_path: Path) -> None:
    """29.97 frames a second in milliseconds: the rounding must neither drop nor double."""
    times = [round(index * 1001 / 30) for index in range(60)]
    path = clips.clip(tmp_path / "v.mkv", times=times, time_base=Fraction(1, 1000))
    info = videos.probe(path)
    info = type(info)(**{**info.__dict__, "frame_rate": Fraction(30000, 1001)})
    with videos.VideoReader(path) as reader:
        even = list(videos.constant_rate(reader, info))
    assert [frame.pts for frame in even] == times


def test_an_iteration_given_up_closes_its_files(plain: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc here")
    before = len(os.listdir("/proc/self/fd"))
    with videos.VideoReader(plain) as reader:
        frames = iter(reader)
        next(frames)
        assert len(os.listdir("/proc/self/fd")) > before
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("size", "pix_fmt"),
    [
        ((160, 96), "yuv420p"),
        ((161, 96), "yuv420p"),
        ((160, 97), "yuv420p"),
        ((160, 97), "yuv422p"),
        ((160, 96), "yuv410p"),
        ((160, 96), "yuv411p"),
        ((160, 96), "yuv440p"),
        ((161, 97), "yuv444p"),
    ],
)
def test_a_frame_is_the_same_wherever_the_reading_began(
    tmp_path: Path, size: tuple[int, int], pix_fmt: str
) -> None:
    """A run that goes on begins in the middle, where only PyAV finds the place."""
    path = clips.clip(
        tmp_path / "a.mkv", codec="ffv1", size=size, pix_fmt=pix_fmt, frames=70, gop=10
    )
    with videos.VideoReader(path, threads=1) as reader:
        whole = list(reader)[65:]
    with videos.VideoReader(path, threads=1, start=2.6) as reader:
        rest = list(reader)
    assert reader.decoder == "PyAV"
    assert [frame.pts for frame in whole] == [frame.pts for frame in rest]
    for one, other in zip(whole, rest, strict=True):
        assert np.array_equal(one.image, other.image)


# --- damage ---------------------------------------------------------------------------------------


def damaged(path: Path, index: int, how: str) -> Path:
    """A copy of a clip in which one packet of the pictures is broken."""
    with av.open(str(path)) as container:
        found = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    at, size = found[index]
    data = bytearray(path.read_bytes())
    if how == "lost":  # nothing in it can be decoded
        data[at + 4 : at + size] = bytes(size - 4)
    else:  # the decoder papers over it
        noise = np.random.default_rng(1).integers(0, 255, 20, dtype=np.uint8).tobytes()
        data[at + size // 2 : at + size // 2 + 20] = noise
    copy = path.with_name(f"{how}.mp4")
    copy.write_bytes(data)
    return copy


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    """A clip whose packets are large enough to be damaged in the middle."""
    return clips.clip(tmp_path / "rich.mp4", frames=30, options={"crf": "1"})


@pytest.mark.parametrize("how", ["lost", "papered over"])
def test_a_damaged_frame_is_said_and_replaced(rich: Path, how: str) -> None:
    broken = damaged(rich, 14, how)
    with videos.VideoReader(broken) as reader:
        read = list(reader)
    assert reader.decoder == "OpenCV"
    assert reader.damaged == 1
    assert len(reader.notes) == 1
    assert "is damaged: the frame before it is shown again" in reader.notes[0]
    (bad,) = [index for index, frame in enumerate(read) if frame.repeated]
    assert [frame.pts for frame in read] == [512 * index for index in range(30)]
    assert np.array_equal(read[bad].image, read[bad - 1].image)
    with videos.VideoReader(broken, opencv=False) as reader:
        again = list(reader)
    assert [frame.repeated for frame in again] == [frame.repeated for frame in read]


def test_a_lost_key_frame_takes_its_followers_along(rich: Path) -> None:
    with videos.VideoReader(damaged(rich, 10, "lost")) as reader:
        read = list(reader)
    assert [frame.pts for frame in read] == [512 * index for index in range(30)]
    assert {index for index, frame in enumerate(read) if frame.repeated} >= set(range(10, 18))
    assert clips.position(read[25].image) == 25 % 24
    assert f"{reader.damaged} damaged frames in all" in reader.notes[-1]


def test_damage_before_the_first_whole_frame_has_no_time(rich: Path) -> None:
    with videos.VideoReader(damaged(rich, 0, "lost")) as reader:
        assert clips.position(next(iter(reader)).image) == 10
        assert reader.notes[0] == "a frame before the first whole one is damaged: it is left out"


@pytest.mark.parametrize("before", [0, 8])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("codec", ["mpeg4", "utvideo", "libx264", "mjpeg"])
def test_a_damaged_frame_of_an_avi_keeps_its_place(
    tmp_path: Path, codec: str, threads: int, before: int
) -> None:
    """AVI has no times, so a frame that is lost has to be counted; with the 8 bytes before it too
    the demuxer does not even find it."""
    pix_fmt = {"utvideo": "yuv422p", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    options = {"bf": "0"} if codec == "libx264" else {}
    path = clips.clip(
        tmp_path / "a.avi", frames=24, codec=codec, pix_fmt=pix_fmt, gop=1, options=options
    )
    data = bytearray(path.read_bytes())
    for _, size, packet in clips.packets(path, "video")[8:13]:
        at = data.find(packet)
        data[at - before : at + size] = b"\xff" * (before + size)
    path.write_bytes(data)
    with videos.VideoReader(path, threads=threads) as reader:
        read = list(reader)
    assert [frame.pts - read[0].pts for frame in read] == list(range(24))
    assert [clips.position(frame.image) for frame in read] == [*range(8), *[7] * 5, *range(13, 24)]
    assert [index for index, frame in enumerate(read) if frame.repeated] == [8, 9, 10, 11, 12]
    assert reader.damaged == 5
    assert reader.notes[-1] == "5 damaged frames in all, replaced by the frame before"


def without_pictures(path: Path, numbers: set[int], **settings: Any) -> Path:
    """An MPEG-4 clip of 30 chunks in an AVI; those with these numbers say that nothing changed."""
    plain = clips.clip(path.with_suffix(".m4v.avi"), frames=30, codec="mpeg4", **settings)
    with av.open(str(plain)) as one, av.open(str(path), "w") as two:
        copy = two.add_stream_from_template(one.streams.video[0], opaque=True)
        for number, packet in enumerate(p for p in one.demux(video=0) if p.size):
            if number in numbers:
                # A predicted picture; no second has passed; 5 bits of time between markers; then
                # that it is not coded, and stuffing.
                bits = f"0101{number % 25:05b}100"
                bits += "1" * (-len(bits) % 8)
                empty = av.Packet(b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big"))
                empty.pts, empty.dts, empty.time_base = packet.pts, packet.dts, packet.time_base
                packet = empty
            packet.stream = copy
            two.mux(packet)
    return path


@pytest.mark.parametrize("opencv", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("empty", [{5, 6}, {5, 6, *range(12, 16)}, {9, 28}])
def test_chunks_of_an_avi_without_a_picture_take_their_time(
    tmp_path: Path, empty: set[int], threads: int, opencv: bool
) -> None:
    """The picture before is shown on, and what follows keeps its place beside the sound."""
    path = without_pictures(tmp_path / "a.avi", empty, gop=1)
    with videos.VideoReader(path, threads=threads, opencv=opencv) as reader:
        seen = {frame.pts: clips.position(frame.image) for frame in reader}
    assert list(seen) == [number for number in range(30) if number not in empty]
    assert seen == {number: number % 24 for number in seen}
    assert reader.damaged == 0


@pytest.mark.parametrize(("suffix", "codec"), [(".ts", "libx264"), (".mpg", "mpeg2video")])
@pytest.mark.parametrize("target", [".mp4", ".mkv"])
def test_recordings_put_together_follow_each_other(
    tmp_path: Path, suffix: str, codec: str, target: str
) -> None:
    """Their times begin anew; pictures and sound of a part go on together."""
    one = clips.clip(tmp_path / f"one{suffix}", frames=50, codec=codec, audio=("mp2",))
    path = tmp_path / f"three{suffix}"
    path.write_bytes(one.read_bytes() * 3)
    out = tmp_path / f"out{target}"
    preset = {"preset": "ultrafast"}
    _, writer = through(path, out, **preset)
    assert writer.frames == 150
    times = clips.decoded(out)[0]
    assert np.diff(times) == pytest.approx(0.04, abs=0.002)
    sound = [begin for begin, _, _ in clips.packets(out, "audio")]
    alone = clips.packets(one, "audio")
    assert len(sound) == 3 * len(alone)
    # The sound of each part is as far from its pictures as in its own file.
    apart = alone[0][0] - clips.decoded(one)[0][0]
    for part in range(3):
        here = sound[part * len(alone)] - times[part * 50]
        assert here == pytest.approx(apart, abs=0.03)


def recording(path: Path, begin: float) -> Path:
    """Two seconds, with sound, on a clock that stands at ``begin``."""
    mpeg = path.suffix == ".mpg"
    base = Fraction(1, 25 if mpeg else 90_000)
    return clips.clip(
        path,
        times=[round((begin + index / 25) / base) for index in range(50)],
        time_base=base,
        codec="mpeg2video" if mpeg else "libx264",
        audio=("mp2",),
        audio_start=begin,
    )


@pytest.mark.parametrize("target", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("suffix", "clocks"),
    [
        (".ts", (20_000, 30_000)),
        (".ts", (30_000, 20_000, 30_000)),
        (".ts", (1.4, 100)),
        (".ts", (9, 25)),
        (".mpg", (2, 100, 2)),
    ],
)
def test_recordings_of_other_clocks_follow_each_other(
    tmp_path: Path, suffix: str, clocks: tuple[float, ...], target: str
) -> None:
    """However far ahead the clock of the next one is, and whichever of its streams comes first."""
    ones = [recording(tmp_path / f"{clock}{suffix}", clock) for clock in clocks]
    path, out = tmp_path / f"all{suffix}", tmp_path / f"out{target}"
    path.write_bytes(b"".join(one.read_bytes() for one in ones))
    _, writer = through(path, out, preset="ultrafast")
    assert writer.frames == 50 * len(clocks)
    times = clips.decoded(out)[0]
    assert np.diff(times) == pytest.approx(0.04, abs=0.002)
    sound = [begin for begin, _, _ in clips.packets(out, "audio")]
    alone = clips.packets(ones[0], "audio")
    assert len(sound) == len(clocks) * len(alone)
    apart = alone[0][0] - clips.decoded(ones[0])[0][0]
    for part in range(len(clocks)):
        here = sound[part * len(alone)] - times[part * 50]
        assert here == pytest.approx(apart, abs=0.03)


def test_pictures_that_fail_while_the_sound_goes_on_leave_a_gap(tmp_path: Path) -> None:
    """Which is no other recording: the sound would lose its place."""
    base = Fraction(1, 90_000)
    times = [round((10 + index / 25) * 90_000) for index in (*range(25), *range(525, 550))]
    path = clips.clip(
        tmp_path / "in.ts", times=times, time_base=base, audio=("mp2",), audio_start=10
    )
    out = tmp_path / "out.mkv"
    through(path, out, preset="ultrafast")
    steps = np.diff(clips.decoded(out)[0])
    assert steps[24] == pytest.approx(501 / 25, abs=0.002)
    sound = [begin for begin, _, _ in clips.packets(out, "audio")]
    assert np.diff(sound) == pytest.approx(0.024, abs=0.002)
    assert len(sound) == len(clips.packets(path, "audio"))


@pytest.mark.parametrize("target", [".mp4", ".mkv"])
@pytest.mark.parametrize("number", [20, 45])
@pytest.mark.parametrize("back", [True, False])
def test_one_wrong_time_in_a_recording_moves_nothing(
    tmp_path: Path, number: int, target: str, back: bool
) -> None:
    """Neither is it taken for the beginning of another part, nor are the frames after it lost."""
    path = tmp_path / "in.ts"
    options = {"bf": "0"}
    # 20 s in, so that the time of a frame can lie before its neighbours' and after them.
    times = [round(1800 * 1000 + 3600 * index) for index in range(50)]
    clips.clip(path, times=times, time_base=Fraction(1, 90000), audio=("mp2",), options=options)
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(number + 1):
        at = data.index(b"\0\0\1\xe0", at + 1)
    assert data[at + 7] == 0x80  # PTS and no DTS
    data[at + 11 if back else at + 9] ^= 0x40 if back else 0x02  # by 11.7 s, or by three hours
    path.write_bytes(data)
    out = tmp_path / f"out{target}"
    _, writer = through(path, out, preset="ultrafast")
    assert writer.frames == 50
    with av.open(str(path)) as container:
        stamps = [p.dts for p in container.demux(video=0) if p.dts is not None]
    assert (np.diff(stamps) < 0).any()
    assert np.diff(clips.decoded(out)[0]) == pytest.approx(0.04, abs=0.002)
    assert shown(out) == [index % 24 for index in range(50)]


def test_damage_can_be_skipped_or_fail(rich: Path) -> None:
    broken = damaged(rich, 14, "lost")
    with videos.VideoReader(broken, on_error="skip") as reader:
        assert len(list(reader)) == 29
    assert "it is left out" in reader.notes[0]
    with (
        videos.VideoReader(broken, on_error="fail") as reader,
        pytest.raises(MediaError, match=r"^the frame at 0:00:00\.\d is damaged$"),
    ):
        list(reader)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_file_that_was_cut_off_is_refused_unless_asked(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    with av.open(str(path), "w", container_options=options) as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.codec_context.width, stream.codec_context.height = 160, 96
        for index in range(60):
            noise = np.random.default_rng(index).integers(0, 255, (96, 160, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noise, "rgb24")))
        out.mux(stream.encode(None))
    whole = path.read_bytes()
    assert videos.probe(path).missing == 0
    path.write_bytes(whole[: len(whole) * 6 // 10])
    assert videos.probe(path).missing > 0
    with pytest.raises(MediaError, match=r"^cut off: [0-9,]+ bytes are missing"):
        videos.VideoReader(path)
    with videos.VideoReader(path, allow_truncated=True) as reader:
        assert 10 < len(list(reader)) < 60
    assert "cut off" in reader.notes[0]


@pytest.mark.parametrize("first", ["moov", "mdat"])
def test_bytes_after_the_last_box_are_not_taken_for_one(tmp_path: Path, first: str) -> None:
    """Cameras put things of their own there; what is cut off still is, in whichever order."""
    options = {"movflags": "+faststart"} if first == "moov" else {}
    path = clips.clip(tmp_path / "a.mp4", frames=5, container_options=options)
    data = path.read_bytes()
    path.write_bytes(data + b"Insta360 trailer data 8db42d694ccc418790edff439fe026bf")
    assert videos.probe(path).missing == 0
    with videos.VideoReader(path) as reader:
        assert len(list(reader)) == 5
    if first == "moov":
        path.write_bytes(data[:-100])
        assert videos.probe(path).missing == 100
    path.write_bytes(data + (1000).to_bytes(4, "big") + b"moof" + bytes(92))
    assert videos.probe(path).missing == 900


def test_a_cut_off_recording_without_index_says_so(plain: Path) -> None:
    plain.write_bytes(plain.read_bytes()[:2000])
    with pytest.raises(MediaError, match=r"^cut off: [0-9,]+ bytes are missing"):
        videos.probe(plain)


def test_a_size_change_on_the_way_is_a_clear_error(tmp_path: Path) -> None:
    one = clips.clip(tmp_path / "1.ts", frames=10)
    two = clips.clip(tmp_path / "2.ts", frames=10, size=(128, 64))
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    with (
        videos.VideoReader(both) as reader,
        pytest.raises(MediaError, match=r"^the frame size changes from 160x96 to 128x64 at 0:00:"),
    ):
        list(reader)


def test_what_is_no_video_says_why(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video at all\n" * 100)
    nothing = tmp_path / "nothing.mp4"
    nothing.touch()
    cases = {
        clips.audio_only(tmp_path / "sound.mp4"): "no video stream",
        clips.empty(tmp_path / "empty.mkv"): "ends before its first frame",
        text: "not a video that can be read",
        nothing: "not a video that can be read|ends before its first frame",
        tmp_path: "not a regular file",
        tmp_path / "absent.mp4": "No such file",
    }
    for path, message in cases.items():
        with pytest.raises(MediaError, match=message) as caught:
            videos.probe(path)
        assert path.name not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_stream_without_frames_says_so(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "z.mkv", frames=0, audio=("aac",), audio_seconds=0.5)
    with pytest.raises(MediaError, match="no frames"):
        videos.probe(path)


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs here")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="not a regular file"):
        videos.probe(tmp_path / "pipe.mp4")


# --- other files and odd names --------------------------------------------------------------------


def playlists(plain: Path) -> Iterator[tuple[str, str]]:
    yield "concat", f"ffconcat version 1.0\nfile '{plain}'\n"
    yield "hls", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.8,\n{plain}\n#EXT-X-ENDLIST\n"
    yield (
        "dash",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:full:2011"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1" width="160" '
        f'height="96"><BaseURL>{plain}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".txt"])
def test_playlists_do_not_reach_other_files(plain: Path, suffix: str) -> None:
    for kind, text in playlists(plain):
        path = plain.with_name(f"{kind}{suffix}")
        path.write_text(text)
        with pytest.raises(MediaError, match="not a video that can be read"):
            videos.probe(path)


def test_a_demuxer_that_gets_through_still_cannot_open_a_file(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second lock: without the list of demuxers, opening is refused."""
    monkeypatch.setattr(opening, "_DEMUXERS", "concat,hls,dash,mov")
    for kind, text in playlists(plain):
        path = plain.with_name(f"{kind}.mp4")
        path.write_text(text)
        with pytest.raises(MediaError):
            videos.probe(path)


@pytest.mark.parametrize(
    "name",
    [
        b"clip %d %05d.mp4",
        b"-i.mp4",
        b"line\nbreak.mp4",
        b"caf\xe9 not utf-8.mp4",
        b"concat:a|b.mp4",
        b"a'b\"c*?[].mp4",
        b"http:x.mp4",
    ],
)
def test_names_are_only_names(plain: Path, name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plain.parent)
    path = Path(os.fsdecode(name))
    try:
        path.write_bytes(plain.read_bytes())
    except OSError:
        pytest.skip("this file system does not take the name")
    target = Path(os.fsdecode(b"out " + name))
    before = set(os.listdir())
    reader, writer = through(path, target, preset="ultrafast")
    assert reader.decoder == "OpenCV"
    assert writer.frames == 20
    assert set(os.listdir()) - before == {target.name}
    data = plain.with_name("copy.mp4")
    data.write_bytes(target.read_bytes())
    assert shown(data) == list(range(20))
