"""How soon the first picture is there: the command from its start to its end, beside PyTorch.

The other side of each pair is ``import torch`` and the same work in it, in one process: read the
picture, run the network class in fp32, write the picture.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from .apart import ROOT, environment

WIDTH, HEIGHT = 600, 400
METHOD = "lightweight"
TARGET, HELP_TARGET = 1 / 3, 0.3  # of the other side; seconds

# The least that a script with PyTorch does for one picture: nothing of llenhance but the network
# class and its weights as a plain checkpoint.
SCRIPT = """
import sys
import torch
import numpy as np
from PIL import Image
from llenhance.networks.lightweight import Lightweight
source, checkpoint, target = sys.argv[1:]
network = Lightweight()
network.load_state_dict(torch.load(checkpoint, weights_only=True))
network.eval()
with torch.inference_mode():
    picture = np.asarray(Image.open(source).convert("RGB"))
    planes = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    bright = network(planes)[0].permute(1, 2, 0)
    Image.fromarray((bright * 255).round().to(torch.uint8).numpy()).save(target, quality=92)
"""


def measure(threads: int, *, quick: bool = False) -> dict[str, Any]:
    """Seconds of each pair's two sides and of ``--help``, and what they come to."""
    from .apart import apart

    pairs = 2 if quick else 15
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        photo, checkpoint = folder / "photo.jpg", folder / "network.pth"
        apart(prepare, str(photo), str(checkpoint), threads=threads)
        script = folder / "plain.py"
        script.write_text(SCRIPT)
        ours = [*command(), str(photo), "-m", METHOD, "-o", str(folder / "ours.jpg")]
        ours += ["--on-exists", "overwrite", "--quiet"]
        theirs = [sys.executable, str(script), str(photo), str(checkpoint), str(folder / "t.jpg")]
        imports = [sys.executable, "-c", "import torch"]
        sides = {"ours": ours, "torch": theirs, "import": imports, "help": [*command(), "--help"]}
        for words in sides.values():  # files into the system's cache
            _seconds(words, threads)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(pairs):
            for name in list(sides) if number % 2 else reversed(sides):  # neither always first
                times[name].append(_seconds(sides[name], threads))
    return summary(times)


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians; the ratio is the median of the pairs' ratios."""
    ratios = [ours / other for ours, other in zip(times["ours"], times["torch"], strict=True)]
    middle = {name: statistics.median(found) for name, found in times.items()}
    ratio = statistics.median(ratios)
    return {
        "times": times,
        "seconds": middle,
        "ratio": ratio,
        "ratio_target": TARGET,
        "met": ratio <= TARGET,
        "help_target": HELP_TARGET,
        "help_met": middle["help"] <= HELP_TARGET,
    }


def command() -> list[str]:
    """How llenhance is called: its script where it is installed beside this Python."""
    script = shutil.which("llenhance", path=str(Path(sys.executable).parent))
    return [script] if script else [sys.executable, "-m", "llenhance"]


def prepare(photo: str, checkpoint: str) -> None:
    """The sample picture at 600x400, and the weights as PyTorch's users keep theirs."""
    import torch
    from PIL import Image

    from llenhance import checkpoints
    from llenhance.methods import METHODS

    with Image.open(ROOT / "samples" / "dark.jpg") as picture:
        picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(photo, quality=92)
    row = METHODS[METHOD]
    torch.save(checkpoints.build(row, checkpoints.find(row, None)).state_dict(), checkpoint)


def _seconds(words: Sequence[str], threads: int) -> float:
    began = time.perf_counter()
    subprocess.run(words, cwd=ROOT, env=environment(threads), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """For people."""
    seconds = result["seconds"]
    table = Table(
        *("what", "seconds", "ratio", "target", "verdict"),
        title=f"The first picture: llenhance photo.jpg -m {METHOD}, {WIDTH}x{HEIGHT}",
    )
    for number in (1, 2, 3):
        table.columns[number].justify = "right"
    table.add_row(
        "llenhance, start to exit",
        f"{seconds['ours']:.2f}",
        f"{result['ratio']:.2f}",
        f"{result['ratio_target']:.2f}",
        _verdict(result["met"]),
    )
    table.add_row("import torch and the same work in it", f"{seconds['torch']:.2f}", "1")
    table.add_row("import torch alone", f"{seconds['import']:.2f}")
    limit = f"{result['help_target']:g} s"
    table.add_row(
        "llenhance --help", f"{seconds['help']:.2f}", "", limit, _verdict(result["help_met"])
    )
    yield table


def _verdict(met: bool) -> str:
    return "met" if met else "missed"
