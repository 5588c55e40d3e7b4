"""PyTorch: the engine for GPUs, and for weights that have no exported graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import Weights
from ..errors import ControlError, DeviceError
from ..methods import Method
from ..networks.means import Means
from .lanes import RECORDING, CudaLanes, Lanes, Recordings, Waiting

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A layer with no more channels than this on one side reads the picture or makes it: the first and
# last ones of all networks, and all of the smallest. bf16 has 8 bits, as many as the picture, and
# is kept away from them; fp16 has 11, and throughout is at 69 dB or more to fp32.
NEAR_THE_PICTURE = {torch.bfloat16: 12, torch.float16: 0}
RECORDINGS = 2  # recorded runs that are kept: each holds the memory that its run needs


class TorchEngine:
    """The network itself, in eval mode, without TF32, which is switched off for the process.

    With a reduced precision whole-picture means and the final sum stay in fp32, with bf16 also the
    layers next to the picture; the network is laid out channels-last.
    """

    name = "torch"

    def __init__(
        self, method: Method, weights: Weights, device: str, threads: int, precision: str
    ) -> None:
        self.method = method
        self.device = "cuda:0" if device == "cuda" else device
        if self.device.startswith("cuda"):
            if not torch.cuda.is_available():
                lacking = "cannot use its driver" if torch.version.cuda else "has no CUDA"
                raise DeviceError(f"device {device}: this torch ({torch.__version__}) {lacking}")
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        elif self.device == "mps" and not torch.backends.mps.is_available():
            raise DeviceError("device mps: this torch cannot use it")
        else:
            torch.set_num_threads(threads)
        network = checkpoints.build(method, weights)
        _share_slopes(network)
        try:
            self.network = network.to(self.device)
            wanted = _precision(self.device, precision, method)
            on_gpu = self.device.startswith("cuda")
            self.lanes = CudaLanes(self.device) if on_gpu else Lanes(self.device)
            lowered = wanted != "fp32" and lower(self.network, TYPES[wanted])
            self.precision = wanted if lowered else "fp32"
            if self.device != "cpu":
                self._run_once()
        except (RuntimeError, AssertionError) as error:
            raise DeviceError(f"device {device}: {str(error).splitlines()[0]}") from None
        if precision not in ("auto", "fp32") and not lowered:
            raise DeviceError(f"precision {precision}: no layer of {method.name} is computed in it")
        self.recordings = Recordings(RECORDINGS)

    @torch.inference_mode()
    def _run_once(self) -> None:
        """Raise RuntimeError where the device takes the network and then cannot compute it: this
        torch may have no kernels for a GPU that it finds."""
        small = torch.zeros(1, 3, 32, 32, device=self.device)
        self._through(self._laid(small), self.method.scales[0], self.method.defaults)[0].cpu()

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
        return self.begin(batch, scale, controls, maps=maps, means=means, again=again)()

    @torch.inference_mode()
    def begin(
        self,
        batch: NDArray[Any],
        scale: int,
        controls: Mapping[str, float],
        *,
        maps: bool = False,
        means: NDArray[np.float32] | None = None,
        again: bool = False,
    ) -> Waiting:
        """As :meth:`run`, in two steps: what is returned waits for the result and gives it.

        On an NVIDIA GPU the work goes on after the return, so that of two runs under way one is
        copied up or down while the other is computed. ``again``: more batches of this shape will
        follow; there, the network is then recorded once and replayed, which costs no launches.
        """
        dtypes = [batch.dtype, *(np.dtype(np.float32) for _ in self.method.maps if maps)]
        shared = None if means is None else self._means(batch, means)

        def work(packed: Tensor) -> list[Tensor]:
            outputs = self._through(self._planes(packed), scale, controls, shared)
            return [from_planes(*pair) for pair in zip(outputs, dtypes, strict=False)]

        packed = self.lanes.up(as_torch(batch))
        if again and shared is None and self.lanes.records:
            key = (packed.shape, packed.dtype, scale, maps, *controls.items())
            wait = self.lanes.down(self.recordings(key, work, packed))
        else:
            wait = self.lanes.down(work(packed))
        return lambda: [
            array.astype(dtype, copy=False) for array, dtype in zip(wait(), dtypes, strict=True)
        ]

    def room(self, usual: int) -> int:
        """See :class:`llenhance.engines.Engine`; half of an NVIDIA GPU's memory."""
        if not self.device.startswith("cuda"):
            return usual
        return int(torch.cuda.get_device_properties(self.device).total_memory) // 2

    def release(self) -> None:
        """See :class:`llenhance.engines.Engine`."""
        self.recordings.clear()
        if self.device.startswith("cuda"):
            with RECORDING:
                torch.cuda.empty_cache()
        elif self.device == "mps":
            torch.mps.empty_cache()

    # Not inference mode: what comes out may go into a network that is being trained.
    @torch.no_grad()
    def on_device(
        self,
        pictures: Tensor,
        scale: int,
        controls: Mapping[str, float],
        strength: float,
        at_once: Callable[[int, int], int],
    ) -> Tensor:
        """Enhance (N, 3, H, W), float in [0, 1] or uint8, that lies on the engine's device.

        Any size from 1x1; ``at_once``: how many of a height and width in one run. Returns
        (N, 3, scale*H, scale*W) of the same dtype, layout and device, without waiting for it.
        Raises ControlError, one line, for a tensor that is none of these.
        """
        self._check(pictures)
        count, channels, height, width = pictures.shape
        channels_last = not pictures.is_contiguous() and pictures.is_contiguous(
            memory_format=torch.channels_last
        )
        out = torch.empty(
            (count, channels, height * scale, width * scale),
            dtype=pictures.dtype,
            device=pictures.device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )
        size = at_once(height, width)
        for begin in range(0, count, size):
            x = pictures[begin : begin + size]
            x = x.float().div(255) if x.dtype == torch.uint8 else x.float().clamp(0, 1)
            padded, top, left = reflect(x, self.method.multiple_of)
            y, *_ = self._through(self._laid(padded), scale, controls)
            if strength != 1:
                grown = nn.functional.interpolate(padded, scale_factor=scale, mode="bilinear")
                y = grown * (1 - strength) + y * strength
            y = y[..., top * scale :, left * scale :][..., : height * scale, : width * scale]
            out[begin : begin + size] = (y * 255).round() if out.dtype == torch.uint8 else y
        return out

    def _check(self, pictures: Tensor) -> None:
        if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape[2:]:
            raise ControlError(
                f"pictures in a tensor are (N, 3, height, width), not {tuple(pictures.shape)}"
            )
        if not pictures.is_floating_point() and pictures.dtype != torch.uint8:
            raise ControlError(f"pictures in a tensor are float or uint8, not {pictures.dtype}")
        if pictures.device != next(self.network.parameters()).device:
            raise ControlError(
                f"the pictures are on {pictures.device}, the network is on {self.device}"
            )

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
        shared = self._means(tile[None], means, window, number)
        self._through(self._planes(self.lanes.up(as_torch(tile[None]))), scale, {}, shared)
        return shared.found[number].flatten().cpu().numpy()

    def _planes(self, packed: Tensor) -> Tensor:
        return self._laid(to_planes(packed))

    def _laid(self, planes: Tensor) -> Tensor:
        """In the layout that the network is faster in."""
        wide = self.precision == "fp32"
        return planes.contiguous(
            memory_format=torch.contiguous_format if wide else torch.channels_last
        )

    def _through(
        self,
        planes: Tensor,
        scale: int,
        controls: Mapping[str, float],
        means: Means | None = None,
    ) -> list[Tensor]:
        """(N, 3, H, W) in [0, 1] through the network: the pictures and the maps, in fp32."""
        arguments: dict[str, Any] = dict(controls)
        if len(self.method.scales) > 1:
            arguments["scale"] = scale
        if self.method.means:
            arguments["means"] = means or WideMeans()
        with torch.autocast(self.device.partition(":")[0], enabled=False):  # a caller's own
            result = self.network(planes, **arguments)
        outputs = result if isinstance(result, tuple) else (result,)
        return [output.float() for output in outputs]

    def _means(
        self,
        batch: NDArray[Any],
        means: NDArray[np.float32] | None,
        window: NDArray[np.float32] | None = None,
        known: int | None = None,
    ) -> WideMeans:
        """Means of the whole picture for a tile of it, the first ``known`` of them given."""
        if means is None:
            return WideMeans()
        count = len(self.method.means)
        if window is None:
            window = np.ones(batch.shape[1:3], np.float32)
        return WideMeans(
            torch.from_numpy(window)[None, None].to(self.device),
            torch.from_numpy(means)[None].to(self.device),
            (torch.arange(count) < (count if known is None else known)).float().to(self.device),
        )


