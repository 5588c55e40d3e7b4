"""A camera as a video, and a window that shows it before and after."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MediaError, Refusal
from .info import Image, plain_info
from .reading import VideoReader
from .scope import Scope

_TITLE = "llenhance: before, after (q ends)"
_FAILURES = 30  # a camera may need a while for its first frame


class Closed(Exception):
    """The person at the window has seen enough."""


def open_capture(number: int) -> Any:
    """OpenCV's capture of a camera; MediaError when there is none."""
    import cv2

    logging = cv2.utils.logging
    level = logging.setLogLevel(0)  # else it tells on stderr of every place where it looked
    try:
        capture = cv2.VideoCapture(number)
    finally:
        logging.setLogLevel(level)
    if not capture.isOpened():
        capture.release()
        raise MediaError(f"there is no camera {number}, or it is in use")
    return capture


class CameraReader(VideoReader):
    """Frames as they come, each at the time when it came, for ``duration`` seconds.

    Raises MediaError when there is no camera or it gives no picture.
    """

    def __init__(self, number: int, duration: float | None = None, **choices: Any) -> None:
        import cv2

        self._capture, self._duration = open_capture(number), duration
        first = self._grab()
        if first is None:
            self._capture.release()
            raise MediaError(f"camera {number} gives no pictures")
        self._first: Image | None = first
        rate = Fraction(self._capture.get(cv2.CAP_PROP_FPS) or 0).limit_denominator(1001)
        rate = rate if 1 <= rate <= 1000 else Fraction(30)
        info = plain_info(
            Path(f"camera:{number}"),
            "camera",
            (first.shape[1], first.shape[0]),
            rate,
            time_base=Fraction(1, 1000),
            frames=max(1, round((duration or 0) * rate)),
        )
        super().__init__(info.path, info=info, **choices)
        self.decoder = "OpenCV"

    def close(self) -> None:
        super().close()
        self._capture.release()

    def _grab(self) -> Image | None:
        """(H, W, 3) RGB uint8, or None when the camera has no more."""
        for _ in range(_FAILURES):
            found, image = self._capture.read()
            if found and image is not None and image.ndim == 3:
                return np.ascontiguousarray(image[..., ::-1])
            time.sleep(0.01)
        return None

    def _pixels(self) -> Iterator[tuple[int, int, Image | None]]:
        image, self._first = self._first, None
        began, latest = time.monotonic(), -1
        while image is not None:
            if image.shape[:2] != (self.info.height, self.info.width):
                raise MediaError("the frame size of the camera changes")
            seconds = time.monotonic() - began
            if self._duration is not None and seconds >= self._duration:
                return
            latest = max(latest + 1, round(seconds * 1000))
            yield latest, 0, image
            image = self._grab()
        raise MediaError("the camera gives no more pictures")


def check_display() -> None:
    """Raises Refusal where no window can be shown: OpenCV would end the process."""
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise Refusal("no display for a live window: give -o FILE and --duration SECONDS")


class Window(Scope):
    """Shows each frame beside its enhanced one; :class:`Closed` when a person presses q."""

    def __init__(self) -> None:
        check_display()
        self.frames = 0

    def close(self) -> None:
        import cv2

        cv2.destroyAllWindows()

    def show(self, before: Image, after: Image) -> None:
        """(H, W, 3) RGB uint8, and (sH, sW, 3)."""
        import cv2

        size = after.shape[1::-1]
        if before.shape != after.shape:
            before = np.asarray(cv2.resize(before, size, interpolation=cv2.INTER_CUBIC), np.uint8)
        cv2.imshow(_TITLE, np.hstack((before, after))[..., ::-1])
        key = cv2.waitKey(1) & 0xFF
        self.frames += 1
        if key in (ord("q"), 27) or cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) < 1:
            raise Closed
