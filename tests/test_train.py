"""Training: data, losses, recipes, and runs that resume to the bit."""

import copy
import itertools
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from trainings import made, save, small_data, trainer

from llenhance import checkpoints
from llenhance.errors import Refusal
from llenhance.methods import METHODS
from llenhance.train import losses, schedules
from llenhance.train.batches import (
    draw_compressed_pairs,
    draw_less_modelled,
    draw_mild_pairs,
    draw_modelled,
    draw_pairs,
    draw_unpaired,
    draw_unpaired_and_lit,
)
from llenhance.train.data import (
    Data,
    Pair,
    View,
    compressed,
    cut,
    in_shade,
    lose_light,
    matched,
    one_per_scene,
    partly_unlit,
    pictures,
    read_pairs,
    rexpose,
    underexpose,
    with_lamps,
)
from llenhance.train.paper import PAPER
from llenhance.train.recipes import MILD, RECIPES, enlightengan_generator
from llenhance.train.slopes import QuickPReLU, quickened
from llenhance.train.unpaired import dark_and_normal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same as files."""
    root = tmp_path_factory.mktemp("data")
    rows = ["stem\tscene\tsplit"]
    for n, high in enumerate(made()):
        save(root / "pairs" / "high" / f"{n}.png", high[..., ::-1])
        save(root / "pairs" / "low" / f"{n}.png", high[..., ::-1] // 10)
        save(root / "normal" / f"{n}.png", 255 - high[..., ::-1])
        save(root / "dark" / f"{n}.png", high[..., ::-1] // 20)
        rows.append(f"{n}\t{n // 2}\t{'validation' if n // 2 == 3 else 'train'}")
    (root / "pairs" / "scenes.tsv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def data():
    return small_data()


# --- data -----------------------------------------------------------------------------------------


def test_validation_scenes_are_held_out(folder, data):
    training, validation = read_pairs(folder / "pairs")
    for found, expected in ((training, data.pairs), (validation, data.validation)):
        for one, other in zip(found, expected, strict=True):
            assert (one.name, one.scene) == (other.name, other.scene)
            np.testing.assert_array_equal(one.low, other.low)
            np.testing.assert_array_equal(one.high, other.high)
    assert [p.name for p in data.validation] == ["6", "7"]
    assert not {p.scene for p in data.pairs} & {p.scene for p in data.validation}
    assert len(one_per_scene(data.validation, 5)) == 1
    assert [p.name for p in one_per_scene(data.pairs, 2)] == ["0", "4"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b\ts\tval", "b: split 'val' is neither train nor validation"),
        ("b\ts", "b lacks its stem or scene or split"),
        ("b\t\ttrain", "b lacks its stem or scene or split"),
        ("a\tr\ttrain", "a appears in two rows"),
        ("b\tr\ttrain", "scene r has two splits, at b another one"),
        ("B\ts\tvalidation", "B is to be held out, and there is no such pair"),
    ],
)
def test_a_slip_in_the_table_of_scenes_does_not_leak_what_is_held_out(row, message, tmp_path):
    for name in "ab":
        for side in ("low", "high"):
            save(tmp_path / side / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "scenes.tsv").write_text(f"stem\tscene\tsplit\na\tr\t validation \n{row}\n")
    with pytest.raises(Refusal, match=message):
        read_pairs(tmp_path)


def test_pairs_are_matched_by_name(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    for name in ("a", "b", "c"):
        save(tmp_path / "low" / f"{name}.png", image)
    for name in ("c", "a", "x"):
        save(tmp_path / "high" / f"{name}.jpg", image)
    found = [(a.stem, b.stem) for a, b in matched(tmp_path / "low", tmp_path / "high")]
    assert found == [("a", "a"), ("c", "c")]


def test_what_macos_puts_beside_a_picture_is_none(tmp_path):
    save(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "._a.png").write_bytes(b"its window's place")
    assert [path.name for path in pictures(tmp_path)] == ["a.png"]


def test_crops_stay_aligned(data):
    pair = data.pairs[0]
    for seed in range(20):
        view = View(24, 32, 1, reduce=1 + seed % 3)
        low, high = cut([pair.low, pair.high], view, np.random.default_rng(seed))
        assert low.shape == high.shape == (24, 32, 3)
        assert np.abs(low * 10 - high).mean() < 0.03
        again, _ = cut([pair.low, pair.high], view, np.random.default_rng(seed))
        np.testing.assert_array_equal(low, again)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
@pytest.mark.parametrize("view", [View(20, 30, 1, reduce=2), View(30, 20, 1, reduce=2)])
def test_a_whole_picture_is_turned_into_the_view(shape, view):
    """Across it, it would be a part that is enlarged; and it is shown in all four ways."""
    y, x = np.mgrid[: 1 : 1j * shape[0], : 1 : 1j * shape[1]]
    along, across = (x, y) if shape[1] > shape[0] else (y, x)
    image = np.uint8(255 * np.dstack([along, across, across]))
    corners = set()
    for seed in range(30):
        (crop,) = cut([image], view, np.random.default_rng(seed))
        assert crop.shape == (view.height, view.width, 3)
        assert np.ptp(crop[..., 0]) > 0.95  # nothing of it is left out
        corners.add(tuple(crop[0, 0, :2].round().tolist()))
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quick_prelu_is_torchs(dtype):
    torch.manual_seed(0)
    slow = torch.nn.Sequential(torch.nn.PReLU(init=0.3)).to(dtype)
    quick = quickened(copy.deepcopy(slow))
    assert type(quick[0]) is QuickPReLU
    assert quick.state_dict().keys() == slow.state_dict().keys()
    x = torch.randn(2, 5, 16, 16).to(dtype)
    given, gradients = torch.randn(2, 5, 16, 16).to(dtype), []
    for layer in (slow, quick):
        inner = x.clone().requires_grad_()
        out = layer(inner)
        out.backward(given)
        gradients.append((out, inner.grad, layer[0].weight.grad))
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_half_of_the_views_stand(data, tmp_path):
    drawn = Counter()

    def draw(_data, view, _rng):
        drawn[view.height, view.width] += 1
        return {}

    run = trainer("lightweight", data, tmp_path)
    run.recipe = replace(run.recipe, draw=draw, views=(View(8, 12, 1),))
    for run.step in range(200):
        run.draw()
    assert drawn.keys() == {(8, 12), (12, 8)}
    assert 60 < drawn[8, 12] < 140


def test_a_picture_smaller_than_the_view_is_enlarged():
    for size in ((10, 8), (1, 50), (50, 1), (1, 1)):
        tiny = np.full((*size, 3), 50, np.uint8)
        for seed in range(4):  # turned and not
            (crop,) = cut([tiny], View(24, 32, 1, reduce=2), np.random.default_rng(seed))
            assert crop.shape == (24, 32, 3)
            np.testing.assert_allclose(crop, 50 / 255, atol=0.01)


def test_made_dark_pictures_look_like_short_exposures():
    high = np.tile(np.linspace(0.1, 0.9, 64, dtype=np.float32)[None, :, None], (64, 1, 3))
    ratios = []
    for seed in range(50):
        low = underexpose(high, np.random.default_rng(seed))
        assert low.min() >= 0
        assert low.max() <= 1
        np.testing.assert_allclose(low * 255, np.round(low * 255), atol=1e-4)
        ratios.append(low.mean() / high.mean())
    assert 0.02 < min(ratios) < max(ratios) < 0.27


def test_without_quarter_turns_pictures_stay_upright_or_upside_down():
    rows = np.repeat(np.arange(8, dtype=np.uint8)[:, None, None], 12, 1).repeat(3, 2)
    found = set()
    for seed in range(40):
        view = View(8, 12, 1, quarter_turns=False)
        (crop,) = cut([rows], view, np.random.default_rng(seed))
        assert (crop.std(1) == 0).all()
        found.add(float(crop[0, 0, 0]))
    assert found == {0.0, np.float32(7) / np.float32(255)}


def test_light_is_lost_as_in_the_dln_paper():
    high = np.random.default_rng(1).random((32, 32, 3), np.float32)
    for seed in range(20):
        low = lose_light(high, 0.5, np.random.default_rng(seed))
        np.testing.assert_allclose(low * 255, np.round(low * 255), atol=1e-4)
        assert low.mean() < 0.6 * high.mean()
        # beta (alpha I)^gamma of a picture without colour or contrast to lose
        rng = np.random.default_rng(seed)
        grey = np.full((2, 2, 3), 0.5, np.float32)
        made = lose_light(grey, 0.5, np.random.default_rng(seed))
        rng.uniform(0.7, 1, 2)
        beta, alpha, gamma = rng.uniform(0.5, 1), rng.uniform(0.9, 1), rng.uniform(1.5, 5)
        np.testing.assert_allclose(made, beta * (alpha * 0.5) ** gamma, atol=0.502 / 255)


def test_unpaired_lists_are_of_different_scenes(data):
    """No normal picture shows a scene that a dark one shows, so no loss can compare a pair."""
    dark, normal = dark_and_normal(data)
    dark_scenes = {p.scene for p in data.pairs if any(p.low is x for x in dark.pictures)}
    normal_scenes = {p.scene for p in data.pairs if any(p.high is x for x in normal.pictures)}
    assert dark_scenes
    assert normal_scenes
    assert not dark_scenes & normal_scenes
    assert len(dark.pictures) == len(dark.shares)
    assert len(normal.pictures) == len(normal.shares)
    of_folder = [any(x is d for d in data.dark) for x in dark.pictures]
    assert np.dot(of_folder, dark.shares) == pytest.approx(sum(dark.shares) * 2 / 5)
    batch = draw_unpaired(data, View(32, 32, 3), np.random.default_rng(0))
    assert "high" not in batch


def exposure(scene, gain, seed=0):
    """A photograph of ``scene``, uint8 RGB, ``gain`` times as light and with its own noise."""
    light = 255 * gain * (scene / 255) ** 1.2
    noise = np.random.default_rng(seed).normal(0, 1, scene.shape)
    return np.clip(light + noise, 0, 255).round().astype(np.uint8)


def test_exposures_of_one_scene_are_found_by_their_looks():
    """Data sets share photographs under other names, and say nothing of it."""
    a, b, c, d, e, f = made(6)
    pairs = [
        Pair("a1", "set/a1", exposure(a, 0.1), a),
        Pair("a2", "set/a2", exposure(a, 0.2), a),  # another exposure, the same reference
        Pair("b", "set/b", exposure(b, 0.1), b),
        Pair("c", "set/c", exposure(c, 0.1), c),
    ]
    folder = [exposure(b, 0.15, 1), exposure(d, 0.1), exposure(e, 0.1)]
    bright = [exposure(c, 0.9, 2), exposure(d, 0.8, 3), f]
    pools = dark_and_normal(Data(pairs, [1.0] * 4, bright, folder))
    shown = []
    for pool in pools:
        everything = {"a": [a, pairs[0].low, pairs[1].low], "b": [b, pairs[2].low, folder[0]]}
        everything |= {"c": [c, pairs[3].low, bright[0]], "d": [folder[1], bright[1]]}
        everything |= {"e": [folder[2]], "f": [f]}
        inside = {id(x) for x in pool.pictures}
        shown.append({k for k, own in everything.items() if inside & {id(x) for x in own}})
    assert shown[0] | shown[1] == set("abcdef")
    assert not shown[0] & shown[1]
    assert {"e"} <= shown[0]
    assert {"f"} <= shown[1]
    assert len(shown[0] & set("abcd")) == 2  # in turn


def test_scenes_that_a_table_names_are_one_whatever_they_look_like():
    """A webcam by night and by day: lamps where there was dark, and sky where there was light."""
    night, day, other, third = made(4)
    dark, bright = [night // 10, other // 10], [day, third]
    for names, expected in (
        ([], [2, 2]),
        (["", "", "", ""], [2, 2]),
        (["square", "", "square", ""], [1, 2]),  # its one scene in both goes to the normal ones
        (["square", "", "square", "square"], [1, 2]),
    ):
        pools = dark_and_normal(Data(dark=dark, normal=bright, scenes=names))
        assert [len(pool.pictures) for pool in pools] == expected
    assert not any(x is dark[0] for x in pools[0].pictures)


def test_one_scene_alone_has_nothing_to_be_compared_with():
    (a,) = made(1)
    with pytest.raises(Refusal, match="of different scenes"):
        dark_and_normal(Data([Pair("a", "a", a // 10, a)], [1.0]))
    with pytest.raises(Refusal, match="of different scenes"):
        dark_and_normal(Data(dark=[exposure(a, 0.1)], normal=[a]))


def test_modelled_pairs_carry_their_alpha_and_map(data):
    batch = draw_modelled(data, View(16, 16, 64), np.random.default_rng(0))
    alphas = batch["alpha"].flatten()
    made = alphas > 1  # two thirds of them; no other pair asks for more than its high
    assert 0.2 <= alphas.min() < 0.5
    assert 1.8 < alphas.max() <= 2
    # where nothing was clipped, I' + alpha I_D is I up to noise and rounding
    back = batch["low"] + batch["alpha"] * batch["difference"]
    unclipped = (batch["low"] > 0.05) & made.view(-1, 1, 1, 1)
    assert (back - batch["high"])[unclipped].abs().mean() < 0.03


# --- losses ---------------------------------------------------------------------------------------


def test_ssim_is_scikit_images():
    skimage = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    a = cv2.GaussianBlur(rng.random((40, 50, 3)), (0, 0), 2)
    b = np.clip(a + 0.05 * rng.standard_normal(a.shape), 0, 1)
    _, full = skimage.structural_similarity(
        a, b, channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    x, y = (torch.from_numpy(v).float().permute(2, 0, 1)[None] for v in (a, b))
    assert abs(float(losses.ssim(x, y)) - full[5:-5, 5:-5].mean()) < 1e-4
    assert float(losses.ssim(x, x)) == pytest.approx(1, abs=1e-5)


def test_hue_and_saturation_are_opencvs():
    rgb = np.random.default_rng(0).random((16, 16, 3), np.float32)
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
    hue, saturation = losses.hue_saturation(torch.from_numpy(rgb).permute(2, 0, 1)[None])
    np.testing.assert_allclose(hue[0] * 360, hsv[..., 0], atol=0.01)
    np.testing.assert_allclose(saturation[0], hsv[..., 1], atol=1e-4)


def test_structure_features_are_blind_to_exposure():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 64, 64)
    bank = losses.GradientBank()
    assert losses.feature_distance(bank, x, 0.1 * x) < 1e-3
    assert losses.feature_distance(bank, x, torch.rand(1, 3, 64, 64)) > 0.5


def test_colour_angle_is_blind_to_exposure_and_sees_tint():
    x = torch.rand(1, 3, 32, 32) * 0.5 + 0.2
    tinted = x * torch.tensor([1, 1, 1.5]).view(1, 3, 1, 1)
    assert losses.colour_angle(x, 1.8 * x) < 1e-4
    assert losses.colour_angle(x, tinted) > 0.01


def test_colours_of_a_dark_picture_are_those_of_a_lighter_one():
    """The white that is added to both would take them from the dark one."""
    blue = torch.tensor([0.1, 0.25, 0.6]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    violet = torch.tensor([0.18, 0.22, 0.6]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    dark = 0.08 * blue
    assert losses.colours_kept(blue, dark) < 1e-6
    assert losses.colour_angle(blue, dark) > losses.colour_angle(violet, dark)
    assert losses.colours_kept(violet, dark) > 0.005
    assert losses.colours_kept(torch.full((1, 3, 16, 16), 0.5), 0 * dark) < 1e-6  # black is grey


def test_a_halo_reverses_and_a_rising_curve_does_not():
    """A glow, and a dark ring drawn where it is at its half."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    distance = torch.hypot(y - 48, x - 48)
    given = (0.5 / (1 + (distance / 16) ** 2)).expand(1, 3, 96, 96)
    ring = given**0.4 * (1 - 0.6 * torch.exp(-(((distance - 24) / 6) ** 2)))
    assert losses.reversal(given**0.4, given) == pytest.approx(0, abs=1e-6)
    assert losses.reversal(ring, given) > 0.01
    assert losses.reversal(torch.rand(1, 3, 96, 96), torch.full((1, 3, 96, 96), 0.02)) == 0


