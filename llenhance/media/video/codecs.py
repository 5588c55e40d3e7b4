"""The encoders: which are here, how each is asked for quality and speed, what each holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any

import av

from ...errors import Refusal
from .info import VideoInfo

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


CODECS: Mapping[str, Codec] = {
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


def usable(encoder: str) -> bool:
    """Whether the encoder is in this build and its hardware answers."""
    try:
        context: Any = av.CodecContext.create(encoder, "w")
        formats = [entry.name for entry in context.codec.video_formats or []]
        context.width, context.height = 320, 240
        context.pix_fmt = next((name for name in _FORMATS if name in formats), "yuv420p")
        context.time_base = Fraction(1, 25)
        context.framerate = Fraction(25)
        context.options = quiet(encoder, {})
        context.open()
    except (av.error.FFmpegError, av.codec.codec.UnknownCodecError, ValueError, OSError):
        return False
    return True


@cache
def encoders() -> tuple[str, ...]:
    """Names for ``codec`` that work here: families first, then hardware encoders."""
    families = [name for name, row in CODECS.items() if usable(row.encoder)]
    hardware = sorted(
        name
        for name in av.codecs_available
        if name.startswith(("h264_", "hevc_", "av1_", "vp9_"))
        and any(name.endswith(end) for end in _HARDWARE)
        and usable(name)
    )
    return (*families, *hardware)


def default_codec(container: str, source: VideoInfo) -> str:
    """The codec where none is asked for: the one that most players of that container know."""
    if container == "webm":
        return "av1" if source.bit_depth > 8 else "vp9"  # this VP9 encoder has 8 bits only
    return "hevc" if source.bit_depth > 8 else "h264"


def codec_row(name: str) -> Codec:
    """The row for a codec or encoder name; Refusal, with those that are there, for another."""
    row = CODECS.get(name) or next((r for r in CODECS.values() if r.encoder == name), None)
    if row is None:
        end = next((end for end in _HARDWARE if name.endswith(end)), None)
        row = None if end is None else replace(_HARDWARE[end], encoder=name)
    if row is None or not usable(row.encoder):
        raise Refusal(f"no encoder {name!r} here; there are {', '.join(encoders())}")
    return row


def chroma_of(pixel_format: str) -> int:
    """420, 422 or 444, for how much colour a pixel format holds (RGB: 420, the common choice)."""
    kind = av.VideoFormat(pixel_format, 64, 64)
    if kind.is_rgb or kind.has_palette or len(kind.components) < 3:
        return 420
    across, down = 64 // kind.components[1].width, 64 // kind.components[1].height
    return {(1, 1): 444, (2, 1): 422}.get((across, down), 444 if across == 1 else 420)


def nearest_format(encoder: str, source: VideoInfo) -> str:
    """The encoder's format nearest to the source's: no fewer bits first, then no less colour."""
    chroma, bits = chroma_of(source.pixel_format), source.bit_depth
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


def add_parameters(options: dict[str, str], key: str, values: list[str]) -> None:
    """Add to a colon-separated list of an encoder's own parameters; the user's come last."""
    options[key] = ":".join([*values, *([options[key]] if key in options else [])])


def quiet(encoder: str, options: dict[str, str]) -> dict[str, str]:
    if encoder == "libx265":  # writes to stderr itself
        add_parameters(options, "x265-params", ["log-level=none"])
    return options
