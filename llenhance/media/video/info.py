"""What a video says of itself: size, times, colours, tags and the streams beside the pictures."""

from __future__ import annotations

import struct
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from numpy.typing import NDArray

from ...errors import MediaError
from ..picture import MAX_PIXELS, Limits
from .decode import decode, is_top_first
from .opening import cut_off, missing_bytes, open_file, open_input, video_stream

Image = NDArray[Any]  # (H, W, 3) RGB, uint8 or uint16

UNSPECIFIED = 2  # in colour primaries, transfer and matrix; 0 in the range
_INTERLACED = range(2, 6)  # AVFieldOrder: tt, bb, tb, bt; the second letter is shown first
_TOP_FIRST = (2, 5)
_LATE = 5  # seconds: no encoder's delay is so long


@dataclass(frozen=True)
class StreamInfo:
    """A stream beside the pictures."""

    index: int
    kind: str  # audio, subtitle, data, attachment, or video (a cover picture, a second angle)
    codec: str
    language: str | None
    title: str | None

    def __str__(self) -> str:
        words = [self.kind, f"stream {self.index}"]
        extra = [word for word in (self.codec, self.language, self.title) if word]
        return " ".join(words) + (f" ({', '.join(extra)})" if extra else "")


@dataclass(frozen=True)
class Turn:
    """How stored pixels become upright: transpose, then mirror left-right, then top-bottom."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def apply(self, image: Image) -> Image:
        """The upright picture, contiguous, of an (H, W, 3) picture as stored."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        if self.mirror_x:
            image = image[:, ::-1]
        if self.mirror_y:
            image = image[::-1]
        return np.ascontiguousarray(image)


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself, with its first frame decoded and no more.

    Colour numbers are those of ITU-T H.273, as FFmpeg gives them (2 is "unspecified"); the range
    is 0 unspecified, 1 limited, 2 full.
    """

    path: Path
    container: str  # FFmpeg's name of the demuxer, such as "mov,mp4,m4a,3gp,3g2,mj2"
    stream: int  # index of the video stream
    codec: str
    width: int  # pixels, upright
    height: int
    turn: Turn  # from the stored pixels to the upright ones
    matrix: tuple[int, ...] | None  # a display matrix that is no quarter turn, so not applied
    sample_aspect: Fraction  # width over height of one upright pixel
    frame_rate: Fraction  # average
    time_base: Fraction  # seconds in one unit of pts
    start: int  # pts of the first frame
    frames: int  # as the header says or the duration suggests: an estimate, at least 1
    duration: float  # seconds of the video stream, an estimate where the container has none
    pixel_format: str
    bit_depth: int
    color_primaries: int
    color_transfer: int
    color_matrix: int
    color_range: int
    interlaced: bool
    top_field_first: bool  # upright
    mastering_display: bytes | None  # AVMasteringDisplayMetadata, see ``plan.mastering_display``
    content_light: tuple[int, int] | None  # MaxCLL and MaxFALL in cd/m2
    per_frame: tuple[str, ...]  # kinds of metadata with each frame, which no output carries
    alpha: bool
    missing: int  # bytes that the container promises beyond the file's end
    tags: dict[str, str] = field(repr=False)
    streams: tuple[StreamInfo, ...] = ()  # the others
    chapters: int = 0
    bare: bool = False  # pictures alone: there is no file with other streams
    origin: Fraction = Fraction(0)  # seconds on its clock that are the beginning of an output

    @property
    def hdr(self) -> bool:
        """Whether the transfer is PQ or HLG."""
        return self.color_transfer in (16, 18)

    @property
    def limited_grey(self) -> bool:
        """Whether it has brightness alone in the limited range, which FFmpeg takes for the full."""
        return self.color_range == 1 and is_grey(self.pixel_format)

    @property
    def has_fields(self) -> bool:
        """Whether the rows of an upright frame are those of two fields in turn."""
        return self.interlaced and not self.turn.transpose


def is_grey(pixel_format: str) -> bool:
    """Whether a pixel format has brightness alone, or with transparency."""
    return pixel_format.startswith(("gray", "ya"))


def clock(seconds: float) -> str:
    """A time for a person: 1:02:03.4."""
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


def as_fraction(seconds: float | Fraction) -> Fraction:
    """Seconds as a person meant them: 0.2 is a fifth, not the nearest double above it."""
    if isinstance(seconds, Fraction):
        return seconds
    return Fraction(seconds).limit_denominator(1_000_000)


def _turn(matrix: tuple[int, ...]) -> Turn | None:
    """The turn in a display matrix, or None where it is not a multiple of a quarter turn."""
    a, b, _, c, d = matrix[:5]
    transpose = abs(a) < abs(b)
    straight, crossed = min(abs(a), abs(d)), max(abs(b), abs(c))
    turned, skewed = min(abs(b), abs(c)), max(abs(a), abs(d))
    big, small = (turned, skewed) if transpose else (straight, crossed)
    if big == 0 or small > big // 100:
        return None
    return Turn(transpose, (c if transpose else a) < 0, (b if transpose else d) < 0)


def _side_data(frame: Any) -> dict[Any, bytes]:
    found = (frame.side_data[index] for index in range(len(frame.side_data)))
    return {data.type: bytes(data) for data in found}


def _seconds(stream: Any, container: Any) -> float:
    """Seconds that the stream lasts, by the first of its sources that knows; else 0."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "")  # Matroska has no other place for it
    with suppress(ValueError):
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return container.duration / 1e6 if container.duration else 0.0


