"""OpenCV's pixels of an ordinary clip."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from numpy.typing import NDArray

from ...errors import MediaError
from .info import Image, VideoInfo

_ALIKE = ("yuv420p", "yuvj420p", "yuva420p", "yuv422p", "yuvj422p")
_RETRIES = 3  # OpenCV answers "no frame" once for each packet that its decoder refuses


def converts_alike(info: VideoInfo) -> bool:
    """Whether PyAV can convert as OpenCV does, so that a frame is the same from both.

    swscale has a way of its own for a few formats with even heights, and both take it. For others
    they choose different filters for the colours.
    """
    if info.limited_grey:
        return False
    kind = av.VideoFormat(info.pixel_format, 64, 64)
    parts = kind.components
    if len(parts) < 3 or (parts[1].width, parts[1].height) == (64, 64):
        return True
    height = info.width if info.turn.transpose else info.height
    return info.pixel_format in _ALIKE and height % 2 == 0


def takes_it(info: VideoInfo) -> bool:
    """Whether OpenCV, which takes the first video stream, reads the one that players show."""
    return not any(other.kind == "video" and other.index < info.stream for other in info.streams)


def for_opencv(file: IO[bytes], path: Path) -> str:
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


class Capture:
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
        while failures < _RETRIES:
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