def test_lamps_may_not_darken_what_is_beside_them():
    plain = torch.full((1, 3, 1, 4), 0.4)
    added = torch.tensor([0.0, 0.004, 0.1, 0.7]).expand(1, 3, 1, 4)
    lit = 0.1 + added

    def term(*output):
        return losses.lamps(torch.tensor(output).expand(1, 3, 1, 4), plain, lit, added).item()

    assert term(0.4, 0.4, 0.4, 0.8) == pytest.approx(0, abs=1e-6)
    assert term(0.4, 0.4, 0.9, 0.8) == pytest.approx(0, abs=1e-6)  # a glow may be lighter
    assert term(0.4, 0.4, 0.2, 0.8) == pytest.approx(0.05)  # not darker
    assert term(0.6, 0.2, 0.4, 0.8) == pytest.approx(0.1)  # far from the lamp nothing changes
    assert term(0.4, 0.4, 0.4, 1.0) == pytest.approx(0.05)  # the lamp is as it was


def test_flatness_asks_a_tone_curve_to_rise():
    class Curve(torch.nn.Module):
        def __init__(self, exponent):
            super().__init__()
            self.exponent = torch.nn.Parameter(torch.tensor(exponent))

        def forward(self, x):
            return 0.5 * x**self.exponent

    assert losses.flatness(Curve(1.0)) == 0
    assert losses.flatness(Curve(0.3)) < 1e-6
    assert abs(losses.flatness(Curve(0.0), least=0.25).item() - 0.25 * np.log(200)) < 1e-3
    assert losses.flatness(Curve(-0.2)) > losses.flatness(Curve(0.1)) > 0


