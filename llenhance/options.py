"""Options that commands share, and how their words become values. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import click

from .errors import Refusal
from .methods import METHODS

if TYPE_CHECKING:
    _FloatType = click.ParamType[float]
else:  # click before 8.4 knows no other
    _FloatType = click.ParamType

THREADS = 1024  # more than any machine has use for, and than engines take

F = TypeVar("F", bound=Callable[..., Any])
N = TypeVar("N", int, float)


def models_callback(_ctx: click.Context, _param: click.Parameter, value: str) -> list[str]:
    """METHOD[,METHOD...] or all."""
    names: list[str] = []
    for name in map(str.strip, value.split(",")):
        if name != "all" and name not in METHODS:
            raise click.BadParameter(f"{name!r} is not a method: give {', '.join(METHODS)} or all")
        names += METHODS if name == "all" else [name]
    return list(dict.fromkeys(names))


def complete_models(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names after the last comma."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in (*METHODS, "all") if name.startswith(last)]


def tile_callback(
    _ctx: click.Context, _param: click.Parameter, value: str
) -> int | Literal["auto", "off"]:
    """auto, off, or a number of pixels."""
    return _auto_off_or(value, int, lambda pixels: pixels >= 1, "a number of pixels")


def stabilize_callback(
    _ctx: click.Context, _param: click.Parameter, value: str
) -> float | Literal["auto", "off"]:
    """auto, off, or a share."""
    return _auto_off_or(value, float, lambda share: 0 <= share <= 1, "a number from 0 to 1")


def _auto_off_or(
    value: str, number: Callable[[str], N], fits: Callable[[N], bool], said: str
) -> N | Literal["auto", "off"]:
    """auto, off, or a number that fits; BadParameter, with what was ``said`` of it, for others."""
    if value == "auto":
        return "auto"
    if value == "off":
        return "off"
    with contextlib.suppress(ValueError):
        if fits(found := number(value)):
            return found
    raise click.BadParameter(f"{value!r} is neither auto, off nor {said}")


def size_callback(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Bytes, or K, M, G or T of 1024 each: 800M, 1.5G, 2GiB."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(?:([KMGT])(?:i?B)?|B)?", value.strip(), re.I)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a size: give 800M, 2G or a number of bytes")
    number, unit = found.groups()
    size = float(number) * 1024 ** (" KMGT".index(unit.upper()) if unit else 0)
    if not math.isfinite(size):
        raise click.BadParameter(f"{value!r} is not a size: it is too large")
    return int(size)


def engine_options(*, several: bool) -> Callable[[F], F]:
    """Where a network runs, with which weights and how precisely; on ``several`` GPUs or one.

    The command itself checks the device's name.
    """
    metavar, spread = "auto|cpu|cuda[:N]|mps", ""
    if several:
        metavar = "auto|cpu|cuda[:N][,cuda:N…]|mps"
        spread = " The pictures of a folder are spread over several GPUs."

    def decorate(command: F) -> F:
        for option in (
            click.option(
                "--engine",
                type=click.Choice(["auto", "openvino", "onnx", "torch"]),
                default="auto",
                show_default=True,
                help="What runs the network; auto is openvino on a CPU and torch on a GPU.",
            ),
            click.option(
                "--device",
                default="auto",
                show_default=True,
                metavar=metavar,
                help="Where it runs; a device that cannot be used is an error." + spread,
            ),
            click.option(
                "--precision",
                type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
                default="auto",
                show_default=True,
                help="Of the network's sums; auto reduces it where that is faster and not worse.",
            ),
            click.option(
                "--threads",
                type=click.IntRange(1, THREADS),
                help="CPU threads. [default: all]",
            ),
            click.option(
                "--weights",
                metavar="NAME|FILE",
                help="A shipped set, or a .safetensors file by path.",
            ),
        ):
            command = option(command)
        return command

    return decorate


def control_options(command: F) -> F:
    """One option for each control in the methods table."""
    controls = {c.name: (c, m.name) for m in METHODS.values() for c in m.controls}
    for control, method in controls.values():
        command = click.option(
            f"--{control.name}",
            type=float,
            help=f"{method}: {control.summary}, {control.low:g} to {control.high:g}."
            f" [default: {control.default:g}]",
        )(command)
    return command


class Number(click.FloatRange):
    """A number in a range, which "nan" is not: it passes every comparison."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


LONGEST = 1e9  # seconds, some thirty years: what FFmpeg still counts in its smallest time base


class Seconds(_FloatType):
    """Seconds, or [hours:]minutes:seconds."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            parts = [float(part) for part in str(value).split(":")]
        except ValueError:
            parts = []
        if not 1 <= len(parts) <= 3 or any(not 0 <= part < LONGEST for part in parts):
            self.fail(
                f"{value!r} is not a time: give seconds or [hours:]minutes:seconds", param, ctx
            )
        return sum(part * 60**place for place, part in enumerate(reversed(parts)))


SECONDS = Seconds()


def _gathering(
    argument: str, kind: Callable[..., Any], *options: Callable[..., Any]
) -> Callable[[F], F]:
    """Give a command these options, as one argument: what ``kind`` makes of them by name."""

    def decorate(command: F) -> F:
        names: list[str] = []

        @functools.wraps(command)
        def gathered(**words: Any) -> Any:
            own = {name: words.pop(name) for name in names}
            return command(**{argument: kind(**own)}, **words)

        for option in reversed(options):
            option(gathered)
        params: list[click.Parameter] = getattr(gathered, "__click_params__")  # noqa: B009
        names += [str(param.name) for param in params[-len(options) :]]
        return cast(F, gathered)

    return decorate


@dataclass(frozen=True)
class BatchOptions:
    """Which inputs are taken and how a batch is kept."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    report: str | None
    fail_fast: bool
    timeout: float | None
    preserve_times: bool


