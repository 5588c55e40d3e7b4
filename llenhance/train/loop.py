"""The training loop: one screen for all methods, resumable to the bit.

A run lives in one folder: ``checkpoint.pt`` (everything needed to go on),
``METHOD.safetensors`` (the average weights that validated best, or the last ones where there is
nothing to validate on) and ``log.csv``.
"""

import csv
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import checkpoints
from ..errors import Refusal
from ..methods import Method
from .data import Data, Pair
from .recipes import Losses, Recipe


@dataclass(frozen=True)
class Run:
    """What the user decides about a run. One of ``steps`` and ``minutes`` ends it."""

    folder: Path
    seed: int = 0
    steps: int | None = None
    minutes: float | None = None
    device: str = "cpu"
    precision: str = "auto"
    validate_minutes: float = 5.0
    save_minutes: float = 3.0
    start_from: Path | None = None


def native_bf16(device: str) -> bool:
    """Whether this device multiplies in bf16 by itself (emulated, it is ten times slower)."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        cpu: Any = torch.cpu  # these two have no public name
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return False


def learning_rate(peak: float, progress: float) -> float:
    """Linear warm-up over the first 2 %, then a cosine to a hundredth of the peak."""
    if progress < 0.02:
        return peak * max(progress / 0.02, 0.01)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.02) / 0.98)))
    return peak * (0.01 + 0.99 * cosine)


@torch.no_grad()
def average_into(average: nn.Module, network: nn.Module, decay: float) -> None:
    """One step of the exponential moving average, over parameters and float buffers."""
    target = average.state_dict()
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            target[name].lerp_(value, 1 - decay)
        else:
            target[name].copy_(value)


@torch.no_grad()
def validate(
    network: nn.Module, pairs: list[Pair], multiple: int, device: str, autocast: Any
) -> float:
    """Mean PSNR in dB of uint8 outputs over whole validation pictures."""
    network.eval()
    figures = []
    for pair in pairs:
        x = torch.from_numpy(pair.low).to(device).permute(2, 0, 1)[None].float() / 255
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="reflect")
        with autocast():
            y = network(padded)
        y = (y[0] if isinstance(y, tuple) else y)[0, :, :height, :width].float()
        image = (y * 255).round().permute(1, 2, 0).cpu().numpy()
        error = np.mean((image - pair.high.astype(np.float32)) ** 2)
        figures.append(10 * math.log10(255**2 / max(error, 1e-10)))
    return float(np.mean(figures))


class Trainer:
    """A run in progress."""

    def __init__(self, method: Method, recipe: Recipe, data: Data, run: Run) -> None:
        self.method, self.recipe, self.data, self.run = method, recipe, data, run
        torch.manual_seed(run.seed)
        self.modules = {k: m.to(run.device) for k, m in recipe.build().items()}
        if run.start_from is not None:
            weights = checkpoints.find(method, run.start_from)
            self.modules["network"].load_state_dict(checkpoints.build(method, weights).state_dict())
        self.average = recipe.build()["network"].to(run.device)
        self.average.load_state_dict(self.modules["network"].state_dict())
        wide = run.precision == "fp32" or recipe.full_precision
        self.bf16 = not wide and (run.precision == "bf16" or native_bf16(run.device))
        if self.bf16:
            for module in (*self.modules.values(), self.average):
                module.to(memory_format=torch.channels_last)
        self.optimizers = [self._optimizer(phase.trains) for phase in recipe.phases]
        self.step, self.elapsed, self.best = 0, 0.0, -math.inf
        self.rows: list[dict[str, float]] = []

    def _optimizer(self, names: tuple[str, ...]) -> torch.optim.AdamW:
        parameters = [p for name in names for p in self.modules[name].parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.recipe.decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.recipe.rate, betas=self.recipe.betas)

    def autocast(self) -> Any:
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.run.device.split(":")[0], dtype=torch.bfloat16)

    @property
    def progress(self) -> float:
        """0 to 1."""
        by_steps = self.step / self.run.steps if self.run.steps else 0.0
        by_time = self.elapsed / (60 * self.run.minutes) if self.run.minutes else 0.0
        return max(by_steps, by_time)

    def one_step(self) -> dict[str, float]:
        """Draw a batch, run every phase, update the average; returns the loss terms."""
        rng = np.random.default_rng((self.run.seed, self.step))
        torch.manual_seed(self.run.seed * 1_000_003 + self.step)
        views = self.recipe.views
        shares = np.array([view.share for view in views])
        view = views[rng.choice(len(views), p=shares / shares.sum())]
        batch = {
            k: v.to(self.run.device) for k, v in self.recipe.draw(self.data, view, rng).items()
        }
        rate = learning_rate(self.recipe.rate, self.progress)
        terms: Losses = {}
        for module in self.modules.values():
            module.train()
        for phase, optimizer in zip(self.recipe.phases, self.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            for name, module in self.modules.items():
                module.requires_grad_(name in phase.trains)
            optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                found = phase.losses(self.modules, batch)
            total: Tensor = torch.stack(list(found.values())).sum()
            total.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(
                [p for group in optimizer.param_groups for p in group["params"]], self.recipe.clip
            )
            if torch.isfinite(norm):
                optimizer.step()
            terms |= found
        self.step += 1
        decay = min(self.recipe.average, self.step / (self.step + 10))
        average_into(self.average, self.modules["network"], decay)
        return {name: float(value.detach()) for name, value in terms.items()} | {"rate": rate}

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "recipe": self.recipe.method,
            "seed": self.run.seed,
            "step": self.step,
            "elapsed": self.elapsed,
            "best": self.best,
            "rows": self.rows,
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "average": self.average.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        temporary = self.run.folder / ".checkpoint.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.run.folder / "checkpoint.pt")

    def resume(self) -> None:
        """Go on from the folder's checkpoint; raises Refusal when it is of another run."""
        path = self.run.folder / "checkpoint.pt"
        state = torch.load(path, map_location=self.run.device, weights_only=True)
        if (state["recipe"], state["seed"]) != (self.recipe.method, self.run.seed):
            raise Refusal(f"{path} is a run of {state['recipe']} with seed {state['seed']}")
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.best, self.rows = state["best"], state["rows"]

    def check(self) -> float | None:
        """Validate the average weights, keep them if they are the best so far, write the log."""
        if not self.data.validation:
            return None
        figure = validate(
            self.average,
            self.data.validation,
            self.method.multiple_of,
            self.run.device,
            self.autocast,
        )
        if figure > self.best:
            self.best = figure
            self.export()
        return figure

    @property
    def shipped(self) -> Path:
        """Where the weights of this run are."""
        return self.run.folder / f"{self.method.name}.safetensors"

    def export(self) -> None:
        """Write the average weights, as the other commands read them."""
        checkpoints.save(
            self.shipped, self.method, self.average.state_dict(), {}, half=self.method.stored_half
        )

    def log(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        temporary = self.run.folder / ".log.tmp"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.run.folder / "log.csv")

    def fit(self, tell: Callable[["Trainer", dict[str, float]], None]) -> None:
        """Train to the end; ``tell(trainer, row)`` hears of every step and validation."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        last_check = last_save = self.elapsed
        sums: dict[str, float] = {}
        count = 0
        while self.progress < 1:
            began = time.perf_counter()
            terms = self.one_step()
            self.elapsed += time.perf_counter() - began
            count += 1
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
            tell(self, {"step": self.step})
            done = self.progress >= 1
            if done or self.elapsed - last_check >= 60 * self.run.validate_minutes:
                last_check = self.elapsed
                row = {"step": self.step, "minutes": round(self.elapsed / 60, 2)}
                row |= {name: round(value / count, 6) for name, value in sums.items()}
                sums, count = {}, 0
                figure = self.check()
                if figure is not None:
                    row["psnr"] = round(figure, 3)
                self.rows.append(row)
                self.log()
                tell(self, row)
            if done or self.elapsed - last_save >= 60 * self.run.save_minutes:
                last_save = self.elapsed
                self.save()
        if not self.data.validation:
            self.export()
