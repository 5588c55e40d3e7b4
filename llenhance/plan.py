"""What will be done: every input, its kind and its target, decided before a weight is read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import MediaError, Refusal
from .media import files, images

SNIFFED = 4096  # bytes: a camera's raw file and a TIFF differ only that far in
STREAM = "-"  # stdin as an input, stdout as an output


@dataclass(frozen=True)
class Job:
    """One source, one model, one target. ``None`` for a path is a standard stream."""

    source: Path | None
    target: Path | None
    kind: str  # "picture" or "video"
    model: str
    skip: str | None = None  # why it is not to be done

    @property
    def name(self) -> str:
        return "standard input" if self.source is None else str(self.source)

    @property
    def target_name(self) -> str:
        return "standard output" if self.target is None else str(self.target)


@dataclass(frozen=True)
class Plan:
    """What will be done, and the inputs that cannot be read at all with the reason."""

    jobs: list[Job]
    failures: list[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """A file to enhance; ``under`` is its place in the tree of the input folder it was found in."""

    path: Path | None
    kind: str
    format: str | None  # of a picture, by its bytes
    folder: Path | None = None
    under: Path | None = None


def plan(
    inputs: Sequence[str],
    output: str | None,
    *,
    models: Sequence[str],
    recursive: bool = False,
    template: str = "{stem}_{model}{ext}",
    on_exists: str = "error",
) -> Plan:
    """Decide every target.

    ``inputs``: files, folders, or "-" for standard input. ``output``: a file, a folder (if it
    exists as one, ends in a slash, or there are several inputs or models), "-" for standard
    output, or None: beside the input. ``template`` names a file beside its source, and files in
    ``output`` when there are several models. ``on_exists``: error, skip, overwrite or rename.

    Raises Refusal when nothing may start: a target that exists (under "error"), that is the
    input, that two inputs would share, or that lies in the input folder.
    """
    _refuse_output_inside_input(inputs, output)
    sources, failures = _collect(inputs, recursive)
    to_folder = output not in (None, STREAM) and (
        Path(output).is_dir()
        or output.endswith(("/", os.sep))
        or len(inputs) > 1
        or len(models) > 1
        or any(source.folder for source in sources)
    )
    if output == STREAM and (len(inputs) > 1 or len(models) > 1 or len(sources) > 1):
        raise Refusal("standard output takes one picture of one method")
    if to_folder and Path(str(output)).exists() and not Path(str(output)).is_dir():
        raise Refusal(f"{output} is a file; a folder is needed for several outputs")
    jobs = []
    for source, model in itertools.product(sources, models):
        target = _target(source, model, output, to_folder, len(inputs), len(models), template)
        if source.kind == "video" and (target is None or source.path is None):
            raise Refusal("a video is read from a file and written to a file, not through a pipe")
        jobs.append(Job(source.path, target, source.kind, model))
    _refuse_clashes(jobs)
    jobs = [_settle(job, on_exists) for job in jobs]
    if on_exists == "rename":
        _refuse_clashes(jobs)
    for folder in {job.target.parent for job in jobs if job.target and not job.skip}:
        files.check_writable(folder)
    return Plan(jobs, failures)


def _collect(inputs: Sequence[str], recursive: bool) -> tuple[list[Source], list[tuple[str, str]]]:
    sources: list[Source] = []
    failures: list[tuple[str, str]] = []
    for name in inputs:
        if name == STREAM:
            sources.append(Source(None, "picture", None))
            continue
        path = Path(name)
        if path.is_dir():
            try:
                found = [
                    source
                    for file in files.walk(path, recursive)
                    if (source := _recognise(file, path)) is not None
                ]
            except MediaError as error:
                failures.append((name, str(error)))
                continue
            if not found:
                failures.append((name, "no pictures or videos in this folder"))
            sources += found
        elif path.is_file():
            source = _recognise(path)
            if source is None:
                failures.append((name, "neither a picture nor a video"))
            else:
                sources.append(source)
        elif path.exists():
            failures.append((name, "not a regular file"))
        else:
            failures.append((name, files.missing(path)))
    return sources, failures


def _recognise(path: Path, folder: Path | None = None) -> Source | None:
    """What a file is, by its bytes; a damaged one by its suffix, so that it is not passed over."""
    start = files.head(path, SNIFFED)
    under = path.relative_to(folder) if folder else None
    found = images.sniff(start)
    if found is None and files.is_video(path, start):
        return Source(path, "video", None, folder, under)
    if found is None and images.format_of_suffix(path.suffix) is None:
        return None
    return Source(path, "picture", found, folder, under)


def _target(
    source: Source,
    model: str,
    output: str | None,
    to_folder: bool,
    inputs: int,
    models: int,
    template: str,
) -> Path | None:
    if output == STREAM or (output is None and source.path is None):
        return None
    if output is not None and not to_folder:
        return Path(output)
    if source.path is None:
        raise Refusal("standard input has no name: give the output as a file or -")
    name = source.under or Path(source.path.name)
    suffix = _suffix(source)
    templated = _fill(template, name.stem, model, suffix)
    if output is None:
        if source.folder is None:
            return source.path.with_name(templated)
        root = _beside(source.folder, model)
        return root / name.with_suffix(suffix)
    root = Path(output)
    if source.folder is not None and inputs > 1:
        root /= os.path.basename(os.path.abspath(source.folder))
    return root / (name.with_name(templated) if models > 1 else name.with_suffix(suffix))


def _beside(folder: Path, model: str) -> Path:
    """dir_dln/ beside dir/, also for "." and "dir/sub/..", which have no name of their own."""
    whole = Path(os.path.abspath(folder))
    if not whole.name:
        raise Refusal(f"there is no place beside {whole}: give the output with -o")
    given = whole if folder.name in ("", "..") else folder
    return given.with_name(f"{given.name}_{model}")


def _suffix(source: Source) -> str:
    """The source's own suffix where that can be written, else one of the format used instead."""
    assert source.path is not None
    own = source.path.suffix
    if source.kind == "video":
        return own if own.lower() in files.CONTAINER_SUFFIXES else ".mp4"
    named = images.format_of_suffix(own)
    if named is not None and not images.FORMATS[named].writes:
        return own
    return images.FORMATS[written_as(source.format or named or "png")].suffixes[0]


