"""Loss terms on (N, 3, H, W) pictures in [0, 1]; each returns a scalar tensor."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WeightsError

P = ParamSpec("P")
T = TypeVar("T")


def in_full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Run without autocast: differences of nearly equal numbers do not survive bf16."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with ExitStack() as stack:
            for device in ("cpu", "cuda", "mps"):
                if torch.amp.is_autocast_available(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return wrapped


def charbonnier(a: Tensor, b: Tensor, epsilon: float = 1e-3) -> Tensor:
    """A smooth L1: mean of sqrt((a - b)^2 + epsilon^2)."""
    return ((a - b).square() + epsilon**2).sqrt().mean()


def _gaussian(size: int = 11, sigma: float = 1.5) -> Tensor:
    x = torch.arange(size, dtype=torch.float32) - size // 2
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


@in_full_precision
def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity: Gaussian 11x11, sigma 1.5, valid convolution, L = 1."""
    taps = _gaussian().to(a)
    channels = a.shape[1]

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, taps.view(1, 1, -1, 1).expand(x.shape[1], 1, -1, 1), groups=x.shape[1])
        return F.conv2d(x, taps.view(1, 1, 1, -1).expand(x.shape[1], 1, 1, -1), groups=x.shape[1])

    moments = blur(torch.cat((a, b, a * a, b * b, a * b), 1))
    mean_a, mean_b, square_a, square_b, product = moments.split(channels, 1)  # type: ignore[no-untyped-call]
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    covariance = product - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * contrast).mean()


def tone(a: Tensor, b: Tensor, size: int = 16) -> Tensor:
    """L1 between means of size x size blocks: exposure and colour, blind to noise and detail."""
    size = min(size, *a.shape[2:])
    return (F.avg_pool2d(a, size) - F.avg_pool2d(b, size)).abs().mean()


def colour_angle(a: Tensor, b: Tensor, size: int = 8) -> Tensor:
    """1 - cosine between the RGB vectors of size x size blocks: blind to exposure, not to tint.

    A hundredth of white is added to both, so that black has the direction of grey.
    """
    a, b = (F.avg_pool2d(x, size) + 0.01 for x in (a, b))
    return (1 - F.cosine_similarity(a, b, dim=1)).mean()


def colours_kept(output: Tensor, given: Tensor, size: int = 8, most: float = 20) -> Tensor:
    """``colour_angle`` to a dark picture: its blocks are first made as light as the output's.

    At most ``most`` times, beyond which there is more noise than colour. Without that, the white
    that is added to both takes colour from the dark one only, and blue comes out violet.
    """
    a, b = (F.avg_pool2d(x, size) for x in (output, given))
    gain = (a.mean(1, keepdim=True) / b.mean(1, keepdim=True).clamp_min(1e-3)).clamp(0, most)
    return colour_angle(a, gain.detach() * b, 1)


def reversal(output: Tensor, given: Tensor, size: int = 8) -> Tensor:
    """How much darker the output becomes from block to block where the ``given`` becomes lighter.

    Any rising curve has none of it; dark and light discs around lamps have. Differences of the
    given picture count in full from about 0.01 on, below which they may be noise.
    """
    grey_output, grey_given = (F.avg_pool2d(x.mean(1, keepdim=True), size) for x in (output, given))
    total = output.new_zeros(())
    for axis in (2, 3):
        rise = torch.tanh(100 * grey_given.diff(dim=axis))
        total = total + (-rise * grey_output.diff(dim=axis)).relu().mean()
    return total


def colour_of_black(output: Tensor, given: Tensor, size: int = 8) -> Tensor:
    """Mean spread of the channels of output blocks, where the input is too dark to have a colour.

    Each size x size block counts by exp(-luma / 0.01) of the ``given`` picture.
    """
    block, dark = (F.avg_pool2d(x, size) for x in (output, given))
    return ((block.amax(1) - block.amin(1)) * torch.exp(-dark.mean(1) / 0.01)).mean()


def lamps(output: Tensor, plain: Tensor, lit: Tensor, added: Tensor) -> Tensor:
    """How much lamps change a network's picture of what is beside them; needs no reference.

    ``output`` is its picture of ``lit``, ``plain`` that of the same scene without the light that
    the lamps have ``added``. Where that is less than 0.005 both are to be equal; where it is more
    than 0.5 the lamps are to stay as they are; in the glow between nothing is to become darker. A
    network that has learned to leave bright pictures alone otherwise leaves what is around a lamp
    dark.
    """
    more = added.amax(1, keepdim=True)
    glow = torch.where(more > 0.5, (output - lit).abs(), (plain - output).relu())
    return torch.where(more < 0.005, (output - plain).abs(), glow).mean()


def flatness(network: nn.Module, least: float = 0.15) -> Tensor:
    """How much a network's tone curve, in natural logarithms, lacks of a slope of ``least``.

    ``network`` takes and gives (N, 3, H, W) in [0, 1]. It is shown 41 flat patches of one random
    tint from 0.005 to 1, 17 pixels wide; what each lacks towards the next is summed. A network
    that sees little of a picture otherwise makes all of it equally light, and what is bright in a
    dark picture darker than what is dim.
    """
    size = 17
    tint = 1 - 0.3 * torch.rand(1, 3)
    level = torch.exp(torch.linspace(math.log(0.005), 0, 41))
    given = (level[:, None] * tint / tint.max()).to(next(network.parameters()))
    patches = given[:, :, None, None].expand(-1, -1, size, size)
    output = network(patches)[:, :, size // 2, size // 2].clamp_min(1e-4)
    return (least * given.log().diff(dim=0) - output.log().diff(dim=0)).relu().sum(0).mean()


def total_variation(x: Tensor) -> Tensor:
    """DLN's smoothness term: twice the mean squared vertical and horizontal differences."""
    dy, dx = x.diff(dim=2), x.diff(dim=3)
    return 2 * (dy.square().mean() + dx.square().mean())


def neighbour_smoothness(x: Tensor) -> Tensor:
    """SCI's smoothness: twice the L1 differences to 12 neighbours (its weights are 1 within 2%)."""
    offsets: tuple[tuple[int, int], ...] = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2))
    offsets += ((2, 1), (2, -1), (1, 2), (1, -2), (2, 2), (2, -2))
    height, width = x.shape[2:]
    total = x.new_zeros(())
    for dy, dx in offsets:
        a = x[:, :, dy:, max(dx, 0) : width + min(dx, 0)]
        b = x[:, :, : height - dy, max(-dx, 0) : width + min(-dx, 0)]
        total = total + (a - b).abs().sum(1).mean()
    return 2 * total


