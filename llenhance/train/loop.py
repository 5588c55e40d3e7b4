"""The training loop: one screen for all methods. On a CPU a resumed run ends at the same bits.

A run lives in one folder: ``checkpoint.pt`` (everything needed to go on),
``METHOD.safetensors`` (the average weights that validated best, or the last ones where there is
nothing to validate on), ``log.csv`` and, drawn with each checkpoint, its picture ``curve.png``.
"""

import copy
import csv
import io
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from .. import checkpoints
from ..engines.pytorch import cpu_has_bf16, reflect
from ..errors import DeviceError, LLEnhanceError, Refusal
from ..media import files
from ..methods import Method
from . import curve, parallel
from .data import Data, Pair
from .losses import VGG16, GradientBank
from .recipes import Losses, Recipe

CHECKS = 20  # validations of a run with steps


@dataclass(frozen=True)
class Run:
    """What the user decides about a run. One of ``steps`` and ``minutes`` ends it.

    ``validate_minutes``: minutes of training between validations. Without it, 5 in a run with
    ``minutes``. A run with ``steps`` then validates at fixed steps instead: a clock would choose
    other steps, and perhaps other weights to ship, each time it is run.
    """

    folder: Path
    seed: int = 0
    steps: int | None = None
    minutes: float | None = None
    device: str = "cpu"
    precision: str = "auto"
    validate_minutes: float | None = None
    save_minutes: float = 3.0
    start_from: Path | None = None
    vgg16: Path | None = None


