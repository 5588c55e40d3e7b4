"""What a step is shown: batches of pictures, real and made, for paired and unpaired training.

Each function draws one batch of a view, all of its randomness from the generator it is given.
Pictures are (N, 3, H, W) in [0, 1].
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..networks.residual import photographed
from .data import (
    Data,
    View,
    compressed,
    cut,
    in_shade,
    partly_unlit,
    rexpose,
    stack,
    underexpose,
    with_lamps,
)
from .unpaired import dark_and_normal

Batch = dict[str, Tensor]
Draw = Callable[[Data, View, np.random.Generator], Batch]


def to_tensor(crops: list[np.ndarray]) -> Tensor:
    """Crops (H, W, 3) -> (N, 3, H, W)."""
    return torch.from_numpy(stack(crops))


def _made_pair(high: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) from a normal picture; a third of the lows are as JPEG leaves them.

    A quarter have places without any light, half have lamps, a quarter have uneven light.
    """
    scene = partly_unlit(high, rng) if rng.random() < 0.25 else high
    if rng.random() < 0.5:
        scene = with_lamps(scene, rng)
    wanted = scene
    if rng.random() < 0.25:
        scene, wanted = in_shade(scene, rng)
    low = underexpose(scene, rng)
    if rng.random() < 1 / 3:
        low = compressed(low, rng)
    return low, np.minimum(wanted, np.float32(1))


