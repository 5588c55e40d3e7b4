"""The papers' own losses, data and schedules, one row a method, as ``--recipe paper``.

Their optimiser is Adam without gradient clipping (but for lightweight) and without weight
averaging: what is validated and shipped is the last step, or the step that validated best. What a
paper prints and cannot be computed is replaced by the nearest thing that can; the row or the loss
says by what.
"""

import functools
import math
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from ..networks.dln import DLN
from ..networks.lightweight import Auxiliary, Lightweight
from ..networks.neid import halve, lost
from ..networks.residual import Residual
from . import losses, schedules
from .batches import Batch, draw_made, draw_unpaired, real_pair, to_tensor
from .data import Data, View, cut, lose_light
from .recipes import (
    Losses,
    Modules,
    Off,
    Phase,
    Recipe,
    adversarial,
    enlightengan_discriminators,
    gan_modules,
    neid_modules,
    preserved,
    preserved_locally,
    start_normal,
)
from .slopes import quickened

# --- DLN ------------------------------------------------------------------------------------------


def dln_modules(off: Off) -> Modules:
    """The lightening network and, for the circle, a darkening one of the same structure.

    Both start as DLN does here, returning their input. The authors' code, which has no circle,
    starts at Kaiming's full variance: the darkener of a lightener would then begin with values of
    several hundred.
    """
    modules: Modules = {"network": quickened(DLN()), "darkener": quickened(DLN())}
    if "circle" in off:
        del modules["darkener"]
    return modules


