"""What will be done: every input, its kind and its target, decided before a weight is read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import journal
from .errors import Refusal
from .inputs import STREAM, Found, Input, Source, collect, expand, is_sequence, is_special
from .media import files, images
from .media.video.places import camera_number, find, is_numbered, numbered, state_of


@dataclass(frozen=True)
class Job:
    """One source, one model, one target. ``None`` for a path is a standard stream."""

    source: Path | None
    target: Path | None
    kind: str  # "picture" or "video"
    model: str
    skip: str | None = None  # why it is not to be done
    journal_folder: Path | None = None  # the output folder whose journal tells of the target
    source_state: journal.State | None = None  # what the source was, for that journal
    target_state: journal.State | None = None  # of a target of ours that is to be made again
    foreign: bool = False  # skipped, and the target is not known to the journal
    suffix: str | None = None  # names the format on a standard stream; None for the input's own

    @property
    def name(self) -> str:
        return "standard input" if self.source is None else str(self.source)

    @property
    def target_name(self) -> str:
        if self.to_window:
            return "a window"
        return "standard output" if self.target is None else str(self.target)

    @property
    def is_of_files(self) -> bool:
        """Whether one file becomes one file: no stream, camera or numbered pictures."""
        if self.source is None or self.target is None:
            return False
        if self.kind == "picture":
            return True
        several = is_sequence(self.source) or (
            is_numbered(self.target) and self.target.suffix.lower() not in files.CONTAINERS
        )
        return not (several or self.is_of_camera)

    @property
    def is_of_camera(self) -> bool:
        return self.source is not None and camera_number(self.source) is not None

    @property
    def to_window(self) -> bool:
        """Whether a camera is shown and not written."""
        return self.target is None and self.is_of_camera

    def may_replace(self) -> bool:
        """Whether the target still is the file of ours that was to be made again."""
        if self.target_state is None or self.target is None:
            return False
        try:
            return journal.state(self.target) == self.target_state
        except OSError:
            return False


@dataclass(frozen=True)
class Plan:
    """What will be done; the inputs that cannot be read at all, and those that a folder holds
    but that are left out, each with the reason."""

    jobs: list[Job]
    failures: list[tuple[str, str]]
    left_out: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Names:
    """How targets are named."""

    output: str | None
    to_folder: bool
    inputs: int
    models: int
    template: str
    picture_suffix: str | None  # that was asked for
    video_suffix: str | None
    preview: bool  # of videos, instead of them


def plan(
    inputs: Sequence[str],
    output: str | None,
    *,
    models: Sequence[str],
    recursive: bool = False,
    template: str = "{stem}_{model}{ext}",
    on_exists: str = "error",
    ext: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    recipe: Callable[[Job], journal.Recipe] | None = None,
    raw: bool = False,
    preview: bool = False,
) -> Plan:
    """Decide every target.

    ``inputs``: files, folders, patterns, "@" with a file that lists paths, or "-" for standard
    input; a file of exactly that name comes first. ``output``: a file, a folder (if it exists as
    one, ends in a slash, or there are several inputs or models), "-" for standard output, or None:
    beside the input. ``template`` names a file beside its source, and files in ``output`` when
    there are several models. ``on_exists``: error, skip, overwrite or rename. ``ext``: the suffix
    of outputs, of pictures or of videos. ``include``, ``exclude``: patterns for names and for
    paths below an input folder. ``recipe`` gives what decides a job's result beside its input: with
    it, "skip" does those again whose input or recipe is not what the journal tells. ``raw``:
    standard input is frames without a header. ``preview``: only previews of videos are made.

    Raises Refusal when nothing may start: a target that exists (under "error"), that is the
    input, that two inputs would share, or that lies in the input folder.
    """
    _fill(template, "stem", models[0], ".png")  # a wrong one is told, used or not
    if output == "":
        raise Refusal("the output has an empty name (-o . is this folder)")
    found = Found()
    several = len(inputs) > 1 or any(is_special(name) for name in inputs)
    named = list(expand(inputs, output, found))
    _refuse_output_inside_input(named, output)
    collect(named, recursive, include, exclude, found, raw)
    sources = found.sources
    to_folder = output not in (None, STREAM) and (
        os.path.isdir(output)
        or output.endswith(("/", os.sep))
        or several
        or len(models) > 1
        or any(source.folder for source in sources)
    )
    printed = output == STREAM or (output is None and any(s.path is None for s in sources))
    if printed and (len(models) > 1 or len(sources) > 1 or len(inputs) > 1):
        raise Refusal("standard output takes one picture of one method")
    if to_folder and os.path.exists(str(output)) and not os.path.isdir(str(output)):
        raise Refusal(f"{output} is a file; a folder is needed for several outputs")
    if to_folder and _looks_like_a_file(str(output)):
        raise Refusal(f"{output} looks like a file; a folder is needed ({output}/ makes one)")
    if ext is not None and output not in (None, STREAM) and not to_folder:
        raise Refusal(f"--ext goes with names that this program makes, not with -o {output}")
    picture, video = _asked(ext)
    names = Names(output, to_folder, len(named), len(models), template, picture, video, preview)
    jobs = [_job(source, model, names) for source, model in itertools.product(sources, models)]
    _refuse_clashes(jobs)
    jobs = _settled(jobs, on_exists, recipe)
    if on_exists == "rename":
        _refuse_clashes(jobs)
    _check_places(jobs)
    return Plan(jobs, found.failures, found.left_out)


def _looks_like_a_file(output: str) -> bool:
    """Whether a name that is not there yet has the suffix of a picture or a video."""
    suffix = Path(output).suffix.lower()
    known = images.format_of_suffix(suffix) is not None or suffix in files.CONTAINERS
    return known and not output.endswith(("/", os.sep)) and not os.path.lexists(output)


# --- targets --------------------------------------------------------------------------------------


def _asked(ext: str | None) -> tuple[str | None, str | None]:
    """(suffix of pictures, suffix of videos) that ``--ext`` asks for."""
    if ext is None:
        return None, None
    suffix = "." + ext.lower().removeprefix(".")
    if suffix in files.CONTAINERS:
        return None, suffix
    if images.writable(suffix) is None:
        raise Refusal(f"--ext {ext}: neither pictures nor videos are written as {suffix}")
    return suffix, None


def _job(source: Source, model: str, names: Names) -> Job:
    target, folder = _target(source, model, names)
    suffix = "" if target is None else target.suffix
    if source.kind == "picture" and suffix and images.writable(suffix) is None:
        hint = " (a video comes as Y4M, or with --raw)" if source.path is None else ""
        raise Refusal(f"{target}: pictures are not written as {suffix}{hint}")
    preview = names.preview and source.kind == "video"
    if preview and target is not None:
        target = preview_name(target)
    job = Job(
        source.path, target, source.kind, model, journal_folder=folder, suffix=names.picture_suffix
    )
    if source.path is None or folder is None or preview:  # no journal tells of previews
        return job
    try:
        return replace(job, source_state=journal.state(source.path))
    except OSError:  # it has gone since it was recognised, and will fail
        return job


def preview_name(target: Path) -> Path:
    """Where the preview of a video goes: out.mp4 -> out.preview.png; a .png of one's own is taken.
    Raises Refusal for the name of anything else."""
    suffix = target.suffix.lower()
    if suffix == ".png" and not is_numbered(target):
        return target
    if suffix not in (*files.CONTAINERS, ".y4m") and not is_numbered(target):
        raise Refusal(f"{target}: a preview is named after a video, or .png")
    return target.with_name(f"{target.stem.replace('%', '_')}.preview.png")


def _target(source: Source, model: str, names: Names) -> tuple[Path | None, Path | None]:
    """(target, the output folder that has a journal)."""
    output = names.output
    if output == STREAM or (output is None and source.path is None):
        return None, None
    if output is not None and not names.to_folder:
        return Path(output), None
    if source.path is None:
        raise Refusal("standard input has no name: give the output as a file or -")
    if camera_number(source.path) is not None:  # a window
        if output is None:
            return None, None
        raise Refusal("a camera has no name: give the output as a file")
    name = source.under or Path(source.path.name)
    suffix = _suffix(source, names)
    stem = _stem(name)
    templated = _fill(names.template, stem, model, suffix)
    if output is None:
        if source.folder is None:
            return source.path.with_name(templated), None
        root = _beside(source.folder, model)
        return root / name.with_name(stem + suffix), root
    root = place = Path(output)
    if source.folder is not None and names.inputs > 1:
        place /= os.path.basename(os.path.abspath(source.folder))
    return place / name.with_name(templated if names.models > 1 else stem + suffix), root


def _stem(name: Path) -> str:
    """A name without its suffix, where that is one: "IMG.0001" has none."""
    known = images.format_of_suffix(name.suffix) is not None or files.is_video(name, b"")
    return name.stem if known else name.name


def _beside(folder: Path, model: str) -> Path:
    """dir_dln/ beside dir/, also for "." and "dir/sub/..", which have no name of their own."""
    whole = Path(os.path.abspath(folder))
    if not whole.name:
        raise Refusal(f"there is no place beside {whole}: give the output with -o")
    given = whole if folder.name in ("", "..") else folder
    return given.with_name(f"{given.name}_{model}")


def _suffix(source: Source, names: Names) -> str:
    """The suffix asked for, else the source's own where that can be written, else one that can."""
    assert source.path is not None
    own = source.path.suffix
    if source.kind == "video":
        if names.video_suffix is None and is_numbered(source.path):
            return names.picture_suffix or own
        return names.video_suffix or (own if own.lower() in files.CONTAINERS else ".mp4")
    if names.picture_suffix is not None:
        return names.picture_suffix
    if images.writable(own) is not None:
        return own
    named = source.format or images.format_of_suffix(own) or "png"
    return images.FORMATS[written_as(named)].suffixes[0]


