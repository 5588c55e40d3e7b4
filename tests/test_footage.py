"""Whole videos through the command: resumed, verified, previewed. Results are read with PyAV."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import clips
import cv2
import numpy as np
import pytest

from llenhance import footage, journal, load, segments
from llenhance.errors import Appeared, MediaError, Refusal
from llenhance.jobs import Settings
from llenhance.media import videos
from llenhance.methods import METHODS
from llenhance.metrics import Flicker, TemporalNoise
from llenhance.plan import Job
from llenhance.report import Report
from llenhance.stabilize import Stabilizer

REAL = Path(__file__).parents[2] / "shared" / "data" / "videos"
MODEL = ("-m", "lightweight", "--device", "cpu")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "LLENHANCE_WEIGHTS"}
# The command with short pieces, and slowed down so that it can be hit while it works.
SHORT = """
import sys, time
from llenhance import cli, footage, segments
segments.FRAMES, pause = int(sys.argv.pop(1)), float(sys.argv.pop(1))
real = footage._Work._shown
def slow(self, image):
    time.sleep(pause)
    return real(self, image)
footage._Work._shown = slow
cli.main()
"""


def start(*arguments: object, pieces: int = 250, pause: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SHORT, str(pieces), str(pause), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def command(*arguments: object, status: int = 0, **keywords: Any) -> tuple[str, str]:
    """(stdout, stderr) of the real command, without a traceback."""
    process = start(*arguments, **keywords)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    assert "Traceback" not in err
    return out, err


def wait_for(what: Any, seconds: float = 60) -> None:
    for _ in range(round(seconds / 0.02)):
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pixels(path: Path) -> list[Any]:
    return [frame.to_ndarray() for frame in clips.decoded(path)[1]]


def same_video(one: Path, other: Path, sound: bool = True) -> None:
    """Frames, times and copied packets are equal, bit for bit."""
    assert clips.decoded(one)[0] == clips.decoded(other)[0]
    for a, b in zip(pixels(one), pixels(other), strict=True):
        assert np.array_equal(a, b)
    if sound:
        assert clips.packets(one, "audio") == clips.packets(other, "audio")


# --- going on after an interruption ---------------------------------------------------------------


@pytest.mark.parametrize("rate", ["match", "cfr"])
def test_killed_at_seventy_percent_it_goes_on_to_the_same_frames(tmp_path: Path, rate: str) -> None:
    times = [index * 20 + (index * 7) % 9 for index in range(200)]
    source = clips.clip(
        tmp_path / "in.mkv",
        times=times,
        time_base=clips.Fraction(1, 500),
        size=(96, 64),
        audio=("aac",),
    )
    target = tmp_path / "out.mp4"
    arguments = (source, "-o", target, *MODEL, "--frame-rate-mode", rate, "--preset", "ultrafast")
    whole = tmp_path / "whole.mp4"
    command(source, "-o", whole, *arguments[3:], pieces=20)

    state = segments.folder_of(target) / "state.json"
    process = start(*arguments, pieces=20, pause=0.02)
    wait_for(lambda: state.exists() and len(json.loads(state.read_bytes())["pieces"]) >= 7)
    process.kill()
    process.communicate()
    assert not target.exists()
    kept = len(json.loads(state.read_bytes())["pieces"])

    _, err = command(*arguments, pieces=20)
    assert f"goes on after {20 * kept} frames" in err
    same_video(target, whole)
    assert len(pixels(target)) == 200 if rate == "match" else True
    assert names(tmp_path) == ["in.mkv", "out.mp4", "whole.mp4"]


def pumping(image: Any) -> Any:
    """In the place of a network: a gain that differs from frame to frame, by what is seen."""
    gain = 2.0 + 0.4 * np.sin(float(image[..., 1].mean(dtype=np.float64)) * 50)
    top = np.iinfo(image.dtype).max
    return np.clip(image * gain, 0, top).astype(image.dtype)


def damage(path: Path, packet: int) -> None:
    """Overwrite the middle of a packet of the video stream."""
    data = bytearray(path.read_bytes())
    _, size, content = clips.packets(path, "video")[packet]
    at = data.index(content)
    data[at + size // 4 : at + size] = bytes(size - size // 4)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("suffix", "making", "choices"),
    [
        (".ts", {"audio": ("aac",)}, {}),
        (".avi", {"options": {"bf": "0"}}, {}),
        (".mp4", {"options": {"bf": "2"}, "audio": ("aac",)}, {"start": 0.52, "end": 3.2}),
        (".mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le"}, {"codec": "hevc"}),
        (".mkv", {"damaged": 43}, {"codec": "av1", "preset": "12"}),
        (".mov", {"rotation": 90}, {"codec": "prores", "constant_rate": True}),
        (".mkv", {"codec": "ffv1"}, {"codec": "vp9", "preset": "8", "stabilize": 0.5}),
    ],
)
def test_a_run_that_went_on_differs_in_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    making: dict[str, Any],
    choices: dict[str, Any],
) -> None:
    """Whatever the container, the codecs and the range; interrupted twice, at odd places."""
    monkeypatch.setattr(segments, "FRAMES", 13)
    damaged = making.get("damaged")
    making = {key: value for key, value in making.items() if key != "damaged"}
    source = clips.clip(tmp_path / f"in{suffix}", frames=100, size=(96, 64), **making)
    if damaged is not None:
        damage(source, damaged)
    choice = footage.Choice(**{"preset": "ultrafast", **choices})
    if choice.codec == "prores":
        choice = footage.Choice(**choices)
    kind = {"prores": ".mov", "vp9": ".webm"}.get(choice.codec or "", ".mkv")

    def do(target: Path, stop: int) -> None:
        calls = iter(range(10**6))

        def apply(image: Any) -> Any:
            if next(calls) == stop:
                raise KeyboardInterrupt
            return pumping(image)

        report = Report(-1)
        job = Job(source, target, "video", "lightweight")
        footage.enhance(job, apply, 1, choice, report, recipe="", overwrite=False)
        assert report.failures == []

    whole, target = tmp_path / f"whole{kind}", tmp_path / f"out{kind}"
    do(whole, -1)
    for stop in (31, 30):
        with pytest.raises(KeyboardInterrupt):
            do(target, stop)
        assert segments.folder_of(target).is_dir()
    do(target, -1)
    same_video(target, whole, sound="audio" in making)
    assert names(tmp_path) == sorted([source.name, whole.name, target.name])


def test_what_is_remembered_and_torn_costs_the_last_piece_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "FRAMES", 13)
    source = clips.clip(tmp_path / "in.mkv", frames=60, size=(96, 64))
    seen: list[int] = []

    def do(target: Path, stop: int = -1) -> None:
        def apply(image: Any) -> Any:
            if len(seen) == stop:
                raise KeyboardInterrupt
            seen.append(0)
            return pumping(image)

        job = Job(source, target, "video", "lightweight")
        choice = footage.Choice(preset="ultrafast")
        footage.enhance(job, apply, 1, choice, Report(-1), recipe="", overwrite=False)

    whole, target = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    do(whole)
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        do(target, 45)
    memory = max(segments.folder_of(target).glob("*.npz"))
    memory.write_bytes(memory.read_bytes()[:100])
    seen.clear()
    do(target)
    assert len(seen) == 60 - 2 * 13
    same_video(target, whole, sound=False)


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_interrupted_it_says_that_the_same_command_goes_on(
    tmp_path: Path, number: str, status: int
) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=120, size=(96, 64))
    target = tmp_path / "out.mp4"
    arguments = (source, "-o", target, *MODEL, "--preset", "ultrafast")
    process = start(*arguments, pieces=20, pause=0.02)
    wait_for((segments.folder_of(target) / "state.json").exists)
    process.send_signal(getattr(signal, number))
    _, err = process.communicate(timeout=10)
    assert process.returncode == status
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    kept = names(segments.folder_of(target))
    assert not [name for name in kept if name.endswith(".tmp")]
    command(*arguments, pieces=20)
    assert names(tmp_path) == ["in.mp4", "out.mp4"]
    assert len(pixels(target)) == 120


@pytest.fixture
def cut_off(tmp_path: Path) -> tuple[Path, Path]:
    """(source, target) of a run that was killed after some pieces."""
    source = clips.clip(tmp_path / "in.mp4", frames=120, size=(96, 64))
    target = tmp_path / "out.mp4"
    process = start(source, "-o", target, *MODEL, "--preset", "ultrafast", pieces=20, pause=0.02)
    wait_for((segments.folder_of(target) / "state.json").exists)
    process.kill()
    process.communicate()
    return source, target


@pytest.mark.parametrize("changed", ["source", "setting", "restart", "state", "piece"])
def test_what_changed_starts_afresh_and_says_so(cut_off: tuple[Path, Path], changed: str) -> None:
    source, target = cut_off
    folder, extra, said = segments.folder_of(target), (), None
    if changed == "source":
        os.utime(source, (1, 1))
        said = "then the source changed: starting afresh"
    elif changed == "setting":
        extra, said = ("--strength", "0.5"), "then the method changed: starting afresh"
    elif changed == "restart":
        extra = ("--restart",)
    elif changed == "state":
        (folder / "state.json").write_text("{")
        said = "cannot be read: starting afresh"
    else:
        (folder / "00000.part").write_bytes(b"x")
    _, err = command(source, "-o", target, *MODEL, "--preset", "ultrafast", *extra, pieces=20)
    assert "goes on" not in err
    if said:
        assert said in " ".join(err.split())
    assert clips.decoded(target)[0] == clips.decoded(source)[0]
    assert names(target.parent) == ["in.mp4", "out.mp4"]


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """(source, pattern) of a run to numbered pictures that was killed at seventy percent."""
    source = clips.clip(tmp_path / "in.mp4", frames=130, size=(96, 64))
    (tmp_path / "cut").mkdir()
    pattern = tmp_path / "cut" / "p_%05d.png"
    process = start(source, "-o", pattern, *MODEL, pieces=40, pause=0.02)
    wait_for((tmp_path / "cut" / "p_00091.png").exists)
    process.kill()
    process.communicate()
    assert len(list(pattern.parent.glob("p_*"))) < 130
    return source, pattern


def test_numbered_pictures_that_were_killed_go_on_to_the_same_bytes(
    pictures: tuple[Path, Path],
) -> None:
    source, pattern = pictures
    whole = source.parent / "whole"
    whole.mkdir()
    command(source, "-o", whole / pattern.name, *MODEL, pieces=40)
    kept = (pattern.parent / "p_00080.png").stat().st_mtime_ns
    _, err = command(source, "-o", pattern, *MODEL, pieces=40)
    assert "goes on after 80 frames" in err
    assert names(pattern.parent) == names(whole) == [f"p_{n:05}.png" for n in range(1, 131)]
    for name in names(whole):
        assert (pattern.parent / name).read_bytes() == (whole / name).read_bytes()
    assert (pattern.parent / "p_00080.png").stat().st_mtime_ns == kept  # not done twice
    _, err = command(source, "-o", pattern, *MODEL, pieces=40, status=2)
    assert "p_%05d.png exists" in err


@pytest.mark.parametrize("how", [("--restart",), ("--on-exists", "overwrite")])
def test_numbered_pictures_of_another_run_are_not_mixed(
    pictures: tuple[Path, Path], how: tuple[str, ...]
) -> None:
    source, pattern = pictures
    other = (source, "-o", pattern, *MODEL, "--strength", "0.5")
    for _ in range(2):  # said again and again, and nothing is touched
        before = {path: path.stat().st_mtime_ns for path in pattern.parent.glob("p_*")}
        _, err = command(*other, pieces=40, status=1)
        said = "then the method changed: starting afresh needs --restart or --on-exists overwrite"
        assert said in " ".join(err.split())
        after = {path: path.stat().st_mtime_ns for path in pattern.parent.glob("p_*")}
        assert after == before
    command(*other, *how, pieces=40)
    assert names(pattern.parent) == [f"p_{n:05}.png" for n in range(1, 131)]
    changed = [path.stat().st_mtime_ns != time for path, time in before.items()]
    assert all(changed)


def test_numbered_pictures_that_a_longer_run_left_are_named(
    pictures: tuple[Path, Path],
) -> None:
    source, pattern = pictures
    _, err = command(source, "-o", pattern, *MODEL, "--end", "1", "--restart", pieces=40)
    last = len(names(pattern.parent))
    said = f"pictures 26 to {last} are of an earlier run, and still there"
    assert said in " ".join(err.split())


def test_numbered_pictures_that_are_touched_are_done_again_from_there(
    pictures: tuple[Path, Path],
) -> None:
    source, pattern = pictures
    (pattern.parent / "p_00050.png").unlink()
    _, err = command(source, "-o", pattern, *MODEL, pieces=40)
    assert "goes on after 40 frames" in err
    assert len(names(pattern.parent)) == 130


def test_numbered_pictures_that_were_edited_are_not_replaced(pictures: tuple[Path, Path]) -> None:
    source, pattern = pictures
    edited = pattern.parent / "p_00050.png"
    edited.write_bytes(edited.read_bytes() + b"by hand")
    before = edited.read_bytes()
    _, err = command(source, "-o", pattern, *MODEL, pieces=40, status=1)
    said = "pictures 41 to 80, which an earlier run left, are not as it left them"
    assert said in " ".join(err.split())
    assert "needs --restart or --on-exists overwrite" in " ".join(err.split())
    assert edited.read_bytes() == before
    command(source, "-o", pattern, *MODEL, "--restart", pieces=40)
    assert edited.read_bytes() != before
    assert len(names(pattern.parent)) == 130


def test_pictures_of_a_run_that_was_cut_off_early_are_not_another_runs(tmp_path: Path) -> None:
    """Before its first piece was whole: what it had made is its own nevertheless."""
    source = clips.clip(tmp_path / "in.mp4", frames=60, size=(96, 64))
    (tmp_path / "cut").mkdir()
    pattern = tmp_path / "cut" / "p_%05d.png"
    process = start(source, "-o", pattern, *MODEL, pause=0.02)
    wait_for((tmp_path / "cut" / "p_00005.png").exists)
    process.kill()
    process.communicate()
    before = {path: path.read_bytes() for path in pattern.parent.glob("p_*")}
    _, err = command(source, "-o", pattern, *MODEL, "--strength", "0.5", status=1)
    assert "needs --restart or --on-exists overwrite" in " ".join(err.split())
    assert {path: path.read_bytes() for path in pattern.parent.glob("p_*")} == before
    command(source, "-o", pattern, *MODEL)
    assert len(names(pattern.parent)) == 60


def test_pictures_beside_a_run_that_made_none_are_not_its_own(tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=6, size=(96, 64))
    pattern = tmp_path / "p_%05d.png"
    segments.folder_of(pattern).mkdir()
    (tmp_path / "p_00003.png").write_bytes(b"mine")
    for policy, status in (("error", 2), ("skip", 0)):
        command(source, "-o", pattern, *MODEL, "--on-exists", policy, status=status)
        assert (tmp_path / "p_00003.png").read_bytes() == b"mine"


def test_a_video_of_one_piece_leaves_and_makes_no_folder(tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=40, size=(96, 64))
    process = start(source, "-o", tmp_path / "out.mp4", *MODEL, pieces=40, pause=0.01)
    seen = set()
    while process.poll() is None:
        seen |= set(names(tmp_path))
        time.sleep(0.01)
    process.communicate()
    assert process.returncode == 0
    assert not any("parts" in name for name in seen)


def test_a_recording_that_does_not_say_how_long_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a browser or a camera sends it: it may be hours, so it goes piece by piece."""
    monkeypatch.setattr(segments, "FRAMES", 30)
    source = clips.clip(tmp_path / "in.mkv", frames=100, container_options={"live": "1"})
    assert videos.probe(source).frames == 1
    made = []
    real = segments.Segments.finish
    monkeypatch.setattr(
        segments.Segments, "finish", lambda *given: (made.append(1), real(*given))[1]
    )
    report, job = Report(-1), Job(source, tmp_path / "out.mp4", "video", "lightweight")
    choice = footage.Choice(preset="ultrafast", start=0.4)
    footage.enhance(job, pumping, 1, choice, report, recipe="", overwrite=False)
    assert report.failures == []
    assert len(made) == 3
    assert len(clips.decoded(tmp_path / "out.mp4")[0]) == 90
    job, choice = replace(job, target=tmp_path / "strip.png"), footage.Choice(preview=True)
    footage.enhance(job, pumping, 1, choice, report, recipe="", overwrite=False)
    assert report.failures == []
    assert names(tmp_path) == ["in.mkv", "out.mp4", "strip.png"]


