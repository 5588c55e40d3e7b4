"""PyAV's frames with the times at which they are shown, and the fields of interlaced ones."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ...errors import MediaError
from .joined import STEP, continuous, may_be_joined
from .opening import reason


def decode(
    container: Any, stream: Any, tell: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[int, Any]]:
    """(pts, frame) in presentation order; (pts, None) for a frame that could not be decoded.

    ``tell`` is told at the end of frames that were left out because their times step back.

    A packet whose frame does not come out counts as lost only after the decoder complained:
    without a complaint it was meant to be invisible (VP8 reference frames), or it refers to what
    comes before a clip that was cut out of a longer one, and no player shows it.
    """
    expected = _Numbered(stream) if container.format.name == "avi" else _Expected()
    following = behind = 0
    latest: int | None = None
    joined = may_be_joined(container)
    packets = continuous(container, stream) if joined else container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"cannot be read to its end: {reason(error)}") from None
        if packet is None:
            break
        expected.sent(packet)
        try:
            frames = packet.decode()
        except av.error.EOFError:
            frames = []
        except (av.error.FFmpegError, OSError):
            frames = []
            for lost in expected.complained():
                yield lost, None
        for frame in frames:
            # A bare stream without a container has no times: count.
            pts = expected.shown(following if frame.pts is None else frame.pts, frame)
            step = frame.duration or round(1 / ((stream.average_rate or 25) * stream.time_base))
            following = pts + max(1, step)
            if latest is not None and pts < latest:
                # After damage a decoder may give a frame late. More is another clock.
                behind += (latest - pts) * stream.time_base > STEP
                continue
            latest = pts
            for lost in expected.passed(pts):
                yield lost, None
            if frame.key_frame:
                expected.broken = False
            yield pts, frame
    for lost in expected.rest():
        yield lost, None
    if behind:
        tell(f"{behind} frames are left out: their times lie before those of earlier ones")


class _Expected:
    """The times of packets whose frames have not come out; ``broken`` since the last complaint."""

    def __init__(self) -> None:
        self.waiting: list[int] = []  # a heap
        self.broken = False

    def sent(self, packet: Any) -> None:
        """The decoder has been given a packet."""
        self._await(packet, packet.pts)

    def complained(self) -> list[int]:
        """It could not decode something: what is known to be lost by that."""
        self.broken = True
        return []

    def shown(self, pts: int, frame: Any) -> int:  # noqa: ARG002
        """When a frame that it gave, with this time, is shown."""
        return pts

    def passed(self, pts: int) -> list[int]:
        """The times before that of a frame at which one was lost."""
        lost = []
        while self.waiting and self.waiting[0] < pts:
            lost.append(heapq.heappop(self.waiting))
        while self.waiting and self.waiting[0] == pts:
            heapq.heappop(self.waiting)
        return lost if self.broken else []

    def rest(self) -> list[int]:
        """Those at which one was lost after the last frame."""
        return sorted(self.waiting) if self.broken else []

    def _await(self, packet: Any, stamp: int | None) -> None:
        if packet.size and stamp is not None and not packet.is_discard:
            heapq.heappush(self.waiting, stamp)


class _Numbered(_Expected):
    """The same of an AVI, which stores no presentation times.

    The n-th frame shown has the n-th time there is, from the first frame's on: what FFmpeg guesses
    is out of order where frames are reordered. Frames and complaints come in one order. A chunk may
    have no picture and say that the one before it is shown on; its time is passed over.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._index = _avi_index(stream)
        self._next: int | None = None  # number of the chunk that comes next
        self._missing: list[int] = []  # numbers of those that were not found, in order
        self._offset: int | None = None  # the first frame's time less its number
        self._lost: list[int] = []  # times, until a frame has passed them
        self._context = stream.codec_context
        self._context.copy_opaque = True  # a frame tells which chunk it came from
        self._inside: list[int] = []  # numbers of chunks that gave nothing so far, in order

    def sent(self, packet: Any) -> None:
        stamp = packet.dts
        if packet.size and packet.pos in self._index:
            stamp = self._index[packet.pos]
            self._missing += range(stamp if self._next is None else self._next, stamp)
            self._next = stamp + 1
        before = len(self.waiting)
        self._await(packet, stamp)
        if len(self.waiting) > before:
            self._inside.append(stamp)
            packet.opaque = stamp

    def complained(self) -> list[int]:
        self.broken = True
        if not self.waiting:
            return []
        del self._inside[:1]
        number = heapq.heappop(self.waiting)
        return [*self._missing_before(number), number + (self._offset or 0)]

    def shown(self, pts: int, frame: Any) -> int:
        passed_over = self._without_picture(frame.opaque)
        if not self.waiting:
            return pts
        number = heapq.heappop(self.waiting)
        if self._offset is None:
            self._offset = pts - number
        self._lost += self._missing_before(number)
        if self.broken:
            self._lost = sorted([*self._lost, *(n + self._offset for n in passed_over)])
        return number + self._offset

    def _without_picture(self, chunk: Any) -> list[int]:
        """The times, which are taken from those that wait, of chunks that gave no frame and will
        give none any more now that ``chunk`` has given one."""
        if chunk not in self._inside:
            del self._inside[:1]
            return []
        at = self._inside.index(chunk)
        # As many of the earlier ones as a decoder holds back may still give theirs.
        surplus = max(0, at - self._context.reorder_depth)
        self._inside = self._inside[surplus:at] + self._inside[at + 1 :]
        return [heapq.heappop(self.waiting) for _ in range(surplus)]

    def passed(self, pts: int) -> list[int]:  # noqa: ARG002
        lost, self._lost = self._lost, []
        return lost

    def rest(self) -> list[int]:
        return [number + (self._offset or 0) for number in super().rest()]

    def _missing_before(self, number: int) -> list[int]:
        times = []
        while self._missing and self._missing[0] < number:
            times.append(self._missing.pop(0) + (self._offset or 0))
        return times


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
