"""A picture of a run: its loss terms and its validation figure over the steps."""

import io
import math
from collections.abc import Mapping, Sequence

AXES = ("step", "minutes", "psnr", "rate", "skipped")  # columns of the log that are no loss term


def drawn(rows: Sequence[Mapping[str, float]]) -> bytes:
    """A PNG of the rows of the log; nothing without matplotlib."""
    try:
        # The figure's own class draws into memory: no pyplot, hence no display is opened.
        from matplotlib.figure import Figure
    except ImportError:
        return b""
    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name in dict.fromkeys(name for row in rows for name in row if name not in AXES):
        points = [(row["step"], row[name]) for row in rows if row.get(name, 0) > 0]
        if points:
            above.plot(*zip(*points, strict=True), label=name, marker=".", linewidth=1)
    if above.lines:
        above.set_yscale("log")
        above.legend(fontsize="small")
    above.set_ylabel("loss terms")
    figures = [
        (row["step"], row["psnr"]) for row in rows if math.isfinite(row.get("psnr", math.nan))
    ]
    if figures:
        below.plot(*zip(*figures, strict=True), marker=".", color="black")
    below.set_ylabel("validation PSNR, dB")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()
