"""Writing videos: the enhanced frames encoded, and everything else of the source copied.

Frames are written upright, without a display matrix: the pixels were turned for the network, every
container can hold an upright picture, and a player that ignores display matrices shows it right.
Colours go back to Y'CbCr by the matrix and range by which they came out of it, and the tags stay
the source's, so what the network left alone comes out as it went in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from ...errors import MediaError
from .codecs import chroma_of
from .decode import weave_fields
from .info import UNSPECIFIED, Image, VideoInfo, as_fraction
from .opening import reason
from .plan import Encoding, colours, configure
from .scope import Scope
from .siting import Siting
from .streams import Cut, Output

_CAREFUL = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


def _part_container(plan: Encoding) -> str:
    """What a part is written in: it must keep times exactly, which Matroska does not."""
    return {"ffv1": "nut", "prores_ks": "mov"}.get(plan.encoder, "mp4")


class VideoWriter(Scope):
    """Encodes frames into a file and copies every other stream of the source beside them.

    ``target`` is written as it is (give it a temporary name and rename it afterwards), as
    ``plan``, from :func:`plan_encoding`, says, whatever its suffix. ``source``, for which that was
    made, gives times, colours, tags and the other streams. ``cut`` is (start, end) in
    seconds from the first frame, as VideoReader's start and end: the other streams are cut with
    the pictures, and what is left begins when the source did. ``part=True`` writes the pictures
    alone, for :func:`join`; ``tags`` are added to the source's ("software" names what made the
    video), ``strip`` leaves these out, with covers and timed data: all that playing does not need.

    On a clean exit the encoder is flushed, the rest is copied and the file is closed; ``dropped``
    then has a sentence for each thing that the output does not have, ``frames`` and ``duration``
    (seconds) say what :func:`verify` should find. After an exception the file is worthless.
    Raises MediaError when writing fails.
    """

    def __init__(
        self,
        target: Path,
        source: VideoInfo,
        plan: Encoding,
        *,
        cut: tuple[float, float | None] = (0, None),
        part: bool = False,
        tags: Mapping[str, str] | None = None,
        strip: bool = False,
        threads: int = 0,
    ) -> None:
        self.source, self.target, self.plan, self.frames = source, target, plan, 0
        self._first: int | None = None  # pts of the first and the last frame
        self._last = 0
        self._lasts = 0  # how long the last frame is shown
        self._coded = False
        self._reformatter = VideoReformatter()
        self._siting = Siting(source)
        self._matrix, self._range = colours(self.plan, source)
        self._fields = _FieldMark(source, self.plan) if self.plan.interlaced else None
        self._step = max(1, round(1 / (source.frame_rate * source.time_base)))
        self._shift, span = cut_times(source, cut)

        container = _part_container(self.plan) if part else self.plan.container

        def add_video(file: Any) -> Any:
            stream = file.add_stream(self.plan.encoder, rate=source.frame_rate)
            configure(stream.codec_context, self.plan, source, threads, container)
            stream.time_base = source.time_base
            return stream

        self._out = Output(
            target,
            source,
            container,
            tags=tags or {},
            cut=span,
            streams=not part,
            strip=strip,
            add_video=add_video,
        )
        self.dropped: list[str] = [*self.plan.notes, *self._out.dropped]
        self._out.dropped.clear()

    @property
    def size(self) -> int:
        """Bytes in the file so far."""
        return self.target.stat().st_size

    @property
    def span(self) -> tuple[int, int]:
        """When the first frame begins and the last one ends, in units of the source's time base,
        with what was cut away taken off."""
        return self._first or 0, self._last + self._lasts

    @property
    def duration(self) -> float:
        """Seconds from the beginning of the first to the end of the last frame written."""
        first, end = self.span
        return float((end - first) * self.source.time_base)

    def write(self, image: Image, pts: int, duration: int = 0) -> None:
        """Encode one (H, W, 3) RGB picture, uint8 or uint16, shown at ``pts`` for ``duration``
        units of the source's time base. Raises MediaError when the file cannot be written."""
        if image.shape != (self.plan.height, self.plan.width, 3):
            raise ValueError(
                f"a frame of shape {image.shape} in a video of "
                f"{self.plan.width}x{self.plan.height} pixels"
            )
        if image.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"a frame of {image.dtype}, which is neither uint8 nor uint16")
        pts -= self._shift
        if self._first is None:
            self._first = pts
        elif pts <= self._last:
            pts = self._last + 1  # encoders refuse two frames at one time
        self._last, self._lasts = pts, duration or self._step
        try:
            frame = self._convert(image)
            frame.pts, frame.time_base, frame.duration = pts, self.source.time_base, self._lasts
            packets = self._out.video.encode(frame)
            self._coded = self._coded or bool(packets)
            self._out.mux(packets)
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"cannot be written: {reason(error)}") from None
        self.frames += 1

    def abandon(self) -> None:
        """Let go of the file, which is worthless."""
        self._out.abandon()

    def close(self) -> None:
        """Flush the encoder, copy what is left of the other streams, close the file."""
        try:
            packets = self._out.video.encode(None)
            if not self._coded:
                _order(packets)
            self._out.mux(packets)
            first, end = self.span
            self._out.finish((end - first) * self.source.time_base)
        except (av.error.FFmpegError, OSError) as error:
            self._out.abandon()
            raise MediaError(f"cannot be written: {reason(error)}") from None
        self.dropped += self._out.dropped

    def _convert(self, image: Image) -> Any:
        """The picture in the output's pixel format, its last row and column doubled if need be."""
        right = self.plan.coded_width - self.plan.width
        below = self.plan.coded_height - self.plan.height
        if right or below:
            image = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
        deep = image.dtype == np.uint16
        kind = "rgb48le" if deep else "rgb24"
        if self._fields is not None and self._fields.split:
            halves = [np.ascontiguousarray(image[row::2]) for row in range(2)]
            frames = [self._plain(half, kind) for half in halves]
            frame = weave_fields(*frames)
        else:
            frame = self._plain(np.ascontiguousarray(image), kind)
        if self._fields is not None:
            frame = self._fields.mark(frame)
        frame.color_primaries = self.source.color_primaries
        frame.color_trc = self.source.color_transfer
        frame.colorspace, frame.color_range = self._matrix, self._range
        return frame

    def _plain(self, image: Image, kind: str) -> Any:
        return self._reformatter.reformat(
            self._siting.mark(av.VideoFrame.from_ndarray(image, format=kind)),
            format=self.plan.pix_fmt,
            dst_colorspace=None if self._matrix == UNSPECIFIED else self._matrix,
            dst_color_range=self._range or 1,
            interpolation=_CAREFUL,
        )


