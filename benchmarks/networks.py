"""How fast each method's network is, against the roof and against plain PyTorch.

uint8 in to uint8 out, with everything between. Each row is timed in a process of its own. "eager"
is the network class in PyTorch as the authors run theirs: fp32, the whole picture at once.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from llenhance.methods import METHODS

from . import material
from .apart import Missing, apart, timed

SIZES = ((600, 400), (1920, 1080))  # width, height
EAGER = "eager"
AUTO = "auto"


class Target(NamedTuple):
    """What a method is to reach on a CPU; where the two disagree the share decides."""

    share: float  # of the roof of the fastest precision that its quality allows
    share_fp32: float  # of the roof where only fp32 is native
    ratio: float  # to the plain eager forward
    fp32_roof: bool = False  # whether the share is of the fp32 roof in any case


TARGETS = {
    "dln": Target(0.85, 0.90, 2.8),
    "residual": Target(0.85, 0.90, 2.6),
    "enlightengan": Target(0.70, 0.70, 2.1),
    "neid": Target(0.70, 0.70, 1.9),
    "lightweight": Target(0.25, 0.25, 5.0, fp32_roof=True),
}


def measure(
    methods: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    roof: dict[str, float],
    native: Sequence[str],
    threads: int,
    *,
    quick: bool = False,
) -> list[dict[str, Any]]:
    """A row for each method, size and way to run it; ``roof``: GFLOP/s of each precision.

    How far it is goes to stderr, since this takes long."""
    rows = []
    for method in methods:
        macs = apart(_macs, method, threads=threads)
        for width, height in sizes:
            found = [
                _row(method, engine, precision, width, height, macs, threads, quick=quick)
                for engine, precision in ways(native)
            ]
            finish(found, roof, native)
            rows += found
    return rows


def ways(native: Sequence[str]) -> list[tuple[str, str]]:
    """(engine, precision) of every way to try: plain PyTorch, the choice that llenhance makes by
    itself, and each of its engines in each native precision."""
    from llenhance.engines import KINDS, PRECISIONS

    known = [precision for precision in PRECISIONS if precision in native]
    engines = [kind for kind in KINDS if kind != AUTO]
    pairs = [(engine, precision) for engine in engines for precision in known]
    return [(EAGER, "fp32"), (AUTO, AUTO), *pairs]


def _row(
    method: str,
    engine: str,
    precision: str,
    width: int,
    height: int,
    macs: int,
    threads: int,
    *,
    quick: bool,
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "size": [width, height], "asked": [engine, precision]}
    seconds = 0.1 if quick else 4.0
    try:
        row |= apart(seconds_of, method, engine, precision, width, height, seconds, threads=threads)
    except Missing as missing:
        return row | {"missing": str(missing)}
    finally:
        print(f"{method} {width}x{height} {engine} {precision}: timed", file=sys.stderr)
    row["seconds"] = statistics.median(row["times"])
    row["spread"] = max(row["times"]) / min(row["times"])
    row["ms_per_megapixel"] = row["seconds"] * 1e9 / (width * height)
    row["gflops"] = 2 * macs * width * height / 1e6 / row["seconds"] / 1e9
    return row


def finish(rows: list[dict[str, Any]], roof: dict[str, float], native: Sequence[str]) -> None:
    """Fill in, for the rows of one method and size, what takes the others: the ratio to eager, the
    share of the roof and, in the row of llenhance's own choice, whether the targets are met."""
    eager = next((r.get("seconds") for r in rows if r["asked"][0] == EAGER), None)
    for row in rows:
        if "seconds" not in row:
            continue
        if eager is not None:
            row["ratio"] = eager / row["seconds"]
        target = TARGETS[row["method"]]
        against = "fp32" if target.fp32_roof else row["precision"]
        if against in roof:
            row["share"] = row["gflops"] / roof[against]
        if row["asked"][0] == AUTO and "share" in row:
            wanted = target.share_fp32 if list(native) == ["fp32"] else target.share
            row["target"] = {"share": wanted, "ratio": target.ratio}
            row["met"] = row["share"] >= wanted


def seconds_of(
    method: str, engine: str, precision: str, width: int, height: int, seconds: float
) -> dict[str, Any]:
    """{"engine", "precision", "times"}: what really ran, and the seconds of each repetition."""
    picture = material.dark(height, width)
    if engine == EAGER:
        return {
            "engine": EAGER,
            "precision": "fp32",
            "times": timed(plain(method, picture), seconds),
        }
    from llenhance import LLEnhanceError, load

    try:
        enhancer = load(method, device="cpu", engine=engine, precision=precision)
    except LLEnhanceError as error:
        raise Missing(str(error)) from None
    except ImportError as error:
        raise Missing(f"not installed: {error.name}") from None
    return {
        "engine": enhancer.engine.name,
        "precision": enhancer.engine.precision,
        "times": timed(partial(enhancer.enhance, picture), seconds),
    }


def plain(method: str, picture: np.ndarray[Any, np.dtype[np.uint8]]) -> Callable[[], Any]:
    """The network class in PyTorch, fp32, the whole (H, W, 3) picture at once, without any of
    llenhance's engines; the call returns (H, W, 3) uint8."""
    import torch

    from llenhance import checkpoints
    from llenhance.engines import available_threads
    from llenhance.pixels import reflected

    row = METHODS[method]
    torch.set_num_threads(available_threads())
    network = checkpoints.build(row, checkpoints.find(row, None)).eval()
    height, width = picture.shape[:2]
    rows, columns = reflected(height, row.multiple_of), reflected(width, row.multiple_of)
    top, left = (len(rows) - height) // 2, (len(columns) - width) // 2

    def run() -> Any:
        padded = picture if len(rows) == height else picture[rows]
        padded = padded if len(columns) == width else padded[:, columns]
        with torch.inference_mode():
            planes = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
            result = network(planes)
            enhanced = result[0] if isinstance(result, tuple) else result
            packed = (enhanced[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        return np.ascontiguousarray(packed[top : top + height, left : left + width])

    return run


def _macs(method: str) -> int:
    """Multiply-accumulates for a megapixel."""
    from llenhance.checkpoints import find
    from llenhance.scores import cost

    row = METHODS[method]
    return cost(row, find(row, None).options, row.scales[0])[1]


def tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """For people."""
    for size in dict.fromkeys(tuple(row["size"]) for row in rows):
        table = Table(
            *("method", "engine", "precision", "seconds", "spread", "ms/MP", "GFLOP/s"),
            *("of roof", "x eager", "targets", "verdict"),
            title="The networks at {}x{}".format(*size),
        )
        for column in table.columns[3:9]:
            column.justify = "right"
        for row in rows:
            if tuple(row["size"]) == size:
                table.add_row(*_cells(row))
        yield table


def _cells(row: dict[str, Any]) -> list[str]:
    engine, precision = row["asked"]
    if "missing" in row:
        return [row["method"], engine, precision, *[""] * 7, f"not measured: {row['missing']}"]
    if engine == AUTO:
        engine, precision = f"auto: {row['engine']}", row["precision"]
    cells = [row["method"], engine, precision, f"{row['seconds']:.3f}", f"{row['spread']:.2f}"]
    cells += [f"{row['ms_per_megapixel']:.0f}", f"{row['gflops']:.0f}"]
    cells.append(f"{row['share']:.0%}" if "share" in row else "")
    cells.append(f"{row['ratio']:.2f}" if "ratio" in row else "")
    if "met" in row:
        target = row["target"]
        cells += [f"{target['share']:.0%}, {target['ratio']:g}x", "met" if row["met"] else "missed"]
    return cells
