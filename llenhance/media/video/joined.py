"""Recordings that were put together by writing one file after the other, as MPEG streams are.

The times of each part begin anew, before those of the last one or far after them. Players show one
part after the other, so later parts are moved to where the pictures of the part before them end,
and their sound by as much. A single time that is far from those around it is damage, and begins no
part; nor do pictures that were missing for a while, if the sound went on meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

_FORMATS = ("mpegts", "mpeg")
STEP = Fraction(1, 2)  # seconds that a time has to lie back for a part to begin
_FAR = 10  # seconds between two pictures that make the time of the later one doubtful
_ON = 1  # seconds between packets of a sound that goes on
_MOST = 500  # packets that wait for the pictures of their part


def may_be_joined(container: Any) -> bool:
    return container.format.name in _FORMATS


def continuous(container: Any, video: Any, others: Iterable[Any] = ()) -> Iterator[Any]:
    """The packets of ``video``, and of ``others`` beside it, with times that go on.

    Sound is listened to whether it is among the others or not, so that pictures have one time
    whoever reads them. What FFmpeg raises passes through.
    """
    wanted = {stream.index: stream for stream in (video, *others)}
    read = {stream.index: stream for stream in container.streams.audio} | wanted
    shifts = [Fraction(0)]  # seconds that are added to the times of the last parts, two at most
    now: Fraction | None = None  # when the last picture so far ends, in coding order
    began: Fraction | None = None  # and when it begins
    step = 1 / Fraction(video.average_rate or 25)  # seconds from one picture to the next
    heard: Fraction | None = None  # how far the sound goes on from there
    latest: dict[int, Fraction] = {}  # of the other streams
    waiting: list[Any] = []

    def nearest(time: Fraction) -> Fraction:
        """The shift of the part that a packet which is no picture seems to be of."""
        here = time if now is None else now
        return min(reversed(shifts), key=lambda shift: abs(time + shift - here))

    def end() -> Fraction | None:
        """When pictures and sound end so far."""
        return now if now is None or heard is None else max(now, heard)

    def hear(packet: Any) -> None:
        nonlocal heard
        time = packet.dts * packet.time_base
        time += nearest(time)
        so_far = end()
        if so_far is not None and so_far < time < so_far + _ON:
            heard = time

    def placed(packet: Any) -> bool:
        """Move a packet that is no picture; False where it seems to be of a part to come."""
        time = packet.dts * packet.time_base
        shift = nearest(time)
        index, so_far = packet.stream.index, end()
        steps_back = time + shift < latest.get(index, time + shift) - STEP
        ahead = so_far is not None and time + shift >= so_far + _FAR
        if (steps_back or ahead) and len(waiting) < _MOST:
            return False
        if not ahead:
            latest[index] = time + shift
        _move(packet, shift)
        return True

    def picture(packet: Any, begins: bool = False) -> Any:
        """A packet of ``video``, moved; ``begins``: a part begins with it."""
        nonlocal shifts, now, began, step, heard
        time = packet.dts * packet.time_base
        if now is not None and (begins or time + shifts[-1] < now - STEP):
            shifts = [shifts[-1], now - time]
            heard = None
        elif began is not None and 0 < time + shifts[-1] - began < STEP:
            step = time + shifts[-1] - began
        began = time + shifts[-1]
        # Not all streams tell how long a picture lasts.
        now = began + (packet.duration * packet.time_base if packet.duration else step)
        if packet.pts is not None and abs(packet.pts - packet.dts) * packet.time_base > _FAR:
            packet.pts = None  # the last one of a part may be given the time of the next part
        _move(packet, shifts[-1])
        return packet

    doubtful: Any = None  # a picture that waits for the next one
    for packet in container.demux(list(read.values())):
        index = packet.stream.index
        if packet.dts is None:
            if doubtful is not None and index == video.index:
                yield picture(doubtful)
                doubtful = None
            if index in wanted:
                yield packet
        elif index != video.index:
            if packet.stream.type == "audio":
                hear(packet)
            if index not in wanted:
                continue
            if waiting or not placed(packet):
                waiting.append(packet)
            else:
                yield packet
        else:
            time = packet.dts * packet.time_base + shifts[-1]
            so_far = end()
            follows = now is None or so_far is None or now - STEP <= time <= so_far + _FAR
            if doubtful is not None:
                apart = (packet.dts - doubtful.dts) * packet.time_base
                if follows:
                    doubtful.dts = doubtful.pts = None  # as if it had no time
                    yield doubtful
                else:
                    yield picture(doubtful, begins=-STEP <= apart <= _FAR)
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
