"""``llenhance doctor``: which engines, devices and weights work here, tried and not guessed."""

from __future__ import annotations

import itertools
import platform
import sys
from importlib import metadata

import numpy as np
from rich.console import Console
from rich.table import Table

from .checkpoints import sets
from .engines import KINDS, available_threads, cuda_devices
from .enhancer import load
from .methods import METHODS
from .version import __version__

PACKAGES = (
    "torch",
    "openvino",
    "onnxruntime-gpu",
    "onnxruntime",
    "opencv-python",
    "av",
    "numpy",
    "onnx",
)


def examine() -> bool:
    """Print two tables on stdout; True when every set of every method runs on some engine."""
    console = Console()
    console.print(
        f"llenhance {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"\nprocessor threads: {available_threads()}, NVIDIA GPUs: {cuda_devices()}",
    )
    versions = Table("package", "version")
    for package in PACKAGES:
        try:
            versions.add_row(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            versions.add_row(package, "-")
    console.print(versions)

    devices = ["cpu", *(f"cuda:{n}" for n in range(cuda_devices()))]
    if sys.platform == "darwin":
        devices.append("mps")
    table = Table("method", "engine", "device", "precision", "weights", "works")
    dark = np.full((32, 32, 3), 20, np.uint8)
    # A method without weights is one that does not work.
    wanted = [(name, kept) for name in METHODS for kept in sets(METHODS[name]) or ["general"]]
    working = set()
    for (name, weights), engine, device in itertools.product(wanted, KINDS[1:], devices):
        precision, shown, verdict = "", weights, "yes"
        try:
            enhancer = load(name, engine=engine, device=device, weights=weights)
            precision = enhancer.engine.precision
            shown = f"{weights} {enhancer.weights.digest[:12]}"
            if enhancer.enhance(dark).shape != dark.shape:
                verdict = "no: wrong size"
            else:
                working.add((name, weights))
        except Exception as error:  # whatever a driver raises: to find that is the use
            words = str(error).splitlines() or [type(error).__name__]
            verdict = f"no: {words[0]}"
        table.add_row(name, engine, device, precision, shown, verdict)
    console.print(table)
    return working == set(wanted)