def probe(path: Path, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """What a video says of itself; decodes its first frame.

    Raises MediaError for a file that is not regular, cannot be read as a video, has no video
    stream or no frame in it, or whose frames claim more than ``max_pixels``: that is checked before
    decoding. A file that was cut off is told by ``missing``.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open_file(path))
        missing = missing_bytes(file)
        try:
            container = stack.enter_context(open_input(file))
        except MediaError:
            if missing:  # MP4 often has its index at the end
                raise MediaError(cut_off(missing)) from None
            raise
        stream = video_stream(container)
        stream.codec_context.thread_count = 1
        Limits(max_pixels).check(stream.codec_context.width, stream.codec_context.height)
        # A frame may be larger than its container says. Decoders count in whole blocks.
        most = min(2 * max_pixels + (1 << 16), (1 << 31) - 1)
        stream.codec_context.options = {"max_pixels": str(most)}
        first = None
        for pts, first in decode(container, stream):  # noqa: B007
            if first is not None:
                break
        if first is None:
            raise MediaError("the video stream has no frames")
        return describe(path, container, stream, pts, first, missing=missing)


def describe(
    path: Path,
    container: Any,
    stream: Any,
    pts: int,
    first: Any,
    *,
    missing: int = 0,
    bare: bool = False,
) -> VideoInfo:
    """What an open container and its first frame, shown at ``pts``, say."""
    context, side = stream.codec_context, _side_data(first)
    matrix = struct.unpack("=9i", side.get(SideDataType.DISPLAYMATRIX, _NO_MATRIX))
    turn = _turn(matrix)
    upright = turn or Turn()
    width, height = first.width, first.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if upright.transpose:
        width, height, aspect = height, width, 1 / aspect
    rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
    rate = next((rate for rate in rates if rate and 0 < rate <= 1000), Fraction(25))
    seconds = _seconds(stream, container)
    frames = stream.frames or round(seconds * rate)
    light = side.get(SideDataType.CONTENT_LIGHT_LEVEL)
    order = context.field_order
    interlaced = first.interlaced_frame or order in _INTERLACED
    # RGB has no matrix, and is seen as sRGB where nothing says what it is; not all decoders say it.
    rgb = first.format.is_rgb or first.format.has_palette

    def colour(of_frame: int, of_stream: int, of_rgb: int, unknown: int = UNSPECIFIED) -> int:
        known = int(of_stream if of_frame == unknown else of_frame)
        return of_rgb if rgb and known == unknown else known

    # Where the container does not say it, the frame does.
    told = order in _INTERLACED
    top_first = order in _TOP_FIRST if told else interlaced and is_top_first(first)
    if interlaced and upright.mirror_y and not upright.transpose and height % 2 == 0:
        top_first = not top_first  # the last row, of the other field, becomes the first
    others = []
    for other in container.streams:
        if other.index != stream.index:
            codec = getattr(other.codec_context, "name", None)
            codec = codec or getattr(other, "mimetype", None)
            codec = codec or getattr(other, "name", None) or "unknown"
            title = other.metadata.get("title") or other.metadata.get("filename")
            others.append(StreamInfo(other.index, other.type, codec, other.language, title))
    return VideoInfo(
        path=path,
        container=container.format.name,
        stream=stream.index,
        codec=context.codec.canonical_name,
        width=width,
        height=height,
        turn=upright,
        matrix=matrix if turn is None else None,
        sample_aspect=aspect if aspect > 0 else Fraction(1),
        frame_rate=rate,
        time_base=stream.time_base,
        start=pts,
        frames=max(1, frames),
        duration=seconds or float(max(1, frames) / rate),
        pixel_format=first.format.name,
        bit_depth=max(component.bits for component in first.format.components),
        color_primaries=colour(first.color_primaries, context.color_primaries, 1),
        color_transfer=colour(first.color_trc, context.color_trc, 1),
        color_matrix=0 if rgb else colour(first.colorspace, context.colorspace, UNSPECIFIED),
        color_range=colour(first.color_range, context.color_range, 2, 0),
        interlaced=interlaced,
        top_field_first=top_first,
        mastering_display=side.get(SideDataType.MASTERING_DISPLAY_METADATA),
        content_light=struct.unpack("=2I", light[:8]) if light else None,
        per_frame=tuple(dict.fromkeys(_PER_FRAME[kind] for kind in side if kind in _PER_FRAME)),
        alpha=any(component.is_alpha for component in first.format.components)
        or any(
            key.lower() == "alpha_mode" and said == "1" for key, said in stream.metadata.items()
        ),
        missing=missing,
        tags=dict(container.metadata),
        streams=tuple(others),
        chapters=len(container.chapters()),
        bare=bare,
        origin=_origin(container, pts * stream.time_base),
    )


def _origin(container: Any, first: Fraction) -> Fraction:
    """Where the clock of a file begins, in seconds; 0 where it begins at 0 or hardly later.

    MPEG's transport and program streams count from anywhere: a broadcast may begin at ten hours.
    ``first``: when the first frame is shown.
    """
    # The microseconds are rounded, and the first packet must not lie before them.
    begins = min(Fraction((container.start_time or 0) - 1, 1_000_000), first)
    anywhere = container.format.name in ("mpegts", "mpeg")
    return begins if anywhere or begins > _LATE else Fraction(0)


def plain_info(
    path: Path,
    codec: str,
    size: tuple[int, int],
    rate: Fraction,
    *,
    time_base: Fraction,
    frames: int,
    depth: int = 8,
) -> VideoInfo:
    """Of sRGB pictures that are no video file: ``size`` (width, height), ``depth`` 8 or 16 bits."""
    return VideoInfo(
        path=path,
        container=codec,
        stream=0,
        codec=codec,
        width=size[0],
        height=size[1],
        turn=Turn(),
        matrix=None,
        sample_aspect=Fraction(1),
        frame_rate=rate,
        time_base=time_base,
        start=0,
        frames=frames,
        duration=float(frames / rate),
        pixel_format="rgb24" if depth == 8 else "rgb48le",
        bit_depth=depth,
        color_primaries=1,
        color_transfer=1,  # as players show it; sRGB's own number is hardly known to them
        color_matrix=0,
        color_range=2,
        interlaced=False,
        top_field_first=False,
        mastering_display=None,
        content_light=None,
        per_frame=(),
        alpha=False,
        missing=0,
        tags={},
        bare=True,
    )


_PER_FRAME = {
    SideDataType.DOVI_METADATA: "Dolby Vision",
    SideDataType.DOVI_RPU_BUFFER: "Dolby Vision",
    SideDataType.DYNAMIC_HDR_PLUS: "HDR10+",
    SideDataType.DYNAMIC_HDR_VIVID: "HDR Vivid",
    SideDataType.A53_CC: "closed caption",
    SideDataType.SPHERICAL: "360-degree",
    SideDataType.STEREO3D: "stereo 3D",
}
_NO_MATRIX = struct.pack("=9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
