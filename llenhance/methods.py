"""The methods as data: what differs between them is a number in a row or a line in a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .errors import ControlError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Control:
    """A number that the user may set: ``default`` and the closed range ``low`` to ``high``."""

    name: str
    default: float
    low: float
    high: float
    summary: str


@dataclass(frozen=True)
class Method:
    """One published system."""

    name: str
    summary: str
    build: Callable[..., nn.Module]  # imports torch; takes the options kept beside the weights
    parameters: int  # of the shipped network
    multiple_of: int  # height and width that the network takes are multiples of this
    receptive_radius: int  # pixels to each side that one output pixel may depend on
    means: tuple[int, ...]  # channels of each whole-picture mean that tiles have to share
    mean_radii: tuple[int, ...]  # receptive radius of the features that each mean is taken over
    memory: Mapping[str, int]  # bytes for each input pixel at scale 1 that a run takes, by engine
    scales: tuple[int, ...]  # output size over input size; the first is the default
    controls: tuple[Control, ...]
    reduced: tuple[str, ...]  # precisions at 45 dB or more to fp32 that move the PSNR < 0.05 dB
    stored_half: bool  # kernels are kept as fp16 on disk (the large networks)
    maps: tuple[str, ...]  # what the network returns beside the picture
    paper: str
    licence: str  # of the code here

    @property
    def defaults(self) -> dict[str, float]:
        """Each control's value where the user gives none."""
        return {control.name: control.default for control in self.controls}

    def bytes_per_pixel(self, engine: str, precision: str) -> int:
        """Working memory of an engine for each input pixel at scale 1."""
        return self.memory.get(f"{engine} {precision}", self.memory[engine])


def _dln(**options: Any) -> nn.Module:
    from .networks.dln import DLN

    return DLN(**options)


def _lightweight(**options: Any) -> nn.Module:
    from .networks.lightweight import Lightweight

    return Lightweight(**options)


def _residual(**options: Any) -> nn.Module:
    from .networks.residual import Residual

    return Residual(**options)


def _neid(**options: Any) -> nn.Module:
    from .networks.neid import NEID

    return NEID(**options)


def _enlightengan(**options: Any) -> nn.Module:
    from .networks.enlightengan import EnlightenGAN

    return EnlightenGAN(**options)


_ROWS = (
    Method(
        name="dln",
        summary="lightening by back-projection; the default, good all round",
        build=_dln,
        parameters=700_586,
        multiple_of=1,
        receptive_radius=31,
        means=(64, 64, 64),  # of the features that the three gates see
        mean_radii=(2, 11, 20),
        memory={"onnx": 5200, "openvino": 1900, "openvino bf16": 960, "torch": 3000},
        scales=(1,),
        controls=(),
        reduced=("bf16",),
        stored_half=False,
        maps=(),
        paper="Wang, Liu, Siu, Lun: Lightening Network for Low-Light Image Enhancement, "
        "IEEE TIP 2020",
        licence="MIT (written from the paper)",
    ),
    Method(
        name="lightweight",
        summary="1,346 parameters that estimate the illumination; the fastest, does not denoise",
        build=_lightweight,
        parameters=1_346,
        multiple_of=1,
        receptive_radius=8,
        means=(),
        mean_radii=(),
        memory={"onnx": 250, "openvino": 165, "openvino bf16": 105, "torch": 450},
        scales=(1,),
        controls=(),
        reduced=("bf16",),
        stored_half=False,
        maps=(),
        paper="Jin, Chen, Liang, ICAROB 2023; built on SCI: Ma et al., Toward Fast, Flexible, and "
        "Robust Low-Light Image Enhancement, CVPR 2022",
        licence="MIT (written from the paper)",
    ),
    Method(
        name="residual",
        summary="deep residual network whose strength is set with --alpha",
        build=_residual,
        parameters=219_526,
        multiple_of=1,
        receptive_radius=24,
        means=(),
        mean_radii=(),
        memory={"onnx": 620, "openvino": 415, "openvino bf16": 235, "torch": 600},
        scales=(1,),
        controls=(Control("alpha", 1.0, 0.0, 2.0, "how much light is added"),),
        reduced=("bf16",),
        stored_half=False,
        maps=("difference",),
        paper="Ri, Choe, O, Kim: deep residual learning with an intensity control",
        licence="MIT (written from the paper)",
    ),
    Method(
        name="neid",
        summary="enhances and denoises through a U-Net; --scale 2 doubles the size",
        build=_neid,
        parameters=10_173_548,
        multiple_of=32,
        receptive_radius=220,
        means=(512,),  # the detail feature vector
        mean_radii=(160,),
        memory={"onnx": 400, "openvino": 230, "openvino bf16": 140, "torch": 250},
        scales=(1, 2),
        controls=(),
        reduced=("bf16",),
        stored_half=True,
        maps=(),
        paper="Jiang, Liu, Wang, Li, Men, Wang, Luo: Bridge the Vision Gap from Field to Command: "
        "A Deep Learning Network Enhancing Illumination and Details, arXiv 2101.08039 (2021)",
        licence="MIT (written from the paper)",
    ),
    Method(
        name="enlightengan",
        summary="attention-guided U-Net learned without pairs; natural, cautious",
        build=_enlightengan,
        parameters=8_636_675,
        multiple_of=16,
        receptive_radius=137,
        means=(),
        mean_radii=(),
        memory={"onnx": 1200, "openvino": 750, "openvino bf16": 400, "torch": 1200},
        scales=(1,),
        controls=(),
        reduced=("bf16",),
        stored_half=True,
        maps=(),
        paper="Jiang, Gong, Liu et al.: EnlightenGAN: Deep Light Enhancement Without Paired "
        "Supervision, IEEE TIP 2021",
        licence="MIT (written from the paper)",
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({row.name: row for row in _ROWS})
DEFAULT = "dln"


def get(name: str) -> Method:
    """The row of a method; raises ControlError for a name that is none."""
    try:
        return METHODS[name]
    except KeyError:
        raise ControlError(f"no method {name!r}; there are {', '.join(METHODS)}") from None
