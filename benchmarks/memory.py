"""Memory against megapixels, of the whole command: ``python -m benchmarks.memory``.

Each photo is decoded, enhanced and encoded in a process of its own, whose largest resident size is
taken. Of what it has held when the network is done, what the same command holds with a tiny photo,
and the two pictures themselves, before and after, are no question of method. The rest should not
grow once pictures are cut into tiles: the exponent that is fitted to it is to be near 0. (Encoding,
after that, takes a few bytes for each pixel, but no tile.) Where enhancing a large photo would take
too long, ``--tiles N`` computes the first N tiles of each pass and copies the others, since the
first tiles take as much memory as all.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from llenhance.methods import METHODS

from . import machine, material
from .apart import Missing, apart

MEGAPIXELS = (1.0, 3.0, 10.0, 24.0, 50.0, 100.0)
TINY = 64  # pixels a side
PARTS = ("peak", "enhancing", "process", "pictures", "beyond")


def curve(
    methods: Sequence[str] = tuple(METHODS),
    megapixels: Sequence[float] = MEGAPIXELS,
    threads: int = 2,
    *,
    tiles: int | None = None,
    bound: int | None = None,
) -> list[dict[str, Any]]:
    """A row a method: its points, and the exponent of what grows beyond the pictures themselves.

    A point is a dictionary: megapixels; in MB the peak of the whole, and that until encoding,
    ``enhancing``, which is the sum of process, pictures and beyond; how many tiles; and the seconds
    from the start of decoding to the end of encoding (which mean little with ``tiles``).
    ``tiles``: compute so many of each pass. ``bound``: --max-memory in MB. Raises Missing.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sizes = [(TINY, TINY), *(_sides(size) for size in megapixels)]
        for width, height in sizes:
            apart(make, str(folder / f"{width}x{height}.jpg"), width, height, threads=1)
        rows = []
        for method in methods:
            found = []
            for width, height in sizes:
                photo = folder / f"{width}x{height}.jpg"
                found.append(
                    apart(enhance, method, str(photo), tiles, bound, threads, threads=threads)
                )
            tiny, *rest = found
            points = [
                point(width, height, tiny["peak"], told)
                for (width, height), told in zip(sizes[1:], rest, strict=True)
            ]
            rows.append({"method": method, "engine": tiny["engine"], "points": points})
            rows[-1]["exponent"] = exponent(points)
    return rows


def point(width: int, height: int, process: float, told: dict[str, Any]) -> dict[str, Any]:
    """A row's entry for one photo; ``process``: MB of the command with a tiny photo."""
    pictures = width * height * 6 / 1e6
    return {
        "megapixels": width * height / 1e6,
        "peak": told["peak"],
        "enhancing": told["enhancing"],
        "process": process,
        "pictures": pictures,
        "beyond": told["enhancing"] - process - pictures,
        "tiles": told["tiles"],
        "seconds": told["seconds"],
    }


def exponent(points: Sequence[dict[str, Any]]) -> float | None:
    """p of beyond = c * megapixels^p over the pictures that are cut into tiles."""
    cut = [found for found in points if found["tiles"] > 1]
    if len(cut) < 2:
        return None
    logs = [np.log([max(found[name], 1.0) for found in cut]) for name in ("megapixels", "beyond")]
    return float(np.polyfit(logs[0], logs[1], 1)[0])


def _sides(megapixels: float) -> tuple[int, int]:
    width = round((megapixels * 1e6 * 1.5) ** 0.5)
    return width, round(width / 1.5)


