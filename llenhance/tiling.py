"""Large pictures in tiles that join without a seam. Knows no network and no engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

LEAST = 64  # pixels a side that a tile gives at least: smaller ones are nearly all margin
SPARED = 1.04  # times the least work that smaller tiles may cost


@dataclass(frozen=True)
class Tile:
    """A part of a picture, and the margin around it that its pixels depend on.

    ``outer``: what to compute, rows and columns of the picture. ``inner``: what to keep of it.
    ``crop``: where that lies within ``outer``.
    """

    outer: tuple[slice, slice]
    inner: tuple[slice, slice]
    crop: tuple[slice, slice]

    @property
    def area(self) -> int:
        """Pixels that this tile answers for."""
        rows, columns = self.inner
        return int((rows.stop - rows.start) * (columns.stop - columns.start))


@dataclass(frozen=True)
class Grid:
    """How a picture is cut: all tiles compute parts of one size, which an engine prepares once.

    ``margin``: pixels around what a tile gives that its result may depend on, a multiple of
    ``multiple``, as are height and width. At the picture's own edge a tile has no margin, so that
    the network's padding there is the same as for the whole picture; what it gives is the larger.
    """

    height: int
    width: int
    down: int  # how many tiles
    across: int
    margin: int
    multiple: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what every tile computes."""
        return (
            _window(self.height, self.down, self.margin, self.multiple),
            _window(self.width, self.across, self.margin, self.multiple),
        )

    @property
    def pixels(self) -> int:
        """How many pixels every tile computes."""
        height, width = self.size
        return height * width

    @property
    def whole(self) -> bool:
        """Whether there is one tile only."""
        return self.down == self.across == 1

    @property
    def work(self) -> float:
        """Pixels that are computed for each pixel of the picture."""
        return self.down * self.across * self.pixels / (self.height * self.width)

    def tiles(self) -> Iterator[Tile]:
        """The tiles, row by row; together they give every pixel once."""
        columns = list(_spans(self.width, self.across, self.margin, self.multiple))
        for rows in _spans(self.height, self.down, self.margin, self.multiple):
            for across in columns:
                outer, inner, crop = zip(rows, across, strict=True)
                yield Tile(outer, inner, crop)


def by_side(height: int, width: int, side: int, halo: int, multiple: int) -> Grid:
    """Tiles that give about ``side`` x ``side`` pixels each, more at the picture's edges.

    ``halo``: the margin in pixels that one output pixel may depend on. ``multiple``: tiles begin
    and end on this grid, as networks that pool need it; height and width are multiples of it.
    """
    side, margin = _up(side, multiple), _up(halo, multiple)
    down, across = (max(1, -(-(length - 2 * margin) // side)) for length in (height, width))
    return Grid(height, width, down, across, margin, multiple)


def by_area(height: int, width: int, pixels: int, halo: int, multiple: int) -> Grid:
    """Tiles of which none computes more than so many pixels, with little work for their margins.

    Of those that need hardly more work than the least, the smallest: they need less memory. Where
    no tiles are small enough, the smallest that are worth their margin. ``halo`` and
    ``multiple`` as in :func:`by_side`.
    """
    smallest = by_side(height, width, LEAST, halo, multiple)
    if smallest.pixels >= pixels:
        return smallest
    fitting = []  # for each number of tiles down, the grid with the fewest across
    across = smallest.across
    for down in range(1, smallest.down + 1):
        while across > 1 and replace(smallest, down=down, across=across - 1).pixels <= pixels:
            across -= 1  # more tiles down let fewer across suffice, never more
        grid = replace(smallest, down=down, across=across)
        if grid.pixels <= pixels:
            fitting.append(grid)
    if fitting[0].whole:
        return fitting[0]
    most = SPARED * min(grid.work for grid in fitting)
    good = []
    for grid in fitting:
        while grid.work <= most and grid.across <= smallest.across:
            good.append(grid)
            grid = replace(grid, across=grid.across + 1)
    return min(good, key=lambda grid: (grid.pixels, grid.work))


def least(halo: int, multiple: int) -> int:
    """Pixels that the smallest tile of a large picture computes."""
    return (_up(LEAST, multiple) + 2 * _up(halo, multiple)) ** 2


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _window(length: int, count: int, margin: int, multiple: int) -> int:
    """The least length of ``count`` parts, overlapping by two margins, that cover a length."""
    return _up(-(-(length + (count - 1) * 2 * margin) // count), multiple)


def _spans(
    length: int, count: int, margin: int, multiple: int
) -> Iterator[tuple[slice, slice, slice]]:
    """(outer, inner, crop) along one axis."""
    window = _window(length, count, margin, multiple)
    room, gaps = length - window, max(1, count - 1)
    starts = [n * room // gaps // multiple * multiple for n in range(count)]
    # Two neighbours meet in the middle of their overlap.
    seams = [b + (a + window - b) // 2 // multiple * multiple for a, b in pairwise(starts)]
    for start, first, last in zip(starts, [0, *seams], [*seams, length], strict=True):
        yield slice(start, start + window), slice(first, last), slice(first - start, last - start)
