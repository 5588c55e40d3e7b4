"""The command line: parse, plan, load, run, exit. Heavy imports happen inside the commands."""

from __future__ import annotations

import errno
import functools
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import click
from click.shell_completion import CompletionItem

from .errors import ExitStatus, LLEnhanceError, Refusal
from .evaluate import evaluate
from .methods import DEFAULT, METHODS
from .names import shown
from .options import (
    BatchOptions,
    PictureOptions,
    batch_options,
    complete_models,
    control_options,
    engine_options,
    models_callback,
    picture_options,
    size_callback,
    tile_callback,
    video_options,
)
from .train.command import train
from .version import __version__

if TYPE_CHECKING:
    from .jobs import Batch
    from .plan import Plan
    from .report import Report

# What this process may not have more of: then, too, no file is named.
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
STOPPED = {129: "hung up", 143: "terminated", 149: "interrupted"}  # the last by Ctrl-Break


class EnhanceByDefault(click.Group):
    """A group whose first word may be left out: then it is ``enhance``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version"):
            args = ["enhance", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = super().shell_complete(ctx, incomplete)
        enhance = self.commands["enhance"]
        with enhance.make_context("enhance", [], parent=ctx, resilient_parsing=True) as inner:
            return found + enhance.shell_complete(inner, incomplete)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # What people look for under --help is how to enhance; the other commands follow.
        enhance = self.commands["enhance"]
        with enhance.make_context("enhance", [], parent=ctx, resilient_parsing=True) as inner:
            inner.info_name = None
            formatter.write_usage(ctx.command_path, "[OPTIONS] INPUT...\n[COMMAND] ...")
            enhance.format_help_text(inner, formatter)
            enhance.format_options(inner, formatter)
        self.format_commands(ctx, formatter)
        self.format_epilog(ctx, formatter)


@click.group(
    cls=EnhanceByDefault,
    context_settings={"help_option_names": ["--help"]},
    epilog="Exit status: 0 all done, 1 something failed, 2 nothing was started, 130 interrupted."
    " A file that is named like a command is written ./NAME.",
)
@click.version_option(__version__, prog_name="llenhance")
def cli() -> None:
    """Make dark pictures and videos visible."""


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", metavar="OUT", help="A file, a folder, or - for standard output.")
@click.option(
    "-m",
    "--model",
    "models",
    default=DEFAULT,
    show_default=True,
    callback=models_callback,
    shell_complete=complete_models,
    metavar="METHOD[,METHOD...]|all",
    help="; ".join(f"{m.name}: {m.summary}" for m in METHODS.values()) + ".",
)
@click.option("-r", "--recursive", is_flag=True, help="Go into the folders of a folder.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="0 is the input, 1 is the method.",
)
@control_options
@click.option("--scale", type=int, help="neid: 2 doubles the size. [default: 1]")
@engine_options(several=True)
@click.option(
    "--tile",
    default="auto",
    show_default=True,
    metavar="auto|N|off",
    callback=tile_callback,
    help="Cut large pictures into tiles of N pixels; the result is the same.",
)
@click.option(
    "--fast",
    is_flag=True,
    help="Pictures above 1024 pixels: enhance a reduced copy and carry its light over.",
)
@click.option(
    "--max-memory",
    metavar="SIZE",
    callback=size_callback,
    help="Stay within so much, such as 800M or 2G, with smaller tiles."
    " [default: what is free, as far as it is useful]",
)
@click.option(
    "--on-exists",
    type=click.Choice(["error", "skip", "overwrite", "rename"]),
    default="error",
    show_default=True,
    help="What to do when an output is already there.",
)
@click.option(
    "--name-template",
    default="{stem}_{model}{ext}",
    show_default=True,
    help="Names of outputs beside their input, or of several methods.",
)
@picture_options
@video_options
@batch_options
@click.option("--compare", metavar="FILE", help="Also a labelled picture of input and outputs.")
@click.option("--reference", metavar="FILE", help="With --compare: a last tile.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, as a table.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="JSON on stdout, an object a line: each output, and how far videos are.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.option("-v", "--verbose", is_flag=True, help="Also what was chosen and why.")
def enhance(
    inputs: tuple[str, ...],
    output: str | None,
    models: list[str],
    recursive: bool,
    strength: float,
    scale: int | None,
    engine: str,
    device: str,
    precision: str,
    threads: int | None,
    weights: str | None,
    tile: int | Literal["auto", "off"],
    fast: bool,
    max_memory: int | None,
    on_exists: str,
    name_template: str,
    picture: PictureOptions,
    video: dict[str, Any],
    batch: BatchOptions,
    compare: str | None,
    reference: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **controls: float | None,
) -> None:
    """Make dark pictures and videos visible.

    INPUT is a picture, a video, a folder, or - for a picture on standard input. Without -o,
    photo.jpg becomes photo_dln.jpg beside it, and dir/ becomes dir_dln/.
    """
    _bound_threads(threads)  # before anything loads numpy
    # Half of what importing OpenVINO takes is its converter of models, which OpenVINO does without.
    # Here and not beside the engine: a program that imports llenhance may want that converter.
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    given = {name: value for name, value in controls.items() if value is not None}
    _check_controls(models, given, scale, strength)
    if as_json and (output == "-" or (output is None and "-" in inputs)):
        raise Refusal("--json and a picture cannot share standard output")

    from . import comparison, record
    from .choice import Choice
    from .engines import device_list
    from .jobs import Batch, Loading, Settings, check_videos
    from .plan import plan

    choice = Choice(
        **video, max_pixels=picture.max_pixels, strip=picture.strip, quality=picture.quality
    )
    settings = Settings(
        strength,
        scale,
        given,
        tile,
        picture.quality,
        overwrite=on_exists == "overwrite",
        skip=on_exists == "skip",
        max_pixels=picture.max_pixels,
        allow_truncated=choice.allow_truncated,
        strip=picture.strip,
        signed=picture.signed,
        preserve_times=batch.preserve_times,
        fast=fast,
        precision=precision,
    )
    loading = Loading(device, engine, weights, threads, precision, max_memory)
    digest = functools.cache(loading.digest)
    planned = plan(
        inputs,
        output,
        models=models,
        recursive=recursive,
        template=name_template,
        on_exists=on_exists,
        ext=picture.ext,
        include=batch.include,
        exclude=batch.exclude,
        recipe=lambda job: settings.entry(job, digest(job.model), choice),
        raw=choice.raw is not None,
        preview=choice.preview,
    )
    if choice.codec is not None:
        from .media.video.codecs import codec_row

        codec_row(choice.codec)  # a wrong one is told, used or not
    comparison.check(planned, compare, reference, on_exists)
    record.check(planned, batch.report, compare)
    _refuse_misfits(planned, batch, choice.preview)
    todo = Batch([job for job in planned.jobs if not job.skip], loading, settings, choice)
    if dry_run:
        device_list(device)  # refuses one that is not there, as the run would,
        for job in todo.jobs:
            digest(job.model)  # and weights
        check_videos(todo.jobs, settings, choice)
        _print_plan(planned, as_json)
        raise click.exceptions.Exit(ExitStatus.FAILED if planned.failures else 0)

    from .report import Report

    report = Report(
        -1 if quiet else int(verbose),
        as_json,
        keep=batch.report is not None,
        fail_fast=batch.fail_fast,
    )
    written: AbstractContextManager[object] = nullcontext()
    if batch.report is not None:
        digests = {job.model: digest(job.model) for job in planned.jobs}
        written = record.written(batch.report, planned, todo, digests, report)
    with written:
        _run(planned, todo, report, batch.timeout)
        if compare is not None:
            comparison.write(planned.jobs, Path(compare), reference, settings, report)
    report.summary()
    raise click.exceptions.Exit(report.exit_status)


def _refuse_misfits(planned: Plan, batch: BatchOptions, preview: bool) -> None:
    """Raises Refusal for options that do not go with what was planned."""
    jobs = planned.jobs
    if batch.preserve_times and not all(job.is_of_files for job in jobs):
        raise Refusal("--preserve-times goes with files, not with streams or numbered pictures")
    if preview and any(job.kind != "video" for job in jobs):
        raise Refusal("--preview takes videos")
    if sys.stdout.isatty() and any(job.target is None and not job.to_window for job in jobs):
        raise Refusal("a picture is not printed on a terminal: give -o FILE, or a pipe")
    if batch.timeout is not None and any(job.source is None or job.is_of_camera for job in jobs):
        raise Refusal("--timeout goes with files, not with standard input or a camera")


def _bound_threads(threads: int | None) -> None:
    """Tell the libraries that are loaded next, here and in workers, how many threads to use.

    OpenBLAS gets one: the evening of videos multiplies small matrices, and its helpers, which spin
    while they wait, took ten times the work from the network beside it.
    """
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        os.environ.setdefault("OPENCV_FOR_THREADS_NUM", os.environ["OMP_NUM_THREADS"])


def _run(planned: Plan, todo: Batch, report: Report, timeout: float | None) -> None:
    """Do what is planned: one file here, several in a worker process."""

    def loaded() -> None:  # from here on nothing is refused
        for source, reason in planned.failures:
            report.failed(source, reason)
        for source, reason in planned.left_out:
            report.skipped(source, None, reason, verbosity=0)
        for job in planned.jobs:
            if job.skip:
                report.skipped(job.name, job.target_name, job.skip, foreign=job.foreign)

    if not todo.jobs or (planned.failures and report.fail_fast):
        loaded()
    elif timeout is None and len({job.source for job in todo.jobs}) == 1:
        from .jobs import run_here

        run_here(todo, report, loaded)
    else:
        from .worker import run_in_workers

        run_in_workers(todo, report, loaded, timeout)


def _check_controls(
    models: Sequence[str], controls: dict[str, float], scale: int | None, strength: float
) -> None:
    """Every control must be one that some chosen method has, with a value that it takes."""
    from .controls import check, lacking

    check(METHODS[models[0]], strength=strength)
    for name, value in controls.items():
        having = [m for m in models if name in {c.name for c in METHODS[m].controls}]
        if not having:
            raise Refusal(lacking(name, *models))
        for model in having:
            check(METHODS[model], controls={name: value})
    if scale is not None and not any(scale in METHODS[model].scales for model in models):
        check(METHODS[models[0]], scale=scale)


def _print_plan(planned: Plan, as_json: bool) -> None:
    import json

    def tell(*words: str) -> None:  # a tab or a newline in a name would break the table
        click.echo("\t".join(map(shown, words)))

    for job in planned.jobs:
        status = "skip" if job.skip else "enhance"
        changed = None if job.target_state is None else "its input or a setting changed"
        reason = job.skip or changed
        why = {"reason": reason} if reason else {}
        if as_json:
            row = {"status": status, "source": job.name, "target": job.target_name}
            click.echo(json.dumps(row | {"kind": job.kind, "model": job.model} | why))
        else:
            tell(status, job.kind, job.model, job.name, job.target_name, *why.values())
    for status, key, rows in (
        ("skip", "reason", planned.left_out),
        ("failed", "error", planned.failures),
    ):
        for source, reason in rows:
            if as_json:
                click.echo(json.dumps({"status": status, "source": source, key: reason}))
            else:
                tell(status, "", "", source, reason)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def methods(as_json: bool) -> None:
    """List the methods, their controls and their weights."""
    from . import checkpoints

    rows = [
        {
            "name": m.name,
            "summary": m.summary,
            "parameters": m.parameters,
            "scales": list(m.scales),
            "controls": [
                {"name": c.name, "default": c.default, "low": c.low, "high": c.high}
                for c in m.controls
            ],
            "weights": checkpoints.sets(m),
            "paper": m.paper,
            "licence": m.licence,
        }
        for m in METHODS.values()
    ]
    if as_json:
        import json

        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "what it is", "parameters", "controls", "weights")
    for m in METHODS.values():
        controls = [f"--{c.name} {c.low:g}..{c.high:g}" for c in m.controls]
        controls += [f"--scale {scale}" for scale in m.scales[1:]]
        table.add_row(
            m.name + (" (default)" if m.name == DEFAULT else ""),
            m.summary,
            f"{m.parameters:,}",
            ", ".join(controls),
            ", ".join(checkpoints.sets(m)),
        )
    Console().print(table)


@cli.command()
def doctor() -> None:
    """Say which engines, devices and weights work on this machine."""
    from .doctor import examine

    raise click.exceptions.Exit(0 if examine() else ExitStatus.FAILED)


@cli.group()
def weights() -> None:
    """Bring in other people's weights; export graphs."""


