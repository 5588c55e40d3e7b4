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
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Weights
from ..errors import DeviceError, WeightsError
from ..methods import Method
from .columns import fold, foldable
from .onnx import feed_means, from_planes, to_planes

TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # our names of precisions -> OpenVINO's
SIZED = 1 << 24  # bytes of working memory from which on a size gets a graph of its own
KEPT = 1 << 29  # bytes of working memory that such graphs may hold together


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


class OpenVinoEngine:
    """One graph a scale and wanted output, compiled when it is first used.

    A graph compiled for one size needs half the memory and is 5 to 30 % faster; one for any size
    spares the tenths of a second that compiling takes, which is more than a small picture does.
    The two round differently, so which one is used depends on the size alone: what was done
    before never changes a picture. Of the graphs for one size a few are kept.
    """

    name = "openvino"

    def __init__(
        self, method: Method, weights: Weights, device: str, threads: int, precision: str = "auto"
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
        self.anysize: dict[tuple[Any, ...], Any] = {}  # by graph
        self.sized: dict[tuple[Any, ...], Any] = {}  # by graph and shape, the latest last
        self._model(method.scales[0])

    def _model(self, scale: int) -> Any:
        """The graph of a scale as it is on disk, checked to be of these weights."""
        if scale in self.models:
            return self.models[scale]
        graph = self.weights.graph(self.method, scale)
        if not graph.is_file():
            raise WeightsError(
                f"{graph}: no graph beside the weights; --engine torch runs them,"
                " 'llenhance weights export' makes it"
            )
        try:
            model = core().read_model(str(graph))
            digest = model.get_rt_info(["framework", "weights_sha256"]).astype(str)
        except RuntimeError as error:
            reason = _reason(error)
            raise WeightsError(f"{graph}: OpenVINO cannot load it: {reason}") from None
        if digest != self.weights.digest:
            raise WeightsError(f"{graph}: made for other weights than {self.weights.path.name}")
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
        feeds: dict[str, NDArray[Any]] = {}
        for control in self.method.controls:
            feeds[control.name] = np.asarray(controls[control.name], np.float32)
        if self.method.means:
            window = np.ones((len(batch), 1, *batch.shape[1:3]), np.float32)
            known = 0 if means is None else len(self.method.means)
            feeds |= feed_means(self.method, window, means, known)
        wanted = ("enhanced", *self.method.maps) if maps else ("enhanced",)
        packed = batch.dtype == np.uint8  # the graph itself takes and gives bytes
        feeds["x"] = np.ascontiguousarray(batch) if packed else to_planes(batch)
        enhanced, *rest = self._infer(scale, wanted, packed, feeds, again)
        if not packed:
            enhanced = from_planes(enhanced, batch.dtype)
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
        feeds = feed_means(self.method, window[None, None], means, number)
        packed = tile.dtype == np.uint8
        feeds["x"] = np.ascontiguousarray(tile[None]) if packed else to_planes(tile[None])
        mean = self._infer(scale, (f"mean{number}",), packed, feeds, True)[0]  # one of many tiles
        return mean.reshape(-1)

    def release(self) -> None:
        """See :class:`llenhance.engines.Engine`."""
        with self.lock:
            for request in (*self.anysize.values(), *self.sized.values()):
                request.get_compiled_model().release_memory()  # what was compiled is kept

    def _infer(
        self,
        scale: int,
        wanted: tuple[str, ...],
        packed: bool,
        feeds: dict[str, NDArray[Any]],
        again: bool,
    ) -> list[NDArray[Any]]:
        """The wanted outputs, in that order; raises MemoryError where there is too little."""
        with self.lock:
            try:
                request = self._request(scale, wanted, packed, feeds, again)
                found = request.infer(feeds, share_inputs=True)
            except RuntimeError as error:
                if "alloc" in str(error):
                    raise MemoryError(f"OpenVINO: {_reason(error)}") from None
                raise
            return list(found.values())

    def _request(
        self,
        scale: int,
        wanted: tuple[str, ...],
        packed: bool,
        feeds: dict[str, NDArray[Any]],
        again: bool,
    ) -> Any:
        """Something to run these feeds with."""
        graph = (scale, wanted, packed)
        shapes = {name: feed.shape for name, feed in feeds.items()}
        key = (graph, shapes["x"])
        if key in self.sized:
            self.sized[key] = self.sized.pop(key)
            return self.sized[key]
        if again or self._bytes(key) > SIZED:
            # Room first: the old ones are given back before the new one takes as much.
            while self.sized and sum(map(self._bytes, (*self.sized, key))) > KEPT:
                self.sized.pop(next(iter(self.sized)))
            if graph in self.anysize:  # it is another one's turn
                self.anysize[graph].get_compiled_model().release_memory()
            self.sized[key] = self._compile(graph, shapes)
            return self.sized[key]
        if graph not in self.anysize:
            self.anysize[graph] = self._compile(graph, {})
        return self.anysize[graph]

    def _bytes(self, key: tuple[Any, ...]) -> int:
        """An estimate of the working memory of a run in a graph for its size."""
        (_, _, packed), shape = key
        pixels = shape[1] * shape[2] if packed else shape[2] * shape[3]
        return int(shape[0] * pixels * self.method.bytes_per_pixel(self.name, self.precision))

    def _compile(
        self,
        graph: tuple[int, tuple[str, ...], bool],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> Any:
        """A request for the wanted outputs alone, of inputs of these shapes or of any."""
        openvino = module()
        ops = openvino.opset13
        scale, wanted, packed = graph
        model = self._model(scale).clone()
        made = {n: r.input_value(0) for r in model.get_results() for n in r.output(0).names}
        model = openvino.Model(
            [_result(ops, made[name], name) for name in wanted], model.get_parameters(), "wanted"
        )
        if shapes:
            _fix_shapes(openvino, model, dict(shapes), packed)
        if packed:
            model = _with_bytes(openvino, model)
        compiled = core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": TYPES[self.precision],
                "INFERENCE_NUM_THREADS": self.threads,
                "PERFORMANCE_HINT": "LATENCY",
                "ENABLE_CPU_PINNING": False,  # two processes would share the same cores
            },
        )
        return compiled.create_infer_request()


