"""A video file that is being written, and everything but the pictures copied into it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from ...errors import MediaError
from .info import VideoInfo
from .joined import continuous, may_be_joined
from .opening import open_file, open_input, reason

# What a container writes itself, or what is no longer true of the output.
_OWN_TAGS = {
    *("major_brand", "minor_version", "compatible_brands", "encoder", "duration", "bps"),
    "alpha_mode",
}
_OWN_PREFIXES = ("number_of_", "_statistics")
# Tags that MP4 has a place of its own for; for others the file has to hold keys by name.
_MP4_TAGS = frozenset((
    "title", "artist", "album_artist", "album", "composer", "writer", "genre", "date", "comment",
    "description", "synopsis", "copyright", "grouping", "lyrics", "track", "disc", "show",
    "episode_id", "network", "keywords", "creation_time", "location", "location-eng", "media_type",
    "hd_video", "compilation", "sort_name", "timecode",
))  # fmt: skip
_EQUAL_TIMES = av.format.Flags.ts_nonstrict  # such muxers take two packets of one time

# What a player needs of the tags, to choose a track by itself and to find a font.
_PLAYING = {"language", "filename", "mimetype"}


def true_tags(tags: Mapping[str, str], strip: bool = False) -> dict[str, str]:
    """The tags of a source that are still true of an output; ``strip``: that playing needs."""
    return {
        key: value
        for key, value in tags.items()
        if key.lower().partition("-")[0] not in _OWN_TAGS  # "BPS-eng", as mkvmerge wrote them
        and not key.lower().startswith(_OWN_PREFIXES)
        and (not strip or key.lower() in _PLAYING)
    }


def _is_metadata(stream: Any) -> bool:
    """Whether a stream is no part of what is played: a cover, places and sensors, a time code, an
    attached file that is no font."""
    if stream.type == "attachment":
        kind = str(stream.metadata.get("mimetype", "")).lower()
        return "font" not in kind and "opentype" not in kind
    return stream.type == "data" or bool(stream.disposition & Disposition.attached_pic)


@dataclass(frozen=True)
class Cut:
    """What of a source is kept, in seconds of its own clock, and what is taken off each time."""

    begin: Fraction = Fraction(0)
    end: Fraction | None = None
    shift: Fraction = Fraction(0)
    whole: bool = True  # whether its beginning is kept


class _Copier:
    """Copies every stream but the pictures from a source into an output, packet by packet."""

    def __init__(
        self,
        source: VideoInfo,
        out: Any,
        muxer: str,
        cut: Cut,
        strip: bool,
        stack: ExitStack,
    ) -> None:
        self._out = out
        self._cut = cut
        self._pictures = source.stream
        self._hides = muxer in ("mp4", "mov")
        self._early: set[int] = set()  # streams that may begin before 0
        file = stack.enter_context(open_file(source.path))
        self.container = stack.enter_context(open_input(file))
        self.dropped: list[str] = []
        self._pairs: dict[int, Any] = {}
        self._infos = {info.index: info for info in source.streams}
        self._damaged: dict[int, int] = {}  # packets that were refused, by stream of the output
        self._last: dict[int, int] = {}  # dts of each stream's last packet, in the output's units
        strict = _EQUAL_TIMES not in av.format.Flags(av.ContainerFormat(muxer, "w").flags)
        self._apart = int(strict)  # units that must lie between two packets
        chapters = self.container.chapters()
        for info in source.streams:
            stream = self.container.streams[info.index]
            if strip and _is_metadata(stream):
                continue
            if stream.type == "data":
                # Chapters and the time code are copied as such; MP4 makes its tracks from them.
                if stream.name == "bin_data" and chapters:
                    continue
                if "timecode" in stream.metadata and stream.codec_context is None:
                    continue
            if muxer == "matroska" and stream.disposition & Disposition.attached_pic:
                # Matroska holds a cover as an attachment, where FFmpeg's muxer would make a track.
                kind = {"mjpeg": "jpeg", "png": "png"}.get(info.codec)
                if kind is None:
                    self.dropped.append(f"{info} is dropped: {muxer} cannot hold such a cover")
                else:
                    name = stream.metadata.get("filename") or f"cover.{kind.replace('jpeg', 'jpg')}"
                    out.add_attachment(name, f"image/{kind}", self._cover(source, info.index))
                continue
            if not _holds(muxer, stream):
                self.dropped.append(f"{info} is dropped: {muxer} cannot hold it")
                continue
            if stream.type == "video" and not stream.disposition & Disposition.attached_pic:
                self.dropped.append(f"{info} is copied as it is: one video stream is enhanced")
            copy = _add(out, stream, strip)
            if stream.type != "attachment":
                self._pairs[info.index] = copy
                # Matroska has a field for how much of these to leave out at the beginning.
                if cut.whole and (info.codec == "opus" or "matroska" in source.container):
                    self._early.add(info.index)
        streams = [self.container.streams[index] for index in self._pairs]
        self._packets = self._demux(streams) if streams else iter(())
        self._held: tuple[Any, Fraction] | None = None

    @staticmethod
    def _cover(source: VideoInfo, index: int) -> bytes:
        with open_file(source.path) as file, open_input(file) as container:
            packets = container.demux(container.streams[index])
            return next((bytes(packet) for packet in packets if packet.size), b"")

    def _demux(self, streams: list[Any]) -> Iterator[tuple[Any, Fraction]]:
        """(packet, seconds when it is due in the output), those inside the cut only."""
        if may_be_joined(self.container):
            pictures = self.container.streams[self._pictures]
            packets = continuous(self.container, pictures, streams)
        else:
            packets = self.container.demux(streams)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                self.dropped.append(f"sound and subtitles end early: {reason(error)}")
                return
            if packet is None:
                return
            if packet.stream.index == self._pictures:
                continue
            if packet.size and packet.stream.disposition & Disposition.attached_pic:
                packet.pts = packet.dts = 0
                yield packet, Fraction(0)
                continue
            if not packet.size or (packet.dts is None and packet.pts is None):
                continue
            stamp = packet.dts if packet.dts is not None else packet.pts
            shown = packet.pts if packet.pts is not None else packet.dts
            base = packet.time_base
            cut, begin = self._cut, shown * base
            finish = begin + (packet.duration or 0) * base
            if packet.stream.type == "subtitle" and begin < cut.begin < finish:
                begin = cut.begin  # it is on screen when the cut begins, and stays there
                packet.pts = packet.dts = stamp = round(begin / base)
                packet.duration = round((finish - begin) / base)
            if not cut.whole and finish <= cut.begin and packet.stream.type != "video":
                continue
            if cut.end is not None and begin >= cut.end:
                continue
            if cut.end is not None and finish > cut.end and packet.stream.type == "subtitle":
                packet.duration = round((cut.end - begin) / base)
            if begin < cut.begin and not self._hides and packet.stream.index not in self._early:
                continue  # only MP4's edit lists hold and hide it; others would move all streams
            shift = round(cut.shift / base)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            yield packet, stamp * base - cut.shift

    def until(self, seconds: Fraction | None) -> None:
        """Copy what is due before a time; everything with None."""
        while True:
            if self._held is None:
                self._held = next(self._packets, None)
            if self._held is None:
                return
            packet, due = self._held
            if seconds is not None and due > seconds:
                return
            self._held = None
            stream = self._pairs[packet.stream.index]
            self._keep_order(packet, stream)
            packet.stream = stream
            try:
                self._out.mux(packet)
            except av.error.InvalidDataError:  # muxers look into some kinds of sound
                self._damaged[stream.index] = self._damaged.get(stream.index, 0) + 1

    def damaged(self) -> list[str]:
        """What could not be copied, as sentences."""
        infos = {copy.index: self._infos[index] for index, copy in self._pairs.items()}
        return [
            f"{count} damaged packet{'s' if count > 1 else ''} of {infos[index]} left out"
            for index, count in self._damaged.items()
        ]

    def _keep_order(self, packet: Any, stream: Any) -> None:
        """A damaged or joined recording can step back in time, which muxers refuse. They count in
        units of their own, where two times may be one that differed in the source's."""
        if packet.dts is None:
            return
        base, last = stream.time_base, self._last.get(stream.index)

        def units(ticks: int) -> int:
            return floor(ticks * packet.time_base / base + Fraction(1, 2))  # as FFmpeg rounds

        due = units(packet.dts)
        if last is not None and due < last + self._apart:
            due = last + self._apart
            shown = due if packet.pts is None else max(due, units(packet.pts))
            packet.dts, packet.pts, packet.duration = due, shown, units(packet.duration or 0)
            packet.time_base = base
        self._last[stream.index] = due