def native_bf16(device: str) -> bool:
    """Whether this device multiplies in bf16 by itself (emulated, it is ten times slower)."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device == "cpu":
        return cpu_has_bf16()
    return False


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
    """Mean PSNR in dB of uint8 outputs over whole validation pictures, padded as when they ship."""
    network.eval()
    figures = []
    for pair in pairs:
        x = torch.from_numpy(pair.low).to(device).permute(2, 0, 1)[None].float() / 255
        height, width = x.shape[2:]
        padded, top, left = reflect(x, multiple)
        with autocast():
            y = network(padded)
        y = (y[0] if isinstance(y, tuple) else y)[0, :, top:, left:][:, :height, :width].float()
        image = (y * 255).round().permute(1, 2, 0).cpu().numpy()
        error = np.mean((image - pair.high.astype(np.float32)) ** 2)
        figures.append(10 * math.log10(255**2 / max(error, 1e-10)))
    return float(np.mean(figures))


class Trainer:
    """A run in progress."""

    def __init__(self, method: Method, recipe: Recipe, data: Data, run: Run) -> None:
        if run.precision == "bf16" and recipe.full_precision:
            raise Refusal(f"{method.name} trains in fp32: --precision auto or fp32")
        self.method, self.recipe, self.data, self.run = method, recipe, data, run
        try:
            torch.empty(0, device=run.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise DeviceError(f"device {run.device}: {str(error).splitlines()[0]}") from None
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.manual_seed(run.seed)
        self.modules = {k: m.to(run.device) for k, m in recipe.build(recipe.off).items()}
        if run.start_from is not None:
            weights = checkpoints.find(method, run.start_from)
            if weights.options:  # such as channels, or the grid of the authors' EnlightenGAN
                options = ", ".join(f"{name} {value}" for name, value in weights.options.items())
                raise Refusal(f"{run.start_from}: weights of another network ({options})")
            self.modules["network"].load_state_dict(checkpoints.build(method, weights).state_dict())
        self.average = copy.deepcopy(self.modules["network"])
        # What the losses look through: no part of the run, hence not in its checkpoints.
        bank = GradientBank() if run.vgg16 is None else VGG16(run.vgg16)
        self.fixed = {"features": bank.to(run.device)}
        wide = run.precision == "fp32" or recipe.full_precision
        self.bf16 = not wide and (run.precision == "bf16" or native_bf16(run.device))
        if self.bf16:
            for module in (*self.modules.values(), self.average):
                module.to(memory_format=torch.channels_last)
        self.optimizers = [self._optimizer(phase.trains) for phase in recipe.phases]
        self.step, self.elapsed, self.best = 0, 0.0, -math.inf
        self.rows: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}  # of the loss terms, since the last row
        self.count = 0
        self.skipped = 0  # steps that were no numbers
        self.identity = self._identity()

    def _optimizer(self, names: tuple[str, ...]) -> torch.optim.Optimizer:
        parts = [self.modules[name] for name in names if name in self.modules]
        parameters = [p for part in parts for p in part.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.recipe.decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        make: Any = self.recipe.optimizer
        return make(groups, lr=self.recipe.rate, betas=self.recipe.betas)

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

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in with the run that goes on from it: all but its length."""
        bank = checkpoints.checksum(self.run.vgg16) if self.run.vgg16 else "gradients"
        return {
            "recipe": self.recipe.method,
            "kind": self.recipe.name,
            "without": sorted(self.recipe.off),
            "features": bank,
            "seed": self.run.seed,
            "batches": [view.batch for view in (*self.recipe.views, *self.recipe.finish_views)],
            "rate": self.recipe.rate,
            "precision": "bf16" if self.bf16 else "fp32",
            "processes": parallel.count(),
            "pictures": self.data.digest(),
        }

    def draw(self) -> dict[str, Tensor]:
        """This step's batch, from (seed, step) alone; on several processes, each its own."""
        seeds = (self.run.seed, self.step)
        rng = np.random.default_rng(seeds)
        draw, views = self.recipe.drawn_at(self.progress, bool(self.data.pairs))
        shares = np.array([view.share for view in views])
        view = views[rng.choice(len(shares), p=shares / shares.sum())]
        if view.quarter_turns and rng.integers(2):
            view = view.turned()
        if rank := parallel.rank():  # the same view, so that none waits for the others
            rng = np.random.default_rng((*seeds, rank))
        return {k: v.to(self.run.device) for k, v in draw(self.data, view, rng).items()}

    def one_step(self) -> dict[str, float]:
        """Draw a batch, run every phase, update the average; returns the loss terms."""
        torch.manual_seed(self.run.seed * 1_000_003 + self.step)
        batch = self.draw()
        rate = self.recipe.rate * self.recipe.schedule(self.progress)
        terms: Losses = {}
        skipped = False
        for module in self.modules.values():
            module.train()
        for phase, optimizer in zip(self.recipe.phases, self.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            for name, module in self.modules.items():
                module.requires_grad_(name in phase.trains)
            optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                found = phase.losses(self.modules | self.fixed, batch, self.recipe.off)
            total: Tensor = torch.stack(list(found.values())).sum()
            total.backward()  # type: ignore[no-untyped-call]
            moved = [p for group in optimizer.param_groups for p in group["params"]]
            parallel.average(p.grad for p in moved if p.grad is not None)
            norm = nn.utils.clip_grad_norm_(moved, self.recipe.clip)
            if torch.isfinite(norm):
                optimizer.step()
            else:
                skipped = True
            terms |= found
        parallel.average(b for m in self.modules.values() for b in m.buffers() if b.dim())
        self.step += 1
        if skipped:
            self.skipped += 1
            self.heal()
        else:
            decay = min(self.recipe.average, self.step / (self.step + 10))
            average_into(self.average, self.modules["network"], decay)
        figures = {name: float(value.detach()) for name, value in terms.items()}
        return figures | {"rate": rate, "skipped": float(skipped)}

    def heal(self) -> None:
        """After a step that was no number: running statistics would keep it for ever."""
        network = self.modules["network"]
        for mine, good in zip(network.buffers(), self.average.buffers(), strict=True):
            if not torch.isfinite(mine).all():
                mine.copy_(good)

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        if parallel.rank():
            return
        state = {
            **self.identity,
            "step": self.step,
            "skipped": self.skipped,
            "elapsed": self.elapsed,
            "best": self.best,
            "rows": self.rows,
            "sums": self.sums,
            "count": self.count,
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "average": self.average.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        self.write("checkpoint.pt", lambda file: torch.save(state, file))

    def write(self, name: str, fill: Callable[[BinaryIO], object], shown: bool = False) -> None:
        """Put a file into the run's folder, whole or not at all; raises LLEnhanceError.

        Of what may be ``shown``, on Windows, by a program that lets nobody replace it, the old one
        then stays: the next one has all of it again.
        """
        # One name, unlike files.publish: a run that is killed just here leaves one file at most.
        path, temporary = self.run.folder / name, self.run.folder / f".{name}.tmp"
        try:
            with temporary.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            if shown and isinstance(error, PermissionError):
                return
            # torch tells of a full disk in other words.
            reason = (isinstance(error, OSError) and error.strerror) or "cannot be written whole"
            raise LLEnhanceError(f"{path}: {reason}") from None

    def resume(self) -> None:
        """Go on from the folder's checkpoint; raises Refusal for one of another
        run, or that cannot be read."""
        path = self.run.folder / "checkpoint.pt"
        try:
            # To the CPU: on a GPU, Adam's counters of steps would halt it at every step.
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # the unpickler raises many kinds; each means that this is no checkpoint
            raise Refusal(f"{path}: not a checkpoint that can be read") from None
        if not isinstance(state, dict):
            raise Refusal(f"{path}: not a checkpoint")
        differing = [
            f"{name} {state.get(name, 'unknown') or 'nothing'}"
            for name, value in self.identity.items()
            if state.get(name) != value
        ]
        if differing:
            raise Refusal(f"{path} is of another run: {', '.join(differing)}")
        try:
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.skipped = state["skipped"]
            self.step, self.elapsed = state["step"], state["elapsed"]
            self.best, self.rows = state["best"], state["rows"]
            self.sums, self.count = state["sums"], state["count"]
        except (KeyError, ValueError, RuntimeError):
            raise Refusal(f"{path}: its networks are not those of this version") from None
        if not self.shipped.is_file():  # the checkpoint was taken elsewhere by itself
            self.best = -math.inf

    def check(self) -> float | None:
        """Validate the average weights, and keep them if they are the best so far: dB, or None."""
        if not self.data.validation or parallel.rank():
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
        """Write the average weights, as the other commands read them.

        Weights that are for comparison only name no method, and so the others refuse them.
        """
        if parallel.rank():
            return
        owner = self.method
        if self.comparison_only:
            owner = replace(
                owner, name=f"{owner.name} without {', '.join(sorted(self.recipe.off))}"
            )
        state = self.average.state_dict()
        checkpoints.save(self.shipped, owner, state, {}, half=self.method.stored_half)

    @property
    def comparison_only(self) -> bool:
        """Whether the network that ships cannot compute what this run trains."""
        return bool(self.recipe.off & self.recipe.comparison_only)

    def log(self) -> None:
        if parallel.rank():
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, names)
        writer.writeheader()
        writer.writerows(self.rows)
        self.write("log.csv", lambda file: file.write(table.getvalue().encode()), shown=True)

    def draw_curve(self) -> None:
        if not parallel.rank() and (picture := curve.drawn(self.rows)):
            self.write("curve.png", lambda file: file.write(picture), shown=True)

    def fit(self, tell: Callable[[dict[str, float]], None]) -> None:
        """Train to the end; ``tell(row)`` hears of every step and validation."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        files.sweep(self.run.folder)
        last_check = last_save = self.elapsed
        while self.progress < 1:
            began = time.perf_counter()
            terms = self.one_step()
            elapsed = self.elapsed + time.perf_counter() - began
            self.elapsed = parallel.agreed(elapsed, self.run.device)
            self.count += 1
            for name, value in terms.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            tell({"step": self.step})
            done = self.progress >= 1
            if done or self._is_time_to_check(last_check):
                last_check = self.elapsed
                if not self.rows:  # weights without a checkpoint are of a run that is over
                    self.save()
                row = {"step": self.step, "minutes": round(self.elapsed / 60, 2)}
                row |= {name: round(value / self.count, 6) for name, value in self.sums.items()}
                self.sums, self.count = {}, 0
                figure = self.check()
                if figure is not None:
                    row["psnr"] = round(figure, 3)
                self.rows.append(row)
                self.log()
                tell(row)
            if done or self.elapsed - last_save >= 60 * self.run.save_minutes:
                last_save = self.elapsed
                self.save()
                self.draw_curve()
        if not self.data.validation:
            self.export()
        elif self.best == -math.inf and not parallel.rank():
            raise LLEnhanceError(
                f"no validation gave a number, {self.skipped} of {self.step} steps were none:"
                " no weights are kept"
            )

    def _is_time_to_check(self, last: float) -> bool:
        minutes = self.run.validate_minutes
        if minutes is None and self.run.steps is not None:
            return self.step * CHECKS // self.run.steps > (self.step - 1) * CHECKS // self.run.steps
        return self.elapsed - last >= 60 * (5.0 if minutes is None else minutes)
