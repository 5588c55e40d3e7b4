"""Large pictures in tiles that join without a seam. Knows no network and no engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


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


def cut(height: int, width: int, size: int, halo: int, multiple: int) -> Iterator[Tile]:
    """Tiles of at most ``size`` x ``size`` pixels that cover the picture once.

    ``halo``: the margin in pixels that one output pixel may depend on. ``multiple``: tiles begin
    and end on this grid, as networks that pool need it; height, width and size are multiples of
    it. A margin ends at the picture's own edge, so that the network's padding there is the same as
    for the whole picture.
    """
    halo = -(-halo // multiple) * multiple
    for rows in _spans(height, size, halo):
        for columns in _spans(width, size, halo):
            outer, inner, crop = zip(rows, columns, strict=True)
            yield Tile(outer, inner, crop)


def _spans(length: int, size: int, halo: int) -> Iterator[tuple[slice, slice, slice]]:
    """(outer, inner, crop) along one axis."""
    for start in range(0, length, size):
        stop = min(start + size, length)
        first, last = max(0, start - halo), min(length, stop + halo)
        yield slice(first, last), slice(start, stop), slice(start - first, stop - first)


def side(pixels: int, halo: int, multiple: int) -> int:
    """The side of a tile that, with its halo, holds at most so many pixels; a multiple, at least
    one multiple long."""
    whole = int(pixels**0.5) - 2 * (-(-halo // multiple) * multiple)
    return max(multiple, whole // multiple * multiple)
