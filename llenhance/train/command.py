"""``llenhance train``: from folders of pictures to weights that the other commands use."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import Refusal
from ..media import files
from ..methods import METHODS
from ..options import THREADS, Number

if TYPE_CHECKING:
    from .data import Data
    from .loop import Trainer
    from .recipes import Recipe


@click.command()
@click.argument("method", type=click.Choice(list(METHODS)))
@click.option(
    "--pairs",
    multiple=True,
    metavar="DIR[=WEIGHT]",
    help="A folder with low/ and high/; WEIGHT says how often its pairs are drawn. A scenes.tsv"
    " (stem, scene, split) holds out validation scenes. Several times.",
)
@click.option("--normal", multiple=True, metavar="DIR", help="Well-exposed pictures.")
@click.option("--dark", multiple=True, metavar="DIR", help="Dark pictures without a reference.")
@click.option(
    "--scenes",
    metavar="FILE.tsv",
    help="Stem, scene, split: of --dark and --normal pictures, which are of one scene and do not"
    " look so. Unpaired training shows no scene both dark and normal.",
)
@click.option(
    "--validate",
    metavar="DIR",
    help="Pairs (low/ and high/) to validate on; of a scenes.tsv, its validation scenes.",
)
@click.option(
    "--validate-pairs",
    type=click.IntRange(min=1),
    default=22,
    show_default=True,
    help="At most so many, by scene.",
)
@click.option(
    "--validate-every",
    type=Number(min=0, min_open=True),
    metavar="MINUTES",
    help="Minutes of training between validations. [default: 5; with --steps, 20 times a run, at"
    " steps that no clock decides]",
)
@click.option(
    "--include-validation",
    is_flag=True,
    help="Train on the held-out scenes too, and validate on nothing: the last stage of a run"
    " whose figures are known.",
)
@click.option("-o", "--output", required=True, metavar="RUN", help="The folder of this run.")
@click.option("--steps", type=click.IntRange(min=1), help="Train for so many steps.")
@click.option("--minutes", type=Number(min=0, min_open=True), help="Or for so long.")
@click.option(
    "--recipe",
    type=click.Choice(["default", "mild", "paper"]),
    default="default",
    show_default=True,
    help="Ours; ours for pictures that are only mildly dark (lightweight); or the losses, data and"
    " schedule of the method's own paper.",
)
@click.option(
    "--without",
    multiple=True,
    metavar="NAME",
    help="Leave one idea out, to compare at equal steps. neid: ff, dr, color; enlightengan:"
    " attention, local, sfp, with our recipe also color; residual: auxiliary; with --recipe paper"
    " also dln: circle, tv; lightweight: calibration. Weights without attention are for comparison"
    " only: the network that ships cannot compute them, and the other commands refuse them."
    " Several times.",
)
@click.option(
    "--vgg16",
    metavar="FILE",
    help="torchvision's VGG-16 state dict, for the feature losses of enlightengan and of"
    " lightweight --recipe paper. [default: fixed gradients at four scales]",
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="Pictures a step. [default: the recipe's]"
)
@click.option(
    "--rate",
    type=Number(min=0, min_open=True),
    help="Peak learning rate. [default: the recipe's]",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda[:N]|mps")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto is bf16 where the processor has it and the recipe allows it.",
)
@click.option("--threads", type=click.IntRange(1, THREADS), help="CPU threads. [default: all]")
@click.option("--from", "start", metavar="FILE", help="Start from these .safetensors weights.")
@click.option("--resume", is_flag=True, help="Go on from the run's checkpoint.")
def train(
    method: str,
    pairs: tuple[str, ...],
    normal: tuple[str, ...],
    dark: tuple[str, ...],
    scenes: str | None,
    validate: str | None,
    validate_pairs: int,
    validate_every: float | None,
    include_validation: bool,
    output: str,
    steps: int | None,
    minutes: float | None,
    recipe: str,
    without: tuple[str, ...],
    vgg16: str | None,
    batch: int | None,
    rate: float | None,
    seed: int,
    device: str,
    precision: str,
    threads: int | None,
    start: str | None,
    resume: bool,
) -> None:
    """Train METHOD and write RUN/METHOD.safetensors with its graph, log.csv and curve.png.

    A run may be killed: the same command with --resume goes on from the last checkpoint, at most
    three minutes back. Several processes train one network with

        torchrun --nproc-per-node N -m llenhance train ...

    on CPUs or with --device cuda; each draws its own batches, the first one writes.
    """
    if (steps is None) == (minutes is None):
        raise Refusal("give one of --steps and --minutes")
    if include_validation and validate is not None:
        raise Refusal("--include-validation validates on nothing: it does not go with --validate")
    folder = Path(output)
    checkpoint = folder / "checkpoint.pt"
    if resume and not checkpoint.is_file():
        raise Refusal(f"{checkpoint}: nothing to resume")
    if not resume and checkpoint.exists():
        raise Refusal(f"{folder} holds a run: --resume goes on with it")
    if not resume and (folder / "log.csv").exists():
        raise Refusal(f"{folder} holds a run that is over: give another folder")
    row = METHODS[method]
    files.check_writable(folder)

    import torch

    from .. import checkpoints, export
    from ..engines import available_threads
    from . import parallel
    from .loop import Run, Trainer
    from .paper import PAPER
    from .recipes import MILD, RECIPES, leave_out

    weights = folder / f"{method}.safetensors"
    graphs = [checkpoints.graph_path(weights, row, scale) for scale in row.scales]
    for path in (weights, *graphs, folder / "curve.png"):
        if not resume and path.exists():
            raise Refusal(f"{path} exists: give another folder")
    recipes = {"default": RECIPES, "mild": MILD, "paper": PAPER}[recipe]
    if method not in recipes:
        raise Refusal(f"{method} has no {recipe} recipe")
    chosen = leave_out(recipes[method], without)
    if scenes is not None and not chosen.unpaired:
        raise Refusal(f"{method} --recipe {recipe} learns from pairs: --scenes is of no use")
    if vgg16 is not None and not chosen.compares_features:
        raise Refusal(f"{method} --recipe {recipe} compares no features: --vgg16 is of no use")
    if batch is not None:
        chosen = chosen.in_batches_of(batch)
    if rate is not None:
        chosen = replace(chosen, rate=rate)
    export.check_usable()  # now, and not when hours of training are over
    data = _read(pairs, normal, dark, validate, validate_pairs, chosen, include_validation, scenes)

    torch.set_num_threads(threads or parallel.share(available_threads()))
    device = parallel.start(device)
    try:
        run = Run(
            folder,
            seed=seed,
            steps=steps,
            minutes=minutes,
            device=device,
            precision=precision,
            validate_minutes=validate_every,
            start_from=Path(start) if start and not resume else None,
            vgg16=Path(vgg16) if vgg16 else None,
        )
        trainer = Trainer(row, chosen, data, run)
        if resume:
            trainer.resume()
        first = parallel.rank() == 0
        if first:
            _announce(trainer)
        _fit(trainer, quiet=not first)
    finally:
        parallel.stop()
    if not first:
        return
    if trainer.comparison_only:
        left = ", ".join(sorted(chosen.off))
        click.echo(f"without {left}: for comparison only, no graph is exported", err=True)
    else:
        export.export(row, checkpoints.find(row, trainer.shipped.absolute()))
    figure = f", validation {trainer.best:.2f} dB" if data.validation else ""
    click.echo(f"{trainer.shipped}: {trainer.step} steps{figure}", err=True)


def _read(
    pairs: tuple[str, ...],
    normal: tuple[str, ...],
    dark: tuple[str, ...],
    validate: str | None,
    validate_pairs: int,
    recipe: Recipe,
    include_validation: bool = False,
    table: str | None = None,
) -> Data:
    """Every picture that was named; raises Refusal when the recipe needs others.

    What the residual method's synthetic test uses is left out where the recipe spares it.
    """
    from ..heldout import SYNTHETIC, scenes, synthetic_test
    from .data import Data, one_per_scene, pictures, read, read_pairs
    from .unpaired import dark_and_normal

    data = Data()
    for given in pairs:
        name, _, weight = given.rpartition("=") if "=" in given else (given, "", "1")
        try:
            share = float(weight)
        except ValueError:
            raise Refusal(f"--pairs {given}: {weight!r} is not a number") from None
        if not 0 < share < math.inf:
            raise Refusal(f"--pairs {given}: a weight is a number above 0")
        training, held_out = read_pairs(Path(name))
        if include_validation:
            training, held_out = training + held_out, []
        data.pairs += training
        data.shares += [share] * len(training)
        data.validation += held_out
    if validate is not None:
        unmarked, held_out = read_pairs(Path(validate))
        data.validation = held_out or unmarked
    data.validation = one_per_scene(data.validation, validate_pairs)
    bright: list[Path] = []
    for folder in normal:
        paths = pictures(Path(folder))
        spared = set(synthetic_test(paths)) if recipe.spares_synthetic_test else set()
        bright += [path for path in paths if path not in spared]
    dim = [path for folder in dark for path in pictures(Path(folder))]
    data.normal, data.dark = [read(path) for path in bright], [read(path) for path in dim]
    if table is not None:
        named = scenes(Path(table))
        if strange := sorted(named.keys() - {path.stem for path in (*dim, *bright)}):
            raise Refusal(f"{table}: {strange[0]} is among no --dark and no --normal pictures")
        data.scenes = [named.get(p.stem, ("",))[0] for p in (*dim, *bright)]
    if not any(all(getattr(data, kind) for kind in kinds) for kinds in recipe.needs):
        wanted = " or ".join(" and ".join(f"--{kind}" for kind in kinds) for kinds in recipe.needs)
        spared_too = f" ({SYNTHETIC} are spared for its synthetic test)"
        note = spared_too if recipe.spares_synthetic_test else ""
        raise Refusal(f"no pictures to train on: {recipe.method} needs {wanted}{note}")
    if recipe.unpaired:
        dark_and_normal(data)  # refuses what has no different scenes
    return data


def _announce(trainer: Trainer) -> None:
    """What the recipe is, and what is not as one might think, a line each."""
    click.echo(f"{trainer.method.name}: {trainer.recipe.summary}", err=True)
    if trainer.recipe.compares_features and "sfp" not in trainer.recipe.off:
        used = (
            "VGG-16" if trainer.run.vgg16 else "fixed gradients in place of VGG-16 (--vgg16 FILE)"
        )
        click.echo(f"feature losses: {used}", err=True)
    if not trainer.data.validation:
        click.echo("nothing to validate on: the last weights are kept", err=True)
    if importlib.util.find_spec("matplotlib") is None:
        click.echo("no curve.png without matplotlib: pip install 'llenhance[train]'", err=True)


def _fit(trainer: Trainer, quiet: bool) -> None:
    """Train with a bar on stderr that shows the loss and the last validation."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, quiet=quiet, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden) as progress:
        bar = progress.add_task(trainer.method.name, total=1.0)

        def tell(row: dict[str, Any]) -> None:
            progress.update(bar, completed=trainer.progress)
            if "minutes" in row:
                console.print(", ".join(f"{name} {value:g}" for name, value in row.items()))

        trainer.fit(tell)
