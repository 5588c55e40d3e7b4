"""--fast: what a network did to a reduced copy is carried to the picture."""

import json
import tracemalloc

import av
import cv2
import numpy as np
import pytest
from clips import clip, decoded
from conftest import real_dark_photos
from test_cli import FAST, JOURNAL, llenhance, ok, picture, size

from llenhance import METHODS, fast, load, pixels
from llenhance.errors import ControlError
from llenhance.jobs import Settings
from llenhance.metrics import psnr, ssim

LEVELS = {np.uint8: 255, np.uint16: 65535, np.float32: 1}


def dark(height, width, seed=0, dtype=np.uint8, noise=0.004):
    """A dark picture with smooth parts, texture, hard edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    values = np.empty((height, width, 3), np.float32)
    for channel in range(3):
        values[..., channel] = 0.06 + 0.04 * np.sin(x / 90 + channel) * np.cos(y / 70)
    values[(x // 40 + y // 60) % 3 == 0] *= np.float32([1.6, 1.2, 0.8])
    values += 0.01 * np.sin(x * 1.7)[..., None] * (y > height / 2)[..., None]
    values += noise * rng.standard_normal(values.shape, np.float32)
    return pixels.from_float(np.clip(values, 0, 1), np.dtype(dtype))


def levels(a, b):
    """The largest difference in levels of 255."""
    return np.abs(pixels.to_float(a) - pixels.to_float(b)).max() * 255


@pytest.fixture(scope="module")
def lightweight():
    return load("lightweight", device="cpu")


# --- what is carried ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LEVELS, ids=lambda d: d.__name__)
def test_no_change_is_no_change(dtype):
    image = dark(700, 1501, dtype=dtype)
    copy = fast.reduced(image, 300)
    out = fast.carried(image, copy, copy)
    assert out.dtype == dtype
    assert levels(out, image) < 1e-3 + (dtype == np.uint8)
    if dtype == np.uint8:
        np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize("dtype", LEVELS, ids=lambda d: d.__name__)
@pytest.mark.parametrize("noise", [0, 0.004, 0.02])
def test_a_gain_is_carried_exactly(dtype, noise):
    image = dark(700, 1501, dtype=dtype, noise=noise)
    copy = fast.reduced(image, 700)
    out = fast.carried(image, copy, 3 * copy)
    truth = pixels.from_float(np.minimum(3 * pixels.to_float(image), 1), np.dtype(dtype))
    difference = np.abs(pixels.to_float(out) - pixels.to_float(truth)) * 255
    assert difference.max() <= 1.01


def test_an_affine_change_of_colours_is_carried_exactly():
    image = dark(600, 1200, noise=0.02)
    copy = fast.reduced(image, 600)
    matrix = np.array([[1.8, 0.3, 0], [0.1, 2.0, 0.2], [0, 0.4, 1.5]], np.float32)
    offset = np.array([0.05, 0.02, 0.1], np.float32)
    truth = pixels.from_float(pixels.to_float(image) @ matrix.T + offset, np.dtype(np.uint8))
    out = fast.carried(image, copy, copy @ matrix.T + offset)
    assert np.abs(out.astype(int) - truth).max() <= 1


def test_detail_that_the_copy_does_not_have_stays():
    """Stripes of two pixels vanish from a copy of an eighth; they come back with the gain."""
    image = np.full((512, 512, 3), 20, np.uint8)
    image[:, ::4] += 8
    image[:, 1::4] += 8
    copy = fast.reduced(image, 64)
    assert np.ptp(copy[8:-8, 8:-8]) < 1e-3
    out = fast.carried(image, copy, np.minimum(4 * copy, 1)).astype(int)
    dark_stripe, bright_stripe = out[:, 2::4].mean(), out[:, ::4].mean()
    assert 1.8 * 8 < bright_stripe - dark_stripe < 4.2 * 8
    assert abs(out.mean() - 4 * image.mean()) < 1


def lamp(height=800, width=1600, radius=60):
    """(a dark street with one round lamp, the distance of each pixel from its edge)."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance = np.hypot(y - height / 2, x - width / 2) - radius
    inside = np.clip(0.5 - distance, 0, 1)[..., None]
    values = np.float32([0.02, 0.025, 0.04]) + 0.03 * (y / height)[..., None]
    values = values + (1 - values) * inside * np.float32([1, 0.95, 0.8])
    values += 0.004 * np.random.default_rng(1).standard_normal((height, width, 1), np.float32)
    return pixels.from_float(values.astype(np.float32), np.dtype(np.uint8)), distance


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_no_halo_around_a_lamp(reduction):
    """A curve that makes black ten times as bright and leaves white where it is."""
    image, distance = lamp()

    def bent(rgb):
        return rgb ** np.float32(0.45)

    truth = bent(pixels.to_float(image)) * 255
    copy = fast.reduced(image, 1600 // reduction)
    out = fast.carried(image, copy, bent(copy)).astype(np.float32)
    error = cv2.blur(out - truth, (5, 5))  # what is seen is light, not noise
    around = distance / reduction  # in pixels of the copy
    assert np.abs(error[(around > 1) & (around <= 4)]).max() < 9
    assert np.abs(error[around > 4]).max() < 2  # beyond the window and its smoothing: nothing
    assert np.abs(error[distance < -3]).max() < 12  # and the lamp is no duller


def test_a_steady_scene_is_as_steady_as_it_would_be():
    """Noise from frame to frame grows no more than the same change of light makes it grow."""
    frames = [dark(300, 500, seed, noise=0.006) for seed in range(8)]
    quiet = np.float32(dark(300, 500, 0, noise=0))
    assert np.abs(np.mean(frames, axis=0) - quiet).mean() < 1  # the scene itself is still

    def bent(rgb):
        return rgb ** np.float32(0.5)

    whole = [bent(pixels.to_float(frame)) * 255 for frame in frames]
    copies = [fast.reduced(frame, 125) for frame in frames]
    carried = [fast.carried(f, c, bent(c)) for f, c in zip(frames, copies, strict=True)]
    assert np.std(carried, axis=0).mean() < 1.05 * np.std(whole, axis=0).mean()
    light = [frame.mean() for frame in carried]
    assert np.ptp(light) < np.ptp([frame.mean() for frame in whole]) + 0.3


# --- sizes, memory --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(1, 1500), (1500, 1), (2, 40000), (1100, 3), (1027, 1031), (333, 1333)], ids=str
)
@pytest.mark.parametrize("scale", [1, 2])
def test_sizes(shape, scale):
    image = dark(*shape)
    copy = fast.reduced(image)
    assert max(copy.shape[:2]) == fast.SIDE
    assert abs(copy.mean() * 255 - image.mean()) < 0.5
    grown = pixels.enlarge(copy, scale)
    out = fast.carried(image, copy, grown, scale)
    truth = pixels.from_float(pixels.enlarge(pixels.to_float(image), scale), image.dtype)
    assert out.shape == truth.shape
    # Enlarged and reduced again a copy is a little softer than it was.
    assert np.abs(out.astype(int) - truth).mean() < (0.02 if scale == 1 else 1)


