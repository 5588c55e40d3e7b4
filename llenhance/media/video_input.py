"""Reading videos: what is in one, and its frames, upright, in the order and at the times shown.

Pixels of ordinary 8-bit clips come through OpenCV, which decodes and converts them in a quarter of
the processor time of PyAV with an exact conversion. Beside it PyAV decodes the same packets without
deblocking and conversion: that says when each frame is shown, whether it was damaged (OpenCV hides
what its decoder could paper over) and whether OpenCV lost one. Where OpenCV is not faithful (more
than 8 bits, interlaced frames, times or pixels that do not agree with PyAV's) PyAV's own pixels are
used. Its one known flaw is borne: it rounds down, by 0.4 of a level of 255 on night scenes.
"""

from __future__ import annotations

import errno
import heapq
import os
import stat
import struct
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from ..errors import MediaError

Image = NDArray[Any]  # (H, W, 3) RGB, uint8 or uint16
OnError = Literal["repeat", "skip", "fail"]

# Containers that can be written: suffix -> FFmpeg's name for the muxer.
CONTAINERS = {".mkv": "matroska", ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "webm"}

# Demuxers that read one file and nothing else. Playlists, concat scripts and manifests (hls, dash,
# concat, imf, ...) name other files, which a video from a stranger must not make us read; the
# demuxer is chosen by content, so the check is on its name and never on the file's.
_DEMUXERS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,ivf,gif,yuv4mpegpipe,"
    "h264,hevc,obu,av1,m4v,mjpeg,dv,apng"
)

UNSPECIFIED = 2  # in colour primaries, transfer and matrix; 0 in the range
_INTERLACED = range(2, 6)  # AVFieldOrder: tt, bb, tb, bt; the second letter is shown first
_TOP_FIRST = (2, 5)
_CV_MATCH = 2.0  # mean difference of two 8-bit conversions of one frame, of 255; black gives 16+
_SEEK_BEFORE = 2  # seconds: a place is reached from a key frame well before it
_CV_RETRIES = 3  # OpenCV answers "no frame" once for each packet that its decoder refuses

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once by OpenCV: quiet
av.logging.set_level(None)


@dataclass(frozen=True)
class StreamInfo:
    """A stream beside the pictures."""

    index: int
    kind: str  # audio, subtitle, data, attachment, or video (a cover picture, a second angle)
    codec: str
    language: str | None
    title: str | None

    def __str__(self) -> str:
        words = [self.kind, f"stream {self.index}"]
        extra = [word for word in (self.codec, self.language, self.title) if word]
        return " ".join(words) + (f" ({', '.join(extra)})" if extra else "")


