"""How much of a picture, or how many pictures, a network is given at a time: what memory allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from . import fast, memory, tiling
from .engines import Engine
from .errors import ControlError, LLEnhanceError
from .methods import Method
from .parts import Whole

# Bytes that one run of a network may need before a picture is cut: larger tiles spend less on their
# margins, but beyond this hardly so.
WORKING_MEMORY = 2 << 30
LITTLE = WORKING_MEMORY >> 5  # what a run may need in any case, without asking the system
ELSEWHERE = 400 << 20  # bytes that a process with a network has, where the system does not tell
PREPARED = 64 << 20  # bytes beside its weights that an engine keeps once it has run
FINISHING = 60  # bytes for each pixel of a part that steps in floating point need


class Budget:
    """The memory of one network in one engine.

    ``max_memory``: bytes of physical memory that this process is to stay within, or None for what
    the machine has to spare. ``may_cut``: whether pictures may be cut into tiles at all. Raises
    ControlError where ``max_memory`` does not even do for the smallest tile.
    """

    def __init__(
        self, method: Method, engine: Engine, max_memory: int | None = None, may_cut: bool = True
    ) -> None:
        self.max_memory = max_memory
        self.tell: Callable[[str], None] = lambda _: None  # hears of smaller tiles
        self._engine, self._may_cut = engine, may_cut
        self._halo, self._multiple = method.receptive_radius, method.multiple_of
        # Bytes for each pixel that the engine gets, at scale 1.
        self._per_pixel = method.bytes_per_pixel(engine.name, engine.precision)
        self._most: int | None = None  # pixels of a run for which memory sufficed, where it ran out
        self._began_with = memory.resident() or ELSEWHERE
        self._before: int | None = None  # resident before a picture
        # What the engine will come to keep beside what this process already has.
        self._prepared = PREPARED + 4 * method.parameters
        least = tiling.least(self._halo, self._multiple)
        needed = self._began_with + self._prepared + least * self._per_pixel
        if max_memory is not None and max_memory < needed:
            raise ControlError(
                f"max memory {_megabytes(max_memory)}: {method.name} takes"
                f" {_megabytes(needed)} before the first picture"
            )

    def at_once(self, height: int, width: int, scale: int = 1) -> int:
        """How many pictures of this size the network takes in one run: at least one, and at most
        as many as its working memory has room for. The same on the same machine."""
        room = self._engine.room(WORKING_MEMORY)
        if self.max_memory is not None and self._engine.device == "cpu":
            room = min(room, self.max_memory - self._began_with - self._prepared)
        return max(1, room // (height * width * scale**2 * self._per_pixel))

    def fits(self, pixels: int) -> bool:
        """Whether no run has shown that there is too little memory for one of so many pixels."""
        return self._most is None or pixels <= self._most

    def lower_to(self, pixels: int) -> None:
        """Have no run of more pixels, after memory did not suffice for one."""
        self._most = pixels
        self.release()

    def grid(self, picture: Whole, tile: int | Literal["auto", "off"]) -> tiling.Grid:
        """The tiles for a picture; one that is the whole where it need not or cannot be cut.

        Raises ControlError for a tile of nothing, and LLEnhanceError where max_memory is too
        little for this picture.
        """
        height, width = picture.shape
        if tile == "off" or not self._may_cut:
            return self._tiles(picture, height * width)
        if tile != "auto":
            if not isinstance(tile, int):
                raise ControlError(f"tile {tile!r}: auto, off or a number of pixels")
            if tile < 1:
                raise ControlError(f"tile {tile}: a tile has at least one pixel")
            grid = tiling.by_side(height, width, tile, self._halo, self._multiple)
            if self._most is None or grid.pixels <= self._most:
                return grid
            return self._tiles(picture, self._most)
        per_pixel = self._per_pixel * picture.scale**2
        if picture.finishes_in_floats:
            per_pixel += FINISHING * picture.scale**2
        bounded = self.max_memory is not None or self._most is not None
        if not bounded and height * width * per_pixel <= LITTLE:
            return self._tiles(picture, height * width)
        room = self._room(picture)
        if height * width * per_pixel > room:
            self.release()  # what it keeps of earlier runs counts as taken
            room = self._room(picture)
        most = room // per_pixel
        if self._most is not None:
            most = min(most, self._most)
        grid = self._tiles(picture, most)
        lacking = max(grid.pixels * per_pixel, picture.writing_bytes) - room
        if self.max_memory is not None and lacking > 0:
            raise self._too_little(picture, self.max_memory + lacking)
        return grid

    def check_fast(self, picture: Whole, threads: int) -> None:
        """Raises LLEnhanceError where max_memory is too little for what is done to this picture
        beside the network, which gets a reduced copy."""
        if self.max_memory is None:
            return
        self.release()
        height, width = picture.original.shape[:2]
        reducing, carrying = fast.working_bytes(height, width, threads)
        if picture.original.dtype == np.float32:
            carrying += height * width * picture.scale**2 * FINISHING
        more = max(reducing, picture.result_bytes + max(carrying, picture.writing_bytes))
        needed = (memory.resident() or ELSEWHERE) + self._prepared + more
        if needed > self.max_memory:
            raise self._too_little(picture, needed)

    def _too_little(self, picture: Whole, needed: int) -> LLEnhanceError:
        return LLEnhanceError(
            f"{picture.size} take {_megabytes(needed)},"
            f" more than the max memory of {_megabytes(self.max_memory or 0)}"
        )

    def smaller(
        self, picture: Whole, grid: tiling.Grid, tile: int | Literal["auto", "off"]
    ) -> tiling.Grid:
        """Tiles of half the size, after memory did not suffice for these; raises LLEnhanceError
        where there are none."""
        self.release()
        if tile == "off" or not self._may_cut:
            why = "--tile off" if tile == "off" else "these weights cannot be cut into tiles"
            raise LLEnhanceError(
                f"there is not enough memory for {picture.size} in one piece ({why})"
            )
        self._most = grid.pixels // 2
        smaller = self._tiles(picture, self._most)
        if smaller.pixels >= grid.pixels:
            raise LLEnhanceError(
                f"there is not enough memory for {picture.size}, even in small tiles"
            )
        self.tell("not enough memory: going on with smaller tiles")
        return smaller

    def release(self) -> None:
        """Let the engine give back what it keeps for the next run."""
        try:
            self._engine.release()
        except Exception as error:  # giving back may take a little itself
            if not memory.ran_out(error):
                raise
        if self.max_memory is not None:
            memory.trim()

    def ran(self, result: int) -> None:
        """A picture is through the network, and its result of so many bytes is there. What this
        process has grown by beside that is the engine's for the next picture, and need not be
        left free for it any more."""
        if self.max_memory is not None and self._before is not None:
            grown = (memory.resident() or 0) - self._before - result
            self._prepared = max(0, self._prepared - max(0, grown))

    def _tiles(self, picture: Whole, most: int) -> tiling.Grid:
        """Tiles of at most so many pixels, where there are such."""
        return tiling.by_area(*picture.shape, most, self._halo, self._multiple)

    def _room(self, picture: Whole) -> int:
        """Bytes that one run for this picture may need."""
        useful = self._engine.room(WORKING_MEMORY)
        if self._engine.device.startswith("cuda"):
            return useful  # of the GPU's own memory
        if self.max_memory is not None:
            self._before = memory.resident()
            taken = self._before or ELSEWHERE
            return min(useful, self.max_memory - taken - self._prepared - picture.result_bytes)
        free = memory.available()
        if free is None:
            return useful
        # Others need memory as well. In steps, so that a little more or less changes no tile.
        room = useful
        while room > (free - picture.result_bytes) // 2 and room > LITTLE:
            room >>= 1
        return room


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
