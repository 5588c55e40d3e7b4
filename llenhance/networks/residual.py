"""The deep residual network with a strength alpha.

Ri, Choe, O, Kim: low-light enhancement with a controllable intensity. A dark picture is modelled
as I' = I - alpha * I_D with the difference map I_D = (1 - I^gamma) * I (their Eq. 6). Estimate-Net
predicts I_D from I'; Enhance-Net cleans the sum I' + alpha * I_D. alpha is the user's control.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Block(nn.Module):
    """x + BN(conv3x7(ReLU(conv7x3(BN(x))))): a 9x9 field for 42 taps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.front = nn.BatchNorm2d(channels)
        self.tall = nn.Conv2d(channels, channels, (7, 3), padding=(3, 1))
        self.wide = nn.Conv2d(channels, channels, (3, 7), padding=(1, 3))
        self.back = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.wide(torch.relu(self.tall(self.front(x)))))


def _net(channels: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(),
        *(Block(channels) for _ in range(depth)),
        nn.ReLU(),
        nn.Conv2d(channels, 3, 3, padding=1),
    )


class Residual(nn.Module):
    """``forward(x, alpha)``: (N, 3, H, W) RGB in [0, 1] -> (the picture, of the same shape and
    range; the map D); any size.

    ``alpha``: the strength, a number or a tensor that broadcasts to x; trained on 0.2 to 2. The
    network sees 49x49 pixels and no statistic of the whole picture. The paper does not say how many
    ``channels`` it has: SRResNet, from which it comes, has 64, the shipped weights 32.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.estimate = _net(channels, 3)
        self.enhance = _net(channels, 2)

    def predict(self, x: Tensor, alpha: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """The enhanced picture before the clamp, and the difference map D: (N, 3, H, W) each."""
        difference = self.estimate(x)
        y = x + alpha * difference
        return y + self.enhance(y), difference

    def forward(self, x: Tensor, alpha: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """The enhanced picture in [0, 1], and the difference map D (unbounded)."""
        enhanced, difference = self.predict(x, alpha)
        return enhanced.clamp(0, 1), difference


def darken(image: Tensor, alpha: Tensor | float, gamma: Tensor | float) -> Tensor:
    """The paper's low-light model (Eq. 6): I' = max(0, I - alpha * (1 - I^gamma) * I).

    ``image``: any shape, in [0, 1]; ``alpha`` and ``gamma`` broadcast to it. White stays white;
    for alpha > 1 the darkest parts are clipped to exact zeros.
    """
    return (image - alpha * (1 - image**gamma) * image).clamp_min(0)


def photographed(
    image: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], float, float]:
    """(what a camera would make of the picture in the dark, alpha, gamma), by the paper's model.

    ``image``: (H, W, 3) in [0, 1]; the dark one is in whole levels from 0 to 255. alpha ~
    U(0.5, 2), gamma ~ exp(U(log 0.5, log 2)), noise of sigma ~ U(0, 0.03).
    """
    alpha = float(rng.uniform(0.5, 2))
    gamma = float(np.exp(rng.uniform(np.log(0.5), np.log(2))))
    sigma = np.float32(rng.uniform(0, 0.03))
    dark = darken(torch.from_numpy(image), alpha, gamma).numpy()
    dark = dark + sigma * rng.standard_normal(dark.shape, np.float32)
    return np.rint(np.clip(dark, 0, 1) * 255), alpha, gamma
