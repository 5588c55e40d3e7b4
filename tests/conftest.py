"""What all tests share."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from llenhance import load
from llenhance.engines import available_threads

# Threads that spin beside each other make a busy machine many times slower, and the pictures of
# these tests are small. What is about threads says how many.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# No test asserts a time: not that of an example either, which a busy machine takes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# Under nohup a command rightly ignores SIGHUP, and behind a shell's & SIGINT; the commands of these
# tests are to be hung up and interrupted.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def opened():
    """An enhancer on the processor by method, engine and precision, opened once."""
    kept: dict[tuple[str, str, str], Any] = {}

    def get(name: str, engine: str = "onnx", precision: str = "fp32") -> Any:
        key = (name, engine, precision)
        if key not in kept:
            kept[key] = load(name, engine=engine, device="cpu", precision=precision)
        return kept[key]

    return get


@pytest.fixture(autouse=True)
def no_threads_left_behind():
    """torch has one number of threads for a process: what a test asks for ends with it."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(available_threads())


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def real_dark_photos(count: int) -> list[Path]:
    """Evenly chosen real dark photos, where this checkout has them beside it."""
    found = sorted((SHARED / "dark_photos").glob("*.jpg"))
    return found[:: max(1, len(found) // count)][:count] if found else []