def written_as(format_name: str) -> str:
    """The format that an output takes whose name does not tell: the input's, where it can be."""
    return images.FORMATS[format_name].instead or format_name


def _fill(template: str, stem: str, model: str, suffix: str) -> str:
    try:
        name = template.format(stem=stem, model=model, ext=suffix)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        raise Refusal(
            f"name template {template!r}: it may hold {{stem}}, {{model}} and {{ext}}"
        ) from None
    if not name or name in (".", "..") or "/" in name or os.sep in name:
        raise Refusal(f"name template {template!r} gives {name!r}, which is not a file name")
    return name


# --- refusals -------------------------------------------------------------------------------------


def _refuse_clashes(jobs: list[Job]) -> None:
    owners: dict[str, Job] = {}
    for job in jobs:
        if job.target is None:
            continue
        if job.source is not None and files.same(job.source, job.target):
            raise Refusal(f"{job.name}: input and output are the same file")
        _refuse_own_pictures(job)
        for path in _written(job):
            other = owners.setdefault(_place(path), job)
            if other is job:
                continue
            if other.source is not None and other.source == job.source:
                if other.model == job.model:
                    raise Refusal(f"{job.name} is named twice")
                why = f"{other.model} and {job.model} (the template needs {{model}})"
                raise Refusal(f"{job.name}: {why} would both write {path}")
            raise Refusal(f"{other.name} and {job.name} would both write {path}")
    inputs = {_place(path) for job in jobs for path in _read(job)}
    for key, job in owners.items():
        if key in inputs:
            raise Refusal(f"{job.name}: its output {job.target} is another input")


