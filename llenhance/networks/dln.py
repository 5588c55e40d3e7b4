"""DLN, the Deep Lightening Network: lightening as back-projection.

Wang, Liu, Siu, Lun, "Lightening Network for Low-Light Image Enhancement", IEEE TIP 2020. Three
lightening back-projection (LBP) blocks lighten the features, darken them again, and lighten what
the round trip lost. The network predicts a residual: Y = X + E(X).
"""

import torch
from torch import Tensor, nn

from .means import Means


class ConvPReLU(nn.Module):
    """Convolution with "same" zero padding, then PReLU with one slope for all channels."""

    def __init__(self, size: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
        self.act = nn.PReLU()
        # Kaiming's variance halved: sums, gates and concatenations have no normalisation after
        # them, and at full variance the features of the third block start 40 times too large.
        nn.init.kaiming_normal_(self.conv.weight)
        self.conv.weight.data.mul_(0.5**0.5)
        self.conv.bias.data.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Lighten(nn.Module):
    """Encode, learn an offset, *add* it, decode: (N, 64, H, W) -> the same shape."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.code = ConvPReLU(3, channels, channels // 2)
        self.offset = ConvPReLU(3, channels // 2, channels // 2)
        self.decode = ConvPReLU(3, channels // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        code = self.code(x)
        return self.decode(code + self.offset(code))


class Darken(Lighten):
    """The same layers as :class:`Lighten`, but the offset is *subtracted*."""

    def forward(self, x: Tensor) -> Tensor:
        code = self.code(x)
        return self.decode(code - self.offset(code))


class Aggregate(nn.Module):
    """Feature aggregation: z = x * (1 + gate(mean of x)), then a 1x1 fusion to 64 channels.

    ``mean``, (N, C, 1, 1), is that of the whole picture.
    """

    def __init__(self, channels: int, outputs: int = 64) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // 16, bias=False)
        self.expand = nn.Linear(channels // 16, channels, bias=False)
        self.fuse = ConvPReLU(1, channels, outputs)

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        gate = torch.sigmoid(self.expand(torch.relu(self.squeeze(mean.flatten(1)))))
        return self.fuse(x + x * gate[:, :, None, None])


class LightenBackProjection(nn.Module):
    """Lighten, darken back, lighten the difference: (N, C, H, W) -> (N, 64, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.aggregate = Aggregate(channels)
        self.lighten = Lighten()
        self.darken = Darken()
        self.relighten = Lighten()
        self.residual = ConvPReLU(1, 64, 64)
        self.skip = ConvPReLU(1, 64, 64)

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        x = self.aggregate(x, mean)
        light = self.lighten(x)
        lost = self.residual(x) - self.darken(light)
        return self.skip(light) + self.relighten(lost)


class DLN(nn.Module):
    """``forward(x)``: (N, 3, H, W) RGB in [0, 1] -> the same shape and range; any size.

    The fourth input channel is max(R, G, B). The convolutions see 63x63 pixels; the three gates
    see the whole picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(ConvPReLU(3, 4, 128), ConvPReLU(3, 128, 64))
        self.blocks = nn.ModuleList(LightenBackProjection(64 * n) for n in (1, 2, 3))
        self.merge = ConvPReLU(3, 256, 64)
        self.tail = nn.Conv2d(64, 3, 3, padding=1)
        # An untrained network returns its input.
        nn.init.zeros_(self.tail.weight)
        self.tail.bias.data.zero_()  # type: ignore[union-attr]

    def predict(self, x: Tensor, means: Means | None = None) -> Tensor:
        """Y = X + E(X) before the clamp, (N, 3, H, W) as ``x``: what the losses compare."""
        means = means or Means()
        brightness = x.amax(1, keepdim=True)
        new = self.head(torch.cat((2 * x - 1, brightness), 1))
        features, mean = new, means(new)
        for number, block in enumerate(self.blocks):
            if number:
                mean = torch.cat((mean, means(new)), 1)
            new = block(features, mean)
            features = torch.cat((features, new), 1)
        return x + self.tail(self.merge(features))

    def forward(self, x: Tensor, means: Means | None = None) -> Tensor:
        return self.predict(x, means).clamp(0, 1)
