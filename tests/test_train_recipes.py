"""The papers' recipes, ideas left out, VGG-16's features, and the curve of a run."""

import dataclasses
import errno
import importlib.util
import itertools
import math
import os
import sys

import cv2
import numpy as np
import pytest
import references
import torch
import trainings as t
from safetensors.torch import load_file
from torch.nn import functional as F

from llenhance import checkpoints
from llenhance.errors import DeviceError, LLEnhanceError, Refusal, WeightsError
from llenhance.methods import METHODS
from llenhance.networks.neid import NEID
from llenhance.train import command as training
from llenhance.train import curve, losses, paper, recipes, schedules
from llenhance.train.command import train
from llenhance.train.data import View
from llenhance.train.loop import Run, Trainer
from llenhance.train.paper import PAPER
from llenhance.train.recipes import NONE, RECIPES, leave_out

BANK = {"features": losses.GradientBank()}


@pytest.fixture
def data():
    return t.small_data()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for n, high in enumerate(t.made(4)):
        t.save(root / "pairs" / "high" / f"{n}.png", high)
        t.save(root / "pairs" / "low" / f"{n}.png", high // 10)
        t.save(root / "normal" / f"{n}.png", 255 - high)
    return root


def batch_of(recipe, data, size=64):
    view = t.small(recipe, size).views[0]
    return recipe.draw(data, view, np.random.default_rng(0))


def numbers(terms):
    return [float(value.detach()) for value in terms]


def without(table, name, *off):
    return leave_out(table[name], off)


# --- the papers' recipes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER)
def test_a_run_of_the_paper_moves_what_ships_and_writes_weights(name, data, tmp_path):
    run = t.trainer(name, data, tmp_path, steps=3, recipe=PAPER[name])
    before = {k: v.clone() for k, v in run.modules["network"].named_parameters()}
    run.fit(lambda _row: None)
    still = [k for k, v in run.modules["network"].named_parameters() if torch.equal(v, before[k])]
    assert not still
    for key, value in run.average.state_dict().items():  # no averaging
        assert torch.equal(value, run.modules["network"].state_dict()[key])
    checkpoints.build(METHODS[name], checkpoints.find(METHODS[name], run.shipped))


def test_weights_of_another_network_are_no_start(data, tmp_path):
    """Such as the authors' EnlightenGAN: trained on, they would lose its grid without a word."""
    path, method = tmp_path / "mine.safetensors", METHODS["enlightengan"]
    options = {"align_corners": True}
    checkpoints.save(path, method, method.build(**options).state_dict(), options)
    with pytest.raises(Refusal, match=r"weights of another network \(align_corners True\)"):
        t.trainer("enlightengan", data, tmp_path, start_from=path)


def test_only_a_checkpoint_is_resumed(data, tmp_path):
    run = t.trainer("lightweight", data, tmp_path)
    torch.save([1], tmp_path / "checkpoint.pt")
    with pytest.raises(Refusal, match="not a checkpoint"):
        run.resume()
    run.save()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["rows"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(Refusal, match="not those of this version"):
        run.resume()


def test_a_table_that_is_open_elsewhere_does_not_end_a_run(data, tmp_path, monkeypatch):
    """Windows lets nobody replace what a spreadsheet shows."""
    real = os.replace

    def replaced(source, target):
        if str(target).endswith((".csv", ".png")):
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    run = t.trainer("lightweight", data, tmp_path)
    run.fit(lambda _row: None)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pt", "lightweight.safetensors"]


def test_schedules_drop_where_the_papers_do():
    at = {
        schedules.constant: [1, 1, 1, 1, 1],
        schedules.tenth_after_two_thirds: [1, 1, 1, 1, 0.1],
        schedules.tenth_every_third: [1, 1, 0.1, 0.1, 0.01],
        schedules.tenth_at_quarter_and_half: [1, 0.1, 0.1, 0.01, 0.01],
        schedules.linear_second_half: [1, 1, 1, 1, 0.5],
    }
    for schedule, expected in at.items():
        found = [schedule(progress) for progress in (0, 0.25, 0.4, 0.5, 0.75)]
        assert found == pytest.approx(expected), schedule
    assert schedules.linear_second_half(1) == 0


def test_the_rate_of_a_step_is_the_recipes(data, tmp_path):
    run = t.trainer("residual", data, tmp_path, steps=3, recipe=PAPER["residual"])
    assert [run.one_step()["rate"] for _ in range(3)] == pytest.approx([1e-3, 1e-4, 1e-5])
    assert isinstance(run.optimizers[0], torch.optim.Adam)
    assert not isinstance(run.optimizers[0], torch.optim.AdamW)  # L2, as printed: coupled
    kernels, vectors = run.optimizers[0].param_groups
    assert (kernels["weight_decay"], vectors["weight_decay"]) == (1e-4, 0)
    assert kernels["betas"] == (0.9, 0.999)


def test_dln_goes_round_the_circle(data):
    torch.manual_seed(0)
    recipe = PAPER["dln"]
    modules, batch = recipe.build(NONE), batch_of(recipe, data)
    for module in modules.values():
        module.tail.weight.data.normal_(0, 0.01)
    terms = paper.dln_losses(modules, batch, NONE)
    light = modules["network"].predict(batch["low"])
    dark = modules["darkener"].predict(light)
    expected = [
        1 - losses.ssim(light, batch["high"]),
        0.001 * losses.total_variation(light),
        1 - losses.ssim(dark, batch["low"]),
        0.001 * losses.total_variation(dark),
    ]
    assert numbers(terms.values()) == pytest.approx(numbers(expected))
    # What the darkener says reaches the lightener.
    terms["structure_dark"].backward()
    assert modules["network"].tail.weight.grad.abs().sum() > 0
    assert set(recipe.build(frozenset({"circle"}))) == {"network"}
    assert set(paper.dln_losses(modules, batch, frozenset({"circle", "tv"}))) == {"structure_light"}


def test_dln_ends_on_real_pairs(data, tmp_path):
    """Made pairs at the full rate, then, where they are given, real ones at a tenth."""
    real = {pair.low.tobytes() for pair in data.pairs}
    assert real
    seen = []
    run = t.trainer("dln", data, tmp_path, steps=6, recipe=PAPER["dln"])
    for run.step in range(6):
        batch = run.draw()  # LOL's low is a tenth of its high here, which no made one is
        ratio = (batch["low"] * 10 - batch["high"]).abs().mean()
        seen.append(bool(ratio < 0.04))
    assert seen == [False] * 4 + [True] * 2
    data.pairs, data.shares = [], []
    run.step = 5
    assert set(run.draw()) == {"low", "high"}


def test_the_largest_views_of_dln_come_late(data, tmp_path):
    """Their steps cost much; and --batch holds for them too."""
    recipe = RECIPES["dln"]
    pixels = [max(v.height * v.width for v in some) for some in (recipe.views, recipe.finish_views)]
    assert pixels == [192 * 288, 384 * 576]
    assert {v.batch for v in recipe.in_batches_of(3).finish_views} == {3}

    late = (View(40, 24, 1),)
    run = t.trainer("dln", data, tmp_path, steps=10)
    run.recipe = dataclasses.replace(run.recipe, finish_views=late)
    seen = []
    for run.step in range(10):
        seen.append(set(run.draw()["low"].shape) == {1, 3, 40, 24})
    assert seen == [False] * 5 + [True] * 5


def test_lightweight_unrolls_three_stages(data):
    torch.manual_seed(0)
    recipe = PAPER["lightweight"]
    modules, batch = recipe.build(NONE), batch_of(recipe, data)
    for module in modules.values():
        module.train(False)
    terms = paper.lightweight_losses(modules | BANK, batch, NONE)
    stages = modules["network"].stages(batch["low"], modules["auxiliary"])
    last = batch["low"] + modules["auxiliary"](stages[-1].result)
    fidelity = sum(F.mse_loss(stage.illumination, stage.seen) for stage in stages)
    smooth = sum(losses.neighbour_smoothness(stage.illumination) for stage in stages)
    perceptual = losses.feature_distance(BANK["features"], last, stages[-1].illumination)
    expected = [0.8 * fidelity, 0.65 * smooth, 0.5 * perceptual]
    assert numbers(terms.values()) == pytest.approx(numbers(expected))
    # Nothing it compares comes from a bright picture.
    batch["high"] = torch.full_like(batch["high"], math.nan)
    again = paper.lightweight_losses(modules | BANK, batch, NONE)
    assert numbers(again.values()) == pytest.approx(numbers(terms.values()))


def test_lightweight_without_calibration_needs_no_k(data):
    torch.manual_seed(0)
    recipe = without(PAPER, "lightweight", "calibration")
    modules, batch = recipe.build(recipe.off), batch_of(recipe, data)
    assert set(modules) == {"network"}
    modules["network"].train(False)
    terms = paper.lightweight_losses(modules | BANK, batch, recipe.off)
    network, s = modules["network"], batch["low"]
    seen = [s]
    for _ in range(3):
        seen.append(network.illuminate(network.extract(s), seen[-1]))
    fidelity = sum(F.mse_loss(b, a) for a, b in itertools.pairwise(seen))
    assert terms["fidelity"].item() == pytest.approx(0.8 * fidelity.item())


def test_residual_draws_made_pairs_only(data):
    batch = batch_of(PAPER["residual"], data)
    assert ((batch["alpha"] >= 0.5) & (batch["alpha"] <= 2) & (batch["alpha"] != 1)).all()
    modules = PAPER["residual"].build(NONE)
    terms = paper.residual_losses(modules, batch, NONE)
    output, difference = modules["network"].predict(batch["low"], batch["alpha"])
    assert terms["pixels"].item() == pytest.approx(F.mse_loss(output, batch["high"]).item())
    expected = 0.1 * F.mse_loss(difference, batch["difference"])
    assert terms["difference"].item() == pytest.approx(expected.item())


def test_neid_compares_what_the_paper_does(data):
    torch.manual_seed(0)
    modules, batch = PAPER["neid"].build(NONE), batch_of(PAPER["neid"], data)
    terms = paper.neid_losses(modules, batch, NONE)
    small = recipes.halve(batch["low"])
    output = modules["network"].predict(small)[0] + recipes.lost(batch["low"], small)
    error = (output - batch["high"]).abs()
    huber = torch.where(error < 0.1, 0.5 * error**2, 0.1 * (error - 0.05)).mean()
    assert terms["pixels"].item() == pytest.approx(huber.item())
    colour = 0.1 * losses.colour(output, batch["high"])
    assert terms["colour"].item() == pytest.approx(colour.item())
    kernel = modules["network"].decoder.pairs[0][0]
    assert kernel.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not kernel.bias.any()


def test_enlightengan_weighs_all_alike(data):
    torch.manual_seed(0)
    modules, batch = PAPER["enlightengan"].build(NONE), batch_of(RECIPES["enlightengan"], data)
    modules["network"].eval()  # or ours, which shows it more pictures at once, normalises others
    ours = recipes.enlightengan_generator(modules | BANK, dict(batch), NONE)
    terms = paper.enlightengan_generator(modules | BANK, batch, NONE)
    assert set(terms) == {"global", "local", "features", "features_local"}
    assert terms["features"].item() == pytest.approx(ours["features"].item() / 3, rel=1e-4)
    assert len(batch["corners"]) == 6


# --- ideas left out -------------------------------------------------------------------------------

IDEAS = [
    (table, name, idea)
    for table in (RECIPES, PAPER)
    for name, recipe in table.items()
    for idea in recipe.ideas
]


def test_every_idea_of_the_papers_can_be_left_out():
    assert {name: recipe.ideas for name, recipe in PAPER.items()} == {
        "dln": ("circle", "tv"),
        "lightweight": ("calibration",),
        "residual": ("auxiliary",),
        "neid": ("ff", "dr", "color"),
        "enlightengan": ("attention", "local", "sfp"),
    }


@pytest.mark.parametrize(("table", "name", "idea"), IDEAS)
def test_leaving_an_idea_out_changes_what_is_compared_and_nothing_that_is_drawn(
    table, name, idea, data
):
    """The same start and the same pictures: two runs at equal steps differ by the idea alone."""
    terms, batches, starts = [], [], []
    for recipe in (table[name], without(table, name, idea)):
        torch.manual_seed(0)
        modules, batch = recipe.build(recipe.off), batch_of(recipe, data)
        starts.append({k: v.clone() for k, v in modules["network"].state_dict().items()})
        batches.append({k: v.clone() for k, v in batch.items()})
        found = {}
        for phase in recipe.phases:
            found |= phase.losses(modules | BANK, batch, recipe.off)
        terms.append(found)
    for key, value in batches[0].items():
        assert torch.equal(value, batches[1][key])
    for key, value in starts[0].items():
        assert torch.equal(value, starts[1][key]) or key.startswith("fusion")
    assert set(terms[1]) <= set(terms[0])
    if idea in ("ff", "attention", "calibration"):  # another computation, the same terms
        # The paper's N(0, 0.02) leaves nothing of NEID's deepest features at the start.
        if (table, idea) != (PAPER, "ff"):
            assert any(abs(terms[0][key] - terms[1][key]) > 1e-7 for key in terms[1])
    else:
        assert set(terms[1]) < set(terms[0])
        assert all(torch.equal(terms[0][key], terms[1][key]) for key in terms[1])


def test_without_fusion_the_bottleneck_goes_on_as_it_is(data, tmp_path):
    """And the network that ships computes just that."""
    run = t.trainer("neid", data, tmp_path, recipe=without(RECIPES, "neid", "ff"))
    run.fit(lambda _row: None)
    state = load_file(run.shipped)
    assert all(not state[f"fusion.{key}"].any() for key in ("squeeze.weight", "expand.weight"))
    network = checkpoints.build(METHODS["neid"], checkpoints.find(METHODS["neid"], run.shipped))
    assert isinstance(network, NEID)
    x = torch.rand(1, 3, 32, 32)
    fused = network.predict(x)[0]
    network.fusion = references.Unfused()
    assert torch.equal(network.predict(x)[0], fused)


def test_without_attention_weights_are_for_comparison_only(data, tmp_path):
    recipe = without(RECIPES, "enlightengan", "attention")
    run = t.trainer("enlightengan", data, tmp_path, recipe=recipe)
    run.fit(lambda _row: None)
    x = torch.rand(1, 3, 32, 32)
    expected = recipes.EnlightenGAN.predict(run.average.eval(), x, False).clamp(0, 1)
    assert torch.equal(run.average(x), expected)  # what was validated
    assert run.comparison_only
    with pytest.raises(WeightsError, match="weights for enlightengan expected"):
        checkpoints.find(METHODS["enlightengan"], run.shipped)


def test_a_checkpoint_that_was_taken_elsewhere_by_itself_leaves_weights_again(data, tmp_path):
    run = t.trainer("residual", data, tmp_path)
    run.fit(lambda _row: None)
    assert run.best > -math.inf
    run.shipped.unlink()
    again = t.trainer("residual", data, tmp_path)
    again.resume()
    again.check()
    assert run.shipped.is_file()


def test_a_run_resumes_only_as_itself(data, tmp_path):
    run = t.trainer("residual", data, tmp_path)
    run.fit(lambda _row: None)
    retouched = [dataclasses.replace(pair, high=255 - pair.high) for pair in data.pairs]
    for recipe, words in (
        (PAPER["residual"], "another run: kind default"),
        (without(RECIPES, "residual", "auxiliary"), "another run: without nothing"),
    ):
        with pytest.raises(Refusal, match=words):
            t.trainer("residual", data, tmp_path, recipe=recipe).resume()
    for recipe, seen, words in (
        (dataclasses.replace(run.recipe, rate=1e-5), data, "another run: rate 0.001"),
        (run.recipe.in_batches_of(3), data, "another run: batches"),
        (run.recipe, dataclasses.replace(data, dark=[]), "another run: pictures"),
        (run.recipe, dataclasses.replace(data, shares=[2.0] * 6), "another run: pictures"),
        (run.recipe, dataclasses.replace(data, pairs=retouched), "another run: pictures"),
        (run.recipe, dataclasses.replace(data, normal=data.dark, dark=[]), "run: pictures"),
    ):
        with pytest.raises(Refusal, match=words):
            Trainer(METHODS["residual"], recipe, seen, run.run).resume()
    again = t.trainer("residual", data, tmp_path)
    again.resume()
    assert again.step == 2
    torch.save({}, tmp_path / "checkpoint.pt")
    with pytest.raises(Refusal, match="another run: recipe unknown"):
        t.trainer("residual", data, tmp_path).resume()
    torch.save({**again.identity, "modules": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(Refusal, match="its networks are not those of this version"):
        t.trainer("residual", data, tmp_path).resume()
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:100])
    with pytest.raises(Refusal, match=r"checkpoint\.pt: not a checkpoint that can be read"):
        t.trainer("residual", data, tmp_path).resume()


def test_a_full_disk_is_named_with_the_file(data, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def torn(*_):  # how torch tells of it
        raise RuntimeError("unexpected pos 704 vs 598")

    run = t.trainer("residual", data, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(LLEnhanceError, match=r"checkpoint\.pt: No space left on device"):
            run.fit(lambda _row: None)
        with pytest.raises(LLEnhanceError, match=r"residual\.safetensors: the disk is full"):
            run.check()
        with pytest.raises(LLEnhanceError, match=r"log\.csv: No space left on device"):
            run.log()
    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(LLEnhanceError, match=r"checkpoint\.pt: cannot be written whole"):
        run.save()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_killed_after_its_first_check_goes_on(data, tmp_path):
    """A log without a checkpoint would be taken for that of a run that is over."""

    def tell(row):
        if "minutes" in row:
            raise KeyboardInterrupt

    run = t.trainer("lightweight", data, tmp_path, steps=40)
    with pytest.raises(KeyboardInterrupt):
        run.fit(tell)
    assert (tmp_path / "log.csv").is_file()
    again = t.trainer("lightweight", data, tmp_path, steps=40)
    again.resume()
    assert again.step == run.step == 2


def test_what_must_be_precise_is_not_trained_in_bf16(data, tmp_path):
    run = Run(tmp_path, steps=1, precision="bf16")
    with pytest.raises(Refusal, match="lightweight trains in fp32"):
        Trainer(METHODS["lightweight"], t.small(RECIPES["lightweight"]), data, run)


@pytest.mark.parametrize("table", [RECIPES, PAPER])
def test_unpaired_training_needs_two_scenes_or_dark_pictures(table, tmp_path):
    for folder in ("low", "high"):
        t.save(tmp_path / "pairs" / folder / "a.png", t.made(1)[0])
    t.save(tmp_path / "dark" / "a.png", t.made(2)[1] // 10)
    recipe = table["enlightengan"]

    def read(dark):
        return training._read((str(tmp_path / "pairs"),), (), dark, None, 22, recipe)

    with pytest.raises(Refusal, match="of different scenes"):
        read(())
    recipe.draw(read((str(tmp_path / "dark"),)), View(32, 32, 1), np.random.default_rng(0))


def test_a_table_of_scenes_goes_by_stems(tmp_path):
    for n, name in enumerate(("low/a", "high/a", "dark/night", "normal/noon", "normal/else")):
        t.save(tmp_path / f"{name}.png", t.made(5)[n])

    def read(*rows):
        table = tmp_path / "s.tsv"
        table.write_text("\n".join(("stem\tscene\tsplit", *rows)))
        folders = ((str(tmp_path),), (str(tmp_path / "normal"),), (str(tmp_path / "dark"),))
        recipe = RECIPES["enlightengan"]
        return training._read(*folders, None, 22, recipe, table=str(table))

    known = read("night\tsquare\ttrain", "noon\tsquare\ttrain")
    assert known.scenes == ["square", "", "square"]  # the dark one, then "else" and "noon"
    assert read().digest() != known.digest()
    with pytest.raises(Refusal, match="dusk is among no --dark and no --normal"):
        read("dusk\tsquare\ttrain")


# --- what the command refuses and says ------------------------------------------------------------


def command(folder, out, *more):
    return [
        "lightweight", "--pairs", str(folder / "pairs"), "-o", str(out),
        "--threads", str(torch.get_num_threads()), *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--without", "tv"], "no 'tv' in lightweight --recipe default: it has nothing"),
        (["--recipe", "paper", "--without", "tv"], "--recipe paper: it has calibration"),
        (["--recipe", "mild", "--without", "tv"], "--recipe mild: it has nothing"),
        (["--vgg16", "x"], "lightweight --recipe default compares no features"),
        (["--recipe", "paper", "--vgg16", "nowhere.pth"], "nowhere.pth: No such file"),
        (["--device", "toaster"], "device toaster"),
        (["--scenes", "x"], "lightweight --recipe default learns from pairs"),
        (["--include-validation", "--validate", "x"], "does not go with --validate"),
        (["--validate", "nowhere"], "nowhere"),
        (["--pairs", "x=nan"], "a weight is a number above 0"),
        (["--pairs", "{bad}"], "scenes.tsv: expected tab-separated columns"),
        (["--normal", "{bad}/low"], "0.png: not a picture"),
        (["--normal", "{bad}/high"], "0.png: Is a directory"),
    ],
)
def test_wrong_requests_are_refused_before_the_first_step(folder, tmp_path, arguments, words):
    bad = tmp_path / "bad"
    (bad / "high" / "0.png").mkdir(parents=True)
    (bad / "low").mkdir()
    (bad / "low" / "0.png").touch()
    (bad / "scenes.tsv").write_text("name\n0\n")
    arguments = [argument.format(bad=bad) for argument in arguments]
    with pytest.raises(Refusal, match=words):
        train.main(
            command(folder, tmp_path / "run", "--steps", "2", *arguments), standalone_mode=False
        )
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_a_method_has_not_is_refused(folder, tmp_path):
    given = ["dln", "--recipe", "mild", *command(folder, tmp_path / "run", "--steps", "2")[1:]]
    with pytest.raises(Refusal, match="dln has no mild recipe"):
        train.main(given, standalone_mode=False)
    assert not (tmp_path / "run").exists()


def test_torchrun_spreads_over_cpus_or_gpus(monkeypatch):
    from llenhance.train import parallel

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DeviceError, match="not mps"):
        parallel.start("mps")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [parallel.share(n) for n in (8, 1)] == [4, 1]
    monkeypatch.setenv("LOCAL_RANK", "99")  # of more GPUs than any machine has
    with pytest.raises(DeviceError, match=r"device cuda:99: \w"):
        parallel.start("cuda")


def test_the_command_says_what_one_might_not_think(folder, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    monkeypatch.setattr("llenhance.export.export", lambda *_: [])
    arguments = ("--steps", "1", "--recipe", "paper", "--include-validation", "--batch", "1")
    train.main(command(folder, tmp_path / "run", *arguments), standalone_mode=False)
    said = capsys.readouterr().err
    for words in (
        "feature losses: fixed gradients in place of VGG-16",
        "nothing to validate on",
        "no curve.png without matplotlib: pip install 'llenhance[train]'",
    ):
        assert said.count(words) == 1


# --- VGG-16 ---------------------------------------------------------------------------------------

# torchvision's layout: index in "features" -> (inputs, outputs)
LAYOUT = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256),
    14: (256, 256), 17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512),
    26: (512, 512), 28: (512, 512),
}  # fmt: skip


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    torch.manual_seed(0)
    state = {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    for index, (inputs, outputs) in LAYOUT.items():
        scale = math.sqrt(2 / (9 * inputs))
        state[f"features.{index}.weight"] = scale * torch.randn(outputs, inputs, 3, 3)
        state[f"features.{index}.bias"] = torch.randn(outputs)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


def test_vgg16_is_relu5_1_with_three_pools_of_what_it_was_trained_on(vgg16):
    state = torch.load(vgg16, weights_only=True)
    rgb = torch.rand(2, 3, 32, 48)
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    x = (rgb - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    for index in list(LAYOUT)[:11]:
        if index in (5, 10, 17):  # and no pool before 24
            x = F.max_pool2d(x, 2)
        x = F.relu(
            F.conv2d(
                x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1
            )
        )
    assert x.shape == (2, 512, 4, 6)
    (found,) = losses.VGG16(vgg16)(rgb)
    torch.testing.assert_close(found, F.instance_norm(x), rtol=1e-3, atol=1e-3)


def test_vgg16_is_used_where_it_is_given(vgg16, data, tmp_path):
    run = t.trainer("lightweight", data, tmp_path, recipe=PAPER["lightweight"], vgg16=vgg16)
    run.fit(lambda _row: None)
    assert isinstance(run.fixed["features"], losses.VGG16)
    assert (tmp_path / "checkpoint.pt").stat().st_size < 1_000_000
    with pytest.raises(Refusal, match="another run: features"):
        t.trainer("lightweight", data, tmp_path, recipe=PAPER["lightweight"]).resume()
    assert not any(p.requires_grad for p in run.fixed["features"].parameters())


def test_other_files_are_no_vgg16(vgg16, tmp_path):
    state = torch.load(vgg16, weights_only=True)
    state["features.24.weight"] = state["features.24.weight"][:5]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"features\.24\.weight is missing or differs"):
        losses.VGG16(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"no pickle")
    with pytest.raises(WeightsError, match="not a state dict"):
        losses.VGG16(tmp_path / "b.pth")


# --- a step that is no number, and the curve ------------------------------------------------------


def test_a_step_that_is_no_number_leaves_no_trace(data, tmp_path):
    """Neither weights nor running statistics nor their averages keep it."""
    run = t.trainer("residual", data, tmp_path, steps=4)
    run.one_step()
    draw = run.draw
    run.draw = lambda: {k: v * math.nan for k, v in draw().items()}
    before = {k: v.clone() for k, v in run.average.state_dict().items()}
    assert run.one_step()["skipped"] == 1
    for key, value in run.average.state_dict().items():
        assert torch.equal(value, before[key])
    run.draw = draw
    assert run.one_step()["skipped"] == 0
    for module in (run.average, *run.modules.values()):
        assert all(torch.isfinite(v).all() for v in module.state_dict().values())


def test_a_run_without_one_number_says_so_and_keeps_nothing(data, tmp_path):
    run = t.trainer("residual", data, tmp_path, steps=2)
    for value in run.average.state_dict().values():
        if value.is_floating_point():
            value.fill_(math.nan)
    draw = run.draw
    run.draw = lambda: {k: v * math.nan for k, v in draw().items()}
    with pytest.raises(LLEnhanceError, match="no validation gave a number, 2 of 2 steps were none"):
        run.fit(lambda _row: None)
    assert not run.shipped.exists()


ROWS = [
    {"step": 1, "minutes": 0.1, "pixels": 0.5, "rate": 1.0, "psnr": 10.0},
    {"step": 2, "minutes": 0.2, "pixels": math.nan, "rate": 1.0},
    {"step": 3, "minutes": 0.3, "pixels": 0.1, "rate": 0.5, "psnr": 12.0, "detail": 0.0},
]


def test_the_curve_is_a_picture_and_opens_no_display():
    pytest.importorskip("matplotlib")
    for rows in (ROWS, ROWS[:1], [{"step": 1}]):
        image = cv2.imdecode(np.frombuffer(curve.drawn(rows), np.uint8), cv2.IMREAD_COLOR)
        assert image.shape[0] > 300
        assert image.std() > 1
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_there_is_no_curve(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert curve.drawn(ROWS) == b""


def test_a_view_of_whole_pictures_fits_smaller_ones(data):
    """The lightweight paper's view, 400 x 600, on pictures of 72 x 96."""
    assert PAPER["lightweight"].views == (View(400, 600, 1, quarter_turns=False),)
    batch = PAPER["lightweight"].draw(data, View(400, 600, 1), np.random.default_rng(0))
    assert batch["low"].shape == (1, 3, 400, 600)