@dataclass(frozen=True)
class Turn:
    """How stored pixels become upright: transpose, then mirror left-right, then top-bottom."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def apply(self, image: Image) -> Image:
        """The upright picture, contiguous, of an (H, W, 3) picture as stored."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        if self.mirror_x:
            image = image[:, ::-1]
        if self.mirror_y:
            image = image[::-1]
        return np.ascontiguousarray(image)

    @property
    def degrees(self) -> int:
        """Clockwise degrees; a mirrored picture gives the degrees of its turn alone."""
        if self.transpose:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself, with its first frame decoded and no more.

    Colour numbers are those of ITU-T H.273, as FFmpeg gives them (2 is "unspecified"); the range
    is 0 unspecified, 1 limited, 2 full.
    """

    path: Path
    container: str  # FFmpeg's name of the demuxer, such as "mov,mp4,m4a,3gp,3g2,mj2"
    stream: int  # index of the video stream
    codec: str
    width: int  # pixels, upright
    height: int
    turn: Turn  # from the stored pixels to the upright ones
    matrix: tuple[int, ...] | None  # a display matrix that is no quarter turn, so not applied
    sample_aspect: Fraction  # width over height of one upright pixel
    frame_rate: Fraction  # average
    time_base: Fraction  # seconds in one unit of pts
    start: int  # pts of the first frame
    frames: int  # as the header says or the duration suggests: an estimate, at least 1
    duration: float  # seconds of the video stream, an estimate where the container has none
    pixel_format: str
    bit_depth: int
    color_primaries: int
    color_transfer: int
    color_matrix: int
    color_range: int
    interlaced: bool
    top_field_first: bool
    mastering_display: bytes | None  # AVMasteringDisplayMetadata, see :func:`mastering_display`
    content_light: tuple[int, int] | None  # MaxCLL and MaxFALL in cd/m2
    dynamic_hdr: tuple[str, ...]  # kinds of per-frame HDR metadata, which no output carries
    alpha: bool
    missing: int  # bytes that the container promises beyond the file's end
    tags: dict[str, str] = field(repr=False)
    streams: tuple[StreamInfo, ...] = ()  # the others
    chapters: int = 0

    @property
    def rotation(self) -> int:
        """Clockwise degrees from the stored to the upright picture: 0, 90, 180 or 270."""
        return self.turn.degrees

    @property
    def hdr(self) -> bool:
        """Whether the transfer is PQ or HLG."""
        return self.color_transfer in (16, 18)


@dataclass(frozen=True)
class Frame:
    """One frame as a player shows it.

    ``image``: (H, W, 3) RGB; uint8, or uint16 over its full range for sources of more than 8 bits
    (still in the source's own primaries and transfer). ``pts``: when it is shown, in units of the
    video's time base. ``duration``: in the same units, 0 where the file does not say.
    ``repeated``: this is the last good picture in the place of one that could not be decoded.
    """

    image: Image
    pts: int
    duration: int = 0
    repeated: bool = False


def clock(seconds: float) -> str:
    """A time for a person: 1:02:03.4."""
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


def as_fraction(seconds: float) -> Fraction:
    """Seconds as a person meant them: 0.2 is a fifth, not the nearest double above it."""
    return Fraction(seconds).limit_denominator(1_000_000)


def reason(error: Exception) -> str:
    """One line, without a file name, for what went wrong in FFmpeg or the system."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


class _Unnamed:
    """An open file without its name, so that no name is ever a pattern, an option or a URL."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.read, self.tell, self.close = file.read, file.tell, file.close

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """The new place, or -1: damaged files point to places before their beginning."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1


def _refuse_to_open(url: str, *_: object) -> Any:
    raise PermissionError(errno.EACCES, "a video may not open other files", url)


def open_file(path: Path) -> IO[bytes]:
    """A regular file, open for reading; MediaError for anything else (a FIFO would hang)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
    except OSError as error:
        raise MediaError(reason(error)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MediaError("not a regular file")
    return os.fdopen(descriptor, "rb")


_OPEN_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_input(file: IO[bytes]) -> Any:
    """A PyAV input container on an open file; MediaError when it is no readable video."""
    file.seek(0)
    try:
        return av.open(
            _Unnamed(file),
            "r",
            options={"format_whitelist": _DEMUXERS},
            metadata_errors="surrogateescape",
            io_open=_refuse_to_open,
        )
    except av.error.EOFError:
        raise MediaError("the file ends before its first frame") from None
    except av.error.InvalidDataError:
        raise MediaError("not a video that can be read") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"not a video that can be read: {reason(error)}") from None


def video_stream(container: Any) -> Any:
    """The stream with the pictures; MediaError when there is none or nothing decodes it."""
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition
        & (av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails)
    ]
    if not streams:
        raise MediaError("no video stream")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise MediaError("no decoder for this kind of video")
    return stream


def _turn(matrix: tuple[int, ...]) -> Turn | None:
    """The turn in a display matrix, or None where it is not a multiple of a quarter turn."""
    a, b, _, c, d = matrix[:5]
    transpose = abs(a) < abs(b)
    straight, crossed = min(abs(a), abs(d)), max(abs(b), abs(c))
    turned, skewed = min(abs(b), abs(c)), max(abs(a), abs(d))
    big, small = (turned, skewed) if transpose else (straight, crossed)
    if big == 0 or small > big // 100:
        return None
    return Turn(transpose, (c if transpose else a) < 0, (b if transpose else d) < 0)


def _side_data(frame: Any) -> dict[Any, bytes]:
    found = (frame.side_data[index] for index in range(len(frame.side_data)))
    return {data.type: bytes(data) for data in found}


def missing_bytes(file: IO[bytes]) -> int:
    """How many bytes the outermost boxes promise beyond the end of the file.

    A file that was cut off plays up to the cut, and FFmpeg then reports a normal end.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(8)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        end = _matroska_end(file, size)
    elif head.startswith(b"RIFF"):
        end = _avi_end(file, size)
    elif head[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        end = _mp4_end(file, size)
    else:
        end = size
    return max(0, end - size)


def _cut_off(missing: int) -> str:
    return f"cut off: {missing:,} bytes are missing at the end of the file"


def _mp4_end(file: IO[bytes], size: int) -> int:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: to the end of the file
            return size
        at += length
    return at


def _matroska_end(file: IO[bytes], size: int) -> int:
    at = 0
    for identifier in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # the header, the segment
        file.seek(at)
        head = file.read(12)
        if head[:4] != identifier or len(head) < 5 or head[4] == 0:
            return size
        width = 9 - head[4].bit_length()
        value = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if value == (1 << 7 * width) - 1:  # unknown: written to a pipe
            return size
        at += 4 + width + value
    return at


def _avi_end(file: IO[bytes], size: int) -> int:
    at = 0
    while at + 12 <= size:
        file.seek(at)
        head = file.read(8)
        if head[:4] != b"RIFF":
            return size
        at += 8 + int.from_bytes(head[4:], "little")
    return at


def _seconds(stream: Any, container: Any) -> float:
    """Seconds that the stream lasts, by the first of its sources that knows; else 0."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "")  # Matroska has no other place for it
    with suppress(ValueError):
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return container.duration / 1e6 if container.duration else 0.0


def probe(path: Path) -> VideoInfo:
    """What a video says of itself; decodes its first frame.

    Raises MediaError for a file that is not regular, cannot be read as a video, or has no video
    stream or no frame in it. A file that was cut off is told by ``missing``.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open_file(path))
        missing = missing_bytes(file)
        try:
            container = stack.enter_context(open_input(file))
        except MediaError:
            if missing:  # MP4 often has its index at the end
                raise MediaError(_cut_off(missing)) from None
            raise
        stream = video_stream(container)
        stream.codec_context.thread_count = 1
        first = None
        for pts, first in decode(container, stream):  # noqa: B007
            if first is not None:
                break
        if first is None:
            raise MediaError("the video stream has no frames")
        context, side = stream.codec_context, _side_data(first)
        matrix = struct.unpack("=9i", side.get(SideDataType.DISPLAYMATRIX, _NO_MATRIX))
        turn = _turn(matrix)
        upright = turn or Turn()
        width, height = first.width, first.height
        aspect = stream.sample_aspect_ratio or Fraction(1)
        if upright.transpose:
            width, height, aspect = height, width, 1 / aspect
        rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        rate = next((rate for rate in rates if rate and 0 < rate <= 1000), Fraction(25))
        seconds = _seconds(stream, container)
        frames = stream.frames or round(seconds * rate)
        light = side.get(SideDataType.CONTENT_LIGHT_LEVEL)
        dynamic = {
            SideDataType.DOVI_METADATA: "Dolby Vision",
            SideDataType.DOVI_RPU_BUFFER: "Dolby Vision",
            SideDataType.DYNAMIC_HDR_PLUS: "HDR10+",
            SideDataType.DYNAMIC_HDR_VIVID: "HDR Vivid",
        }

        def colour(of_frame: int, of_stream: int, unknown: int = UNSPECIFIED) -> int:
            return int(of_stream if of_frame == unknown else of_frame)

        others = []
        for other in container.streams:
            if other.index != stream.index:
                codec = getattr(other.codec_context, "name", None)
                codec = codec or getattr(other, "mimetype", None)
                codec = codec or getattr(other, "name", None) or "unknown"
                title = other.metadata.get("title") or other.metadata.get("filename")
                others.append(StreamInfo(other.index, other.type, codec, other.language, title))
        return VideoInfo(
            path=path,
            container=container.format.name,
            stream=stream.index,
            codec=context.codec.canonical_name,
            width=width,
            height=height,
            turn=upright,
            matrix=matrix if turn is None else None,
            sample_aspect=aspect if aspect > 0 else Fraction(1),
            frame_rate=rate,
            time_base=stream.time_base,
            start=pts,
            frames=max(1, frames),
            duration=seconds or float(max(1, frames) / rate),
            pixel_format=first.format.name,
            bit_depth=max(component.bits for component in first.format.components),
            color_primaries=colour(first.color_primaries, context.color_primaries),
            color_transfer=colour(first.color_trc, context.color_trc),
            color_matrix=colour(first.colorspace, context.colorspace),
            color_range=colour(first.color_range, context.color_range, 0),
            interlaced=first.interlaced_frame or context.field_order in _INTERLACED,
            top_field_first=context.field_order in _TOP_FIRST,
            mastering_display=side.get(SideDataType.MASTERING_DISPLAY_METADATA),
            content_light=struct.unpack("=2I", light[:8]) if light else None,
            dynamic_hdr=tuple(dict.fromkeys(dynamic[kind] for kind in side if kind in dynamic)),
            alpha=any(component.is_alpha for component in first.format.components),
            missing=missing,
            tags=dict(container.metadata),
            streams=tuple(others),
            chapters=len(container.chapters()),
        )


_NO_MATRIX = struct.pack("=9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def decode(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """(pts, frame) in presentation order; (pts, None) for a frame that could not be decoded.

    A packet whose frame does not come out counts as lost only after the decoder complained:
    without a complaint it was meant to be invisible (VP8 reference frames), or it refers to what
    comes before a clip that was cut out of a longer one, and no player shows it.
    """
    waiting: list[int] = []  # pts of packets whose frames have not come out, a heap
    broken = False
    following: int | None = None
    latest: int | None = None
    # AVI stores no presentation times: the n-th frame shown has the n-th time there is, from the
    # first frame's on. What FFmpeg guesses is out of order where frames are reordered.
    counted = container.format.name == "avi"
    offset: int | None = None
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"cannot be read to its end: {reason(error)}") from None
        if packet is None:
            break
        stamp = packet.dts if counted else packet.pts
        if packet.size and stamp is not None and not packet.is_discard:
            heapq.heappush(waiting, stamp)
        try:
            frames = packet.decode()
        except av.error.EOFError:
            frames = []
        except (av.error.FFmpegError, OSError):
            frames, broken = [], True
        for frame in frames:
            pts = frame.pts
            if pts is None:  # a bare stream without a container has no times: count
                pts = following or 0
            step = frame.duration or round(1 / ((stream.average_rate or 25) * stream.time_base))
            if counted and waiting:
                if offset is None:
                    offset = pts - waiting[0]
                pts = heapq.heappop(waiting) + offset
            following = pts + max(1, step)
            if latest is not None and pts < latest:
                continue  # after damage a decoder may give a frame late; its time has passed
            latest = pts
            while not counted and waiting and waiting[0] < pts:
                lost = heapq.heappop(waiting)
                if broken:
                    yield lost, None
            while not counted and waiting and waiting[0] == pts:
                heapq.heappop(waiting)
            if frame.key_frame:
                broken = False
            yield pts, frame
    while broken and waiting:
        yield heapq.heappop(waiting) + (offset or 0), None


def _for_opencv(file: IO[bytes], path: Path) -> str:
    """A name under which OpenCV opens this very file; MediaError when no name is safe.

    OpenCV 5.0 crashes on names that are not UTF-8. Where the system has names for open files one of
    those is used. OpenCV can read from a Python file too, but cuts the places it seeks to down to
    32 bits and crashes on the exceptions that follow, so elsewhere the name has to be plain.
    """
    link = f"/proc/self/fd/{file.fileno()}"
    if os.path.exists(link):
        return link
    name = os.path.abspath(path)
    if not (name.isascii() and name.isprintable()) or "%" in name:
        raise MediaError("OpenCV is not given such a name")
    return f"file:{name}"


class _Capture:
    """OpenCV's pixels, asked for by the time of the frame."""

    def __init__(self, name: str, info: VideoInfo, threads: int) -> None:
        import cv2

        self._cv2 = cv2
        self._ticks = 1 / (1000 * info.time_base)  # per millisecond
        self._capture = cv2.VideoCapture(
            name,
            cv2.CAP_FFMPEG,
            [cv2.CAP_PROP_N_THREADS, threads] if threads else [],
        )
        # Turned by our own code, so that both decoders agree; OpenCV knows no mirrored clips.
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        self._origin: int | None = None  # OpenCV's times begin at the first frame

    def read(self, pts: int) -> Image | None:
        """The (H, W, 3) RGB frame shown at ``pts``; None where OpenCV has none for that time."""
        failures = 0
        while failures < _CV_RETRIES:
            found, image = self._capture.read()
            if not found:
                failures += 1
                continue
            time = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) * float(self._ticks)
            if self._origin is None:
                self._origin = pts - round(time)
            time += self._origin
            if abs(time - pts) < 0.25:
                if image.ndim != 3 or image.dtype != np.uint8:
                    return None
                rgb: NDArray[Any] = self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)
                return rgb
            if time > pts:
                return None
        return None

    def close(self) -> None:
        self._capture.release()


