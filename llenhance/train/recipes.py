"""How each method is trained: what is drawn, what is compared, what is updated.

A recipe is a row: the modules, the views of the pictures, and one or two phases. A phase updates
some of the modules by the sum of the losses that its function returns. Modules and batches are
plain dictionaries; "network" is the module that ships, "features" the fixed features that the
recipe may compare. The papers' own recipes are in ``paper.py``.

Each recipe names the ideas that can be left out of it, for ablations at equal steps. What is built
and what is compared is told which of them are ``off``; the network that ships computes the same
without any of them, except where ``comparison_only`` says so.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import Refusal
from ..networks.dln import DLN
from ..networks.enlightengan import Discriminator, EnlightenGAN
from ..networks.lightweight import Lightweight
from ..networks.neid import NEID, Decoder, halve, lost
from ..networks.residual import Residual
from . import losses, schedules
from .batches import (
    Batch,
    Draw,
    draw_compressed_pairs,
    draw_less_modelled,
    draw_mild_pairs,
    draw_modelled,
    draw_pairs,
    draw_unpaired_and_lit,
)
from .data import View
from .slopes import quickened

Modules = dict[str, Any]  # nn.Module, whose own methods the type checker cannot know
Losses = dict[str, Tensor]
Off = frozenset[str]  # the names of the ideas that are left out
NONE: Off = frozenset()


@dataclass(frozen=True)
class Phase:
    """``losses(modules, batch, off)`` is summed and minimised over the modules in ``trains``."""

    trains: tuple[str, ...]
    losses: Callable[[Modules, Batch, Off], Losses]


@dataclass(frozen=True)
class Recipe:
    """One way to train one method."""

    method: str
    summary: str
    build: Callable[[Off], Modules]
    draw: Draw
    phases: tuple[Phase, ...]
    views: tuple[View, ...]
    rate: float  # peak learning rate
    name: str = "default"
    schedule: Callable[[float], float] = schedules.cosine  # progress -> share of the peak rate
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW  # AdamW decouples the decay
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.0  # weight decay on kernels
    average: float = 0.998  # decay of the exponential moving average that is validated and shipped
    clip: float = 1.0  # gradient norm
    finish_from: float = 2 / 3  # progress of the run from which on, where pairs are given,
    finish: Draw | None = None  # this is drawn instead
    finish_views: tuple[View, ...] = ()  # and in these views
    needs: tuple[tuple[str, ...], ...] = (("pairs",),)  # one of these sets of folders, at least
    full_precision: bool = False  # never bf16
    unpaired: bool = False  # shows lows and highs of different scenes
    compares_features: bool = False  # takes --vgg16
    spares_synthetic_test: bool = False  # its pictures are left out of --normal
    ideas: tuple[str, ...] = ()  # what --without may name
    off: Off = NONE  # what it did name
    comparison_only: Off = NONE  # without these the network computes what no shipped one does

    def drawn_at(self, progress: float, pairs: bool) -> tuple[Draw, tuple[View, ...]]:
        """What is drawn at a progress of 0 to 1, with or without pairs, and in which views."""
        if progress < self.finish_from or not pairs:
            return self.draw, self.views
        return self.finish or self.draw, self.finish_views or self.views

    def in_batches_of(self, size: int) -> "Recipe":
        """The recipe with ``size`` pictures a step."""
        views, finish_views = (
            tuple(replace(view, batch=size) for view in some)
            for some in (self.views, self.finish_views)
        )
        return replace(self, views=views, finish_views=finish_views)


def leave_out(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """The recipe without these ideas; raises Refusal for a name that it does not have."""
    off = frozenset(names)
    for name in sorted(off - set(recipe.ideas)):
        known = ", ".join(recipe.ideas) or "nothing that can be left out"
        raise Refusal(f"no {name!r} in {recipe.method} --recipe {recipe.name}: it has {known}")
    return replace(recipe, off=off)


# --- what is compared -----------------------------------------------------------------------------


def fidelity(output: Tensor, high: Tensor, structure: float = 0.25, tint: float = 1.0) -> Losses:
    """Pixels, structure, exposure and colour: what PSNR, SSIM and the eye ask for.

    The mean error alone leaves what is uncertain grey; the angle between colours does not.
    ``structure`` and ``tint`` are the weights of two of the terms.
    """
    output = output.float()
    return {
        "pixels": losses.charbonnier(output, high),
        "structure": structure * (1 - losses.ssim(output, high)),
        "tone": 0.5 * losses.tone(output, high),
        "tint": tint * losses.colour_angle(output, high, 4),
    }


def dln_losses(modules: Modules, batch: Batch, _off: Off) -> Losses:
    output = modules["network"].predict(batch["low"])
    return fidelity(output, batch["high"], structure=0.5, tint=3)


def lightweight_losses(modules: Modules, batch: Batch, _off: Off, reversal: float = 0) -> Losses:
    """A rising tone curve and an illumination that is nearly grey, which keeps colours.

    The squared error is there for exposure: the others, left to themselves, end up too dark. What
    is black but for its noise has no colour, or it becomes a violet haze. ``reversal`` weighs that
    in blocks of 4 pixels, narrower than the dark ring that a network draws around lamps when it has
    learned to leave bright places alone.
    """
    network, low, high = modules["network"], batch["low"], batch["high"]
    network.norm.eval()  # or it would see another exposure in training than when it ships
    illumination = network.illuminate(network.extract(low), low)
    output = (low / illumination).clamp(0, 1)
    spread = (illumination.amax(1) - illumination.amin(1)) / illumination.mean(1)
    terms = fidelity(output, high, tint=4) | {
        "square": F.mse_loss(output, high),
        "flat": losses.flatness(network),
        "smooth": 0.002 * losses.neighbour_smoothness(illumination),
        "grey": 0.01 * spread.mean(),
        "black": 2 * losses.colour_of_black(output, low),
    }
    if reversal:
        terms["reversal"] = reversal * losses.reversal(output, low, 4)
    return terms


def mild_losses(modules: Modules, batch: Batch, off: Off) -> Losses:
    return lightweight_losses(modules, batch, off, reversal=50)


def residual_losses(modules: Modules, batch: Batch, off: Off) -> Losses:
    output, difference = modules["network"].predict(batch["low"], batch["alpha"])
    terms = fidelity(output, batch["high"], structure=0.5, tint=5)  # or its colours end up pale
    # 49x49 pixels that could be of a lighter scene otherwise become grey: lawns, leaves, faces.
    terms["colours"] = 5 * losses.colours_kept(output.float(), batch["low"])
    if "auxiliary" not in off:
        # Of real pairs too, which the paper has not: what is added is then the difference there.
        terms["difference"] = 0.2 * (difference.float() - batch["difference"]).abs().mean()
    return terms


def neid_losses(modules: Modules, batch: Batch, off: Off) -> Losses:
    small = losses.in_full_precision(halve)(batch["low"])
    output, detail, skips = modules["network"].predict(small)
    output = output.float() + lost(batch["low"], small)
    terms = fidelity(output, batch["high"], structure=0.5, tint=2)
    if "dr" not in off:
        recovered = modules["dr_decoder"](detail, skips).float()
        terms["detail"] = 0.1 * F.mse_loss(recovered, batch["low"])
    if "color" not in off:
        terms["colour"] = 0.03 * losses.colour(output, batch["high"])
    return terms


def _patches(x: Tensor, corners: list[list[int]], size: int = 32) -> Tensor:
    return torch.cat([x[:, :, top : top + size, left : left + size] for top, left in corners])


def adversarial(modules: Modules, batch: Batch, fake: Tensor, off: Off) -> Losses:
    """What the discriminators say to ``fake``, (N, 3, H, W), made of ``batch["input"]``.

    Leaves it in the batch, without its gradients, for the discriminators' own phase.
    """
    batch["fake"] = fake.detach()
    signed_fake, signed_real = 2 * fake - 1, 2 * batch["normal"] - 1
    judged = modules["global"](signed_fake).float()
    real = modules["global"](signed_real).float().detach()
    terms = {"global": losses.relativistic_generator(real, judged)}
    if "local" not in off:
        local = modules["local"](_patches(signed_fake, batch["corners"].tolist())).float()
        terms["local"] = (local - 1).square().mean()
    return terms


def preserved(modules: Modules, batch: Batch, fake: Tensor) -> Tensor:
    """Self feature preserving: how far the structure is from the input's before any darkening."""
    return losses.feature_distance(modules["features"], fake, batch["low"])