def test_adversarial_losses_pull_the_right_way():
    real, fake = torch.tensor([1.0, 1.2]), torch.tensor([-1.0, -0.8])
    good = losses.relativistic_discriminator(real, fake)
    assert good < losses.relativistic_discriminator(fake, real)
    assert losses.relativistic_generator(real, fake) > losses.relativistic_generator(fake, real)


def test_schedule_warms_up_and_decays():
    rates = [schedules.cosine(p) for p in np.linspace(0, 1, 101)]
    assert rates[0] < 0.05
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[2:]))


# --- recipes and runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table in (RECIPES, MILD) for name in table]
)
def test_a_run_moves_every_shipped_parameter_and_writes_weights(table, name, data, tmp_path):
    run = trainer(name, data, tmp_path, steps=3, recipe=table[name])
    before = {k: v.clone() for k, v in run.modules["network"].named_parameters()}
    rows = []
    run.fit(rows.append)
    still = [k for k, v in run.modules["network"].named_parameters() if torch.equal(v, before[k])]
    assert not still
    assert np.isfinite(rows[-1]["psnr"])
    weights = checkpoints.find(METHODS[name], run.shipped)
    checkpoints.build(METHODS[name], weights)
    assert (tmp_path / "log.csv").read_text().count("\n") == 4