def _refuse_own_pictures(job: Job) -> None:
    """Two patterns can name the same files: f_%d.png and f_%04d.png both name f_1000.png."""
    if not _numbers(job):
        return
    own = {files.identity(path): path for path in _read(job)}
    own.pop(None, None)
    for path in _written(job):
        original = own.get(files.identity(path))
        if original is not None:
            raise Refusal(f"{job.name}: its output {job.target} would replace its input {original}")


def _numbers(job: Job) -> list[int]:
    """The numbers that pictures get which are made of pictures; none for any other job."""
    if job.kind != "video" or job.source is None or job.target is None:
        return []
    pictures = is_sequence(job.source) and images.format_of_suffix(job.target.suffix) is not None
    if not pictures or not is_numbered(job.target):
        return []
    found = find(job.source)
    first = found[0][0] if found else 0
    return list(range(first, first + len(found)))  # without the source's gaps


def _read(job: Job) -> list[Path]:
    """The files that a job reads."""
    if job.source is None:
        return []
    if job.kind == "video" and is_sequence(job.source):
        return [path for _, path in find(job.source)]
    return [job.source]


def _written(job: Job) -> list[Path]:
    """The files that a job writes, and their pattern: how many they are is not always known."""
    assert job.target is not None
    return [job.target, *(numbered(job.target, number) for number in _numbers(job))]


