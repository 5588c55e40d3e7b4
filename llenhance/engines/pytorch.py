"""PyTorch: the engine for GPUs, and for weights that have no exported graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import checkpoints
from ..checkpoints import Weights
from ..errors import DeviceError
from ..methods import Method
from ..networks.means import Means


class TorchEngine:
    """The network itself, in fp32 without TF32, in eval mode."""

    name = "torch"

    def __init__(self, method: Method, weights: Weights, device: str, threads: int) -> None:
        self.method = method
        self.device = "cuda:0" if device == "cuda" else device
        if self.device.startswith("cuda"):
            if not torch.cuda.is_available():
                raise DeviceError(f"device {device}: this torch ({torch.__version__}) has no CUDA")
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        elif self.device == "mps" and not torch.backends.mps.is_available():
            raise DeviceError("device mps: this torch cannot use it")
        else:
            torch.set_num_threads(threads)
        network = checkpoints.build(method, weights)
        try:
            self.network = network.to(self.device)
        except RuntimeError as error:
            raise DeviceError(f"device {device}: {str(error).splitlines()[0]}") from None

    @torch.inference_mode()
    def run(
        self,
        batch: NDArray[Any],
        scale: int,
        controls: Mapping[str, float],
        *,
        maps: bool = False,
        means: NDArray[np.float32] | None = None,
    ) -> list[NDArray[Any]]:
        """See :class:`llenhance.engines.Engine`."""
        arguments: dict[str, Any] = dict(controls)
        if len(self.method.scales) > 1:
            arguments["scale"] = scale
        if means is not None:
            window = np.ones(batch.shape[1:3], np.float32)
            arguments["means"] = self._means(window, means, len(self.method.means))
        result = self.network(self._planes(batch), **arguments)
        enhanced, *rest = result if isinstance(result, tuple) else (result,)
        packed = [self._pack(enhanced, batch.dtype)]
        if maps:
            packed += [self._pack(plane, np.dtype(np.float32)) for plane in rest]
        return packed

    @torch.inference_mode()
    def measure(
        self,
        tile: NDArray[Any],
        window: NDArray[np.float32],
        scale: int,
        number: int,
        means: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """See :class:`llenhance.engines.Engine`."""
        shared = self._means(window, means, number)
        arguments = {"scale": scale} if len(self.method.scales) > 1 else {}
        self.network(self._planes(tile[None]), means=shared, **arguments)
        return shared.found[number].flatten().cpu().numpy()

    def _means(self, window: NDArray[np.float32], means: NDArray[np.float32], known: int) -> Means:
        count = len(self.method.means)
        return Means(
            torch.from_numpy(window)[None, None].to(self.device),
            torch.from_numpy(means)[None].to(self.device),
            (torch.arange(count) < known).float().to(self.device),
        )

    def _planes(self, batch: NDArray[Any]) -> Tensor:
        # The packed integers travel to the device; torch counts in int32 where it lacks uint16.
        if batch.dtype == np.uint16:
            batch = batch.astype(np.int32)
            peak = 65535
        else:
            peak = 255 if batch.dtype == np.uint8 else 1
        planes = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device)
        return planes.permute(0, 3, 1, 2).float().div_(peak).contiguous()

    def _pack(self, planes: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
        planes = planes.permute(0, 2, 3, 1)
        if dtype == np.float32:
            return planes.contiguous().cpu().numpy()
        levels = (planes * float(np.iinfo(dtype).max)).round()
        if dtype == np.uint8:
            return levels.to(torch.uint8).contiguous().cpu().numpy()
        return levels.to(torch.int32).contiguous().cpu().numpy().astype(dtype)
