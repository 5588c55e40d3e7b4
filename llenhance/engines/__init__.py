"""Engines run a network on packed pictures; which one runs where is decided here."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Weights
from ..errors import DeviceError
from ..methods import Method

KINDS = ("auto", "openvino", "onnx", "torch")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class Engine(Protocol):
    """A network ready to run on one device."""

    name: str  # "openvino", "onnx" or "torch"
    device: str  # "cpu", "cuda:0", "mps": what is really in use
    precision: str  # "fp32", "bf16", "fp16": what the bulk of the network is computed in

    def run(
        self,
        batch: NDArray[Any],
        scale: int,
        controls: Mapping[str, float],
        *,
        maps: bool = False,
        means: NDArray[np.float32] | None = None,
        again: bool = False,
    ) -> list[NDArray[Any]]:
        """Enhance (N, H, W, 3) RGB of uint8, uint16 or float32 in [0, 1].

        Height and width are multiples of the method's ``multiple_of``. ``means``: all the
        whole-picture means of the method, (sum of their channels,), when the batch is a tile of a
        larger picture. ``again``: more batches of this very shape will follow, so that preparing
        for it is worth while.
        Returns first the pictures, (N, scale*H, scale*W, 3) of the same dtype, rounded and not
        truncated; then, with ``maps``, the method's maps as float32 (N, H, W, 3).
        """
        ...

    def measure(
        self,
        tile: NDArray[Any],
        window: NDArray[np.float32],
        scale: int,
        number: int,
        means: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """One whole-picture mean's share of one tile.

        ``tile``: (H, W, 3); ``window``: (H, W), 1 where the mean is taken and 0 elsewhere;
        ``number``: which of the method's means; ``means``: as in ``run``, of which those before
        ``number`` are used. Returns the mean over the window, (channels,).
        """
        ...

    def room(self, usual: int) -> int:
        """Bytes that one run may need, the same from run to run; ``usual`` where nothing is known
        of the device's own memory."""
        ...

    def release(self) -> None:
        """Give back the working memory that is kept for the next run."""
        ...


def cuda_devices() -> int:
    """How many NVIDIA GPUs the driver sees. Asks the driver itself, so it costs no torch import."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def available_threads() -> int:
    """``OMP_NUM_THREADS`` if it is set, else the cores given to this process."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_engine(
    method: Method,
    weights: Weights,
    kind: str,
    device: str,
    threads: int,
    precision: str,
) -> tuple[Engine, str]:
    """(engine, why this one) for ``kind`` in KINDS on ``device`` auto|cpu|cuda[:N]|mps.

    On a CPU, auto is OpenVINO, ONNX Runtime where that cannot be loaded, and torch for weights
    without a graph; only then is torch imported. On a GPU it is torch, which brings its own CUDA
    libraries, and ONNX Runtime for a torch without them. ``precision``, in PRECISIONS: auto is the
    fastest one that the device has by itself and the method bears (``Method.reduced``). Raises
    DeviceError when what was asked for cannot be used; only ``device="auto"`` may end up on the
    CPU, and the second value says so.
    """
    if precision not in PRECISIONS:
        raise DeviceError(f"no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    if device == "auto":
        return _open_anywhere(method, weights, kind, threads, precision)
    _check_device_name(device)
    if device == "cpu":
        return _open_on_cpu(method, weights, kind, threads, precision), "as asked"
    return _open_on_gpu(method, weights, kind, device, threads, precision), "as asked"


def device_list(devices: str) -> list[str]:
    """The devices of "cuda:0,cuda:1", or the single one; auto stays auto.

    Raises DeviceError for a device that is not there, and for a list with anything but different
    NVIDIA GPUs.
    """
    names = [name.strip() for name in devices.split(",")]
    for name in names:
        if len(names) > 1 and name.partition(":")[0] in ("auto", "cpu", "mps"):
            raise DeviceError(f"devices {devices}: only NVIDIA GPUs go together, and not {name}")
        if names != ["auto"]:
            _check_device_name(name)
    if len({int(name.partition(":")[2] or 0) for name in names}) < len(names):
        raise DeviceError(f"devices {devices}: one of them is there twice")
    return names


def _open_anywhere(
    method: Method, weights: Weights, kind: str, threads: int, precision: str
) -> tuple[Engine, str]:
    candidates = []
    if cuda_devices():
        candidates.append("cuda:0")
    if sys.platform == "darwin" and platform.machine() == "arm64" and kind != "onnx":
        candidates.append("mps")
    reason = "no GPU found"
    for device in candidates:
        try:
            return _open_on_gpu(method, weights, kind, device, threads, precision), "GPU found"
        except DeviceError as error:
            reason = str(error)
    return _open_on_cpu(method, weights, kind, threads, precision), reason


def _open_on_gpu(
    method: Method, weights: Weights, kind: str, device: str, threads: int, precision: str
) -> Engine:
    if kind != "auto":
        return _open(method, weights, kind, device, threads, precision)
    try:
        return _open(method, weights, "torch", device, threads, precision)
    except DeviceError as error:
        if not _has_graph(method, weights):
            raise
        try:
            return _open(method, weights, "onnx", device, threads, precision)
        except DeviceError:
            raise error from None  # the one that tells how to mend it


def _open_on_cpu(
    method: Method, weights: Weights, kind: str, threads: int, precision: str
) -> Engine:
    if kind == "auto":
        kind = _best_on_cpu() if _has_graph(method, weights) else "torch"
    return _open(method, weights, kind, "cpu", threads, precision)


def _best_on_cpu() -> str:
    from .openvino import usable

    return "openvino" if usable() else "onnx"  # which is there for more systems


def _has_graph(method: Method, weights: Weights) -> bool:
    return all(weights.graph(method, scale).is_file() for scale in method.scales)


def _check_device_name(device: str) -> None:
    kind, colon, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (
        colon and not (kind == "cuda" and number.isdecimal())
    ):
        raise DeviceError(f"no device {device!r}; there are auto, cpu, cuda, cuda:N and mps")
    count = cuda_devices() if kind == "cuda" else 0
    if kind == "cuda" and not count:
        raise DeviceError(f"device {device}: no NVIDIA GPU or driver found on this machine")
    if kind == "cuda" and int(number or 0) >= count:
        raise DeviceError(f"device {device}: this machine has {count} GPU(s), counted from 0")
    if kind == "mps" and sys.platform != "darwin":
        raise DeviceError("device mps: there is one on Apple computers only")


def _open(
    method: Method, weights: Weights, kind: str, device: str, threads: int, precision: str
) -> Engine:
    if kind == "onnx":
        from .onnx import OnnxEngine

        return OnnxEngine(method, weights, device, threads, precision)
    if kind == "openvino":
        from .openvino import OpenVinoEngine

        return OpenVinoEngine(method, weights, device, threads, precision)
    if kind == "torch":
        from .pytorch import TorchEngine

        return TorchEngine(method, weights, device, threads, precision)
    raise DeviceError(f"no engine {kind!r}; there are {', '.join(KINDS)}")
