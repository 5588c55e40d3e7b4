"""Calling a function in a process of its own, so that no measurement warms or crowds another."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SPARE = 0.9  # share of the free memory that a measurement may take


class Missing(Exception):
    """What cannot be measured here, and why, in a few words."""


def apart(function: Callable[..., Any], *arguments: Any, threads: int) -> Any:
    """What ``function`` returns in a fresh Python process that may use ``threads`` CPU threads.

    The function is one of a module, and its arguments and result are of the kinds that JSON has.
    Raises Missing where it does, and where there is too little memory for it; RuntimeError with
    the end of its stderr where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        call = [f"{function.__module__}:{function.__name__}", json.dumps(arguments), str(answer)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.apart", *call],
            cwd=ROOT,
            env=environment(threads),
            capture_output=True,
            text=True,
            check=False,
        )
        if not answer.exists():
            if done.returncode == -9:
                raise Missing("ended by the system for its memory")
            raise RuntimeError(f"{call[0]}{call[1]}: {done.stderr.strip()[-2000:]}")
        told = json.loads(answer.read_text())
    if "missing" in told:
        raise Missing(told["missing"])
    return told["result"]


def environment(threads: int) -> dict[str, str]:
    """This process's environment, with so many threads for whoever asks it."""
    return dict(os.environ, OMP_NUM_THREADS=str(threads))


def timed(work: Callable[[], Any], seconds: float, least: int = 2) -> list[float]:
    """Seconds of each repetition of ``work`` after one to warm up.

    Repeats for so many seconds, and at least so many times.
    """
    work()
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def _bound_memory() -> None:
    """Fail in this process rather than let the system end another one, where it can be told."""
    try:
        import resource

        lines = Path("/proc/meminfo").read_text().splitlines()
    except (ImportError, OSError):
        return
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    limit = int(free * SPARE)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _main(name: str, arguments: str, answer: str) -> None:
    _bound_memory()
    module, function = name.split(":")
    told: dict[str, Any]
    try:
        told = {
            "result": getattr(importlib.import_module(module), function)(*json.loads(arguments))
        }
    except Missing as missing:
        told = {"missing": str(missing)}
    except MemoryError:
        told = {"missing": "needs more memory than is free"}
    except RuntimeError as error:  # torch has no class of its own for it on a CPU
        if "allocate" not in str(error) and "bad_alloc" not in str(error):
            raise
        told = {"missing": "needs more memory than is free"}
    Path(answer).write_text(json.dumps(told))


if __name__ == "__main__":
    # The functions raise the Missing of benchmarks.apart, which is not the one of __main__.
    from benchmarks import apart as properly

    properly._main(*sys.argv[1:])