def _add(out: Any, stream: Any, strip: bool = False) -> Any:
    """A stream in ``out`` that takes the packets of another."""
    if stream.type in ("data", "attachment") and stream.codec_context is None:
        copy = out.add_stream_from_template(stream)
    else:
        copy = out.add_stream_from_template(stream, opaque=True)
    copy.metadata.update(true_tags(stream.metadata, strip))
    copy.disposition = stream.disposition
    return copy


def _holds(muxer: str, stream: Any) -> bool:
    """Whether a container takes a stream: it is asked to write a header with that one alone."""
    if muxer == "webm" and stream.type == "attachment":
        return False  # takes it and then leaves it out
    try:
        out = av.open(io.BytesIO(), "w", format=muxer)
        _add(out, stream)
        out.start_encoding()
        out.close()
    except (av.error.FFmpegError, ValueError, OSError, RuntimeError):
        return False
    return True


class Output:
    """A file that is being written: a video stream, the copied streams, tags and chapters.

    ``tags`` are added to the source's; "software" goes where the container has a place for it.
    ``strip`` leaves out the source's, and streams that are not played.
    """

    def __init__(
        self,
        target: Path,
        source: VideoInfo,
        muxer: str,
        *,
        tags: Mapping[str, str],
        cut: Cut,
        streams: bool,
        strip: bool,
        add_video: Callable[[Any], Any],
    ) -> None:
        self.target, self.muxer, self.source = target, muxer, source
        self.dropped: list[str] = []
        self._strip = strip
        self._tags = {**true_tags(source.tags, strip), **tags} if streams else {}
        odd = [key for key in self._tags if key.lower() not in _MP4_TAGS]
        if muxer == "mp4" and odd == ["software"]:
            self._tags["encoding_tool"] = self._tags.pop("software")
            odd = []
        self._chapters = 0
        self._held: Any = None  # the last packet of the video stream
        # MP4 adds up the times between packets in coding order, and where frames are reordered the
        # last packet is not the last frame: by its own duration the track would be short.
        self._counted = _due if muxer in ("mp4", "mov") else _shown
        self._began: Fraction | None = None  # seconds
        self._stack = ExitStack()
        self._copier: _Copier | None = None
        options = {}
        if muxer in ("mp4", "mov"):
            flags = ["faststart"] if streams else []  # index first: it plays while it is fetched
            if odd:
                flags.append("use_metadata_tags")
            options["movflags"] = "".join("+" + flag for flag in flags) or "0"
            # In this unit the file says when each stream begins; the default is milliseconds.
            options["movie_timescale"] = str(_fine(source.time_base.denominator))
        elif muxer in ("matroska", "webm"):
            options["default_mode"] = "passthrough"  # keep the source's own default flags
        try:
            self.file = av.open(
                "file:" + os.path.abspath(os.fspath(target)),
                "w",
                format=muxer,
                container_options=options,
                metadata_errors="surrogateescape",
            )
            self.video = add_video(self.file)
            if streams and not source.bare:
                self._copy_from(cut)
            if source.matrix is not None:
                self.video.set_display_matrix(source.matrix)
            self.file.metadata.update(self._tags)
            self.file.start_encoding()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self.abandon()
            raise MediaError(f"cannot be written: {reason(error)}") from None
        except BaseException:
            self.abandon()
            raise

    def _copy_from(self, cut: Cut) -> None:
        copier = _Copier(self.source, self.file, self.muxer, cut, self._strip, self._stack)
        self.dropped += copier.dropped
        copier.dropped.clear()
        original = copier.container.streams[self.source.stream]
        self.video.metadata.update(true_tags(original.metadata, self._strip))
        if not cut.whole:
            self._drop_time_code()
        self.video.disposition = original.disposition
        chapters = _cut_chapters(copier.container.chapters(), cut)
        if chapters:
            self.file.set_chapters(chapters)
        self._chapters = len(chapters)
        self._copier = copier

    def _drop_time_code(self) -> None:
        """It is that of the source's first frame."""
        found = [tags.pop("timecode", None) for tags in (self.video.metadata, self._tags)]
        if any(found):
            self.dropped.append("the time code is dropped: it is of the source's first frame")

    def mux(self, packets: Iterable[Any]) -> None:
        """Write packets of the video stream, and before each what else is due by then. The last
        one is held back: how long it lasts is known when the video ends."""
        for packet in packets:
            self._write_held()
            if self._began is None:
                self._began = self._counted(packet)
            self._held = packet

    def _write_held(self) -> None:
        packet, self._held = self._held, None
        if packet is None:
            return
        if self._copier is not None:
            self._copier.until(_due(packet))
        self.file.mux(packet)

    def finish(self, lasts: Fraction | None = None) -> None:
        """Copy the rest, close the file, and look at what is in it. ``lasts``: seconds from the
        beginning of the first to the end of the last frame; None: as the packets say."""
        with self._stack:
            if self._held is not None and self._began is not None and lasts is not None:
                rest = lasts - (self._counted(self._held) - self._began)
                self._held.duration = max(1, round(rest / self._held.time_base))
            self._write_held()
            if self._copier is not None:
                self._copier.until(None)
                self.dropped += [*self._copier.dropped, *self._copier.damaged()]
            expected = len(self.file.streams)
            self.file.close()
        if self._copier is not None:
            self._compare(expected)

    def abandon(self) -> None:
        """Let go of the file, which is worthless."""
        self._stack.close()
        with suppress(Exception):
            self.file.close()

    def _compare(self, expected: int) -> None:
        """Name what was given to the muxer and is not there."""
        with open_file(self.target) as file, open_input(file) as written:
            found = {key.lower(): value for key, value in written.metadata.items()}
            found.setdefault("encoding_tool", found.get("encoder", ""))  # as MP4's is read
            lost = [key for key, value in self._tags.items() if found.get(key.lower()) != value]
            if lost:
                self.dropped.append(f"{self.muxer} does not hold the tags {', '.join(lost)}")
            if len(written.streams) < expected:
                gone = expected - len(written.streams)
                self.dropped.append(f"{gone} of {expected} streams had nothing in them")
            if len(written.chapters()) < self._chapters:
                self.dropped.append(f"{self.muxer} does not hold all of the chapters")


def _due(packet: Any) -> Fraction:
    """Seconds when a packet is to be decoded."""
    due = packet.dts if packet.dts is not None else packet.pts
    return Fraction(due * packet.time_base)


def _shown(packet: Any) -> Fraction:
    """Seconds when the frame of a packet is shown."""
    shown = packet.pts if packet.pts is not None else packet.dts
    return Fraction(shown * packet.time_base)


def _fine(rate: int) -> int:
    """A multiple of a rate that is at least 10,000, as the MP4 muxer chooses for a track."""
    while rate < 10_000:
        rate *= 2
    return rate


def _cut_chapters(chapters: list[Any], cut: Cut) -> list[Any]:
    """The chapters, or what is left of them inside a cut, at their times in the output."""
    kept = []
    for chapter in chapters:
        base = chapter["time_base"]
        begin = max(chapter["start"] * base, cut.begin) - cut.shift
        end = chapter["end"] * base
        end = (end if cut.end is None else min(end, cut.end)) - cut.shift
        if begin < end:
            kept.append({**chapter, "start": round(begin / base), "end": round(end / base)})
    return kept
