"""Figures of pictures and clips, against scikit-image, closed forms and pictures made by code."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from llenhance import metrics, niqe
from llenhance.errors import LLEnhanceError, Refusal
from llenhance.metrics import Flicker, TemporalNoise
from llenhance.niqe import NiqeModel

PHOTOS = Path(__file__).parents[2] / "shared/data/normal_photos"


def scene(height, width, seed=0):
    """A picture with structure at every size, like a photograph's 1/f spectrum."""
    rng = np.random.default_rng(seed)
    plane = np.zeros((height, width, 3), np.float32)
    for level in range(7):
        step = 2**level
        coarse = rng.normal(size=(height // step + 2, width // step + 2, 3)).astype(np.float32)
        big = cv2.resize(coarse, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        plane += big[:height, :width] * (4 + 2.2 * level)
    return np.clip(plane + 120, 0, 255).astype(np.uint8)


def noisy(picture, sigma, seed=1):
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)


# Against a reference


def test_psnr_is_over_all_samples():
    a = np.full((10, 20, 3), 100, np.uint8)
    b = a.copy()
    b[3, 4, 1] = 255  # one sample of 600; 8-bit arithmetic would wrap at 100 - 255
    assert metrics.psnr(a, b) == pytest.approx(10 * math.log10(255**2 / (155**2 / 600)))
    assert metrics.psnr(b, a) == metrics.psnr(a, b)
    assert metrics.psnr(a, a) == math.inf
    black, white = np.zeros_like(a), np.full_like(a, 255)
    assert metrics.psnr(black, white) == pytest.approx(0)


@pytest.mark.parametrize("size", [(11, 11), (11, 300), (97, 61), (240, 320)])
@pytest.mark.parametrize("sigma", [1, 30])
def test_psnr_and_ssim_equal_scikit_image(size, sigma):
    skimage = pytest.importorskip("skimage.metrics")
    reference = scene(*size)
    for out in (noisy(reference, sigma), reference // 5, noisy(reference // 9, 3)):
        options = {"channel_axis": 2, "data_range": 255, "gaussian_weights": True, "sigma": 1.5}
        wanted = skimage.structural_similarity(
            reference, out, use_sample_covariance=False, **options
        )
        assert metrics.ssim(out, reference) == pytest.approx(wanted, abs=1e-6)
        wanted = skimage.peak_signal_noise_ratio(reference, out, data_range=255)
        assert metrics.psnr(out, reference) == pytest.approx(wanted, abs=1e-4)


def test_ssim_falls_with_noise_and_is_one_for_equal_pictures():
    picture = scene(60, 80)
    assert metrics.ssim(picture, picture) == pytest.approx(1)
    scores = [metrics.ssim(noisy(picture, sigma), picture) for sigma in (2, 8, 32)]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[2] < 0.8


def test_best_gain_takes_exposure_out_and_nothing_else():
    reference = scene(60, 80)
    dark = np.round(reference * 0.4).astype(np.uint8)
    assert metrics.psnr(dark, reference) < 13
    assert metrics.psnr_best_gain(dark, reference) > 48  # what is left is rounding
    wrong_colour = reference[..., ::-1].copy()
    gained = metrics.psnr_best_gain(wrong_colour, reference)
    assert metrics.psnr(wrong_colour, reference) <= gained < 20
    # no other gain is better
    trials = [
        metrics._decibels(
            float(np.mean((np.minimum(g * dark.astype(float), 255) - reference) ** 2))
        )
        for g in (2.3, 2.45, 2.55, 2.7)
    ]
    assert metrics.psnr_best_gain(dark, reference) > max(trials)


def test_best_gain_of_black_is_the_plain_psnr():
    black, picture = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 50, np.uint8)
    assert metrics.psnr_best_gain(black, picture) == metrics.psnr(black, picture)


def test_newly_clipped_counts_pixels_not_samples_and_forgives_the_inputs_own():
    low = np.zeros((10, 10, 3), np.uint8)
    out = low.copy()
    low[0, :, 2] = 255  # ten pixels were clipped before
    out[0] = 255
    assert metrics.newly_clipped(low, out) == 0
    out[1, :5] = 255  # five pixels, all three channels
    out[2, :3, 0] = 255  # three pixels, one channel
    out[3, :, 0] = 254
    assert metrics.newly_clipped(low, out) == pytest.approx(0.08)


def test_newly_clipped_of_a_doubled_picture():
    low = scene(20, 30) // 4
    low[4, 5] = 255
    out = low.repeat(2, 0).repeat(2, 1)
    assert metrics.newly_clipped(low, out) == 0
    out[0, 0, 0] = 255
    assert metrics.newly_clipped(low, out) == pytest.approx(1 / 2400)
    with pytest.raises(LLEnhanceError, match="30x20 and 59x40"):
        metrics.newly_clipped(low, out[:, :-1])


@pytest.mark.parametrize("name", ["psnr", "psnr_best_gain", "ssim", "newly_clipped"])
def test_pictures_that_cannot_be_compared_are_refused(name):
    measure = getattr(metrics, name)
    picture = scene(20, 30)
    with pytest.raises(LLEnhanceError, match="sizes differ"):
        measure(picture, picture[:12])
    with pytest.raises(LLEnhanceError, match="uint8"):
        measure(picture, picture.astype(np.uint16))
    with pytest.raises(LLEnhanceError, match=r"\(H, W, 3\)"):
        measure(picture[..., 0], picture[..., 0])


def test_ssim_needs_one_whole_window():
    with pytest.raises(LLEnhanceError, match="11x11"):
        metrics.ssim(scene(10, 40), scene(10, 40))


# NIQE


@pytest.mark.parametrize(
    ("shape", "left", "right"), [(2.0, 1.0, 1.0), (1.0, 0.5, 0.5), (2.0, 0.5, 1.5), (0.8, 2.0, 1.0)]
)
def test_the_fit_finds_the_distribution_that_made_the_numbers(shape, left, right):
    """|x| ** shape of a generalised Gaussian is Gamma(1 / shape); a side's share is its width's."""
    rng = np.random.default_rng(3)
    size = 400_000
    magnitude = rng.gamma(1 / shape, size=size) ** (1 / shape)
    is_left = rng.random(size) < left / (left + right)
    values = np.where(is_left, -left * magnitude, right * magnitude)
    found = niqe._fit_aggd(values)
    assert found == pytest.approx((shape, left, right), rel=0.02)


def test_half_size_equals_the_cubic_of_pillow():
    from PIL import Image

    plane = scene(96, 192)[..., 0].astype(np.float64)
    image = Image.fromarray(plane.astype(np.float32)).resize((96, 48), Image.Resampling.BICUBIC)
    inner = (slice(3, -3), slice(3, -3))  # Pillow cuts its kernel at the edge, we mirror
    assert niqe._halve(plane)[inner] == pytest.approx(np.array(image)[inner], abs=1e-3)


def test_features_see_each_direction():
    rng = np.random.default_rng(5)
    plain = rng.normal(size=(96, 96))
    base = niqe._describe(plain)
    assert base.shape == (18,)
    assert base[0] == pytest.approx(2, abs=0.1)
    for index, shift in enumerate(niqe._SHIFTS):
        # values that agree with their neighbour in one direction only
        along = plain + 0.6 * np.roll(plain, shift, (0, 1))
        means = niqe._describe(along)[3::4]
        assert np.argmax(means) == index


def test_shipped_model_puts_worse_pictures_further_away():
    model = NiqeModel.load()
    assert model.mean.shape == (36,)
    assert np.linalg.eigvalsh(model.covariance).min() > -1e-6
    picture = scene(300, 400)
    clean = niqe.niqe(picture, model)
    grainy = niqe.niqe(noisy(picture, 25), model)
    blurred = niqe.niqe(cv2.GaussianBlur(picture, (0, 0), 2.5), model)
    assert clean is not None
    assert 0 < clean < min(grainy, blurred)


def test_pictures_too_small_or_flat_have_no_niqe():
    model = NiqeModel.load()
    assert niqe.niqe(scene(95, 400), model) is None
    assert niqe.niqe(scene(96, 191), model) is None
    assert niqe.niqe(scene(96, 192), model) is not None
    assert niqe.niqe(np.zeros((300, 300, 3), np.uint8), model) is None


def test_flat_blocks_do_not_spoil_a_picture():
    picture = scene(288, 384)
    picture[:96, :96] = 0
    value = niqe.niqe(picture, NiqeModel.load())
    assert value is not None
    assert math.isfinite(value)


def test_a_model_of_pictures_is_near_them_and_keeps_through_a_file(tmp_path):
    model = niqe.fit_niqe(scene(384, 480, seed) for seed in range(6))
    model.save(tmp_path / "a.npz")
    model.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = NiqeModel.load(tmp_path / "a.npz")
    assert again.mean == pytest.approx(model.mean, rel=1e-6)
    own = niqe.niqe(scene(384, 480, 99), again)
    assert own < 2.5
    assert own < niqe.niqe(noisy(scene(384, 480, 99), 12), again) - 1


def test_only_sharp_blocks_enter_a_model(monkeypatch):
    blurred = cv2.GaussianBlur(scene(384, 480, 7), (0, 0), 4)
    blurred[:, :240] = scene(384, 480, 7)[:, :240]
    features, sharpness = niqe._blocks(blurred)
    assert len(features) == 20
    sharp = sharpness > 0.75 * sharpness.max()
    assert sharp.reshape(4, 5)[:, :2].all()
    assert not sharp.reshape(4, 5)[:, 3:].any()
    pictures = [blurred] * 6  # 8 to 12 sharp blocks each
    kept = niqe.fit_niqe(pictures)
    monkeypatch.setattr(niqe, "_SHARP", 0)
    assert not np.allclose(niqe.fit_niqe(pictures).mean, kept.mean)


def test_the_published_models_names_are_understood(tmp_path):
    model = NiqeModel.load()
    path = tmp_path / "theirs.npz"
    np.savez(path, mu_pris_param=model.mean[None], cov_pris_param=model.covariance)
    theirs = NiqeModel.load(path)
    assert (theirs.mean == model.mean).all()
    assert (theirs.covariance == model.covariance).all()


def test_a_file_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(Refusal, match="cannot be read"):
        NiqeModel.load(tmp_path / "none.npz")
    path = tmp_path / "x.npz"
    path.write_bytes(b"not a zip at all")
    with pytest.raises(Refusal, match="npz"):
        NiqeModel.load(path)
    np.savez(path, mean=np.zeros(36), covariance=np.eye(36))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Refusal, match="npz"):
        NiqeModel.load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(Refusal, match="mean and covariance"):
        NiqeModel.load(path)
    np.savez(path, mean=np.zeros(18), covariance=np.eye(18))
    with pytest.raises(Refusal, match="36"):
        NiqeModel.load(path)
    np.savez(path, mean=np.full(36, np.nan), covariance=np.eye(36))
    with pytest.raises(Refusal, match="finite"):
        NiqeModel.load(path)
    np.savez(path, mean=np.array([{}], object), covariance=np.eye(36))  # would be a pickle
    with pytest.raises(Refusal):
        NiqeModel.load(path)
    np.save(tmp_path / "x.npy", np.zeros(36))
    with pytest.raises(Refusal):
        NiqeModel.load(tmp_path / "x.npy")


def test_too_few_blocks_make_no_model():
    with pytest.raises(LLEnhanceError, match="found 0"):
        niqe.fit_niqe([])
    with pytest.raises(LLEnhanceError, match="more than 36"):
        niqe.fit_niqe([scene(96, 96)])


def test_command_makes_a_model(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(4):
        cv2.imwrite(str(folder / f"{seed}.png"), scene(384, 480, seed)[..., ::-1])
    target = tmp_path / "out.npz"
    assert niqe.main([str(folder), str(target)]) == 0
    assert "4 pictures" in capsys.readouterr().err
    wanted = niqe.fit_niqe(scene(384, 480, seed) for seed in range(4))
    assert NiqeModel.load(target).mean == pytest.approx(wanted.mean, rel=1e-6)
    assert niqe.main([]) == 2
    assert niqe.main([str(tmp_path / "none"), str(target)]) == 1
    (folder / "notes.txt").write_text("no picture")
    assert niqe.main([str(folder), str(target)]) == 1
    assert "notes.txt" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the photographs that it was fitted on")
def test_shipped_model_is_what_the_command_makes(tmp_path):
    assert niqe.main([str(PHOTOS), str(tmp_path / "niqe.npz")]) == 0
    made, shipped = NiqeModel.load(tmp_path / "niqe.npz"), NiqeModel.load()
    assert made.mean == pytest.approx(shipped.mean, rel=1e-4)
    assert made.covariance == pytest.approx(shipped.covariance, rel=1e-3, abs=1e-6)


# Over time


def clip(frames=12, height=66, width=99, seed=0, gain=1.0):
    """A lamp that flickers softly over a still picture: floats in [0, 1] times ``gain``."""
    base = scene(height, width, seed).astype(np.float32) / 255
    rng = np.random.default_rng(seed)
    for level in rng.uniform(0.1, 0.14, frames):
        yield base * level * gain


def eight(frame):
    return np.round(np.clip(frame, 0, 1) * 255).astype(np.uint8)


def sixteen(frame):
    return np.round(np.clip(frame, 0, 1) * 65535).astype(np.uint16)


def measured(pairs):
    flicker = Flicker()
    for frame, enhanced in pairs:
        flicker.add(frame, enhanced)
    return flicker


@pytest.mark.parametrize("gain", [1.0, 3.0, 6.5])
def test_a_steady_gain_gives_one(gain):
    flicker = measured((sixteen(f), sixteen(f * gain)) for f in clip())
    assert flicker.whole == pytest.approx(1, abs=2e-3)
    assert flicker.blocks == pytest.approx(1, abs=2e-3)
    assert flicker.gain == pytest.approx(gain, rel=1e-3)


def test_sizes_and_depths_may_differ():
    same = measured((sixteen(f), eight(f * 4)) for f in clip())
    doubled = measured((sixteen(f), eight(f * 4).repeat(2, 0).repeat(2, 1)) for f in clip())
    assert same.whole == pytest.approx(1, abs=0.05)
    assert doubled.whole == pytest.approx(same.whole, rel=1e-6)
    assert doubled.blocks == pytest.approx(same.blocks, rel=0.02)


def test_pumping_shows_in_proportion():
    def pump(size):
        signs = np.resize([1 + size, 1 - size], 12)
        return measured(
            (sixteen(f), sixteen(f * 4 * s)) for f, s in zip(clip(), signs, strict=True)
        )

    values = [pump(size).whole for size in (0.0, 0.1, 0.2, 0.4)]
    assert values == sorted(values)
    assert values[-1] > 3 * values[0]


def test_pumping_of_one_corner_shows_in_the_blocks_not_in_the_whole():
    def frames():
        for index, frame in enumerate(clip(30)):
            out = frame * 4
            sign = 1 if index % 2 else -1
            out[:33, :49] *= 1 + 0.2 * sign
            out[:33, 49:] *= 1 - 0.2 * sign
            yield sixteen(frame), sixteen(out)

    flicker = measured(frames())
    assert flicker.whole < 1.4
    assert flicker.blocks > 1.9


def test_second_difference_by_hand():
    """Lumas 10, 20, 40 in and 40, 60, 180 out: |10| and |100|, mean gain 4."""
    flicker = Flicker()
    for low, high in ((10, 40), (20, 60), (40, 180)):
        assert flicker.whole is None
        flicker.add(np.full((9, 9, 3), low, np.uint8), np.full((9, 9, 3), high, np.uint8))
    assert flicker.frames == 3
    assert flicker.gain == pytest.approx(4)
    assert flicker.whole == pytest.approx(100 / (10 * 4))
    assert flicker.blocks == pytest.approx(100 / (10 * 4))


def test_a_steady_brightening_is_no_flicker_and_still_input_allows_none():
    ramp = [np.full((16, 16, 3), 10 * k, np.uint8) for k in range(1, 7)]
    still = [np.full((16, 16, 3), 10, np.uint8)] * 6
    assert measured(zip(still, ramp, strict=True)).whole == pytest.approx(1)
    assert measured(zip(still, still, strict=True)).whole == 1
    ramp[3] = ramp[0]
    assert measured(zip(still, ramp, strict=True)).whole == math.inf


def test_frames_smaller_than_the_grid_have_blocks_too():
    frames = [np.full((3, 1, 3), value, np.uint8) for value in (3, 5, 11)]
    assert measured(zip(frames, frames, strict=True)).blocks == pytest.approx(1)


def test_other_arrays_are_no_frames():
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(LLEnhanceError):
            metrics.luma(wrong)


def noise_of(frames):
    noise = TemporalNoise()
    for frame in frames:
        noise.add(frame)
    return noise.before


@pytest.mark.parametrize("sigma", [2.0, 6.0])
def test_noise_of_a_still_scene_is_found_in_code_values(sigma):
    rng = np.random.default_rng(1)
    base = scene(80, 120) // 2 + 40
    noise = TemporalNoise()
    for _ in range(8):
        grain = rng.normal(0, sigma, (80, 120, 1))  # grey grain: its luma has the same deviation
        frame = np.round(base + grain).astype(np.uint8)
        noise.add(frame, base)
    assert noise.before == pytest.approx(sigma, rel=0.03)
    assert noise.after == 0


def test_noise_is_that_of_the_still_part_also_where_something_moves():
    rng = np.random.default_rng(2)

    def frames(move):
        base = scene(120, 200) // 2 + 40
        for index in range(10):
            frame = base.astype(np.float64)
            if move:
                frame[30:70, 12 * index : 12 * index + 50] = 230
            yield np.round(np.clip(frame + rng.normal(0, 3, (120, 200, 1)), 0, 255)).astype(
                np.uint8
            )

    still, moving = noise_of(frames(False)), noise_of(frames(True))
    assert still == pytest.approx(3, rel=0.05)
    assert moving == pytest.approx(still, rel=0.05)


def test_noise_does_not_count_slow_light_and_scales_with_the_gain():
    rng = np.random.default_rng(4)
    noise = TemporalNoise()
    base = scene(80, 120) // 8 + 10
    for index in range(20):
        frame = base + 0.5 * index + rng.normal(0, 1.5, base.shape[:2])[..., None]
        low = np.round(np.clip(frame, 0, 60)).astype(np.uint8)
        noise.add(low, (low * 4).repeat(2, 0).repeat(2, 1))
    assert noise.before == pytest.approx(1.55, abs=0.12)
    assert noise.after == pytest.approx(4 * noise.before, rel=0.05)


def test_noise_of_one_frame_is_unknown():
    assert noise_of([scene(20, 20)]) is None
