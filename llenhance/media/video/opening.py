"""Opening a video file: that one file and no other, whatever its name and its bytes say."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import IO, Any

import av

from ...errors import MediaError

# Demuxers that read one file and nothing else. Playlists, concat scripts and manifests (hls, dash,
# concat, imf, ...) name other files, which a video from a stranger must not make us read; the
# demuxer is chosen by content, so the check is on its name and never on the file's.
_DEMUXERS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,ivf,gif,yuv4mpegpipe,"
    "h264,hevc,obu,av1,m4v,mjpeg,dv,apng"
)

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once by OpenCV: quiet
av.logging.set_level(None)


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


Y4M_HEAD = 256  # bytes; FFmpeg reads no longer one
Y4M_FRAME = b"FRAME\n"
_Y4M_CHROMA = re.compile(rb"(420|422|444)(?:jpeg|mpeg2|paldv|(p\d+))?")


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
    elif head == b"YUV4MPEG":
        end = _y4m_end(file, size)
    else:
        end = size
    return max(0, end - size)


def _y4m_end(file: IO[bytes], size: int) -> int:
    """Where the last frame of a Y4M ends; ``size`` where its frames are not all alike."""
    file.seek(0)
    head, frame = y4m_sizes(file.readline(Y4M_HEAD))
    whole, rest = divmod(size - head, frame) if frame else (0, 0)
    file.seek(head + whole * frame)
    if rest and file.read(len(Y4M_FRAME)) == Y4M_FRAME[:rest]:
        return head + (whole + 1) * frame
    return size


def y4m_sizes(start: bytes) -> tuple[int, int]:
    """Bytes of the header that ``start`` begins with, and of each frame that has no fields of its
    own; (0, 0) for a header that is not known."""
    head = start[: start.find(b"\n") + 1]
    found = re.match(rb"YUV4MPEG2 W(\d+) H(\d+) .*?(?:C(\w+)|$)", head)
    chroma = found and _Y4M_CHROMA.fullmatch(found[3] or b"420")
    if not found or not chroma:
        return 0, 0
    width, height = int(found[1]), int(found[2])
    across, down = {b"420": (2, 2), b"422": (2, 1), b"444": (1, 1)}[chroma[1]]
    values = width * height + 2 * -(-width // across) * -(-height // down)
    return len(head), len(Y4M_FRAME) + values * (2 if chroma[2] else 1)


def cut_off(missing: int) -> str:
    return f"cut off: {missing:,} bytes are missing at the end of the file"


# The boxes that the outermost level of an MP4 or MOV may have.
_BOXES = frozenset(
    b"ftyp styp pdin moov moof mfra mdat imda idat free skip wide uuid meta sidx ssix prft emsg"
    b" udta pnot PICT".split()
)


def _mp4_end(file: IO[bytes], size: int) -> int:
    at = 0
    whole: set[bytes] = set()
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: to the end of the file
            return size
        kind = head[4:8]
        if kind not in _BOXES and {b"moov", b"mdat"} <= whole:
            return size  # a camera put bytes of its own after the video
        whole.add(kind)
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
