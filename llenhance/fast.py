"""What a network did to a reduced copy of a picture, carried to the picture itself.

A guided filter with colour as its guide (He, Sun, "Fast Guided Filter", 2015): around each pixel of
the reduced copy the change is an affine map of colours, 3x3 and an offset. The maps are found
there, smoothed, enlarged, and applied to the pixels of the original, whose detail thus stays.
Where a window of the copy is flat, nothing tells what becomes of detail: there it grows as much as
the light. Knows no network; works in bands of rows, so that a large picture needs little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from . import pixels

SIDE = 1024  # pixels of a reduced copy's long side
RADIUS = 2  # of the window that a map is found in, and smoothed over
FLAT = 3e-7  # a variance that is nothing yet: of 0.14 levels of 255
BLACK = 0.02  # added to both sides of a ratio of lights: in black there is noise to be enlarged
BAND = 1 << 17  # pixels of the original that a thread works on at once
BAND_BYTES = 100  # for each of them

Array = NDArray[Any]


def working_bytes(height: int, width: int, threads: int = 1) -> tuple[int, int]:
    """What :func:`reduced` and :func:`carried` take for a picture of this size beside what they
    are given and what they return."""
    rows, columns = _reduced_size(height, width, SIDE)
    lines = height * columns * 3 * 4
    maps = rows * columns * 12 * 4
    return lines, maps + 2 * rows * columns * 3 * 4 + threads * BAND * BAND_BYTES


def _reduced_size(height: int, width: int, side: int) -> tuple[int, int]:
    share = min(1, side / max(height, width))
    return max(1, round(height * share)), max(1, round(width * share))


def reduced(rgb: Array, side: int = SIDE, *, threads: int = 1) -> NDArray[np.float32]:
    """(H, W, 3) uint8, uint16 or float32 in [0, 1] -> a copy as float32 whose long side has
    ``side`` pixels, or as many as the picture, each the mean of those that it covers."""
    height, width = rgb.shape[:2]
    rows, columns = _reduced_size(height, width, side)
    lines = np.empty((height, columns, 3), np.float32)

    def narrow(first: int, last: int) -> None:
        part = pixels.to_float(rgb[first:last])
        size = columns, last - first
        lines[first:last] = cv2.resize(part, size, interpolation=cv2.INTER_AREA)

    _in_bands(narrow, height, width, threads)
    return np.asarray(cv2.resize(lines, (columns, rows), interpolation=cv2.INTER_AREA))


def carried(
    original: Array,
    copy: NDArray[np.float32],
    changed: NDArray[np.float32],
    scale: int = 1,
    *,
    threads: int = 1,
) -> Array:
    """The change from ``copy`` to ``changed``, made to ``original``.

    ``original``: (H, W, 3) uint8, uint16 or float32 in [0, 1]. ``copy``: (h, w, 3) float32, as
    :func:`reduced` gives it. ``changed``: (scale*h, scale*w, 3) float32, what became of the copy.
    Returns (scale*H, scale*W, 3) of the original's dtype, in its range. A change that is one
    affine map of colours, such as none at all or a gain, is carried within one level of 255.
    """
    if scale > 1:
        size = copy.shape[1::-1]
        changed = np.asarray(cv2.resize(changed, size, interpolation=cv2.INTER_AREA))
    maps = _maps(copy, changed, threads)
    height, width = original.shape[0] * scale, original.shape[1] * scale
    result = np.empty((height, width, 3), original.dtype)

    def apply(first: int, last: int) -> None:
        guide = cv2.split(_rows(original, first, last, scale))
        bands = []
        for planes in maps:
            offset, *slopes = _enlarged(planes, first, last, height, width)
            for plane, slope in zip(guide, slopes, strict=True):
                cv2.accumulateProduct(plane, slope, offset)
            bands.append(offset)
        cv2.merge([_as(band, original.dtype) for band in bands], result[first:last])

    _in_bands(apply, height, width, threads)
    return result


def _maps(
    guide: NDArray[np.float32], target: NDArray[np.float32], threads: int
) -> NDArray[np.float32]:
    """For each channel of ``target`` the planes of its offset and of its three slopes:
    (3, 4, h, w)."""
    height, width = guide.shape[:2]
    maps = np.empty((3, 4, height, width), np.float32)

    def fit(first: int, last: int) -> None:
        top = max(0, first - RADIUS)
        part = slice(top, last + RADIUS)
        maps[:, :, first:last] = _fitted(guide[part], target[part])[:, :, first - top : last - top]

    _in_bands(fit, height, 8 * width, threads)  # small ones: many planes of doubles
    for planes in maps:
        for plane in planes:
            plane[:] = _mean(plane)
    return maps


def _fitted(guide: NDArray[np.float32], target: NDArray[np.float32]) -> Array:
    """The maps before they are smoothed: least squares in every window, with the ratio of lights
    for slope where the window is flat."""
    before, after = _planes(guide), _planes(target)
    lights, aims = [_mean(plane) for plane in before], [_mean(plane) for plane in after]
    left, right = np.empty((2, 3, 3, *guide.shape[:2]))
    for i in range(3):
        for j in range(3):
            left[i, j] = (
                left[j, i] if j < i else _mean(before[i] * before[j]) - lights[i] * lights[j]
            )
            right[i, j] = _mean(before[i] * after[j]) - lights[i] * aims[j]
        right[i, i] += FLAT * (aims[i] + BLACK) / (lights[i] + BLACK)
    for i in range(3):
        left[i, i] += FLAT
    slopes = _solved(left, right)
    maps = np.empty((3, 4, *guide.shape[:2]))
    for k in range(3):
        maps[k, 1:] = slopes[:, k]
        maps[k, 0] = aims[k] - sum(slopes[i, k] * lights[i] for i in range(3))
    return maps


def _solved(left: Array, right: Array) -> Array:
    """``left`` x = ``right`` at every pixel, both (3, 3, h, w), ``left`` symmetric and positive
    definite. By elimination without pivots: a third of the time of LAPACK, once for each pixel."""
    (a, b, c), (_, d, e), (_, _, f) = left
    first, second = b / a, c / a
    d = d - first * b
    e = e - first * c
    third = e / d
    f = f - second * c - third * e
    slopes = np.empty_like(right)
    for k in range(3):
        x, y, z = right[:, k]
        y = y - first * x
        z = (z - second * x - third * y) / f
        y = y / d - third * z
        slopes[0, k], slopes[1, k], slopes[2, k] = (x - b * y - c * z) / a, y, z
    return slopes


def _planes(rgb: Array) -> list[Array]:
    return list(cv2.split(rgb.astype(np.float64)))


def _mean(plane: Array) -> Array:
    """Of the window around each pixel; mirrored at the edges."""
    side = 2 * RADIUS + 1
    return np.asarray(cv2.blur(plane, (side, side), borderType=cv2.BORDER_REFLECT))


def _in_bands(work: Callable[[int, int], None], rows: int, width: int, threads: int) -> None:
    """Call ``work(first, last)`` for bands of so many rows, on several threads."""
    size = max(1, BAND // width)
    begins = range(0, rows, size)
    ends = [min(begin + size, rows) for begin in begins]
    if threads == 1 or len(ends) == 1:
        for first, last in zip(begins, ends, strict=True):
            work(first, last)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, begins, ends))


def _enlarged(
    planes: NDArray[np.float32], first: int, last: int, height: int, width: int
) -> Iterator[NDArray[np.float32]]:
    """Rows ``first`` to ``last`` of each of the planes (n, h, w) enlarged to (height, width),
    linear between the centres of pixels."""
    rows = planes.shape[1]
    where = np.clip((np.arange(first, last) + 0.5) * (rows / height) - 0.5, 0, rows - 1)
    above = where.astype(int)
    share = (where - above).astype(np.float32)
    begin, end = int(above[0]), min(int(above[-1]) + 2, rows)
    # Each row is a mixture of two: one product of matrices makes them all.
    mixture = np.zeros((last - first, end - begin), np.float32)
    row = np.arange(last - first)
    mixture[row, above - begin] = 1 - share
    mixture[row, np.minimum(above + 1, end - 1) - begin] += share
    for plane in planes:
        lines = mixture @ plane[begin:end]
        yield cv2.resize(lines, (width, last - first), interpolation=cv2.INTER_LINEAR)


def _as(plane: Array, dtype: np.dtype[Any]) -> Array:
    """A plane (H, W) of float32 as ``dtype``, clipped to [0, 1] and rounded.

    In one pass over memory where ``pixels.from_float``, which minds NaN too, takes several.
    """
    if dtype == np.float32:
        return np.clip(plane, 0, 1, out=plane)
    depth = cv2.CV_8U if dtype == np.uint8 else cv2.CV_16U
    scaled = cv2.multiply(plane, float(pixels.WHITE[dtype]), dtype=depth)  # type: ignore[call-overload]
    return np.asarray(scaled)


def _rows(original: Array, first: int, last: int, scale: int) -> NDArray[np.float32]:
    """Rows ``first`` to ``last`` of the original enlarged by ``scale``, as float32."""
    if scale == 1:
        return pixels.to_float(original[first:last])
    begin = max(0, first // scale - 1)  # a neighbour more on each side, to be linear between
    part = pixels.to_float(original[begin : -(-last // scale) + 1])
    return pixels.enlarge(part, scale)[first - begin * scale : last - begin * scale]
