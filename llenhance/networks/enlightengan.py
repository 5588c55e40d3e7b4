"""EnlightenGAN: enhancement learned without pairs, guided by self-attention on darkness.

Jiang, Gong, Liu et al., "EnlightenGAN: Deep Light Enhancement without Paired Supervision", IEEE
TIP 2021. A U-Net whose bottleneck and skips are gated by the attention map A = 1 - luma; it
predicts a residual that A gates again, so that white stays white: Y = X + A * latent.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2
LUMA = (0.299, 0.587, 0.114)
WIDTHS = (32, 64, 128, 256, 512)


def attention(x: Tensor) -> Tensor:
    """A = 1 - luma, (N, 1, H, W) in [0, 1], of RGB (N, 3, H, W) in [0, 1]."""
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    return 1 - (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)


def _conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    # The authors' order: convolution, activation, then normalisation.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE), nn.BatchNorm2d(outputs)
    )


class Down(nn.Module):
    """One encoder level; the bottleneck's attention gates between its two convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = _conv_norm(inputs, outputs)
        self.second = _conv_norm(outputs, outputs)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        x = self.first(x)
        return self.second(x if gate is None else x * gate.to(x.dtype))


class Up(nn.Module):
    """One decoder level: bilinear x2, 3x3, concat with the gated skip, two convolutions."""

    def __init__(self, inputs: int, outputs: int, align_corners: bool, last: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.reduce = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.first = _conv_norm(inputs, outputs)
        # The authors leave the very last normalisation out.
        self.second = _conv_norm(outputs, outputs)[:2] if last else _conv_norm(outputs, outputs)

    def forward(self, x: Tensor, gated_skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=self.align_corners)
        return self.second(self.first(torch.cat((self.reduce(x), gated_skip), 1)))


class EnlightenGAN(nn.Module):
    """``forward(x)``: (N, 3, H, W) RGB in [0, 1] -> the same; H and W multiples of 16.

    ``align_corners`` is True only for the authors' own weights, which were trained in a torch
    whose bilinear enlargement meant that; its sampling grid then depends on the whole picture's
    size. With False the network sees 275x275 pixels and no statistic of the whole picture.
    """

    def __init__(self, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.downs = nn.ModuleList(
            Down(i, o) for i, o in zip((4, *WIDTHS[:-1]), WIDTHS, strict=True)
        )
        widths = WIDTHS[::-1]
        self.ups = nn.ModuleList(
            Up(i, o, align_corners, last=o == WIDTHS[0]) for i, o in itertools.pairwise(widths)
        )
        self.tail = nn.Conv2d(WIDTHS[0], 3, 1)

    def predict(self, x: Tensor, gated: bool = True) -> Tensor:
        """Y before the clamp, (N, 3, H, W) as ``x``; ``gated=False`` drops the attention from the
        features and the residual."""
        darkness = attention(x)
        gates = [darkness]
        for _ in range(4):
            gates.append(F.max_pool2d(gates[-1], 2))
        if not gated:
            gates = [torch.ones_like(gate) for gate in gates]
        features = torch.cat((2 * x - 1, darkness), 1)
        skips = []
        for down, gate in zip(self.downs[:-1], gates, strict=False):
            features = down(features)
            skips.append(features * gate.to(features.dtype))
            features = F.max_pool2d(features, 2)
        features = self.downs[-1](features, gates[-1])
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            features = up(features, skip)
        # Half of the paper's residual: it works in [-1, 1], the picture here is in [0, 1].
        return x + 0.5 * gates[0] * self.tail(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x).clamp(0, 1)


class Discriminator(nn.Module):
    """PatchGAN without normalisation (training only): (N, 3, H, W) in [-1, 1] -> a score map.

    ``strided``: how many stride-2 layers: 5 for the global one (11,154,369 parameters) and 4 for
    the local one on 32x32 patches (6,959,553).
    """

    def __init__(self, strided: int) -> None:
        super().__init__()
        widths = [min(64 * 2**n, 512) for n in range(strided)]
        layers: list[nn.Module] = []
        for i, o in zip([3, *widths[:-1]], widths, strict=True):
            layers += [nn.Conv2d(i, o, 4, stride=2, padding=2), nn.LeakyReLU(SLOPE)]
        layers += [nn.Conv2d(512, 512, 4, padding=2), nn.LeakyReLU(SLOPE)]
        self.model = nn.Sequential(*layers, nn.Conv2d(512, 1, 4, padding=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