def test_two_runs_for_one_target_do_not_mix(cut_off: tuple[Path, Path]) -> None:
    source, target = cut_off
    arguments = (source, "-o", target, *MODEL, "--preset", "ultrafast")
    first = start(*arguments, pieces=20, pause=0.03)
    state = segments.folder_of(target) / "state.json"
    before = state.read_bytes()
    wait_for(lambda: state.read_bytes() != before)
    first.send_signal(signal.SIGSTOP)  # or it may be done before the others have begun
    _, err = command(*arguments, pieces=20, status=1)
    assert f"cannot write {target}: another run is writing it" in err
    _, err = command(*arguments, "--on-exists", "skip", "-v", pieces=20)
    assert f"skipped, {target}: another run is writing it" in err
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert len(pixels(target)) == 120


def test_a_run_that_ends_leaves_the_next_one_alone(tmp_path: Path) -> None:
    target, info = tmp_path / "o.mp4", videos.probe(clips.clip(tmp_path / "in.mp4", frames=2))

    def opened() -> segments.Segments:
        return segments.Segments(target, info, {}, lambda _: pytest.fail("nothing is written"))

    with opened() as first:
        with pytest.raises(Appeared, match="another run is writing it"):
            opened()
        segments.forget(target)
        assert first.folder.is_dir()
        first.remove()
        assert not first.folder.exists()
        second = opened()
    assert second.folder.is_dir()
    with second:
        pass
    assert not second.folder.exists()


