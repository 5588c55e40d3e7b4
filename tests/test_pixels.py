"""llenhance.pixels: layouts, depths, and light beyond the range."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import dark_scene_16

from llenhance import pixels
from llenhance.errors import LLEnhanceError
from llenhance.pixels import reflected

DTYPES = (np.uint8, np.uint16, np.float32)


def picture(height, width, channels, dtype, seed=0):
    """Random values over the whole range; ``channels`` 0 is (H, W)."""
    shape = (height, width, channels) if channels else (height, width)
    values = np.random.default_rng(seed).random(shape, np.float32)
    return pixels.from_float(values, np.dtype(dtype))


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 4),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
def test_split_and_join_are_inverse(height, width, channels, dtype, seed):
    image = picture(height, width, channels, dtype, seed)
    rgb, layout = pixels.split(image)
    assert rgb.shape == (height, width, 3)
    assert rgb.dtype == dtype
    assert rgb.flags.c_contiguous
    back = pixels.join(rgb, layout)
    assert back.shape == image.shape
    assert back.dtype == dtype
    assert np.array_equal(back, image)


def test_grey_is_repeated_and_comes_back_as_luma():
    image = picture(4, 5, 0, np.uint8)
    rgb, layout = pixels.split(image)
    assert (rgb == image[..., None]).all()
    assert layout.grey
    tinted = np.zeros((4, 5, 3), np.uint8)
    tinted[..., 0] = 200
    assert (pixels.join(tinted, layout) == 60).all()  # 0.299 x 200, rounded


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_is_untouched_and_grows_with_the_picture(channels, dtype):
    image = picture(6, 7, channels, dtype)
    rgb, layout = pixels.split(image)
    brighter = pixels.from_float(pixels.to_float(rgb) / 2 + 0.5, rgb.dtype)
    assert np.array_equal(pixels.join(brighter, layout)[..., -1], image[..., -1])
    twice = pixels.join(brighter.repeat(2, 0).repeat(2, 1), layout)
    assert twice.shape == (12, 14, channels)
    assert twice.dtype == dtype
    alpha = pixels.to_float(twice[..., -1])
    assert alpha.mean() == pytest.approx(pixels.to_float(image[..., -1]).mean(), abs=0.02)
    assert alpha[0, 0] == pytest.approx(pixels.to_float(image[..., -1])[0, 0], abs=0.003)


def test_floats_come_back_in_the_depth_that_was_split():
    image = picture(5, 5, 4, np.uint16)
    rgb, layout = pixels.split(image)
    back = pixels.join(pixels.to_float(rgb), layout)
    assert back.dtype == np.uint16
    assert np.array_equal(back, image)


def test_range_follows_from_the_dtype_not_from_the_values():
    dark = dark_scene_16()
    assert dark.max() < 256
    assert pixels.to_float(dark).max() < 256 / 65535 + 1e-6
    assert np.array_equal(pixels.from_float(pixels.to_float(dark), dark.dtype), dark)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_every_value_survives_floats_and_half_a_step_rounds(dtype):
    top = pixels.WHITE[np.dtype(dtype)]
    every = np.arange(top + 1, dtype=dtype).reshape(1, -1)
    assert np.array_equal(pixels.from_float(pixels.to_float(every), np.dtype(dtype)), every)
    near = np.array([[0.6 / top, -3, 7]], np.float32)
    assert pixels.from_float(near, np.dtype(dtype)).tolist() == [[1, 0, top]]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((2, 2, 5), np.uint8), "(2, 2, 5)"),
        (np.zeros(4, np.uint8), "(4,)"),
        (np.zeros((2, 2), np.int32), "int32"),
        (np.zeros((2, 2), np.float64), "float64"),
        (np.zeros((0, 3, 3), np.uint8), "empty"),
        ([[1]], "list"),
    ],
)
def test_no_picture_is_one_line(image, words):
    with pytest.raises(LLEnhanceError) as caught:
        pixels.split(image)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_colours_of_another_size_do_not_join():
    _, layout = pixels.split(np.zeros((4, 4), np.uint8))
    with pytest.raises(LLEnhanceError, match="do not fit"):
        pixels.join(np.zeros((6, 4, 3), np.uint8), layout)


def test_enlarge_is_linear_between_centres():
    row = np.array([[0, 1]], np.float32)
    assert pixels.enlarge(row, 2).tolist() == [[0, 0.25, 0.75, 1]] * 2


def test_tone_map_leaves_a_picture_in_range_alone_and_bends_only_highlights():
    inside = picture(4, 4, 3, np.float32)
    assert np.array_equal(pixels.tone_map(inside), inside)
    scene = inside.copy() * 0.7
    scene[0, 0] = (40, 20, 10)
    scene[0, 1] = (0.9, 0.45, 0)
    mapped = pixels.tone_map(scene)
    assert np.array_equal(mapped[1:], scene[1:])
    assert mapped.max() <= 1
    assert mapped[0, 0, 0] / mapped[0, 0, 2] == pytest.approx(4, rel=1e-5)  # hue is kept
    assert 0.8 < mapped[0, 1, 0] < 0.9 < mapped[0, 0, 0]


def test_tone_map_takes_any_float():
    odd = np.array([[[np.nan, -1, 0.5], [np.inf, 1, 0], [3e38, 3e38, 3e38]]], np.float32)
    mapped = pixels.tone_map(odd)
    assert np.isfinite(mapped).all()
    assert mapped.min() >= 0
    assert mapped.max() <= 1


def test_apply_change_gives_the_networks_output_where_it_saw_the_values():
    original = picture(4, 4, 3, np.float32)
    enhanced = np.sqrt(original)
    assert np.array_equal(pixels.apply_change(original, original, enhanced), enhanced)


def test_apply_change_keeps_highlights_above_what_the_network_can_say():
    original = np.full((2, 2, 3), 0.1, np.float32)
    original[0, 0] = 8
    mapped = pixels.tone_map(original)
    result = pixels.apply_change(original, mapped, np.minimum(mapped * 2, 1))
    assert result[1, 1, 0] == pytest.approx(0.2)
    assert (result[0, 0] >= 8).all()
    same = pixels.apply_change(original, mapped, mapped)
    assert np.allclose(same, original, rtol=1e-6)


def test_apply_change_at_twice_the_size_and_with_infinite_light():
    original = np.full((2, 2, 3), 3e38, np.float32)
    original[0, 0] = np.inf
    mapped = pixels.tone_map(original)
    result = pixels.apply_change(original, mapped, np.ones((4, 4, 3), np.float32))
    assert result.shape == (4, 4, 3)
    assert np.isfinite(result).all()
    assert result.min() > 1e38


def test_nan_becomes_black():
    assert pixels.from_float(np.array([[np.nan, 1]], np.float32), np.dtype(np.uint8)).tolist() == [
        [0, 255]
    ]


def test_reflected_on_both_sides_to_a_multiple():
    assert reflected(5, 8).tolist() == [1, 0, 1, 2, 3, 4, 3, 2]
    assert reflected(8, 8).tolist() == list(range(8))
    assert reflected(2, 8).tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    assert reflected(1, 4).tolist() == [0, 0, 0, 0]