def draw_faded(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """low and high made of normal pictures, whose short side is first brought to 384 pixels."""
    lows, highs = [], []
    for _ in range(view.batch):
        picture = data.normal[rng.integers(len(data.normal))]
        mean = float((picture.mean((0, 1)) / 255) @ np.array([0.299, 0.587, 0.114]))
        short = min(picture.shape[:2])
        (high,) = cut([picture], replace(view, reduce=short / 384), rng)
        lows.append(lose_light(high, mean, rng))
        highs.append(high)
    return {"low": to_tensor(lows), "high": to_tensor(highs)}


def draw_real(data: Data, view: View, rng: np.random.Generator) -> Batch:
    """low and high: real pairs only."""
    lows, highs = zip(*(real_pair(data, view, rng) for _ in range(view.batch)), strict=True)
    return {"low": to_tensor(lows), "high": to_tensor(highs)}


def dln_losses(modules: Modules, batch: Batch, off: Off) -> Losses:
    """The circle of the slides: dif(Y^, Y) + dif(X^, X), Y^ = Light(X), X^ = Dark(Y^).

    dif(a, b) = 1 - SSIM(a, b) + 0.001 TV(a). The slides' TV takes the square root of a product of
    two differences, which may be negative; the authors' code takes squared differences, as here.
    """
    light = modules["network"].predict(batch["low"])
    terms: Losses = {}
    made = [("light", light, batch["high"])]
    if "circle" not in off:
        made.append(("dark", modules["darkener"].predict(light), batch["low"]))
    for name, output, target in made:
        terms[f"structure_{name}"] = 1 - losses.ssim(output.float(), target)
        if "tv" not in off:
            terms[f"variation_{name}"] = 0.001 * losses.total_variation(output.float())
    return terms


# --- lightweight ----------------------------------------------------------------------------------


def lightweight_modules(off: Off) -> Modules:
    """The network, and K for its calibration; SCI's start: N(0, 0.02), biases 0."""
    modules: Modules = {"network": Lightweight(), "auxiliary": Auxiliary()}
    start_normal(modules, zero_biases=True)
    if "calibration" in off:
        del modules["auxiliary"]
    return modules


def lightweight_losses(modules: Modules, batch: Batch, off: Off) -> Losses:
    """0.8 fidelity + 0.65 smooth + 0.5 perceptual over three weight-shared stages; no reference.

    With V^1 = S: L^t = clamp(V^t + H(F, V^t)), R^t = S / L^t, V^(t+1) = S + K(R^t) = S + E^t.
    Fidelity: the sum over t of ||L^t - V^t||^2. Smooth: the sum of L's differences to its
    neighbours, as in SCI (printed as the square root of a product that may be negative).
    Perceptual: features of S + E^T against those of L^T.
    Without calibration there is no K, E is 0, and each stage starts from the L of the one before.
    """
    s = batch["low"]
    stages = modules["network"].stages(s, modules.get("auxiliary"))
    fidelity = smooth = s.new_zeros(())
    for stage in stages:
        fidelity = fidelity + F.mse_loss(stage.illumination, stage.seen)
        smooth = smooth + losses.neighbour_smoothness(stage.illumination)
    target = s if "calibration" in off else stages[-1].following
    perceptual = losses.feature_distance(modules["features"], target, stages[-1].illumination)
    return {"fidelity": 0.8 * fidelity, "smooth": 0.65 * smooth, "perceptual": 0.5 * perceptual}


# --- residual -------------------------------------------------------------------------------------


def residual_losses(modules: Modules, batch: Batch, off: Off) -> Losses:
    """L2 of the picture; and, ours, 0.1 L2 of the difference map, so that alpha keeps a meaning."""
    output, difference = modules["network"].predict(batch["low"], batch["alpha"])
    terms = {"pixels": F.mse_loss(output.float(), batch["high"])}
    if "auxiliary" not in off:
        terms["difference"] = 0.1 * F.mse_loss(difference.float(), batch["difference"])
    return terms


# --- NEID -----------------------------------------------------------------------------------------


def neid_losses(modules: Modules, batch: Batch, off: Off) -> Losses:
    """Huber of the picture + 0.1 MSE of the recovered detail + 0.1 colour.

    The Huber delta, not printed, is 0.1: 1 would be half an MSE on [0, 1]. The DR branch is
    compared with the dark picture at full size, as the text says ("super-resolution on low-light
    images"), and not with the reference, as Eq. 3 does.
    """
    small = losses.in_full_precision(halve)(batch["low"])
    output, detail, skips = modules["network"].predict(small)
    # At the input's size what ships adds what halving has taken, so that is added here too.
    output = output.float() + lost(batch["low"], small)
    terms = {"pixels": losses.huber(output, batch["high"], 0.1)}
    if "dr" not in off:
        recovered = modules["dr_decoder"](detail, skips).float()
        terms["detail"] = 0.1 * F.mse_loss(recovered, batch["low"])
    if "color" not in off:
        terms["colour"] = 0.1 * losses.colour(output, batch["high"])
    return terms


# --- EnlightenGAN ---------------------------------------------------------------------------------


def enlightengan_generator(modules: Modules, batch: Batch, off: Off) -> Losses:
    """Global relativistic and local least-squares GAN, feature preserving on both: weights 1."""
    fake = modules["network"].predict(batch["input"]).float()
    terms = adversarial(modules, batch, fake, off)
    if "sfp" not in off:
        terms["features"] = preserved(modules, batch, fake)
        terms["features_local"] = preserved_locally(modules, batch, fake)
    return terms


# --- the rows -------------------------------------------------------------------------------------

row = functools.partial(
    Recipe, name="paper", optimizer=torch.optim.Adam, betas=(0.9, 0.999), average=0.0, clip=math.inf
)

PAPER = {
    "dln": row(
        method="dln",
        summary="a lightening and a darkening network in a circle; made pairs, then real ones",
        build=dln_modules,
        draw=draw_faded,
        finish=draw_real,  # at a tenth of the rate, as the authors fine-tuned
        needs=(("normal",),),
        phases=(Phase(("network", "darkener"), dln_losses),),
        views=(View(128, 128, 32, quarter_turns=False),),
        rate=1e-4,
        schedule=schedules.tenth_after_two_thirds,
        ideas=("circle", "tv"),
    ),
    "lightweight": row(
        method="lightweight",
        summary="unsupervised, three stages joined by K; whole pictures",
        build=lightweight_modules,
        draw=draw_real,
        phases=(Phase(("network", "auxiliary"), lightweight_losses),),
        views=(View(400, 600, 1, quarter_turns=False),),
        rate=1e-4,
        schedule=schedules.constant,
        clip=5.0,
        full_precision=True,
        compares_features=True,
        ideas=("calibration",),
    ),
    "residual": row(
        method="residual",
        summary="made pairs with their true alpha only; L2",
        build=lambda _off: {"network": Residual()},
        draw=draw_made,
        needs=(("normal",),),
        phases=(Phase(("network",), residual_losses),),
        views=(View(48, 48, 32),),
        rate=1e-3,
        schedule=schedules.tenth_every_third,
        decay=1e-4,
        spares_synthetic_test=True,
        ideas=("auxiliary",),
    ),
    "neid": row(
        method="neid",
        summary="Huber + 0.1 DR + 0.1 colour on 256-pixel crops of real pairs",
        build=functools.partial(neid_modules, as_in_paper=True),
        draw=draw_real,
        phases=(Phase(("network", "dr_decoder"), neid_losses),),
        views=(View(256, 256, 8),),
        rate=1e-4,
        schedule=schedules.tenth_at_quarter_and_half,
        ideas=("ff", "dr", "color"),
    ),
    "enlightengan": row(
        method="enlightengan",
        summary="unpaired: two discriminators and feature preserving, all at weight 1",
        build=gan_modules,
        draw=draw_unpaired,
        needs=(("pairs",), ("dark", "normal")),
        unpaired=True,
        phases=(
            Phase(("network",), enlightengan_generator),
            Phase(("global", "local"), enlightengan_discriminators),
        ),
        # The authors' batch is 32, on three GPUs; batch normalisation does well with 8.
        views=(View(320, 320, 8, quarter_turns=False),),
        rate=1e-4,
        schedule=schedules.linear_second_half,
        betas=(0.5, 0.999),
        compares_features=True,
        ideas=("attention", "local", "sfp"),
        comparison_only=frozenset({"attention"}),
    ),
}
