"""Pictures that are only read, through extras: HEIC by pillow-heif, camera RAW by rawpy."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

import numpy as np

from ...errors import MediaError
from .. import metadata, tiffblock
from ..picture import Limits, Picture
from ..tiffblock import Block
from . import isobmff
from .avif import widened
from .codecs import DECODER_ERRORS, quiet, reason
from .tiff import DNG, DNG_VERSION, STRUCTURE, SUB_IFDS

# The first bytes of raw formats that are TIFF in all but their magic number.
DISGUISED = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
CAMERA_RAW = "http://ns.adobe.com/camera-raw-settings/1.0/"
NOISE = b"unknown file:"  # how LibRaw's lines begin for a picture from memory
CFA, LINEAR_RAW = 32803, 34892  # photometric interpretations of a sensor's values


def is_raw_tiff(data: bytes) -> bool:
    """Whether a file that begins like a TIFF is a camera's: it holds a sensor's values."""
    if data[8:10] == b"CR" or data[8:12] in (b"IIII", b"MMMM"):  # Canon; Phase One
        return True
    try:
        block = Block(data)
        first = block.offset(block.first)
        if block.find(first, DNG_VERSION):
            return True
        below = block.find(first, SUB_IFDS)
        inner = block.integers(below)[:8] if below and below.kind in (4, 13) else []
        kinds = [block.integer(block.find(at, 262)) for at in (first, *inner)]
    except MediaError:
        return False
    return CFA in kinds or LINEAR_RAW in kinds


def read_heif(data: bytes, limits: Limits) -> Picture:
    """The primary picture of a HEIC, upright, 8 bits or more. Raises MediaError."""
    meta = isobmff.parse(data)
    for size in meta.sizes:
        limits.check(*size)
    try:
        import pillow_heif
    except ImportError:
        raise MediaError("is HEIC, which needs: pip install 'llenhance[heif]'") from None
    picture = Picture([], "heif", exif=meta.exif, xmp=meta.xmp, icc=meta.icc)
    picture.cicp = None if meta.icc else meta.cicp
    try:
        with quiet():
            file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
            limits.check(*file.size)
            pixels = np.asarray(file)
            mode = file.mode
    except MediaError:
        raise
    except DECODER_ERRORS as error:
        raise MediaError(f"is damaged: {reason(error)}") from None
    if ";16" in mode and meta.depth < 16:
        # Values stand in the upper bits.
        pixels = widened(pixels >> np.uint16(16 - meta.depth), meta.depth)
    picture.frames = [np.array(pixels)]
    if meta.gain_map:
        picture.notes.append("a gain map was dropped (it was made for the dark picture)")
    for what in dict.fromkeys(meta.others):
        picture.notes.append(f"{what} beside the picture was dropped")
    if len(file) > 1:
        picture.notes.append(f"only the main one of {len(file)} pictures is read")
    metadata.renew(picture)
    return picture


_stderr_lock = threading.Lock()


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """LibRaw prints on the process's stderr: hold all that is printed back, then let through
    what others printed meanwhile.
    """
    with _stderr_lock, tempfile.TemporaryFile() as held:
        if sys.stderr is not None:
            sys.stderr.flush()
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(real, 2)
            held.seek(0)
            for line in held:
                if not line.startswith(NOISE):
                    os.write(real, line)
            os.close(real)


def read_raw(data: bytes, limits: Limits) -> Picture:
    """A camera's raw picture, developed to 16-bit sRGB, upright.

    White balance as the camera set it, no automatic brightening, sRGB's own curve.
    Raises MediaError.
    """
    try:
        import rawpy
    except ImportError:
        raise MediaError("is camera RAW, which needs: pip install 'llenhance[raw]'") from None
    picture = Picture([], "raw")
    try:
        with _without_noise(), rawpy.imread(io.BytesIO(data)) as raw:
            limits.check(raw.sizes.width, raw.sizes.height)
            pixels = raw.postprocess(
                use_camera_wb=True,
                no_auto_bright=True,
                output_bps=16,
                output_color=rawpy.ColorSpace.sRGB,
                gamma=(2.4, 12.92),
            )
    except MediaError:
        raise
    except rawpy.LibRawUnsufficientMemoryError as error:
        raise MemoryError(_text(error)) from None
    except (rawpy.LibRawError, *DECODER_ERRORS) as error:
        raise MediaError(f"is a raw picture that does not decode: {_text(error)}") from None
    picture.frames = [pixels[..., 0] if pixels.shape[2] == 1 else np.array(pixels)]
    _raw_metadata(picture, data)
    metadata.renew(picture)
    return picture


def _text(error: BaseException) -> str:
    """LibRaw's messages are bytes."""
    first = error.args[0] if error.args else ""
    return first.decode("ascii", "replace") if isinstance(first, bytes) else reason(error)


def _raw_metadata(picture: Picture, data: bytes) -> None:
    """The descriptive tags of a raw file that is a TIFF underneath."""
    if data[:4] in DISGUISED:
        data = (b"II*\0" if data[:2] == b"II" else b"MM\0*") + data[4:]
    try:
        block = Block(data)
        tags = block.tags(block.offset(block.first))
    except MediaError:
        picture.notes.append("the metadata of this kind of raw file is not read")
        return
    xmp = tags.main.pop(tiffblock.XMP, None)
    # How it is to be developed, which it is by now.
    picture.xmp = metadata.without(xmp.data, CAMERA_RAW) if xmp else None
    skip = STRUCTURE | {tiffblock.IPTC, tiffblock.PHOTOSHOP}
    tags.main = {n: t for n, t in tags.main.items() if n not in skip and n not in DNG}
    picture.exif = tiffblock.build(tags)
