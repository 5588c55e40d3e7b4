"""What is measured of pictures, in one command: ``python -m benchmarks``.

Figures are ratios within one run on one machine, never promises of seconds. What this machine
cannot measure is said and left out.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from llenhance.methods import DEFAULT, METHODS

from . import beyond, carrying, first, growth, machine, memory, networks, pipeline, roof
from .apart import Missing

TILES = 2  # of each pass over a picture whose memory is measured: they take as much as all


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the benchmark: ``measure`` gives what JSON can hold, ``tables`` shows it."""

    measure: Callable[[], Any]
    tables: Callable[[Any], Iterator[Table]]


def parts(
    methods: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    threads: int,
    photos: Path | None,
    *,
    quick: bool,
) -> dict[str, Part]:
    """Name -> part, in the order in which they run."""
    # The networks are held against the roof of the same run.
    measured_roof = functools.cache(lambda: roof.measure(threads, quick=quick))

    def of_networks() -> list[dict[str, Any]]:
        found, native = measured_roof()["roof"], machine.native()
        return networks.measure(methods, sizes, found, native, threads, quick=quick)

    def of_pipeline() -> list[dict[str, Any]]:
        chosen = methods if len(methods) < len(METHODS) else (pipeline.FASTEST,)
        return pipeline.measure(threads, chosen, photos, quick=quick)

    def of_memory() -> list[dict[str, Any]]:
        megapixels = (0.1, 0.2) if quick else memory.MEGAPIXELS
        return memory.curve(methods, megapixels, threads, tiles=TILES)

    def of_fast() -> list[dict[str, Any]]:
        chosen = methods if len(methods) < len(METHODS) else (DEFAULT,)
        return beyond.fast(chosen, photos, threads, quick=quick)

    return {
        "roof": Part(measured_roof, roof.tables),
        "networks": Part(of_networks, networks.tables),
        "first": Part(lambda: first.measure(threads, quick=quick), first.tables),
        "pipeline": Part(of_pipeline, pipeline.tables),
        "growth": Part(lambda: growth.measure(threads, quick=quick), growth.tables),
        "memory": Part(of_memory, memory.tables),
        "carrying": Part(lambda: carrying.measure(methods, threads, quick=quick), carrying.tables),
        "fast": Part(of_fast, beyond.fast_tables),
        "gpu": Part(lambda: beyond.gpu(methods, threads, quick=quick), beyond.gpu_tables),
    }


PARTS = tuple(parts((), (), 1, None, quick=True))


@click.command()
@click.option("--only", "wanted", multiple=True, type=click.Choice(PARTS), help="This part alone.")
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)))
@click.option("--size", "sizes", multiple=True, metavar="WxH", help="Of networks' pictures.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--photos",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Dark photos; without them --fast is not measured.",
)
@click.option("--quick", is_flag=True, help="The smallest sizes, once: to see that it works.")
@click.option("--json", "target", type=click.Path(path_type=Path), metavar="FILE")
def main(
    wanted: tuple[str, ...],
    methods: tuple[str, ...],
    sizes: tuple[str, ...],
    threads: int,
    photos: Path | None,
    quick: bool,
    target: Path | None,
) -> None:
    """Measure how fast this machine could be, and how fast llenhance is on it."""
    console = Console(width=None if Console().is_terminal else 160)
    shown = [_size(words) for words in sizes] or networks.SIZES[: 1 if quick else None]
    chosen = parts(methods or tuple(METHODS), shown, threads, photos, quick=quick)
    told: dict[str, Any] = {"machine": machine.describe(threads), "quick": quick, "parts": {}}
    console.print(_described(told["machine"]))
    for name, part in chosen.items():
        if wanted and name not in wanted:
            continue
        began, before = time.time(), _busy()
        try:
            found = part.measure()
        except Missing as missing:
            console.print(f"{name}: not measured: {missing}")
            found = {"missing": str(missing)}
        else:
            for table in part.tables(found):
                console.print(table)
        seconds, after = time.time() - began, _busy()
        others = None if after is None or before is None else (after - before) / seconds
        if others is not None:
            console.print(f"{name}: {seconds:.0f} s; other processes kept {others:.2f} cores busy")
        told["parts"][name] = {"seconds": seconds, "cores of others": others, "result": found}
        if target is not None:
            target.write_text(json.dumps(told, indent=1) + "\n")


def _size(words: str) -> tuple[int, int]:
    width, cross, height = words.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise click.BadParameter(f"{words!r} is no size such as 600x400", param_hint="--size")
    return int(width), int(height)


def _busy() -> float | None:
    """CPU seconds since the start of the machine that were not this benchmark's: by how much others
    disturbed it. None where the system does not tell."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, *rest = (int(word) / os.sysconf("SC_CLK_TCK") for word in words)
    own = os.times()
    return user + nice + system + sum(rest) - sum(own[:4])


def _described(facts: dict[str, Any]) -> Table:
    table = Table("machine", "", show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value))
    return table


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
