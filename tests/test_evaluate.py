"""`llenhance evaluate`: pairs by name, rows, figures against numpy and scikit-image, refusals."""

import csv
import hashlib
import io
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from llenhance import load, niqe, scores, sheets
from llenhance.errors import Refusal
from llenhance.evaluate import Line, _print_table, evaluate
from llenhance.methods import METHODS

FAST = ("lightweight", "--device", "cpu", "--threads", "1")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "LLENHANCE_WEIGHTS"}


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return values


def opened(path):
    with Image.open(path) as image:
        return np.asarray(image)


def scene(seed, height=100, width=200):
    """A normally lit picture with texture everywhere, some of it bright."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = 128 + 90 * np.sin(x / (7 + seed)) * np.cos(y / 11)
    noisy = base[..., None] + rng.normal(0, 12, (height, width, 3)) + (0, 10, -10)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def dark(values):
    return (values * 0.2).astype(np.uint8)


@pytest.fixture
def pairs(tmp_path):
    """low/ and high/ with b, c and d in common; a and e would shift them if order counted."""
    for seed, name in enumerate("bcd"):
        high = save(tmp_path / "high" / f"{name}.png", scene(seed))
        save(tmp_path / "low" / f"{name}.bmp", dark(high))
    save(tmp_path / "low" / "a.png", scene(8))
    save(tmp_path / "high" / "e.png", scene(9))
    (tmp_path / "low" / "notes.txt").write_text("no picture")
    return tmp_path


def folders(path):
    return "--low", path / "low", "--high", path / "high"


def real(*arguments, **environment):
    """The real command; (status, stdout, stderr)."""
    result = subprocess.run(
        [sys.executable, "-m", "llenhance", "evaluate", *map(str, arguments)],
        capture_output=True,
        env=ENVIRONMENT | environment,
        text=True,
        check=False,
        timeout=300,
    )
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout, result.stderr


@pytest.fixture
def command(capsys):
    """The same in this process."""

    def call(*arguments):
        status = evaluate.main(list(map(str, arguments)), "evaluate", standalone_mode=False)
        return status, *capsys.readouterr()

    return call


def table(text):
    """(image, method) -> row of --csv."""
    return {(row["image"], row["method"]): row for row in csv.DictReader(io.StringIO(text))}


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def ssim(a, b):
    return structural_similarity(
        a, b, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip


# --- figures --------------------------------------------------------------------------------------


def test_figures_are_those_of_numpy_and_scikit_image(pairs):
    save(pairs / "other" / "b.png", scene(0) // 2)
    save(pairs / "other" / "c.jpg", scene(1))
    save(pairs / "other" / "d.png", np.minimum(scene(2), 254) + np.uint8(1))
    arguments = (*FAST, *folders(pairs), "--pred", pairs / "other", "--json")
    status, out, err = real(*arguments)
    assert status == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    images = {(r["image"], r["method"]): r for r in rows if r["status"] == "image"}
    means = {r["method"]: r for r in rows if r["status"] == "summary"}
    names = ["input", "histogram equalisation", "gamma 2.2", "lightweight", "other"]
    assert list(images) == [(image, name) for image in "bcd" for name in names]
    assert list(means) == names

    enhancer = load("lightweight", device="cpu", threads=1)
    for seed, image in enumerate("bcd"):
        high, low = scene(seed), dark(scene(seed))
        suffix = "jpg" if image == "c" else "png"
        outputs = {
            "input": low,
            "gamma 2.2": np.rint(255 * (low / 255) ** (1 / 2.2)).astype(np.uint8),
            "lightweight": enhancer.enhance(low),
            "other": opened(pairs / "other" / f"{image}.{suffix}"),
        }
        for name, picture in outputs.items():
            row = images[image, name]
            assert row["psnr"] == pytest.approx(psnr(picture, high), abs=1e-4)
            assert row["ssim"] == pytest.approx(ssim(picture, high), abs=1e-4)
            gain = np.linalg.lstsq(picture.reshape(-1, 1) * 1.0, high.reshape(-1), rcond=None)[0]
            best = psnr(np.minimum(picture * gain, 255), high)
            assert row["psnr_best_gain"] == pytest.approx(best, abs=1e-4)
            clipped = np.mean((picture == 255).any(2) & ~(low == 255).any(2))
            assert row["newly_clipped"] == pytest.approx(clipped)
            assert row["niqe"] == niqe.niqe(picture, niqe.NiqeModel.load())
        assert images[image, "lightweight"]["seconds_per_megapixel"] > 0
        assert images[image, "other"]["seconds_per_megapixel"] is None
    assert images["d", "other"]["newly_clipped"] > 0
    for name in names:
        for key in ("psnr", "ssim", "psnr_best_gain", "niqe", "newly_clipped"):
            mean = np.mean([images[image, name][key] for image in "bcd"])
            assert means[name][key] == pytest.approx(mean)
    assert means["lightweight"]["parameters"] == METHODS["lightweight"].parameters
    assert means["lightweight"]["macs_per_megapixel"] == pytest.approx(21.28e6 / 128**2 * 1e6, 1e-3)
    assert {row["images"] for row in means.values()} == {3}
    assert {row["niqe_model"] for row in means.values()} == {"own model"}


def test_the_table_is_plain_in_a_pipe_and_says_what_it_shows(pairs):
    status, out, err = real(*FAST, *folders(pairs))
    assert status == 0, err
    head, *lines = out.splitlines()
    assert head.startswith("3 pictures")
    for column in ("PSNR", "SSIM", "(PSNR*)", "NIQE (own model)", "newly clipped", "s/MP"):
        assert f"  {column}" in head
    assert [line[:23].strip() for line in lines] == [
        "input", "histogram equalisation", "gamma 2.2", "lightweight",
    ]  # fmt: skip
    values = [psnr(dark(scene(seed)), scene(seed)) for seed in range(3)]
    assert lines[0].split()[1] == f"{np.mean(values):.3f}"
    assert "1,346" in lines[3]
    assert head.index("parameters") + len("parameters") == lines[3].index("1,346") + len("1,346")
    assert "a diagnosis" in err
    assert "not comparable with published NIQE" in err
    # What has no partner is named, with the folder that lacks it.
    low, high = (line for line in err.splitlines() if "has no picture named" in line)
    assert str(pairs / "low") in low
    assert "named e:" in low
    assert str(pairs / "high") in high
    assert "named a:" in high


def test_the_table_has_rules_on_a_terminal_that_is_wide_enough(monkeypatch, capsys):
    line = Line("a [b] c", scores.Scores(math.inf, 0.5, None, None, 0.25, None))
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the captured stream for a terminal then
    monkeypatch.setenv("COLUMNS", "70")
    _print_table([line], 1, "own model")
    wide = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "40")
    _print_table([line], 1, "own model")
    narrow = capsys.readouterr().out
    assert "│" in wide
    assert "a [b] c" in wide
    assert "│" not in narrow
    assert narrow.splitlines()[1].split() == ["a", "[b]", "c", "inf", "0.5000", "25.00%"]
    assert "NIQE" not in wide + narrow  # a column without values is left out


def test_an_equal_picture_is_infinite_in_csv_and_null_in_json(pairs, command):
    only = (*folders(pairs), "--pred", pairs / "high")
    _, out, _ = command(*only, "--csv")
    assert table(out)["b", "high"]["psnr"] == "inf"
    assert table(out)["b", "high"]["seconds_per_megapixel"] == ""
    _, out, _ = command(*only, "--json")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert {row["psnr"] for row in rows if row["method"] == "high"} == {None}
    assert {row["ssim"] for row in rows if row["method"] == "high"} == {1}


def test_a_name_that_is_in_no_encoding_is_a_row_of_csv(pairs):
    for folder, suffix in (("low", "bmp"), ("high", "png")):
        old = os.fsencode(pairs / folder / f"b.{suffix}")
        os.rename(old, old.replace(b"b." + suffix.encode(), b"b\xff." + suffix.encode()))
    status, out, _ = real(*FAST, *folders(pairs), "--csv", PYTHONIOENCODING="utf-8")
    assert status == 0
    assert {image for image, _ in table(out)} == {"b\\udcff", "c", "d"}


@pytest.mark.parametrize("name", ["input", "gamma 2.2", "lightweight"])
def test_predictions_are_told_from_what_has_a_row_anyway(pairs, command, monkeypatch, name):
    (pairs / "high").rename(pairs / name)
    monkeypatch.chdir(pairs)
    given = (*FAST, "--low", "low", "--high", name, "--pred", name, "--csv")
    _, out, _ = command(*given)
    methods = [row["method"] for row in csv.DictReader(io.StringIO(out)) if row["image"] == "b"]
    assert len(methods) == len(set(methods)) == 5
    assert str(pairs / name) in methods


def test_histogram_equalisation_is_of_the_luma():
    grey = np.random.default_rng(0).integers(3, 60, (40, 50), np.uint8)
    counts = np.bincount(grey.ravel(), minlength=256)
    first = counts[np.flatnonzero(counts)[0]]
    expected = np.rint((np.cumsum(counts) - first) * (255 / (grey.size - first)))[grey]
    np.testing.assert_array_equal(
        scores.equalised(np.repeat(grey[..., None], 3, 2)), np.repeat(expected[..., None], 3, 2)
    )
    red = scores.equalised(np.stack([grey, grey // 4, grey // 4], 2))
    assert (red[..., 0] >= red[..., 1]).all()  # each channel by itself would become grey
    assert (red[..., 0] > red[..., 1]).mean() > 0.9


@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    # per 128x128 of input, as published or counted by hand; neid is fed 64x64 at scale 1
    [
        ("lightweight", 1, 21.28e6),
        ("residual", 1, 3580e6),
        ("neid", 1, 806e6),
        ("neid", 2, 3225e6),
        ("enlightengan", 1, 4097e6),
    ],
)
def test_cost(name, scale, expected):
    parameters, macs = scores.cost(METHODS[name], {}, scale)
    assert parameters == METHODS[name].parameters
    assert macs * 128**2 / 1e6 == pytest.approx(expected, rel=2e-3)


def test_cost_follows_the_options_of_the_weights():
    assert scores.cost(METHODS["residual"], {"channels": 64}, 1)[0] == 869_126


# --- which pictures -------------------------------------------------------------------------------


def test_a_split_is_found_beside_low(pairs, command):
    rows = "stem\tscene\tsplit\na\t1\ttrain\nb\t1\ttrain\nc\t2\tvalidation\nx\t3\tvalidation\n"
    (pairs / "scenes.tsv").write_text(rows)
    status, out, err = command(*FAST, *folders(pairs), "--split", "validation", "--csv")
    assert status == 0
    assert {image for image, _ in table(out)} == {"c"}
    assert err.count("named x:") == 2  # the split's x is in neither folder; a and e are not asked
    assert "named a" not in err

    (pairs / "scenes.tsv").rename(pairs / "other.tsv")
    given = ("--scenes", pairs / "other.tsv", "--split", "train", "--csv")
    _, out, _ = command(*FAST, *folders(pairs), *given)
    assert {image for image, _ in table(out)} == {"b"}


def test_a_prediction_that_is_missing_leaves_its_pair_out_of_all_rows(pairs, command):
    save(pairs / "dln" / "c.png", scene(1))
    _, out, err = command(*FAST, *folders(pairs), "--pred", pairs / "dln", "--csv")
    assert {image for image, _ in table(out)} == {"c"}
    assert "named a, b, d, e:" in err
    # A folder named like a method is told from it by its path.
    assert ("c", str(pairs / "dln")) in table(out)


def test_without_a_reference(pairs, tmp_path, command):
    status, out, _ = command(*FAST, "--dark", pairs / "high")
    head, first, *_ = out.splitlines()
    assert status == 0
    assert head.split("  ")[0] == "4 pictures"
    assert "PSNR" not in head
    assert "SSIM" not in head
    model = niqe.NiqeModel.load()
    expected = np.mean([niqe.niqe(scene(seed), model) for seed in (0, 1, 2, 9)])
    assert first.split()[1] == f"{expected:.3f}"

    other = tmp_path / "other.npz"
    niqe.NiqeModel(model.mean + 1, model.covariance).save(other)
    _, out, err = command(*FAST, "--dark", pairs / "high", "--niqe-model", other)
    assert "NIQE (other.npz)" in out.splitlines()[0]
    assert "own model" not in out + err
    assert out.splitlines()[1].split()[1] != f"{expected:.3f}"


def test_niqe_is_a_mean_over_the_same_pictures_for_all_rows():
    def some(niqe):
        return scores.Scores(1.0, 1.0, 1.0, niqe, 0.0, None)

    means = scores.mean([[some(2.0), some(4.0)], [some(3.0), some(None)]])
    assert [mean.niqe for mean in means] == [2.0, 3.0]


# --- scale ----------------------------------------------------------------------------------------


def test_scale_2_starts_from_half_the_size(tmp_path, command):
    high = save(tmp_path / "high" / "a.png", scene(0, 65, 98))  # odd: the last row is cut off
    low = save(tmp_path / "low" / "a.png", dark(high))
    small = np.asarray(Image.fromarray(low[:64]).resize((49, 32), Image.Resampling.BICUBIC))
    enhancer = load("lightweight", device="cpu", threads=1)
    expected = {
        "input + bicubic x2": small,
        "lightweight + bicubic x2": enhancer.enhance(small),
        "neid x2": load("neid", device="cpu", threads=1).enhance(small, scale=2),
    }
    status, out, _ = command(*FAST, "neid", *folders(tmp_path), "--scale", 2, "--csv")
    assert status == 0
    rows = table(out)
    assert len(rows) == 5
    for label, picture in expected.items():
        whole = np.asarray(Image.fromarray(picture).resize((98, 64), Image.Resampling.BICUBIC))
        assert float(rows["a", label]["psnr"]) == pytest.approx(psnr(whole, high[:64]), abs=1e-4)


# --- the synthetic test of residual ---------------------------------------------------------------


def test_the_synthetic_test_is_fixed(tmp_path):
    for n in range(103):
        save(tmp_path / f"{n}.png", np.full((2, 2, 3), n, np.uint8))
    cases = scores.synthetic(tmp_path)
    names = sorted(
        (f"{n}.png" for n in range(103)), key=lambda s: hashlib.sha256(s.encode()).hexdigest()
    )
    assert [case.low.name for case in cases] == names[:100]

    image = scene(3, 60, 80)
    drawn = [scores.darkened(image, number) for number in (*range(50), 7)]
    np.testing.assert_array_equal(drawn[7][0], drawn[50][0])
    alphas = [alpha for _, alpha in drawn[:50]]
    assert min(alphas) < 0.7 < 1.8 < max(alphas)
    assert min(alphas) >= 0.5
    assert max(alphas) <= 2
    for number in range(5):
        rng = np.random.default_rng((0, number))
        alpha, power, sigma = rng.uniform(0.5, 2), rng.uniform(-1, 1), rng.uniform(0, 0.03)
        x = image / 255
        made = np.maximum(x - alpha * (1 - x ** (2**power)) * x, 0)
        made = made + sigma * rng.standard_normal(x.shape, np.float32)
        expected = np.clip(made, 0, 1) * 255
        assert np.abs(drawn[number][0] - expected).max() < 0.51
        assert alphas[number] == alpha


def test_the_synthetic_test_gives_the_true_alpha(tmp_path, command):
    image = save(tmp_path / "a.png", scene(0))
    low, alpha = scores.darkened(image, 0)
    assert alpha != 1
    residual = ("residual", "--device", "cpu", "--threads", 1)
    status, out, err = command(*residual, "--synthetic", tmp_path, "--csv")
    assert status == 0
    assert "of 100 pictures, here are 1" in err
    rows = table(out)
    enhancer = load("residual", device="cpu", threads=1)
    for label, picture in (("input", low), ("residual", enhancer.enhance(low, alpha=alpha))):
        assert float(rows["a", label]["psnr"]) == pytest.approx(psnr(picture, image), abs=1e-4)
        assert float(rows["a", label]["ssim"]) == pytest.approx(ssim(picture, image), abs=1e-4)

    _, found = enhancer.enhance(low, alpha=alpha, return_map=True)
    taken = (image.astype(np.float32) - low) / 255
    expected = -10 * np.log10(np.mean(np.square(alpha * found - taken)))
    assert float(rows["a", "residual"]["psnr_map"]) == pytest.approx(expected, abs=1e-3)
    assert expected > psnr(low, image)  # that of a map of zeros
    assert rows["a", "input"]["psnr_map"] == ""

    _, out, _ = command(*residual, "--synthetic", tmp_path)
    assert "PSNR of the map" in out
    assert "NIQE" not in out  # our own never stands beside published figures
    assert out.splitlines()[-1].split() == ["residual,", "published", "18.120", "0.8500"]


# --- the sheet ------------------------------------------------------------------------------------


def test_a_sheet_of_six_pairs_evenly_chosen(tmp_path, command, monkeypatch):
    for n in range(11):
        high = save(tmp_path / "high" / f"{n:02}.png", scene(n, 24, 32))
        save(tmp_path / "low" / f"{n:02}.png", dark(high))
    pages = []
    grid = sheets.grid
    monkeypatch.setattr(sheets, "grid", lambda *a, **k: pages.append((a, k)) or grid(*a, **k))
    arguments = (*FAST, *folders(tmp_path), "--csv", "--sheet", tmp_path / "new" / "sheet.png")
    status, _, err = command(*arguments)
    assert status == 0, err
    ((tiles,), options) = pages[0]
    assert options == {"columns": 3}
    assert [label for label, _ in tiles[::3]] == [f"{n:02}: input" for n in (0, 2, 4, 6, 8, 10)]
    assert [label for label, _ in tiles[1:3]] == ["lightweight", "reference"]
    np.testing.assert_array_equal(tiles[5][1], scene(2, 24, 32))
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.size[0] > 3 * 32
    with pytest.raises(Refusal, match="exists"):
        command(*arguments)


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_broken_pair_is_named_and_the_rest_goes_on(pairs):
    save(pairs / "high" / "b.png", scene(0, 100, 190))
    data = (pairs / "high" / "c.png").read_bytes()
    (pairs / "high" / "c.png").write_bytes(data[: len(data) // 2])
    status, out, err = real(*FAST, *folders(pairs), "--json")
    assert status == 1
    rows = [json.loads(line) for line in out.splitlines()]
    failed = {row["source"]: row["error"] for row in rows if row["status"] == "failed"}
    assert set(failed) == {"b", "c"}
    assert "200x100" in failed["b"]
    assert "190x100" in failed["b"]
    assert str(pairs / "high" / "c.png") in failed["c"]
    assert failed["b"] in err
    assert {row["image"] for row in rows if row["status"] == "image"} == {"d"}
    assert {row["images"] for row in rows if row["status"] == "summary"} == {1}


def test_nothing_but_broken_pairs(tmp_path, command):
    save(tmp_path / "low" / "a.png", scene(0, 24, 32))
    save(tmp_path / "high" / "a.png", scene(0, 24, 34))
    status, out, err = command(*FAST, *folders(tmp_path), "--sheet", tmp_path / "sheet.png")
    assert (status, out) == (1, "")
    assert "sizes differ" in err
    assert not (tmp_path / "sheet.png").exists()


def test_no_pair_at_all_is_refused_in_one_line(tmp_path):
    save(tmp_path / "low" / "a.png", scene(0, 24, 32))
    save(tmp_path / "high" / "b.png", scene(0, 24, 32))
    status, out, err = real(*FAST, *folders(tmp_path))
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert str(tmp_path / "high") in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--low", "low", "--high", "high"], "name a method"),
        (["dln"], "give --low"),
        (["dln", "--low", "low"], "go together"),
        (["dln", "--low", "low", "--high", "high", "--dark", "low"], "or --dark"),
        (["dln", "--dark", "nix"], "nix: not a folder"),
        (["dln", "--dark", "empty"], "no pictures in it"),
        (["dln", "--dark", "twice"], "x.bmp and x.png have one name"),
        (["dln", "--dark", "low", "--split", "train"], "go with --low"),
        (["dln", "--low", "low", "--high", "high", "--scenes", "s.tsv"], "goes with --split"),
        (["dln", "--low", "low", "--high", "high", "--split", "train"], "no such file"),
        (
            ["dln", "--low", "low", "--high", "high", "--scenes", "s.tsv", "--split", "x"],
            "there are: train",
        ),
        (
            ["dln", "--low", "low", "--high", "high", "--scenes", "t.tsv", "--split", "x"],
            "expected tab-separated",
        ),
        (["dln", "--dark", "low", "--json", "--csv"], "one of --json"),
        (["dln", "--dark", "low", "--scale", "2"], "neid has it"),
        (["neid", "--dark", "low", "--scale", "3"], "scale 3: no method has it"),
        (["dln", "--dark", "low", "--sheet", "sheet.txt"], "sheet.txt"),
        (["dln", "--dark", "low", "--sheet", "link.png"], "link.png exists"),
        (["dln", "--dark", "low", "--sheet", "n" * 300 + ".png"], "the name is too long"),
        (["dln", "--dark", "low", "--niqe-model", "nix.npz"], "nix.npz"),
        (["dln", "--synthetic", "low"], "dln has no such control"),
        (["residual", "--synthetic", "low", "--pred", "low"], "--pred"),
        (["residual", "--synthetic", "low", "--niqe-model", "nix.npz"], "which gives no NIQE"),
        (["lightweight", "--dark", "low", "--weights", "nix"], "no weights 'nix'"),
        (["lightweight", "--dark", "low", "--device", "nix"], "no device 'nix'"),
    ],
)
def test_refusals(arguments, said, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "low" / "a.png", scene(0, 24, 32))
    save(tmp_path / "high" / "a.png", scene(0, 24, 32))
    save(tmp_path / "twice" / "x.png", scene(0, 24, 32))
    save(tmp_path / "twice" / "x.bmp", scene(0, 24, 32))
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere.png")
    (tmp_path / "s.tsv").write_text("stem\tscene\tsplit\na\t1\ttrain\n")
    (tmp_path / "t.tsv").write_text("a\nb\n")
    with pytest.raises(Refusal) as refusal:
        command(*arguments)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_help_is_light():
    code = (
        "import sys\nfrom llenhance.evaluate import evaluate\n"
        "evaluate.main(['--help'], 'evaluate', standalone_mode=False)\n"
        "assert not {'numpy', 'cv2', 'torch', 'PIL', 'rich'} & set(sys.modules), 'heavy'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert b"--synthetic" in result.stdout
