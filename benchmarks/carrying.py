"""What ``--fast`` costs: a large photo from bytes to bytes, against what cannot be spared.

That is decoding and encoding it, and the network's own time for the reduced copy. The rest is
making the copy and carrying its change of light and colour to the photo.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from rich.table import Table

from . import material
from .apart import apart

WIDTH, HEIGHT = 6000, 4000
TARGET = 1.5  # times what cannot be spared
CHEAP = ("lightweight", "neid")  # cheaper than the carrying: told, and held to no target
PARTS = ("decode", "network", "encode")


def measure(methods: Sequence[str], threads: int, *, quick: bool = False) -> list[dict[str, Any]]:
    """A row for each method: medians of seconds, and the whole over the sum of its parts."""
    width, height, rounds = (1500, 1000, 1) if quick else (WIDTH, HEIGHT, 5)
    rows = []
    for method in methods:
        found = apart(here, method, width, height, rounds, threads=threads)
        row = {"method": method, "megapixels": width * height / 1e6, "times": found}
        row |= {name: statistics.median(seconds) for name, seconds in found.items()}
        row["ratio"] = row["whole"] / sum(row[name] for name in PARTS)
        if method not in CHEAP:
            row |= {"target": TARGET, "met": row["ratio"] <= TARGET}
        rows.append(row)
    return rows


def here(method: str, width: int, height: int, rounds: int) -> dict[str, list[float]]:
    """In this process: seconds of the whole and of its parts, which take turns."""
    from llenhance import load
    from llenhance.fast import reduced
    from llenhance.media import images
    from llenhance.media.picture import Picture

    coded = images.encode(Picture([material.dark(height, width)], "jpeg"), "jpeg")
    picture = images.read(coded)
    enhancer = load(method, device="cpu")
    copy = reduced(picture.frames[0], threads=enhancer.threads)

    def whole() -> bytes:
        bright = images.enhanced(images.read(coded), partial(enhancer.enhance, fast=True))
        return images.encode(bright, "jpeg")

    bright = images.enhanced(picture, partial(enhancer.enhance, fast=True))
    work: dict[str, Callable[[], Any]] = {
        "whole": whole,
        "decode": lambda: images.read(coded),
        "network": lambda: enhancer.enhance(copy),
        "encode": lambda: images.encode(bright, "jpeg"),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, call in work.items():
            began = time.perf_counter()
            call()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - began)
    return times


def tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """For people."""
    table = Table(
        *("method", "MP", "decode, s", "network at 1024, s", "encode, s", "whole, s"),
        *("ratio", "target"),
        title="--fast: a photo from bytes to bytes",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        cells = [f"{row[name]:.2f}" for name in (*PARTS, "whole", "ratio")]
        verdict = f"{row['target']:g} {'met' if row['met'] else 'missed'}" if "met" in row else ""
        table.add_row(row["method"], f"{row['megapixels']:.0f}", *cells, verdict)
    yield table
