"""Evens the enhancement of a video over time, so that a network's pumping is not seen.

How a frame was enhanced is described by a smooth tone curve that may differ from place to place:
the log gain from input to output on a coarse grid of (luma, y, x), as in the bilateral grid of
Chen, Paris, Durand, "Real-time Edge-aware Image Processing with the Bilateral Grid", SIGGRAPH
2007. A slow curve follows the frames' own curves, and each output frame is multiplied by the
smooth ratio of the two. No pixel of an earlier frame enters the picture, so nothing can smear;
what moves is looked up by its own luma and takes its gain along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import ControlError, LLEnhanceError

Depth = TypeVar("Depth", np.uint8, np.uint16)
Floats = NDArray[np.float32]

_THUMB = 160  # pixels of the long side of the small frames that gains are measured on
_CELL = 16  # of those pixels between two nodes of the grid
_LEVELS = 12  # luma nodes, 0.6 octaves apart: where it is dark, gains differ most
_BLACK = 2 / 255  # added before a logarithm; below it, a gain is noise
_FIELD = 480  # pixels of the long side of the correction, before it is enlarged

_SLOW, _FAST = 0.1, 0.6  # share of the way to a frame's own curve that the slow one goes
_TREND = 0.15  # the same, for what tells a trend from flicker
_MEMORY = 0.98  # what is left of a node's weight a frame later
_KNOWN = 60.0  # small pixels at a node by which it is half trusted
_KNOWN_LEVEL = 2000.0  # and of a luma anywhere in the frame, by which that luma is
_LOCAL = 4.0  # small pixels at a node that weigh as much as the rest of the frame
_GLOBAL = 0.01  # share of the frame at a luma that weighs as much as the other lumas
_QUIET = 2.5  # small pixels that changes are blurred over
_MOVING = 0.07  # change of log luma that is motion, unless most of the frame changes so
_FREE = 8.0  # how much sooner a place follows its own gain than its share of moving pixels
_LARGEST = 0.7  # a correction is at most this, as a natural logarithm
_JUMP = 0.35  # a change of the whole gain that is a decision if it is there twice
_CUT = 0.2  # mean change of log luma that is a scene cut, unless the clip moved so before


class Stabilizer:
    """Call it with each input frame and its enhanced frame, in order; it returns the evened one.

    ``strength``: None (auto) takes all flicker out, and follows sooner where the gain keeps
    changing in one direction; a number takes that share of it out, from 0 (the enhanced frames
    come back as they are) to 1. There is no delay: an output depends on its own and earlier
    frames. Memory does not grow. A scene cut starts anew. Raises ControlError for another strength.
    """

    def __init__(self, strength: float | None = None) -> None:
        if strength is not None and not 0 <= strength <= 1:
            raise ControlError(f"stabilize {strength:g}: it goes from 0 to 1")
        self.strength = strength
        self.cuts = 0  # scene cuts found so far
        self._shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self._memory: dict[str, Floats] = {}

    def __call__(self, frame: NDArray[Depth], enhanced: NDArray[Depth]) -> NDArray[Depth]:
        """``frame`` (H, W, 3) and ``enhanced`` (sH, sW, 3), RGB, both uint8 or both uint16.

        Returns an array like ``enhanced``, or ``enhanced`` itself where nothing is to be done.
        Raises LLEnhanceError for other arrays. A change of size starts anew.
        """
        for array in (frame, enhanced):
            if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
                raise LLEnhanceError(f"expected a frame (H, W, 3), found {array.shape}")
        if frame.dtype not in (np.uint8, np.uint16) or enhanced.dtype != frame.dtype:
            raise LLEnhanceError(
                f"expected uint8 or uint16 twice, found {frame.dtype} and {enhanced.dtype}"
            )
        if self.strength == 0:
            return enhanced
        if self._shapes != (frame.shape, enhanced.shape):
            self._measure(frame.shape[:2], enhanced.shape[:2])
            self._shapes = (frame.shape, enhanced.shape)
            self._memory = {}

        large = _luma(frame, self._field.size)
        low = _shrink(large, self._grid.size)
        high = _shrink(_luma(enhanced, self._field.size), self._grid.size)
        log_low = np.log(low + np.float32(_BLACK))
        gain = np.log(high + np.float32(_BLACK)) - log_low
        levels = _levels(low)
        change = self._look(log_low)
        if change is None:
            self._start(gain, levels)
            return enhanced
        correction = self._follow(gain, levels, change)
        if correction is None:
            self._start(gain, levels)
            return enhanced
        if self.strength is not None:
            correction = correction * np.float32(self.strength)
        field = self._field.read(correction, _levels(large))
        if float(np.abs(field).max()) < 1e-3:  # a quarter of a level at the brightest
            return enhanced
        return self._apply(enhanced, np.exp(field))

    def state(self) -> dict[str, NDArray[Any]]:
        """All that is remembered, as arrays (for np.savez): a run that was cut off goes on from
        it with the same frames, bit for bit, as one that was not."""
        if self._shapes is None:
            return {}
        shapes = np.array(self._shapes, np.int64)
        cuts = np.array(self.cuts, np.int64)
        copies = {name: array.copy() for name, array in self._memory.items()}
        return {"shapes": shapes, "cuts": cuts, **copies}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`state` gave."""
        if not state:
            self._shapes, self._memory, self.cuts = None, {}, 0
            return
        low, high = (tuple(int(n) for n in shape) for shape in state["shapes"])
        self._measure(low[:2], high[:2])
        self._shapes = (low, high)
        self.cuts = int(state["cuts"])
        names = set(state) - {"shapes", "cuts"}
        self._memory = {name: np.array(state[name], np.float32) for name in names}

    def _measure(self, low: tuple[int, ...], high: tuple[int, ...]) -> None:
        """Prepare what depends on sizes only."""
        small = _limit(low, _THUMB)
        nodes = (max(1, round(small[0] / _CELL)), max(1, round(small[1] / _CELL)))
        self._grid = _Grid(small, nodes)
        self._field = _Grid(_limit(low, _FIELD), nodes)
        # Interleaved gradient noise (Jimenez, SIGGRAPH 2014 course). A correction of half a level
        # would be lost in rounding wherever the picture is dark. The pattern stands still: noise
        # that moves would flicker itself.
        y, x = np.ogrid[: high[0], : high[1]]
        wave = np.mod(0.06711056 * x + 0.00583715 * y, 1)
        self._dither = (0.001 + 0.998 * np.mod(52.9829189 * wave, 1)).astype(np.float32)

    def _look(self, log_low: Floats) -> Floats | None:
        """Change of log luma since the last frame, (h, w); None at the start and at a cut."""
        memory = self._memory
        coarse = _shrink(log_low, (9, 16))
        before = memory.get("log_low")
        moved = np.zeros(2, np.float32)  # how much the last two frames changed
        found = None
        if before is not None:
            now = float(np.mean(np.abs(coarse - memory["coarse"])))
            if now > max(_CUT, 3 * float(memory["moved"].max())):
                self.cuts += 1
            else:
                # Blurred: noise averages out, an object that moves does not.
                found = np.abs(cv2.GaussianBlur(log_low - before, (0, 0), _QUIET))
                moved = np.array([memory["moved"][1], now], np.float32)
        memory.update(log_low=log_low, coarse=coarse, moved=moved)
        return found

    def _start(self, gain: Floats, levels: Floats) -> None:
        """Take this frame's own curve as the slow one."""
        grid = self._grid
        counts, mass = grid.gather(levels), 20 * grid.gather(levels**2)
        curve = np.full_like(mass, gain.mean())
        for _ in range(12):  # by then, what is read from the grid fits the pixels
            sums = grid.gather(levels * (gain - grid.read(curve, levels)))
            rest = sums.sum((1, 2)) / (counts.sum((1, 2)) + 1)
            curve = curve + (sums + 2 * rest[:, None, None]) / (counts + 2)
        still = np.ones_like(gain)
        for _ in range(3):  # and the same frame again would be found to be no different
            curve = curve + self._differ(gain - grid.read(curve, levels), levels, still, mass)[1]
        self._memory.update(
            curve=curve,
            mass=mass,
            trend=np.zeros_like(mass),
            size=np.zeros_like(mass),
            jump=np.zeros((), np.float32),
        )

    def _differ(
        self, rest: Floats, levels: Floats, still: Floats, mass: Floats
    ) -> tuple[Floats, Floats]:
        """How far this frame's curve is from the slow one, by the log gain ``rest`` (h, w) that
        the slow one leaves: what all places share, (levels, 1, 1), and each node, with it."""
        grid = self._grid
        count = mass.sum((1, 2), keepdims=True)
        level_trust = ((count / (count + _KNOWN_LEVEL)) * levels).sum(0)
        weight = still * level_trust + np.float32(1e-6)
        whole = float((weight * rest).sum() / weight.sum())
        sure = weight
        for _ in range(3):  # pixels far from the others are another thing, not another gain
            spread = float((weight * np.abs(rest - whole)).sum() / weight.sum())
            distance = (rest - np.float32(whole)) / np.float32(max(0.05, 2 * spread))
            sure = weight / (1 + distance**2)
            whole = float((sure * rest).sum() / sure.sum())

        # Pixels whose nodes are new do not say what has changed: they count for the others.
        def settle(trust: Floats, prior: Floats, least: float, fold: bool) -> Floats:
            weights = sure * trust
            sums, counts = grid.gather(levels * (weights * rest)), grid.gather(levels * weights)
            doubt = grid.gather(levels * (1 - trust))
            if fold:
                sums, counts, doubt = (v.sum((1, 2), keepdims=True) for v in (sums, counts, doubt))
            doubt = _blur(doubt, 0) + np.float32(least)
            return np.asarray((_blur(sums, 0) + doubt * prior) / (_blur(counts, 0) + doubt))

        ones = np.ones_like(rest)
        shared = settle(ones, np.full((1, 1, 1), whole, np.float32), _GLOBAL * rest.size, True)
        local_trust = grid.read(mass / (mass + _KNOWN), levels)
        return shared, settle(local_trust, shared, _LOCAL, False)

    def _follow(self, gain: Floats, levels: Floats, change: Floats) -> Floats | None:
        """Let the slow curve follow; return the correction of this frame at the nodes, as a
        natural logarithm, or None where the gain as a whole has jumped."""
        grid, memory = self._grid, self._memory
        curve, mass = memory["curve"], memory["mass"]
        known = mass / (mass + _KNOWN)
        rest = gain - grid.read(curve, levels)
        # What moves says little about the gain of its place.
        limit = max(_MOVING, 4.5 * float(np.median(change)))
        still = (1 / (1 + (change / limit) ** 4)).astype(np.float32)
        shared, offset = self._differ(rest, levels, still, mass)
        jump = np.median(rest).astype(np.float32)
        before = memory["jump"]
        if abs(before) > _JUMP and jump * np.sign(before) > abs(before) / 4:
            return None
        memory["jump"] = jump

        # Flicker goes to and fro; a trend goes on, and is followed sooner.
        memory["trend"] = memory["trend"] + _TREND * (offset - memory["trend"])
        memory["size"] = memory["size"] + _TREND * (np.abs(offset) - memory["size"])
        steady = np.abs(memory["trend"]) / (memory["size"] + np.float32(2e-3))
        pace: Floats | np.float32 = np.float32(_SLOW)
        if self.strength is None:
            pace = _SLOW + (_FAST - _SLOW) * np.clip((steady - 0.6) / 0.4, 0, 1) ** 2
        # A network looks at the surroundings: near something that moves, a place's own gain
        # changes for a reason, and to hold it would draw a ghost. So it is let go there, unless
        # it goes to and fro. What all places share is held.
        motion = grid.gather(1 - still[None]) / grid.gather(np.ones_like(still)[None])
        for axis in (1, 2, 1, 2):
            motion = _blur(motion, axis)
        free = np.minimum(1, _FREE * motion) * np.clip((steady - 0.1) / 0.4, 0, 1)
        own_pace = pace + (1 - pace) * free
        correction = -(1 - pace) * shared - (1 - own_pace) * (offset - shared)
        correction = np.asarray(np.clip(correction, -_LARGEST, _LARGEST), np.float32)

        # A node that has seen nothing yet takes what it sees, less the flicker of the others.
        near = grid.gather(levels**2)
        sums = grid.gather(levels * rest)
        new = 1 - known
        level = ((new * sums).sum((1, 2)) + shared[:, 0, 0]) / ((new * near).sum((1, 2)) + 1)
        fresh = (sums + level[:, None, None]) / (near + 1)
        memory["curve"] = curve + known * offset + (1 - known) * fresh + correction
        memory["mass"] = _MEMORY * mass + grid.gather(levels**2 * still)
        return correction

    def _apply(self, enhanced: NDArray[Depth], ratio: Floats) -> NDArray[Depth]:
        height, width = enhanced.shape[:2]
        ratio = np.asarray(cv2.resize(ratio, (width, height), interpolation=cv2.INTER_LINEAR))
        top = np.iinfo(enhanced.dtype).max
        black = np.float32(_BLACK * top)
        values = enhanced.astype(np.float32)
        values += black
        values *= ratio[..., None]
        values += (self._dither - black)[..., None]
        return np.clip(values, 0, top, out=values).astype(enhanced.dtype)  # rounds down