def preserved_locally(modules: Modules, batch: Batch, fake: Tensor) -> Tensor:
    """The same over the local patches."""
    corners = batch["corners"].tolist()
    return losses.feature_distance(
        modules["features"], _patches(fake, corners), _patches(batch["low"], corners)
    )


def enlightengan_generator(modules: Modules, batch: Batch, off: Off) -> Losses:
    """The discriminators, feature preserving, and what bright, lit and noisy pictures ask for."""
    given = [batch[name] for name in ("input", "bright", "noisy", "grainy", "dim")]
    answers = modules["network"].predict(torch.cat(given)).float()
    fake, bright, lit, grainy, dim = answers.split([len(x) for x in given])
    terms = adversarial(modules, batch, fake, off)
    plain = batch["kept"] * batch["fake"][: len(lit)]
    # Lamps count as the pictures become light: with their full weight from the start none does.
    weight = 10 * batch["fake"].mean()
    asked = torch.cat([batch[name] for name in ("input", "bright", "lit", "dim", "dim")])
    terms |= {
        "bright": 0.3 * losses.charbonnier(bright, batch["bright"]),
        # Discriminators let grain pass, and the longer they judge, the more of it there is.
        "grain": 5 * losses.charbonnier(grainy, dim.detach()),
        "lamps": weight * losses.lamps(lit, plain, batch["lit"], batch["added"]),
        "reversal": 200 * losses.reversal(answers, asked),
    }
    if "sfp" not in off:
        # The fixed features are weaker than VGG's, so they weigh more.
        share = 1 if isinstance(modules["features"], losses.VGG16) else 3
        terms["features"] = share * preserved(modules, batch, fake)
        terms["features_local"] = share * preserved_locally(modules, batch, fake)
    if "color" not in off:
        # The features see luma only. Without the input's own colours the network paints yellow
        # skies and blue halos that the discriminators let pass, and where they are not asked for
        # in pictures with lamps, which no discriminator sees, green halos. Black has no colour to
        # preserve: without its own term it becomes navy.
        coloured = torch.cat([batch[name] for name in ("low", "bright", "lit", "dim", "dim")])
        terms["colours"] = 10 * losses.colours_kept(answers, coloured)
        terms["black"] = 3 * losses.colour_of_black(answers, asked)
    return terms