def test_pieces_outlive_a_change_of_device() -> None:
    """A GPU that goes leaves fp16 pieces to a processor: the precision counts as asked for."""
    made = set()
    for precision in ("fp16", "bf16"):
        enhancer: Any = SimpleNamespace(
            method=METHODS["lightweight"],
            weights=SimpleNamespace(digest="d"),
            engine=SimpleNamespace(precision=precision),
        )
        made.add(Settings(1, None, {}, "auto", None, False).recipe(enhancer))
    assert len(made) == 1


def test_names_of_any_length_have_room_for_the_folder() -> None:
    long = Path("/x") / ("n" * 250 + ".mp4")
    assert len(segments.folder_of(long).name) <= 255
    assert segments.folder_of(long) != segments.folder_of(long.with_suffix(".mkv"))
    assert segments.folder_of(Path("/x/a.mp4")).name == ".a.mp4.llenhance-parts"


def test_a_bad_piece_is_found_by_verifying_and_done_again(
    cut_off: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece that has the right size and wrong bytes, as after a disk error."""
    source, target = cut_off
    folder = segments.folder_of(target)
    before = len(json.loads((folder / "state.json").read_bytes())["pieces"])
    piece = folder / f"{before - 1:05}.part"
    data = bytearray(piece.read_bytes())
    at = data.index(b"mdat") + 4
    data[at : at + 600] = bytes(600)
    piece.write_bytes(data)
    arguments = (source, "-o", target, *MODEL, "--preset", "ultrafast")
    _, err = command(*arguments, pieces=20, status=1)
    assert "the written video" in err or "does not decode" in err
    assert "the same command goes on from there" in err or before == 1
    assert not target.exists()
    command(*arguments, pieces=20)
    assert clips.decoded(target)[0] == clips.decoded(source)[0]
    assert names(target.parent) == ["in.mp4", "out.mp4"]


def test_verifying_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise MediaError("the written video does not decode")

    monkeypatch.setattr(videos, "verify", broken)
    source = clips.clip(tmp_path / "in.mp4", frames=10)
    job = Job(source, tmp_path / "out.mp4", "video", "lightweight")
    for verify, left in ((True, ["in.mp4"]), (False, ["in.mp4", "out.mp4"])):
        report = Report(-1)
        choice = footage.Choice(verify=verify)
        footage.enhance(job, pumping, 1, choice, report, recipe="", overwrite=False)
        assert bool(report.failures) == verify
        assert names(tmp_path) == left


# --- metadata -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".webm"])
@pytest.mark.parametrize("pieces", [10, 250])
def test_strip_and_provenance_of_videos(tmp_path: Path, suffix: str, pieces: int) -> None:
    """Read by PyAV: what is played stays, and who made it is said once, or not."""
    source = clips.clip(
        tmp_path / "in.mkv",
        frames=30,
        audio=("aac", "libopus"),
        chapters=[(0, 0.4, "one"), (0.4, 1, "two")],
        attachments=[
            ("font.ttf", "application/x-truetype-font", b"\0\1font" * 100),
            ("notes.txt", "text/plain", b"where this was"),
            ("cover.jpg", "image/jpeg", cv2.imencode(".jpg", np.zeros((8, 8, 3)))[1].tobytes()),
        ],
        tags={"title": "Night", "location": "+52.5+013.4/"},
    )
    preset = ("--preset", "8" if suffix == ".webm" else "ultrafast")
    found = {}
    for name in ("whole", "--strip", "--no-provenance"):
        target = tmp_path / f"{name}{suffix}"
        words = () if name == "whole" else (name,)
        command(source, "-o", target, *MODEL, *preset, *words, pieces=pieces)
        with av.open(str(target)) as made:
            tags = {key.lower(): value for key, value in made.metadata.items()}
            names = [stream.metadata.get("filename") for stream in made.streams.attachments]
            tracks = [(s.language, s.metadata.get("title")) for s in made.streams.audio]
            chapters = [chapter["metadata"]["title"] for chapter in made.chapters()]
            cover = av.stream.Disposition.attached_pic
            pictures = [s for s in made.streams.video if not s.disposition & cover]
            signed = [v for v in tags.values() if v.startswith("llenhance ")]
            found[name] = tags.get("title"), len(signed), tracks, names
            assert chapters == ["one", "two"]
            assert len(pictures) == 1
            assert name != "--strip" or len(made.streams.video) == 1
        assert len(clips.decoded(target)[0]) == 30
        if name == "--strip":
            data = target.read_bytes()
            assert not any(word in data for word in (b"Night", b"52.5", b"where this", b"Track 0"))
    audio = {".mkv": 2, ".mp4": 2, ".mov": 1, ".webm": 1}[suffix]
    attached = ["font.ttf", "notes.txt"] if suffix == ".mkv" else []
    title, count, tracks, names = found["whole"]
    assert (title, count, len(tracks)) == ("Night", 1, audio)
    assert set(attached) <= set(names)
    assert found["--no-provenance"] == ("Night", 0, tracks, names)
    languages = [language for language, _ in tracks]
    assert found["--strip"][:2] == (None, 0)
    assert [language for language, _ in found["--strip"][2]] == languages
    assert not any(title for _, title in found["--strip"][2])
    assert found["--strip"][3] == attached[:1]


# --- before the first frame -----------------------------------------------------------------------


@pytest.mark.parametrize("start", [None, 2.0, 1.0])
def test_an_end_before_the_start_is_refused(tmp_path: Path, start: float | None) -> None:
    job = Job(tmp_path / "in.mp4", tmp_path / "out.mp4", "video", "lightweight")
    with pytest.raises(Refusal, match="--end lies before --start"):
        footage.check(
            [job], {"lightweight": 1}, footage.Choice(start=start, end=1.0 if start else 0)
        )


def test_too_little_room_is_refused_before_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=10)
    job = Job(source, tmp_path / "new" / "out.mp4", "video", "lightweight")
    free = source.stat().st_size // 4
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(footage.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(Refusal, match=r"no room for .*out.mp4: at least .* MB are needed"):
        footage.check([job], {"lightweight": 1}, footage.Choice())
    usage.free = source.stat().st_size
    footage.check([job], {"lightweight": 1}, footage.Choice())
    with pytest.raises(Refusal, match="no room"):  # several on one disk
        footage.check([job] * 3, {"lightweight": 1}, footage.Choice())
    with pytest.raises(Refusal, match="no room"):  # four times the pixels
        footage.check([job], {"lightweight": 2}, footage.Choice())
    footage.check([job], {"lightweight": 2}, footage.Choice(end=0.1))
    with pytest.raises(Refusal, match="no room"):  # lossless
        footage.check([job], {"lightweight": 1}, footage.Choice(codec="ffv1"))


def test_an_encoder_that_is_not_there_and_a_locked_place_start_nothing(tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=10)
    _, err = command(source, "-o", tmp_path / "out.mp4", *MODEL, "--codec", "h266", status=2)
    assert "no encoder 'h266' here; there are h264" in err
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        _, err = command(source, "-o", tmp_path / "locked" / "out.mp4", *MODEL, status=2)
        assert "permission denied" in err
        (tmp_path / "locked").chmod(0o700)
    _, err = command(source, "-o", source / "out.mp4", *MODEL, status=2)
    assert "is not a folder" in err
    assert names(tmp_path) == sorted(["in.mp4", *(["locked"] if os.geteuid() else [])])


@pytest.mark.parametrize(
    ("source", "target", "choice", "message"),
    [
        ("in.mp4", None, {"pix_fmt": "rgb24"}, "Y4M has no pixel format 'rgb24'"),
        (None, None, {"pix_fmt": "rgb24"}, "Y4M has no pixel format 'rgb24'"),
        (None, "x.mp4", {"codec": "nonsense"}, "no encoder 'nonsense' here"),
        (None, "x.webm", {"codec": "h264"}, "webm cannot hold h264"),
        (None, "x.mp4", {"raw": "rgb24:8x8@25", "codec": "h265"}, "no encoder 'h265' here"),
        (None, "x.mp4", {"raw": "rgb24:8x8@25", "preset": "quickest"}, "h264 does not take 8x8"),
        ("camera:0", "x.mov", {"duration": 1, "codec": "ffv1"}, "mov cannot hold ffv1"),
    ],
)
def test_what_a_pipe_or_camera_cannot_give_is_refused_before_its_turn(
    tmp_path: Path, source: str | None, target: str | None, choice: Any, message: str
) -> None:
    given = Path(source) if source else None
    if source == "in.mp4":
        given = clips.clip(tmp_path / source, frames=2)
    job = Job(given, tmp_path / target if target else None, "video", "lightweight")
    with pytest.raises(Refusal, match=f"^{message}"):
        footage.check([job], {"lightweight": 1}, footage.Choice(**choice))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
@pytest.mark.parametrize("kind", ["rgb24", "yuv420p10le", "rgb48le", "gray"])
def test_raw_frames_that_can_be_encoded_are_not_refused(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    job = Job(None, tmp_path / f"out{suffix}", "video", "lightweight")
    footage.check([job], {"lightweight": 1}, footage.Choice(raw=f"{kind}:160x96@25"))
    footage.check([job], {"lightweight": 1}, footage.Choice())


# --- preview and events ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".avi"])
def test_a_preview_is_a_strip_of_five_frames_and_no_video(tmp_path: Path, suffix: str) -> None:
    source = clips.clip(tmp_path / f"in{suffix}", frames=200)
    began = time.monotonic()
    out, _ = command(source, "-o", tmp_path / "out.mp4", *MODEL, "--preview", "--json")
    assert time.monotonic() - began < 60
    assert names(tmp_path) == sorted([source.name, "out.preview.png"])
    assert json.loads(out.splitlines()[-1])["target"] == str(tmp_path / "out.preview.png")
    sheet = cv2.imread(str(tmp_path / "out.preview.png"))
    assert sheet.shape[1] > 5 * 160
    # Two rows of five: the bar stands at another place in each.
    before = sheet[: sheet.shape[0] // 2].mean()
    after = sheet[sheet.shape[0] // 2 :].mean()
    assert after > before
    source.chmod(0o600)
    words = ("--preview", "--on-exists", "overwrite")
    command(source, "-o", tmp_path / "out.mp4", *MODEL, *words)
    assert (tmp_path / "out.preview.png").stat().st_mode & 0o777 == 0o600
    _, err = command(source, "-o", tmp_path / "out.mp4", *MODEL, "--preview", status=2)
    assert "out.preview.png exists" in err
    words = ("--preview", "--on-exists", "rename")
    command(source, "-o", tmp_path / "out.mp4", *MODEL, *words)
    assert names(tmp_path) == sorted([source.name, "out.preview.png", "out.preview-1.png"])


@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
def test_pieces_of_prores_say_which_one_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(segments, "FRAMES", 8)
    source = clips.clip(tmp_path / "in.mkv", frames=20, codec="ffv1", pix_fmt="yuv444p10le")
    target = tmp_path / f"out{suffix}"
    choice = footage.Choice(codec="prores", stabilize="off")
    report = Report(-1)
    footage.enhance(
        *(Job(source, target, "video", "lightweight"), lambda image: image, 1, choice, report),
        recipe="",
        overwrite=False,
    )
    assert report.failures == []
    with av.open(str(target)) as container:
        assert container.streams.video[0].codec_context.codec_tag == "ap4h"


def test_a_preview_has_a_name_of_its_own_or_a_videos(tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=5)
    command(source, "-o", tmp_path / "strip.png", *MODEL, "--preview")
    assert names(tmp_path) == ["in.mp4", "strip.png"]
    for name in ("out.avi", "out", "out.jpg"):
        _, err = command(source, "-o", tmp_path / name, *MODEL, "--preview", status=2)
        assert "a preview is named after a video, or .png" in " ".join(err.split())


def test_a_preview_may_lie_beside_the_video(tmp_path: Path) -> None:
    """Its own name counts, not the video's; and no journal tells of it."""
    (tmp_path / "in").mkdir()
    clips.clip(tmp_path / "in" / "a.mp4", frames=10)
    command(tmp_path / "in", *MODEL)
    before = (tmp_path / "in_lightweight" / journal.NAME).read_bytes()
    command(tmp_path / "in", *MODEL, "--preview", "--on-exists", "skip")
    made = [journal.NAME, "a.mp4", "a.preview.png"]
    assert names(tmp_path / "in_lightweight") == made
    assert (tmp_path / "in_lightweight" / journal.NAME).read_bytes() == before


@pytest.mark.parametrize("frames", [1, 5])
def test_a_preview_of_a_video_whose_last_frame_is_shown_for_long(
    tmp_path: Path, frames: int
) -> None:
    """A recording of a screen: no frame begins after any of the five places."""
    source = clips.clip(tmp_path / "in.mp4", frames=frames, time_base=Fraction(1, 12800), last=20.0)
    job, report = Job(source, tmp_path / "strip.png", "video", "lightweight"), Report(-1)
    choice = footage.Choice(preview=True)
    footage.enhance(job, lambda image: image, 1, choice, report, recipe="", overwrite=False)
    assert report.failures == []
    assert (tmp_path / "strip.png").exists()


def test_previews_that_would_have_one_name_are_refused(tmp_path: Path) -> None:
    one = clips.clip(tmp_path / "a.mp4", frames=2)
    other = clips.clip(tmp_path / "a.mkv", frames=2)
    _, err = command(one, other, *MODEL, "--preview", "--on-exists", "overwrite", status=2)
    assert "would both write" in " ".join(err.split())
    assert names(tmp_path) == ["a.mkv", "a.mp4"]


def test_preview_shows_the_frames_of_the_range(tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=100)
    seen: list[int] = []

    def apply(image: Any) -> Any:
        seen.append(clips.position(image))
        return image

    job = Job(source, tmp_path / "strip.png", "video", "lightweight")
    footage.enhance(
        job,
        apply,
        1,
        footage.Choice(start=0.2, end=0.8, preview=True),
        Report(),
        recipe="",
        overwrite=False,
    )
    assert seen == pytest.approx([6, 9, 12, 15, 18], abs=1)


def test_events_tell_other_programs_how_far_it_is(tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", frames=80)
    target = tmp_path / "out.mp4"
    out, _ = command(source, "-o", target, *MODEL, "--json", pause=0.03)
    events = [json.loads(line) for line in out.splitlines()]
    assert {event["source"] for event in events} == {str(source)}
    assert events[0]["status"] == "started"
    assert events[0] | {"frames": 80, "frames_done": 0, "target": str(target)} == events[0]
    assert events[-1]["status"] == "done"
    assert events[-1]["frames"] == 80
    middle = events[1:-1]
    assert 1 <= len(middle) <= 6
    assert all(event["status"] == "progress" for event in middle)
    assert [event["frames_done"] for event in middle] == sorted(e["frames_done"] for e in middle)
    first = middle[0]
    assert 0 < first["fps"] < 60
    assert first["seconds_left"] == pytest.approx((80 - first["frames_done"]) / first["fps"], 0.1)
    assert first["bytes"] >= 0


# --- whatever happens, nothing stays --------------------------------------------------------------


class Breaks(Exception):
    """What no code expects."""


@pytest.mark.parametrize("error", [MediaError("broken"), Breaks("broken")])
@pytest.mark.parametrize("stage", ["decode", "network", "encode"])
@pytest.mark.parametrize("length", [250, 10])
def test_an_error_in_any_stage_leaves_no_thread_and_no_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    error: Exception,
    length: int,
) -> None:
    monkeypatch.setattr(segments, "FRAMES", length)
    source = clips.clip(tmp_path / "in.mp4", frames=40)

    def fail_at(count: int, real: Any) -> Any:
        calls = iter(range(1000))

        def wrapped(*arguments: Any) -> Any:
            if next(calls) >= count:
                raise error
            return real(*arguments)

        return wrapped

    apply = lambda image: image  # noqa: E731
    if stage == "network":
        apply = fail_at(8, apply)
    elif stage == "encode":
        monkeypatch.setattr(videos.VideoWriter, "write", fail_at(8, videos.VideoWriter.write))
    else:
        real = videos.VideoReader._pixels

        def broken(reader: Any) -> Any:
            for number, item in enumerate(real(reader)):
                if number == 8:
                    raise error
                yield item

        monkeypatch.setattr(videos.VideoReader, "_pixels", broken)
    job = Job(source, tmp_path / "out.mp4", "video", "lightweight")
    report = Report(-1)
    before = set(threading.enumerate())
    try:
        footage.enhance(job, apply, 1, footage.Choice(), report, recipe="", overwrite=False)
    except Breaks:
        assert isinstance(error, Breaks)
    else:
        assert report.failures == [(str(source), "broken")]
    assert set(threading.enumerate()) == before
    assert names(tmp_path) == ["in.mp4"]


@pytest.mark.slow
def test_memory_is_constant_through_the_real_command(tmp_path: Path) -> None:
    peaks = []
    for frames in (300, 3000):
        source = clips.clip(tmp_path / f"{frames}.mp4", frames=frames, audio=("aac",))
        arguments = (source, "-o", tmp_path / f"{frames}.mkv", *MODEL, "--preset", "ultrafast")
        program = (
            "import atexit, resource, sys\n"
            "from llenhance import cli\n"
            "usage = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "atexit.register(lambda: print(usage()))\n"
            "cli.main()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            check=True,
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
        )
        peaks.append(int(done.stdout.split()[-1]) / 1024)
        assert len(clips.decoded_times(tmp_path / f"{frames}.mkv", 4000)) == frames
    print("MiB at 300 and 3,000 frames:", [round(peak, 1) for peak in peaks])
    assert peaks[1] < peaks[0] + 32, peaks  # 2,700 frames more are 124 MiB of pixels


# --- flicker --------------------------------------------------------------------------------------


def frames_of(path: Path, count: int, width: int) -> list[Any]:
    """The first frames of a real clip, (H, W, 3) RGB uint8, made small if larger."""
    found = []
    with videos.VideoReader(path) as reader:
        for frame in reader:
            share = min(1, width / frame.image.shape[1])
            size = (round(frame.image.shape[1] * share), round(frame.image.shape[0] * share))
            found.append(cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA))
            if len(found) == count:
                break
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["night_highway_640x360_audio.mp4", "tiny_rot90.mov"])
@pytest.mark.parametrize("model", list(METHODS))
def test_flicker_of_every_method_on_real_clips(model: str, name: str) -> None:
    """Prints the figures of the closing note; holds what does not depend on the weights: evening
    adds no flicker, and no noise to still regions. What it takes away is held by test_stabilize."""
    if not (REAL / name).is_file():
        pytest.skip("needs the real clips")
    enhancer = load(model, device="cpu", threads=1)
    evened, figures = Stabilizer(), {}
    measures = {kind: (Flicker(), TemporalNoise()) for kind in ("per frame", "evened")}
    for frame in frames_of(REAL / name, 48, 256):
        result = enhancer.enhance(frame)
        for kind, image in (("per frame", result), ("evened", evened(frame, result))):
            for measure in measures[kind]:
                measure.add(frame, image)
    for kind, (flicker, noise) in measures.items():
        figures[kind] = (flicker.whole, flicker.blocks, noise.before, noise.after)
        print(
            f"{model} {name} {kind}: flicker {flicker.whole:.3f} and {flicker.blocks:.3f},"
            f" noise {noise.before:.2f} -> {noise.after:.2f}"
        )
    for part in range(2):
        assert figures["evened"][part] <= max(1.1, 1.05 * figures["per frame"][part]), figures
    assert figures["evened"][3] <= 1.1 * figures["per frame"][3], figures
