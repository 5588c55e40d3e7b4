"""How near ``--fast`` comes to the full result: ``python -m benchmarks.agreement --photos DIR``.

Every photo is enhanced whole, and through copies reduced by 2 to 8 in each direction whose change
is carried to it. Photos as large as ``--fast`` is meant for are rare; smaller ones do, since only
the reduction counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llenhance import METHODS, Enhancer, fast, load, pixels
from llenhance.media import images
from llenhance.metrics import psnr, ssim

REDUCTIONS = (2.0, 3.0, 4.0, 6.0, 8.0)

Picture = NDArray[Any]
Scores = dict[float, tuple[float, float]]  # PSNR in dB and SSIM by reduction


def scores(enhancer: Enhancer, photo: Picture, reductions: Sequence[float]) -> Scores:
    """Of (H, W, 3) uint8 carried results against the full one."""
    full = enhancer.enhance(photo)
    found = {}
    for reduction in reductions:
        copy = fast.reduced(photo, round(max(photo.shape) / reduction))
        carried = fast.carried(photo, copy, enhancer.enhance(copy))
        found[reduction] = psnr(carried, full), ssim(carried, full)
    return found


def measured(
    enhancer: Enhancer, photos: Sequence[Path], reductions: Sequence[float]
) -> Iterator[tuple[str, Scores]]:
    """(name, scores) of each photo, which are also told on stderr as they come."""
    for path in photos:
        rgb, _ = pixels.split(images.read(path.read_bytes()).frames[0])
        found = scores(enhancer, pixels.convert(rgb, np.dtype(np.uint8)), reductions)
        print(path.name, *(f"{d:.2f} {s:.4f}" for d, s in found.values()), file=sys.stderr)
        yield path.name, found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", choices=list(METHODS), default="dln")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="Only each Nth photo.")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    photos = sorted(p for p in chosen.photos.iterdir() if images.format_of_suffix(p.suffix))
    enhancer = load(chosen.model, device=chosen.device)
    rows = list(measured(enhancer, photos[:: chosen.every], REDUCTIONS))
    print(f"{chosen.model}, {enhancer.engine.name} {enhancer.engine.precision}: {len(rows)} photos")
    print("reduction  PSNR mean   min  SSIM mean    min  worst PSNR, worst SSIM")
    for reduction in REDUCTIONS:
        decibels, likeness = np.array([row[reduction] for _, row in rows]).T
        worst = rows[decibels.argmin()][0], rows[likeness.argmin()][0]
        print(
            f"{reduction:9g} {decibels.mean():10.2f} {decibels.min():5.1f}"
            f" {likeness.mean():10.4f} {likeness.min():6.3f}  {', '.join(worst)}"
        )


if __name__ == "__main__":
    main()
