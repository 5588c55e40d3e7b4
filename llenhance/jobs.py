"""Doing what was planned: reading, the network and writing overlap; what fails is reported."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import pixels
from .enhancer import Enhancer
from .errors import LLEnhanceError, MediaError
from .media import colour, files, images
from .media.picture import Picture
from .methods import METHODS, Method
from .overlap import Behind, ahead
from .pixels import Array
from .plan import Job, written_as
from .report import Report
from .version import __version__

if TYPE_CHECKING:
    from . import footage


@dataclass(frozen=True)
class Settings:
    """How every job is enhanced and written."""

    strength: float
    scale: int | None
    controls: Mapping[str, float]  # each for the methods that have it
    tile: int | Literal["auto", "off"]
    quality: int | None
    overwrite: bool

    def own(self, method: Method) -> dict[str, Any]:
        """The controls that this method has; the others are for other methods."""
        names = {control.name for control in method.controls}
        return {name: value for name, value in self.controls.items() if name in names}

    def scale_of(self, method: Method) -> int:
        """The scale that was asked for where the method has it, else its own first one."""
        return self.scale if self.scale in method.scales else method.scales[0]

    def apply(self, enhancer: Enhancer, image: Array) -> Array:
        """Enhance one picture or frame."""
        method = enhancer.method
        return enhancer.enhance(
            image,
            strength=self.strength,
            scale=self.scale_of(method),
            tile=self.tile,
            **self.own(method),
        )

    def provenance(self, model: str) -> str:
        """What is written into the metadata; no time, so that equal runs give equal bytes."""
        method = METHODS[model]
        words = [f"llenhance {__version__}", model]
        words += [f"{name} {value:g}" for name, value in self.own(method).items()]
        if self.scale_of(method) != method.scales[0]:
            words.append(f"scale {self.scale}")
        if self.strength != 1:
            words.append(f"strength {self.strength:g}")
        return ", ".join(words)


def run(
    jobs: Sequence[Job],
    enhancers: Mapping[str, Enhancer],
    report: Report,
    settings: Settings,
    video: footage.Choice | None,
) -> None:
    """Do the jobs in order, those of one source together; the report hears of every one."""
    todo = []
    for job in jobs:
        if job.skip:
            report.skipped(job.name, job.target_name, job.skip)
        else:
            todo.append(job)
    for folder in {job.target.parent for job in todo if job.target is not None}:
        files.make_folder(folder)
        files.sweep(folder)
    with report.tracking():
        bar = report.task("enhancing", len(todo)) if len(todo) > 1 else None
        for kind, group in itertools.groupby(todo, key=lambda job: job.kind):
            if kind == "picture":
                _pictures(list(group), enhancers, report, settings, bar)
                continue
            from . import footage  # loads FFmpeg, which pictures do not need

            assert video is not None
            for job in group:
                enhancer = enhancers[job.model]
                footage.enhance(
                    job,
                    partial(settings.apply, enhancer),
                    settings.scale_of(enhancer.method),
                    video,
                    report,
                    overwrite=settings.overwrite,
                )
                report.advance(bar)


def read_picture(path: Path | None) -> Picture:
    """Decode a picture from a file or standard input; raises MediaError without its name."""
    return images.read(sys.stdin.buffer.read() if path is None else files.read(path))


def _pictures(
    jobs: list[Job],
    enhancers: Mapping[str, Enhancer],
    report: Report,
    settings: Settings,
    bar: object,
) -> None:
    def decoded() -> Iterator[tuple[list[Job], Picture | Exception]]:
        for source, found in itertools.groupby(jobs, key=lambda job: job.source):
            group = list(found)
            try:
                yield group, read_picture(source)
            except MediaError as error:
                yield group, error

    with Behind() as writing:
        for group, found in ahead(decoded()):
            for job in group:
                began = time.perf_counter()
                if isinstance(found, Exception):
                    report.failed(job.name, str(found))
                    report.advance(bar)
                    continue
                try:
                    enhanced = enhance_picture(found, enhancers[job.model], settings)
                except LLEnhanceError as error:
                    report.failed(job.name, str(error))
                    report.advance(bar)
                    continue
                writing.submit(_finish, job, enhanced, began, report, settings, bar)


def enhance_picture(picture: Picture, enhancer: Enhancer, settings: Settings) -> Picture:
    """The same picture with every frame enhanced; what came with it stays."""
    return images.enhanced(picture, lambda frame: settings.apply(enhancer, frame))


def _finish(
    job: Job, picture: Picture, began: float, report: Report, settings: Settings, bar: object
) -> None:
    try:
        wanted = None if job.target is None else images.format_of_suffix(job.target.suffix)
        wanted = wanted or written_as(picture.format)
        data = images.encode(
            picture, wanted, quality=settings.quality, provenance=settings.provenance(job.model)
        )
        if job.target is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            with files.publish(
                job.target, overwrite=settings.overwrite, like=job.source
            ) as temporary:
                temporary.write_bytes(data)
    except BrokenPipeError:
        raise
    except LLEnhanceError as error:
        report.failed(job.name, str(error))
    except OSError as error:
        report.failed(job.name, f"cannot write {job.target_name}: {error.strerror or error}")
    else:
        for note in (*picture.notes, *images.losses(picture, wanted)):
            report.warn(job.name, note)
        seconds = time.perf_counter() - began
        height, width = picture.frames[0].shape[:2]
        report.done(job.name, job.target_name, seconds, model=job.model, width=width, height=height)
    finally:
        report.advance(bar)


def as_rgb8(picture: Picture) -> NDArray[np.uint8]:
    """The first frame as (H, W, 3) uint8 for a sheet; transparency is left out."""
    frame = colour.as_srgb(picture.frames[0], picture.icc, mapped=picture.linear)
    rgb, _ = pixels.split(frame)
    if rgb.dtype == np.float32:
        rgb = pixels.tone_map(rgb)
    return pixels.convert(rgb, np.dtype(np.uint8))
