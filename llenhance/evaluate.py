"""``llenhance evaluate``: how good the methods are, in figures. Heavy imports happen inside."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .errors import Refusal
from .heldout import SYNTHETIC
from .methods import METHODS
from .options import engine_options

if TYPE_CHECKING:
    from .pixels import Rgb8
    from .report import Report
    from .scores import Case, Contender, Result, Scores

TILES = 6  # pictures of a contact sheet
ALL = "all"
OWN = "own model"  # what NIQE is headed with, so that nobody takes it for the published one


@click.command()
@click.argument("methods", nargs=-1, type=click.Choice([*METHODS, ALL]), metavar="METHOD...")
@click.option("--low", metavar="DIR", help="Dark pictures,")
@click.option("--high", metavar="DIR", help="and their references, found by the same name.")
@click.option("--dark", metavar="DIR", help="Or dark pictures without reference.")
@click.option("--synthetic", metavar="DIR", help="Or normal ones for residual's synthetic test.")
@click.option("--scenes", metavar="FILE.tsv", help="Stem, scene, split. [default: beside LOW]")
@click.option("--split", metavar="NAME", help="Only the pairs of this split, e.g. validation.")
@click.option("--pred", "preds", multiple=True, metavar="DIR", help="Another tool's pictures.")
@click.option("--scale", type=int, help="2: half-size inputs; neid against bicubic enlargement.")
@click.option("--niqe-model", metavar="FILE.npz", help="Another NIQE model than our own.")
@click.option("--sheet", metavar="FILE", help="Also a labelled picture of up to 6 of them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an image and method.")
@click.option("--csv", "as_csv", is_flag=True, help="One row an image and method.")
@engine_options(several=False)
def evaluate(
    methods: tuple[str, ...],
    low: str | None,
    high: str | None,
    dark: str | None,
    synthetic: str | None,
    scenes: str | None,
    split: str | None,
    preds: tuple[str, ...],
    scale: int | None,
    niqe_model: str | None,
    sheet: str | None,
    as_json: bool,
    as_csv: bool,
    engine: str,
    device: str,
    precision: str,
    threads: int | None,
    weights: str | None,
) -> None:
    """Score methods on pictures, beside the input, histogram equalisation and gamma.

    PSNR and SSIM are of 8-bit RGB, a picture at a time, then the mean. A pair that cannot be read
    is named and left out of every row.
    """
    chosen = list(METHODS) if ALL in methods else list(dict.fromkeys(methods))
    _check_usage(chosen, low, high, dark, synthetic, scenes, split, preds, scale, niqe_model)
    if as_json and as_csv:
        raise Refusal("give one of --json and --csv")

    from .enhancer import load
    from .niqe import NiqeModel
    from .report import Report
    from .scores import classic, network, prediction, run
    from .scores import synthetic as synthetic_cases

    report = Report(as_json=as_json)
    if synthetic is not None:
        cases = synthetic_cases(Path(synthetic))
        if len(cases) < SYNTHETIC:
            report.warn(synthetic, f"the test is of {SYNTHETIC} pictures, here are {len(cases)}")
    else:
        cases = _cases(low, high, dark, preds, _wanted(low, scenes, split), report)
    if sheet is not None:
        _check_sheet(Path(sheet))
    # Our own NIQE is not published NIQE: it is never printed beside published figures.
    model = NiqeModel.load(niqe_model) if synthetic is None else None

    factor = scale or 1
    contenders = classic(factor)
    for name in chosen:
        enhancer = load(
            name,
            device=device,
            engine=engine,
            weights=weights,
            threads=threads,
            precision=precision,
        )
        report.say(str(enhancer), 0)
        contenders.append(network(enhancer, factor))
    contenders += [prediction(label, n) for n, label in enumerate(_labels(preds))]

    rows: list[list[Scores]] = [[] for _ in contenders]
    places = {round(i * (len(cases) - 1) / (TILES - 1)) for i in range(TILES)}
    shown = {cases[place].name for place in places} if sheet is not None else set()
    tiles: list[list[tuple[str, Rgb8]]] = []
    if as_csv:
        click.echo(
            "image,method,psnr,ssim,psnr_best_gain,niqe,newly_clipped,seconds_per_megapixel,psnr_map"
        )
    with report.tracking():
        for result in run(cases, contenders, model, factor, report):
            for row, contender, scores in zip(rows, contenders, result.scores, strict=True):
                row.append(scores)
                if as_json:
                    _print_json("image", contender.label, scores, image=result.case.name)
                elif as_csv:
                    _print_csv(result.case.name, contender.label, scores)
            if result.case.name in shown:
                tiles.append(_tiles(result, contenders))
    if rows[0]:
        niqe = OWN if niqe_model is None else Path(niqe_model).name
        lines = [] if as_csv else _lines(contenders, rows, synthetic is not None)
        if as_json:
            for line in lines:
                _print_json(
                    "summary",
                    line.label,
                    line.scores,
                    images=len(rows[0]) if line.measured else None,
                    niqe_model=None if model is None else niqe,
                    parameters=line.parameters,
                    macs_per_megapixel=line.macs,
                )
        elif not as_csv:
            _print_table(lines, len(rows[0]), niqe)
            _print_notes(rows, niqe, synthetic is not None, report)
        if sheet is not None and tiles:
            _write_sheet(tiles, Path(sheet))
    raise click.exceptions.Exit(report.exit_status)


# --- before anything is loaded --------------------------------------------------------------------


def _check_usage(
    chosen: Sequence[str],
    low: str | None,
    high: str | None,
    dark: str | None,
    synthetic: str | None,
    scenes: str | None,
    split: str | None,
    preds: Sequence[str],
    scale: int | None,
    niqe_model: str | None,
) -> None:
    if not chosen and not preds:
        raise Refusal(f"name a method ({', '.join(METHODS)} or {ALL}), or give --pred DIR")
    if (low is None) != (high is None):
        raise Refusal("--low and --high go together")
    if sum(folder is not None for folder in (low, dark, synthetic)) != 1:
        raise Refusal("give --low DIR --high DIR, or --dark DIR, or --synthetic DIR")
    if (scenes is not None or split is not None) and low is None:
        raise Refusal("--scenes and --split go with --low and --high")
    if scenes is not None and split is None:
        raise Refusal("--scenes goes with --split NAME")
    if scale is not None and not any(scale in METHODS[name].scales for name in chosen):
        having = [name for name, method in METHODS.items() if scale in method.scales]
        if not having:
            raise Refusal(f"scale {scale}: no method has it")
        raise Refusal(f"scale {scale}: {', '.join(having)} has it, and is not chosen")
    if synthetic is not None:
        from .controls import lacking

        if preds:
            raise Refusal("--pred does not go with --synthetic, whose dark pictures are made here")
        if niqe_model is not None:
            raise Refusal("--niqe-model does not go with --synthetic, which gives no NIQE")
        without = [n for n in chosen if "alpha" not in {c.name for c in METHODS[n].controls}]
        if without:
            raise Refusal(f"--synthetic gives the true alpha; {lacking('alpha', *without)}")


def _wanted(low: str | None, scenes: str | None, split: str | None) -> set[str] | None:
    """The stems of the split; None is all. Raises Refusal where there is no such split."""
    if low is None or split is None:
        return None
    from .scores import split_of

    table = Path(scenes) if scenes is not None else Path(low).absolute().parent / "scenes.tsv"
    if not table.is_file():
        raise Refusal(f"{table}: no such file; --scenes FILE.tsv says which pictures are {split}")
    return split_of(table, split)


def _cases(
    low: str | None,
    high: str | None,
    dark: str | None,
    preds: Sequence[str],
    wanted: set[str] | None,
    report: Report,
) -> list[Case]:
    from .scores import Case, match

    first = [Path(folder) for folder in (low, high, dark) if folder is not None]
    found = match([*first, *map(Path, preds)], wanted, report)
    if dark is not None:
        return [Case(stem, paths[0], None, paths[1:]) for stem, paths in found.items()]
    return [Case(stem, paths[0], paths[1], paths[2:]) for stem, paths in found.items()]


def _labels(preds: Sequence[str]) -> list[str]:
    """The folders' names, or their whole paths where a name alone does not tell them apart."""
    from .scores import CLASSIC

    places = [Path(pred).resolve() for pred in preds]
    taken = [*METHODS, *CLASSIC, *(place.name for place in places)]
    return [place.name if taken.count(place.name) == 1 else str(place) for place in places]