batch_options = _gathering(
    "batch",
    BatchOptions,
    click.option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Only files whose name, folder or path fits. Several times.",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Not files whose name, folder or path fits. Several times.",
    ),
    click.option(
        "--report",
        metavar="FILE.json",
        help="Write what became of every input, and the settings.",
    ),
    click.option("--fail-fast", is_flag=True, help="Stop at the first failure."),
    click.option(
        "--timeout",
        type=Number(0, min_open=True),
        metavar="SECONDS",
        help="Give up on a file after so long; the others go on. Not for standard input.",
    ),
    click.option(
        "--preserve-times", is_flag=True, help="Give outputs their input's time of change."
    ),
)


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are read and written."""

    quality: int | None
    ext: str | None
    max_pixels: int
    strip: bool
    signed: bool


picture_options = _gathering(
    "picture",
    PictureOptions,
    click.option(
        "--quality",
        type=click.IntRange(1, 100),
        help="Of JPEG, WebP, AVIF and JPEG 2000 outputs; makes lossless ones lossy.",
    ),
    click.option(
        "--ext",
        metavar="EXT",
        help="Write pictures as jpg, png, tif, …, or videos as mp4, mkv, … [default: as the input]",
    ),
    click.option(
        "--max-pixels",
        type=click.IntRange(min=1),
        default=268_000_000,
        show_default=True,
        help="Refuse pictures, and frames of videos, that claim more.",
    ),
    click.option("--strip", is_flag=True, help="Write no metadata but what showing needs."),
    click.option(
        "--no-provenance",
        "signed",
        is_flag=True,
        callback=lambda _ctx, _param, value: not value,
        help="Do not name the tool and its settings in the metadata.",
    ),
)


def _pairs(_ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE words; raises Refusal for others."""
    pairs = [word.partition("=") for word in value]
    if not all(equals for _, equals, _ in pairs):
        raise Refusal("-x takes KEY=VALUE")
    return {key: value for key, _, value in pairs}


# How videos are read and written: fields of choice.Choice, which loads more than help needs.
video_options = _gathering(
    "video",
    dict,
    click.option(
        "--stabilize",
        default="auto",
        show_default=True,
        metavar="auto|off|0..1",
        callback=stabilize_callback,
        help="Videos: even the light over time.",
    ),
    click.option("--codec", help="Videos: h264, hevc, av1, vp9, ffv1, prores, …"),
    click.option("--crf", type=int, help="Videos: quality, smaller is better."),
    click.option("--preset", help="Videos: the encoder's speed."),
    click.option("--pix-fmt", help="Videos: for instance yuv420p10le."),
    click.option(
        "-x",
        "options",
        multiple=True,
        callback=_pairs,
        metavar="KEY=VALUE",
        help="Videos: an option of the encoder. Several times.",
    ),
    click.option("--start", type=SECONDS, help="Videos: begin here, 90 or 1:30."),
    click.option("--end", type=SECONDS, help="Videos: end before this."),
    click.option(
        "--frame-rate-mode",
        "constant_rate",
        callback=lambda _ctx, _param, value: value == "cfr",
        type=click.Choice(["match", "cfr"]),
        default="match",
        show_default=True,
        help="Videos: times as the input's, or evenly spaced.",
    ),
    click.option(
        "--on-error",
        type=click.Choice(["repeat", "skip", "fail"]),
        default="repeat",
        show_default=True,
        help="Videos: what to do at a damaged frame.",
    ),
    click.option("--allow-truncated", is_flag=True, help="Take what decodes of a file cut short."),
    click.option(
        "--verify/--no-verify",
        default=True,
        show_default=True,
        help="Videos: decode the output before it gets its name.",
    ),
    click.option(
        "--restart",
        is_flag=True,
        help="Videos: throw away the pieces that an interrupted run left, instead of"
        " going on from them; --on-exists decides over finished files.",
    ),
    click.option(
        "--preview",
        is_flag=True,
        help="Videos: only a strip of five frames, before and after, as a PNG.",
    ),
    click.option(
        "--frame-rate",
        metavar="N",
        help="Of numbered pictures, such as frames_%05d.png. [default: 25]",
    ),
    click.option(
        "--raw",
        metavar="PIXELS:WxH@RATE",
        help="Videos: frames without a header on - and -o -, such as rgb24:1280x720@25"
        " (of an output, PIXELS alone count).",
    ),
    click.option("--duration", type=SECONDS, help="Of a camera that is written to a file."),
)