def test_enlightengan_generator_never_sees_a_pair(data):
    """Changing the highs of the low pictures' own scenes changes nothing that is drawn."""
    view = View(32, 32, 2)
    before = draw_unpaired_and_lit(data, view, np.random.default_rng(0))
    dark, _ = dark_and_normal(data)
    for pair in data.pairs:
        if any(pair.low is x for x in dark.pictures):
            pair.high[:] = 0
    after = draw_unpaired_and_lit(data, view, np.random.default_rng(0))
    for key in before:
        assert torch.equal(before[key], after[key])


def test_lamps_and_noise_are_added_to_the_inputs_they_are_beside(data):
    kept, deviations = [], []
    for seed in range(8):
        batch = draw_unpaired_and_lit(data, View(32, 48, 3), np.random.default_rng(seed))
        seen = batch["kept"] * batch["input"][:2]
        torch.testing.assert_close(batch["lit"], seen + batch["added"])
        deviations.append((batch["noisy"] - batch["lit"]).square().mean().sqrt())
        assert (batch["added"] >= 0).all()
        assert batch["added"].amax((1, 2, 3)).gt(0.02).all()
        kept.append(batch["kept"])
    assert torch.cat(kept).unique().tolist() == [0, 1]
    assert 4 <= torch.cat(kept).amin((1, 2, 3)).sum() <= 12  # half of the 16 are left whole
    assert 0.001 < min(deviations) < max(deviations) < 0.03
    assert batch["noisy"].max() <= 1
    part = batch["bright"] / batch["normal"][:1]
    assert 0.67 <= part.nanmedian() <= 1


