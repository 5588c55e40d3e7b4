"""The benchmark measures what it says; how fast anything is, no test asserts."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import apart, first, growth, machine, material, networks, pipeline, roof
from llenhance.methods import METHODS


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


# --- calling apart --------------------------------------------------------------------------------


def test_a_function_runs_in_a_process_of_its_own():
    import os

    assert apart.apart(os.getpid, threads=1) != os.getpid()
    assert apart.apart(os.getenv, "OMP_NUM_THREADS", threads=3) == "3"


def test_what_is_missing_crosses_the_processes():
    with pytest.raises(apart.Missing, match="bf16"):
        apart.apart(networks.seconds_of, "dln", "onnx", "bf16", 32, 32, 0.0, threads=1)


def test_a_failure_apart_tells_why():
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        apart.apart(networks._macs, "nothing", threads=1)


def test_more_memory_than_there_is_is_missing_not_fatal():
    if not sys.platform.startswith("linux"):
        pytest.skip("the bound is Linux's")
    with pytest.raises(apart.Missing, match="memory"):
        apart.apart(np.zeros, 1 << 55, threads=1)


def test_timed_warms_up_and_repeats():
    calls = []
    assert len(apart.timed(lambda: calls.append(1), 0.0, 3)) == 3
    assert len(calls) == 4


# --- the machine ----------------------------------------------------------------------------------


def test_native_precisions_agree_with_openvino():
    from llenhance.engines.openvino import native_precisions, usable

    if not usable() or not machine.flags():
        pytest.skip("nobody to compare with")
    assert set(native_precisions()) <= set(machine.native())


def test_the_machine_is_described():
    facts = machine.describe(2)
    assert facts["threads used"] == 2
    assert "numpy" in facts["packages"]
    json.dumps(facts)


# --- the roof -------------------------------------------------------------------------------------


def test_the_roof_is_measured_in_every_engine():
    for way in roof.WAYS["fp32"]:
        found = apart.apart(roof.rate, way, "fp32", 16, 16, 0.0, threads=1)
        assert 0 < found < 1e5, way
    if "int8" in machine.native():
        assert apart.apart(roof.rate, "onnx", "int8", 16, 16, 0.0, threads=1) > 0


def test_the_stacks_of_all_engines_compute_the_same():
    """Else the rates of different work would be compared."""
    runs = [roof._onnx("fp32", 12, 20)()[0]]
    from llenhance.engines.openvino import usable

    if usable():
        runs.append(next(iter(roof._openvino("fp32", 12, 20)().values())))
    for found in runs:
        assert found.shape == (1, roof.CHANNELS, 12, 20)
        np.testing.assert_allclose(found, runs[0], atol=1e-3)


def test_the_best_rate_is_the_roof():
    rows = [
        {"precision": "fp32", "gflops": 100.0},
        {"precision": "fp32", "gflops": 120.0},
        {"precision": "bf16", "missing": "not installed"},
    ]
    assert roof.roof(rows) == {"fp32": 120.0}


# --- the networks ---------------------------------------------------------------------------------


def rows_of(method, quick_roof):
    return networks.measure([method], [(48, 32)], quick_roof, ["fp32"], 1, quick=True)


def test_rows_of_a_network():
    rows = rows_of("lightweight", {"fp32": 100.0})
    ran = [row for row in rows if "seconds" in row]
    assert {row["asked"][0] for row in ran} >= {"eager", "auto", "onnx", "torch"}
    eager = next(row for row in ran if row["asked"][0] == "eager")
    assert eager["ratio"] == 1
    for row in ran:
        assert row["ratio"] == pytest.approx(eager["seconds"] / row["seconds"])
        # 1,346 parameters, each used about once a pixel
        operations = row["gflops"] * 1e9 * row["seconds"] / (48 * 32)
        assert 2000 < operations < 4000
        assert row["ms_per_megapixel"] == pytest.approx(row["seconds"] * 1e9 / (48 * 32))
    assert sum("met" in row for row in rows) == 1
    for table in networks.tables(rows):
        assert table.row_count == len(rows)


def test_every_method_has_targets():
    assert set(networks.TARGETS) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_plain_is_what_the_engines_compute(method):
    """The other side of the ratio does the same work."""
    from llenhance import load

    picture = material.dark(60, 70)
    plain = networks.plain(method, picture)()
    ours = load(method, device="cpu", engine="torch").enhance(picture)
    assert plain.shape == ours.shape
    assert plain.dtype == np.uint8
    assert np.abs(plain.astype(int) - ours).max() <= 1


def test_targets_are_judged_by_the_share():
    def judged(method, gflops, precision, native):
        rows = [
            {"method": method, "asked": ["eager", "fp32"], "precision": "fp32", "seconds": 9.0,
             "gflops": 10.0},
            {"method": method, "asked": ["auto", "auto"], "precision": precision, "seconds": 1.0,
             "gflops": gflops},
        ]  # fmt: skip
        networks.finish(rows, {"fp32": 100.0, "bf16": 200.0}, native)
        return rows[1]

    assert judged("dln", 171.0, "bf16", ["fp32", "bf16"])["met"]
    assert not judged("dln", 169.0, "bf16", ["fp32", "bf16"])["met"]
    assert not judged("dln", 89.0, "fp32", ["fp32"])["met"]  # 90 % where only fp32 is native
    assert judged("dln", 89.0, "fp32", ["fp32", "bf16"])["met"]
    assert judged("lightweight", 26.0, "bf16", ["fp32", "bf16"])["share"] == pytest.approx(0.26)
    assert judged("dln", 171.0, "bf16", ["fp32", "bf16"])["ratio"] == 9


# --- the first picture ----------------------------------------------------------------------------


def test_pairs_are_compared_pair_by_pair():
    times = {"ours": [1.0, 2.0, 9.0], "torch": [4.0, 4.0, 18.0], "import": [1.0], "help": [0.2]}
    found = first.summary(times)
    assert found["ratio"] == 0.5
    assert not found["met"]
    assert found["help_met"]


# --- the pipeline ---------------------------------------------------------------------------------


def test_what_the_machine_allows():
    stages = {
        "items": 10,
        "wall": {"decode": 1.0, "network": 5.0, "encode": 2.0},
        "cpu": {"decode": 1.0, "network": 8.0, "encode": 3.0},
    }
    found = pipeline.limit(stages, 8.0, cores=2)
    assert found["allowed"] == pytest.approx(10 / 6)  # 12 CPU seconds on two cores
    assert found["share"] == pytest.approx(6 / 8)
    assert not found["met"]
    assert pipeline.limit(stages, 5.0, cores=16)["allowed"] == pytest.approx(2)  # the network
    assert pipeline.limit(stages, 5.0, cores=16)["met"]


def test_the_clock_charges_the_stage_that_works():
    clock = pipeline.Clock()
    clock.enter("decode")
    sum(range(2_000_000))
    clock.enter("network")
    clock.leave()
    clock.leave()
    assert clock.cpu["decode"] > clock.cpu["network"] >= 0
    assert clock.wall["encode"] == 0


def test_a_folder_and_a_video_go_through():
    rows = pipeline.measure(1, quick=True)
    assert [row["kind"] for row in rows] == ["folder", "video"]
    assert [row["items"] for row in rows] == [3, 12]
    for row in rows:
        assert set(row["stages"]["cpu"]) == set(pipeline.STAGES)
        assert all(seconds > 0 for seconds in row["stages"]["wall"].values())
        assert row["command"]["wall"] > 0
    for table in pipeline.tables(rows):
        assert table.row_count == 2


def test_photos_are_mixed_and_the_same_each_time(tmp_path):
    from PIL import Image

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    made, again = material.photos(tmp_path / "a", 4), material.photos(tmp_path / "b", 1)
    assert made[0].read_bytes() == again[0].read_bytes()
    sizes = set()
    for one in made:
        with Image.open(one) as picture:
            sizes.add(picture.size)
            assert np.asarray(picture).mean() < 80  # dark
    assert len(sizes) > 1
    assert {path.suffix for path in made} == {".jpg", ".png"}


# --- growth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0, 0.5, 1, 2])
def test_the_exponent_of_made_numbers_is_exact(power):
    counts = [1, 3, 10, 40]
    values = [7 * count**power for count in counts]
    assert growth.exponent(counts, values) == pytest.approx(power, abs=1e-9)


def test_the_cost_of_starting_is_not_growth():
    counts = [2, 5, 11]
    runs = [{"wall": 3 + 2.0 * n, "cpu": 5 + 1.0 * n, "megabytes": 200.0} for n in (1, *counts)]
    found = {
        row["what"].split(",")[0]: row["exponent"] for row in growth._both("x", 1, counts, runs)
    }
    assert found["time beyond that of 1"] == pytest.approx(1)
    assert found["CPU time beyond that of 1"] == pytest.approx(1)
    assert found["peak memory"] == pytest.approx(0, abs=1e-9)


def test_growth_of_a_picture_is_measured():
    seconds = apart.apart(growth.pictures, "lightweight", [0.01, 0.02], True, threads=1)
    assert len(seconds) == 2
    assert min(seconds) > 0


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_tables_and_keeps_figures(tmp_path):
    kept = tmp_path / "figures.json"
    done = command("--quick", "--only", "first", "--threads", 1, "--json", kept)
    assert done.returncode == 0, done.stderr
    assert "llenhance --help" in done.stdout
    assert "processor" in done.stdout
    told = json.loads(kept.read_text())
    assert told["quick"] is True
    assert list(told["parts"]) == ["first"]
    assert told["machine"]["threads used"] == 1
    found = told["parts"]["first"]["result"]
    assert {len(times) for times in found["times"].values()} == {2}
    assert all(seconds > 0 for seconds in found["seconds"].values())


def test_what_is_not_there_is_said():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = command("--quick", "--only", "gpu", "--only", "fast")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(\w+): not measured: (.+)", done.stdout) == [
        ("fast", "needs dark photos (--photos DIR)"),
        ("gpu", "no GPU"),
    ]


def test_a_wrong_size_is_refused():
    done = command("--size", "large")
    assert done.returncode == 2
    assert "'large' is no size" in done.stderr
