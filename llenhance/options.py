"""Options that commands share, and how their words become values. Imports nothing heavy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import click

from .errors import Refusal
from .methods import METHODS

F = TypeVar("F", bound=Callable[..., Any])


def models_callback(_ctx: click.Context, _param: click.Parameter, value: str) -> list[str]:
    """METHOD[,METHOD...] or all."""
    names = list(METHODS) if value == "all" else [name.strip() for name in value.split(",")]
    for name in names:
        if name not in METHODS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(METHODS)} and all")
    return list(dict.fromkeys(names))


def complete_models(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names after the last comma."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in (*METHODS, "all") if name.startswith(last)]


def tile_callback(
    _ctx: click.Context, _param: click.Parameter, value: str
) -> int | Literal["auto", "off"]:
    """auto, off, or a number of pixels."""
    if value == "auto":
        return "auto"
    if value == "off":
        return "off"
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither auto, off nor a number of pixels")
    return int(value)


def engine_options(command: F) -> F:
    """--engine, --device, --threads, --weights: where a network runs."""
    for option in (
        click.option(
            "--engine",
            type=click.Choice(["auto", "onnx", "torch"]),
            default="auto",
            show_default=True,
            help="What runs the network; auto is onnx on a CPU and torch on a GPU.",
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="auto|cpu|cuda[:N]|mps",
            help="Where it runs; a device that cannot be used is an error.",
        ),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all]"),
        click.option(
            "--weights", metavar="NAME|FILE", help="A shipped set, or a .safetensors file by path."
        ),
    ):
        command = option(command)
    return command


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


def video_options(command: F) -> F:
    """How videos are read and written; gathered into one argument, ``video``."""

    @functools.wraps(command)
    def gathered(
        codec: str | None,
        crf: int | None,
        preset: str | None,
        pix_fmt: str | None,
        encoder_options: tuple[str, ...],
        start: float | None,
        end: float | None,
        frame_rate_mode: str,
        stabilize: float | Literal["auto", "off"],
        on_error: Literal["repeat", "skip", "fail"],
        allow_truncated: bool,
        **others: Any,
    ) -> Any:
        pairs = [option.partition("=") for option in encoder_options]
        if not all(equals for _, equals, _ in pairs):
            raise Refusal("-x takes KEY=VALUE")
        video = {
            "codec": codec,
            "crf": crf,
            "preset": preset,
            "pix_fmt": pix_fmt,
            "options": {key: value for key, _, value in pairs},
            "start": start,
            "end": end,
            "constant_rate": frame_rate_mode == "cfr",
            "stabilize": stabilize,
            "on_error": on_error,
            "allow_truncated": allow_truncated,
        }
        return command(video=video, **others)

    for option in reversed(
        (
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
                "encoder_options",
                multiple=True,
                metavar="KEY=VALUE",
                help="Videos: an option of the encoder. Several times.",
            ),
            click.option("--start", type=SECONDS, help="Videos: begin here, 90 or 1:30."),
            click.option("--end", type=SECONDS, help="Videos: end before this."),
            click.option(
                "--frame-rate-mode",
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
            click.option(
                "--allow-truncated", is_flag=True, help="Take what decodes of a file cut short."
            ),
        )
    ):
        gathered = option(gathered)
    return cast(F, gathered)


class Seconds(click.ParamType[float]):
    """Seconds, or [hours:]minutes:seconds."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            parts = [float(part) for part in str(value).split(":")]
        except ValueError:
            parts = []
        if not 1 <= len(parts) <= 3 or any(not 0 <= part < float("inf") for part in parts):
            self.fail(f"{value!r} is no time: give seconds or [hours:]minutes:seconds", param, ctx)
        return sum(part * 60**place for place, part in enumerate(reversed(parts)))


SECONDS = Seconds()


def stabilize_callback(
    _ctx: click.Context, _param: click.Parameter, value: str
) -> float | Literal["auto", "off"]:
    """auto, off, or a share."""
    if value == "auto":
        return "auto"
    if value == "off":
        return "off"
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{value!r} is neither auto, off nor a number from 0 to 1")
    return share