def written_as(format_name: str) -> str:
    """The format that an output takes whose name does not tell: the input's, where it can be."""
    return images.FORMATS[format_name].writes or format_name


def _fill(template: str, stem: str, model: str, suffix: str) -> str:
    try:
        name = template.format(stem=stem, model=model, ext=suffix)
    except (KeyError, IndexError, ValueError):
        raise Refusal(
            f"name template {template!r}: it may hold {{stem}}, {{model}} and {{ext}}"
        ) from None
    if not name or name in (".", "..") or "/" in name or os.sep in name:
        raise Refusal(f"name template {template!r} gives {name!r}, which is no file name")
    return name


def _refuse_clashes(jobs: list[Job]) -> None:
    owners: dict[str, Job] = {}
    for job in jobs:
        if job.target is None:
            continue
        if job.source is not None and files.same(job.source, job.target):
            raise Refusal(f"{job.name}: input and output are the same file")
        key = os.path.realpath(job.target)
        other = owners.setdefault(key, job)
        if other is not job:
            raise Refusal(f"{other.name} and {job.name} would both write {job.target}")
    inputs = {os.path.realpath(job.source) for job in jobs if job.source is not None}
    for key, job in owners.items():
        if key in inputs:
            raise Refusal(f"{job.name}: its output {job.target} is another input")


def _settle(job: Job, on_exists: str) -> Job:
    """Apply the policy for a target that exists."""
    if job.target is None or not os.path.lexists(job.target):
        return job
    if job.target.is_dir():
        raise Refusal(f"{job.name}: its output {job.target} is a folder")
    if on_exists == "error":
        raise Refusal(f"{job.target} exists (--on-exists skip, overwrite or rename)")
    if on_exists == "skip":
        return replace(job, skip=f"{job.target} exists")
    if on_exists == "rename":
        for number in itertools.count(1):
            free = job.target.with_stem(f"{job.target.stem}-{number}")
            if not os.path.lexists(free):
                return replace(job, target=free)
    return job


def _refuse_output_inside_input(inputs: Sequence[str], output: str | None) -> None:
    """A folder that is read and written at once would feed on its own output."""
    if output in (None, STREAM):
        return
    target = Path(os.path.realpath(str(output)))
    for name in inputs:
        if name == STREAM or not Path(name).is_dir():
            continue
        folder = Path(os.path.realpath(name))
        if target == folder or folder in target.parents:
            raise Refusal(f"the output {output} lies inside the input folder {name}")
