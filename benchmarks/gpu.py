"""What an NVIDIA GPU makes of the networks: ``python -m benchmarks.gpu``.

The roof is measured in the same run: the best rate of a matrix product and of 3x3 convolutions in
each precision, and the rate of a copy within the GPU's memory. A network's share of the one tells
how much of its arithmetic is left on the table; its share of the other, of the bytes that its
layers read and write when they run one by one, how much waiting for memory is to blame.

Three ways through a network are timed, on pictures that lie on the GPU: layer by layer, recorded
once and replayed (what videos and batches do), and through torch.compile with the seconds that
compiling takes. Then the whole way, from arrays on the host to arrays on the host.

Without a GPU it says so and ends well. ``--device cpu`` rehearses it on the processor, but for
compiling and recording.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from llenhance.methods import METHODS

SIZES = ((600, 400), (1920, 1080), (3840, 2160), (6000, 4000))  # width, height
TARGETS = {"dln": 60.0, "neid": 150.0, "enlightengan": 150.0}  # frames a second
TARGET_SIZE = (1920, 1080)  # for the network alone
FRAMES = 8  # at most, in one run of a network


def measure(
    methods: Sequence[str] = tuple(METHODS),
    sizes: Sequence[tuple[int, int]] = SIZES,
    device: str = "cuda:0",
    *,
    quick: bool = False,
) -> dict[str, Any]:
    """{"device", "roof": {precision: GFLOP/s}, "copy": GB/s, "rows": [...]}, or {"missing": why}.

    A row for each method and size; what does not fit into the GPU's memory is missing in it.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return {"missing": "no GPU"}
    clock = Clock(device, 0.05 if quick else 2.0)
    roofs = roof(clock, quick=quick)
    copied = copy_rate(clock, quick=quick)
    rows = [row(clock, m, s, roofs, copied, quick=quick) for m in methods for s in sizes]
    return {"device": clock.name, "roof": roofs, "copy": copied, "rows": rows}


class Clock:
    """Times work on a device for so many seconds."""

    def __init__(self, device: str, seconds: float) -> None:
        import torch

        self.device, self.seconds = device, seconds
        self.on_gpu = device.startswith("cuda")
        self.name = "the processor (a rehearsal)"
        if self.on_gpu:
            self.name = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"

    def wait(self) -> None:
        """Until the device has done all."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def mean(self, work: Callable[[], Any]) -> float:
        """Seconds of one repetition of many that follow each other without a wait."""
        for _ in range(3):
            work()
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        repeats = max(3, round(self.seconds / max(1e-6, time.perf_counter() - began)))
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        self.wait()
        return (time.perf_counter() - began) / repeats

    def each(self, work: Callable[[], Any], least: int) -> list[float]:
        """Seconds of each of at least so many repetitions, waited for one by one."""
        for _ in range(3):
            work()
        self.wait()
        times: list[float] = []
        while len(times) < least or sum(times) < self.seconds:
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return times


# --- the roof -------------------------------------------------------------------------------------


def roof(clock: Clock, *, quick: bool) -> dict[str, float]:
    """GFLOP/s of each precision: the best of a large matrix product and of 3x3 convolutions from
    64 to 64 and from 256 to 256 channels, channels-last, without TF32."""
    import torch
    from torch.nn import functional as F

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    rates = {}
    for precision, dtype in (
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ):
        if not clock.on_gpu and precision == "fp16":
            continue  # most processors only emulate it
        side = 256 if quick else 8192
        a, b = (torch.rand(side, side, device=clock.device).to(dtype) for _ in range(2))
        found = [2 * side**3 / clock.mean(partial(torch.mm, a, b))]
        for channels, height, width in ((64, 1080, 1920), (256, 540, 960)):
            if quick:
                height, width = 32, 48
            x = torch.rand(1, channels, height, width, device=clock.device).to(dtype)
            kernel = torch.rand(channels, channels, 3, 3, device=clock.device).to(dtype)
            x, kernel = (t.contiguous(memory_format=torch.channels_last) for t in (x, kernel))
            seconds = clock.mean(partial(F.conv2d, x, kernel, padding=1))
            found.append(2 * 9 * channels**2 * height * width / seconds)
        rates[precision] = max(found) / 1e9
    return rates


def copy_rate(clock: Clock, *, quick: bool) -> float:
    """GB/s, read and written, of a copy within the device's memory."""
    import torch

    size = 1 << (22 if quick else 30)
    there = torch.zeros(size, dtype=torch.uint8, device=clock.device)
    here = torch.zeros_like(there)
    return 2 * size / clock.mean(lambda: here.copy_(there)) / 1e9