def enlightengan_discriminators(modules: Modules, batch: Batch, off: Off) -> Losses:
    fake, real = 2 * batch["fake"].float() - 1, 2 * batch["normal"] - 1
    terms = {
        "judge_global": losses.relativistic_discriminator(
            modules["global"](real).float(), modules["global"](fake).float()
        )
    }
    if "local" not in off:
        corners = batch["corners"].tolist()
        of_real = modules["local"](_patches(real, corners)).float()
        of_fake = modules["local"](_patches(fake, corners)).float()
        terms["judge_local"] = 0.5 * (of_real - 1).square().mean() + 0.5 * of_fake.square().mean()
    return terms


# --- the recipes ----------------------------------------------------------------------------------


def neid_modules(off: Off, as_in_paper: bool = False) -> Modules:
    """NEID and its DR decoder; the paper starts kernels at N(0, 0.02) and biases at 0.

    Without ff the bottleneck goes on as it is. The fusion is then held at weights of exactly 1 for
    the bottleneck and 0 for the DR feature, where its gradients are 0: the network that ships
    computes that too.
    """
    modules: Modules = {"network": NEID(), "dr_decoder": Decoder(32)}
    if as_in_paper:
        start_normal(modules, zero_biases=True)
    if "dr" in off:
        del modules["dr_decoder"]
    if "ff" in off:
        fusion = modules["network"].fusion
        for parameter in fusion.parameters():
            nn.init.zeros_(parameter)
        light, detail = fusion.expand.bias.data.chunk(2)
        light.fill_(40)  # in fp32 its sigmoid is 1
        detail.fill_(-200)  # and this one's is 0
    return modules


class Ungated(EnlightenGAN):
    """The generator without self-attention, for comparison: no gate on features and residual.

    The plane A among its inputs stays. It is a linear function of the other three, which the
    first convolution could compute by itself.
    """

    def predict(self, x: Tensor, gated: bool = False) -> Tensor:
        return super().predict(x, gated)


def start_normal(modules: Modules, zero_biases: bool = False) -> None:
    """Kernels at N(0, 0.02), the scales of batch normalisation at N(1, 0.02)."""
    for module in (part for whole in modules.values() for part in whole.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0, 0.02)
            if zero_biases and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)