class VideoReader:
    """The frames of a video, streamed in constant memory.

    ``on_error`` says what happens at a frame that cannot be decoded whole: "repeat" gives the last
    good picture at its time, "skip" leaves it out, "fail" raises MediaError. ``start`` and ``end``
    (seconds from the first frame) keep the frames shown in [start, end). ``threads`` is for the
    decoder, 0 lets it choose. After the iteration, ``notes`` has a sentence for each thing that a
    person should know, ``damaged`` the number of damaged frames, and ``decoder`` who gave the
    pixels ("OpenCV", "PyAV", or "OpenCV, PyAV" after a change on the way).
    """

    def __init__(
        self,
        path: Path,
        *,
        info: VideoInfo | None = None,
        on_error: OnError = "repeat",
        allow_truncated: bool = False,
        start: float | None = None,
        end: float | None = None,
        threads: int = 0,
        opencv: bool = True,
    ) -> None:
        self.info = info or probe(path)
        self.path = path
        self.notes: list[str] = []
        self.damaged = 0
        self.decoder = ""
        self._on_error = on_error
        self._threads = threads
        self._opencv_wanted = opencv
        base, first = self.info.time_base, self.info.start
        self._from = None if start is None else first + as_fraction(start) / base
        self._to = None if end is None else first + as_fraction(end) / base
        self._running: list[Generator[Frame, None, None]] = []
        self._reformatter = VideoReformatter()
        self._careful = True
        if self.info.missing:
            sentence = _cut_off(self.info.missing)
            if not allow_truncated:
                raise MediaError(sentence)
            self.notes.append(sentence)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files: iterations under way end, but for one that a thread is inside."""
        for frames in self._running:
            with suppress(ValueError):  # it is being executed
                frames.close()
        self._running.clear()

    def __iter__(self) -> Iterator[Frame]:
        """The frames, in the order shown. Raises MediaError, see the class."""
        frames = self._iterate()
        self._running.append(frames)
        return frames

    def _iterate(self) -> Generator[Frame, None, None]:
        last: Image | None = None
        count = 0
        self.decoder, self.damaged = "", 0
        for pts, duration, image in self._pixels():
            if self._to is not None and pts >= self._to:
                break
            outside = self._from is not None and pts < self._from
            repeated = image is None
            if image is None:
                if not outside:
                    self._damage(pts, last is not None)
                if last is None or self._on_error == "skip":
                    continue
                image = last
            last = image
            if not outside:
                count += 1
                yield Frame(image, pts, duration, repeated)
        if not count:
            raise MediaError(
                "no frames in this range" if self._from or self._to else "no frame can be decoded"
            )
        if self.damaged > 1:
            done = "left out" if self._on_error == "skip" else "replaced by the frame before"
            self.notes.append(f"{self.damaged} damaged frames in all, {done}")

    def _damage(self, pts: int, replaceable: bool) -> None:
        self.damaged += 1
        where = clock(float((pts - self.info.start) * self.info.time_base))
        if self._on_error == "fail":
            raise MediaError(f"the frame at {where} is damaged")
        if self.damaged == 1:
            repeat = replaceable and self._on_error == "repeat"
            done = "the frame before it is shown again" if repeat else "it is left out"
            self.notes.append(f"the frame at {where} is damaged: {done}")

    def _pixels(self) -> Iterator[tuple[int, int, Image | None]]:
        """(pts, duration, upright picture or None where it is damaged)."""
        after: int | None = None
        at = self._seek_to()
        wanted = self._opencv_wanted and self.info.bit_depth == 8 and not self.info.interlaced
        if wanted and at is not None:
            # OpenCV cannot be trusted to find a place. PyAV goes there, with OpenCV's conversion,
            # so that a frame is the same whether the reading began before it or far before it.
            self._careful = not self._opencv_is_faithful()
            self.decoder = "PyAV"
            wanted = False
        if wanted:
            for item in self._opencv():
                if item is None:  # not faithful from here on
                    break
                after = item[0]
                yield item
            else:
                if after is not None:
                    return
        if self.decoder != "PyAV":
            self.decoder = f"{self.decoder}, PyAV" if self.decoder else "PyAV"
        for pts, frame in self._frames({}, at if after is None else after):
            if after is not None and pts <= after:
                continue
            whole = frame is not None and not frame.is_corrupt
            image = self.info.turn.apply(self._convert(frame)) if whole else None
            yield pts, frame.duration if frame is not None else 0, image

    def _seek_to(self) -> int | None:
        """Where to begin so that the first frame wanted is whole; None: at the beginning."""
        if self._from is None:
            return None
        at = int(self._from - _SEEK_BEFORE / self.info.time_base)
        return at if at > self.info.start else None

    def _frames(
        self, options: dict[str, str], at: int | None = None
    ) -> Generator[tuple[int, Any], None, None]:
        """PyAV's frames from a container of their own, each checked for its size.

        ``at``: frames before this pts may be left out.
        """
        name = self.info.container.split(",")[0]
        if at is not None and name in ("mov", "matroska"):  # they have an index of key frames
            frames = self._decoded(options, at)
            first = next(frames, None)
            if first is not None and first[0] <= at:
                yield first
                yield from frames
                return
            frames.close()
        yield from self._decoded(options, None)

    def _decoded(
        self, options: dict[str, str], at: int | None
    ) -> Generator[tuple[int, Any], None, None]:
        with ExitStack() as stack:
            file = stack.enter_context(open_file(self.path))
            container = stack.enter_context(open_input(file))
            stream = video_stream(container)
            context = stream.codec_context
            context.options = options
            context.thread_count = self._threads
            context.thread_type = "AUTO"
            size = (self.info.width, self.info.height)
            size = size[::-1] if self.info.turn.transpose else size
            if at is not None:
                try:
                    container.seek(at, stream=stream)
                except (av.error.FFmpegError, OSError):
                    return
            for pts, frame in decode(container, stream):
                if frame is not None and (frame.width, frame.height) != size:
                    where = clock(float((pts - self.info.start) * self.info.time_base))
                    raise MediaError(
                        f"the frame size changes from {size[0]}x{size[1]} to "
                        f"{frame.width}x{frame.height} at {where}"
                    )
                yield pts, frame

    def _opencv(self) -> Generator[tuple[int, int, Image | None] | None, None, None]:
        """OpenCV's frames; ends with None where PyAV has to take over."""
        with ExitStack() as stack:
            file = stack.enter_context(open_file(self.path))
            try:
                capture = _Capture(_for_opencv(file, self.path), self.info, self._threads)
            except Exception:  # no OpenCV here, or a name that it should not see
                yield None
                return
            stack.callback(capture.close)
            # Deblocking and inverse transform change pixels only, and these pixels are not used.
            cheap = {"skip_loop_filter": "all", "skip_idct": "all"}
            shadow = self._frames(cheap)
            stack.callback(shadow.close)
            for pts, frame in shadow:
                if frame is None:
                    yield pts, 0, None
                    continue
                image = None if frame.interlaced_frame else capture.read(pts)
                if image is None or image.shape[:2] != (frame.height, frame.width):
                    yield None
                    return
                if self.decoder != "OpenCV":
                    if not self._agree(image):
                        yield None
                        return
                    self.decoder, self._careful = "OpenCV", False
                whole = not frame.is_corrupt
                yield pts, frame.duration, self.info.turn.apply(image) if whole else None

    def _opencv_is_faithful(self) -> bool:
        """Whether a reading from the beginning would take OpenCV's pixels."""
        frames = self._opencv()
        with closing(frames):
            return next(frames, None) is not None

    def _agree(self, image: Image) -> bool:
        """Whether OpenCV's first frame is PyAV's, within rounding.

        OpenCV before 5.0 knows no colour matrix, and gives black where its conversion fails.
        """
        for _, frame in self._frames({}):
            if frame is not None:
                other = self._convert(frame)
                difference = np.abs(image[::4, ::4].astype(np.int16) - other[::4, ::4])
                return float(difference.mean()) < _CV_MATCH
        return False

    def _convert(self, frame: Any) -> Image:
        """A decoded frame as (H, W, 3) RGB, by the frame's own matrix and range."""
        if frame.interlaced_frame and frame.height % 4 == 0 and has_halved_rows(frame):
            image = None
            for row, part in enumerate(split_fields(frame)):
                half = self._plain(part)
                if image is None:
                    image = np.empty((frame.height, frame.width, 3), half.dtype)
                image[row::2] = half
            assert image is not None
            return image
        return self._plain(frame)

    def _plain(self, frame: Any) -> Image:
        # After OpenCV its conversion, which rounds down and is 0.4 of a level darker, goes on.
        careful = self.info.bit_depth > 8 or self._careful
        done = self._reformatter.reformat(
            frame,
            format="rgb24" if self.info.bit_depth == 8 else "rgb48le",
            interpolation=_CAREFUL if careful else None,
        )
        image: Image = done.to_ndarray()
        return image


