"""ONNX Runtime: the engine for CPUs that OpenVINO is not built for. Never imports torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Weights
from ..errors import DeviceError, WeightsError
from ..methods import Method
from . import graphs


class OnnxEngine:
    """One session a scale, opened when that scale is first used (the first one at once)."""

    name = "onnx"
    precision = "fp32"

    def __init__(
        self, method: Method, weights: Weights, device: str, threads: int, precision: str
    ) -> None:
        self.method, self.weights, self.threads = method, weights, threads
        if precision not in ("auto", "fp32"):
            raise DeviceError(f"precision {precision}: --engine onnx has fp32 alone")
        self.device = "cuda:0" if device == "cuda" else device
        self.sessions: dict[int, Any] = {}
        self._session(method.scales[0])
        if self.device != "cpu":
            self._check_it_runs()

    def _check_it_runs(self) -> None:
        """Raise DeviceError where the provider starts and then cannot compute."""
        try:
            small = np.zeros((1, 32, 32, 3), np.uint8)
            self.run(small, self.method.scales[0], self.method.defaults)
        except Exception as error:  # onnxruntime's own classes share no public base
            raise DeviceError(f"device {self.device}: ONNX Runtime: {_first(error)}") from None

    def _session(self, scale: int) -> Any:
        if scale not in self.sessions:
            self.sessions[scale] = self._open(scale)
        return self.sessions[scale]

    def _open(self, scale: int) -> Any:
        import onnxruntime

        graph = graphs.found(self.method, self.weights, scale)
        onnxruntime.set_default_logger_severity(4)  # errors come back as exceptions
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            # Its own fallback goes on on the CPU, and says so among the bytes of standard output.
            session = onnxruntime.InferenceSession(
                str(graph), options, providers=self._providers(onnxruntime), enable_fallback=0
            )
        except DeviceError:
            raise
        except Exception as error:  # onnxruntime's own classes share no public base
            if self.device == "cpu":
                why = _first(error)
                raise WeightsError(f"{graph}: ONNX Runtime cannot load it: {why}") from None
            raise DeviceError(f"device {self.device}: ONNX Runtime: {_first(error)}") from None
        if self.device != "cpu" and session.get_providers()[0] != "CUDAExecutionProvider":
            raise DeviceError(
                f"device {self.device}: ONNX Runtime could not start its CUDA provider"
                " (it needs matching CUDA and cuDNN libraries); --engine torch brings its own"
            )
        digest = session.get_modelmeta().custom_metadata_map.get("weights_sha256")
        graphs.check_digest(graph, self.weights, digest)
        return session

    def _providers(self, onnxruntime: Any) -> list[Any]:
        if self.device == "cpu":
            return ["CPUExecutionProvider"]
        if not self.device.startswith("cuda"):
            raise DeviceError(f"device {self.device}: ONNX Runtime has none; --engine torch has")
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise DeviceError(f"device {self.device}: this ONNX Runtime is built without CUDA")
        with contextlib.redirect_stdout(sys.stderr):  # where it says what it does not find
            onnxruntime.preload_dlls()
        number = int(self.device.partition(":")[2])
        return [("CUDAExecutionProvider", {"device_id": number, "use_tf32": 0})]

    def run(
        self,
        batch: NDArray[Any],
        scale: int,
        controls: Mapping[str, float],
        *,
        maps: bool = False,
        means: NDArray[np.float32] | None = None,
        again: bool = False,  # noqa: ARG002
    ) -> list[NDArray[Any]]:
        """See :class:`llenhance.engines.Engine`."""
        feeds = graphs.feeds(self.method, batch, controls, means) | {"x": to_planes(batch)}
        wanted = ["enhanced", *self.method.maps] if maps else ["enhanced"]
        enhanced, *rest = self._session(scale).run(wanted, feeds, self._only_what_is_wanted())
        packed = [np.ascontiguousarray(plane.transpose(0, 2, 3, 1)) for plane in rest]
        return [from_planes(enhanced, batch.dtype), *packed]

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
        feeds["x"] = to_planes(tile[None])
        outputs = self._session(scale).run([f"mean{number}"], feeds, self._only_what_is_wanted())
        mean: NDArray[np.float32] = outputs[0].reshape(-1)
        return mean

    def room(self, usual: int) -> int:
        """See :class:`llenhance.engines.Engine`."""
        return usual

    def release(self) -> None:
        """See :class:`llenhance.engines.Engine`."""
        if self.device != "cpu":
            self.sessions.clear()  # they are opened again when they are used
            return
        # Only at the end of a run does ONNX Runtime give back memory, so it gets a small one.
        small = np.zeros((1, 32, 32, 3), np.uint8)
        feeds = graphs.feeds(self.method, small, self.method.defaults) | {"x": to_planes(small)}
        options = self._only_what_is_wanted()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        for session in self.sessions.values():
            session.run(["enhanced"], feeds, options)

    @staticmethod
    def _only_what_is_wanted() -> Any:
        """Run options under which nodes that no wanted output needs are not computed."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        return options


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def to_planes(batch: NDArray[Any]) -> NDArray[np.float32]:
    """(N, H, W, 3) of any picture dtype -> (N, 3, H, W) float32 in [0, 1]."""
    planes = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), np.float32)
    if batch.dtype != np.float32:
        planes *= np.float32(1 / np.iinfo(batch.dtype).max)
    return planes


def from_planes(planes: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """(N, 3, H, W) float32 in [0, 1] -> (N, H, W, 3) of a picture dtype, rounded."""
    if dtype != np.float32:
        planes = np.rint(planes * np.float32(np.iinfo(dtype).max))
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).astype(dtype, copy=False)
