"""Small video files for the tests, made with PyAV alone.

Every clip shows a dark picture with a bright bar that moves four pixels a frame, so that a lost,
doubled or swapped frame is seen, and a bright corner at the top left, so that a wrong turn is.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

RATE = 25
SECOND = Fraction(1)


def picture(index: int, width: int = 160, height: int = 96) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: the frame with this number."""
    y, x = np.mgrid[:height, :width]
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = 20 + 40 * x // width
    image[..., 1] = 20 + 40 * y // height
    image[..., 2] = 30
    left = 32 + 4 * index % max(1, width - 64)
    image[height // 2 :, left : left + 16] = (60, 120, 60)
    image[:16, :24] = (200, 60, 40)
    return image


def position(image: NDArray[Any]) -> int:
    """The number of the frame that a picture shows, from where its bar is (upright, 160 wide)."""
    row = image[image.shape[0] * 3 // 4, :, 1].astype(float)
    return round((float(np.average(np.arange(row.size), weights=row > 0.7 * row.max())) - 39.5) / 4)


def clip(
    path: Path,
    *,
    frames: int = 20,
    codec: str = "libx264",
    container: str | None = None,
    size: tuple[int, int] = (160, 96),
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, RATE),
    options: dict[str, str] | None = None,
    gop: int = 10,
    aspect: Fraction | None = None,
    rotation: int = 0,
    mirrored: bool = False,
    colour: tuple[int, int, int, int] = (1, 1, 1, 1),
    audio: Sequence[str] = (),
    audio_start: float = 0.0,
    audio_seconds: float | None = None,
    subtitles: Sequence[tuple[float, float, str]] = (),
    chapters: Sequence[tuple[float, float, str]] = (),
    attachments: Sequence[tuple[str, str, bytes]] = (),
    tags: dict[str, str] | None = None,
    languages: Sequence[str] = ("eng", "deu", "fra"),
    deep: bool = False,
    container_options: dict[str, str] | None = None,
    last: float | None = None,
) -> Path:
    """Write a clip. ``times``: the pts of each frame in ``time_base``; ``colour``: primaries,
    transfer, matrix, range; ``audio``: the codec of each track (a sine of another pitch each);
    ``deep``: frames from 16-bit pictures; ``last``: seconds that the last frame is shown, without
    frames that are reordered."""
    width, height = size
    with av.open(str(path), "w", format=container, container_options=container_options) as out:
        stream = out.add_stream(codec, rate=RATE)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, pix_fmt
        context.time_base = time_base
        context.gop_size = gop
        context.thread_count = 1
        if codec == "libx265":
            options = {"x265-params": "log-level=none", **(options or {})}
        if last is not None:
            options = {"bf": "0", **(options or {})}
        context.options = options or {}
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        context.color_primaries, context.color_trc = colour[:2]
        context.colorspace, context.color_range = colour[2:]
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        tracks = []
        for index, name in enumerate(audio):
            track = out.add_stream(name, rate=48000)
            track.codec_context.layout = "mono"
            track.metadata["language"] = languages[index]
            track.metadata["title"] = f"Track {index}"
            tracks.append(track)
        words = None
        if subtitles:
            words = out.add_mux_stream("subrip")
            words.time_base = Fraction(1, 1000)
            words.metadata["language"] = "eng"
        for name, kind, data in attachments:
            out.add_attachment(name, kind, data)
        if chapters:
            base = Fraction(1, 1000)
            out.set_chapters(
                [
                    {
                        "id": number,
                        "start": round(begin * 1000),
                        "end": round(end * 1000),
                        "time_base": base,
                        "metadata": {"title": title},
                    }
                    for number, (begin, end, title) in enumerate(chapters)
                ]
            )
        out.metadata.update(tags or {})
        stamps = list(times) if times is not None else None
        if stamps is None:
            stamps = [round(index / (RATE * time_base)) for index in range(frames)]
        step = round(1 / (RATE * time_base))
        packets: list[Any] = []
        for index, pts in enumerate(stamps):
            image = picture(index, width, height)
            if deep:
                frame = av.VideoFrame.from_ndarray(image.astype(np.uint16) * 257, "rgb48le")
            else:
                frame = av.VideoFrame.from_ndarray(image, "rgb24")
            matrix = colour[2] if colour[2] not in (0, 2) else None
            if pix_fmt.startswith("yuv"):
                frame = frame.reformat(
                    format=pix_fmt, dst_colorspace=matrix, dst_color_range=colour[3] or 1
                )
            frame.pts, frame.time_base, frame.duration = pts, time_base, step
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if last is not None:
            packets[-1].duration = round(last / time_base)
        seconds = float((max(stamps, default=0) - min(stamps, default=0) + step) * time_base)
        for index, track in enumerate(tracks):
            packets += _tone(track, 300 * (index + 1), audio_seconds or seconds, audio_start)
        for begin, end, text in subtitles:
            packet = av.Packet(text.encode())
            packet.stream, packet.time_base = words, Fraction(1, 1000)
            packet.pts = packet.dts = round(begin * 1000)
            packet.duration = round((end - begin) * 1000)
            packet.is_keyframe = True
            packets.append(packet)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        out.start_encoding()
        out.mux(packets)
    return path


def two_fields(path: Path) -> Path:
    """Interlaced frames of 64 x 64 pixels, whose even rows are red and whose odd ones are green."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg2video", rate=RATE)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = 64, 64, "yuv420p"
        context.options = {"flags": "+ildct+ilme", "qscale": "1"}
        for pts in range(4):
            frame = av.VideoFrame(64, 64, "yuv420p")
            for plane, values in zip(frame.planes, ((82, 145), (90, 54), (240, 34)), strict=True):
                rows = np.empty((plane.height, plane.line_size), np.uint8)
                rows[0::2], rows[1::2] = values
                plane.update(rows.tobytes())
            frame.pts = pts
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def _tone(track: Any, pitch: int, seconds: float, start: float) -> list[Any]:
    context = track.codec_context
    context.open()
    size, packets = context.frame_size or 1024, []
    kind = context.format.name
    for at in range(0, round(seconds * 48000), size):
        wave = 0.3 * np.sin(2 * np.pi * pitch * (at + np.arange(size)) / 48000)
        if kind.startswith("s16"):
            data = (wave * 32767).astype(np.int16)[None]
        elif kind.startswith("s32"):
            data = (wave * (2**31 - 1)).astype(np.int32)[None]
        else:
            data = wave.astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(data, kind, "mono")
        frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
        frame.pts = at + round(start * 48000)
        packets += track.encode(frame)
    return packets + list(track.encode(None))


def audio_only(path: Path) -> Path:
    """A file with sound and no pictures."""
    with av.open(str(path), "w") as out:
        track = out.add_stream("aac", rate=48000)
        track.codec_context.layout = "mono"
        out.mux(_tone(track, 300, 0.5, 0))
    return path


def empty(path: Path) -> Path:
    """A file with a video stream in which there is no frame."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=RATE)
        stream.codec_context.width, stream.codec_context.height = 160, 96
        out.start_encoding()
    return path


def packets(path: Path, kind: str, index: int = 0) -> list[tuple[float, int, bytes]]:
    """(seconds, size, bytes) of each packet of the index-th stream of a kind, by PyAV alone."""
    with av.open(str(path)) as container:
        stream = [s for s in container.streams if s.type == kind][index]
        return [
            (float(packet.pts * packet.time_base), packet.size, bytes(packet))
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]


def decoded(path: Path) -> tuple[list[float], list[Any]]:
    """(seconds, frames) of the first video stream, by PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [float(frame.pts * frame.time_base) for frame in frames], frames


def decoded_times(path: Path, count: int) -> list[float]:
    """Seconds of the first frames of the first video stream, by PyAV alone."""
    with av.open(str(path)) as container:
        return [
            float(frame.pts * frame.time_base)
            for _, frame in zip(range(count), container.decode(video=0), strict=False)
        ]