def test_dim_pictures_are_normal_ones_and_their_grain_is_noise(data):
    """In batches of every size: where there are few, ``bright`` and ``dim`` are of one picture."""
    for size in (1, 2, 4):
        batch = draw_unpaired_and_lit(data, View(48, 64, size), np.random.default_rng(size))
        normal, dim, grainy = batch["normal"][-2:], batch["dim"], batch["grainy"]
        assert len(dim) == len(normal) == min(size, 2)
        for one, other in zip(dim, normal, strict=True):
            gain = one.mean() / other.mean()
            assert 0.03 <= gain <= 0.3
            torch.testing.assert_close(one, gain * other)
        assert 0 < (grainy - dim).abs().mean() < 0.05
        assert abs((grainy - dim).mean()) < 0.01
        torch.testing.assert_close(255 * grainy, (255 * grainy).round())


def test_grain_is_asked_of_the_noisy_picture_alone(data):
    """Its gradient must not make the picture without noise grainy, or blurred."""
    batch = draw_unpaired_and_lit(data, View(64, 64, 3), np.random.default_rng(0))
    seen = []

    class Network(torch.nn.Module):
        def predict(self, x):
            seen.append((2 * x).requires_grad_())
            return seen[-1]

    batch["fake"] = 2 * batch["input"]
    off = frozenset({"sfp", "color", "local"})
    modules = {"network": Network(), "global": torch.nn.Conv2d(3, 1, 3)}
    terms = enlightengan_generator(modules, batch, off)
    (gradient,) = torch.autograd.grad(terms["grain"], seen)
    touched = gradient.flatten(1).abs().sum(1) > 0
    grainy = len(touched) - 4  # two grainy pictures before two dim ones
    assert touched.nonzero().flatten().tolist() == [grainy, grainy + 1]


