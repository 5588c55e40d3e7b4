"""Doing what was planned: reading, the network and writing overlap; what fails is reported."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import checkpoints, memory
from .choice import NOT_IN_FILE, Choice
from .engines import available_threads, device_list
from .enhancer import Enhancer, load
from .errors import Appeared, LLEnhanceError, MediaError, Refusal
from .journal import Journal
from .media import files, images
from .media.picture import MAX_PIXELS, Picture
from .media.video.places import is_numbered
from .methods import METHODS, Method
from .pictures import read_picture
from .pipelining import QUEUED, BoundedExecutor, dispatch, prefetch
from .pixels import Array
from .plan import Job, written_as
from .report import Report
from .standard_input import StandardInput
from .version import __version__

if TYPE_CHECKING:
    from . import footage


WRITERS = 2  # pictures that are encoded at a time


@dataclass(frozen=True)
class Settings:
    """How every job is enhanced and written."""

    strength: float
    scale: int | None
    controls: Mapping[str, float]  # each for the methods that have it
    tile: int | Literal["auto", "off"]
    quality: int | None
    overwrite: bool
    skip: bool = False  # a target that another run has made meanwhile is no failure
    max_pixels: int = MAX_PIXELS  # of a picture, checked before it is decoded
    allow_truncated: bool = False  # take what decodes of a damaged picture
    strip: bool = False  # write no metadata
    signed: bool = True  # name the tool and what it did in the metadata
    preserve_times: bool = False  # give targets the time of change of their source
    fast: bool = False  # the network sees a reduced copy
    precision: str = "auto"  # as it was asked for; the engine says which it is

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
            fast=self.fast,
            **self.own(method),
        )

    def together(self, enhancer: Enhancer) -> footage.Together | None:
        """How frames of a video go through the network on a GPU; None on a CPU, which gains
        nothing by taking several at once, and where tiles of a size or reduced copies were
        asked for."""
        from . import footage

        if not enhancer.device.startswith("cuda") or self.tile != "auto" or self.fast:
            return None
        method = enhancer.method
        return footage.Together(
            partial(enhancer.budget.at_once, scale=self.scale_of(method)),
            partial(
                enhancer.enhance_batches,
                strength=self.strength,
                scale=self.scale_of(method),
                **self.own(method),
            ),
        )

    def recipe(self, enhancer: Enhancer) -> str:
        """All that the pixels depend on beside the source."""
        digest = enhancer.weights.digest
        made = f"{self.provenance(enhancer.method.name, digest)}, weights {digest}"
        return f"{made}, {self.precision}"  # as asked for: a device may come or go

    def signature(self, model: str, digest: str) -> str | None:
        """The provenance that an output carries; None where it is to carry none."""
        return self.provenance(model, digest) if self.signed and not self.strip else None

    def provenance(self, model: str, digest: str) -> str:
        """What is written into the metadata; no time, so that equal runs give equal bytes."""
        method = METHODS[model]
        words = [f"llenhance {__version__}", model]
        words += [f"{name} {value:g}" for name, value in self.own(method).items()]
        if self.scale_of(method) != method.scales[0]:
            words.append(f"scale {self.scale}")
        if self.strength != 1:
            words.append(f"strength {self.strength:g}")
        if self.fast:
            words.append("fast")
        words.append(f"weights {digest[:12]}")
        return ", ".join(words)

    def entry(self, job: Job, digest: str, choice: Choice) -> dict[str, Any]:
        """What the journal tells of how a target was made: all that its bytes depend on beside the
        source. Not what decides whether it is made at all, nor the device: engines agree."""
        method = METHODS[job.model]
        controls = {c.name: self.controls.get(c.name, c.default) for c in method.controls}
        made: dict[str, Any] = {
            "version": __version__,
            "model": job.model,
            "weights": digest,
            "controls": controls,
            "scale": self.scale_of(method),
            "strength": self.strength,
            "fast": self.fast,
            "precision": self.precision,
            "strip": self.strip,
            "signed": self.signed,
        }
        if job.kind == "picture" or (job.target is not None and is_numbered(job.target)):
            made["quality"] = self.quality
        if job.kind == "video":
            made["video"] = {k: v for k, v in asdict(choice).items() if k not in NOT_IN_FILE}
        return made


@dataclass(frozen=True)
class Loading:
    """Where networks run, and with which weights."""

    device: str = "auto"  # or several, "cuda:0,cuda:1": pictures are spread over them
    engine: str = "auto"
    weights: str | None = None
    threads: int | None = None
    precision: str = "auto"
    max_memory: int | None = None  # bytes that the process may have

    def digest(self, model: str) -> str:
        """The SHA-256 of the weights that would be loaded; raises WeightsError."""
        return checkpoints.find(METHODS[model], self.weights).digest

    def open(self, models: Iterable[str], report: Report) -> dict[str, Enhancer]:
        """An enhancer for each model, on the first device; raises what
        :func:`llenhance.enhancer.load` does, and DeviceError where any of the devices is not there.
        """
        return self._open(models, report, device_list(self.device)[0])

    @property
    def overlaps(self) -> bool:
        """Whether other pictures may be read and written while the network is at one: not within a
        bound on memory, which is counted for one at a time."""
        return self.max_memory is None

    def open_others(self, models: Iterable[str], report: Report) -> list[dict[str, Enhancer]]:
        """The same once more for each of the other devices; none where one picture is done at a
        time."""
        models, others = list(models), device_list(self.device)[1:]
        if others and not self.overlaps:
            report.say("within a max memory one picture is done at a time, on the first device", 0)
            return []
        return [self._open(models, report, device) for device in others]

    def _open(self, models: Iterable[str], report: Report, device: str) -> dict[str, Enhancer]:
        enhancers = {}
        for model in dict.fromkeys(models):
            enhancer = load(
                model,
                device=device,
                engine=self.engine,
                weights=self.weights,
                threads=self.threads,
                precision=self.precision,
                max_memory=self.max_memory,
            )
            enhancer.budget.tell = report.say
            report.say(str(enhancer))
            enhancers[model] = enhancer
        if self.device == "auto":
            used = ((e.engine.name, e.device, e.note) for e in enhancers.values())
            for chosen in dict.fromkeys(used):
                report.say("using {} on {} ({})".format(*chosen), 0)
        return enhancers


@dataclass(frozen=True)
class Batch:
    """All that doing the jobs needs."""

    jobs: list[Job]
    loading: Loading
    settings: Settings
    choice: Choice


class Watch:
    """Hears where each job stands: at work in a stage, waiting for the next one, over.

    Stages are "check", "read", "enhance", "write" and "video". Called from several threads.
    """

    def begins(self, job: Job, stage: str) -> None: ...

    def pauses(self, job: Job) -> None: ...

    def over(self, job: Job) -> None: ...

    @contextlib.contextmanager
    def at(self, stage: str, *jobs: Job) -> Iterator[None]:
        """While the block runs, the jobs are at work in the stage."""
        for job in jobs:
            self.begins(job, stage)
        yield
        for job in jobs:  # not when something is raised: then it is over, or all is
            self.pauses(job)


def check_videos(
    jobs: Sequence[Job],
    settings: Settings,
    choice: Choice,
    watch: Watch | None = None,
) -> None:
    """Try the encoders of the videos, where there are any, and the room for them. Raises Refusal.

    ``watch`` knows which one is at fault where a header ends the process.
    """
    videos = [job for job in jobs if job.kind == "video"]
    if not videos:
        return
    from . import footage  # loads FFmpeg, which pictures do not need

    scales = {job.model: settings.scale_of(METHODS[job.model]) for job in videos}
    footage.check(videos, scales, choice, partial((watch or Watch()).at, "check"))


def run_here(batch: Batch, report: Report, loaded: Callable[[], None]) -> None:
    """Do a batch in this process. ``loaded`` is called when nothing can be refused any more."""
    loading = batch.loading
    check_videos(batch.jobs, batch.settings, batch.choice)
    enhancers = loading.open((job.model for job in batch.jobs), report)
    loaded()
    with report.tracking():
        run(
            batch.jobs,
            enhancers,
            report,
            batch.settings,
            batch.choice,
            Watch(),
            overlap=loading.overlaps,
        )


def run(
    jobs: Sequence[Job],
    enhancers: Mapping[str, Enhancer],
    report: Report,
    settings: Settings,
    choice: Choice,
    watch: Watch,
    *,
    overlap: bool = True,
    others: Sequence[Mapping[str, Enhancer]] = (),
) -> None:
    """Do the jobs in order, those of one source together; the report hears of every one.

    ``others``: enhancers as ``enhancers``, each on another device; each device takes the next
    picture when it is free. Videos, and pictures without ``overlap``, when one job is at work at a
    time, have the first device alone.
    """
    with Work(enhancers, report, settings, choice, watch, others) as work:
        jobs = work.with_folders(jobs)
        for kind, group in itertools.groupby(jobs, key=lambda job: job.kind):
            if kind == "picture":
                work.pictures(list(group), overlap)
                continue
            for job in group:
                if not report.stopping:
                    work.video(job)


def _folded(target: Path) -> str:
    """One word for names that some file systems take for one."""
    return unicodedata.normalize("NFC", str(target)).casefold()


# Jobs of one source, what it held or why it cannot be read, and the seconds that took.
Decoded = tuple[list[Job], Picture | Exception, float]


class Work:
    """Everything that doing the jobs needs; a context that ends with the journals closed."""

    def __init__(
        self,
        enhancers: Mapping[str, Enhancer],
        report: Report,
        settings: Settings,
        choice: Choice,
        watch: Watch,
        others: Sequence[Mapping[str, Enhancer]] = (),
    ) -> None:
        self.enhancers, self.report, self.settings = enhancers, report, settings
        self.others = others
        self.choice, self.watch = choice, watch
        self.journals: dict[Path, Journal | None] = {}
        self.telling = threading.Lock()  # writers tell journal and report one after the other
        self.twins: set[str] = set()  # targets whose names differ by case alone, as one word
        self.made: set[tuple[int, int] | None] = set()  # those of them that are there
        self.naming = threading.Lock()

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        for journal in self.journals.values():
            if journal is not None:
                with contextlib.suppress(OSError):
                    journal.close()

    def pictures(self, jobs: list[Job], overlap: bool) -> None:
        """Reading ahead, the network here (or in a thread for each of several devices), writing
        behind; or one after the other.

        Written by two: a large WebP takes as long to encode as the network takes for several
        photos, and would hold up those behind it while a core has nothing to do."""
        with contextlib.ExitStack() as stack:
            standard_input = StandardInput()
            pictures: Iterator[Decoded] = self._decoded(jobs, standard_input)
            submit: Callable[..., None] = _at_once
            if overlap:
                submit = stack.enter_context(BoundedExecutor(QUEUED + 1, _writers())).submit
                ahead = prefetch(pictures, leave=standard_input.leave)
                pictures = stack.enter_context(contextlib.closing(ahead))

            def work(enhancers: Mapping[str, Enhancer], decoded: Decoded) -> None:
                group, found, seconds = decoded
                for job in group:
                    if self.report.stopping:
                        return
                    self._enhance(job, enhancers[job.model], found, seconds, submit)

            wanted = itertools.takewhile(lambda _: not self.report.stopping, pictures)
            if overlap and self.others:
                dispatch(wanted, [partial(work, e) for e in (self.enhancers, *self.others)])
                return
            for decoded in wanted:
                work(self.enhancers, decoded)
                del decoded  # or it would be held while the next one is decoded

    def _decoded(self, jobs: list[Job], standard_input: StandardInput) -> Iterator[Decoded]:
        settings = self.settings
        for source, found in itertools.groupby(jobs, key=lambda job: job.source):
            group = list(found)
            result: Picture | Exception
            began = time.perf_counter()
            with self.watch.at("read", *group):
                try:
                    result = read_picture(
                        standard_input if source is None else source,
                        settings.max_pixels,
                        allow_truncated=settings.allow_truncated,
                    )
                except (MediaError, MemoryError) as error:
                    result = error
            taken = time.perf_counter() - began
            yield group, result, taken
            del result

    def _enhance(
        self,
        job: Job,
        enhancer: Enhancer,
        found: Picture | Exception,
        seconds: float,
        submit: Callable[..., None],
    ) -> None:
        began = time.perf_counter()
        try:
            if isinstance(found, Exception):
                raise found
            with self.watch.at("enhance", job):
                enhanced = enhance_picture(found, enhancer, self.settings)
        except (LLEnhanceError, MemoryError) as error:
            self._failed(job, error, seconds + time.perf_counter() - began)
        else:
            submit(self._write, job, enhanced, seconds + time.perf_counter() - began)

    def _write(self, job: Job, picture: Picture, seconds: float) -> None:
        """Encode and publish; ``seconds``: what the job has taken so far."""
        if self.report.stopping:
            return
        began = time.perf_counter()
        settings = self.settings
        unkept: list[str] = []
        suffix = job.suffix if job.target is None else job.target.suffix
        wanted = images.format_of_suffix(suffix or "") or written_as(picture.format)
        digest = self.enhancers[job.model].weights.digest
        signature = settings.signature(job.model, digest)
        self.watch.begins(job, "write")
        try:
            data = images.encode(
                picture,
                wanted,
                quality=settings.quality,
                strip=settings.strip,
                provenance=signature,
            )
            if job.target is None:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            else:
                with (
                    self._alone(job.target),
                    files.publish(
                        job.target,
                        overwrite=settings.overwrite or job.may_replace(),
                        like=job.source,
                        times=settings.preserve_times,
                        tell=unkept.append,
                    ) as temporary,
                ):
                    temporary.write_bytes(data)
        except BrokenPipeError:
            raise
        except Appeared as error:
            self._appeared(job, error, seconds + time.perf_counter() - began)
            return
        except (LLEnhanceError, MemoryError) as error:
            self._failed(job, error, seconds + time.perf_counter() - began)
            return
        except OSError as error:
            reason = f"cannot write {job.target_name}: {error.strerror or error}"
            self._failed(job, MediaError(reason), seconds + time.perf_counter() - began)
            return
        height, width = picture.frames[0].shape[:2]
        fields: dict[str, Any] = {"model": job.model, "width": width, "height": height}
        notes = [*picture.notes, *images.losses(picture, wanted), *unkept]
        if picture.truncated:
            fields["truncated"] = True
            notes.insert(0, "is damaged; what could be decoded was taken (--allow-truncated)")
        with self.telling:
            self._keep(job, digest)
            seconds += time.perf_counter() - began
            self.report.done(job.name, job.target_name, seconds, warnings=notes, **fields)
        self.watch.over(job)

    def video(self, job: Job) -> None:
        """One video job, from its reading to its journal."""
        from . import footage

        enhancer, settings = self.enhancers[job.model], self.settings
        self.watch.begins(job, "video")
        began = time.perf_counter()
        try:
            made = footage.enhance(
                job,
                partial(settings.apply, enhancer),
                settings.scale_of(enhancer.method),
                self.choice,
                self.report,
                recipe=settings.recipe(enhancer),
                overwrite=settings.overwrite or job.may_replace(),
                signature=settings.signature(job.model, enhancer.weights.digest),
                together=settings.together(enhancer),
            )
        except Appeared as error:
            self._appeared(job, error, time.perf_counter() - began)
            return
        if made and job.target is not None:
            if settings.preserve_times and job.source is not None:
                try:
                    files.copy_times(job.source, job.target)
                except OSError as error:
                    reason = f"its time of change is not kept: {error.strerror or error}"
                    self.report.warn(job.name, reason)
            self._keep(job, enhancer.weights.digest)
        self.watch.over(job)

    @contextlib.contextmanager
    def _alone(self, target: Path) -> Iterator[None]:
        """A block that publishes a target. Names that differ by case alone are one file on many
        memory cards: of those, one at a time, and none over what this run has made."""
        if _folded(target) not in self.twins:
            yield
            return
        with self.naming:
            if files.identity(target) in self.made:
                raise Appeared(target, "another output of this run has that name here")
            yield
            self.made.add(files.identity(target))

    def with_folders(self, jobs: Sequence[Job]) -> list[Job]:
        """Make the targets' folders, and learn which of their names may be one file; the jobs but
        for those whose folder cannot be made."""
        names = Counter(_folded(job.target) for job in jobs if job.target is not None)
        self.twins = {name for name, count in names.items() if count > 1}
        failures: dict[Path, Refusal] = {}
        for folder in dict.fromkeys(job.target.parent for job in jobs if job.target is not None):
            try:
                files.make_folder(folder)
            except Refusal as refusal:  # a name that this file system does not take
                failures[folder] = refusal
            else:
                files.sweep(folder)
        kept = []
        for job in jobs:
            failure = None if job.target is None else failures.get(job.target.parent)
            if failure is None:
                kept.append(job)
            elif not self.report.stopping:
                self._failed(job, failure, 0.0)
        return kept

    def _appeared(self, job: Job, error: Appeared, seconds: float) -> None:
        """The target is another run's by now."""
        if not self.settings.skip:
            self._failed(job, error, seconds)
            return
        if job.kind == "video" and job.target is not None:
            from .segments import forget

            forget(job.target)
        with self.telling:
            reason = f"{job.target_name}: {error.reason}"
            self.report.skipped(job.name, job.target_name, reason, foreign=True, model=job.model)
        self.watch.over(job)

    def _failed(self, job: Job, error: Exception, seconds: float) -> None:
        reason = str(error)
        if isinstance(error, MemoryError):
            reason = memory.TOO_LITTLE
        fields = {"target": job.target_name, "model": job.model, "seconds": round(seconds, 3)}
        with self.telling:
            self.report.failed(job.name, reason, **fields)
        self.watch.over(job)

    def _keep(self, job: Job, digest: str) -> None:
        """Tell the journal, where the job has one. That it cannot be told is no failure: the
        target is there, and will be kept as one that the journal does not know."""
        if (
            job.journal_folder is None
            or job.source is None
            or job.target is None
            or job.source_state is None
        ):
            return
        try:
            if job.journal_folder not in self.journals:
                self.journals[job.journal_folder] = None
                self.journals[job.journal_folder] = Journal(job.journal_folder)
            journal = self.journals[job.journal_folder]
            if journal is not None:
                recipe = self.settings.entry(job, digest, self.choice)
                journal.add(job.source, job.source_state, job.target, recipe)
        except OSError as error:
            self.journals[job.journal_folder] = None
            reason = error.strerror or str(error)
            self.report.warn(str(job.journal_folder), f"its journal cannot be written: {reason}")


def _writers() -> int:
    """How many pictures are encoded at a time."""
    return min(WRITERS, available_threads())


def _at_once(work: Callable[..., None], *arguments: object) -> None:
    work(*arguments)


def enhance_picture(picture: Picture, enhancer: Enhancer, settings: Settings) -> Picture:
    """The same picture with every frame enhanced; what came with it stays."""
    return images.enhanced(picture, lambda frame: settings.apply(enhancer, frame))
