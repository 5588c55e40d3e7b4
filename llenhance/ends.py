"""The two ends of a video: where its frames come from, and what kind of place they go to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from .choice import Choice
from .engines import available_threads
from .errors import Refusal
from .media import videos
from .media.video.places import camera_number, find, frame_rate, is_numbered
from .standard_input import StandardInput

Start = float | Fraction | None  # seconds from the first frame
Place = Literal["file", "pictures", "y4m", "pipe", "window"]

_RATE = "25"  # of numbered pictures


@dataclass(frozen=True)
class Source:
    """An open source. ``reader`` gives a reader that begins at a time; where there is but one way
    through (``once``) it is always the same. ``state`` changes when the source does."""

    info: videos.VideoInfo
    reader: Callable[[Start], videos.VideoReader]
    state: list[int]
    once: bool = False
    path: Path | None = None  # a file with permissions
    leave: Callable[[], None] | None = None  # ends what a read waits for, where it may be long

    @property
    def endless(self) -> bool:
        """Whether nobody knows how long it is: a pipe, or a recording that was sent as it grew."""
        return self.info.frames <= 1

    def total(self, choice: Choice) -> int | None:
        """How many frames will come, an estimate; None where nobody knows."""
        if self.endless:
            return None
        return max(1, round(self.info.frames * self.share(choice)))

    def share(self, choice: Choice) -> float:
        """How much of the source is asked for, from 0 to 1."""
        if self.endless:
            return 1.0
        seconds = self.info.duration
        end = seconds if choice.end is None else min(seconds, choice.end)
        return max(0.0, end - (choice.start or 0.0)) / seconds if seconds else 1.0


def open_source(path: Path | None, choice: Choice, *, exact: bool = True) -> Source:
    """Open a file, numbered pictures, a camera, or (None) standard input.

    Without ``exact`` a reader may begin at the nearest frame that can be decoded by itself. Raises
    MediaError for what cannot be read, and Refusal for a choice that is none.
    """
    choices: dict[str, Any] = {
        "on_error": choice.on_error,
        "allow_truncated": choice.allow_truncated,
        "end": choice.end,
        "max_pixels": choice.max_pixels,
    }
    if path is None:
        entry = StandardInput()
        pipe = videos.PipeReader(entry, choice.raw_format, start=choice.start, **choices)
        return Source(pipe.info, lambda _: pipe, [], once=True, leave=entry.leave)
    number = camera_number(path)
    if number is not None:
        camera = videos.CameraReader(number, choice.duration, start=choice.start, **choices)
        return Source(camera.info, lambda _: camera, [], once=True)
    if is_numbered(path):
        rate = frame_rate(choice.frame_rate or _RATE)
        info = videos.SequenceReader(path, rate, max_pixels=choice.max_pixels).info
        return Source(
            info,
            lambda start: videos.SequenceReader(path, rate, start=start, **choices),
            _state([file for _, file in find(path)]),
        )
    info = videos.probe(path, choice.max_pixels)
    state = _state([path])
    return Source(
        info,
        lambda start: videos.VideoReader(
            path, info=info, start=start, exact=exact, threads=available_threads(), **choices
        ),
        state[1:],
        path=path,
    )


def _state(paths: list[Path]) -> list[int]:
    """How many files there are, their bytes and the latest time of change; one that has gone, or is
    a link that leads nowhere, counts as nothing: reading will tell."""
    stats = []
    for path in paths:
        with suppress(OSError):
            stats.append(path.stat())
    return [
        len(stats),
        sum(stat.st_size for stat in stats),
        max((stat.st_mtime_ns for stat in stats), default=0),
    ]


def foreseen(source: Path | None, choice: Choice) -> tuple[videos.VideoInfo, bool]:
    """What frames from standard input or a camera will be like, before one was read; whether that
    is certain enough for an encoder: Y4M may bring frames of any kind."""
    raw = choice.raw_format if source is None else None
    if raw is None:
        size, rate, kind = (1280, 720), Fraction(25), "rgb24"
    else:
        size, rate, kind = (raw.width, raw.height), raw.rate, raw.pix_fmt
    info = videos.plain_info(
        Path("-") if source is None else source,
        "camera" if is_camera(source) else "rawvideo",
        size,
        rate,
        time_base=1 / rate,
        frames=1,
        depth=16 if kind.endswith("le") else 8,  # of those that --raw takes
    )
    return replace(info, pixel_format=kind), raw is not None or is_camera(source)


def is_camera(source: Path | None) -> bool:
    return source is not None and camera_number(source) is not None


def place(source: Path | None, target: Path | None) -> Place:
    """What kind of place a target is; None is standard output, or a camera's window."""
    if target is None:
        return "window" if is_camera(source) else "pipe"
    if target.suffix.lower() == ".y4m":
        return "y4m"
    known = target.suffix.lower() in videos.CONTAINERS
    return "pictures" if is_numbered(target) and not known else "file"


def check(source: Path | None, target: Path | None, choice: Choice) -> None:
    """Raises Refusal for choices that this source and target cannot have."""
    camera = is_camera(source)
    pictures = source is not None and not camera and is_numbered(source)
    where = place(source, target)
    raw = choice.raw_format
    if raw is not None:
        videos.check_raw(raw)
    if choice.frame_rate is not None:
        frame_rate(choice.frame_rate)
    if choice.end is not None and choice.end <= (choice.start or 0):
        raise Refusal("--end lies before --start")
    if choice.frame_rate is not None and not pictures:
        raise Refusal("--frame-rate goes with numbered pictures, such as frames_%05d.png")
    if raw is not None and source is not None and target is not None:
        raise Refusal("--raw goes with standard input or standard output")
    if choice.duration is not None and not camera:
        raise Refusal("--duration goes with a camera; --end ends a video")
    if where == "pictures" and target is not None:
        videos.picture_format(target)
    if camera and where == "window":
        videos.check_display()
    elif camera and choice.duration is None:
        raise Refusal("a camera is written to a file for a --duration")
    if choice.preview:
        if source is None or camera or target is None:
            raise Refusal("--preview takes a file")
        return  # its target is a picture
    known = target is None or target.suffix.lower() in videos.CONTAINERS
    if where == "file" and target is not None and not known:
        raise Refusal(f"no container {target.suffix!r}; there are {', '.join(videos.CONTAINERS)}")