def traffic(network: Any, planes: Any, arguments: dict[str, Any]) -> int:
    """Bytes that the layers of a network read and write when they run one by one: the sizes of
    all that goes in and comes out, of tensors without memory."""
    import torch
    from torch.utils import _pytree as trees
    from torch.utils._python_dispatch import TorchDispatchMode

    total = 0

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal total
            result = function(*args, **(kwargs or {}))
            given = [t for t in trees.tree_leaves(args) if isinstance(t, torch.Tensor)]
            made = [t for t in trees.tree_leaves(result) if isinstance(t, torch.Tensor)]
            if not function.is_view:
                total += sum(t.numel() * t.element_size() for t in (*given, *made))
            return result

    counting: Any = Counting
    with counting(), torch.inference_mode():
        network(planes, **arguments)
    return total


# --- a row ----------------------------------------------------------------------------------------


def row(
    clock: Clock,
    method: str,
    size: tuple[int, int],
    roofs: dict[str, float],
    copied: float,
    *,
    quick: bool,
) -> dict[str, Any]:
    """One method at one size."""
    from llenhance import load, memory
    from llenhance.checkpoints import find
    from llenhance.scores import cost

    width, height = size
    enhancer = load(method, device=clock.device, engine="torch")
    engine: Any = enhancer.engine
    frames = min(2 if quick else FRAMES, enhancer.budget.at_once(height, width))
    found: dict[str, Any] = {"method": method, "size": list(size), "frames": frames}
    found["precision"] = engine.precision
    try:
        found |= alone(clock, enhancer, width, height, frames, quick=quick)
    except Exception as error:
        if not memory.ran_out(error):
            raise
        found["missing"] = "the network alone does not fit; from the host it goes in tiles"
    engine.release()
    if "eager" in found:  # what llenhance itself does, not what compiling could
        seconds = min(found[way] for way in ("eager", "recorded") if way in found)
        macs = cost(METHODS[method], find(METHODS[method]).options, 1)[1]
        rate = 2 * macs * width * height / 1e6 / seconds / 1e9
        found["gflops"] = rate
        found["share"] = rate / roofs[engine.precision]
        found["bandwidth_share"] = found["bytes"] / seconds / 1e9 / copied
        found["fps"] = 1 / seconds
        if size == TARGET_SIZE and method in TARGETS:
            found["target"] = TARGETS[method]
            found["met"] = found["fps"] >= TARGETS[method]
    found |= whole_way(clock, enhancer, width, height, frames, quick=quick)
    engine.release()
    return found


def alone(
    clock: Clock, enhancer: Any, width: int, height: int, frames: int, *, quick: bool
) -> dict[str, Any]:
    """Seconds of a frame on the device, layer by layer, recorded and compiled, and the bytes that
    the layers move for it."""
    import copy

    import torch

    from llenhance.engines import lanes
    from llenhance.engines.pytorch import WideMeans, reflect

    engine: Any = enhancer.engine
    method = enhancer.method
    planes, _, _ = reflect(
        torch.rand(frames, 3, height, width, device=clock.device) / 4, method.multiple_of
    )
    planes = engine._laid(planes)
    controls = {control.name: control.default for control in method.controls}

    def work(given: Any) -> list[Any]:
        with torch.inference_mode():
            return list(engine._through(given, 1, controls))

    found: dict[str, Any] = {"eager": clock.mean(partial(work, planes)) / frames}
    if engine.lanes.records:
        with torch.inference_mode():
            replay = lanes.record(work, planes)
        if replay is work:
            found["recorded_missing"] = "it cannot be recorded"
        else:
            with torch.inference_mode():
                found["recorded"] = clock.mean(partial(replay, planes)) / frames
        del replay
        engine.release()
    if clock.on_gpu and not quick:
        found |= compiled(clock, engine.network, planes, frames)
    ghost = copy.deepcopy(engine.network).to("meta")
    arguments: dict[str, Any] = dict(controls) | ({"means": WideMeans()} if method.means else {})
    found["bytes"] = traffic(ghost, planes[:1].to("meta"), arguments)
    return found


