"""One video, enhanced frame by frame in constant memory: reading, the network, writing overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .errors import LLEnhanceError, MediaError
from .media import files, videos
from .overlap import Behind, ahead
from .pixels import Array
from .plan import Job
from .report import Report
from .stabilize import Stabilizer


@dataclass(frozen=True)
class Choice:
    """What a user decides about videos; None leaves it to the output's container."""

    codec: str | None = None
    crf: int | None = None
    preset: str | None = None
    pix_fmt: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    start: float | None = None  # seconds from the first frame
    end: float | None = None
    constant_rate: bool = False
    stabilize: float | Literal["auto", "off"] = "auto"
    on_error: Literal["repeat", "skip", "fail"] = "repeat"
    allow_truncated: bool = False


def check(jobs: list[Job], scales: Mapping[str, int], choice: Choice) -> None:
    """Try the encoder of every video job, before a weight is read.

    ``scales``: of each model. Raises Refusal for what cannot be written. A video that cannot be
    read is no refusal: it fails when its turn comes.
    """
    for job in jobs:
        if job.kind != "video" or job.skip or job.source is None:
            continue
        try:
            info = videos.probe(job.source)
        except MediaError:
            continue
        _encoding(job, info, scales[job.model], choice)


def enhance(
    job: Job,
    apply: Callable[[Array], Array],
    scale: int,
    choice: Choice,
    report: Report,
    *,
    overwrite: bool,
) -> None:
    """Do one video job; the report hears how it went.

    ``apply`` takes and returns a frame, (H, W, 3) RGB uint8 or uint16, ``scale`` times as large.
    """
    assert job.source is not None
    assert job.target is not None
    began = time.perf_counter()
    bar = None
    try:
        info = videos.probe(job.source)
        encoding = _encoding(job, info, scale, choice)
        bar = report.task(job.source.name, info.frames)
        with files.publish(job.target, overwrite=overwrite, like=job.source) as temporary:
            notes, count = _stream(job, info, apply, choice, encoding, temporary, report, bar)
    except LLEnhanceError as error:
        report.failed(job.name, str(error))
        return
    finally:
        report.advance(bar, done=True)
    for note in notes:
        report.warn(job.name, note)
    report.done(
        job.name,
        job.target_name,
        time.perf_counter() - began,
        model=job.model,
        frames=count,
    )


def _encoding(job: Job, info: videos.VideoInfo, scale: int, choice: Choice) -> videos.Encoding:
    assert job.target is not None
    return videos.plan_encoding(
        info,
        container=job.target.suffix,
        codec=choice.codec,
        crf=choice.crf,
        preset=choice.preset,
        pix_fmt=choice.pix_fmt,
        options=choice.options,
        scale=scale,
    )


def _stream(
    job: Job,
    info: videos.VideoInfo,
    apply: Callable[[Array], Array],
    choice: Choice,
    encoding: videos.Encoding,
    temporary: Path,
    report: Report,
    bar: object,
) -> tuple[list[str], int]:
    """Write the whole video to ``temporary`` and verify it: (notes for people, frames)."""
    assert job.source is not None
    evened = None
    if choice.stabilize != "off":
        evened = Stabilizer(None if choice.stabilize == "auto" else choice.stabilize)
    hdr = videos.HdrView(info) if info.hdr else None

    def enhanced(image: Array) -> Array:
        shown = image if hdr is None else hdr.view(image)
        result = apply(shown)
        if evened is not None:
            result = evened(shown, result)
        return result if hdr is None else hdr.apply(image, shown, result)

    reader = videos.VideoReader(
        job.source,
        info=info,
        on_error=choice.on_error,
        allow_truncated=choice.allow_truncated,
        start=choice.start,
        end=choice.end,
    )
    writer = videos.VideoWriter(
        temporary, info, plan=encoding, cut=(choice.start or 0.0, choice.end)
    )
    with reader, writer, Behind() as writing:
        frames = videos.constant_rate(reader, info) if choice.constant_rate else reader
        for frame in ahead(frames):
            writing.submit(writer.write, enhanced(frame.image), frame.pts, frame.duration)
            report.advance(bar)
    videos.verify(temporary, writer.frames, writer.duration)
    return [*reader.notes, *writer.dropped], writer.frames