def _result(ops: Any, node: Any, name: str) -> Any:
    result = ops.result(node)
    result.output(0).set_names({name})
    return result


def _fix_shapes(
    openvino: Any, model: Any, shapes: dict[str, tuple[int, ...]], packed: bool
) -> None:
    """Prepare a graph for inputs of these shapes, where ``x`` will be ``packed`` bytes or not."""
    if packed:
        count, height, width, channels = shapes["x"]
        shapes["x"] = (count, channels, height, width)
    model.reshape({name: list(shape) for name, shape in shapes.items()})
    passes = import_module("openvino.passes")  # which openvino does not import by itself
    constants = passes.Manager()
    constants.register_pass(passes.ConstantFolding())
    constants.run_passes(model)
    columns = foldable(model, shapes["x"][3])
    if columns > 1:
        fold(openvino.opset13, model, columns)


def _with_bytes(openvino: Any, model: Any) -> Any:
    """The same graph with bytes, (N, H, W, 3), as ``x`` and for ``enhanced``.

    The arithmetic is that of ``to_planes`` and ``from_planes``, on all threads.
    """
    ops = openvino.opset13
    parameters, results = [], []
    for parameter in model.get_parameters():
        if parameter.output(0).any_name == "x":
            count, channels, height, width = parameter.get_partial_shape()
            shape = openvino.PartialShape([count, height, width, channels])
            packed = ops.parameter(shape, np.uint8, "x")
            packed.output(0).set_names({"x"})
            planes = ops.transpose(ops.convert(packed, "f32"), np.array([0, 3, 1, 2]))
            planes = ops.multiply(planes, np.float32(1 / 255))
            for place in parameter.output(0).get_target_inputs():
                place.replace_source_output(planes.output(0))
            parameter = packed
        parameters.append(parameter)
    for result in model.get_results():
        if result.output(0).any_name == "enhanced":
            levels = ops.multiply(result.input_value(0), np.float32(255))
            levels = ops.convert(ops.round(levels, "half_to_even"), "u8")
            result = _result(ops, ops.transpose(levels, np.array([0, 2, 3, 1])), "enhanced")
        results.append(result)
    return openvino.Model(results, parameters, "bytes")


def _reason(error: Exception) -> str:
    """The sentence of an OpenVINO error that says what is wrong: its last line with words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
