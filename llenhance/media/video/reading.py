"""Reading videos: what is in one, and its frames, upright, in the order and at the times shown.

Pixels of ordinary 8-bit clips come through OpenCV, which decodes and converts them in a quarter of
the processor time of PyAV with an exact conversion. Beside it PyAV decodes the same packets without
deblocking and conversion: that says when each frame is shown, whether it was damaged (OpenCV hides
what its decoder could paper over) and whether OpenCV lost one. Where OpenCV is not faithful (more
than 8 bits, interlaced frames, odd heights, another video stream before the one that is read, times
or pixels that do not agree with PyAV's) PyAV's own pixels are used. Its one known flaw is borne: it
rounds down, by 0.4 of a level of 255 on night scenes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from ...errors import MediaError
from ..picture import MAX_PIXELS
from .capture import Capture, converts_alike, for_opencv, takes_it
from .decode import decode, has_halved_rows, split_fields
from .info import Image, VideoInfo, as_fraction, clock, probe
from .opening import cut_off, open_file, open_input, reason, video_stream
from .scope import Scope
from .siting import Siting

OnError = Literal["repeat", "skip", "fail"]

_CV_MATCH = 2.0  # mean difference of two 8-bit conversions of one frame, of 255; black gives 16+
_LONG = Fraction(1, 10)  # seconds: what is still shown so long after the start is not left out
_SEEK_BEFORE = 2  # seconds: a place is reached from a key frame well before it
_CAREFUL = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class Frame:
    """One frame as a player shows it.

    ``image``: (H, W, 3) RGB; uint8, or uint16 over its full range for sources of more than 8 bits
    (still in the source's own primaries and transfer). ``pts``: when it is shown, in units of the
    video's time base. ``duration``: in the same units, 0 where the file does not say.
    ``repeated``: this is the last good picture in the place of one that could not be decoded.
    ``origin``: the pts of the source's frame, where it is shown at another time: by
    :func:`constant_rate`, or because the range that is read begins inside it.
    """

    image: Image
    pts: int
    duration: int = 0
    repeated: bool = False
    origin: int | None = None


class VideoReader(Scope):
    """The frames of a video, streamed in constant memory.

    ``on_error`` says what happens at a frame that cannot be decoded whole: "repeat" gives the last
    good picture at its time, "skip" leaves it out, "fail" raises MediaError. ``start`` and ``end``
    (seconds from the first frame) keep the frames shown in [start, end), and one from before that
    is still shown long after the start. ``threads`` is for the decoder, 0 lets it choose.
    ``exact=False`` finds a start quickly in containers without an index of key frames too, but the
    first frame may be a later one. ``max_pixels`` bounds the first.

    After the iteration, ``notes`` has a sentence for each thing that a person should know,
    ``damaged`` the number of damaged frames, and ``decoder`` who gave the pixels ("OpenCV", "PyAV",
    or "OpenCV, PyAV" after a change on the way).
    """

    def __init__(
        self,
        path: Path,
        *,
        info: VideoInfo | None = None,
        on_error: OnError = "repeat",
        allow_truncated: bool = False,
        start: float | Fraction | None = None,
        end: float | None = None,
        threads: int = 0,
        opencv: bool = True,
        exact: bool = True,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.info = info or probe(path, max_pixels)
        self.path = path
        self.notes: list[str] = []
        self.damaged = self._left_out = 0
        self.decoder = ""
        self._on_error = on_error
        self._threads = threads
        self._opencv_wanted = opencv
        self._exact = exact
        base, first = self.info.time_base, self.info.start
        self._from = None if start is None else first + as_fraction(start) / base
        self._to = None if end is None else first + as_fraction(end) / base
        self._end: int | None = None  # pts at which the stream ends, where that is known
        self._running: list[Generator[Frame, None, None]] = []
        self._reformatter = VideoReformatter()
        self._siting = Siting(self.info)
        self._careful = True
        if self.info.missing:
            sentence = cut_off(self.info.missing)
            if not allow_truncated:
                raise MediaError(sentence)
            self.notes.append(sentence)

    def close(self) -> None:
        """Let go of the files: iterations under way end, but for one that a thread is inside."""
        for frames in self._running:
            with suppress(ValueError):  # it is being executed
                frames.close()
        self._running.clear()

    def __iter__(self) -> Iterator[Frame]:
        """The frames, in the order shown. Raises MediaError, see the class."""
        frames = self._iterate()
        self._running.append(frames)
        return frames

    def _iterate(self) -> Generator[Frame, None, None]:
        self.decoder, self.damaged, self._left_out = "", 0, 0
        count = 0
        for count, frame in enumerate(self._in_range(), 1):  # noqa: B007
            yield frame
        if not count:
            raise MediaError(
                "no frames in this range" if self._from or self._to else "no frame can be decoded"
            )
        if self.damaged > 1:
            left_out = self._left_out
            done = f"{left_out} of them left out" if left_out else "replaced by the frame before"
            done = "left out" if left_out == self.damaged else done
            self.notes.append(f"{self.damaged} damaged frames in all, {done}")

    def _in_range(self) -> Iterator[Frame]:
        """The frames from ``start`` to ``end``. Where one of these is given a frame may have to
        wait for the next one, which tells how long it is shown."""
        waiting: Frame | None = None
        for frame in self._repaired():
            if waiting is not None:
                yield from self._cut(waiting, frame.pts)
                waiting = None
            if self._to is not None and frame.pts >= self._to:
                return
            if self._to is None and (self._from is None or frame.pts >= self._from):
                yield frame
            else:
                waiting = frame
        if waiting is not None:
            yield from self._cut(waiting, waiting.pts + waiting.duration)

    def _cut(self, frame: Frame, until: int) -> Iterator[Frame]:
        """What lies in the range of a frame that is shown ``until`` a time."""
        begin = frame.pts
        if self._from is not None and begin < self._from:
            begin = ceil(self._from)
            if (until - begin) * self.info.time_base <= _LONG:
                return  # at a steady rate a range begins with the first frame that begins in it
            frame = replace(frame, pts=begin, origin=frame.pts)
        end = until if self._to is None else min(until, ceil(self._to))
        yield replace(frame, duration=max(0, end - begin))

    def _repaired(self) -> Iterator[Frame]:
        """The frames before, in and right after the range, damaged ones replaced or left out."""
        last: Image | None = None
        for pts, duration, image in self._pixels():
            outside = (self._from is not None and pts < self._from) or (
                self._to is not None and pts >= self._to
            )
            repeated = image is None
            if image is None:
                if not outside:
                    self._damage(pts, last is not None)
                if last is None or self._on_error == "skip":
                    self._left_out += not outside
                    continue
                image = last
            last = image
            yield Frame(image, pts, duration, repeated)

    def _damage(self, pts: int, replaceable: bool) -> None:
        self.damaged += 1
        frame = "a frame before the first whole one"
        if pts >= self.info.start:
            frame = f"the frame at {clock(float((pts - self.info.start) * self.info.time_base))}"
        if self._on_error == "fail":
            raise MediaError(f"{frame} is damaged")
        if self.damaged == 1:
            repeat = replaceable and self._on_error == "repeat"
            done = "the frame before it is shown again" if repeat else "it is left out"
            self.notes.append(f"{frame} is damaged: {done}")

    def _pixels(self) -> Iterator[tuple[int, int, Image | None]]:
        """(pts, duration, upright picture or None where it is damaged)."""
        after: int | None = None
        at = self._seek_to()
        plain = self.info.bit_depth == 8 and not self.info.interlaced
        wanted = self._opencv_wanted and plain and takes_it(self.info) and converts_alike(self.info)
        if wanted and at is not None:
            # OpenCV cannot be trusted to find a place. PyAV goes there, with OpenCV's conversion,
            # so that a frame is the same whether the reading began before it or far before it.
            self._careful = not self._opencv_is_faithful()
            self.decoder = "PyAV"
            wanted = False
        if wanted:
            for item in self._opencv():
                if item is None:  # not faithful from here on
                    break
                after = item[0]
                yield item
            else:
                if after is not None:
                    return
        if self.decoder != "PyAV":
            self.decoder = f"{self.decoder}, PyAV" if self.decoder else "PyAV"
        for pts, frame in self._frames({}, at if after is None else after):
            if after is not None and pts <= after:
                continue
            whole = frame is not None and not frame.is_corrupt
            image = self.info.turn.apply(self._convert(frame)) if whole else None
            yield pts, 0 if frame is None else self._lasts(pts, frame), image

    def _lasts(self, pts: int, frame: Any) -> int:
        """How long a frame is shown. MP4 says it in the order of decoding, so that the last one
        shown may have the time of another one; it ends with the stream at the latest."""
        if self._end is None or pts >= self._end:
            return int(frame.duration)
        return min(int(frame.duration), self._end - pts)

    def _seek_to(self) -> int | None:
        """Where to begin so that the first frame wanted is whole; None: at the beginning."""
        if self._from is None:
            return None
        at = int(self._from - _SEEK_BEFORE / self.info.time_base)
        return at if at > self.info.start else None

    def _frames(
        self, options: dict[str, str], at: int | None = None
    ) -> Generator[tuple[int, Any], None, None]:
        """PyAV's frames from a container of their own, each checked for its size.

        ``at``: frames before this pts may be left out.
        """
        name = self.info.container.split(",")[0]
        indexed = name in ("mov", "matroska")
        if at is not None and (indexed or not self._exact):
            frames = self._decoded(options, at)
            first = next(frames, None)
            if first is not None and (first[0] <= at or not self._exact):
                yield first
                yield from frames
                return
            frames.close()
        yield from self._decoded(options, None)

    def _decoded(
        self, options: dict[str, str], at: int | None
    ) -> Generator[tuple[int, Any], None, None]:
        with ExitStack() as stack:
            file = stack.enter_context(open_file(self.path))
            container = stack.enter_context(open_input(file))
            stream = video_stream(container)
            if "mp4" in self.info.container and stream.duration:
                self._end = (stream.start_time or 0) + stream.duration
            context = stream.codec_context
            context.options = options
            context.thread_count = self._threads
            context.thread_type = "AUTO"
            size = (self.info.width, self.info.height)
            size = size[::-1] if self.info.turn.transpose else size
            if at is not None:
                try:
                    container.seek(at, stream=stream)
                except (av.error.FFmpegError, OSError):
                    return
            for pts, frame in decode(container, stream, self.notes.append):
                if frame is not None and (frame.width, frame.height) != size:
                    where = clock(float((pts - self.info.start) * self.info.time_base))
                    raise MediaError(
                        f"the frame size changes from {size[0]}x{size[1]} to "
                        f"{frame.width}x{frame.height} at {where}"
                    )
                yield pts, frame

    def _opencv(self) -> Generator[tuple[int, int, Image | None] | None, None, None]:
        """OpenCV's frames; ends with None where PyAV has to take over."""
        with ExitStack() as stack:
            file = stack.enter_context(open_file(self.path))
            try:
                capture = Capture(for_opencv(file, self.path), self.info, self._threads)
            except Exception:  # no OpenCV here, or a name that it should not see
                yield None
                return
            stack.callback(capture.close)
            # Deblocking and inverse transform change pixels only, and these pixels are not used.
            cheap = {"skip_loop_filter": "all", "skip_idct": "all"}
            shadow = self._frames(cheap)
            stack.callback(shadow.close)
            for pts, frame in shadow:
                if frame is None:
                    if self.info.container == "avi":  # OpenCV counts, and not what it cannot find
                        yield None
                        return
                    yield pts, 0, None
                    continue
                image = None if frame.interlaced_frame else capture.read(pts)
                if image is None or image.shape[:2] != (frame.height, frame.width):
                    yield None
                    return
                if self.decoder != "OpenCV":
                    if not self._agree(image):
                        yield None
                        return
                    self.decoder, self._careful = "OpenCV", False
                whole = not frame.is_corrupt
                yield pts, self._lasts(pts, frame), self.info.turn.apply(image) if whole else None

    def _opencv_is_faithful(self) -> bool:
        """Whether a reading from the beginning would take OpenCV's pixels."""
        frames = self._opencv()
        with closing(frames):
            return next(frames, None) is not None

    def _agree(self, image: Image) -> bool:
        """Whether OpenCV's first frame is PyAV's, within rounding: it gives black where its
        conversion fails."""
        for _, frame in self._frames({}):
            if frame is not None:
                other = self._convert(frame)
                difference = np.abs(image[::4, ::4].astype(np.int16) - other[::4, ::4])
                return float(difference.mean()) < _CV_MATCH
        return False

    def _convert(self, frame: Any) -> Image:
        """A decoded frame as (H, W, 3) RGB, by the frame's own matrix and range."""
        if frame.interlaced_frame and frame.height % 4 == 0 and has_halved_rows(frame):
            image = None
            for row, part in enumerate(split_fields(frame)):
                half = self._plain(self._siting.mark(part))
                if image is None:
                    image = np.empty((frame.height, frame.width, 3), half.dtype)
                image[row::2] = half
            assert image is not None
            return image
        return self._plain(self._siting.decoded(frame))

    def _plain(self, frame: Any) -> Image:
        # After OpenCV its conversion, which rounds down and is 0.4 of a level darker, goes on.
        careful = self.info.bit_depth > 8 or self._careful
        try:
            done = self._reformatter.reformat(
                frame,
                format="rgb24" if self.info.bit_depth == 8 else "rgb48le",
                interpolation=_CAREFUL if careful else None,
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            said = f"{frame.format.name}, matrix {int(frame.colorspace)} of H.273"
            raise MediaError(f"its colours ({said}) cannot be converted: {reason(error)}") from None
        image: Image = done.to_ndarray()
        return _full_range(image.dtype)[image] if self.info.limited_grey else image


@cache
def _full_range(kind: np.dtype[Any]) -> Image:
    """What each value of a limited range, 16 to 235 in 8 bits, is in the full one."""
    values = np.iinfo(kind).max
    unit = (values + 1) // 256
    wide = (np.arange(values + 1) - 16 * unit) * (values / (219 * unit))
    full: Image = wide.clip(0, values).round().astype(kind)
    return full


def constant_rate(
    frames: Iterable[Frame], info: VideoInfo, begin: int | None = None
) -> Iterator[Frame]:
    """The same video at its average rate: at each moment the frame that is shown then.

    Frames that none of the moments falls on are left out, others come more than once. ``begin``:
    the moment at which the first of ``frames`` is shown, where that is not its own time.
    """
    step = 1 / (info.frame_rate * info.time_base)  # not always whole
    count = 0
    shown: Frame | None = None
    for frame in chain(frames, (None,)):
        if shown is None:
            first = begin if begin is not None or frame is None else frame.pts
            count = 0 if first is None else round((first - info.start) / step)
        else:
            end = shown.pts + (shown.duration or step) if frame is None else frame.pts
            # Half a step early: times that were rounded must not make a frame miss its moment.
            while (at := info.start + round(count * step)) < end - step / 2:
                count += 1
                until = info.start + round(count * step)
                origin = shown.pts if shown.origin is None else shown.origin
                yield Frame(shown.image, at, until - at, shown.repeated, origin)
        shown = frame