def hue_saturation(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """HSV hue and saturation in [0, 1], (N, H, W) each, of RGB (N, 3, H, W)."""
    high, low = rgb.amax(1), rgb.amin(1)
    chroma = (high - low).clamp_min(1e-4)
    red, green, blue = rgb.unbind(1)
    hue = torch.where(
        high == red,
        ((green - blue) / chroma) % 6,
        torch.where(high == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    return hue / 6, (high - low) / high.clamp_min(1e-4)


def colour(a: Tensor, b: Tensor) -> Tensor:
    """NEID's colour loss: 1 - cosine of the hues and 1 - cosine of the saturations, per picture.

    Hue means nothing where a picture is grey: pixels with saturation below 0.02 pass no gradient.
    """
    hue_a, saturation_a = hue_saturation(a.clamp(0, 1))
    hue_b, saturation_b = hue_saturation(b)
    hue_a = torch.where(saturation_a < 0.02, hue_a.detach(), hue_a)
    loss = 2 - F.cosine_similarity(hue_a.flatten(1), hue_b.flatten(1))
    return (loss - F.cosine_similarity(saturation_a.flatten(1), saturation_b.flatten(1))).mean()


def huber(a: Tensor, b: Tensor, delta: float = 0.1) -> Tensor:
    """Quadratic within delta, linear beyond (delta 1 on [0, 1] data would be half an MSE)."""
    return F.huber_loss(a, b, delta=delta)


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """Relativistic average LSGAN, the generator's side (EnlightenGAN, Eq. 3 and 4)."""
    return (
        0.5 * (real - fake.mean()).square().mean() + 0.5 * (fake - real.mean() - 1).square().mean()
    )


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Relativistic average LSGAN, the discriminator's side."""
    return (
        0.5 * (real - fake.mean() - 1).square().mean() + 0.5 * (fake - real.mean()).square().mean()
    )


class GradientBank(nn.Module):
    """Fixed features for the self-feature-preserving loss: gradients at four scales.

    It stands where the paper has VGG-16, whose weights this project does not ship. Luma gradients
    (Sobel) at 1/2, 1/4, 1/8 and 1/16 of the size, as long as 8 pixels are left, each map
    instance-normalised: blind to exposure, sensitive to structure. The full size is left out: in
    a dark picture its gradients are the noise that enhancement should not preserve.
    """

    @in_full_precision
    def forward(self, rgb: Tensor) -> list[Tensor]:
        luma = (rgb * rgb.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        sobel = luma.new_tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]]) / 8
        kernel = torch.stack((sobel, sobel.T))[:, None]
        maps = []
        for _ in range(4):
            luma = F.avg_pool2d(luma, 2)
            if min(luma.shape[2:]) < 8:
                break
            gradient = F.conv2d(luma, kernel)
            maps.append(F.instance_norm(gradient, eps=1e-8))
        return maps


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of its RGB
# Outputs of VGG-16's convolutions up to conv5_1; 0 stands for a pool.
VGG16_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512)


class VGG16(nn.Module):
    """relu5_1 of VGG-16, instance-normalised: (N, 3, H, W) RGB in [0, 1] -> (N, 512, H/8, W/8).

    As in EnlightenGAN the pool before conv5 is left out, so that three of them are left. ``file``
    is the state dict that torchvision's ``vgg16`` has, which was trained on RGB of mean 0 and
    deviation 1; the authors' numbers are of another conversion, for BGR in 0 to 255. The network is
    built of plain layers, at torchvision's indices.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last_pool = len(VGG16_WIDTHS) - 2
        inputs = 3
        for number, width in enumerate(VGG16_WIDTHS):
            if width:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            else:
                layers.append(nn.Identity() if number == last_pool else nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.load_state_dict(self._read(file))
        self.requires_grad_(False)

    def _read(self, file: Path) -> dict[str, Tensor]:
        """The tensors that this network has; raises WeightsError when the file is not that."""
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            raise WeightsError(f"{file}: {error.strerror or error}") from None
        except Exception:  # the unpickler raises many kinds; each means that this is no state dict
            raise WeightsError(f"{file}: not a state dict that is safe to read") from None
        for name, value in self.state_dict().items():
            found = state.get(name) if isinstance(state, dict) else None
            if not isinstance(found, Tensor) or found.shape != value.shape:
                raise WeightsError(
                    f"{file}: not torchvision's VGG-16: {name} is missing or differs"
                )
        return {name: state[name].float() for name in self.state_dict()}

    def forward(self, rgb: Tensor) -> list[Tensor]:
        mean, deviation = (rgb.new_tensor(x).view(3, 1, 1) for x in IMAGENET)
        return [F.instance_norm(self.features((rgb - mean) / deviation).float())]


def feature_distance(features: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of the feature maps of two pictures."""
    pairs = zip(features(a), features(b), strict=True)
    return torch.stack([(x - y).square().mean() for x, y in pairs]).mean()
