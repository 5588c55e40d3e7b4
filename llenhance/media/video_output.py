"""Writing videos: the enhanced frames encoded, and everything else of the source copied.

Frames are written upright, without a display matrix: the pixels were turned for the network, every
container can hold an upright picture, and a player that ignores display matrices shows it right.
Colours go back to Y'CbCr by the matrix and range by which they came out of it, and the tags stay
the source's, so what the network left alone comes out as it went in.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from ..errors import MediaError, Refusal
from .video_input import (
    CONTAINERS,
    UNSPECIFIED,
    Image,
    VideoInfo,
    as_fraction,
    open_file,
    open_input,
    reason,
    video_stream,
    weave_fields,
)

os.environ.setdefault("SVT_LOG", "-1")  # SVT-AV1 prints its settings on stderr otherwise


@dataclass(frozen=True)
class Codec:
    """How one kind of encoder is asked for quality and speed."""

    encoder: str
    crf: int | None  # the default; None: the encoder has no such thing
    crf_option: str | None
    preset: str | None
    preset_option: str | None
    options: Mapping[str, str]
    odd: bool  # whether it takes odd sizes with halved chroma


_CODECS: Mapping[str, Codec] = {
    "h264": Codec("libx264", 18, "crf", "medium", "preset", {}, False),
    "hevc": Codec("libx265", 20, "crf", "medium", "preset", {}, False),
    "av1": Codec("libsvtav1", 26, "crf", "8", "preset", {}, False),
    "vp9": Codec("libvpx-vp9", 26, "crf", "4", "cpu-used", {"b": "0", "row-mt": "1"}, True),
    "ffv1": Codec("ffv1", None, None, None, None, {"level": "3", "slicecrc": "1"}, True),
    "prores": Codec("prores_ks", None, None, None, "profile", {}, True),
}
# Hardware encoders, by the end of their name; quality and speed have other names there.
_HARDWARE: Mapping[str, Codec] = {
    "_nvenc": Codec("", 20, "cq", "p5", "preset", {"rc": "vbr", "b": "0"}, False),
    "_qsv": Codec("", 20, "global_quality", "medium", "preset", {}, False),
    "_amf": Codec("", 20, "qvbr_quality_level", None, "quality", {"rc": "qvbr"}, False),
    "_videotoolbox": Codec("", None, None, None, None, {}, False),
    "_v4l2m2m": Codec("", None, None, None, None, {}, False),
    "_vaapi": Codec("", 20, "qp", None, None, {}, False),
}
_FORMATS: Mapping[str, tuple[int, int]] = {  # planar formats: (chroma, bits)
    **{
        f"yuv{chroma}p{suffix}": (chroma, bits)
        for chroma in (420, 422, 444)
        for suffix, bits in (("", 8), ("10le", 10), ("12le", 12), ("16le", 16))
    },
    "nv12": (420, 8),
    "p010le": (420, 10),
}
# What a container writes itself, or what is no longer true of the output.
_OWN_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "bps"}
_OWN_PREFIXES = ("number_of_", "_statistics")
# Tags that MP4 has a place of its own for; for others the file has to hold keys by name.
_MP4_TAGS = frozenset((
    "title", "artist", "album_artist", "album", "composer", "writer", "genre", "date", "comment",
    "description", "synopsis", "copyright", "grouping", "lyrics", "track", "disc", "show",
    "episode_id", "network", "keywords", "creation_time", "location", "location-eng", "media_type",
    "hd_video", "compilation", "sort_name", "timecode",
))  # fmt: skip


@dataclass(frozen=True)
class Encoding:
    """Everything about an output that can be settled, and was tried, before the first frame."""

    container: str  # FFmpeg's name of the muxer
    codec: str  # as asked for
    encoder: str
    pix_fmt: str
    options: Mapping[str, str]
    width: int  # of the frames given to the writer
    height: int
    coded_width: int  # of the frames in the file
    coded_height: int
    interlaced: bool  # whether it is marked as interlaced, as the source is
    notes: tuple[str, ...]  # what the output cannot have, in sentences


def _usable(encoder: str) -> bool:
    """Whether the encoder is in this build and its hardware answers."""
    try:
        context: Any = av.CodecContext.create(encoder, "w")
        formats = [entry.name for entry in context.codec.video_formats or []]
        context.width, context.height = 320, 240
        context.pix_fmt = next((name for name in _FORMATS if name in formats), "yuv420p")
        context.time_base = Fraction(1, 25)
        context.framerate = Fraction(25)
        context.options = _quiet(encoder, {})
        context.open()
    except (av.error.FFmpegError, av.codec.codec.UnknownCodecError, ValueError, OSError):
        return False
    return True


@cache
def encoders() -> tuple[str, ...]:
    """Names for ``codec`` that work here: families first, then hardware encoders."""
    families = [name for name, row in _CODECS.items() if _usable(row.encoder)]
    hardware = sorted(
        name
        for name in av.codecs_available
        if name.startswith(("h264_", "hevc_", "av1_", "vp9_"))
        and any(name.endswith(end) for end in _HARDWARE)
        and _usable(name)
    )
    return (*families, *hardware)


def default_codec(container: str, source: VideoInfo) -> str:
    """The codec where none is asked for: the one that most players of that container know."""
    if container == "webm":
        return "av1" if source.bit_depth > 8 else "vp9"  # this VP9 encoder has 8 bits only
    return "hevc" if source.bit_depth > 8 else "h264"


def default_suffix(source: VideoInfo) -> str:
    """The output's suffix where none is asked for: the source's if it can be written, else .mkv,
    which holds every kind of stream."""
    suffix = source.path.suffix.lower()
    return suffix if suffix in CONTAINERS else ".mkv"


def _codec(name: str) -> Codec:
    """The row for a codec or encoder name; Refusal, with those that are there, for another."""
    row = _CODECS.get(name) or next((r for r in _CODECS.values() if r.encoder == name), None)
    if row is None:
        end = next((end for end in _HARDWARE if name.endswith(end)), None)
        row = None if end is None else Codec(name, *list(_HARDWARE[end].__dict__.values())[1:])
    if row is None or not _usable(row.encoder):
        raise Refusal(f"no encoder {name!r} here; there are {', '.join(encoders())}")
    return row


def _chroma(pixel_format: str) -> int:
    """420, 422 or 444, for how much colour a pixel format holds (RGB: 420, the common choice)."""
    kind = av.VideoFormat(pixel_format, 64, 64)
    if kind.is_rgb or kind.has_palette or len(kind.components) < 3:
        return 420
    across, down = 64 // kind.components[1].width, 64 // kind.components[1].height
    return {(1, 1): 444, (2, 1): 422}.get((across, down), 444 if across == 1 else 420)


def _choose_format(encoder: str, source: VideoInfo) -> str:
    """The encoder's format nearest to the source's: no fewer bits first, then no less colour."""
    chroma, bits = _chroma(source.pixel_format), source.bit_depth
    offered = [entry.name for entry in av.Codec(encoder, "w").video_formats or []] or ["yuv420p"]
    known = [name for name in offered if name in _FORMATS]

    def loss(name: str) -> tuple[int, int, int, int]:
        has_chroma, has_bits = _FORMATS[name]
        return (
            max(0, bits - has_bits),
            max(0, chroma - has_chroma),
            abs(has_bits - bits),
            abs(has_chroma - chroma),
        )

    return min(known or offered, key=loss if known else str)


def _join(options: dict[str, str], key: str, values: list[str]) -> None:
    """Add to a colon-separated list of an encoder's own parameters; the user's come last."""
    options[key] = ":".join([*values, *([options[key]] if key in options else [])])


def _quiet(encoder: str, options: dict[str, str]) -> dict[str, str]:
    if encoder == "libx265":  # writes to stderr itself
        _join(options, "x265-params", ["log-level=none"])
    return options


def mastering_display(data: bytes) -> tuple[list[Fraction], Fraction, Fraction] | None:
    """(red, green, blue and white as x, y, ...), brightest and darkest cd/m2, or None if not set.

    ``data`` is FFmpeg's AVMasteringDisplayMetadata: rationals, then two flags.
    """
    if len(data) < 88:
        return None
    numbers = struct.unpack("=22i", data[:88])
    if not (numbers[20] and numbers[21]):
        return None
    pairs = zip(numbers[:20:2], numbers[1:20:2], strict=True)
    values = [Fraction(top, bottom or 1) for top, bottom in pairs]
    return values[:8], values[9], values[8]


def _hdr(encoder: str, source: VideoInfo, options: dict[str, str]) -> list[str]:
    """Mastering display and light level as the encoder's own parameters; sentences for losses."""
    shown = mastering_display(source.mastering_display) if source.mastering_display else None
    light = source.content_light
    notes = [f"{kind} metadata is dropped" for kind in source.dynamic_hdr]
    if shown is None and light is None:
        return notes
    values: list[str] = []
    if encoder in ("libx264", "libx265"):
        display, level = "mastering-display", "cll"
        if encoder == "libx265":
            display, level = "master-display", "max-cll"
        if shown:
            xy = [round(value * 50000) for value in shown[0]]
            most, least = round(shown[1] * 10000), round(shown[2] * 10000)
            values.append(
                f"{display}=G({xy[2]},{xy[3]})B({xy[4]},{xy[5]})R({xy[0]},{xy[1]})"
                f"WP({xy[6]},{xy[7]})L({most},{least})"
            )
        if light:
            values.append(f"{level}={light[0]},{light[1]}")
        _join(options, "x264-params" if encoder == "libx264" else "x265-params", values)
    elif encoder == "libsvtav1":
        if shown:
            at = [f"{float(value):.5f}" for value in shown[0]]
            values.append(
                f"mastering-display=G({at[2]},{at[3]})B({at[4]},{at[5]})R({at[0]},{at[1]})"
                f"WP({at[6]},{at[7]})L({float(shown[1]):.4f},{float(shown[2]):.4f})"
            )
        if light:
            values.append(f"content-light={light[0]},{light[1]}")
        _join(options, "svtav1-params", values)
    else:
        notes.append(
            f"mastering display and light level are dropped: {encoder} has no place for them"
        )
    return notes


