"""The labelled picture of ``--compare``: an input, what each method made of it, a reference."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .errors import LLEnhanceError, MediaError, Refusal
from .inputs import SNIFFED
from .jobs import Settings
from .media import files, images
from .media.picture import Picture
from .methods import METHODS
from .pictures import read_rgb8
from .pixels import Rgb8
from .plan import Job, Plan
from .report import Report


def check(planned: Plan, compare: str | None, reference: str | None, on_exists: str) -> None:
    """Raises Refusal where a comparison is asked for that cannot or must not be written."""
    if reference is not None and compare is None:
        raise Refusal("--reference goes with --compare")
    if compare is None:
        return
    if planned.failures and not planned.jobs:
        return  # what fails is told when its turn comes
    if len({job.source for job in planned.jobs}) > 1 or any(
        j.kind != "picture" or None in (j.source, j.target) for j in planned.jobs
    ):
        raise Refusal("--compare takes one picture, from a file to files")
    if reference is not None:
        try:
            files.check_readable(Path(reference))
        except MediaError as error:
            raise Refusal(f"{reference}: {error}") from None
        if images.sniff(files.head(Path(reference), SNIFFED)) is None:
            raise Refusal(f"{reference}: is not a picture of a format that is read")
    path = Path(compare)
    if images.writable(path.suffix) is None:
        raise Refusal(f"--compare {compare}: give the file of a picture, such as sheet.png")
    files.check_replaceable(path)
    others = [job.source for job in planned.jobs] + [job.target for job in planned.jobs]
    others += [] if reference is None else [Path(reference)]
    if any(other is not None and files.same(other, path) for other in others):
        raise Refusal(f"--compare {compare}: that is an input, an output or the reference")
    if os.path.lexists(path) and on_exists != "overwrite":
        raise Refusal(f"{compare} exists (--on-exists overwrite)")
    files.check_name(path)
    files.check_writable(path.parent)


def write(
    jobs: Sequence[Job], target: Path, reference: str | None, settings: Settings, report: Report
) -> None:
    """Write it to ``target``, unless something before it failed."""
    if report.failures:
        report.warn(str(target), "is not written, since not every picture was")
        return
    try:
        _make(jobs, target, reference, settings)
    except LLEnhanceError as error:
        report.failed(str(target), str(error))


def _make(jobs: Sequence[Job], target: Path, reference: str | None, settings: Settings) -> None:
    from . import sheets  # here: few runs draw letters, and loading that slows all of them

    # The limit is for what others made; ours may be larger than their inputs.
    limit = settings.max_pixels
    paths = [("input", jobs[0].source, limit)]
    for job in jobs:
        scale = settings.scale_of(METHODS[job.model])
        paths.append((job.model, job.target, limit * scale**2))
    if reference is not None:
        paths.append(("reference", Path(reference), limit))
    tiles: list[tuple[str, Rgb8]] = []
    for label, path, most in paths:
        assert path is not None  # check() takes files only
        whole = read_rgb8(path, most, allow_truncated=settings.allow_truncated)
        width = sheets.tile_width(len(paths), tiles[0][1] if tiles else whole)
        tiles.append((label, sheets.narrowed(whole, width)))
        del whole  # one large picture at a time
    sheet = Picture([sheets.grid(tiles)], "png")
    data = images.encode(sheet, images.format_of_suffix(target.suffix) or "png")
    files.make_folder(target.parent)
    with files.publish(target, overwrite=settings.overwrite, like=jobs[0].source) as temporary:
        temporary.write_bytes(data)