class _Grid:
    """A grid of (luma, y, x) nodes over small frames of one size (h, w)."""

    def __init__(self, size: tuple[int, int], nodes: tuple[int, int]) -> None:
        self.size = size
        self._down, self._across = _tents(size[0], nodes[0]), _tents(size[1], nodes[1])

    def gather(self, planes: Floats) -> Floats:
        """Sum (levels, h, w) into the nodes around each pixel: (levels, gy, gx)."""
        return np.asarray(self._down @ planes @ self._across.T)

    def read(self, nodes: Floats, levels: Floats) -> Floats:
        """The value between the nodes at each pixel: (h, w)."""
        planes = self._down.T @ nodes.astype(np.float32) @ self._across
        return np.asarray((planes * levels).sum(0))


def _tents(pixels: int, nodes: int) -> Floats:
    """Weights of linear interpolation, (nodes, pixels); the weights of a pixel sum to one."""
    place = np.clip((np.arange(pixels) + 0.5) / pixels * nodes - 0.5, 0, nodes - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(place - np.arange(nodes)[:, None])), np.float32)


def _levels(luma: Floats) -> Floats:
    """The share that each luma node has in each pixel: (levels, h, w)."""
    octaves = np.log2(1 + luma / np.float32(_BLACK))
    place = octaves * np.float32((_LEVELS - 1) / np.log2(1 + 1 / _BLACK))
    nodes = np.arange(_LEVELS, dtype=np.float32)[:, None, None]
    return np.asarray(np.maximum(0, 1 - np.abs(place - nodes)))


def _luma(frame: NDArray[Depth], size: tuple[int, int]) -> Floats:
    """BT.709 luma of the code values in [0, 1] at size (h, w)."""
    # In floats before it shrinks: rounded to levels again, the dark ones lose their gain.
    small = _shrink(frame.astype(np.float32), size)
    weights = np.array([[0.2126, 0.7152, 0.0722]], np.float32) / np.iinfo(frame.dtype).max
    return np.asarray(cv2.transform(small, weights))


def _shrink(values: Floats, size: tuple[int, int]) -> Floats:
    return np.asarray(cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA))


def _limit(size: tuple[int, ...], longest: int) -> tuple[int, int]:
    share = min(1.0, longest / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _blur(nodes: Floats, axis: int) -> Floats:
    """(1, 2, 1) / 4 along an axis; the edges are repeated."""
    count = nodes.shape[axis]
    places = np.arange(count)
    before, after = np.maximum(places - 1, 0), np.minimum(places + 1, count - 1)
    return np.asarray(nodes / 2 + (nodes.take(before, axis) + nodes.take(after, axis)) / 4)
