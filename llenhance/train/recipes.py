"""How each method is trained: what is drawn, what is compared, what is updated.

A recipe is a row: the modules, the views of the pictures, and one or two phases. A phase updates
some of the modules by the sum of the losses that its function returns. Modules and batches are
plain dictionaries; "network" is the module that ships.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.dln import DLN
from ..networks.enlightengan import Discriminator, EnlightenGAN
from ..networks.lightweight import Auxiliary, Lightweight
from ..networks.neid import NEID, Decoder, halve
from ..networks.residual import Residual, darken
from . import losses
from .data import Data, Picture, View, cut, stack, underexpose

Modules = dict[str, Any]  # nn.Module, whose own methods the type checker cannot know
Batch = dict[str, Tensor]
Losses = dict[str, Tensor]
Draw = Callable[[Data, View, np.random.Generator], Batch]


@dataclass(frozen=True)
class Phase:
    """``losses(modules, batch)`` is summed and minimised over the modules named in ``trains``."""

    trains: tuple[str, ...]
    losses: Callable[[Modules, Batch], Losses]


@dataclass(frozen=True)
class Recipe:
    """One way to train one method."""

    method: str
    summary: str
    build: Callable[[], Modules]
    draw: Draw
    phases: tuple[Phase, ...]
    views: tuple[View, ...]
    rate: float  # Adam's peak learning rate; cosine to a hundredth of it
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.0  # decoupled weight decay on kernels
    average: float = 0.998  # decay of the exponential moving average that is validated and shipped
    clip: float = 1.0  # gradient norm
    full_precision: bool = False  # never bf16
    spares_synthetic_test: bool = False  # its pictures are left out of --normal


# --- what is drawn --------------------------------------------------------------------------------


def _tensor(crops: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(stack(crops))


def draw_pairs(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """low and high: real pairs, one in eight made from a normal picture, one in sixteen bright.

    A bright input is a normal picture with at most a third of its light gone: it must come back
    nearly unchanged.
    """
    lows, highs = [], []
    shares = np.asarray(data.shares) / sum(data.shares)
    for _ in range(view.batch):
        kind = rng.random()
        if data.normal and kind < 3 / 16:
            (high,) = cut([data.normal[rng.integers(len(data.normal))]], view, rng)
            if kind < 1 / 16:
                low = high * np.float32(rng.uniform(0.67, 1))
            else:
                low = underexpose(high, rng)
        else:
            pair = data.pairs[rng.choice(len(shares), p=shares)]
            low, high = cut([pair.low, pair.high], view, rng)
        lows.append(low)
        highs.append(high)
    return {"low": _tensor(lows), "high": _tensor(highs)}


def draw_modelled(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """Half real pairs at alpha 1, half made by the residual paper's model with their alpha.

    The made half: alpha ~ U(0.5, 2), gamma ~ exp(U(log 0.5, log 2)), noise sigma ~ U(0, 0.03),
    8 bits. ``alpha``: (N, 1, 1, 1); ``difference``: the true map I_D; ``made``: 1 where known.
    """
    shares = np.asarray(data.shares) / sum(data.shares)
    sources = data.normal or [pair.high for pair in data.pairs]
    lows, highs, alphas, differences, made = [], [], [], [], []
    for _ in range(view.batch):
        if rng.random() < 0.5:
            pair = data.pairs[rng.choice(len(shares), p=shares)]
            low, high = cut([pair.low, pair.high], view, rng)
            alpha, difference = 1.0, high - low
            made.append(0.0)
        else:
            (high,) = cut([sources[rng.integers(len(sources))]], view, rng)
            alpha = rng.uniform(0.5, 2)
            gamma = float(np.exp(rng.uniform(np.log(0.5), np.log(2))))
            image = torch.from_numpy(high)
            dark = darken(image, alpha, gamma).numpy()
            noise = rng.uniform(0, 0.03) * rng.standard_normal(dark.shape, np.float32)
            low = np.round(np.clip(dark + noise, 0, 1) * 255).astype(np.float32) / 255
            difference = ((1 - image**gamma) * image).numpy()
            made.append(1.0)
        lows.append(low)
        highs.append(high)
        alphas.append(alpha)
        differences.append(difference)
    return {
        "low": _tensor(lows),
        "high": _tensor(highs),
        "difference": _tensor(differences),
        "alpha": torch.tensor(alphas, dtype=torch.float32).view(-1, 1, 1, 1),
        "made": torch.tensor(made).view(-1, 1, 1, 1),
    }


def halves(data: Data) -> tuple[list[Picture], list[Picture], list[float], list[float]]:
    """(lows, normals) of different scenes, with their shares: scenes are dealt out in turn."""
    order = {scene: n for n, scene in enumerate(sorted({p.scene for p in data.pairs}))}
    lows, normals, low_shares, normal_shares = [], [], [], []
    for pair, share in zip(data.pairs, data.shares, strict=True):
        if order[pair.scene] % 2:
            lows.append(pair.low)
            low_shares.append(share)
        else:
            normals.append(pair.high)
            normal_shares.append(share)
    # Folders of dark and of normal pictures together weigh two thirds of the pairs' share.
    for pool, shares, extra in (
        (lows, low_shares, data.dark),
        (normals, normal_shares, data.normal),
    ):
        total = sum(shares) or 1.0
        shares += [total * 2 / 3 / len(extra)] * len(extra)
        pool += extra
    return lows, normals, low_shares, normal_shares


def draw_unpaired(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """``low`` and ``normal`` of different scenes; ``input`` is low, half the time 2-4x darker."""
    lows, normals, low_shares, normal_shares = halves(data)
    low_p = np.asarray(low_shares) / sum(low_shares)
    normal_p = np.asarray(normal_shares) / sum(normal_shares)
    low, normal, given = [], [], []
    for _ in range(view.batch):
        (crop,) = cut([lows[rng.choice(len(lows), p=low_p)]], view, rng)
        (other,) = cut([normals[rng.choice(len(normals), p=normal_p)]], view, rng)
        low.append(crop)
        normal.append(other)
        given.append(crop / np.float32(rng.uniform(2, 4)) if rng.random() < 0.5 else crop)
    patch = min(32, view.height, view.width)
    corners = [
        (int(rng.integers(view.height - patch + 1)), int(rng.integers(view.width - patch + 1)))
        for _ in range(6)
    ]
    return {
        "low": _tensor(low),
        "normal": _tensor(normal),
        "input": _tensor(given),
        "corners": torch.tensor(corners),
    }


# --- what is compared -----------------------------------------------------------------------------


def fidelity(output: Tensor, high: Tensor) -> Losses:
    """Pixels, structure, exposure and colour: what PSNR, SSIM and the eye ask for.

    The mean error alone leaves what is uncertain grey; the angle between colours does not.
    """
    output = output.float()
    return {
        "pixels": losses.charbonnier(output, high),
        "structure": 0.25 * (1 - losses.ssim(output, high)),
        "tone": 0.5 * losses.tone(output, high),
        "tint": losses.colour_angle(output, high, 4),
    }


def dln_losses(modules: Modules, batch: Batch) -> Losses:
    return fidelity(modules["network"].predict(batch["low"]), batch["high"])


def lightweight_losses(modules: Modules, batch: Batch) -> Losses:
    """Every one of the three weight-shared stages must make the picture; the first one ships."""
    stages = modules["network"].stages(batch["low"], modules["auxiliary"])
    terms: Losses = {}
    for number, stage in enumerate(stages):
        share = 1.0 if number == 0 else 0.1
        for name, value in fidelity(stage.result, batch["high"]).items():
            terms[f"{name}_{number}"] = share * value
    return terms


def lightweight_single_losses(modules: Modules, batch: Batch) -> Losses:
    return fidelity(modules["network"](batch["low"]), batch["high"])


def residual_losses(modules: Modules, batch: Batch) -> Losses:
    output, difference = modules["network"].predict(batch["low"], batch["alpha"])
    error = (difference.float() - batch["difference"]).abs().mean((1, 2, 3), keepdim=True)
    return fidelity(output, batch["high"]) | {"difference": 0.2 * error.mean()}


def neid_losses(modules: Modules, batch: Batch) -> Losses:
    small = losses.in_full_precision(halve)(batch["low"])
    output, detail, skips = modules["network"].predict(small)
    recovered = modules["dr_decoder"](detail, skips).float()
    return fidelity(output, batch["high"]) | {
        "detail": 0.1 * F.mse_loss(recovered, batch["low"]),
        "colour": 0.03 * losses.colour(output.float(), batch["high"]),
    }


def _patches(x: Tensor, corners: list[list[int]], size: int = 32) -> Tensor:
    return torch.cat([x[:, :, top : top + size, left : left + size] for top, left in corners])


FEATURES = losses.GradientBank()


def enlightengan_generator(modules: Modules, batch: Batch) -> Losses:
    fake = modules["network"].predict(batch["input"])
    batch["fake"] = fake.detach()
    fake, corners = fake.float(), batch["corners"].tolist()
    signed_fake, signed_real = 2 * fake - 1, 2 * batch["normal"] - 1
    judged = modules["global"](signed_fake).float()
    real = modules["global"](signed_real).float().detach()
    local = modules["local"](_patches(signed_fake, corners)).float()
    return {
        "global": losses.relativistic_generator(real, judged),
        "local": (local - 1).square().mean(),
        # The fixed features are weaker than VGG's, so they weigh more; and since they see luma
        # only, the input's own colours are preserved by a term beside them. Without it the
        # network paints yellow skies and blue halos that the discriminators let pass.
        "features": 3 * losses.feature_distance(FEATURES, fake, batch["low"]),
        "colours": 10 * losses.colour_angle(fake, batch["low"]),
        "features_local": 3
        * losses.feature_distance(
            FEATURES, _patches(fake, corners), _patches(batch["low"], corners)
        ),
    }


def enlightengan_discriminators(modules: Modules, batch: Batch) -> Losses:
    fake, real = 2 * batch["fake"].float() - 1, 2 * batch["normal"] - 1
    corners = batch["corners"].tolist()
    local_real = modules["local"](_patches(real, corners)).float()
    local_fake = modules["local"](_patches(fake, corners)).float()
    return {
        "judge_global": losses.relativistic_discriminator(
            modules["global"](real).float(), modules["global"](fake).float()
        ),
        "judge_local": 0.5 * (local_real - 1).square().mean() + 0.5 * local_fake.square().mean(),
    }


# --- the recipes ----------------------------------------------------------------------------------


def _gan_modules() -> Modules:
    modules: Modules = {
        "network": EnlightenGAN(),
        "global": Discriminator(5),
        "local": Discriminator(4),
    }
    for module in (part for whole in modules.values() for part in whole.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)
    return modules


RECIPES = {
    "dln": Recipe(
        method="dln",
        summary="nearly whole reduced pictures and full-size crops; L1 + SSIM + block means",
        build=lambda: {"network": DLN()},
        draw=draw_pairs,
        phases=(Phase(("network",), dln_losses),),
        views=(
            View(128, 192, 1, reduce=3, share=0.4),
            View(192, 288, 1, reduce=2, share=0.3),
            View(160, 160, 1, reduce=1, share=0.3),
        ),
        rate=4e-4,
    ),
    "lightweight": Recipe(
        method="lightweight",
        summary="supervised on the first of the three stages, nearly whole pictures",
        build=lambda: {"network": Lightweight(), "auxiliary": Auxiliary()},
        draw=draw_pairs,
        phases=(Phase(("network",), lightweight_single_losses),),
        views=(View(192, 288, 4, reduce=2, share=0.5), View(192, 288, 4, reduce=1, share=0.5)),
        rate=4e-3,
        average=0.999,
        full_precision=True,
    ),
    "residual": Recipe(
        method="residual",
        summary="half real pairs at alpha 1, half made pairs with their true alpha",
        build=lambda: {"network": Residual()},
        draw=draw_modelled,
        phases=(Phase(("network",), residual_losses),),
        views=(View(96, 96, 8, reduce=2, share=0.5), View(96, 96, 8, reduce=1, share=0.5)),
        rate=1e-3,
        decay=1e-4,
        spares_synthetic_test=True,
    ),
    "neid": Recipe(
        method="neid",
        summary="nearly whole pictures; L1 + SSIM + block means, DR and colour terms",
        build=lambda: {"network": NEID(), "dr_decoder": Decoder(32)},
        draw=draw_pairs,
        phases=(Phase(("network", "dr_decoder"), neid_losses),),
        views=(
            View(192, 288, 2, reduce=2, share=0.5),
            View(384, 576, 1, reduce=1, share=0.5),
        ),
        rate=3e-4,
    ),
    "enlightengan": Recipe(
        method="enlightengan",
        summary="unpaired: global and local discriminators, self feature preserving",
        build=_gan_modules,
        draw=draw_unpaired,
        phases=(
            Phase(("network",), enlightengan_generator),
            Phase(("global", "local"), enlightengan_discriminators),
        ),
        views=(View(128, 128, 4, reduce=2, share=0.7), View(128, 128, 4, reduce=1, share=0.3)),
        rate=2e-4,
        betas=(0.5, 0.999),
    ),
}
