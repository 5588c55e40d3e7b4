"""OpenVINO: the fastest engine on CPUs. Reads the same graphs as ONNX Runtime; no torch.

``import openvino`` by itself counts its users over the network (Google Analytics, without asking,
with a number kept in ~/intel) wherever its package ``openvino_telemetry`` can be imported. Here it
cannot: see :func:`module`.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Weights
from ..errors import DeviceError, WeightsError
from ..methods import Method
from ..tiling import Grid
from . import graphs
from .columns import fold, foldable
from .rewrites import settle_means, take_apart, with_pixels

TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # our names of precisions -> OpenVINO's
SIZED = 1 << 24  # bytes of working memory from which on a size gets a graph of its own
KEPT = 1 << 29  # bytes of working memory that such graphs may hold together
CACHED = 1 << 27  # bytes of working memory of which what is in use at once fits in a cache
LIGHT = 10_000  # parameters up to which a network waits for the memory more than it computes
WORTH = 1.06  # times the work that the margins of bands may cost for that


def module() -> Any:
    """The module ``openvino``, which sends nothing.

    Without ``openvino_telemetry`` it uses a stand-in of its own that does nothing, so that package
    is kept from being imported in this process.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@functools.cache
def core() -> Any:
    return module().Core()


def usable() -> bool:
    """Whether OpenVINO is installed and can be loaded here."""
    try:
        core()
    except (ImportError, OSError, RuntimeError):
        return False
    return True


@functools.cache
def native_precisions() -> tuple[str, ...]:
    """What this processor multiplies in by itself, the fastest first; fp32 is the last one.

    OpenVINO takes a reduced precision by itself just where the processor has it: AVX512_BF16 or
    AMX on x86, half precision on Arm. (Asked for bf16 elsewhere it would emulate it, slowly.)
    """
    chosen = core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    return (*(ours for ours, theirs in TYPES.items() if theirs == chosen != "f32"), "fp32")


class _Graph(NamedTuple):
    """What is computed of a picture."""

    scale: int
    wanted: tuple[str, ...]  # the outputs, in this order
    packed: bool  # bytes in and out