def compiled(clock: Clock, network: Any, planes: Any, frames: int) -> dict[str, Any]:
    """Seconds to compile a network and, after that, of a frame."""
    import torch

    try:
        with torch.inference_mode():
            quickened: Any = torch.compile(network)
            began = time.perf_counter()
            quickened(planes)
            clock.wait()
            compiling = time.perf_counter() - began
            seconds = clock.mean(lambda: quickened(planes)) / frames
    except Exception as error:  # compilers fail in their own ways; that is a finding, not ours
        return {"compiled_missing": str(error).splitlines()[0][:100]}
    finally:
        torch.compiler.reset()
    return {"compiled": seconds, "compiling": compiling}


def whole_way(
    clock: Clock, enhancer: Any, width: int, height: int, frames: int, *, quick: bool
) -> dict[str, Any]:
    """Frames a second in a stream of batches, and seconds of single pictures, uint8 arrays on the
    host to uint8 arrays on the host."""
    from .material import dark

    picture = dark(height, width)
    batch = [np.roll(picture, n, 1) for n in range(frames)]
    batches = 3 if quick else max(4, 48 // frames)
    for _ in enhancer.enhance_batches([batch] * 3):  # recorded by then
        pass
    began = time.perf_counter()
    for _ in enhancer.enhance_batches([batch] * batches):
        pass
    seconds = (time.perf_counter() - began) / (batches * frames)
    times = clock.each(lambda: enhancer.enhance(picture), 5 if quick else 100)
    return {
        "stream_fps": 1 / seconds,
        "latency": {
            "count": len(times),
            "p50": statistics.median(times),
            "p99": float(np.quantile(times, 0.99)),
        },
    }


# --- for people -----------------------------------------------------------------------------------


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """For people."""
    if "missing" in result:
        table = Table("GPU")
        table.add_row(f"not measured: {result['missing']}")
        yield table
        return
    table = Table("precision", "GFLOP/s", title=f"The roof of {result['device']}")
    for precision, rate in result["roof"].items():
        table.add_row(precision, f"{rate:,.0f}")
    table.add_row("copy within its memory", f"{result['copy']:,.0f} GB/s")
    yield table
    table = Table(
        *("method", "size", "precision", "frames a run", "ms a frame", "recorded", "compiled"),
        *(
            "after s",
            "of roof",
            "of bandwidth",
            "fps",
            "target",
            "from host fps",
            "p50 ms",
            "p99 ms",
        ),
        title=f"The networks on {result['device']}",
    )
    for found in result["rows"]:
        table.add_row(*_cells(found))
    yield table


def _cells(found: dict[str, Any]) -> list[str]:
    def milliseconds(way: str) -> str:
        return f"{1000 * found[way]:.2f}" if way in found else "-"

    def share(name: str) -> str:
        return f"{found[name]:.0%}" if name in found else "-"

    told = "-"
    if "target" in found:
        told = f"{found['target']:.0f}: {'met' if found['met'] else 'missed'}"
    latency = found["latency"]
    return [
        found["method"],
        "{}x{}".format(*found["size"]),
        found["precision"],
        str(found["frames"]),
        found.get("missing") or milliseconds("eager"),
        milliseconds("recorded"),
        milliseconds("compiled"),
        f"{found['compiling']:.0f}" if "compiling" in found else "-",
        share("share"),
        share("bandwidth_share"),
        f"{found['fps']:.1f}" if "fps" in found else "-",
        told,
        f"{found['stream_fps']:.1f}",
        f"{1000 * latency['p50']:.2f}",
        f"{1000 * latency['p99']:.2f}",
    ]


@click.command()
@click.option("-m", "--method", "methods", multiple=True, type=click.Choice(list(METHODS)))
@click.option("--size", "sizes", multiple=True, metavar="WxH", help="[default: the four]")
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--quick", is_flag=True, help="Tenths of seconds: to see that it runs.")
@click.option("--json", "target", type=click.Path(path_type=Path), metavar="FILE")
def main(
    methods: tuple[str, ...], sizes: tuple[str, ...], device: str, quick: bool, target: Path | None
) -> None:
    """Measure and print the tables."""
    pairs = [(int(w), int(h)) for w, h in (size.split("x") for size in sizes)]
    result = measure(methods or tuple(METHODS), pairs or SIZES, device, quick=quick)
    if "missing" in result:
        click.echo(f"not measured: {result['missing']}")
        return
    console = Console()
    for table in tables(result):
        console.print(table)
    if target is not None:
        target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
