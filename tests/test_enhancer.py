"""Enhancer: layouts, controls, strength, sizes."""

import itertools

import cv2
import numpy as np
import pytest
from conftest import SHARED, real_dark_photos
from hypothesis import given, settings
from hypothesis import strategies as st

import llenhance
from llenhance import METHODS, load
from llenhance.errors import ControlError, LLEnhanceError

METHOD_NAMES = list(METHODS)


@pytest.fixture(scope="module")
def enhancers():
    opened = {}

    def get(name):
        if name not in opened:
            opened[name] = load(name, device="cpu")
        return opened[name]

    return get


def picture(height, width, channels, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shape = (height, width) if channels == 0 else (height, width, channels)
    values = rng.random(shape) * 0.3
    if dtype == np.float32:
        return values.astype(np.float32)
    return (values * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_enhancing_makes_dark_pictures_brighter(enhancers, name):
    dark = picture(64, 96, 3, np.uint8) // 4
    assert enhancers(name).enhance(dark).mean() > 1.5 * dark.mean()


@settings(max_examples=40)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([0, 1, 2, 3, 4]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    strength=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_layout_and_dtype_come_back(height, width, channels, dtype, strength):
    image = picture(height, width, channels, dtype)
    out = SHARED_ENHANCER.enhance(image, strength=strength)
    assert out.shape == image.shape
    assert out.dtype == image.dtype
    if channels in (2, 4):
        np.testing.assert_array_equal(out[..., -1], image[..., -1])
    if strength == 0 and channels >= 3:
        np.testing.assert_allclose(out, image, atol=1e-6 if dtype == np.float32 else 0)


SHARED_ENHANCER = load("lightweight", device="cpu")


@pytest.mark.parametrize("name", METHOD_NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (2, 3), (31, 33)], ids=str)
def test_every_size_works(enhancers, name, size):
    for scale in METHODS[name].scales:
        out = enhancers(name).enhance(picture(*size, 3, np.uint8), scale=scale)
        assert out.shape == (size[0] * scale, size[1] * scale, 3)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_strength_blends(enhancers, name):
    image = picture(48, 40, 3, np.float32)
    enhancer = enhancers(name)
    full = enhancer.enhance(image)
    half = enhancer.enhance(image, strength=0.5)
    np.testing.assert_allclose(half, (image + full) / 2, atol=1e-5)
    np.testing.assert_allclose(enhancer.enhance(image, strength=0), image, atol=1e-6)


def test_scale_two_blends_with_the_enlarged_input(enhancers):
    image = np.full((20, 30, 3), 40, np.uint8)
    out = enhancers("neid").enhance(image, scale=2, strength=0)
    assert out.shape == (40, 60, 3)
    assert (out == 40).all()


def test_dtype_decides_the_range_not_the_values(enhancers):
    """A 16-bit picture whose values all fit in 8 bits is still nearly black."""
    image = np.full((16, 16, 3), 200, np.uint16)
    out = enhancers("lightweight").enhance(image, strength=0)
    np.testing.assert_array_equal(out, image)
    eight = enhancers("lightweight").enhance(np.zeros((16, 16, 3), np.uint8)) / 255
    sixteen = enhancers("lightweight").enhance(image) / 65535
    assert np.abs(eight - sixteen).max() < 0.2


def test_residual_returns_its_map(enhancers):
    image = picture(33, 47, 3, np.uint8)
    out, difference = enhancers("residual").enhance(image, return_map=True, alpha=0.0)
    assert difference.shape == image.shape
    assert difference.dtype == np.float32
    again, same = enhancers("residual").enhance(image, return_map=True, alpha=2.0)
    np.testing.assert_allclose(difference, same, atol=1e-6)
    assert not np.array_equal(out, again)


@pytest.mark.skipif(not real_dark_photos(1), reason="no real photos beside this checkout")
@pytest.mark.parametrize(
    "share", [pytest.param("some"), pytest.param("all", marks=pytest.mark.slow)]
)
def test_alpha_is_a_strength(enhancers, share):
    """The mean of the float output rises strictly with alpha on every dark photo."""
    enhancer = enhancers("residual")
    paths = sorted((SHARED / "dark_photos").glob("*.jpg"))
    for path in paths if share == "all" else paths[::25]:
        image = cv2.imread(str(path))[:, :, ::-1]
        if max(image.shape) > 320:
            factor = 320 / max(image.shape)
            image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = image.astype(np.float32) / 255
        means = [enhancer.enhance(image, alpha=a).mean() for a in (0.25, 0.5, 1, 1.5, 2)]
        assert all(a < b for a, b in itertools.pairwise(means)), (path.name, means)


def test_controls_that_are_not_there_are_refused(enhancers):
    dln, neid = enhancers("dln"), enhancers("neid")
    image = picture(8, 8, 3, np.uint8)
    for call, words in (
        (lambda: dln.enhance(image, alpha=1.0), "alpha.*dln has no such control; residual has it"),
        (lambda: dln.enhance(image, gamma=1.0), "no method has it"),
        (lambda: dln.enhance(image, scale=2), "scale 2: dln has scale 1; neid has 2"),
        (lambda: neid.enhance(image, scale=3), "no method has 3"),
        (lambda: dln.enhance(image, return_map=True), "dln has no map; residual has one"),
        (lambda: dln.enhance(image, strength=1.5), "strength 1.5"),
        (lambda: enhancers("residual").enhance(image, alpha=2.5), "alpha 2.5: it goes from 0 to 2"),
        (lambda: enhancers("residual").enhance(image, alpha=float("nan")), "alpha nan"),
        (lambda: load("dnl"), "no method 'dnl'; there are dln, lightweight"),
    ):
        with pytest.raises(ControlError, match=words):
            call()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((4, 4, 3), np.int32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4,), np.uint8),
        "photo.jpg",
    ],
    ids=["channels", "dtype", "empty", "line", "name"],
)
def test_what_is_no_picture_is_refused(enhancers, image):
    with pytest.raises(LLEnhanceError) as error:
        enhancers("lightweight").enhance(image)
    assert "\n" not in str(error.value)


def test_public_names():
    assert set(llenhance.__all__) == {
        "METHODS",
        "Enhancer",
        "LLEnhanceError",
        "__version__",
        "load",
    }
    for name in llenhance.__all__:
        assert getattr(llenhance, name) is not None
    with pytest.raises(AttributeError):
        _ = llenhance.lode