@weights.command("import")
@click.argument("method", type=click.Choice(list(METHODS)))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT")
def import_weights(method: str, file: Path, output: Path) -> None:
    """Convert the authors' checkpoint FILE to OUT (.safetensors) with its graph beside it."""
    from . import authors, checkpoints, export
    from .media import files

    if output.suffix != ".safetensors":
        raise Refusal(f"{output}: weights are written as .safetensors")
    row = METHODS[method]
    for path in (output, *(checkpoints.graph_path(output, row, scale) for scale in row.scales)):
        if os.path.lexists(path):
            raise Refusal(f"{path} exists")
    files.check_writable(output.absolute().parent)
    export.check_usable()
    state, options = authors.read(row, file)
    files.make_folder(output.absolute().parent)
    checkpoints.save(output, row, state, options)
    export.export(row, checkpoints.find(row, output.absolute()))
    click.echo(f"{output}: {method} from {file}", err=True)


@weights.command("export")
@click.argument("method", type=click.Choice(list(METHODS)))
@click.argument("file", type=click.Path(path_type=Path))
def export_weights(method: str, file: Path) -> None:
    """Write the ONNX graph(s) of the weights FILE (.safetensors) beside it."""
    from . import checkpoints, export

    row = METHODS[method]
    found = checkpoints.find(row, file.absolute())
    export.check_usable()
    for scale in row.scales:
        graph = checkpoints.graph_path(found.path, row, scale)
        if os.path.lexists(graph) and not export.is_ours(graph):
            raise Refusal(f"{graph} exists, and is no graph of llenhance")
    for path in export.export(row, found):
        click.echo(f"{path}", err=True)


