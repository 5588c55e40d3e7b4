"""A picture on its way through a network, as a whole or in parts; knows no network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import pixels, tiling

WRITING = 6  # bytes for each pixel of a result that encoding it takes, after the network is done


class Whole:
    """A picture on its way through the network, as a whole or in parts.

    The network sees it reflected at its edges to multiples of ``multiple``: ``shape`` is the
    height and width of that. Only parts are ever copied into it, or into floats.
    """

    def __init__(self, image: NDArray[Any], strength: float, scale: int, multiple: int) -> None:
        self.original, self.layout = pixels.split(image)
        self.strength, self.scale = strength, scale
        rows, columns = self.original.shape[:2]
        self.rows = pixels.reflected(rows, multiple)
        self.columns = pixels.reflected(columns, multiple)
        self.shape = len(self.rows), len(self.columns)
        floats = self.original.dtype == np.float32
        self.highlights = floats and pixels.has_highlights(self.original)

    @property
    def size(self) -> str:
        """For people."""
        height, width = self.original.shape[:2]
        return f"{width}x{height} pixels"

    def part(self, outer: tuple[slice, slice] = (slice(None), slice(None))) -> Part:
        """What lies at these rows and columns."""
        piece = _take(self.original, self.rows[outer[0]], 0)
        piece = _take(piece, self.columns[outer[1]], 1)
        return Part(piece, self.highlights, self.strength, self.scale)

    def within(self, factor: int) -> tuple[slice, slice]:
        """Where the picture itself lies in what the network sees, ``factor`` times as large."""
        rows, columns = (
            slice(before * factor, (before + length) * factor) for before, length in self._edges
        )
        return rows, columns

    def place(
        self, tile: tiling.Tile, factor: int
    ) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """(where what a tile gives lies in the result, and where in what it computes)."""
        result, computed = [], []
        for (before, length), inner, outer in zip(self._edges, tile.inner, tile.outer, strict=True):
            first, last = max(inner.start, before), min(inner.stop, before + length)
            result.append(slice((first - before) * factor, (last - before) * factor))
            first, last = first - outer.start, last - outer.start
            computed.append(slice(first * factor, last * factor))
        return (result[0], result[1]), (computed[0], computed[1])

    @property
    def _edges(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(pixels before the picture, its length) for rows and columns."""
        lengths = self.original.shape[:2]
        (top, left) = ((n - length) // 2 for n, length in zip(self.shape, lengths, strict=True))
        return (top, lengths[0]), (left, lengths[1])

    def sized(self, factor: int) -> tuple[int, int, int]:
        """The shape of a result that is ``factor`` times as large."""
        height, width = self.original.shape[:2]
        return height * factor, width * factor, 3

    @property
    def finishes_in_floats(self) -> bool:
        """Whether what the network gives is still blended, or given highlights."""
        return self.strength != 1 or self.original.dtype == np.float32

    @property
    def result_bytes(self) -> int:
        """What the colours of the result take, and what joins them with the rest."""
        height, width, channels = self.sized(self.scale)
        joined = 0 if self.layout.alpha is None and not self.layout.grey else 4
        return height * width * (channels + joined) * self.original.dtype.itemsize

    @property
    def writing_bytes(self) -> int:
        """Bytes that writing the result needs beside it."""
        height, width, _ = self.sized(self.scale)
        return height * width * WRITING

    def joined(self, enhanced: NDArray[Any]) -> NDArray[Any]:
        """The colours of the result -> a picture like the one that was given."""
        return pixels.join(enhanced, self.layout)


class Part:
    """A part of a picture: ``given`` goes into the network, ``finished`` comes back."""

    def __init__(
        self, original: NDArray[Any], highlights: bool, strength: float, scale: int
    ) -> None:
        self.original = self.rgb = original
        if original.dtype == np.float32:  # light above 1 is mapped, and given back afterwards
            self.rgb = pixels.tone_map(original, highlights)
        self.strength, self.scale = strength, scale
        # A blend of two rounded pictures is off by up to one level: blend before rounding.
        self.given = self.rgb if strength == 1 else pixels.to_float(self.rgb)

    def finished(self, enhanced: NDArray[Any]) -> NDArray[Any]:
        """What the network made of ``given`` -> the part of the result, of the picture's dtype."""
        if self.strength != 1:
            grown = pixels.enlarge(self.given, self.scale)
            blended = grown * (1 - self.strength) + enhanced * self.strength
            enhanced = pixels.from_float(blended.astype(np.float32), self.rgb.dtype)
        if self.rgb is not self.original:
            enhanced = pixels.apply_change(self.original, self.rgb, enhanced)
        return enhanced


def _take(image: NDArray[Any], places: NDArray[np.intp], axis: int) -> NDArray[Any]:
    """Rows or columns of an image, without a copy where they lie side by side."""
    first, last = int(places[0]), int(places[-1])
    if last - first == len(places) - 1:
        return image[first : last + 1] if axis == 0 else image[:, first : last + 1]
    return np.take(image, places, axis)
