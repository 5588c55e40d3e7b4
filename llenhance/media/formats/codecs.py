"""What all readers share of OpenCV and Pillow: found late, kept quiet, exceptions made ours."""

from __future__ import annotations

import contextlib
import functools
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from ... import memory
from ...errors import MediaError
from ...pixels import Array
from ..picture import Limits, Picture

# What decoders raise for bad bytes: Pillow's fuzzers allow these, numpy and struct add theirs. Some
# are also raised for want of memory, which is no damage: reason() tells them apart.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OverflowError,
    ZeroDivisionError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    UserWarning,
)

# Pillow forgives truncation by a switch of the whole process.
_forgiving = threading.Lock()
_forgiven = 0  # how often the switch was on
_quiet_lock = threading.Lock()
_quiet_inside = 0
_quiet_outer: contextlib.ExitStack = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings inside. They too are the process's: the first in switches, the last out back."""
    global _quiet_inside
    with _quiet_lock:
        if not _quiet_inside:
            _quiet_outer.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _quiet_inside += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_inside -= 1
            if not _quiet_inside:
                _quiet_outer.close()


@functools.cache
def cv2() -> Any:
    """OpenCV, quiet. Raises MediaError where the system lacks a library that it needs."""
    try:
        import cv2 as module
    except ImportError as error:
        raise MediaError(
            f"OpenCV cannot be loaded ({error}); on Debian and Ubuntu: apt install libgl1"
        ) from None
    module.utils.logging.setLogLevel(module.utils.logging.LOG_LEVEL_SILENT)
    return module


def opencv_decode(data: bytes) -> Array | None:
    """The pixels as OpenCV has them (BGR), in their own depth; None where it knows no such picture.

    Raises MediaError for a picture that it refuses.
    """
    with _opencv_errors("is damaged"):
        decoded: Array | None = cv2().imdecode(
            np.frombuffer(data, np.uint8), cv2().IMREAD_UNCHANGED
        )
    return decoded


def opencv_encode(suffix: str, image: Array) -> bytes:
    """An array as OpenCV wants it (BGR) in the format of a suffix. Raises MediaError."""
    failure = f"cannot be written as {suffix[1:].upper()}"
    with _opencv_errors(failure):
        done, coded = cv2().imencode(suffix, np.ascontiguousarray(image))
    if not done:
        raise MediaError(failure)
    return bytes(coded)


@contextlib.contextmanager
def _opencv_errors(failure: str) -> Iterator[None]:
    """OpenCV's exceptions, which are of a class of their own, as ours."""
    try:
        yield
    except cv2().error as error:
        # Its code and text stand as attributes on the class, where another thread's may be by now.
        why = reason(error).rpartition("error: ")[2]
        raise MediaError(f"{failure}: OpenCV refuses it: {why}") from None


def reason(error: BaseException) -> str:
    """The first line of what a decoder's exception says.

    Raises MemoryError instead where it says that there was not enough memory.
    """
    if memory.ran_out(error):
        raise MemoryError(str(error)) from None
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Opener:
    """Makes a Pillow plugin once, so that later frames go on from earlier ones; or again."""

    def __init__(self, make: Callable[[], Image.Image]) -> None:
        self._make = make
        self._image: Image.Image | None = None

    def __call__(self) -> Image.Image:
        if self._image is None:
            self._image = self._make()
        return self._image

    def again(self) -> None:
        """A plugin that failed has lost its place."""
        self._image = None


def pillow_array(
    opener: Opener, limits: Limits, picture: Picture, *, frame: int = 0, cmyk: bool = False
) -> Array:
    """Decode with a Pillow plugin: (H, W), (H, W, 2), (H, W, 3) or (H, W, 4) uint8.

    ``cmyk``: the caller knows what to do with four channels of ink, 0 for none.

    ``opener`` makes the plugin itself, not Image.open: that has a pixel limit of its own, which
    is the process's, and would ask every plugin. Raises MediaError.
    """

    def decode() -> Array:
        with quiet():
            image = opener()
            limits.check(*image.size)
            if frame:
                image.seek(frame)
            image.load()
            return np.array(image) if cmyk and image.mode == "CMYK" else array(image)

    global _forgiven
    try:
        forgiven = _forgiven
        pixels = decode()
        if forgiven == _forgiven and not ImageFile.LOAD_TRUNCATED_IMAGES:
            return pixels
        # Another thread forgave a picture of its own meanwhile: was this one whole?
        with _forgiving:
            opener.again()
            return decode()
    except DECODER_ERRORS as error:
        why = reason(error)
    limits.damaged(why)
    with _forgiving:
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        _forgiven += 1
        opener.again()
        try:
            pixels = decode()
        except DECODER_ERRORS as error:
            raise MediaError(f"is damaged: {reason(error)}") from None
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before
    picture.truncated = True
    return pixels


def array(image: Image.Image) -> Array:
    """A loaded Pillow image of 8 bits -> our array; palette and 1-bit become RGB(A)."""
    transparent = "transparency" in image.info
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if transparent or image.mode == "PA" else "RGB")
    elif image.mode == "1":
        image = image.convert("RGBA" if transparent else "RGB")
    elif image.mode == "L" and transparent:
        image = image.convert("LA")
    elif image.mode == "RGB" and transparent:
        image = image.convert("RGBA")
    elif image.mode in ("RGBX", "RGBa"):
        image = image.convert("RGB" if image.mode == "RGBX" else "RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise MediaError(f"has pixels of a rare kind ({image.mode}) that is not read")
    return np.array(image)