cli.add_command(train)
cli.add_command(evaluate)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _open_closed_streams() -> None:
    """Stand-ins for standard streams that are closed, as cron and daemons leave them.

    Standard input is at its end; standard output fails when it is written to, as for other
    programs; what would be told on stderr is lost. Without them the next file that is opened
    would be what is taken for standard output.
    """
    for name, flags, mode in (
        ("stdin", os.O_RDONLY, "r"),
        ("stdout", os.O_RDONLY, "w"),
        ("stderr", os.O_WRONLY, "w"),
    ):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, flags)
            os.set_inheritable(descriptor, True)  # for the worker process
            setattr(sys, name, os.fdopen(descriptor, mode))


def _print_anything() -> None:
    """Let what standard output's encoding lacks, such as "…" in Latin-1 or a name in no encoding at
    all, be printed as \\u2026: an output that tells of it is better than none."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command and exit with its status."""
    _open_closed_streams()
    _print_anything()
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_DFL:
            signal.signal(getattr(signal, name), _stop)
    try:
        # Patterns are ours to expand: click on Windows would, without regard to what is there.
        status = cli.main(prog_name="llenhance", standalone_mode=False, windows_expand_args=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk can still be told
        sys.exit(status)
    except click.exceptions.Abort:
        click.echo("llenhance: interrupted", err=True)
        sys.exit(ExitStatus.INTERRUPTED)
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        hint = f" ({where} --help)" if where else ""
        message = error.format_message().replace("\n\t", " ")  # click lists choices in lines
        if isinstance(error, click.exceptions.NoArgsIsHelpError):  # its message is all the help
            message = "a command or an input is missing"
        click.echo(f"llenhance: {shown(message)}{hint}", err=True)
        sys.exit(ExitStatus.REFUSED)
    except LLEnhanceError as error:
        click.echo(f"llenhance: {shown(str(error))}", err=True)
        sys.exit(ExitStatus.REFUSED if isinstance(error, Refusal) else ExitStatus.FAILED)
    except SystemExit as ending:
        if ending.code in STOPPED:
            with suppress(OSError):  # the terminal may be gone
                click.echo(f"llenhance: {STOPPED[ending.code]}", err=True)
        raise
    except BrokenPipeError:
        # The reader has left: end quietly, and keep Python from flushing into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitStatus.FAILED)
    except OSError as error:
        if error.filename is not None:
            click.echo(f"llenhance: {shown(str(error.filename))}: {error.strerror}", err=True)
            sys.exit(ExitStatus.FAILED)
        if error.errno in SHORT:
            click.echo(f"llenhance: {error.strerror}", err=True)
            sys.exit(ExitStatus.FAILED)
        click.echo(f"llenhance: cannot write standard output: {error.strerror}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitStatus.FAILED)


if __name__ == "__main__":
    main()
