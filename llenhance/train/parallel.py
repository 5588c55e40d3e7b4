"""Several processes that train one network, started by ``torchrun``.

Every process draws a batch of its own; gradients and running statistics are averaged over all, so
that all step alike and hold the same weights. Without torchrun nothing here does anything.
"""

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import DeviceError

PATIENCE = timedelta(hours=2)  # the others wait while the first one validates and saves


def running() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process; the first one, 0, validates and writes."""
    return dist.get_rank() if running() else 0


def count() -> int:
    """How many processes train."""
    return dist.get_world_size() if running() else 1


def share(threads: int) -> int:
    """This process's share of the threads of its machine."""
    return max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def start(device: str) -> str:
    """Join the processes of torchrun, if there are several; returns this one's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device not in ("cpu", "cuda"):
        raise DeviceError(f"torchrun spreads a run over --device cpu or cuda, not {device}")
    try:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=PATIENCE)
    except KeyError as error:
        raise DeviceError(f"WORLD_SIZE is set and {error.args[0]} is not: use torchrun") from None
    except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
        # A build without CUDA lacks the attribute itself.
        raise DeviceError(f"device {device}: {str(error).splitlines()[0]}") from None
    return device


def stop() -> None:
    if running():
        dist.destroy_process_group()


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its mean over all processes: one exchange for all of them."""
    parts = list(tensors)
    if not running() or not parts:
        return
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for part in parts:
        part.copy_(flat[start : start + part.numel()].view_as(part))
        start += part.numel()


def agreed(value: float, device: str) -> float:
    """The first process's value: clocks differ, and all must stop at the same step."""
    if not running():
        return value
    told = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(told, 0)
    return float(told)
