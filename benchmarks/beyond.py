"""Parts that are commands of their own too, as parts of the whole: GPU, memory, ``--fast``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from .apart import Missing, apart


def gpu(methods: Sequence[str], threads: int, *, quick: bool = False) -> dict[str, Any]:
    """What ``benchmarks.gpu`` measures; raises Missing where there is no GPU."""
    found: dict[str, Any] = apart(gpu_here, list(methods), quick, threads=threads)
    if "missing" in found:
        raise Missing(found["missing"])
    return found


def gpu_here(methods: Sequence[str], quick: bool) -> dict[str, Any]:
    """In this process."""
    from . import gpu

    sizes = gpu.SIZES[:1] if quick else gpu.SIZES
    return gpu.measure(methods, sizes, quick=quick)


def gpu_tables(result: dict[str, Any]) -> Iterator[Table]:
    """For people."""
    from . import gpu

    return gpu.tables(result)


def fast(
    methods: Sequence[str], photos: Path | None, threads: int, *, quick: bool = False
) -> list[dict[str, Any]]:
    """How near ``--fast`` comes to the full result, a row for each method and reduction."""
    if photos is None:
        raise Missing("needs dark photos (--photos DIR)")
    rows: list[dict[str, Any]] = []
    for method in methods:
        rows += apart(fast_here, method, str(photos), 2 if quick else 0, threads=threads)
    return rows


def fast_here(method: str, folder: str, most: int) -> list[dict[str, Any]]:
    """In this process; ``most`` photos, 0 for all."""
    from llenhance import load
    from llenhance.media import images

    from .agreement import REDUCTIONS, measured

    paths = sorted(p for p in Path(folder).iterdir() if images.format_of_suffix(p.suffix))
    if not paths:
        raise Missing(f"no photos in {folder}")
    found = [scores for _, scores in measured(load(method), paths[: most or None], REDUCTIONS)]
    rows = []
    for reduction in REDUCTIONS:
        decibels, likeness = zip(*(scores[reduction] for scores in found), strict=True)
        row: dict[str, Any] = {"method": method, "reduction": reduction, "photos": len(found)}
        row["psnr"] = {"mean": sum(decibels) / len(found), "least": min(decibels)}
        row["ssim"] = {"mean": sum(likeness) / len(found), "least": min(likeness)}
        rows.append(row)
    return rows


def fast_tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """For people."""
    table = Table(
        *("method", "reduction", "photos", "PSNR, dB", "least", "SSIM", "least"),
        title="--fast against the full result",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        cells = [f"{row['psnr'][key]:.1f}" for key in ("mean", "least")]
        cells += [f"{row['ssim'][key]:.3f}" for key in ("mean", "least")]
        table.add_row(row["method"], f"{row['reduction']:g}", str(row["photos"]), *cells)
    yield table