def make(path: str, width: int, height: int) -> None:
    """A dark photo of this size, as a camera would code it."""
    base = material.dark(min(height, 800), min(width, 1200))
    tall, wide = -(-height // base.shape[0]), -(-width // base.shape[1])
    picture = np.tile(base, (tall, wide, 1))[:height, :width]
    material.write(Path(path), np.ascontiguousarray(picture))


def enhance(
    method: str, photo: str, tiles: int | None, bound: int | None, threads: int
) -> dict[str, Any]:
    """The command in this process: its largest resident size in MB, tiles, seconds and engine."""
    import time

    from llenhance.cli import cli

    enhancer: Any = importlib.import_module("llenhance.enhancer")  # whose engines are wrapped
    engines: list[First] = []
    real = enhancer.open_engine

    def opened(*arguments: Any) -> Any:
        engine, note = real(*arguments)
        engines.append(First(engine, tiles))
        return engines[-1], note

    enhancer.open_engine = opened
    target = Path(photo).with_suffix(".out.jpg")
    words = [photo, "-m", method, "-o", str(target), "--on-exists", "overwrite", "--quiet"]
    words += ["--device", "cpu", "--threads", str(threads)]
    words += ["--max-memory", f"{bound}M"] if bound else []
    began = time.perf_counter()
    status = cli.main(words, standalone_mode=False)
    seconds = time.perf_counter() - began
    target.unlink(missing_ok=True)
    if status:
        raise RuntimeError(f"status {status}")
    engine = engines[0]
    return {
        "peak": peak() / 1e6,
        "enhancing": engine.peak / 1e6,
        "tiles": engine.runs,
        "seconds": seconds,
        "engine": f"{engine.name} {engine.precision}",
    }


class First:
    """An engine that computes the first tiles of each pass, and gives the others back as they are;
    all of them for None. Counts the runs."""

    def __init__(self, engine: Any, most: int | None) -> None:
        self.engine, self.most = engine, most
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.runs = 0
        self.peak = 0  # of this process, so far
        self.measured: dict[int, tuple[int, Any]] = {}  # mean -> how often, and what it was

    def run(self, batch: Any, scale: int, controls: Any, **named: Any) -> list[Any]:
        """As :class:`llenhance.engines.Engine`."""
        self.runs += 1
        if self.most is not None and self.runs > self.most:
            return [np.repeat(np.repeat(batch, scale, 1), scale, 2)]
        found = list(self.engine.run(batch, scale, controls, **named))
        self.peak = peak()
        return found

    def measure(self, tile: Any, window: Any, scale: int, number: int, means: Any) -> Any:
        """As :class:`llenhance.engines.Engine`."""
        count, mean = self.measured.get(number, (0, None))
        if self.most is None or count < self.most:
            mean = self.engine.measure(tile, window, scale, number, means)
        self.measured[number] = count + 1, mean
        return mean

    def room(self, usual: int) -> int:
        """As :class:`llenhance.engines.Engine`."""
        found: int = self.engine.room(usual)
        return found

    def release(self) -> None:
        """As :class:`llenhance.engines.Engine`."""
        self.peak = peak()  # after the last tile has found its place
        self.engine.release()


def peak() -> int:
    """The most bytes that this process has held; raises Missing where the system does not tell.

    Not the ru_maxrss of Linux, which is at least that of the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        raise Missing("needs Linux, which tells what a process held at most") from None
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """For people."""
    table = Table(
        *("method", "megapixels", "peak MB", "enhancing", "process", "pictures", "beyond"),
        *("tiles", "exponent"),
        title="Memory of the whole command: decode, enhance, encode",
    )
    for number in range(1, 9):
        table.columns[number].justify = "right"
    for row in rows:
        found = row["exponent"]
        for number, entry in enumerate(row["points"]):
            table.add_row(
                {0: row["method"], 1: row["engine"]}.get(number, ""),
                f"{entry['megapixels']:.1f}",
                *(f"{entry[name]:.0f}" for name in PARTS),
                str(entry["tiles"]),
                f"{found:.2f}" if found is not None and not number else "",
            )
    yield table


@click.command()
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)))
@click.option("--megapixels", multiple=True, type=click.FloatRange(0.01), help="Several times.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--tiles", type=click.IntRange(min=1), help="Compute so many of each pass, no more.")
@click.option("--max-memory", "bound", type=click.IntRange(min=1), metavar="MB")
@click.option("--json", "target", type=click.Path(path_type=Path), metavar="FILE")
def main(
    methods: tuple[str, ...],
    megapixels: tuple[float, ...],
    threads: int,
    tiles: int | None,
    bound: int | None,
    target: Path | None,
) -> None:
    """Show how much memory photos of 1 to 100 megapixels take."""
    console = Console(width=None if Console().is_terminal else 120)
    try:
        rows = curve(
            methods or tuple(METHODS),
            megapixels or MEGAPIXELS,
            threads,
            tiles=tiles,
            bound=bound,
        )
    except Missing as missing:
        raise click.ClickException(f"not measured: {missing}") from None
    for table in tables(rows):
        console.print(table)
    if tiles is not None:
        console.print(f"Of each pass over a picture, only {tiles} tiles were computed.")
    if target is not None:
        told = {"machine": machine.describe(threads), "tiles": tiles, "max_memory": bound}
        target.write_text(json.dumps(told | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    # Other processes import the functions by their module, whose name is not __main__.
    from benchmarks.memory import main as properly

    properly(prog_name="python -m benchmarks.memory")