# --- precision ------------------------------------------------------------------------------------


def _precision(device: str, wanted: str, method: Method) -> str:
    """fp32, bf16 or fp16 for what was asked for; raises DeviceError where the device lacks it.

    auto is a reduced one where the device multiplies in it by itself and the method's quality
    bears it. Where it bears bf16 it bears fp16, which has three bits more; the networks' values,
    at most some hundreds, stay far below its largest number.
    """
    if wanted == "fp32":
        return wanted
    if device.startswith("cuda"):
        # Tensor cores came with 7.0, and with 8.0 bf16 for them.
        major, minor = torch.cuda.get_device_capability(device)
        native = {"fp16": major >= 7, "bf16": major >= 8}
        chosen = "fp16"
        where = f"of compute capability {major}.{minor}"
    else:
        native = {"fp16": False, "bf16": device == "cpu" and cpu_has_bf16()}
        chosen = "bf16"
        where = "here"
    if wanted == "auto":
        return chosen if native[chosen] and method.reduced else "fp32"
    if not native[wanted]:
        raise DeviceError(
            f"precision {wanted}: torch on device {device} {where} has none of its own"
        )
    return wanted


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies in bf16 by itself; emulated, it is ten times slower."""
    cpu: Any = torch.cpu  # these two have no public name
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def lower(network: nn.Module, dtype: torch.dtype) -> bool:
    """Let the layers of a network count in ``dtype``, but for those that NEAR_THE_PICTURE keeps;
    whether there are any.

    Every layer takes its input in the type of its own weights, and a sum or product of two types
    is taken in the wider one, as torch does: so what the last layers add to the picture is fp32.
    Normalisations keep their numbers in fp32 and give what they get.
    """
    lowered = False
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            continue
        if min(layer.weight.shape[:2]) > NEAR_THE_PICTURE[dtype]:
            layer.to(dtype)
            lowered = True
        layer.register_forward_pre_hook(_as_its_weights)
    if lowered:
        anything: Any = network  # torch's own types lack this argument
        anything.to(memory_format=torch.channels_last)
    return lowered


def _as_its_weights(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return (inputs[0].to(weight.dtype),)


def _share_slopes(network: nn.Module) -> None:
    """PReLU with one slope -> LeakyReLU in place: the same numbers in any precision, in the
    memory of the layer before it."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
                setattr(parent, name, nn.LeakyReLU(layer.weight.item(), inplace=True))


