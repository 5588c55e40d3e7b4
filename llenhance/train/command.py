"""``llenhance train``: from folders of pictures to weights that the other commands use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import Refusal
from ..methods import METHODS

if TYPE_CHECKING:
    from .data import Data
    from .loop import Trainer


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
@click.option("--validate", metavar="DIR", help="Pairs (low/ and high/) to validate on.")
@click.option("--validate-pairs", default=22, show_default=True, help="At most so many, by scene.")
@click.option("-o", "--output", required=True, metavar="RUN", help="The folder of this run.")
@click.option("--steps", type=click.IntRange(min=1), help="Train for so many steps.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Or for so long.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda[:N]|mps")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto is bf16 where the processor has it and the recipe allows it.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all]")
@click.option("--from", "start", metavar="FILE", help="Start from these .safetensors weights.")
@click.option("--resume", is_flag=True, help="Go on from the run's checkpoint.")
def train(
    method: str,
    pairs: tuple[str, ...],
    normal: tuple[str, ...],
    dark: tuple[str, ...],
    validate: str | None,
    validate_pairs: int,
    output: str,
    steps: int | None,
    minutes: float | None,
    seed: int,
    device: str,
    precision: str,
    threads: int | None,
    start: str | None,
    resume: bool,
) -> None:
    """Train METHOD and write RUN/METHOD.safetensors with its graph.

    A run is killed and resumed without loss: the same command with --resume goes on from the last
    checkpoint.
    """
    if (steps is None) == (minutes is None):
        raise Refusal("give one of --steps and --minutes")
    folder = Path(output)
    checkpoint = folder / "checkpoint.pt"
    if resume and not checkpoint.is_file():
        raise Refusal(f"{checkpoint}: nothing to resume")
    if not resume and checkpoint.exists():
        raise Refusal(f"{folder} holds a run: --resume goes on with it")
    row = METHODS[method]

    import torch

    from .. import checkpoints, export
    from ..engines import available_threads
    from .loop import Run, Trainer
    from .recipes import RECIPES

    spare = RECIPES[method].spares_synthetic_test
    data = _read(pairs, normal, dark, validate, validate_pairs, spare)

    torch.set_num_threads(threads or available_threads())
    run = Run(
        folder,
        seed=seed,
        steps=steps,
        minutes=minutes,
        device=device,
        precision=precision,
        start_from=Path(start) if start else None,
    )
    trainer = Trainer(row, RECIPES[method], data, run)
    if resume:
        trainer.resume()
    _fit(trainer)
    weights = checkpoints.find(row, trainer.shipped.absolute())
    export.export(row, weights)
    figure = f", validation {trainer.best:.2f} dB" if data.validation else ""
    click.echo(f"{trainer.shipped}: {trainer.step} steps{figure}", err=True)


def _read(
    pairs: tuple[str, ...],
    normal: tuple[str, ...],
    dark: tuple[str, ...],
    validate: str | None,
    validate_pairs: int,
    spare: bool,
) -> Data:
    """Every picture that was named; raises Refusal when there are no pairs.

    ``spare``: leave out of ``normal`` the pictures of the residual method's synthetic test.
    """
    from ..heldout import synthetic_test
    from .data import Data, one_per_scene, pictures, read, read_pairs

    data = Data()
    for given in pairs:
        name, _, weight = given.rpartition("=") if "=" in given else (given, "", "1")
        try:
            share = float(weight)
        except ValueError:
            raise Refusal(f"--pairs {given}: {weight!r} is no number") from None
        if share <= 0:
            raise Refusal(f"--pairs {given}: a weight is above 0")
        training, held_out = read_pairs(Path(name))
        data.pairs += training
        data.shares += [share] * len(training)
        data.validation += held_out
    if validate is not None:
        data.validation = read_pairs(Path(validate))[0]
    data.validation = one_per_scene(data.validation, validate_pairs)
    for folder in normal:
        paths = pictures(Path(folder))
        spared = set(synthetic_test(paths)) if spare else set()
        data.normal += [read(path) for path in paths if path not in spared]
    data.dark = [read(path) for folder in dark for path in pictures(Path(folder))]
    if not data.pairs:
        raise Refusal("no pairs to train on: give --pairs")
    return data


def _fit(trainer: Trainer) -> None:
    """Train with a bar on stderr that shows the loss and the last validation."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(trainer.method.name, total=1.0)

        def tell(_trainer: Trainer, row: dict[str, Any]) -> None:
            progress.update(bar, completed=trainer.progress)
            if "minutes" in row:
                console.print(", ".join(f"{name} {value:g}" for name, value in row.items()))

        trainer.fit(tell)
