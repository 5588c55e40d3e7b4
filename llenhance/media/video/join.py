"""Parts of a video put together without encoding again, and a finished one decoded again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av

from ...errors import MediaError
from .info import VideoInfo
from .opening import open_file, open_input, reason, video_stream
from .plan import Encoding, colours
from .streams import Output
from .writing import cut_times


def join(
    target: Path,
    parts: Sequence[Path],
    source: VideoInfo,
    plan: Encoding,
    *,
    cut: tuple[float, float | None] = (0, None),
    tags: Mapping[str, str] | None = None,
    strip: bool = False,
    span: tuple[int, int] | None = None,
) -> list[str]:
    """One video from parts that ``VideoWriter(..., plan, part=True)`` wrote one after the
    other, without encoding again; gives the sentences of ``VideoWriter.dropped``. ``tags`` and
    ``strip`` as there, ``span`` from the first one's to the last one's: not every part can tell how
    long its last frame is shown.

    Raises MediaError when a part cannot be read or the target cannot be written.
    """
    with open_file(parts[0]) as first, open_input(first) as container:
        template = video_stream(container)

        def add_video(file: Any) -> Any:
            stream = file.add_stream_from_template(template, opaque=True)
            context = stream.codec_context
            if plan.container in ("mp4", "mov") and context.name == "hevc":
                context.codec_tag = "hvc1"
            if context.name.startswith("prores"):  # the tag tells which ProRes it is
                context.codec_tag = template.codec_context.codec_tag
            # Not all parts tell it, and Matroska then has no place for how long a frame lasts.
            context.framerate = source.frame_rate
            # NUT, which FFV1's parts are in, does not tell these, and neither does FFV1.
            context.color_primaries = source.color_primaries
            context.color_trc = source.color_transfer
            context.colorspace, context.color_range = colours(plan, source)
            stream.sample_aspect_ratio = source.sample_aspect
            return stream

        out = Output(
            target,
            source,
            plan.container,
            tags=tags or {},
            cut=cut_times(source, cut)[1],
            streams=True,
            strip=strip,
            add_video=add_video,
        )
        try:
            for packet in _packets(parts):
                packet.stream = out.video
                out.mux([packet])
            out.finish(None if span is None else (span[1] - span[0]) * source.time_base)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            out.abandon()
            raise MediaError(f"cannot be written: {reason(error)}") from None
        except BaseException:
            out.abandon()
            raise
    return [*plan.notes, *out.dropped]


def _packets(parts: Sequence[Path]) -> Iterator[Any]:
    """The packets of all parts in turn."""
    last: int | None = None
    for part in parts:
        with open_file(part) as file, open_input(file) as container:
            for packet in container.demux(video_stream(container)):
                if not packet.size:
                    continue
                # The first pictures of a part are coded before the last ones of the part before it
                # are shown; at uneven rates that can reach too far back.
                if last is not None and packet.dts <= last:
                    packet.dts = last + 1
                last = packet.dts
                yield packet


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
        # MP4 tells how long frames last in the order of decoding: not of the last one shown.
        if stream.duration and "mp4" in container.format.name:
            finish = (first or 0) + stream.duration
        lasts = float((finish - (first or 0)) * stream.time_base)
        step = float(1 / (stream.average_rate or 25))
        if abs(lasts - duration) > 2 * step + 0.05:
            raise MediaError(f"the written video lasts {lasts:.2f} s instead of {duration:.2f} s")
