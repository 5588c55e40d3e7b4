"""How an output will be encoded: settled, and tried, before the first frame."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from ...errors import Refusal
from ..files import CONTAINERS
from .codecs import (
    CODECS,
    add_parameters,
    chroma_of,
    codec_row,
    default_codec,
    encoders,
    nearest_format,
    quiet,
)
from .info import VideoInfo, is_grey
from .opening import reason


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


def hdr_options(encoder: str, source: VideoInfo, options: dict[str, str]) -> list[str]:
    """Mastering display and light level as the encoder's own parameters; sentences for losses."""
    shown = mastering_display(source.mastering_display) if source.mastering_display else None
    light = source.content_light
    notes = [f"{kind} metadata is dropped" for kind in source.per_frame]
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
        add_parameters(options, "x264-params" if encoder == "libx264" else "x265-params", values)
    elif encoder == "libsvtav1":
        if shown:
            at = [f"{float(value):.5f}" for value in shown[0]]
            values.append(
                f"mastering-display=G({at[2]},{at[3]})B({at[4]},{at[5]})R({at[0]},{at[1]})"
                f"WP({at[6]},{at[7]})L({float(shown[1]):.4f},{float(shown[2]):.4f})"
            )
        if light:
            values.append(f"content-light={light[0]},{light[1]}")
        add_parameters(options, "svtav1-params", values)
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
    row = codec_row(name)
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
    notes = hdr_options(encoder, source, chosen)
    quiet(encoder, chosen)
    offered = [entry.name for entry in av.Codec(encoder, "w").video_formats or []]
    chosen_format = pix_fmt or nearest_format(encoder, source)
    if offered and chosen_format not in offered:
        raise Refusal(f"{name} has no pixel format {chosen_format!r}; it has {', '.join(offered)}")
    kind = av.VideoFormat(chosen_format)
    bits = max(component.bits for component in kind.components)
    if bits < source.bit_depth:
        notes.append(f"{source.bit_depth} bits become {bits}, which is what {name} holds")
    chroma, had = chroma_of(chosen_format), chroma_of(source.pixel_format)
    if pix_fmt is None and chroma < had:
        before, now = (":".join(str(number)) for number in (had, chroma))
        notes.append(f"colours of {before} become {now}, which is what {name} holds")
    if source.alpha:
        notes.append("transparency is dropped")
    width, height = source.width * scale, source.height * scale
    across, down = (2, 2) if chroma_of(chosen_format) == 420 else (2, 1)
    if row.odd or kind.is_rgb or chroma_of(chosen_format) == 444:
        across = down = 1
    coded_width, coded_height = -(-width // across) * across, -(-height // down) * down
    if (coded_width, coded_height) != (width, height):
        notes.append(
            f"{width}x{height} becomes {coded_width}x{coded_height}: {name} holds even sizes only, "
            "so the last row or column is there twice"
        )
    shape = source.sample_aspect
    if shape != 1 and muxer in ("matroska", "webm") and name not in ("h264", "hevc"):
        # Matroska has a field for it, which PyAV cannot fill; these two tell it by themselves.
        notes.append(
            f"pixels of {shape.numerator}:{shape.denominator} become square: {name} in {muxer} does"
            " not tell their shape"
        )
    interlaced = source.has_fields and scale == 1 and encoder in ("libx264", "prores_ks")
    if encoder == "libx264" and chroma_of(chosen_format) == 420 and coded_height % 4:
        interlaced = False  # it refuses fields in which a row of colours lacks one of brightness
    if interlaced:
        chosen["flags"] = "+ildct+ilme" + chosen.get("flags", "")
        if encoder == "libx264":
            add_parameters(chosen, "x264-params", ["tff=1" if source.top_field_first else "bff=1"])
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


def configure(
    context: Any, plan: Encoding, source: VideoInfo, threads: int, container: str = ""
) -> None:
    """Size, times, colours and options of an encoder; ``container``: if not the plan's."""
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
    container = container or plan.container
    if container in ("mp4", "mov") and context.codec.canonical_name == "hevc":
        context.codec_tag = "hvc1"  # the only one that Apple's players take
    if threads:
        context.thread_count = threads
    context.options = dict(plan.options)


def colours(plan: Encoding, source: VideoInfo) -> tuple[int, int]:
    """(matrix, range) of the output."""
    matrix, levels = source.color_matrix, source.color_range
    if av.VideoFormat(plan.pix_fmt).is_rgb:
        return 0, 2
    if is_grey(plan.pix_fmt):  # what RGB becomes then, whichever range is asked for
        return matrix or 1, 2
    if matrix == 0:  # the source was RGB: what a player would guess must be said
        return 1, 1
    if plan.encoder == "prores_ks":  # has no place for the range, and is read as the limited one
        return matrix, 1
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
    configure(context, plan, source, 1)
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
    row = CODECS.get(codec)
    out = av.open(io.BytesIO(), "w", format=container)
    try:
        out.add_stream(row.encoder if row else codec, rate=25)
    except (ValueError, av.error.FFmpegError):
        return False
    return True