def plan_encoding(
    source: VideoInfo,
    *,
    container: str,
    codec: str | None = None,
    crf: int | None = None,
    preset: str | None = None,
    pix_fmt: str | None = None,
    options: Mapping[str, str] | None = None,
    scale: int = 1,
) -> Encoding:
    """Settle an output and try its encoder, so that nothing fails after hours of work.

    ``container``: a suffix such as ".mp4" or "mp4". ``codec``: a family (h264, hevc, av1, vp9,
    ffv1, prores) or an encoder's own name. Raises Refusal for what cannot be: an encoder that is
    not there, a container that cannot hold it, an option, pixel format or size it does not take.
    """
    suffix = "." + container.lower().lstrip(".")
    muxer = CONTAINERS.get(suffix) or (container if container in CONTAINERS.values() else None)
    if muxer is None:
        raise Refusal(f"no container {container!r}; there are {', '.join(CONTAINERS)}")
    name = codec or default_codec(muxer, source)
    row = _codec(name)
    encoder = row.encoder
    chosen = dict(row.options)
    if crf is not None and row.crf_option is None:
        raise Refusal(f"{name} has no --crf")
    if row.crf_option is not None:
        chosen[row.crf_option] = str(row.crf if crf is None else crf)
    if preset is not None and row.preset_option is None:
        raise Refusal(f"{name} has no --preset")
    if row.preset_option is not None and (preset or row.preset):
        chosen[row.preset_option] = str(preset or row.preset)
    chosen.update(options or {})
    notes = _hdr(encoder, source, chosen)
    _quiet(encoder, chosen)
    offered = [entry.name for entry in av.Codec(encoder, "w").video_formats or []]
    chosen_format = pix_fmt or _choose_format(encoder, source)
    if offered and chosen_format not in offered:
        raise Refusal(f"{name} has no pixel format {chosen_format!r}; it has {', '.join(offered)}")
    kind = av.VideoFormat(chosen_format)
    bits = max(component.bits for component in kind.components)
    if bits < source.bit_depth:
        notes.append(f"{source.bit_depth} bits become {bits}, which is what {name} holds")
    if source.alpha:
        notes.append("transparency is dropped")
    width, height = source.width * scale, source.height * scale
    across, down = (2, 2) if _chroma(chosen_format) == 420 else (2, 1)
    if row.odd or kind.is_rgb or _chroma(chosen_format) == 444:
        across = down = 1
    coded_width, coded_height = -(-width // across) * across, -(-height // down) * down
    if (coded_width, coded_height) != (width, height):
        notes.append(
            f"{width}x{height} becomes {coded_width}x{coded_height}: {name} holds even sizes only, "
            "so the last row or column is there twice"
        )
    interlaced = source.interlaced and scale == 1 and encoder in ("libx264", "prores_ks")
    if interlaced:
        chosen["flags"] = "+ildct+ilme" + chosen.get("flags", "")
        if encoder == "libx264":
            _join(chosen, "x264-params", ["tff=1" if source.top_field_first else "bff=1"])
    elif source.interlaced:
        notes.append("interlaced frames are written as progressive ones, their fields still woven")
    plan = Encoding(
        muxer,
        name,
        encoder,
        chosen_format,
        chosen,
        width,
        height,
        coded_width,
        coded_height,
        interlaced,
        tuple(notes),
    )
    _try(plan, source)
    return plan


def _configure(context: Any, plan: Encoding, source: VideoInfo, threads: int) -> None:
    """Size, times, colours and options of an encoder."""
    context.width, context.height = plan.coded_width, plan.coded_height
    context.pix_fmt = plan.pix_fmt
    context.time_base = source.time_base
    context.framerate = source.frame_rate
    context.sample_aspect_ratio = source.sample_aspect
    matrix, levels = colours(plan, source)
    context.color_primaries = source.color_primaries
    context.color_trc = source.color_transfer
    context.colorspace = matrix
    context.color_range = levels
    if plan.container in ("mp4", "mov") and context.codec.canonical_name == "hevc":
        context.codec_tag = "hvc1"  # the only one that Apple's players take
    if threads:
        context.thread_count = threads
    context.options = dict(plan.options)


def colours(plan: Encoding, source: VideoInfo) -> tuple[int, int]:
    """(matrix, range) of the output."""
    matrix, levels = source.color_matrix, source.color_range
    if av.VideoFormat(plan.pix_fmt).is_rgb:
        return 0, 2
    if matrix == 0:  # the source was RGB: what a player would guess must be said
        return 1, 1
    return matrix, levels


def _try(plan: Encoding, source: VideoInfo) -> None:
    """Open the encoder and write a header with it, both into memory; Refusal when that fails."""
    try:
        out = av.open(io.BytesIO(), "w", format=plan.container)
    except (av.error.FFmpegError, ValueError) as error:
        raise Refusal(f"{plan.container} cannot be written here: {reason(error)}") from None
    try:
        stream = out.add_stream(plan.encoder, rate=source.frame_rate)
    except ValueError:
        held = [name for name in encoders() if _held(plan.container, name)]
        raise Refusal(
            f"{plan.container} cannot hold {plan.codec}; it holds {', '.join(held)}"
        ) from None
    context = stream.codec_context
    _configure(context, plan, source, 1)
    size = f"{plan.coded_width}x{plan.coded_height}"
    try:
        context.open()
        unknown = set(context.options) & set(plan.options)
        if unknown:
            raise Refusal(f"{plan.codec} has no option {', '.join(sorted(unknown))}")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise Refusal(
            f"{plan.codec} does not take {size} {plan.pix_fmt} with these options: {reason(error)}"
        ) from None
    finally:
        with suppress(Exception):
            out.close()


def _held(container: str, codec: str) -> bool:
    row = _CODECS.get(codec)
    out = av.open(io.BytesIO(), "w", format=container)
    try:
        out.add_stream(row.encoder if row else codec, rate=25)
    except (ValueError, av.error.FFmpegError):
        return False
    return True


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a source that are still true of an output."""
    return {
        key: value
        for key, value in tags.items()
        if key.lower() not in _OWN_TAGS and not key.lower().startswith(_OWN_PREFIXES)
    }


class _Copier:
    """Copies every stream but the pictures from a source into an output, packet by packet."""

    def __init__(
        self,
        source: VideoInfo,
        out: Any,
        muxer: str,
        cut: tuple[Fraction, Fraction | None],
        stack: ExitStack,
    ) -> None:
        self._out = out
        self._start, self._end = cut
        self._hides = muxer in ("mp4", "mov")
        self._early: set[int] = set()  # streams that may begin before 0
        file = stack.enter_context(open_file(source.path))
        self.container = stack.enter_context(open_input(file))
        self.dropped: list[str] = []
        self._pairs: dict[int, Any] = {}
        self._last: dict[int, int | None] = {}  # dts of each stream's last packet, in source units
        chapters = self.container.chapters()
        for info in source.streams:
            stream = self.container.streams[info.index]
            if stream.type == "data":
                # Chapters and the time code are copied as such; MP4 makes its tracks from them.
                if stream.name == "bin_data" and chapters:
                    continue
                if "timecode" in stream.metadata and stream.codec_context is None:
                    continue
            if muxer == "matroska" and stream.disposition & Disposition.attached_pic:
                # Matroska holds a cover as an attachment, where FFmpeg's muxer would make a track.
                kind = {"mjpeg": "jpeg", "png": "png"}.get(info.codec)
                if kind is None:
                    self.dropped.append(f"{info} is dropped: {muxer} cannot hold such a cover")
                else:
                    name = stream.metadata.get("filename") or f"cover.{kind.replace('jpeg', 'jpg')}"
                    out.add_attachment(name, f"image/{kind}", self._cover(source, info.index))
                continue
            if not _holds(muxer, stream):
                self.dropped.append(f"{info} is dropped: {muxer} cannot hold it")
                continue
            copy = _add(out, stream)
            if stream.type != "attachment":
                self._pairs[info.index] = copy
                # Matroska has a field for how much of these to leave out at the beginning.
                if not self._start and (info.codec == "opus" or "matroska" in source.container):
                    self._early.add(info.index)
        streams = [self.container.streams[index] for index in self._pairs]
        self._packets = self._demux(streams) if streams else iter(())
        self._held: tuple[Any, Fraction] | None = None

    @staticmethod
    def _cover(source: VideoInfo, index: int) -> bytes:
        with open_file(source.path) as file, open_input(file) as container:
            packets = container.demux(container.streams[index])
            return next((bytes(packet) for packet in packets if packet.size), b"")

    def _demux(self, streams: list[Any]) -> Iterator[tuple[Any, Fraction]]:
        """(packet, seconds when it is due), those inside the cut only."""
        packets = self.container.demux(streams)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                self.dropped.append(f"sound and subtitles end early: {reason(error)}")
                return
            if packet is None:
                return
            if packet.size and packet.stream.disposition & Disposition.attached_pic:
                packet.pts = packet.dts = 0
                yield packet, Fraction(0)
                continue
            if not packet.size or (packet.dts is None and packet.pts is None):
                continue
            stamp = packet.dts if packet.dts is not None else packet.pts
            shown = packet.pts if packet.pts is not None else packet.dts
            base = packet.time_base
            begin = shown * base
            finish = begin + (packet.duration or 0) * base
            if self._start and finish <= self._start and packet.stream.type != "video":
                continue
            if self._end is not None and begin >= self._end:
                continue
            if begin < self._start and not self._hides and packet.stream.index not in self._early:
                continue  # only MP4's edit lists hold and hide it; others would move all streams
            yield packet, stamp * base

    def until(self, seconds: Fraction | None) -> None:
        """Copy what is due before a time; everything with None."""
        while True:
            if self._held is None:
                self._held = next(self._packets, None)
            if self._held is None:
                return
            packet, due = self._held
            if seconds is not None and due > seconds:
                return
            self._held = None
            stream = self._pairs[packet.stream.index]
            if self._start:
                shift = round(self._start / packet.time_base)
                packet.pts = None if packet.pts is None else packet.pts - shift
                packet.dts = None if packet.dts is None else packet.dts - shift
            # A damaged or joined recording can step back in time, which muxers refuse.
            last = self._last.get(stream.index)
            if packet.dts is not None and last is not None and packet.dts <= last:
                packet.dts = last + 1
                packet.pts = packet.dts if packet.pts is None else max(packet.pts, packet.dts)
            self._last[stream.index] = packet.dts if packet.dts is not None else last
            packet.stream = stream
            self._out.mux(packet)


def _add(out: Any, stream: Any) -> Any:
    """A stream in ``out`` that takes the packets of another."""
    if stream.type in ("data", "attachment") and stream.codec_context is None:
        copy = out.add_stream_from_template(stream)
    else:
        copy = out.add_stream_from_template(stream, opaque=True)
    copy.metadata.update(_tags(stream.metadata))
    copy.disposition = stream.disposition
    return copy


def _holds(muxer: str, stream: Any) -> bool:
    """Whether a container takes a stream: it is asked to write a header with that one alone."""
    if muxer == "webm" and stream.type == "attachment":
        return False  # takes it and then leaves it out
    try:
        out = av.open(io.BytesIO(), "w", format=muxer)
        _add(out, stream)
        out.start_encoding()
        out.close()
    except (av.error.FFmpegError, ValueError, OSError, RuntimeError):
        return False
    return True


class _Output:
    """A file that is being written: a video stream, the copied streams, tags and chapters."""

    def __init__(
        self,
        target: Path,
        source: VideoInfo,
        muxer: str,
        *,
        tags: Mapping[str, str],
        cut: tuple[Fraction, Fraction | None],
        streams: bool,
        add_video: Callable[[Any], Any],
    ) -> None:
        self.target, self.muxer, self.source = target, muxer, source
        self.dropped: list[str] = []
        self._tags = {**_tags(source.tags), **tags} if streams else {}
        self._chapters = 0
        self._stack = ExitStack()
        self._copier: _Copier | None = None
        options = {}
        if muxer in ("mp4", "mov"):
            flags = ["faststart"] if streams else []  # index first: it plays while it is fetched
            if any(key.lower() not in _MP4_TAGS for key in self._tags):
                flags.append("use_metadata_tags")
            options["movflags"] = "".join("+" + flag for flag in flags) or "0"
            # In this unit the file says when each stream begins; the default is milliseconds.
            options["movie_timescale"] = str(_fine(source.time_base.denominator))
        elif muxer in ("matroska", "webm"):
            options["default_mode"] = "passthrough"  # keep the source's own default flags
        try:
            self.file = av.open(
                "file:" + os.path.abspath(os.fspath(target)),
                "w",
                format=muxer,
                container_options=options,
                metadata_errors="surrogateescape",
            )
            self.video = add_video(self.file)
            if streams:
                self._copy_from(cut)
            if source.matrix is not None:
                self.video.set_display_matrix(source.matrix)
            self.file.metadata.update(self._tags)
            self.file.start_encoding()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self.abandon()
            raise MediaError(f"cannot be written: {reason(error)}") from None
        except BaseException:
            self.abandon()
            raise

    def _copy_from(self, cut: tuple[Fraction, Fraction | None]) -> None:
        copier = _Copier(self.source, self.file, self.muxer, cut, self._stack)
        self.dropped += copier.dropped
        copier.dropped.clear()
        original = copier.container.streams[self.source.stream]
        self.video.metadata.update(_tags(original.metadata))
        self.video.disposition = original.disposition
        chapters = _cut_chapters(copier.container.chapters(), cut)
        if chapters:
            self.file.set_chapters(chapters)
        self._chapters = len(chapters)
        self._copier = copier

    def mux(self, packets: Iterable[Any]) -> None:
        """Write packets of the video stream, and before each what else is due by then."""
        for packet in packets:
            if self._copier is not None:
                due = packet.dts if packet.dts is not None else packet.pts
                self._copier.until(due * packet.time_base)
            self.file.mux(packet)

    def finish(self) -> None:
        """Copy the rest, close the file, and look at what is in it."""
        with self._stack:
            if self._copier is not None:
                self._copier.until(None)
                self.dropped += self._copier.dropped
            expected = len(self.file.streams)
            self.file.close()
        if self._copier is not None:
            self._compare(expected)

    def abandon(self) -> None:
        """Let go of the file, which is worthless."""
        self._stack.close()
        with suppress(Exception):
            self.file.close()

    def _compare(self, expected: int) -> None:
        """Name what was given to the muxer and is not there."""
        with open_file(self.target) as file, open_input(file) as written:
            found = {key.lower(): value for key, value in written.metadata.items()}
            lost = [key for key, value in self._tags.items() if found.get(key.lower()) != value]
            if lost:
                self.dropped.append(f"{self.muxer} does not hold the tags {', '.join(lost)}")
            if len(written.streams) < expected:
                gone = expected - len(written.streams)
                self.dropped.append(f"{gone} of {expected} streams had nothing in them")
            if len(written.chapters()) < self._chapters:
                self.dropped.append(f"{self.muxer} does not hold all of the chapters")


def _fine(rate: int) -> int:
    """A multiple of a rate that is at least 10,000, as the MP4 muxer chooses for a track."""
    while rate < 10_000:
        rate *= 2
    return rate


def _part_container(plan: Encoding) -> str:
    """What a part is written in: it must keep times exactly, which Matroska does not."""
    return {"ffv1": "nut", "prores_ks": "mov"}.get(plan.encoder, "mp4")


def _cut_chapters(chapters: list[Any], cut: tuple[Fraction, Fraction | None]) -> list[Any]:
    """The chapters, or what is left of them between two times, counted from the first of these."""
    kept = []
    for chapter in chapters:
        base = chapter["time_base"]
        begin = max(chapter["start"] * base, cut[0]) - cut[0]
        end = chapter["end"] * base
        end = (end if cut[1] is None else min(end, cut[1])) - cut[0]
        if begin < end:
            kept.append({**chapter, "start": round(begin / base), "end": round(end / base)})
    return kept


class VideoWriter:
    """Encodes frames into a file and copies every other stream of the source beside them.

    ``target`` is written as it is (give it a temporary name and rename it afterwards), in
    ``container`` whatever its suffix. ``source`` gives times, colours, tags and the other streams.
    ``plan`` (from :func:`plan_encoding`) or its arguments say how. ``cut`` is (start, end) in
    seconds from the first frame, as VideoReader's start and end: the other streams are cut with
    the pictures, and what is left begins when the source did. ``part=True`` writes the pictures
    alone, for :func:`join`; ``tags`` are added to the source's.

    On a clean exit the encoder is flushed, the rest is copied and the file is closed; ``dropped``
    then has a sentence for each thing that the output does not have, ``frames`` and ``duration``
    (seconds) say what :func:`verify` should find. After an exception the file is worthless.
    Raises Refusal as plan_encoding does, MediaError when writing fails.
    """

    def __init__(
        self,
        target: Path,
        source: VideoInfo,
        *,
        container: str = "",
        codec: str | None = None,
        crf: int | None = None,
        preset: str | None = None,
        pix_fmt: str | None = None,
        options: Mapping[str, str] | None = None,
        scale: int = 1,
        plan: Encoding | None = None,
        cut: tuple[float, float | None] = (0, None),
        part: bool = False,
        tags: Mapping[str, str] | None = None,
        threads: int = 0,
    ) -> None:
        self.plan = plan or plan_encoding(
            source,
            container=container,
            codec=codec,
            crf=crf,
            preset=preset,
            pix_fmt=pix_fmt,
            options=options,
            scale=scale,
        )
        self.source, self.target, self.frames = source, target, 0
        self._first: int | None = None  # pts of the first and the last frame
        self._last = 0
        self._lasts = 0  # how long the last frame is shown
        self._first_dts, self._coded = 0, False
        self._reformatter = VideoReformatter()
        self._matrix, self._range = colours(self.plan, source)
        self._fields = _FieldMark(source, self.plan) if self.plan.interlaced else None
        self._step = max(1, round(1 / (source.frame_rate * source.time_base)))
        self._shift, span = _cut(source, cut)

        def add_video(file: Any) -> Any:
            stream = file.add_stream(self.plan.encoder, rate=source.frame_rate)
            _configure(stream.codec_context, self.plan, source, threads)
            stream.time_base = source.time_base
            return stream

        self._out = _Output(
            target,
            source,
            _part_container(self.plan) if part else self.plan.container,
            tags=tags or {},
            cut=span,
            streams=not part,
            add_video=add_video,
        )
        self.dropped: list[str] = [*self.plan.notes, *self._out.dropped]
        self._out.dropped.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._out.abandon()

    @property
    def duration(self) -> float:
        """Seconds from the beginning of the first to the end of the last frame written."""
        ticks = self._last + self._lasts - (self._first or 0)
        return float(ticks * self.source.time_base)

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
        frame = self._convert(image)
        frame.pts, frame.time_base, frame.duration = pts, self.source.time_base, self._lasts
        try:
            self._mux(self._out.video.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"cannot be written: {reason(error)}") from None
        self.frames += 1

    def _mux(self, packets: list[Any], last: bool = False) -> None:
        if packets and not self._coded:
            self._first_dts, self._coded = packets[0].dts, True
        if packets and last:
            # MP4 adds up the times between packets in coding order, and where frames are reordered
            # the last packet is not the last frame: by its own duration the track would be short.
            whole = self._last + self._lasts - (self._first or 0)
            packets[-1].duration = max(1, whole - (packets[-1].dts - self._first_dts))
        self._out.mux(packets)

    def close(self) -> None:
        """Flush the encoder, copy what is left of the other streams, close the file."""
        try:
            self._mux(self._out.video.encode(None), last=True)
            self._out.finish()
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
            av.VideoFrame.from_ndarray(image, format=kind),
            format=self.plan.pix_fmt,
            dst_colorspace=None if self._matrix == UNSPECIFIED else self._matrix,
            dst_color_range=self._range or 1,
            interpolation=_CAREFUL,
        )


class _FieldMark:
    """Says on each frame that it is interlaced and which field is first, for the encoder."""

    def __init__(self, source: VideoInfo, plan: Encoding) -> None:
        height = plan.coded_height
        self.split = _chroma(plan.pix_fmt) == 420 and height % 4 == 0
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


def _cut(
    source: VideoInfo, cut: tuple[float, float | None]
) -> tuple[int, tuple[Fraction, Fraction | None]]:
    """What is taken off every pts, and the time in seconds from and to which streams are kept."""
    base = source.time_base
    first, (start, end) = source.start * base, cut
    shift = round(as_fraction(start) / base)
    begin = first + shift * base if shift else Fraction(0)
    return shift, (begin, None if end is None else first + as_fraction(end))


def join(
    target: Path,
    parts: Sequence[Path],
    source: VideoInfo,
    plan: Encoding,
    *,
    cut: tuple[float, float | None] = (0, None),
    tags: Mapping[str, str] | None = None,
) -> list[str]:
    """One video from parts that ``VideoWriter(..., plan=plan, part=True)`` wrote one after the
    other, without encoding again; gives the sentences of ``VideoWriter.dropped``.

    Raises MediaError when a part cannot be read or the target cannot be written.
    """
    with ExitStack() as stack:

        def opened(part: Path) -> tuple[Any, Any]:
            container = stack.enter_context(open_input(stack.enter_context(open_file(part))))
            return container, video_stream(container)

        def add_video(file: Any) -> Any:
            stream = file.add_stream_from_template(opened(parts[0])[1], opaque=True)
            if plan.container in ("mp4", "mov") and stream.codec_context.name == "hevc":
                stream.codec_context.codec_tag = "hvc1"
            return stream

        out = _Output(
            target,
            source,
            plan.container,
            tags=tags or {},
            cut=_cut(source, cut)[1],
            streams=True,
            add_video=add_video,
        )
        last: int | None = None
        try:
            for part in parts:
                with ExitStack() as inner:
                    container = inner.enter_context(
                        open_input(inner.enter_context(open_file(part)))
                    )
                    for packet in container.demux(video_stream(container)):
                        if not packet.size:
                            continue
                        # The first pictures of a part are coded before the last ones of the part
                        # before it are shown; at uneven rates that can reach too far back.
                        if last is not None and packet.dts <= last:
                            packet.dts = last + 1
                        last = packet.dts
                        packet.stream = out.video
                        out.mux([packet])
            out.finish()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            out.abandon()
            raise MediaError(f"cannot be written: {reason(error)}") from None
        except BaseException:
            out.abandon()
            raise
    return [*plan.notes, *out.dropped]


_CAREFUL = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


def verify(path: Path, frames: int, duration: float) -> None:
    """Decode a finished video again and compare it with what was meant to be in it.

    Every packet is decoded, but without deblocking and inverse transform, which change pixels
    only: a small part of what encoding cost. Raises MediaError when a frame does not decode whole,
    there are not ``frames`` of them, or they do not last ``duration`` seconds within two frames.
    """
    with open_file(path) as file, open_input(file) as container:
        stream = video_stream(container)
        stream.codec_context.options = {"skip_loop_filter": "all", "skip_idct": "all"}
        stream.codec_context.thread_type = "AUTO"
        decoded, first, finish = 0, None, 0
        try:
            for packet in container.demux(stream):
                if packet.pts is not None:
                    first = packet.pts if first is None else min(first, packet.pts)
                    finish = max(finish, packet.pts + (packet.duration or 0))
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise MediaError("a frame of the written video does not decode whole")
                    decoded += 1
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"the written video does not decode: {reason(error)}") from None
        if decoded != frames:
            raise MediaError(f"the written video has {decoded} frames instead of {frames}")
        lasts = float((finish - (first or 0)) * stream.time_base)
        step = float(1 / (stream.average_rate or 25))
        if abs(lasts - duration) > 2 * step + 0.05:
            raise MediaError(f"the written video lasts {lasts:.2f} s instead of {duration:.2f} s")
