"""How time and memory grow with megapixels, frames and files, with the fitted exponent.

Time should grow as the work does (exponent 1), memory not at all (exponent 0): a video and a folder
need no more than a few frames or photos. Memory against megapixels is ``benchmarks.memory``'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from . import material
from .apart import apart, timed
from .pipeline import make_clip, run

METHOD = "lightweight"
MEGAPIXELS = (1, 2, 4, 8, 16, 32)
FILES = (20, 40, 80, 160)
FRAMES = (100, 200, 400, 800)
FEWEST = 2  # files; a single one is done without a worker process
PHOTO, FRAME = (600, 400), (320, 180)  # width, height


def measure(threads: int, method: str = METHOD, *, quick: bool = False) -> list[dict[str, Any]]:
    """A row for each quantity and what it grows with, with its points and exponent."""
    megapixels = (0.05, 0.1) if quick else MEGAPIXELS
    seconds = apart(pictures, method, megapixels, quick, threads=threads)
    rows = [row("time of a picture, s", "megapixels", megapixels, seconds, 1.0)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        counts = (4, 6) if quick else FILES
        apart(make_copies, str(folder / "all"), max(counts), threads=threads)
        sources = [_some(folder, count) for count in (FEWEST, *counts)]
        runs = [run(method, source, folder / "out" / source.name, threads) for source in sources]
        rows += _both("files", FEWEST, counts, runs)
        counts = (4, 8) if quick else FRAMES
        clips = [folder / f"{count}.mp4" for count in (1, *counts)]
        for count, clip in zip((1, *counts), clips, strict=True):
            apart(make_clip, str(clip), count, *FRAME, threads=threads)
        runs = [run(method, clip, folder / f"out{clip.name}", threads) for clip in clips]
        rows += _both("frames", 1, counts, runs)
    return rows


def row(
    what: str, against: str, counts: Sequence[float], values: Sequence[float], wanted: float
) -> dict[str, Any]:
    """A quantity's points and the exponent fitted to them."""
    points = [list(point) for point in zip(counts, values, strict=True)]
    found = exponent(counts, values)
    return {
        "what": what,
        "against": against,
        "points": points,
        "exponent": found,
        "wanted": wanted,
    }


def exponent(counts: Sequence[float], values: Sequence[float]) -> float:
    """p of value = c * count^p, by least squares of the logarithms."""
    return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


def _both(
    against: str, fewest: int, counts: Sequence[int], runs: Sequence[dict[str, float]]
) -> Iterator[dict[str, Any]]:
    """Rows of time and memory. The first run is the one of the ``fewest`` items: its time is what
    starting costs, and what the others take beyond it is fitted against the items beyond those."""
    first, *rest = runs
    more = [count - fewest for count in counts]
    for name, unit in (("wall", "time"), ("cpu", "CPU time")):
        beyond = [max(found[name] - first[name], 1e-3) for found in rest]
        yield row(
            f"{unit} beyond that of {fewest}, s", f"{against} beyond {fewest}", more, beyond, 1.0
        )
    yield row("peak memory, MB", against, counts, [found["megabytes"] for found in rest], 0.0)


def pictures(method: str, megapixels: Sequence[float], quick: bool) -> list[float]:
    """Seconds of one picture of each size, 3:2, tiled as llenhance does by itself."""
    from llenhance import load

    enhancer = load(method, device="cpu")
    seconds = []
    for size in megapixels:
        width = round((size * 1e6 * 1.5) ** 0.5)
        height = round(width / 1.5)
        base = material.dark(200, 300)
        tall, wide = -(-height // 200), -(-width // 300)
        picture = np.ascontiguousarray(np.tile(base, (tall, wide, 1))[:height, :width])
        seconds.append(min(timed(partial(enhancer.enhance, picture), 0.0, 1 if quick else 2)))
    return seconds


def make_copies(folder: str, count: int) -> None:
    """The same small photo so many times."""
    place = Path(folder)
    place.mkdir()
    width, height = PHOTO
    material.write(place / "0000.jpg", material.dark(height, width))
    data = (place / "0000.jpg").read_bytes()
    for number in range(1, count):
        (place / f"{number:04d}.jpg").write_bytes(data)


def _some(folder: Path, count: int) -> Path:
    """A folder with the first so many of all photos."""
    place = folder / f"first{count}"
    place.mkdir()
    for path in sorted((folder / "all").iterdir())[:count]:
        (place / path.name).write_bytes(path.read_bytes())
    return place


def tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """For people."""
    table = Table("what", "against", "points", "exponent", "wanted", title="As the work grows")
    for name in (3, 4):
        table.columns[name].justify = "right"
    for found in rows:
        points = ", ".join(f"{count:g}: {value:.3g}" for count, value in found["points"])
        table.add_row(
            found["what"],
            found["against"],
            points,
            f"{found['exponent']:.2f}",
            f"{found['wanted']:g}",
        )
    yield table
