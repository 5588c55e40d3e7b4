"""The way to a device and back, and runs of a network that are recorded once and replayed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Waiting = Callable[[], list[NDArray[Any]]]  # waits for what has begun, and gives its result
Work = Callable[[Tensor], list[Tensor]]

# Of a process, one GPU at a time may record a run or give back memory: torch does both for all.
RECORDING = threading.Lock()


class Lanes:
    """Copies of tensors to a device and back that do not overlap with its computing."""

    records = False  # whether runs can be recorded

    def __init__(self, device: str) -> None:
        self.device = device

    def up(self, packed: Tensor) -> Tensor:
        """From the host to the device."""
        return packed.to(self.device)

    def down(self, packed: Sequence[Tensor]) -> Waiting:
        """From the device to the host: what is returned gives an array for each tensor."""
        arrays = [tensor.cpu().numpy() for tensor in packed]
        return lambda: arrays


class CudaLanes(Lanes):
    """Copies in streams of their own, from and to pinned memory.

    torch keeps that memory for the next copy and does not give it out before this one has ended;
    so with two runs under way there are two buffers each way.
    """

    records = True

    def __init__(self, device: str) -> None:
        super().__init__(device)
        cuda: Any = torch.cuda  # its classes have no types
        self.rising, self.falling = cuda.Stream(device), cuda.Stream(device)
        self.event = cuda.Event

    def up(self, packed: Tensor) -> Tensor:
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.rising):
            there = packed.pin_memory().to(self.device, non_blocking=True)
        computing.wait_stream(self.rising)
        there.record_stream(computing)
        return there

    def down(self, packed: Sequence[Tensor]) -> Waiting:
        # A caller may have made another device torch's default.
        here = [torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=True) for t in packed]
        self.falling.wait_stream(torch.cuda.current_stream(self.device))
        done = self.event(blocking=True)  # sleeps: others need the processor
        with torch.cuda.stream(self.falling):
            for host, tensor in zip(here, packed, strict=True):
                host.copy_(tensor, non_blocking=True)
                tensor.record_stream(self.falling)
            done.record(self.falling)

        def wait() -> list[NDArray[Any]]:
            done.synchronize()
            return [host.numpy().copy() for host in here]  # pinned memory is scarce

        return wait


class Recordings:
    """Runs that are replayed: for small pictures, launching the kernels of a network one by one
    takes longer than computing them.

    A run is recorded when its ``key``, which says all that it depends on but the values, comes
    twice in a row: the first run prepares what a recording must not do. Of recordings, each of
    which holds the memory of a run, the ``most`` last used are kept. Threads take turns: a
    recording has one place for what goes in.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: OrderedDict[Hashable, Work] = OrderedDict()
        self.latest: Hashable = None
        self.lock = threading.Lock()

    def __call__(self, key: Hashable, work: Work, given: Tensor) -> list[Tensor]:
        """What ``work`` makes of ``given``."""
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            elif key == self.latest:
                if len(self.kept) == self.most:
                    self.kept.popitem(last=False)  # first: its memory may be needed
                self.kept[key] = record(work, given)
            else:
                self.latest = key
                return work(given)
            return self.kept[key](given)

    def clear(self) -> None:
        """Give the memory back."""
        with self.lock:
            self.kept.clear()
            self.latest = None


def record(work: Work, given: Tensor) -> Work:
    """A CUDA graph of ``work`` on tensors like ``given``; ``work`` itself where that fails."""
    static = given.clone()
    cuda: Any = torch.cuda
    graph = cuda.CUDAGraph()
    # A stream of this device, and an error of this thread: other threads have GPUs of their own.
    stream = cuda.Stream(given.device)
    try:
        with (
            RECORDING,
            cuda.device(given.device),
            cuda.stream(cuda.current_stream(given.device)),  # back to it, if recording breaks off
            cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            results = work(static)
    except RuntimeError:  # no memory for it, or a network that does what cannot be recorded
        return work

    def replay(given: Tensor) -> list[Tensor]:
        static.copy_(given)
        graph.replay()
        return [result.clone() for result in results]

    return replay
