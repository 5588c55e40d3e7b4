"""Labelled sheets: sizes, places, labels beside the pictures and never on them."""

import numpy as np
import pytest

from llenhance import sheets
from llenhance.errors import LLEnhanceError

COLOURS = [(200, 30, 30), (30, 160, 40), (30, 60, 200), (180, 160, 20), (120, 20, 140), (9, 9, 9)]


def flat(index, height=200, width=300):
    return np.full((height, width, 3), COLOURS[index % len(COLOURS)], np.uint8)


def box(page, colour):
    """Rows and columns that hold exactly this colour."""
    ys, xs = np.nonzero((page == np.array(colour, np.uint8)).all(2))
    return ys.min(), ys.max() + 1, xs.min(), xs.max() + 1


def ink(page):
    return (page.max(2) < 120) & (np.ptp(page.astype(int), axis=2) < 8)


def test_pictures_keep_their_pixels_and_labels_stay_off_them():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(130, 240, (90, 200, 3), dtype=np.uint8) for _ in range(4)]
    page = sheets.grid([(f"label {i}", p) for i, p in enumerate(pictures)], columns=2)
    found = 0
    for picture in pictures:
        first = np.argwhere((page == picture[0, 0]).all(2))
        for y, x in first:
            part = page[y : y + 90, x : x + 200]
            found += part.shape == picture.shape and bool((part == picture).all())
    assert found == 4
    assert ink(page).any()  # and labels are there (bands only: every picture came back whole)


def test_each_label_is_right_above_its_own_tile():
    page = sheets.grid([("first", flat(0)), ("", flat(1)), ("third", flat(2))], columns=3)
    for index, labelled in enumerate([True, False, True]):
        top, _, left, right = box(page, COLOURS[index])
        assert ink(page[:top, left:right]).any() == labelled


def test_differing_sizes_share_one_tile_size():
    tiles = [("a", flat(0, 400, 600)), ("b", flat(1, 200, 300)), ("c", flat(2, 90, 135))]
    page = sheets.grid(tiles, columns=3)
    sizes = {(b - t, r - x) for t, b, x, r in (box(page, colour) for colour in COLOURS[:3])}
    assert sizes == {(400, 600)}


def test_another_shape_stays_whole_under_its_label():
    page = sheets.grid([("wide", flat(0, 200, 300)), ("tall", flat(1, 300, 100))], columns=2)
    top, bottom, left, right = box(page, COLOURS[0])
    y, y_end, x, x_end = box(page, COLOURS[1])
    assert (y, y_end) == (top, bottom)
    assert abs((x_end - x) - 200 / 3) < 1.5
    assert x - right == left
    first = np.nonzero(ink(page[:top, x:]).any(0))[0][0]
    assert first < 4


@pytest.mark.parametrize(
    ("count", "shape", "columns"),
    [(1, 1.5, 1), (2, 1.5, 2), (2, 1 / 3, 2), (2, 3.0, 1), (3, 1.5, 3), (4, 1.5, 2), (6, 1.5, 3),
     (7, 1.5, 3), (7, 0.75, 4), (12, 1.5, 4)],
)  # fmt: skip
def test_columns_fill_a_screen(count, shape, columns):
    assert sheets._columns(count, shape) == columns


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (4000, 6000), (3, 9000)])
def test_any_size_gives_a_readable_page(size):
    picture = np.full((*size, 3), (200, 30, 30), np.uint8)
    page = sheets.grid([("input", picture), ("dln", picture)])
    assert page.dtype == np.uint8
    assert page.shape[1] <= 2400
    assert page.shape[0] < 6000
    top, bottom, left, right = box(page, (200, 30, 30))
    assert bottom - top >= 1
    assert right - left >= 1
    assert max(bottom - top, right - left) >= 100
    assert ink(page).sum() > 40


def test_long_label_loses_its_middle_and_stays_in_its_column():
    label = "holiday_in_the_mountains_" * 8 + "_night_0001.jpg"
    page = sheets.grid([(label, flat(0)), ("", flat(1))], columns=2)
    top, _, left, right = box(page, COLOURS[0])
    columns = np.nonzero(ink(page[:top]).any(0))[0]
    assert columns.min() >= left
    assert columns.max() < right
    assert columns.max() > right - 40  # it uses the room that there is
    font = sheets.ImageFont.load_default(20)
    short = sheets._shorten(label, font, 300)
    assert short.startswith("holiday_in")
    assert short.endswith("001.jpg")
    assert "…" in short
    assert font.getlength(short) <= 300


def test_control_characters_and_line_ends_do_not_break_the_band():
    font = sheets.ImageFont.load_default(16)
    assert sheets._shorten("a\n\tb\x00\x1b[31m c", font, 400) == "a b[31m c"
    assert sheets._shorten("anything", font, 1) == ""


def test_letters_that_the_font_lacks_are_drawn_as_others():
    font = sheets.ImageFont.load_default(16)
    assert sheets._shorten("Çà·größe 夜 …", font, 400) == "Ca·gro?e ? …"


def test_strip_puts_after_right_below_before():
    pairs = [(f"0:0{i}", flat(i), flat(i + 3)) for i in range(3)]
    page = sheets.strip(pairs)
    for i in range(3):
        before, after = box(page, COLOURS[i]), box(page, COLOURS[i + 3])
        assert before[2:] == after[2:]
        assert before[1] < after[0]
    assert box(page, COLOURS[0])[0] == box(page, COLOURS[2])[0]


def test_what_is_no_picture_is_refused():
    with pytest.raises(LLEnhanceError, match="at least one picture"):
        sheets.grid([])
    with pytest.raises(LLEnhanceError, match="at least one picture"):
        sheets.strip([])
    with pytest.raises(LLEnhanceError, match=r"'grey'.*\(4, 4\)"):
        sheets.grid([("grey", np.zeros((4, 4), np.uint8))])
    with pytest.raises(LLEnhanceError, match="float32"):
        sheets.grid([("x", np.zeros((4, 4, 3), np.float32))])
    with pytest.raises(LLEnhanceError, match="column"):
        sheets.grid([("x", flat(0))], columns=0)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize(("height", "width"), [(1400, 2500), (2000, 700), (60, 3000), (100, 150)])
def test_pictures_narrowed_beforehand_give_the_same_page(count, height, width):
    """Pages are made of large pictures one at a time."""
    rng = np.random.default_rng(0)
    tiles = [(f"{i}", rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for i in range(2)]
    tiles += tiles[:1] * (count - 2)
    most = sheets.tile_width(count, tiles[0][1])
    narrowed = [(label, sheets.narrowed(picture, most)) for label, picture in tiles]
    assert all(picture.shape[1] == min(width, most) for _, picture in narrowed)
    np.testing.assert_array_equal(sheets.grid(narrowed), sheets.grid(tiles))
