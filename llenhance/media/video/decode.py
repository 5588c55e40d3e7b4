"""PyAV's frames with the times at which they are shown, and the fields of interlaced ones."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ...errors import MediaError
from .joined import continuous, may_be_joined
from .opening import reason


def decode(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """(pts, frame) in presentation order; (pts, None) for a frame that could not be decoded.

    A packet whose frame does not come out counts as lost only after the decoder complained:
    without a complaint it was meant to be invisible (VP8 reference frames), or it refers to what
    comes before a clip that was cut out of a longer one, and no player shows it.
    """
    waiting: list[int] = []  # pts of packets whose frames have not come out, a heap
    broken = False
    following: int | None = None
    latest: int | None = None
    # AVI stores no presentation times: the n-th frame shown has the n-th time there is, from the
    # first frame's on. What FFmpeg guesses is out of order where frames are reordered.
    counted = container.format.name == "avi"
    offset: int | None = None
    index = _avi_index(stream) if counted else {}
    chunk: int | None = None  # the number of the last one
    missing: list[int] = []  # numbers of those that were not found, in order
    packets = container.demux(stream)
    if may_be_joined(container):
        packets = continuous(packets, stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"cannot be read to its end: {reason(error)}") from None
        if packet is None:
            break
        stamp = packet.dts if counted else packet.pts
        if counted and packet.size and packet.pos in index:
            stamp = index[packet.pos]
            missing += range(stamp if chunk is None else chunk + 1, stamp)
            chunk = stamp
        if packet.size and stamp is not None and not packet.is_discard:
            heapq.heappush(waiting, stamp)
        try:
            frames = packet.decode()
        except av.error.EOFError:
            frames = []
        except (av.error.FFmpegError, OSError):
            frames, broken = [], True
            if counted and waiting:  # frames and complaints come in one order
                lost = heapq.heappop(waiting)
                while missing and missing[0] < lost:
                    yield missing.pop(0) + (offset or 0), None
                yield lost + (offset or 0), None
        for frame in frames:
            pts = frame.pts
            if pts is None:  # a bare stream without a container has no times: count
                pts = following or 0
            step = frame.duration or round(1 / ((stream.average_rate or 25) * stream.time_base))
            if counted and waiting:
                if offset is None:
                    offset = pts - waiting[0]
                while missing and missing[0] < waiting[0]:
                    yield missing.pop(0) + offset, None
                pts = heapq.heappop(waiting) + offset
            following = pts + max(1, step)
            if latest is not None and pts < latest:
                continue  # after damage a decoder may give a frame late; its time has passed
            latest = pts
            while not counted and waiting and waiting[0] < pts:
                lost = heapq.heappop(waiting)
                if broken:
                    yield lost, None
            while not counted and waiting and waiting[0] == pts:
                heapq.heappop(waiting)
            if frame.key_frame:
                broken = False
            yield pts, frame
    while broken and waiting:
        yield heapq.heappop(waiting) + (offset or 0), None


def _avi_index(stream: Any) -> dict[int, int]:
    """Where the index of an AVI says that a frame's bytes begin, and the frame's number.

    The demuxer goes by it only when it seeks: else it counts what it finds, and a chunk whose head
    is damaged is not found. Empty where there is no index, or one with frames left empty.
    """
    entries = stream.index_entries
    found = {entry.pos + 8: entry.timestamp for entry in entries if entry.size}
    return found if sorted(found.values()) == list(range(len(entries))) else {}


def has_halved_rows(frame: Any) -> bool:
    """Whether the colour planes have half the rows, so that each row belongs to one field only."""
    parts = frame.format.components
    return len(parts) > 2 and parts[1].height * 2 == parts[0].height


def is_top_first(frame: Any) -> bool:
    """Which field of an interlaced frame is shown first, where only the frame says it.

    PyAV does not give that flag; but a copy has it too, and a filter goes by it.
    """
    try:
        copy = frame.reformat(width=16, height=16, format="gray")
    except (av.error.FFmpegError, OSError, ValueError):
        return True
    (plane,) = copy.planes
    rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
    rows[1::2] = 255
    plane.update(rows.tobytes())
    copy.pts = 0
    graph = av.filter.Graph()
    entry = graph.add_buffer(width=16, height=16, format=copy.format, time_base=Fraction(1, 25))
    fields, way_out = graph.add("separatefields"), graph.add("buffersink")
    entry.link_to(fields)
    fields.link_to(way_out)
    graph.configure()
    entry.push(copy)
    field: Any = way_out.pull()
    return bool(_rows(field.planes[0])[0, 0] == 0)


def _rows(plane: Any) -> NDArray[np.uint8]:
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height]


def split_fields(frame: Any) -> tuple[Any, Any]:
    """The even and the odd rows of an interlaced frame as two frames: a colour row lies between
    the brightness rows of its own field, and conversion must not mix the two moments."""
    fields = []
    for row in range(2):
        part = av.VideoFrame(frame.width, frame.height // 2, frame.format.name)
        for source, target in zip(frame.planes, part.planes, strict=True):
            width = min(source.line_size, target.line_size)
            rows = np.zeros((target.buffer_size // target.line_size, target.line_size), np.uint8)
            rows[: target.height, :width] = _rows(source)[row::2, :width]
            target.update(rows.tobytes())
        part.colorspace, part.color_range = frame.colorspace, frame.color_range
        fields.append(part)
    return fields[0], fields[1]


def weave_fields(top: Any, bottom: Any) -> Any:
    """The inverse of :func:`split_fields`."""
    frame = av.VideoFrame(top.width, top.height * 2, top.format.name)
    for row, part in enumerate((top, bottom)):
        for source, target in zip(part.planes, frame.planes, strict=True):
            width = min(source.line_size, target.line_size)
            rows = np.frombuffer(memoryview(target), np.uint8).reshape(-1, target.line_size).copy()
            rows[: target.height][row::2, :width] = _rows(source)[:, :width]
            target.update(rows.tobytes())
    return frame