def has_halved_rows(frame: Any) -> bool:
    """Whether the colour planes have half the rows, so that each row belongs to one field only."""
    parts = frame.format.components
    return len(parts) > 2 and parts[1].height * 2 == parts[0].height


def _rows(plane: Any) -> NDArray[np.uint8]:
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height]


def split_fields(frame: Any) -> tuple[Any, Any]:
    """The even and the odd rows of an interlaced frame as two frames: a colour row lies between
    the brightness rows of its own field, and conversion must not mix the two moments."""
    fields = []
    for row in range(2):
        part = av.VideoFrame(frame.width, frame.height // 2, frame.format.name)
        for source, target in zip(frame.planes, part.planes, strict=True):
            width = min(source.line_size, target.line_size)
            rows = np.zeros((target.buffer_size // target.line_size, target.line_size), np.uint8)
            rows[: target.height, :width] = _rows(source)[row::2, :width]
            target.update(rows.tobytes())
        part.colorspace, part.color_range = frame.colorspace, frame.color_range
        fields.append(part)
    return fields[0], fields[1]


def weave_fields(top: Any, bottom: Any) -> Any:
    """The inverse of :func:`split_fields`."""
    frame = av.VideoFrame(top.width, top.height * 2, top.format.name)
    for row, part in enumerate((top, bottom)):
        for source, target in zip(part.planes, frame.planes, strict=True):
            width = min(source.line_size, target.line_size)
            rows = np.frombuffer(memoryview(target), np.uint8).reshape(-1, target.line_size).copy()
            rows[: target.height][row::2, :width] = _rows(source)[:, :width]
            target.update(rows.tobytes())
    return frame


def constant_rate(frames: Iterable[Frame], info: VideoInfo) -> Iterator[Frame]:
    """The same video at its average rate: at each moment the frame that is shown then.

    Frames that none of the moments falls on are left out, others come more than once.
    """
    step = 1 / (info.frame_rate * info.time_base)  # not always whole
    count = 0
    shown: Frame | None = None
    for frame in chain(frames, (None,)):
        if shown is None:
            count = 0 if frame is None else round((frame.pts - info.start) / step)
        else:
            end = shown.pts + (shown.duration or step) if frame is None else frame.pts
            # Half a step early: times that were rounded must not make a frame miss its moment.
            while (at := info.start + round(count * step)) < end - step / 2:
                count += 1
                until = info.start + round(count * step)
                yield Frame(shown.image, at, until - at, shown.repeated)
        shown = frame


_CAREFUL = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