def _check_sheet(target: Path) -> None:
    from .media import files, images

    if images.writable(target.suffix) is None:
        raise Refusal(f"{target}: a sheet is written as .png, .jpg and so on")
    if os.path.lexists(target):
        raise Refusal(f"{target} exists")
    files.check_name(target)
    files.check_writable(target.absolute().parent)


# --- what is printed ------------------------------------------------------------------------------


def _print_json(status: str, method: str, scores: Scores, **fields: Any) -> None:
    """JSON knows no infinity: the PSNR of equal pictures is null, and so is what is not known."""
    values = scores._asdict()
    values["seconds_per_megapixel"] = values.pop("seconds")
    known = {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
    click.echo(json.dumps({"status": status, "method": method, **fields, **known}))


def _print_csv(image: str, method: str, scores: Scores) -> None:
    import csv
    import io

    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([image, method, *scores])
    click.echo(line.getvalue())


class Line(NamedTuple):
    """A line of the table."""

    label: str
    scores: Scores
    parameters: int | None = None
    macs: int | None = None  # a megapixel of input
    measured: bool = True  # on these pictures; the paper's figures are of others


def _lines(
    contenders: Sequence[Contender], rows: Sequence[Sequence[Scores]], synthetic: bool
) -> list[Line]:
    from .scores import PUBLISHED, Scores, cost, mean

    lines = []
    for contender, scores in zip(contenders, mean(rows), strict=True):
        figures: tuple[int | None, int | None] = (None, None)
        if (enhancer := contender.enhancer) is not None:
            figures = cost(enhancer.method, enhancer.weights.options, contender.scale)
        lines.append(Line(contender.label, scores, *figures))
    if synthetic:
        published = Scores(*PUBLISHED, None, None, None, None)
        lines.append(Line("residual, published", published, measured=False))
    return lines


def _print_table(lines: Sequence[Line], count: int, niqe_model: str) -> None:
    """With rules where a terminal is wide enough, else in plain columns; empty ones left out."""
    columns: list[tuple[str, list[str]]] = [
        (f"{count} picture{'s' if count > 1 else ''}", [line.label for line in lines]),
        ("PSNR", [_cell(line.scores.psnr, ".3f") for line in lines]),
        ("SSIM", [_cell(line.scores.ssim, ".4f") for line in lines]),
        ("(PSNR of the map)", [_cell(line.scores.psnr_map, ".2f", "({})") for line in lines]),
        ("(PSNR*)", [_cell(line.scores.psnr_best_gain, ".2f", "({})") for line in lines]),
        (f"NIQE ({niqe_model})", [_cell(line.scores.niqe, ".3f") for line in lines]),
        ("newly clipped", [_cell(line.scores.newly_clipped, ".2%") for line in lines]),
        ("parameters", [_cell(line.parameters, ",d") for line in lines]),
        ("GMACs/MP", [_cell(line.macs and line.macs / 1e9, ".1f") for line in lines]),
        ("s/MP", [_cell(line.scores.seconds, ".3g") for line in lines]),
    ]
    columns = [(head, cells) for head, cells in columns if any(cells)]
    widths = [max(map(len, [head, *cells])) for head, cells in columns]

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if console.is_terminal and sum(widths) + 3 * len(widths) + 1 <= console.width:
        table = Table()
        for number, (head, _) in enumerate(columns):
            table.add_column(escape(head), justify="right" if number else "left", no_wrap=True)
        for row in zip(*(cells for _, cells in columns), strict=True):
            table.add_row(*map(escape, row))
        console.print(table)
        return
    for row in zip(*([head, *cells] for head, cells in columns), strict=True):
        padded = [row[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        click.echo("  ".join(padded).rstrip())


def _cell(value: float | None, form: str, around: str = "{}") -> str:
    return "" if value is None else around.format(format(value, form))


def _print_notes(
    rows: Sequence[Sequence[Scores]], niqe_model: str, synthetic: bool, report: Report
) -> None:
    """What the columns mean, on stderr."""
    from .scores import niqe_told

    if rows[0][0].psnr is not None:
        report.say(
            "(PSNR*): after the one gain that brings the picture closest to its reference: a"
            " diagnosis, which tells wrong exposure from wrong colour and noise; never a result",
            0,
        )
    told = niqe_told(rows)
    if any(told):
        note = f"NIQE: lower is more natural; mean of {sum(told)} of {len(told)} pictures"
        if niqe_model == OWN:
            note += "; our own model, fitted on normal photos: not comparable with published NIQE"
        report.say(note, 0)
    elif not synthetic:
        report.say("NIQE: none; it needs pictures with textured blocks of 96x96 pixels", 0)
    report.say(
        "histogram equalisation: of the luma, Y of YCrCb; gamma 2.2: x^(1/2.2);"
        " MP: megapixel of input; s/MP: median",
        0,
    )
    if synthetic:
        report.say(
            "inputs made by the residual paper's model, its true alpha given; published: the"
            " paper's figures, on pictures of its own; (PSNR of the map): of alpha D against what"
            " the model took away, where a map of zeros has the PSNR of the input",
            0,
        )


# --- the sheet ------------------------------------------------------------------------------------


def _tiles(result: Result, contenders: Sequence[Contender]) -> list[tuple[str, Rgb8]]:
    """A row of the sheet: the input, each method and prediction, the reference."""
    from . import sheets
    from .scores import CLASSIC

    named = list(zip(contenders, result.outputs, strict=True))
    row = [(f"{result.case.name}: input", result.outputs[0])]
    row += [(contender.label, out) for contender, out in named[len(CLASSIC) :]]
    if result.sample.high is not None:
        row.append(("reference", result.sample.high))
    # Six rows of large photographs would fill the memory.
    return [(label, sheets.narrowed(picture, 2400 // len(row))) for label, picture in row]


def _write_sheet(rows: Sequence[list[tuple[str, Rgb8]]], target: Path) -> None:
    from . import sheets
    from .media import files, images
    from .media.picture import Picture

    page = sheets.grid([tile for row in rows for tile in row], columns=len(rows[0]))
    data = images.encode(Picture([page], "png"), images.format_of_suffix(target.suffix) or "png")
    files.make_folder(target.absolute().parent)
    with files.publish(target, overwrite=False) as temporary:
        temporary.write_bytes(data)
