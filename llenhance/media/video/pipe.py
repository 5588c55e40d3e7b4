"""Frames on pipes: raw, as they are, or Y4M, which says what they are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from ...errors import MediaError, Refusal
from ...standard_input import StandardInput
from ..picture import MAX_PIXELS, Limits
from .alone import Lost
from .codecs import chroma_of
from .decode import decode, has_halved_rows, weave_fields
from .info import UNSPECIFIED, Image, VideoInfo, describe
from .opening import Y4M_FRAME, Y4M_HEAD, reason, video_stream, y4m_sizes
from .places import RawFormat
from .reading import VideoReader
from .scope import Scope
from .siting import Siting

_CAREFUL = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
_Y4M = {  # pixel format -> what Y4M calls it
    "yuv420p": "420mpeg2",
    "yuv422p": "422",
    "yuv444p": "444",
    "yuv420p10le": "420p10",
    "yuv422p10le": "422p10",
    "yuv444p10le": "444p10",
    "yuv420p12le": "420p12",
    "yuv422p12le": "422p12",
    "yuv444p12le": "444p12",
}


class _Stream:
    """A stream without places to go back to, and without a name."""

    def __init__(self, file: IO[bytes] | StandardInput) -> None:
        self._file = file
        self._start, self._taken = b"", 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if len(self._start) < Y4M_HEAD:
            self._start += data[:Y4M_HEAD]
        self._taken += len(data)
        return data

    def ends_inside(self, frames: int) -> bool:
        """Whether more than that many whole frames of a Y4M came, which FFmpeg would not say."""
        head, frame = y4m_sizes(self._start)
        alike = self._start.startswith(Y4M_FRAME, head)  # without fields of its own
        return alike and 0 < self._taken - head - frames * frame < frame


class PipeReader(VideoReader):
    """Frames from an open stream, once: Y4M, or ``raw``. Takes what VideoReader takes.

    Raises MediaError where there is no frame, Refusal for a raw format that is not known.
    """

    def __init__(
        self,
        file: IO[bytes] | StandardInput,
        raw: RawFormat | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
        **choices: Any,
    ) -> None:
        options = {}
        if raw is not None:
            check_raw(raw)
            options = {
                "video_size": f"{raw.width}x{raw.height}",
                "pixel_format": raw.pix_fmt,
                "framerate": str(raw.rate),
            }
        self._stream = _Stream(file)
        try:
            self._container = av.open(
                self._stream,
                "r",
                format="yuv4mpegpipe" if raw is None else "rawvideo",
                container_options=options,
            )
            stream = video_stream(self._container)
            Limits(max_pixels).check(stream.codec_context.width, stream.codec_context.height)
            self._waiting = decode(self._container, stream)
            self._first = next(self._waiting, None)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"no frames can be read: {reason(error)}") from None
        if self._first is None or self._first[1] is None:
            raise MediaError("no frames")
        info = describe(Path("-"), self._container, stream, *self._first, bare=True)
        super().__init__(Path("-"), info=info, opencv=False, **choices)
        self.decoder = "PyAV"

    def close(self) -> None:
        super().close()
        self._container.close()

    def _pixels(self) -> Iterator[tuple[int, int, Image | None]]:
        count = 0
        for pts, frame in chain([self._first or (0, None)], self._waiting):
            whole = frame is not None and not frame.is_corrupt
            yield pts, frame.duration if frame else 0, self._convert(frame) if whole else None
            count += 1
        if self._stream.ends_inside(count):
            yield pts + 1, 0, None


def check_raw(raw: RawFormat) -> None:
    """Raises Refusal for a pixel format that is not known."""
    try:
        kind = av.VideoFormat(raw.pix_fmt, raw.width, raw.height)
    except ValueError:
        raise Refusal(f"--raw: no pixel format {raw.pix_fmt!r}") from None
    if kind.has_palette or kind.is_bit_stream or raw.pix_fmt not in _PACKED:
        raise Refusal(f"--raw: pixel format {raw.pix_fmt!r} is not written; {', '.join(_PACKED)}")


_PACKED = ("rgb24", "bgr24", "rgba", "bgra", "gray", "gray16le", "rgb48le", "nv12", *_Y4M)


def pipe_format(source: VideoInfo, scale: int, raw: RawFormat | None, pix_fmt: str | None) -> str:
    """The pixel format of the output: the raw one, or Y4M's nearest to the source's.

    Raises Refusal for one that cannot be.
    """
    if raw is not None:
        check_raw(raw)
        return raw.pix_fmt
    bits = next((bits for bits in (8, 10, 12) if bits >= source.bit_depth), 12)
    chroma = chroma_of(source.pixel_format)
    if chroma == 420 and (source.width * scale % 2 or source.height * scale % 2):
        chroma = 444
    found = pix_fmt or f"yuv{chroma}p" + ("" if bits == 8 else f"{bits}le")
    if found not in _Y4M:
        raise Refusal(f"Y4M has no pixel format {found!r}; it has {', '.join(_Y4M)}")
    return found


class PipeWriter(Scope):
    """Writes frames to an open stream as Y4M, or raw without a header.

    ``pix_fmt`` from :func:`pipe_format`. Raises MediaError when the stream takes no more, and
    BrokenPipeError when its reader has left.
    """

    def __init__(
        self, file: IO[bytes], source: VideoInfo, pix_fmt: str, *, raw: bool = False
    ) -> None:
        self._file, self._source, self._format, self._raw = file, source, pix_fmt, raw
        self._reformatter = VideoReformatter()
        self._siting = Siting(source)
        self._rgb = av.VideoFormat(pix_fmt).is_rgb
        self._halved = has_halved_rows(av.VideoFrame(16, 16, pix_fmt))
        matrix = 1 if source.color_matrix == 0 else source.color_matrix
        self._matrix = None if matrix == UNSPECIFIED else matrix
        self._range = 1 if source.color_matrix == 0 else source.color_range or 1
        self.frames = self.size = 0
        self._lost = Lost(source)
        self.dropped = self._lost.sentences
        if source.streams:
            self.dropped.append("the other streams are dropped: these are frames alone")

    def close(self) -> None:
        """Flush the stream, which stays open."""
        self._out(b"")

    def abandon(self) -> None:
        """Nothing to do: the stream stays open."""

    def write(self, image: Image, pts: int, _duration: int = 0) -> None:
        """(H, W, 3) RGB, uint8 or uint16."""
        self._lost.see(pts)
        if not self.frames and not self._raw:
            self._out(self._header(image.shape[1], image.shape[0]))
        if self._interlaced(image.shape[0]) and self._halved and image.shape[0] % 4 == 0:
            # A colour row lies between the rows of its own field, which is of another moment.
            frame = weave_fields(*(self._converted(image[row::2]) for row in range(2)))
        else:
            frame = self._converted(image)
        self._out((b"" if self._raw else b"FRAME\n") + _packed(frame))
        self.frames += 1

    def _converted(self, image: Image) -> Any:
        kind = "rgb24" if image.dtype == np.uint8 else "rgb48le"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=kind)
        if self._format == kind:
            return frame
        try:
            return self._reformatter.reformat(
                self._siting.mark(frame),
                format=self._format,
                dst_colorspace=None if self._rgb else self._matrix,
                dst_color_range=None if self._rgb else self._range,
                interpolation=_CAREFUL,
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"cannot be converted: {reason(error)}") from None

    def _interlaced(self, height: int) -> bool:
        """Whether frames of this height still have the rows of the source's fields."""
        return self._source.has_fields and height == self._source.height

    def _header(self, width: int, height: int) -> bytes:
        rate, aspect = self._source.frame_rate, self._source.sample_aspect
        levels = "FULL" if self._range == 2 else "LIMITED"
        fields = "p"
        if self._interlaced(height):
            fields = "t" if self._source.top_field_first else "b"
        return (
            f"YUV4MPEG2 W{width} H{height} F{rate.numerator}:{rate.denominator} I{fields}"
            f" A{aspect.numerator}:{aspect.denominator} C{_Y4M[self._format]}"
            f" XCOLORRANGE={levels}\n"
        ).encode()

    def _out(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise MediaError(f"cannot be written: {reason(error)}") from None
        self.size += len(data)


def _packed(frame: Any) -> bytes:
    """The planes of a frame one after the other, without the padding at the ends of rows."""
    parts = []
    for plane, component in zip(frame.planes, _widths(frame), strict=True):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        parts.append(rows[: plane.height, :component].tobytes())
    return b"".join(parts)


def _widths(frame: Any) -> list[int]:
    """Bytes in a row of each plane that are pixels."""
    kind = frame.format
    deep = 2 if max(part.bits for part in kind.components) > 8 else 1
    if len(frame.planes) == 1:
        return [frame.width * len(kind.components) * deep]
    if kind.name == "nv12":
        return [frame.width, frame.width + frame.width % 2]
    return [plane.width * deep for plane in frame.planes]