def test_training_improves(data, tmp_path):
    run = trainer("lightweight", data, tmp_path, steps=60)
    totals = []
    run.fit(lambda _row: None)
    first = trainer("lightweight", data, tmp_path / "first", steps=1)
    first.fit(lambda _row: None)
    totals = [first.rows[-1]["psnr"], run.best]
    assert totals[1] > totals[0] + 1


def command(folder, out, *more):
    return [
        sys.executable, "-m", "llenhance", "train", "lightweight",
        "--pairs", f"{folder / 'pairs'}=2", "--normal", str(folder / "normal"),
        "-o", str(out), "--threads", "1", *more,
    ]  # fmt: skip


def test_command_trains_and_its_weights_run(folder, tmp_path):
    result = subprocess.run(
        command(folder, tmp_path / "run", "--steps", "2"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    weights = tmp_path / "run" / "lightweight.safetensors"
    assert weights.with_suffix(".onnx").exists()
    out = tmp_path / "out.png"
    done = subprocess.run(
        [sys.executable, "-m", "llenhance", str(folder / "dark" / "0.png"), "-o", str(out),
         "-m", "lightweight", "--weights", str(weights), "--engine", "onnx"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert out.exists()
    more = subprocess.run(
        command(folder, tmp_path / "run", "--steps", "4", "--resume"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "4 steps" in more.stderr


@pytest.mark.parametrize("name", ["lightweight.safetensors", "lightweight.onnx", "curve.png"])
def test_a_new_run_replaces_no_file(folder, tmp_path, name):
    """Such as weights that were put there by hand, or those that ship."""
    (tmp_path / name).write_bytes(b"mine")
    result = subprocess.run(
        command(folder, tmp_path, "--steps", "2"), capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert f"{name} exists: give another folder" in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "2", "--minutes", "1"], "one of --steps and --minutes"),
        (["--steps", "2", "--resume"], "nothing to resume"),
        (["--steps", "2", "--pairs", "/nowhere"], "not a folder"),
        (["--steps", "2", "--pairs", "=x"], "'x' is not a number"),
        (["--steps", "2", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_training_requests_are_refused_before_the_first_step(
    folder, tmp_path, arguments, words
):
    result = subprocess.run(
        command(folder, tmp_path / "run", *arguments), capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("run", "is not a folder"), ("run/log.csv", "is over")]
)
def test_what_is_there_is_not_trained_over(folder, tmp_path, name, words):
    there = tmp_path / name
    there.parent.mkdir(exist_ok=True)
    there.write_text("mine")
    result = subprocess.run(
        command(folder, tmp_path / "run", "--steps", "2"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert words in result.stderr
    assert there.read_text() == "mine"


def test_a_folder_without_pairs_is_refused(tmp_path):
    save(tmp_path / "low" / "a.png", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "high" / "b.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(Refusal, match="no file has the same name"):
        read_pairs(tmp_path)
    save(tmp_path / "high" / "a.png", np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(Refusal, match="its size differs"):
        read_pairs(tmp_path)


def test_residual_never_sees_the_pictures_of_its_synthetic_test(tmp_path, folder):
    from llenhance.heldout import synthetic_test
    from llenhance.train.command import _read
    from llenhance.train.data import pictures

    for n in range(103):
        save(tmp_path / "normal" / f"p{n}.png", np.full((2, 2, 3), n, np.uint8))
    given = ((str(folder / "pairs"),), (str(tmp_path / "normal"),), (), None, 1)
    assert len(_read(*given, RECIPES["dln"]).normal) == 103
    kept = {int(image[0, 0, 0]) for image in _read(*given, RECIPES["residual"]).normal}
    test = {int(path.stem[1:]) for path in synthetic_test(pictures(tmp_path / "normal"))}
    assert len(test) == 100
    assert kept == set(range(103)) - test
    assert PAPER["residual"].spares_synthetic_test


def test_what_is_validated_on(folder):
    """Held-out scenes, another folder's held-out scenes or all of its pairs, or nothing."""
    from llenhance.train.command import _read

    pairs = (str(folder / "pairs"),)
    recipe = RECIPES["dln"]
    data = _read(pairs, (), (), None, 9, recipe)
    assert [p.name for p in data.validation] == ["6"]
    assert [p.name for p in _read(pairs, (), (), pairs[0], 9, recipe).validation] == ["6"]
    plain = folder / "plain"
    for side in ("low", "high"):
        save(plain / side / "a.png", made(1)[0])
    assert [p.name for p in _read(pairs, (), (), str(plain), 9, recipe).validation] == ["a"]
    data = _read(pairs, (), (), None, 9, recipe, include_validation=True)
    assert not data.validation
    assert [p.name for p in data.pairs] == [str(n) for n in range(8)]
    assert len(data.shares) == 8


def test_a_recipe_names_the_folders_that_it_needs(folder):
    from llenhance.train.command import _read

    pairs, normal, dark = ((str(folder / name),) for name in ("pairs", "normal", "dark"))
    for recipe, given, words in (
        (RECIPES["dln"], ((), normal, dark), "needs --pairs"),
        (PAPER["dln"], (pairs, (), ()), "needs --normal$"),
        (PAPER["residual"], ((), normal, ()), r"\(100 are spared"),
        (RECIPES["enlightengan"], ((), normal, ()), "needs --pairs or --dark and --normal"),
    ):
        with pytest.raises(Refusal, match=words):
            _read(*given, None, 9, recipe)
    data = _read((), normal, dark, None, 9, RECIPES["enlightengan"])
    assert draw_unpaired(data, View(32, 32, 1), np.random.default_rng(0))["low"].shape[0] == 1


def test_lamps_stay_white_in_a_short_exposure():
    plain = np.full((96, 128, 3), 0.3, np.float32)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = with_lamps(plain, rng)
        assert scene.dtype == np.float32
        assert (scene >= plain).all()
        assert scene.max() > 1.5
        assert np.median(scene) < 0.6  # most of the picture is no lamp
        low = underexpose(scene, np.random.default_rng(seed))
        assert low.max() > 4 * np.median(low)


def test_what_no_light_reaches_is_black():
    shares = []
    for seed in range(40):
        scene = partly_unlit(np.full((64, 96, 3), 0.8, np.float32), np.random.default_rng(seed))
        assert scene.dtype == np.float32
        assert scene.min() >= 0
        assert scene.max() <= np.float32(0.8)
        assert (scene == scene[:, :, :1]).all()
        shares.append((scene == 0).mean())
    assert 0.4 < np.mean(shares) < 0.6


def test_lightweight_sees_real_pairs_as_jpeg_leaves_them(data):
    """Three in ten lows differ from what draw_pairs would give."""
    data.normal, view, changed = [], View(32, 48, 8), 0
    for seed in range(20):
        plain = draw_pairs(data, view, np.random.default_rng(seed))
        seen = draw_compressed_pairs(data, view, np.random.default_rng(seed))
        assert torch.equal(plain["high"], seen["high"])
        changed += int((plain["low"] != seen["low"]).flatten(1).any(1).sum())
    assert 0.15 < changed / 160 < 0.45


def test_half_of_the_mild_inputs_are_bright_and_half_have_lamps(data):
    """A tenth of 0.9 in real lows, at least two thirds in bright ones: lamps are seen in both."""
    data.normal = [np.full((72, 96, 3), 230, np.uint8)]
    data.pairs = [Pair("a", "a", data.normal[0] // 10, data.normal[0])]
    data.shares, rng = [1.0], np.random.default_rng(0)
    batch = draw_mild_pairs(data, View(32, 48, 200), rng)
    low, high = (batch[key].flatten(1) for key in ("low", "high"))
    darkest = low.quantile(0.02, 1)
    assert 0.4 < (darkest > 0.5).float().mean() < 0.65  # a lamp may light all of a picture
    lamps = (high.amax(1) - 230 / 255) > 1e-3
    assert 0.35 < lamps.float().mean() < 0.6
    assert low.max() <= 1
    assert high.max() <= 1
    beside = (batch["high"] - batch["low"])[lamps & (darkest < 0.2)]
    assert beside.min() > -0.25  # what JPEG does at the edge of a lamp
    assert beside.median() > 0.5


def test_uneven_light_keeps_the_order_of_what_is_lit():
    high = np.full((64, 96, 3), 0.8, np.float32)
    high[:, 40:50] = 0  # black stays black, however much light falls on it
    for seed in range(20):
        scene, wanted = in_shade(high, np.random.default_rng(seed))
        assert scene.dtype == wanted.dtype == np.float32
        assert (scene <= wanted).all()
        assert (wanted <= high).all()
        assert not wanted[:, 40:50].any()
        lit = high > 0
        light = scene[lit] / high[lit]
        assert light.min() >= 0.019
        np.testing.assert_allclose(wanted[lit] / high[lit], np.cbrt(light), rtol=1e-4)
        assert light.std() > 0.05


def test_compression_and_another_exposure_stay_pictures_of_8_bits():
    steps = np.tile(np.linspace(0, 0.3, 64, dtype=np.float32)[None, :, None], (48, 1, 3))
    gains = []
    for seed in range(30):
        for change in (compressed, rexpose):
            low = change(steps, np.random.default_rng(seed))
            assert low.shape == steps.shape
            assert low.dtype == np.float32
            np.testing.assert_allclose(low * 255, np.round(low * 255), atol=1e-4)
        assert abs(compressed(steps, np.random.default_rng(seed)) - steps).mean() < 0.01
        gains.append(low.mean() / steps.mean())
    assert 0.55 < min(gains) < 0.8
    assert 1.3 < max(gains) < 1.65


@pytest.mark.parametrize(("draw", "share"), [(draw_modelled, 0.5), (draw_less_modelled, 0.2)])
def test_so_many_of_the_residual_pairs_keep_their_true_alpha(draw, share):
    """Half at first; a fifth at the end, since half and half is right for neither."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = Data([Pair("a", "a", photo // 10, photo)], [1.0], [photo], [photo], [])
    made = np.concatenate(
        [draw(data, View(32, 32, 8), rng)["alpha"].flatten() > 1 for _ in range(40)]
    )
    assert abs(1.5 * made.mean() - share) < 0.1  # of alpha ~ U(0.5, 2), two thirds


def test_some_residual_pairs_ask_for_a_part_of_the_light():
    rng = np.random.default_rng(0)
    photo = rng.integers(100, 255, (64, 64, 3), dtype=np.uint8)
    data = Data([Pair("a", "a", photo // 10, photo)], [1.0], [], [], [])
    batch = draw_less_modelled(data, View(32, 32, 200), rng)
    alpha = batch["alpha"].flatten()
    partly = alpha < 0.5  # of U(0.2, 1) three eighths; the paper's model has none
    assert 0.02 < partly.float().mean() < 0.09
    asked = batch["low"] + batch["alpha"] * batch["difference"]
    for real in (partly, alpha == 1):
        torch.testing.assert_close(batch["high"][real], asked[real])


def test_black_is_asked_to_stay_without_colour_and_light_is_not():
    given = torch.zeros(1, 3, 16, 32)
    given[..., 16:] = 0.2
    navy = torch.tensor([0.1, 0.15, 0.3]).view(1, 3, 1, 1).expand(1, 3, 16, 32)
    grey = torch.full_like(navy, 0.3)
    dark_half = losses.colour_of_black(navy[..., :16], given[..., :16])
    torch.testing.assert_close(dark_half, torch.tensor(0.2))
    assert losses.colour_of_black(navy[..., 16:], given[..., 16:]) < 1e-6
    assert losses.colour_of_black(grey, given) == 0