def _place(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _settled(
    jobs: list[Job], on_exists: str, recipe: Callable[[Job], journal.Recipe] | None
) -> list[Job]:
    """Apply the policy for targets that exist."""
    journals: dict[Path, dict[str, journal.Entry]] = {}
    settled = []
    for job in jobs:
        if job.target is None or not _is_taken(job.kind, job.target):
            settled.append(job)
            continue
        try:
            files.check_replaceable(job.target)
        except Refusal as refusal:
            raise Refusal(f"{job.name}: its output {refusal}") from None
        if on_exists == "error":
            raise Refusal(f"{job.target} exists (--on-exists skip, overwrite or rename)")
        elif on_exists == "rename":
            settled.append(replace(job, target=_free(job.kind, job.target)))
        elif on_exists != "skip":
            settled.append(job)
        elif job.journal_folder is None or job.source_state is None or recipe is None:
            settled.append(replace(job, skip=f"{job.target} exists"))
        else:
            if job.journal_folder not in journals:
                journals[job.journal_folder] = journal.read(job.journal_folder)
            settled.append(_resumed(job, journals[job.journal_folder], recipe(job)))
    return settled


def _is_taken(kind: str, target: Path) -> bool:
    """Whether something has the name of a target, or one of its numbered names."""
    if os.path.lexists(target):
        return True
    if kind != "video" or not is_sequence(target):
        return False
    return not state_of(target).is_file()  # else a run was cut off, and this one goes on


def _resumed(job: Job, entries: dict[str, journal.Entry], recipe: journal.Recipe) -> Job:
    """A job whose target exists, as the journal of its folder tells."""
    assert job.source is not None
    assert job.target is not None
    assert job.journal_folder is not None
    assert job.source_state is not None
    entry = entries.get(journal.key(job.journal_folder, job.target))
    known = journal.judge(entry, job.source, job.source_state, job.target, recipe)
    if known == "same":
        return replace(job, skip="done before")
    if known == "changed":
        assert entry is not None
        size, time = entry["output"]  # which the target still is, or it would be foreign
        return replace(job, target_state=(size, time))
    return replace(
        job,
        skip=f"{job.target} exists and is not known as made from this",
        foreign=True,
    )


def _free(kind: str, target: Path) -> Path:
    """The first of name-1, name-2, ... that no file has."""
    for number in itertools.count(1):
        free = target.with_stem(f"{target.stem}-{number}")
        if not _is_taken(kind, free):
            return free
    raise AssertionError("there is always a number more")


def _check_places(jobs: list[Job]) -> None:
    """Refuse names that are too long, folders that take no files, and those that a link leads out
    of the output."""
    checked = set()
    for job in jobs:
        if job.target is None or job.skip:
            continue
        files.check_name(job.target)
        place = job.target.parent
        if place in checked:
            continue
        checked.add(place)
        if job.journal_folder is not None and not files.inside(
            os.path.realpath(place), os.path.realpath(job.journal_folder)
        ):
            raise Refusal(f"{place} leads out of the output folder {job.journal_folder}")
        files.check_writable(place)


def _refuse_output_inside_input(named: Sequence[Input], output: str | None) -> None:
    """A folder that is read and written at once would feed on its own output."""
    if output in (None, STREAM):
        return
    target = os.path.realpath(str(output))
    for item in named:
        if item.path is None or not os.path.isdir(item.path):
            continue
        if files.inside(target, os.path.realpath(item.path)):
            raise Refusal(f"the output {output} lies inside the input folder {item.path}")