def gan_modules(off: Off) -> Modules:
    modules: Modules = {
        "network": Ungated() if "attention" in off else EnlightenGAN(),
        "global": Discriminator(5),
        "local": Discriminator(4),
    }
    start_normal(modules)
    if "local" in off:  # only now: the others start the same with and without it
        del modules["local"]
    return modules


RECIPES = {
    "dln": Recipe(
        method="dln",
        summary="nearly whole reduced pictures and full-size crops; L1 + SSIM + block means",
        build=lambda _off: {"network": quickened(DLN())},
        draw=draw_pairs,
        phases=(Phase(("network",), dln_losses),),
        # Colour and exposure are learned from many small steps: hence the smallest views. Edges of
        # views are seen as edges of pictures are, and gates see other means: hence the largest. A
        # step of theirs costs as much as eight others, so they come late.
        views=(
            View(64, 96, 4, reduce=6, share=0.35),
            View(64, 64, 4, reduce=2, share=0.15),
            View(128, 192, 1, reduce=3, share=0.25),
            View(192, 288, 1, reduce=2, share=0.25),
        ),
        finish_from=0.5,
        finish_views=(
            View(64, 96, 4, reduce=6, share=0.15),
            View(64, 64, 4, reduce=2, share=0.1),
            View(128, 192, 1, reduce=3, share=0.15),
            View(192, 288, 1, reduce=2, share=0.25),
            View(384, 576, 1, reduce=1, share=0.35),
        ),
        rate=4e-4,
    ),
    "lightweight": Recipe(
        method="lightweight",
        summary="supervised, the one stage that ships; a rising tone curve, nearly grey gains",
        build=lambda _off: {"network": Lightweight()},
        draw=draw_compressed_pairs,
        phases=(Phase(("network",), lightweight_losses),),
        # It sees 17x17 pixels: many small views say more than few large ones.
        views=(View(96, 144, 6, reduce=2, share=0.5), View(96, 144, 6, reduce=1, share=0.5)),
        rate=6e-4,  # higher ones silence more of its extractor
        average=0.999,
        full_precision=True,
    ),
    "residual": Recipe(
        method="residual",
        summary="real pairs at alpha 1, made pairs with their true alpha: half, at last a fifth",
        build=lambda _off: {"network": Residual()},
        draw=draw_modelled,
        finish=draw_less_modelled,
        phases=(Phase(("network",), residual_losses),),
        views=(View(96, 96, 8, reduce=2, share=0.5), View(96, 96, 8, reduce=1, share=0.5)),
        rate=1e-3,
        decay=1e-4,
        spares_synthetic_test=True,
        ideas=("auxiliary",),
    ),
    "neid": Recipe(
        method="neid",
        summary="nearly whole pictures; L1 + SSIM + block means, DR and colour terms",
        build=neid_modules,
        draw=draw_pairs,
        phases=(Phase(("network", "dr_decoder"), neid_losses),),
        views=(
            View(192, 288, 2, reduce=2, share=0.5),
            View(384, 576, 1, reduce=1, share=0.5),
        ),
        rate=3e-4,
        ideas=("ff", "dr", "color"),
    ),
    "enlightengan": Recipe(
        method="enlightengan",
        summary="unpaired: global and local discriminators, self feature preserving",
        build=gan_modules,
        draw=draw_unpaired_and_lit,
        phases=(
            Phase(("network",), enlightengan_generator),
            Phase(("global", "local"), enlightengan_discriminators),
        ),
        views=(
            View(96, 144, 6, reduce=4, share=0.3),
            View(128, 192, 4, reduce=3, share=0.4),
            View(128, 128, 4, reduce=1, share=0.3),
        ),
        rate=2e-4,
        betas=(0.5, 0.999),
        needs=(("pairs",), ("dark", "normal")),
        unpaired=True,
        compares_features=True,
        ideas=("attention", "local", "sfp", "color"),
        comparison_only=frozenset({"attention"}),
    ),
}

# For pictures that are only mildly dark, where one set of weights cannot serve them too.
MILD = {
    "lightweight": replace(
        RECIPES["lightweight"],
        name="mild",
        summary="like the default, for mildly dark pictures, and bright ones that stay as they are",
        draw=draw_mild_pairs,
        phases=(Phase(("network",), mild_losses),),
    )
}
