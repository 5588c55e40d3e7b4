"""One video, enhanced frame by frame in constant memory: reading, the network, writing overlap."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict
from typing import Any, Protocol

from . import ends, segments
from .ends import INDIFFERENT, Choice, Source
from .errors import LLEnhanceError, MediaError, Refusal
from .media import files, videos
from .overlap import Behind, ahead
from .pixels import Array
from .plan import Job
from .preview import preview, preview_name
from .progress import Growing, Progress, megabytes
from .report import Report
from .segments import Segments
from .stabilize import Stabilizer
from .version import __version__

__all__ = ["Choice", "check", "enhance"]

Apply = Callable[[Array], Array]  # a frame (H, W, 3) RGB uint8 or uint16 to the enhanced one


class Sink(Growing, Protocol):
    """Takes the enhanced frames."""

    def write(self, image: Array, pts: int, duration: int, /) -> None: ...


def check(
    jobs: list[Job], scales: Mapping[str, int], choice: Choice, *, overwrite: bool = False
) -> None:
    """Try the encoder of every video job, and the room for its output, before a weight is read.

    ``scales``: of each model. Raises Refusal for what cannot be written. A video that cannot be
    read is no refusal: it fails when its turn comes.
    """
    needed: dict[int, int] = {}  # bytes on each disk
    for job in jobs:
        if choice.preview and job.kind != "video":
            raise Refusal("--preview takes videos")
        if job.kind != "video" or job.skip:
            continue
        ends.check(job.source, job.target, choice)
        if choice.preview and job.target is not None:
            sheet = preview_name(job.target)
            if os.path.lexists(sheet) and not overwrite:
                raise Refusal(f"{sheet} exists (--on-exists overwrite)")
            continue
        if job.source is None or job.target is None or ends.is_camera(job.source):
            continue
        try:
            source = ends.open_source(job.source, choice)
        except MediaError:
            continue
        encoding = _encoding(job, source.info, scales[job.model], choice)
        folder = next(p for p in job.target.absolute().parents if p.is_dir())
        disk = os.stat(folder).st_dev
        least = _least(source, encoding, scales[job.model], choice) - segments.size_of(job.target)
        needed[disk] = needed.get(disk, 0) + max(0, least)
        free = shutil.disk_usage(folder).free
        if free < needed[disk]:
            raise Refusal(
                f"no room for {job.target}: at least {megabytes(needed[disk])} are needed,"
                f" {megabytes(free)} are free"
            )


def enhance(
    job: Job,
    apply: Apply,
    scale: int,
    choice: Choice,
    report: Report,
    *,
    recipe: str,
    overwrite: bool,
) -> None:
    """Do one video job; the report hears how it went.

    ``apply`` takes and returns a frame, (H, W, 3) RGB uint8 or uint16, ``scale`` times as large.
    ``recipe`` names the method, its weights and its settings.
    """
    began = time.perf_counter()
    target = job.target_name
    fields: dict[str, Any] = {}
    notes: list[str] = []
    try:
        if choice.preview and job.source is not None and job.target is not None:
            sheet = preview_name(job.target)
            target = str(sheet)
            preview(job.source, apply, choice, sheet, overwrite=overwrite)
        else:
            source = ends.open_source(job.source, choice)
            work = _Work(job, source, apply, scale, choice, report)
            notes, fields["frames"] = work.run(recipe, overwrite=overwrite)
    except LLEnhanceError as error:
        report.failed(job.name, str(error))
        return
    for note in notes:
        report.warn(job.name, note)
    report.done(job.name, target, time.perf_counter() - began, model=job.model, **fields)


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
    fifth of the pixels where nothing or little is lost."""
    info = source.info
    share = source.share(choice)
    if encoding is None or encoding.encoder in ("ffv1", "prores_ks") or source.path is None:
        pixels = info.frames * share * info.width * info.height * scale**2
        small = 1 if encoding is None or encoding.encoder in ("ffv1", "prores_ks") else 100
        least = pixels * (3 if info.bit_depth > 8 else 1.5) / 5 / small
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
    ) -> None:
        self._job, self._source, self._apply, self._choice = job, source, apply, choice
        self._scale, self._report, self._info = scale, report, source.info
        self._evened: Stabilizer | None = None
        if choice.stabilize != "off":
            self._evened = Stabilizer(None if choice.stabilize == "auto" else choice.stabilize)
        self._hdr = videos.HdrView(self._info) if self._info.hdr else None
        self._cut = (choice.start or 0.0, choice.end)

    def run(self, recipe: str, *, overwrite: bool) -> tuple[list[str], int]:
        """Do it: (notes for people, frames)."""
        target = self._job.target
        where = ends.place(self._job.source, target)
        if where == "window":
            return self._live()
        if where == "pipe" or target is None:
            return self._piped()
        if where == "pictures":
            first = videos.first_number(self._info)
            pictures = videos.SequenceWriter(target, first=first, overwrite=overwrite)
            with pictures:
                notes = self._all(pictures)
            return [*notes, *pictures.dropped], pictures.frames
        encoding = _encoding(self._job, self._info, self._scale, self._choice)
        total = self._source.total(self._choice)
        long = total is None or total > segments.FRAMES
        if encoding is not None and not self._source.once and long:
            return self._in_pieces(encoding, recipe, overwrite)
        with files.publish(target, overwrite=overwrite, like=self._source.path) as temporary:
            writer: videos.VideoWriter | videos.PipeWriter
            if encoding is None:
                chosen = videos.pipe_format(self._info, self._scale, None, self._choice.pix_fmt)
                with temporary.open("wb") as file:
                    writer = videos.PipeWriter(file, self._info, chosen)
                    with writer:
                        notes = self._all(writer)
                seconds = float(writer.frames / self._info.frame_rate)
            else:
                writer = videos.VideoWriter(temporary, self._info, plan=encoding, cut=self._cut)
                with writer:
                    notes = self._all(writer)
                seconds = writer.duration
            if self._choice.verify:
                videos.verify(temporary, writer.frames, seconds)
        return [*notes, *writer.dropped], writer.frames

    def _all(self, sink: Sink) -> list[str]:
        """Every frame into the sink; what the reader has to say."""
        reader = self._source.reader(self._choice.start)
        self._stream(reader, self._timed(reader), sink, None, 0)
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
            closing(ahead(reader, 1)) as incoming,
            suppress(videos.Closed),
        ):
            for frame in incoming:
                window.show(frame.image, self._enhanced(frame.image))
        return reader.notes, window.frames

    def _in_pieces(
        self, encoding: videos.Encoding, recipe: str, overwrite: bool
    ) -> tuple[list[str], int]:
        """Write the video piece by piece, going on where an earlier run ended, and join them."""
        assert self._job.target is not None
        pieces = Segments(
            self._job.target,
            self._info,
            encoding,
            self._cut,
            self._made_by(encoding, recipe),
            restart=self._choice.restart,
        )
        try:
            with pieces:
                if pieces.note:
                    self._report.warn(self._job.name, pieces.note)
                if not pieces.whole:
                    self._add_pieces(pieces)
                count = pieces.frames
                return self._join(pieces, encoding, overwrite), count
        except LLEnhanceError as error:
            raise type(error)(f"{error}{self._kept(pieces)}") from None
        except (KeyboardInterrupt, SystemExit):
            if pieces.pieces:
                self._report.say(f"{self._job.name}: stopped{self._kept(pieces)}", 0)
            raise

    def _kept(self, pieces: Segments) -> str:
        if not pieces.pieces:
            return ""
        return f" ({pieces.frames} frames are kept: the same command goes on from there)"

    def _made_by(self, encoding: videos.Encoding, recipe: str) -> dict[str, Any]:
        """All that the frames depend on. Not the device: engines agree within rounding, and who
        loses a GPU half-way does not want to begin again."""
        options = {k: v for k, v in asdict(self._choice).items() if k not in INDIFFERENT}
        return {
            "source": self._source.state,
            "method": recipe,
            "video options": options,
            "encoder": asdict(encoding),
            "version": __version__,
            "length of the pieces": segments.FRAMES,
        }

    def _add_pieces(self, pieces: Segments) -> None:
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
        self._stream(reader, self._timed(reader, begin), pieces, pieces, pieces.frames)
        pieces.finish(self._memory(), None, reader.notes)

    def _join(self, pieces: Segments, encoding: videos.Encoding, overwrite: bool) -> list[str]:
        target = self._job.target
        assert target is not None
        with files.publish(target, overwrite=overwrite, like=self._source.path) as temporary:
            notes = videos.join(temporary, pieces.paths, self._info, encoding, cut=self._cut)
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

    def _enhanced(self, image: Array) -> Array:
        shown = image if self._hdr is None else self._hdr.view(image)
        result = self._apply(shown)
        if self._evened is not None:
            result = self._evened(shown, result)
        return result if self._hdr is None else self._hdr.apply(image, shown, result)

    def _stream(
        self,
        reader: videos.VideoReader,
        frames: Iterable[videos.Frame],
        sink: Sink,
        pieces: Segments | None,
        done: int,
    ) -> None:
        """Every frame through the network into the sink; whatever ends it, no thread stays."""
        progress = Progress(self._report, self._job, self._source.total(self._choice), done, sink)
        latest, count = None, 0
        try:
            with reader, closing(ahead(frames)) as incoming, Behind() as writing:
                for frame in incoming:
                    if (
                        pieces is not None
                        and count >= segments.FRAMES
                        and not frame.repeated  # a reader that begins here has no other picture
                        and frame.pts != latest
                    ):
                        writing.submit(pieces.finish, self._memory(), frame, list(reader.notes))
                        count = 0
                    image = self._enhanced(frame.image)
                    writing.submit(sink.write, image, frame.pts, frame.duration)
                    latest, count = frame.pts, count + 1
                    progress.step()
        finally:
            progress.close()
