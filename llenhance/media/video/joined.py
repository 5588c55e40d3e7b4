"""Recordings that were put together by writing one file after the other, as MPEG streams are.

The times of each part begin anew. Players show one part after the other, so later parts are moved
to where the pictures of the part before them end, and their sound by as much. A single time that
is far from those around it is damage, and begins no part.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

_FORMATS = ("mpegts", "mpeg")
_STEP = Fraction(1, 2)  # seconds that a time has to lie back for a part to begin
_FAR = 10  # seconds between two pictures that make the time of the later one doubtful
_MOST = 500  # packets that wait for the pictures of their part


def may_be_joined(container: Any) -> bool:
    return container.format.name in _FORMATS


def continuous(packets: Iterator[Any], video: Any) -> Iterator[Any]:
    """The packets of ``video``, and of other streams beside it, with times that go on.

    What FFmpeg raises passes through.
    """
    shifts = [Fraction(0)]  # seconds that are added to the times of the last parts, two at most
    now: Fraction | None = None  # when the last picture so far ends, in coding order
    latest: dict[int, Fraction] = {}  # of the other streams
    waiting: list[Any] = []

    def placed(packet: Any) -> bool:
        """Move a packet that is no picture; False where it seems to be of a part to come."""
        time = packet.dts * packet.time_base
        here = time if now is None else now
        shift = min(reversed(shifts), key=lambda shift: abs(time + shift - here))
        index = packet.stream.index
        if time + shift < latest.get(index, time + shift) - _STEP and len(waiting) < _MOST:
            return False
        if time + shift < here + _FAR:
            latest[index] = time + shift
        _move(packet, shift)
        return True

    def picture(packet: Any) -> Any:
        """A packet of ``video``, moved."""
        nonlocal shifts, now
        time = packet.dts * packet.time_base
        if now is not None and time + shifts[-1] < now - _STEP:
            shifts = [shifts[-1], now - time]
        now = time + shifts[-1] + (packet.duration or 0) * packet.time_base
        _move(packet, shifts[-1])
        return packet

    doubtful: Any = None  # a picture that waits for the next one
    for packet in packets:
        if packet.dts is None:
            if doubtful is not None:
                yield picture(doubtful)
                doubtful = None
            yield packet
        elif packet.stream.index != video.index:
            if waiting or not placed(packet):
                waiting.append(packet)
            else:
                yield packet
        else:
            time = packet.dts * packet.time_base + shifts[-1]
            follows = now is None or now - _STEP <= time <= now + _FAR
            if doubtful is not None:
                if follows:
                    doubtful.dts = doubtful.pts = None  # as if it had no time
                    yield doubtful
                else:
                    yield picture(doubtful)
                doubtful = None
            elif not follows:
                doubtful = packet
                continue
            yield picture(packet)
        while waiting and placed(waiting[0]):
            yield waiting.pop(0)
    if doubtful is not None:
        yield picture(doubtful)
    for packet in waiting:
        _move(packet, shifts[-1])
        yield packet


def _move(packet: Any, shift: Fraction) -> None:
    if shift:
        ticks = round(shift / packet.time_base)
        packet.dts += ticks
        packet.pts = None if packet.pts is None else packet.pts + ticks