class WideMeans(Means):
    """Means that are taken in fp32, whatever the features are in."""

    def __call__(self, features: Tensor) -> Tensor:
        if self.window is None:
            return features.mean((2, 3), keepdim=True, dtype=torch.float32)
        return super().__call__(features.float())


# --- pixels ---------------------------------------------------------------------------------------


def as_torch(batch: NDArray[Any]) -> Tensor:
    """(N, H, W, 3) of any picture dtype as a tensor on the host; uint16 as int32, since torch
    computes with few unsigned integers."""
    if batch.dtype == np.uint16:
        batch = batch.astype(np.int32)
    return torch.from_numpy(np.require(batch, requirements=["C", "W"]))


def to_planes(packed: Tensor) -> Tensor:
    """What :func:`as_torch` gave, on any device -> (N, 3, H, W) fp32 in [0, 1], channels-last."""
    peak = {torch.uint8: 255, torch.int32: 65535}.get(packed.dtype, 1)
    return packed.permute(0, 3, 1, 2).float().div(peak)


def from_planes(planes: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N, H, W, 3) of ``dtype`` there, rounded; uint16 as int32."""
    packed = planes.permute(0, 2, 3, 1)
    if dtype == np.float32:
        return packed.float().contiguous()
    levels = (packed * float(np.iinfo(dtype).max)).round()
    return levels.to(torch.uint8 if dtype == np.uint8 else torch.int32).contiguous()


def reflect(planes: Tensor, multiple: int) -> tuple[Tensor, int, int]:
    """(N, 3, H, W) reflected at its edges to multiples of ``multiple``, on its device; and the rows
    and columns added above and to the left. See :func:`llenhance.pixels.reflected`."""
    height, width = planes.shape[2:]
    for axis, length in ((2, height), (3, width)):
        missing = -length % multiple
        if missing:
            # Counted there: what is copied from the host would be waited for.
            places = torch.arange(length + missing, device=planes.device) - missing // 2
            period = max(1, 2 * (length - 1))  # back and forth, where more is missing than there is
            places = places.remainder(period)
            planes = planes.index_select(axis, torch.minimum(places, period - places))
    return planes, -height % multiple // 2, -width % multiple // 2