class OpenVinoEngine:
    """One graph a scale and wanted output, compiled when it is first used.

    A graph compiled for one size needs half the memory and is 5 to 30 % faster; one for any size
    spares the tenths of a second that compiling takes, which is more than a small picture does.
    The two round differently, so which one is used depends on the size and on ``again``: what
    was done before never changes a picture. Of the graphs for one size a few are kept.
    """

    name = "openvino"

    def __init__(
        self, method: Method, weights: Weights, device: str, threads: int, precision: str
    ) -> None:
        if device != "cpu":
            raise DeviceError(f"device {device}: --engine openvino runs on the cpu")
        self.method, self.weights, self.device, self.threads = method, weights, device, threads
        try:
            native = native_precisions()
        except (ImportError, OSError, RuntimeError) as error:
            raise DeviceError(f"--engine openvino: cannot be loaded: {_reason(error)}") from None
        if precision == "auto":
            precision = next(p for p in native if p in (*method.reduced, "fp32"))
        elif precision not in native:
            raise DeviceError(
                f"precision {precision}: this processor has no {precision} of its own"
                f" ({' and '.join(native)} it has)"
            )
        self.precision = precision
        self.lock = threading.Lock()
        self.models: dict[int, Any] = {}  # by scale, as read
        self.anysize: dict[_Graph, Any] = {}
        # By graph, known means and shape, the latest last.
        self.sized: dict[tuple[_Graph, int | None, tuple[int, ...]], Any] = {}
        self._model(method.scales[0])

    def _model(self, scale: int) -> Any:
        """The graph of a scale as it is on disk, checked to be of these weights."""
        if scale in self.models:
            return self.models[scale]
        graph = graphs.found(self.method, self.weights, scale)
        try:
            model = core().read_model(str(graph))
            digest = model.get_rt_info(["framework", "weights_sha256"]).astype(str)
        except RuntimeError as error:
            reason = _reason(error)
            raise WeightsError(f"{graph}: OpenVINO cannot load it: {reason}") from None
        graphs.check_digest(graph, self.weights, digest)
        self.models[scale] = model
        return model

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
        """See :class:`llenhance.engines.Engine`."""
        feeds = graphs.feeds(self.method, batch, controls, means)
        known = None if means is None else len(self.method.means)
        wanted = ("enhanced", *self.method.maps) if maps else ("enhanced",)
        graph = _Graph(scale, wanted, _packed(batch))
        pixels = _pixels(batch)
        bands = self._bands(*pixels.shape[1:3])
        if bands.whole or maps:
            enhanced, *rest = self._infer(graph, feeds | {"x": pixels}, known, again)
        else:
            enhanced, rest = np.empty_like(pixels), []
            for number in range(len(pixels)):
                for band in bands.tiles():
                    feeds["x"] = pixels[number : number + 1, band.outer[0]]
                    found = self._infer(graph, feeds, known, True)[0]
                    enhanced[number, band.inner[0]] = found[0, band.crop[0]]
        if enhanced.dtype != batch.dtype:  # of 16 bits
            enhanced = np.rint(enhanced * np.float32(65535)).astype(batch.dtype)
        return [enhanced, *(np.ascontiguousarray(p.transpose(0, 2, 3, 1)) for p in rest)]

    def measure(
        self,
        tile: NDArray[Any],
        window: NDArray[np.float32],
        scale: int,
        number: int,
        means: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """See :class:`llenhance.engines.Engine`."""
        feeds = graphs.feed_means(self.method, window[None, None], means, number)
        feeds["x"] = _pixels(tile[None])
        graph = _Graph(scale, (f"mean{number}",), _packed(tile))
        mean = self._infer(graph, feeds, number, True)[0]  # one of many tiles
        return mean.reshape(-1)

    def room(self, usual: int) -> int:
        """See :class:`llenhance.engines.Engine`."""
        return usual

    def release(self) -> None:
        """See :class:`llenhance.engines.Engine`."""
        with self.lock:
            for request in (*self.anysize.values(), *self.sized.values()):
                request.get_compiled_model().release_memory()  # what was compiled is kept

    def _infer(
        self, graph: _Graph, feeds: dict[str, NDArray[Any]], known: int | None, again: bool
    ) -> list[NDArray[Any]]:
        """What the graph gives, in that order; raises MemoryError where there is too little.

        ``known``: of how many of the method's means the tile is told; None for a whole picture.
        """
        with self.lock:
            try:
                request = self._request(graph, feeds, known, again)
                found = request.infer(feeds, share_inputs=True)
            except RuntimeError as error:
                if "alloc" in str(error):
                    raise MemoryError(f"OpenVINO: {_reason(error)}") from None
                raise
            return list(found.values())

    def _bands(self, height: int, width: int) -> Grid:
        """Bands of rows for a light network: of a few rows, what a layer writes is still in the
        cache when the next one reads it. Only where the rows between bands, which are computed
        twice, cost little; else one band."""
        method = self.method
        whole = bands = Grid(height, width, 1, 1, method.receptive_radius, method.multiple_of)
        if method.parameters > LIGHT or method.means:  # means are of the whole picture
            return whole
        while bands.pixels * method.bytes_per_pixel(self.name, self.precision) > CACHED:
            bands = replace(bands, down=bands.down + 1)
            if bands.work > WORTH:
                return whole
        return bands

    def _request(
        self, graph: _Graph, feeds: dict[str, NDArray[Any]], known: int | None, again: bool
    ) -> Any:
        """Something to run these feeds with."""
        key = (graph, known, feeds["x"].shape)
        # Before looking for one that is there: which it is must not depend on what came first.
        if not again and self._bytes(key) <= SIZED:
            if graph not in self.anysize:
                self.anysize[graph] = self._compile(graph, {}, None)
            return self.anysize[graph]
        if key in self.sized:
            self.sized[key] = self.sized.pop(key)
        else:
            # Room first: the old ones are given back before the new one takes as much.
            while self.sized and sum(map(self._bytes, (*self.sized, key))) > KEPT:
                self.sized.pop(next(iter(self.sized)))
            if graph in self.anysize:  # it is another one's turn
                self.anysize[graph].get_compiled_model().release_memory()
            shapes = {name: feed.shape for name, feed in feeds.items()}
            self.sized[key] = self._compile(graph, shapes, known)
        return self.sized[key]

    def _bytes(self, key: tuple[_Graph, int | None, tuple[int, ...]]) -> int:
        """An estimate of the working memory of a run in a graph for its size."""
        count, height, width, _ = key[2]
        return count * height * width * self.method.bytes_per_pixel(self.name, self.precision)

    def _compile(
        self, graph: _Graph, shapes: Mapping[str, tuple[int, ...]], known: int | None
    ) -> Any:
        """A request for what the graph gives, of inputs of these shapes or of any."""
        openvino = module()
        ops = openvino.opset13
        model = self._model(graph.scale).clone()
        made = {n: r.input_value(0) for r in model.get_results() for n in r.output(0).names}
        if shapes:
            settle_means(ops, made, len(self.method.means), known)
        results = []
        for name in graph.wanted:
            result = ops.result(made[name])
            result.output(0).set_names({name})
            results.append(result)
        model = openvino.Model(results, model.get_parameters(), "wanted")
        columns = _fix_shapes(openvino, model, dict(shapes)) if shapes else 1
        compiled = core().compile_model(
            with_pixels(openvino, model, graph.packed, columns),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": TYPES[self.precision],
                "INFERENCE_NUM_THREADS": self.threads,
                "PERFORMANCE_HINT": "LATENCY",
                "ENABLE_CPU_PINNING": False,  # two processes would share the same cores
            },
        )
        return compiled.create_infer_request()


def _packed(batch: NDArray[Any]) -> bool:
    """Whether the graph itself takes and gives bytes."""
    return batch.dtype == np.uint8


def _pixels(batch: NDArray[Any]) -> NDArray[Any]:
    """What a graph takes: bytes as they are, all else as float32 in [0, 1]."""
    if batch.dtype == np.uint16:
        return batch * np.float32(1 / 65535)
    return np.ascontiguousarray(batch)


def _fix_shapes(openvino: Any, model: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Prepare a graph for inputs of these shapes; returns how many columns it has as channels."""
    count, height, width, channels = shapes["x"]
    shapes["x"] = (count, channels, height, width)
    model.reshape({name: list(shape) for name, shape in shapes.items()})
    passes = import_module("openvino.passes")  # which openvino does not import by itself
    constants = passes.Manager()
    constants.register_pass(passes.ConstantFolding())
    constants.run_passes(model)
    take_apart(openvino.opset13, model)
    columns = foldable(model, width)
    if columns > 1:
        fold(openvino.opset13, model, columns)
    return columns


def _reason(error: Exception) -> str:
    """The sentence of an OpenVINO error that says what is wrong: its last line with words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
