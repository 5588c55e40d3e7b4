"""NEID: one encoder that lightens and super-resolves (scale 2).

Jiang, Liu et al., arXiv 2101.08039. A shared U-Net encoder, a light-enhancement (LE) decoder whose
output is twice the input's size, a detail-recovery (DR) branch whose features guide the fusion
(FF), and a DR decoder that only training needs.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .means import Means

SLOPE = 0.2

# Bicubic reduction by two with antialiasing (Catmull-Rom, a = -0.5), as PIL's BICUBIC: the taps
# lie 0.5, 1.5, 2.5 and 3.5 pixels from the centre, that is at 0.25 to 1.75 of the kernel.
HALVING_TAPS = (-0.01171875, -0.03515625, 0.11328125, 0.43359375)


def halve(x: Tensor) -> Tensor:
    """Reduce (N, C, H, W) to (N, C, H/2, W/2): bicubic with antialiasing; H and W even, >= 4."""
    # Filled in where x is: a copy from the host could not be part of a CUDA graph.
    taps = torch.stack([x.new_full((), tap) for tap in HALVING_TAPS + HALVING_TAPS[::-1]])
    channels = x.shape[1]
    column = taps.view(1, 1, 8, 1).expand(channels, 1, 8, 1)
    row = taps.view(1, 1, 1, 8).expand(channels, 1, 1, 8)
    x = F.pad(x, (3, 3, 3, 3), mode="reflect")
    x = F.conv2d(x, column, stride=(2, 1), groups=channels)
    return F.conv2d(x, row, stride=(1, 2), groups=channels)


def lost(x: Tensor, small: Tensor) -> Tensor:
    """What halving took from the picture: ``x``, (N, C, 2H, 2W), less ``small`` enlarged again.

    The band of a Laplacian pyramid (Burt, Adelson 1983).
    """
    return x - F.interpolate(small, scale_factor=2, mode="bilinear")


def initialise(module: nn.Module) -> None:
    """Kaiming's scale for LeakyReLU. The paper's N(0, 0.02) shrinks the signal at every layer."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, SLOPE, "fan_in")
            assert part.bias is not None
            nn.init.zeros_(part.bias)


class Pair(nn.Sequential):
    """Two 3x3 convolutions, each followed by LeakyReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.LeakyReLU(SLOPE),
        )


class Encoder(nn.Module):
    """(N, 3, H, W) -> features at 1, 1/2, 1/4, 1/8 and 1/16 with b, 2b, 4b, 8b, 16b channels."""

    def __init__(self, base: int) -> None:
        super().__init__()
        widths = [base * 2**n for n in range(5)]
        self.levels = nn.ModuleList(
            Pair(i, o) for i, o in zip([3, *widths[:-1]], widths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for number, level in enumerate(self.levels):
            x = level(F.max_pool2d(x, 2) if number else x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """(bottleneck, skips) -> (N, 3, 2H, 2W): four levels up, then sub-pixel convolution."""

    def __init__(self, base: int) -> None:
        super().__init__()
        widths = [base * 2**n for n in range(4, -1, -1)]
        steps = list(itertools.pairwise(widths))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in steps)
        self.pairs = nn.ModuleList(Pair(2 * o, o) for _, o in steps)
        self.tail = nn.Conv2d(base, 12, 3, padding=1)

    def smooth_start(self) -> None:
        """Let the pixels that one pixel becomes start equal, so that no grid has to be unlearned.

        After Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017.
        """
        for up in self.ups:
            assert isinstance(up, nn.ConvTranspose2d)
            up.weight.data[:] = up.weight.data[:, :, :1, :1]
        self.tail.weight.data[:] = self.tail.weight.data[::4].repeat_interleave(4, 0)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        for up, pair, skip in zip(self.ups, self.pairs, reversed(skips), strict=True):
            x = pair(torch.cat((up(x), skip), 1))
        return F.pixel_shuffle(self.tail(x), 2)


class Fusion(nn.Module):
    """Feature fusion (FF): the DR feature vector weighs the channels of both branches.

    ``mean``, (N, 16 * base, 1, 1), is that of the DR feature over the whole picture.
    """

    def __init__(self, base: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(16 * base, base)
        self.expand = nn.Linear(base, 32 * base)

    def forward(self, light: Tensor, detail: Tensor, mean: Tensor) -> Tensor:
        weights = torch.sigmoid(self.expand(torch.relu(self.squeeze(mean.flatten(1)))))
        light_weight, detail_weight = weights[:, :, None, None].chunk(2, 1)
        return light_weight * light + detail_weight * detail


class NEID(nn.Module):
    """``forward(x, scale)``: (N, 3, H, W) RGB in [0, 1] -> (N, 3, scale*H, scale*W) in [0, 1].

    scale 1 (the default, as the paper tests) first reduces the picture by two, and adds what that
    took from it to the result, which is ours; scale 2 enlarges it. H and W are multiples of 32 at
    scale 1 and of 16 at scale 2. The fusion weights see the whole picture.
    """

    def __init__(self, base: int = 32) -> None:
        super().__init__()
        self.base = base
        self.encoder = Encoder(base)
        self.detail = nn.Sequential(
            nn.Conv2d(16 * base, 16 * base, 3, padding=1), nn.LeakyReLU(SLOPE)
        )
        self.fusion = Fusion(base)
        self.decoder = Decoder(base)
        initialise(self)
        self.decoder.smooth_start()
        # Dark pictures differ by hundredths: without this the first colours take hours to learn.
        next(self.encoder.parameters()).data.mul_(4)

    def predict(
        self, small: Tensor, means: Means | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(enhanced at twice the size before the clamp, DR feature, encoder skips)."""
        *skips, bottleneck = self.encoder(small)
        detail = self.detail(bottleneck)
        mean = (means or Means())(detail)
        return self.decoder(self.fusion(bottleneck, detail, mean), skips), detail, skips

    def forward(self, x: Tensor, scale: int = 1, means: Means | None = None) -> Tensor:
        if means is not None:  # taken at the bottleneck, one pixel of which is so many of x
            means.reduce(32 if scale == 1 else 16)
        small = halve(x) if scale == 1 else x
        enhanced = self.predict(small, means)[0]
        return (enhanced + lost(x, small) if scale == 1 else enhanced).clamp(0, 1)