def real_pair(data: Data, view: View, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of a pair that was given, by the shares of the folders."""
    shares = np.asarray(data.shares) / sum(data.shares)
    pair = data.pairs[rng.choice(len(shares), p=shares)]
    low, high = cut([pair.low, pair.high], view, rng)
    return low, high


def _normal(data: Data, view: View, rng: np.random.Generator) -> np.ndarray:
    """A normal picture; highs of pairs are such too."""
    source = int(rng.integers(len(data.normal) + len(data.pairs)))
    extra = source - len(data.normal)
    (high,) = cut([data.pairs[extra].high if extra >= 0 else data.normal[source]], view, rng)
    return high


def _bright_pair(high: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) with at most a third of the light gone: it must come back nearly unchanged."""
    low = high * np.float32(rng.uniform(0.67, 1))
    return np.round(low * 255).astype(np.float32) / np.float32(255), high


def _pair(data: Data, view: View, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): eleven in sixteen real, four made from a normal picture, one bright.

    A third of the real ones are shown at another exposure: how light the high one is must be
    decided by what is seen, not by how dark the low one is.
    """
    kind = rng.random()
    if kind < 11 / 16 or not data.normal:
        low, high = real_pair(data, view, rng)
        return (rexpose(low, rng) if rng.random() < 1 / 3 else low), high
    high = _normal(data, view, rng)
    return (_made_pair if kind < 15 / 16 else _bright_pair)(high, rng)


def _pairs(
    data: Data, view: View, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    lows, highs = zip(*(_pair(data, view, rng) for _ in range(view.batch)), strict=True)
    return list(lows), list(highs)


def draw_pairs(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """low and high, real and made."""
    lows, highs = _pairs(data, view, rng)
    return {"low": to_tensor(lows), "high": to_tensor(highs)}


def draw_compressed_pairs(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """``draw_pairs`` with three lows in ten as JPEG leaves them, the real ones too."""
    lows, highs = _pairs(data, view, rng)
    lows = [compressed(low, rng) if rng.random() < 0.3 else low for low in lows]
    return {"low": to_tensor(lows), "high": to_tensor(highs)}


def draw_mild_pairs(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """Half real pairs, half bright inputs; half of each with lamps, three lows in ten as JPEG.

    The light of the lamps is in the low picture and in the high one: what is beside a lamp is to be
    as light as without it.
    """
    night = np.zeros((view.height, view.width, 3), np.float32)
    lows, highs = [], []
    for _ in range(view.batch):
        if rng.random() < 0.5:
            low, high = real_pair(data, view, rng)
        else:
            low, high = _bright_pair(_normal(data, view, rng), rng)
        if rng.random() < 0.5:
            light = np.float32(np.exp(rng.uniform(np.log(0.03), 0))) * with_lamps(night, rng)
            low, high = (np.minimum(x + light, np.float32(1)) for x in (low, high))
        lows.append(compressed(low, rng) if rng.random() < 0.3 else low)
        highs.append(high)
    return {"low": to_tensor(lows), "high": to_tensor(highs)}


def _modelled(high: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, np.ndarray]:
    """(low, alpha, I_D) by the residual paper's model, from a normal picture (H, W, 3)."""
    low, alpha, gamma = photographed(high, rng)
    return low / np.float32(255), alpha, (1 - high**gamma) * high


def draw_modelled(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """Half pairs as the other methods see them, at alpha 1; half made by the paper's model.

    A sixth of the former ask for a part of the light, at an alpha of that part. Lamps are in a
    third of the latter: white stays white in that model, whatever alpha is.
    """
    return _draw_modelled(data, view, rng, modelled=0.5, lamps=1 / 3)


def draw_less_modelled(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """A fifth made by the paper's model.

    How light a dark patch is to become means something else in that model than in a photograph,
    and 49x49 pixels do not tell which of the two it is from: half of each is right for neither.
    """
    return _draw_modelled(data, view, rng, modelled=0.2, lamps=1 / 3)


def draw_made(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """Only pairs made by the residual paper's model."""
    return _draw_modelled(data, view, rng, modelled=1.0, lamps=0.0)


def _draw_modelled(
    data: Data, view: View, rng: np.random.Generator, modelled: float, lamps: float
) -> Batch:
    """Pairs, of which the share ``modelled`` is made by the paper's model.

    ``alpha`` is (N, 1, 1, 1). ``difference``, (N, 3, H, W), is the map I_D of a modelled pair, and
    of any other what ``high`` at an alpha of 1 has more than ``low``.
    """
    sources = data.normal or [pair.high for pair in data.pairs]
    lows, highs, alphas, differences = [], [], [], []
    for _ in range(view.batch):
        if rng.random() < modelled:
            (high,) = cut([sources[rng.integers(len(sources))]], view, rng)
            if rng.random() < lamps:
                high = np.minimum(with_lamps(high, rng), np.float32(1))
            low, alpha, difference = _modelled(high, rng)
        else:
            low, high = _pair(data, view, rng)
            alpha, difference = 1.0, high - low
            if rng.random() < 1 / 6:  # or Enhance-Net makes light by itself, whatever alpha is
                alpha = rng.uniform(0.2, 1)
                high = low + np.float32(alpha) * difference
        lows.append(low)
        highs.append(high)
        alphas.append(alpha)
        differences.append(difference)
    return {
        "low": to_tensor(lows),
        "high": to_tensor(highs),
        "difference": to_tensor(differences),
        "alpha": torch.tensor(alphas, dtype=torch.float32).view(-1, 1, 1, 1),
    }


def draw_unpaired(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """``low`` and ``normal`` of different scenes; ``input`` is low, half the time 2-4x darker."""
    darks, normals = dark_and_normal(data)
    low, normal, given = [], [], []
    for _ in range(view.batch):
        (crop,) = cut([darks.draw(rng)], view, rng)
        (other,) = cut([normals.draw(rng)], view, rng)
        low.append(crop)
        normal.append(other)
        given.append(crop / np.float32(rng.uniform(2, 4)) if rng.random() < 0.5 else crop)
    patch = min(32, view.height, view.width)
    corners = [
        (int(rng.integers(view.height - patch + 1)), int(rng.integers(view.width - patch + 1)))
        for _ in range(6)
    ]
    return {
        "low": to_tensor(low),
        "normal": to_tensor(normal),
        "input": to_tensor(given),
        "corners": torch.tensor(corners),
    }


def draw_unpaired_and_lit(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """``draw_unpaired``, and pictures of which it is known without a reference what they ask for.

    ``bright``: a normal picture with at most a third of its light gone. ``dim``: two with 3 to 30
    percent of it left, and ``grainy`` these with noise. ``lit``: two of the inputs with lamps,
    whose light is ``added``, and each second time with parts made black, where ``kept``,
    (2, 1, H, W), is 0; ``noisy`` these with noise. What a noisy picture asks for is in the one
    before it: noise cut off at 0 is grey light, which takes colour from what is dark.
    """
    batch = draw_unpaired(data, view, rng)
    given = batch["input"][:2]
    night = np.zeros((view.height, view.width, 3), np.float32)
    strength = np.exp(rng.uniform(np.log(0.03), 0, len(given))).astype(np.float32)
    lamps = to_tensor([s * with_lamps(night, rng) for s in strength])
    whole = np.ones((view.height, view.width, 1), np.float32)
    light = [partly_unlit(whole, rng) if rng.random() < 0.5 else whole for _ in given]
    kept = to_tensor(light).round()
    lit = (kept * given + lamps).clamp(max=1)
    normal = batch["normal"][-2:]
    gain = np.exp(rng.uniform(np.log(0.03), np.log(0.3), (len(normal), 1, 1, 1)))
    dim = normal * torch.from_numpy(gain.astype(np.float32))
    return batch | {
        "bright": batch["normal"][:1] * rng.uniform(0.67, 1),
        "dim": dim,
        "grainy": _with_noise(dim, rng),
        "lit": lit,
        "noisy": _with_noise(lit, rng),
        "added": lit - kept * given,
        "kept": kept,
    }


def _with_noise(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures (N, 3, H, W) with noise of 8 bits: a floor of sigma ~ U(0, 0.02) and a part that
    grows with the light; each second time without its finest grain, as cameras smooth it."""
    size = (len(pictures), 1, 1, 1)
    floor, shot = (torch.from_numpy(rng.uniform(0, most, size)).float() for most in (0.02, 0.005))
    noise = torch.from_numpy(rng.standard_normal(tuple(pictures.shape), np.float32))
    if rng.random() < 0.5:
        noise = 2 * F.avg_pool2d(noise, 3, 1, 1)
    noisy = pictures + (floor.square() + shot * pictures).sqrt() * noise
    return (noisy.clamp(0, 1) * 255).round() / 255
