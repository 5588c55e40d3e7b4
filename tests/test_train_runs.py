"""Runs that are killed and go on, alone and in two processes: the same weights to the bit.

The runs are children of one process, this file run as a script, which imports torch once and forks.
"""

import csv
import dataclasses
import hashlib
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trainings as t
from safetensors.torch import load_file

from llenhance import checkpoints
from llenhance.methods import METHODS
from llenhance.train import parallel
from llenhance.train.loop import Run, Trainer
from llenhance.train.paper import PAPER
from llenhance.train.recipes import RECIPES, leave_out

STEPS, SAVED, KILLED = 4, 2, 3

CASES = {
    **{name: (RECIPES, name, (), "fp32") for name in RECIPES},
    **{f"{name} paper": (PAPER, name, (), "fp32") for name in PAPER},
    "neid without ff": (RECIPES, "neid", ("ff",), "fp32"),
    "lightweight paper without calibration": (PAPER, "lightweight", ("calibration",), "fp32"),
    "residual in bf16": (RECIPES, "residual", (), "bf16"),
}


def trainer(case, out):
    """Three optimisers' worth of checkpoint is slow to write: only SAVED is saved."""
    table, name, off, precision = CASES[case]
    recipe = t.small(leave_out(table[name], off), 32)
    run = Run(out, steps=STEPS, precision=precision, save_minutes=math.inf)
    made = Trainer(METHODS[name], recipe, t.small_data(), run)
    made.draw_curve = lambda: None  # drawing is slow, and nothing that a run goes on from
    return made


def digest(run):
    """Of everything that a checkpoint would hold; the log; and of the weights that would ship."""
    everything, shipped = hashlib.sha256(), hashlib.sha256()
    for module in (*run.modules.values(), run.average):
        for value in module.state_dict().values():
            everything.update(value.contiguous().numpy())
    for optimizer in run.optimizers:
        for state in optimizer.state_dict()["state"].values():
            for name in sorted(state):
                everything.update(state[name].contiguous().numpy())
    if parallel.rank() == 0:
        for _, value in sorted(load_file(run.shipped).items()):
            shipped.update(value.contiguous().numpy())
    rows = [{k: v for k, v in row.items() if k != "minutes"} for row in run.rows]
    return [everything.hexdigest(), rows, shipped.hexdigest()]


def whole(case, out):
    run = trainer(case, out / "whole")
    run.save = lambda: None
    run.fit(lambda _row: None)
    return digest(run)


def cut(case, out):
    run = trainer(case, out / "cut")

    def tell(row):
        if "minutes" in row and run.step == SAVED:
            run.save()
        if run.step == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)

    run.fit(tell)


def resumed(case, out):
    run = trainer(case, out / "cut")
    run.resume()
    assert run.step == SAVED
    run.save = lambda: None
    run.fit(lambda _row: None)
    (out / "cut" / "checkpoint.pt").unlink(missing_ok=True)
    return digest(run)


def exchange(_case, _out):
    """What the processes have in common: averages, one clock, and batches that differ."""
    rank = parallel.rank()
    tensors = [torch.full((2, 3), float(rank)), torch.tensor([10.0 * rank])]
    parallel.average(tensors)
    run = trainer("lightweight", Path("unused"))
    low = run.draw()["low"]
    return [
        *(x.mean().item() for x in tensors),
        parallel.agreed(5.0 + rank, "cpu"),
        low.sum().item(),
    ]


def fork(action, case, out, environment):
    """Start ``action`` in a child; its result goes to a file."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment)
        torch.set_num_threads(1)
        parallel.start("cpu")
        name = f"{action.__name__}.{parallel.rank()}.json"
        result = action(case, out)
        (out / name).write_text(json.dumps(result))
        parallel.stop()
        status = 0
    finally:
        os._exit(status)


def main(out):
    """Every case alone, and lightweight in two processes; each killed and resumed beside whole."""
    torch.set_num_threads(1)
    trainer("lightweight", out)  # what torch loads late is then loaded once
    for number, case in enumerate(CASES):
        folder = out / str(number)
        folder.mkdir()
        for action in (whole, cut, resumed):
            _, status = os.waitpid(fork(action, case, folder, {}), 0)
            expected = signal.SIGKILL if action is cut else 0
            assert os.waitstatus_to_exitcode(status) == -expected, (case, action.__name__)
    folder = out / "ranks"
    folder.mkdir()
    for action in (exchange, whole, cut, resumed):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        children = [fork(action, "lightweight", folder, {**shared, "RANK": str(r)}) for r in (0, 1)]
        for child in children:
            os.waitpid(child, 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    out = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, __file__, str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_resumes_to_the_bit(case, runs):
    """Killed with SIGKILL a step after its last checkpoint, it ends as if nothing had been."""
    folder = runs / str(list(CASES).index(case))
    one, other = (json.loads((folder / f"{n}.0.json").read_text()) for n in ("whole", "resumed"))
    assert one == other
    assert len(one[1]) == STEPS


def test_two_processes_draw_apart_and_step_alike(runs):
    (a, b) = (json.loads((runs / "ranks" / f"exchange.{r}.json").read_text()) for r in (0, 1))
    assert a[:3] == b[:3] == [0.5, 5.0, 5.0]
    assert a[3] != b[3]
    (a, b) = (json.loads((runs / "ranks" / f"whole.{r}.json").read_text()) for r in (0, 1))
    assert a[0] == b[0]
    alone = runs / str(list(CASES).index("lightweight"))
    assert json.loads((alone / "whole.0.json").read_text())[0] != a[0]


def test_two_killed_processes_resume_to_the_bit(runs):
    assert not (runs / "ranks" / "cut.0.json").exists()
    for rank in (0, 1):
        one, other = (
            json.loads((runs / "ranks" / f"{n}.{rank}.json").read_text())
            for n in ("whole", "resumed")
        )
        assert one[0] == other[0]
        assert rank or one[1:] == other[1:]


def test_torchrun_runs_the_command(tmp_path):
    """As a user starts it: two processes, one run folder, no word twice."""
    for n, high in enumerate(t.made(2)):
        t.save(tmp_path / "pairs" / "high" / f"{n}.png", high)
        t.save(tmp_path / "pairs" / "low" / f"{n}.png", high // 10)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "llenhance", "train", "lightweight", "--pairs", str(tmp_path / "pairs"),
         "-o", str(tmp_path / "run"), "--steps", "2", "--batch", "1", "--threads", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("nothing to validate on") == 1
    assert done.stderr.count("lightweight.safetensors: 2 steps") == 1
    checkpoints.find(METHODS["lightweight"], tmp_path / "run" / "lightweight.safetensors")
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]


def test_checks_of_a_run_with_steps_fall_on_steps(tmp_path):
    """A clock would choose other weights to ship each time."""
    recipe = dataclasses.replace(RECIPES["lightweight"], average=0.5)
    run = t.trainer("lightweight", t.small_data(), tmp_path, steps=50, recipe=recipe)
    run.one_step = lambda: setattr(run, "step", run.step + 1) or {"rate": 1.0}
    run.fit(lambda _row: None)
    steps = [row["step"] for row in run.rows]
    assert len(steps) == 20
    assert steps[-1] == 50
    assert {b - a for a, b in itertools.pairwise([0, *steps])} == {2, 3}
    again = t.trainer("lightweight", t.small_data(), tmp_path / "b", steps=9, validate_minutes=1e9)
    again.fit(lambda _row: None)
    assert [row["step"] for row in again.rows] == [9]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
