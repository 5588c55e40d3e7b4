"""Formats without metadata: BMP by Pillow and OpenCV, PNM by a few lines of numpy."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import BmpImagePlugin

from ...errors import MediaError
from ...pixels import WHITE, Array, spread
from ..picture import Limits, Picture, Writing
from .codecs import Opener, opencv_encode, pillow_array


def read_bmp(data: bytes, limits: Limits) -> Picture:
    """A BMP. Raises MediaError."""
    picture = Picture([], "bmp")
    picture.frames = [
        pillow_array(Opener(lambda: BmpImagePlugin.BmpImageFile(io.BytesIO(data))), limits, picture)
    ]
    return picture


def write_bmp(picture: Picture, writing: Writing) -> bytes:  # noqa: ARG001
    """A BMP of the first frame: 8-bit grey, RGB or RGBA."""
    frame = picture.frames[0]
    if frame.ndim == 3 and frame.shape[2] == 2:
        frame = frame[..., [0, 0, 0, 1]]
    bgr = frame if frame.ndim == 2 else frame[..., [2, 1, 0, 3][: frame.shape[2]]]
    return opencv_encode(".bmp", bgr)


def _token(data: bytes, at: int) -> tuple[int, int]:
    """The next number of a PNM header, and where it ends. Comments go to the end of their line."""
    found = re.compile(rb"(?:\s|#[^\n\r]*[\n\r])*(\d{1,9})").match(data, at)
    if not found:
        raise MediaError("is a PNM with a damaged header")
    return int(found[1]), found.end()


def read_pnm(data: bytes, limits: Limits) -> Picture:
    """PBM, PGM or PPM, text or binary. Raises MediaError."""
    kind = data[1] - ord("0")
    width, at = _token(data, 2)
    height, at = _token(data, at)
    top, at = (1, at) if kind in (1, 4) else _token(data, at)
    limits.check(width, height)
    if not 1 <= top <= 65535:
        raise MediaError(f"is a PNM with values up to {top}")
    channels = 3 if kind in (3, 6) else 1
    picture = Picture([], "pnm")
    want = width * height * channels
    if kind == 4:
        size = height * -(-width // 8)
        rows, cut = _padded(data[at + 1 :], size, limits)
        picture.drop_rest(data, at + 1 + size)
        bits = np.unpackbits(rows.reshape(height, -1), axis=1)[:, :width]
        values = 1 - bits.ravel()
    elif kind in (5, 6):
        size = want if top < 256 else 2 * want
        raw, cut = _padded(data[at + 1 :], size, limits)
        picture.drop_rest(data, at + 1 + size)
        values = raw if top < 256 else raw.view(">u2").astype(np.uint16)
    else:
        values, cut = _text(data[at:], want, limits, one_digit=kind == 1)
        values = 1 - values if kind == 1 else values
    picture.truncated = cut
    pixels = spread(values, top, np.uint8 if top < 256 else np.uint16)
    pixels = pixels.reshape(height, width, channels)
    if kind in (1, 4):
        pixels = np.repeat(pixels, 3, 2)
    picture.frames = [pixels if pixels.shape[2] == 3 else pixels[..., 0]]
    return picture


def _padded(raw: bytes, size: int, limits: Limits) -> tuple[Array, bool]:
    """``size`` bytes, zeros for what is missing, if that is allowed; and whether some was."""
    cut = len(raw) < size
    if cut:
        limits.damaged("it holds fewer pixels than it claims")
    return np.frombuffer(raw[:size].ljust(size, b"\0"), np.uint8), cut


def _text(raw: bytes, count: int, limits: Limits, *, one_digit: bool) -> tuple[Array, bool]:
    """``count`` decimal numbers, and whether some are missing; a bitmap's need no spaces."""
    raw = re.sub(rb"#[^\n\r]*", b"", raw)
    words = re.findall(rb"[01]" if one_digit else rb"\d{1,5}", raw)[:count]
    cut = len(words) < count
    if cut:
        limits.damaged("it holds fewer pixels than it claims")
        words += [b"0"] * (count - len(words))
    return np.array(words, dtype=np.int64), cut


def write_pnm(picture: Picture, writing: Writing) -> bytes:  # noqa: ARG001
    """A binary PGM or PPM of the first frame, 8 or 16 bits."""
    frame = picture.frames[0]
    height, width = frame.shape[:2]
    head = b"P%d\n%d %d\n%d\n" % (5 if frame.ndim == 2 else 6, width, height, WHITE[frame.dtype])
    return head + (frame.astype(">u2") if frame.dtype == np.uint16 else frame).tobytes()
