"""How much memory this process has and may still take; which errors mean that there is too little.

Read from the system where it says so (Linux, its control groups and limits included); None
elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # the first version of control groups says "no limit" as a huge number

TOO_LITTLE = "there is not enough memory for it"  # of a picture or a video

# What the libraries say in exceptions that have no class of their own for it.
TOLD = (
    "allocate memory",  # torch's CPU allocator, "can't allocate memory"; ONNX Runtime's arena
    "bad allocation",
    "bad_alloc",
    "out of memory",
    "insufficient memory",  # libjpeg, OpenCV
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",  # no memory for its handle
    "cudnn_status_alloc_failed",
    "unable to find an engine",  # cuDNN's, each of which needs memory to work in
    "int_max elements",  # torch's CUDA kernels that count in 32 bits; newer ones say:
    "invalid configuration argument",
    "invalid buffer size",  # Metal
    "could not create a memory object",  # oneDNN, of OpenVINO and torch
)


def resident() -> int | None:
    """Bytes of physical memory that this process holds now."""
    pages = _pages()
    return pages[1] if pages else None


def available() -> int | None:
    """Bytes that this process can still take before the system, a control group or a limit of its
    own says no."""
    found = [*_free(), *_left_in_groups(), *_left_of_limits()]
    return max(0, min(found)) if found else None


def trim() -> None:
    """Give back to the system what was freed here and is still held, where that can be asked for
    (glibc)."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # another library of C
        ctypes.CDLL(None).malloc_trim(0)


def ran_out(error: BaseException) -> bool:
    """Whether an exception of any engine means that there was not enough memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower()
    return any(words in said for words in TOLD)


def _pages() -> tuple[int, int] | None:
    """(address space, resident) of this process in bytes."""
    try:
        words = (PROC / "self" / "statm").read_text().split()
    except OSError:
        return None
    import resource

    size = resource.getpagesize()
    return int(words[0]) * size, int(words[1]) * size


def _free() -> Iterator[int]:
    """What the system can give without swapping."""
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _left_in_groups() -> Iterator[int]:
    """What each control group that this process is in has left, of both versions of them."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Within a container the group's own place is often the root of what is seen.
        place = root / path.strip("/")
        while True:
            left = _left_in_group(place, *names)
            if left is not None:
                yield left
            if place == root or root not in place.parents:
                break
            place = place.parent


def _left_in_group(place: Path, limit: str, usage: str, cached: str) -> int | None:
    try:
        most = (place / limit).read_text().strip()
        used = int((place / usage).read_text())
        told = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if most == "max" or int(most) >= UNLIMITED:
        return None
    # Files that were read and are not in use count as used, but give way.
    return int(most) - used + int(told.get(cached, 0))


def _left_of_limits() -> Iterator[int]:
    """What ulimit -v leaves of the address space."""
    pages = _pages()
    if sys.platform == "win32" or not pages:
        return
    import resource

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        yield most - pages[0]
