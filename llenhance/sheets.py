"""Labelled sheets of pictures: methods side by side, and before/after strips."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import LLEnhanceError
from .pixels import Rgb8

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PAPER = 250  # grey of the page and of what a tile of another shape leaves free
_INK = (32, 32, 32)
_GAP = 12  # pixels between tiles and around the page
_SMALLEST, _WIDEST = 160, 2400  # pixels: the least width of a tile, the most of a page
_LANDSCAPE = 1.6  # the shape of page that a screen shows best


def grid(tiles: Sequence[tuple[str, Rgb8]], *, columns: int | None = None) -> Rgb8:
    """Lay pictures out in rows, each under its label.

    ``tiles``: (label, picture) in reading order; a picture is (H, W, 3) uint8 RGB of any size.
    All tiles get one size; a picture of another shape than the first keeps its own and leaves
    some of its tile free. ``columns``: tiles a row, chosen to fill a screen by default. Pictures
    keep their size as far as the page stays within 2400 pixels.
    Returns the page, (H, W, 3) uint8 RGB. Raises LLEnhanceError for no tile, and for an array that
    is no such picture.
    """
    if not tiles:
        raise LLEnhanceError("a sheet needs at least one picture")
    for label, picture in tiles:
        _check(label, picture)
    if columns is None:
        columns = _columns(len(tiles), _shape(tiles[0][1]))
    elif columns < 1:
        raise LLEnhanceError(f"a sheet needs at least one column, not {columns}")
    columns = min(columns, len(tiles))
    return _page([list(tiles[at : at + columns]) for at in range(0, len(tiles), columns)], columns)


def tile_width(count: int, first: Rgb8) -> int:
    """The most pixels across that :func:`grid` shows of a picture, by default, on a page of so many
    tiles of which ``first`` is the first."""
    return _room(_columns(count, _shape(first)))


def narrowed(picture: Rgb8, width: int) -> Rgb8:
    """No wider than so many pixels, so that who waits for other tiles does not hold all of a large
    picture; a new array where it was wider."""
    height, own = picture.shape[:2]
    if own <= width:
        return picture
    return _scaled(picture, width, max(1, round(height * width / own)), cv2.INTER_AREA)


def strip(pairs: Sequence[tuple[str, Rgb8, Rgb8]]) -> Rgb8:
    """Lay pairs out as a row of pictures before, and right below it the same after.

    ``pairs``: (label, before, after), pictures as in :func:`grid`; the two may differ in size.
    Returns and raises as :func:`grid`.
    """
    if not pairs:
        raise LLEnhanceError("a sheet needs at least one picture")
    rows = [
        [(f"{label} before".strip(), before) for label, before, _ in pairs],
        [(f"{label} after".strip(), after) for label, _, after in pairs],
    ]
    for label, picture in (tile for row in rows for tile in row):
        _check(label, picture)
    return _page(rows, len(pairs))


def _check(label: str, picture: Rgb8) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise LLEnhanceError(f"tile {label!r}: expected (H, W, 3), found {picture.shape}")
    if picture.dtype != np.uint8:
        raise LLEnhanceError(f"tile {label!r}: expected uint8, found {picture.dtype}")


def _shape(picture: Rgb8) -> float:
    """Width over height, kept between 1:3 and 3:1 so that a sliver does not rule the page."""
    height, width = picture.shape[:2]
    return min(max(float(width) / float(height), 1 / 3), 3.0)


def _columns(count: int, shape: float) -> int:
    """How many tiles a row fill a page closest to a screen's shape, with few places empty."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        empty = rows * columns - count
        distance = abs(math.log(columns * shape / rows / _LANDSCAPE))
        return distance + 3 * empty / count

    return min(range(count, 0, -1), key=cost)


def _room(columns: int) -> int:
    """How wide a tile can be on a page of its widest."""
    return max((_WIDEST - _GAP) // columns - _GAP, _SMALLEST)


def _page(rows: list[list[tuple[str, Rgb8]]], columns: int) -> Rgb8:
    pictures = [picture for row in rows for _, picture in row]
    own = max(picture.shape[1] for picture in pictures)
    tile_width = max(min(own, _room(columns)), _SMALLEST)
    tile_height = max(round(tile_width / _shape(pictures[0])), 1)
    page_width = columns * (tile_width + _GAP) + _GAP

    size = min(max(round(tile_width / 24), 13), 24)
    font = ImageFont.load_default(size)
    band = round(size * 1.7)
    page = np.full(
        (len(rows) * (band + tile_height + _GAP) + _GAP // 2, page_width, 3), _PAPER, np.uint8
    )
    labels: list[tuple[int, int, str]] = []
    for row, tiles in enumerate(rows):
        for column, (label, picture) in enumerate(tiles):
            left = _GAP + column * (tile_width + _GAP)
            top = _GAP // 2 + row * (band + tile_height + _GAP)
            labels.append((left, top + band // 2, label))
            scaled = _fit(picture, tile_width, tile_height)
            y = top + band  # right under its label, also where it leaves some of the tile free
            page[y : y + scaled.shape[0], left : left + scaled.shape[1]] = scaled

    image = Image.fromarray(page)
    draw = ImageDraw.Draw(image)
    for left, middle, label in labels:
        draw.text((left, middle), _shorten(label, font, tile_width), _INK, font, anchor="lm")
    return np.array(image)


def _fit(picture: Rgb8, width: int, height: int) -> Rgb8:
    """Scale to the largest size within width x height that keeps the picture's shape."""
    factor = min(width / picture.shape[1], height / picture.shape[0])
    size = (
        min(max(round(picture.shape[1] * factor), 1), width),
        min(max(round(picture.shape[0] * factor), 1), height),
    )
    if size == (picture.shape[1], picture.shape[0]):
        return picture
    # Where a picture is enlarged a lot, somebody wants to see its pixels.
    enlarge = cv2.INTER_CUBIC if factor < 3 else cv2.INTER_NEAREST
    how = cv2.INTER_AREA if factor < 1 else enlarge
    return _scaled(picture, *size, how)


def _scaled(picture: Rgb8, width: int, height: int, how: int) -> Rgb8:
    size = width, height
    return np.asarray(cv2.resize(np.ascontiguousarray(picture), size, interpolation=how), np.uint8)


def _shorten(label: str, font: _Font, width: int) -> str:
    """One line within ``width`` pixels; what is too long loses its middle, as names differ at
    both ends."""
    label = _drawable(label, font)
    if font.getlength(label) <= width:
        return label
    for keep in range(len(label) - 1, 0, -1):
        short = f"{label[: (keep + 1) // 2]}…{label[len(label) - keep // 2 :]}"
        if font.getlength(short) <= width:
            return short
    return ""


def _drawable(label: str, font: _Font) -> str:
    """The label on one line, in letters that the font has: it lacks accents (drawn without) and
    most scripts (drawn as question marks)."""
    missing = bytes(font.getmask("\uffff"))

    def known(character: str) -> bool:
        return character.isascii() or bytes(font.getmask(character)) != missing

    kept = []
    for character in " ".join(label.split()):
        if not character.isprintable():
            continue
        plain = character
        if not known(character):
            parts = unicodedata.normalize("NFKD", character)
            plain = "".join(part for part in parts if not unicodedata.combining(part))
        kept.append("".join(part if known(part) else "?" for part in plain))
    return "".join(kept)