def _order(packets: list[Any]) -> None:
    """Decoding times for all packets of a clip. x265 makes them up, from memory that it never
    set, where there are fewer frames than it may reorder."""
    shown = sorted(packet.pts for packet in packets)
    early = max((due - packet.pts for due, packet in zip(shown, packets, strict=True)), default=0)
    for due, packet in zip(shown, packets, strict=True):
        packet.dts = due - early


class _FieldMark:
    """Says on each frame that it is interlaced and which field is first, for the encoder."""

    def __init__(self, source: VideoInfo, plan: Encoding) -> None:
        height = plan.coded_height
        self.split = chroma_of(plan.pix_fmt) == 420 and height % 4 == 0
        graph = av.filter.Graph()
        self._in = graph.add_buffer(
            width=plan.coded_width,
            height=height,
            format=av.VideoFormat(plan.pix_fmt),
            time_base=source.time_base,
        )
        mark = graph.add("setfield", "tff" if source.top_field_first else "bff")
        self._out = graph.add("buffersink")
        self._in.link_to(mark)
        mark.link_to(self._out)
        graph.configure()
        self._graph = graph  # keeps the filters alive

    def mark(self, frame: Any) -> Any:
        frame.pts = 0
        self._in.push(frame)
        return self._out.pull()


def cut_times(source: VideoInfo, cut: tuple[float, float | None]) -> tuple[int, Cut]:
    """What is taken off every pts, and what is kept of the other streams."""
    base, (start, end) = source.time_base, cut
    first = source.start * base
    cut_off = round(as_fraction(start) / base)
    shift = cut_off + round(source.origin / base)
    return shift, Cut(
        begin=first + cut_off * base if cut_off else source.origin,
        end=None if end is None else first + as_fraction(end),
        shift=shift * base,
        whole=not cut_off,
    )
