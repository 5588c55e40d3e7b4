"""The lightweight Retinex network: 1,346 parameters that estimate the illumination.

Jin, Chen, Liang, ICAROB 2023, built on SCI:
Ma, Ma, Liu, Fan, Luo, "Toward Fast, Flexible, and Robust Low-Light Image Enhancement" (CVPR 2022).
The picture S is divided by an estimated illumination L: R = S / L. The paper's training
unrolls three stages that share these weights, joined by the auxiliary block K; the shipped network
is one stage, no K.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

DILATIONS = (1, 2, 3, 5)  # receptive fields 3, 5, 7 and 11 pixels without a common divisor
DARKEST = 1e-4  # the least illumination, so that S / L stays finite


class Branch(nn.Sequential):
    """One branch of the extractor: 1x1 to four channels, then a dilated 3x3."""

    def __init__(self, dilation: int) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=dilation, dilation=dilation),
            nn.ReLU(),
        )


class Stage(NamedTuple):
    """What one stage of the training sees and makes, each (N, 3, H, W)."""

    seen: Tensor  # V, the stage's input: S, later S + K(R)
    illumination: Tensor  # L = clamp(V + H(F, V), 1e-4, 1)
    result: Tensor  # R = clamp(S / L, 0, 1)
    following: Tensor  # V of the next stage: S + K(R)


class Lightweight(nn.Module):
    """``forward(x)``: (N, 3, H, W) RGB in [0, 1] -> the same shape and range; any size.

    It only brightens (x <= result) and sees 17x17 pixels. One gain a pixel cannot remove noise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch(dilation) for dilation in DILATIONS)
        self.in_conv = nn.Conv2d(4 * len(DILATIONS) + 3, 3, 3, padding=1)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.out_conv = nn.Conv2d(3, 3, 3, padding=1)
        self._wake()

    def _wake(self) -> None:
        """Start as a curve that rises with the light around a pixel, every channel alive.

        ReLUs that start at zero, or fall to it, stay there, and of so few channels none is to
        spare: a network without them adds one number to every pixel. So the extractor starts as
        averages of mixed colours, which are positive, and each channel behind it as one colour.
        """
        eye = torch.eye(3)
        for average in self.branches.modules():
            if isinstance(average, nn.Conv2d):
                # The sum of all weights is 1 on average, and 8 where colours are mixed: what dark
                # pixels give must be large beside the steps that biases take.
                total = 8 if average.kernel_size == (1, 1) else 1
                nn.init.uniform_(average.weight, 0, 2 * total / average.weight[0].numel())
                nn.init.zeros_(average.bias)  # type: ignore[arg-type]
        for conv, gain, bias in (
            (self.in_conv, 2.0, 0.05),
            (self.conv, 1.0, -0.3),
            (self.out_conv, 3.0, -3.0),  # an illumination of 0.05 to 0.5 in the light
        ):
            nn.init.normal_(conv.weight, 0, 0.005)
            conv.weight.data[:, -3:, 1, 1] += gain * eye
            nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]

    def extract(self, s: Tensor) -> Tensor:
        """F: (N, 16, H, W), the four dilated branches side by side."""
        return torch.cat([branch(s) for branch in self.branches], 1)

    def illuminate(self, features: Tensor, v: Tensor) -> Tensor:
        """L of one stage: (N, 3, H, W) in [1e-4, 1]."""
        f = torch.relu(self.in_conv(torch.cat((features, v), 1)))
        f = f + torch.relu(self.norm(self.conv(f)))
        return (torch.sigmoid(self.out_conv(f)) + v).clamp(DARKEST, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return (x / self.illuminate(self.extract(x), x)).clamp(0, 1)

    def stages(self, s: Tensor, auxiliary: nn.Module | None, count: int = 3) -> list[Stage]:
        """Unroll ``count`` weight-shared stages for training: V^1 = S, V^(t+1) = S + K(R^t).

        Without ``auxiliary`` (K) each stage starts from the illumination of the one before.
        """
        features = self.extract(s)
        seen, unrolled = s, []
        for _ in range(count):
            illumination = self.illuminate(features, seen)
            result = (s / illumination).clamp(0, 1)
            following = illumination if auxiliary is None else s + auxiliary(result)
            unrolled.append(Stage(seen, illumination, result, following))
            seen = following
        return unrolled


class Auxiliary(nn.Module):
    """K, SCI's self-calibration (training only, 5,619 parameters): R -> R - sigmoid(conv(R))."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.out_conv = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, result: Tensor) -> Tensor:
        f = self.in_conv(result)
        for _ in range(3):  # one block, used three times
            f = f + self.block(f)
        return result - torch.sigmoid(self.out_conv(f))