def test_a_copy_is_the_mean_of_what_it_covers():
    image = dark(600, 1200)
    copy = fast.reduced(image, 300)
    blocks = image.reshape(150, 4, 300, 4, 3).mean((1, 3)) / 255
    np.testing.assert_allclose(copy, blocks, atol=1e-5)  # not rounded to 255 levels
    np.testing.assert_allclose(fast.reduced(image, 5000), image / 255, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_bands_are_the_whole(monkeypatch, scale):
    image = dark(301, 403)
    copy = fast.reduced(image, 100)
    changed = pixels.enlarge(np.sqrt(copy), scale)
    whole = fast.carried(image, copy, changed, scale)
    for band, threads in ((1, 1), (5000, 1), (5000, 3), (100_000, 2)):
        monkeypatch.setattr(fast, "BAND", band)
        again = fast.reduced(image, 100, threads=threads)
        np.testing.assert_allclose(again, copy, atol=1e-6)
        again = fast.carried(image, copy, changed, scale, threads=threads)
        off = np.abs(again.astype(int) - whole)  # sums in another order, rounded to whole levels
        assert off.max() <= 1
        assert (off > 0).mean() < 1e-4


def test_memory_does_not_grow_with_the_picture():
    """Beside the result, and the rows of the copy, only the bands."""

    def most(height, width):
        image = np.full((height, width, 3), 20, np.uint8)
        tracemalloc.start()
        try:
            copy = fast.reduced(image)
            fast.carried(image, copy, copy)
            return tracemalloc.get_traced_memory()[1] - image.size
        finally:
            tracemalloc.stop()

    small, large = most(1500, 2000), most(6000, 8000)
    assert large < small + 45 * 10**6  # the picture itself grew by 135, as float32 by 540 million


# --- through the enhancer -------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
def test_up_to_1024_pixels_it_is_the_full_result(lightweight, channels):
    image = dark(300, fast.SIDE)
    image = image[..., 0] if channels == 0 else np.dstack((image, image))[..., :channels]
    full = lightweight.enhance(image)
    np.testing.assert_array_equal(lightweight.enhance(image, fast=True), full)


@pytest.mark.parametrize("dtype", LEVELS, ids=lambda d: d.__name__)
@pytest.mark.parametrize("channels", [0, 2, 3, 4])
def test_layout_and_dtype_come_back(lightweight, dtype, channels):
    image = dark(90, 1300, dtype=dtype)
    image = image[..., 0] if channels == 0 else np.dstack((image, image))[..., :channels]
    out = lightweight.enhance(image, fast=True)
    assert out.shape == image.shape
    assert out.dtype == dtype
    assert out.mean() > 1.3 * image.mean()
    if channels in (2, 4):
        np.testing.assert_array_equal(out[..., -1], image[..., -1])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_stays_close_to_its_full_result(name):
    """Through a copy of three quarters, of a scene without noise."""
    enhancer = load(name, device="cpu")
    image = dark(256, 1360, noise=0)
    for scale in METHODS[name].scales:
        full = enhancer.enhance(image, scale=scale)
        out = enhancer.enhance(image, scale=scale, fast=True)
        assert out.shape == full.shape
        assert psnr(out, full) > 24
        assert ssim(out, full) > 0.85


def test_strength_and_controls_reach_the_copy(lightweight):
    image = dark(200, 1400)
    np.testing.assert_array_equal(lightweight.enhance(image, strength=0, fast=True), image)
    full = lightweight.enhance(image, fast=True).astype(float)
    half = lightweight.enhance(image, strength=0.5, fast=True)
    assert np.abs(half - (full + image) / 2).max() <= 1.01
    residual = load("residual", device="cpu")
    means = [residual.enhance(image, alpha=a, fast=True).mean() for a in (0.5, 1, 2)]
    assert means[0] < means[1] < means[2]


def test_light_above_one_keeps_its_excess(lightweight):
    image = dark(200, 1400, dtype=np.float32)
    image[50:80, 600:700] = 6
    out = lightweight.enhance(image, fast=True)
    assert np.isfinite(out).all()
    assert out[55:75, 610:690].min() > 4
    assert out[120:].max() < 1


def test_there_is_no_map(lightweight):
    image = dark(20, 1100)
    with pytest.raises(ControlError, match="fast gives no map"):
        load("residual", device="cpu").enhance(image, return_map=True, fast=True)
    with pytest.raises(ControlError, match="alpha"):
        lightweight.enhance(image, fast=True, alpha=1.0)


@pytest.mark.skipif(not real_dark_photos(1), reason="no real photos beside this checkout")
def test_real_photos_agree_with_the_full_result():
    """At a reduction of two, for the default method; `python -m benchmarks.agreement` has more."""
    enhancer = load("dln", device="cpu")
    found = []
    for path in real_dark_photos(6):
        photo = np.ascontiguousarray(cv2.imread(str(path))[:, :, ::-1])
        full = enhancer.enhance(photo)
        copy = fast.reduced(photo, max(photo.shape) // 2)
        out = fast.carried(photo, copy, enhancer.enhance(copy))
        found.append((psnr(out, full), ssim(out, full)))
    decibels, likeness = np.mean(found, axis=0)
    assert decibels > 29
    assert likeness > 0.92


# --- from the command line ------------------------------------------------------------------------


def test_the_command(tmp_path):
    photo = picture(tmp_path / "photo.png", 40, 1100)
    ok(photo, *FAST, "-o", tmp_path / "full.png")
    ok(photo, *FAST, "--fast", "-o", tmp_path / "fast.png")
    assert size(tmp_path / "fast.png") == (1100, 40)
    full, quick = (cv2.imread(str(tmp_path / name)) for name in ("full.png", "fast.png"))
    assert not np.array_equal(full, quick)
    assert psnr(quick, full) > 25
    assert b"lightweight, fast, weights" in (tmp_path / "fast.png").read_bytes()
    assert b"fast" not in (tmp_path / "full.png").read_bytes()


def test_the_journal_tells_it_from_the_full_result(tmp_path):
    picture(tmp_path / "in" / "a.png", 30, 1100)
    command = (tmp_path / "in", "-o", tmp_path / "out", *FAST, "--on-exists", "skip", "--json")

    def statuses(*more):
        lines = llenhance(*command, *more).stdout.decode().splitlines()
        return [json.loads(line)["status"] for line in lines]

    assert statuses() == ["done"]
    full = (tmp_path / "out" / "a.png").read_bytes()
    assert statuses("--fast") == ["done"]
    assert (tmp_path / "out" / "a.png").read_bytes() != full
    assert statuses("--fast") == ["skipped"]
    assert statuses() == ["done"]
    assert (tmp_path / "out" / "a.png").read_bytes() == full
    entries = (tmp_path / "out" / JOURNAL).read_text().splitlines()
    assert [json.loads(line)["recipe"]["fast"] for line in entries] == [False, True, False]


def test_pieces_of_a_video_are_not_taken_for_those_of_the_full_result(lightweight):
    """The recipe decides whether an interrupted video goes on."""
    plain, quick = (
        Settings(1.0, None, {}, "auto", None, overwrite=False, fast=fast_)
        for fast_ in (False, True)
    )
    assert plain.recipe(lightweight) != quick.recipe(lightweight)
    assert quick.together(lightweight) is None


def test_a_video(tmp_path):
    source = clip(tmp_path / "dark.mp4", frames=6, size=(1088, 64))
    for name, more in (("full.mkv", ()), ("fast.mkv", ("--fast",))):
        ok(source, "-o", tmp_path / name, *FAST, "--codec", "ffv1", *more)
    with av.open(str(tmp_path / "fast.mkv")) as file:
        assert (file.streams.video[0].width, file.streams.video[0].height) == (1088, 64)
    full, quick = (
        [frame.to_ndarray(format="rgb24") for frame in decoded(tmp_path / name)[1]]
        for name in ("full.mkv", "fast.mkv")
    )
    assert len(full) == len(quick) == 6
    assert all(not np.array_equal(a, b) for a, b in zip(full, quick, strict=True))
    assert all(psnr(a, b) > 25 for a, b in zip(quick, full, strict=True))
