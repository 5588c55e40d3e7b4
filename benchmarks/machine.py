"""What this machine is: its processor, what that has natively, and the versions of what runs."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

# What a processor says of itself (Linux's names), and the precision that it multiplies in natively.
NATIVE = {
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"},
    "int8": {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp"},
}
TELLING = {"avx", "avx2", "fma", "avx512f", "asimd", "sve", "sve2"}.union(*NATIVE.values())
PACKAGES = (
    "torch",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "numpy",
    "opencv-python",
    "simplejpeg",
    "av",
)


@functools.cache
def flags() -> frozenset[str]:
    """The instructions that the processor has, by Linux's names; empty where nobody tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset(_apples())
    found = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return frozenset(found[0].partition(":")[2].split()) if found else frozenset()


def _apples() -> set[str]:
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return set()
    told = _output("sysctl", "hw.optional.arm.FEAT_BF16", "hw.optional.arm.FEAT_I8MM")
    names = {"FEAT_BF16: 1": "bf16", "FEAT_I8MM: 1": "i8mm"}
    return {"asimd", "asimdhp"} | {name for line, name in names.items() if line in told}


def native() -> list[str]:
    """The precisions that the processor has natively: fp32 and some of bf16, fp16, int8."""
    return ["fp32", *(name for name, having in NATIVE.items() if having & flags())]


def describe(threads: int) -> dict[str, Any]:
    """The machine, for the head of a table."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads used": threads,
        "instructions": " ".join(sorted(TELLING & flags())),
        "native precisions": ", ".join(native()),
        "memory": _memory(),
        "caches": _caches(),
        "GPU": _gpu(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))),
        "llenhance": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    found = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    name = found.get("model name", platform.machine())
    if "cpu family" not in found:
        return name
    return f"{name}, family {found['cpu family']} model {found['model']}"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, ValueError, OSError):
        return "unknown"


def _caches() -> str:
    """Of the first core, largest last."""
    found = []
    for place in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((place / n).read_text().strip() for n in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return ", ".join(found) or "unknown"


def _gpu() -> str:
    return (
        _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or "none"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    from llenhance.version import __version__

    commit = _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
    return f"{__version__} {commit}".strip()


def _output(*command: str) -> str:
    """What a command prints, stripped; nothing where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
