"""One video, enhanced frame by frame in constant memory: reading, the network, writing overlap."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from . import ends, memory, segments
from .choice import NOT_IN_FRAMES, Choice
from .ends import Source
from .engines import available_threads
from .errors import Appeared, LLEnhanceError, MediaError, Refusal
from .media import files, videos
from .media.video.places import find
from .pipelining import QUEUED, BoundedExecutor, prefetch
from .pixels import Array
from .plan import Job
from .preview import preview
from .progress import Growing, Progress, megabytes
from .report import Report
from .segments import Pieces, Runs, Segments
from .stabilize import Stabilizer
from .version import __version__

__all__ = ["Choice", "check", "enhance"]

Apply = Callable[[Array], Array]  # a frame (H, W, 3) RGB uint8 or uint16 to the enhanced one
MOST = 8  # frames in one run of the network

# A frame, and what the reader has said so far where a piece of the video begins with it.
Step = tuple[videos.Frame, list[str] | None]


@dataclass(frozen=True)
class Together:
    """Several frames through the network at once, for devices that are faster so.

    ``most``: of frames of this height and width, in one run. ``apply``: batches of frames to
    batches of enhanced frames, in order; it may take the next batch before it gives the last one.
    """

    most: Callable[[int, int], int]
    apply: Callable[[Iterable[list[Array]]], Iterator[list[Array]]]


class Sink(Growing, Protocol):
    """Takes the enhanced frames."""

    def write(self, image: Array, pts: int, duration: int, /) -> None: ...


def check(
    jobs: Iterable[Job],
    scales: Mapping[str, int],
    choice: Choice,
    at: Callable[[Job], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> None:
    """Try the encoder of every video job, and the room for its output, before a weight is read.

    ``scales``: of each model. ``at`` is entered with each job while its header is read. Raises
    Refusal for what cannot be written. A video that cannot be read is no refusal: it fails when its
    turn comes.
    """
    needed: dict[int, int] = {}  # bytes on each disk
    for job in jobs:
        with at(job):
            least = _check_one(job, scales[job.model], choice)
        if job.target is None or not least:
            continue
        folder = next(p for p in job.target.absolute().parents if p.is_dir())
        disk = os.stat(folder).st_dev
        needed[disk] = needed.get(disk, 0) + least
        free = shutil.disk_usage(folder).free
        if free < needed[disk]:
            raise Refusal(
                f"no room for {job.target}: at least {megabytes(needed[disk])} are needed,"
                f" {megabytes(free)} are free"
            )


def _check_one(job: Job, scale: int, choice: Choice) -> int:
    """Try the encoder of one job; returns the bytes that its output will need, as far as known."""
    ends.check(job.source, job.target, choice)
    if choice.preview:
        return 0
    if job.source is None or ends.is_camera(job.source):
        _check_unopened(job, scale, choice)
        return 0
    try:
        source = ends.open_source(job.source, choice)
    except MediaError:
        return 0
    encoding = _encoding(job, source.info, scale, choice)
    if job.target is None:
        return 0
    return max(0, _least(source, encoding, scale, choice) - segments.size_of(job.target))


def _check_unopened(job: Job, scale: int, choice: Choice) -> None:
    """Try the encoder for a source that can be opened once only, when its turn comes."""
    info, certain = ends.foreseen(job.source, choice)
    if not certain and ends.place(job.source, job.target) == "file":
        if choice.codec is None:  # it depends on the frames
            return
        choice = replace(choice, options={})  # some are for frames of a certain kind
    _encoding(job, info, scale, choice)


def enhance(
    job: Job,
    apply: Apply,
    scale: int,
    choice: Choice,
    report: Report,
    *,
    recipe: str,
    overwrite: bool,
    signature: str | None = None,
    together: Together | None = None,
) -> bool:
    """Do one video job; the report hears how it went. Whether its target was made whole.

    ``apply`` takes and returns a frame, (H, W, 3) RGB uint8 or uint16, ``scale`` times as large.
    ``recipe`` names the method, its weights and its settings; ``signature`` is written into the
    metadata of the output. ``together`` takes the place of ``apply`` for the frames of a video,
    not for a preview or a camera, whose frames come one by one. Raises Appeared, of which the
    report has not heard, where the target is not to be replaced and another run has made it
    meanwhile, or is at it.
    """
    began = time.perf_counter()
    fields: dict[str, Any] = {}
    notes: list[str] = []
    ended: BaseException | None = None
    try:
        if choice.preview and job.source is not None and job.target is not None:
            preview(job.source, apply, choice, job.target, overwrite=overwrite)
        else:
            source = ends.open_source(job.source, choice)
            work = _Work(job, source, apply, scale, choice, report, signature, together)
            notes, fields["frames"] = work.run(recipe, overwrite=overwrite)
            ended = work.ended
    except LLEnhanceError as error:
        if isinstance(error, Appeared) and error.target == job.target:
            raise
        _failed(job, str(error), report, began)
        return False
    except MemoryError:
        _failed(job, memory.TOO_LITTLE, report, began)
        return False
    for note in notes:
        report.warn(job.name, note)
    if isinstance(ended, MediaError):
        reason = f"{ended} (what came until then is in {job.target_name})"
        _failed(job, reason, report, began)
        return False
    report.done(job.name, job.target_name, time.perf_counter() - began, model=job.model, **fields)
    if ended is not None:
        raise ended
    return True


def _failed(job: Job, reason: str, report: Report, began: float) -> None:
    seconds = round(time.perf_counter() - began, 3)
    report.failed(job.name, reason, target=job.target_name, model=job.model, seconds=seconds)


def _encoding(
    job: Job, info: videos.VideoInfo, scale: int, choice: Choice
) -> videos.Encoding | None:
    """How a video file is encoded; None where frames go elsewhere. Raises Refusal."""
    where = ends.place(job.source, job.target)
    if where in ("y4m", "pipe"):
        videos.pipe_format(
            info, scale, None if where == "y4m" else choice.raw_format, choice.pix_fmt
        )
    if where != "file":
        return None
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


def _least(source: Source, encoding: videos.Encoding | None, scale: int, choice: Choice) -> int:
    """Bytes that an output will hardly do without: half the source's, grown with the frames; a
    fifth of the pixels where nothing or little is lost, a five-hundredth where the source's size
    tells nothing."""
    info = source.info
    share = source.share(choice)
    lossless = encoding is None or encoding.encoder in ("ffv1", "prores_ks")
    if lossless or source.path is None:
        pixels = info.frames * share * info.width * info.height * scale**2
        least = pixels * (3 if info.bit_depth > 8 else 1.5) / (5 if lossless else 500)
    else:
        least = source.state[0] * share * scale**2 / 2
    pieces = info.frames * share > segments.FRAMES and encoding is not None
    return round(least) * (2 if pieces else 1)  # pieces and whole are there at once


class _Work:
    """One video on its way from its reader through the network to its place."""

    def __init__(
        self,
        job: Job,
        source: Source,
        apply: Apply,
        scale: int,
        choice: Choice,
        report: Report,
        signature: str | None,
        together: Together | None,
    ) -> None:
        self._signature, self._tags = signature, {"software": signature} if signature else {}
        self._job, self._source, self._apply, self._choice = job, source, apply, choice
        self._scale, self._report, self._info = scale, report, source.info
        self._evened: Stabilizer | None = None
        if choice.stabilize != "off":
            self._evened = Stabilizer(None if choice.stabilize == "auto" else choice.stabilize)
        self._hdr = videos.HdrView(self._info) if self._info.hdr else None
        self._cut = (choice.start or 0.0, choice.end)
        self._together, self._most = together, 1
        if together is not None and not ends.is_camera(job.source):
            self._most = min(MOST, together.most(self._info.height, self._info.width))
        self.ended: BaseException | None = None  # what ended a recording before its time

    def run(self, recipe: str, *, overwrite: bool) -> tuple[list[str], int]:
        """Do it: (notes for people, frames)."""
        target = self._job.target
        where = ends.place(self._job.source, target)
        if where == "window":
            return self._live()
        if where == "pipe" or target is None:
            return self._piped()
        if where == "pictures":
            return self._as_pictures(target, recipe, overwrite)
        if not overwrite and os.path.lexists(target):  # before its frames are made
            raise Appeared(target)
        encoding = _encoding(self._job, self._info, self._scale, self._choice)
        total = self._source.total(self._choice)
        long = total is None or total > segments.FRAMES
        if encoding is not None and not self._source.once and long:
            return self._in_segments(target, encoding, recipe, overwrite)
        camera = ends.is_camera(self._job.source)
        with self._published(target, overwrite) as temporary:
            writer: videos.VideoWriter | videos.PipeWriter
            if encoding is None:
                chosen = videos.pipe_format(self._info, self._scale, None, self._choice.pix_fmt)
                with temporary.open("wb") as file:
                    writer = videos.PipeWriter(file, self._info, chosen)
                    with writer:
                        notes = self._all(writer)
                seconds = float(writer.frames / self._info.frame_rate)
            else:
                writer = videos.VideoWriter(
                    temporary,
                    self._info,
                    encoding,
                    cut=self._cut,
                    tags=self._tags,
                    strip=self._choice.strip,
                    threads=available_threads(),
                )
                with writer:
                    notes = self._all(writer)
                seconds = writer.duration
            if self._choice.verify and not camera:
                videos.verify(temporary, writer.frames, seconds)
        notes = [*notes, *writer.dropped]
        if self._choice.verify and camera:  # which does not come again: it has its name first
            try:
                videos.verify(target, writer.frames, seconds)
            except MediaError as error:
                notes.append(str(error))
        return notes, writer.frames

    def _published(self, target: Path, overwrite: bool) -> AbstractContextManager[Path]:
        tell = partial(self._report.warn, self._job.name)
        return files.publish(target, overwrite=overwrite, like=self._source.path, tell=tell)

    def _all(self, sink: Sink) -> list[str]:
        """Every frame into the sink; what the reader has to say."""
        reader = self._source.reader(self._choice.start)
        self._stream(reader, self._timed(reader), sink)
        return reader.notes

    def _piped(self) -> tuple[list[str], int]:
        raw = self._choice.raw_format
        chosen = videos.pipe_format(self._info, self._scale, raw, self._choice.pix_fmt)
        writer = videos.PipeWriter(sys.stdout.buffer, self._info, chosen, raw=raw is not None)
        with writer:
            notes = self._all(writer)
        return [*notes, *writer.dropped], writer.frames

    def _live(self) -> tuple[list[str], int]:
        """Show before and after until the window is closed; windows belong to this thread."""
        reader = self._source.reader(None)
        with (
            reader,
            videos.Window() as window,
            closing(prefetch(reader, 1)) as incoming,
            suppress(videos.Closed),
        ):
            for frame in incoming:
                window.show(frame.image, self._enhanced(frame.image))
        return reader.notes, window.frames

    def _as_pictures(self, target: Path, recipe: str, overwrite: bool) -> tuple[list[str], int]:
        """Write numbered pictures, going on where an earlier run ended."""
        quality, signature = self._choice.quality, self._signature
        first = videos.first_number(self._info)

        def writer(number: int, replaces: bool) -> videos.SequenceWriter:
            return videos.SequenceWriter(
                target,
                self._info,
                first=number,
                overwrite=replaces,
                quality=quality,
                software=signature,
                like=self._source.path,
            )

        if self._source.once:  # there is nothing to go back to
            with writer(first, overwrite) as pictures:
                notes = self._all(pictures)
            return [*notes, *pictures.dropped], pictures.frames
        encoder = {"first": first, "quality": quality, "signed": signature is not None}
        pieces = Runs(
            target,
            self._info,
            self._made_by(encoder, recipe),
            writer,
            first,
            restart=self._choice.restart,
            overwrite=overwrite,
        )

        def finished() -> list[str]:
            end = first + pieces.frames
            pieces.remove()
            beyond = [number for number, _ in find(target) if number >= end]
            if not beyond:
                return pieces.notes
            left = f"pictures {beyond[0]} to {beyond[-1]} are of an earlier run, and still there"
            return [*pieces.notes, left]

        return self._in_pieces(pieces, finished)

    def _in_segments(
        self, target: Path, encoding: videos.Encoding, recipe: str, overwrite: bool
    ) -> tuple[list[str], int]:
        """Write the video piece by piece, going on where an earlier run ended, and join them."""

        def writer(place: Path) -> videos.VideoWriter:
            threads = available_threads()
            return videos.VideoWriter(
                place, self._info, encoding, cut=self._cut, part=True, threads=threads
            )

        pieces = Segments(
            target,
            self._info,
            self._made_by(asdict(encoding), recipe),
            writer,
            restart=self._choice.restart,
        )
        return self._in_pieces(pieces, lambda: self._join(target, pieces, encoding, overwrite))

    def _in_pieces(
        self, pieces: Pieces, finished: Callable[[], list[str]]
    ) -> tuple[list[str], int]:
        """Do the pieces that are not there; ``finished`` makes of them what was asked for."""
        try:
            with pieces:
                if pieces.discarded:
                    self._report.warn(self._job.name, f"{pieces.discarded}: starting afresh")
                if not pieces.whole:
                    self._add_pieces(pieces)
                count = pieces.frames
                return finished(), count
        except Appeared as error:
            raise Appeared(error.target, error.reason, self._kept(pieces)) from None
        except LLEnhanceError as error:
            raise type(error)(f"{error}{self._kept(pieces)}") from None
        except (KeyboardInterrupt, SystemExit):
            if pieces.pieces:
                self._report.say(f"{self._job.name}: stopped{self._kept(pieces)}", 0)
            raise

    def _kept(self, pieces: Pieces) -> str:
        if not pieces.pieces:
            return ""
        return f" ({pieces.frames} frames are kept: the same command goes on from there)"

    def _made_by(self, encoder: Mapping[str, Any], recipe: str) -> dict[str, Any]:
        """All that the frames depend on. Not the device: engines agree within rounding, and who
        loses a GPU half-way does not want to begin again."""
        options = {k: v for k, v in asdict(self._choice).items() if k not in NOT_IN_FRAMES}
        return {
            "source": self._source.state,
            "method": recipe,
            "video options": options,
            "encoder": encoder,
            "version": __version__,
            "length of the pieces": segments.FRAMES,
        }

    def _add_pieces(self, pieces: Pieces) -> None:
        last = pieces.begin
        start: ends.Start = self._choice.start
        begin = None
        if last is not None:
            assert last.origin is not None
            begin = last.next
            start = (last.origin - self._info.start) * self._info.time_base
            self._report.say(f"{self._job.name}: goes on after {pieces.frames} frames", 0)
            if self._evened is not None:
                self._evened.restore(pieces.memory())
        reader = self._source.reader(start)
        self._stream(reader, self._timed(reader, begin), pieces)
        pieces.finish(self._memory(), None, reader.notes)

    def _join(
        self, target: Path, pieces: Segments, encoding: videos.Encoding, overwrite: bool
    ) -> list[str]:
        with self._published(target, overwrite) as temporary:
            notes = videos.join(
                temporary,
                pieces.paths,
                self._info,
                encoding,
                cut=self._cut,
                tags=self._tags,
                strip=self._choice.strip,
                span=pieces.span,
            )
            if self._choice.verify:
                try:
                    videos.verify(temporary, pieces.frames, pieces.duration)
                except MediaError:
                    pieces.keep_good()
                    raise
        notes = [*pieces.notes, *notes]
        pieces.remove()
        return notes

    def _timed(
        self, reader: videos.VideoReader, begin: int | None = None
    ) -> Iterable[videos.Frame]:
        if self._choice.constant_rate:
            return videos.constant_rate(reader, self._info, begin)
        return reader

    def _memory(self) -> dict[str, Any]:
        return {} if self._evened is None else self._evened.state()

    def _shown(self, image: Array) -> Array:
        """What the network sees of a frame."""
        return image if self._hdr is None else self._hdr.view(image)

    def _finished(self, image: Array, shown: Array, result: Array) -> Array:
        """What the network made of a frame, evened; call it for the frames in order."""
        if self._evened is not None:
            result = self._evened(shown, result)
        return result if self._hdr is None else self._hdr.apply(image, shown, result)

    def _enhanced(self, image: Array) -> Array:
        shown = self._shown(image)
        return self._finished(image, shown, self._apply(shown))

    def _steps(
        self, frames: Iterable[videos.Frame], reader: videos.VideoReader, pieces: Pieces | None
    ) -> Iterator[Step]:
        """The frames, and where among them pieces begin."""
        latest, count = None, 0
        for frame in frames:
            begins = (
                pieces is not None
                and count >= segments.FRAMES
                and not frame.repeated  # a reader that begins here has no other picture
                and frame.pts != latest
            )
            yield frame, list(reader.notes) if begins else None
            latest, count = frame.pts, 1 if begins else count + 1

    def _batches(self, steps: Iterable[Step]) -> Iterator[list[Step]]:
        """Steps that go through the network together: of one size, and of one piece, so that a
        run that goes on after it has the same batches."""
        batch: list[Step] = []
        for frame, begins in steps:
            if batch and (begins is not None or batch[0][0].image.shape != frame.image.shape):
                yield batch
                batch = []
            batch.append((frame, begins))
            if len(batch) == self._most:
                yield batch
                batch = []
        if batch:
            yield batch

    def _through(self, steps: Iterable[Step]) -> Iterator[tuple[Step, Callable[[], Array]]]:
        """Each step, and what gives its finished frame once the network is done with it; to be
        called in order, in any thread."""
        if self._together is None or self._most == 1:
            for step in steps:
                image = step[0].image
                view = self._shown(image)
                yield step, partial(self._finished, image, view, self._apply(view))
            return
        under_way: deque[tuple[list[Step], list[Array]]] = deque()

        def shown() -> Iterator[list[Array]]:
            for batch in self._batches(steps):
                under_way.append((batch, [self._shown(frame.image) for frame, _ in batch]))
                yield under_way[-1][1]

        for results in self._together.apply(shown()):
            for step, view, result in zip(*under_way.popleft(), results, strict=True):
                yield step, partial(self._finished, step[0].image, view, result)

    def _stream(
        self,
        reader: videos.VideoReader,
        frames: Iterable[videos.Frame],
        sink: Sink,
    ) -> None:
        """Every frame through the network into the sink; whatever ends it, no thread stays.

        Evening runs in the writer's thread: it takes one core, while the network takes all."""

        pieces = sink if isinstance(sink, Pieces) else None
        done = pieces.frames if pieces is not None else 0

        def write(frame: videos.Frame, finish: Callable[[], Array]) -> None:
            sink.write(finish(), frame.pts, frame.duration)

        def end_piece(frame: videos.Frame, notes: list[str]) -> None:
            assert pieces is not None
            pieces.finish(self._memory(), frame, notes)

        progress = Progress(self._report, self._job, self._source.total(self._choice), done, sink)
        waiting = max(QUEUED, self._most)
        try:
            with (
                reader,
                closing(prefetch(frames, waiting, self._source.leave)) as incoming,
                BoundedExecutor(waiting) as writing,
                self._recording(progress),
            ):
                for (frame, begins), finish in self._through(self._steps(incoming, reader, pieces)):
                    if begins is not None:
                        writing.submit(end_piece, frame, begins)
                    writing.submit(write, frame, finish)
                    progress.step()
        finally:
            progress.close()

    @contextmanager
    def _recording(self, progress: Progress) -> Iterator[None]:
        """What a camera saw does not come again: whatever ends the block, it is kept."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, MediaError) as ending:
            if not (ends.is_camera(self._job.source) and progress.frames):
                raise
            self.ended = ending
            self._report.say(f"{self._job.name}: finishing what was recorded", 0)
