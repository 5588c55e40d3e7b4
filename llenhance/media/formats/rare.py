"""Pictures of old or rare formats, read by imageio, or Pillow alone, and written as PNG."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import PsdImagePlugin

from ...errors import MediaError
from .. import colour, metadata
from ..picture import Limits, Picture
from .codecs import DECODER_ERRORS, Opener, pillow_array, quiet, reason

MAGIC = (b"8BPS\0\1", b"DDS ", b"\0\0\1\0", b"\x01\xda\0\1", b"\x01\xda\1\1")
PSD = b"8BPS"
PSD_IPTC, PSD_ICC, PSD_EXIF, PSD_XMP = 0x0404, 0x040F, 0x0422, 0x0424  # Photoshop resources
PSD_CMYK = 4  # a mode
PCX = b"\x0a"  # then a version of 0 to 5, and 1 for run lengths


def recognised(head: bytes) -> bool:
    """Whether a file begins like a Photoshop document, a DDS, an icon, an SGI or a PCX picture."""
    is_pcx = head[:1] == PCX and head[1:2] in b"\0\2\3\4\5" and head[2:3] == b"\1"
    return len(head) > 16 and (head.startswith(MAGIC) or is_pcx)


def read(data: bytes, limits: Limits) -> Picture:
    """The picture (of a Photoshop document, all its layers flattened). Raises MediaError."""
    if data.startswith(PSD):
        return _read_psd(data, limits)
    import imageio.v3 as iio

    try:
        with quiet():
            shape = iio.improps(io.BytesIO(data), plugin="pillow", index=0).shape
            limits.check(shape[1], shape[0])
            pixels = iio.imread(io.BytesIO(data), plugin="pillow", index=0)
    except MediaError:
        raise
    except DECODER_ERRORS as error:
        raise MediaError(f"is damaged: {reason(error)}") from None
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype not in (np.uint8, np.uint16) or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (2, 3, 4))
    ):
        raise MediaError(f"has samples of a kind that is not read ({pixels.dtype})")
    return Picture([np.ascontiguousarray(pixels)], "rare")


def _read_psd(data: bytes, limits: Limits) -> Picture:
    """A Photoshop document of 8 bits, flattened as it is in the file. Raises MediaError.

    By Pillow without imageio, which asks it for a frame 0, where a document's begin at 1.
    """
    try:
        bits, mode = struct.unpack_from(">HH", data, 22)
        found, layered = _psd_sections(data)
    except struct.error:
        raise MediaError("is damaged: the Photoshop document ends in its header") from None
    if bits not in (1, 8):
        raise MediaError(f"is a Photoshop document of {bits} bits a channel, which is not read")
    picture = Picture([], "rare", exif=found.get(PSD_EXIF), xmp=found.get(PSD_XMP))
    picture.iptc, picture.icc = found.get(PSD_IPTC), found.get(PSD_ICC)
    opener = Opener(lambda: PsdImagePlugin.PsdImageFile(io.BytesIO(data)))
    pixels = pillow_array(opener, limits, picture, cmyk=True)
    if mode == PSD_CMYK:
        pixels = colour.cmyk_to_srgb(pixels, picture)
    elif pixels.ndim == 3 and pixels.shape[2] == 4 and not layered:
        pixels = np.ascontiguousarray(pixels[..., :3])  # a selection that was saved is no alpha
    picture.frames = [pixels]
    return picture


def _psd_sections(data: bytes) -> tuple[dict[int, bytes], bool]:
    """The resources by their numbers, and whether a fourth channel is the layers' transparency.

    Raises struct.error.
    """
    at = 26
    at += 4 + struct.unpack_from(">I", data, at)[0]  # a palette
    size = struct.unpack_from(">I", data, at)[0]
    found = {n: body for n, _, body in metadata.resources(data[at + 4 : at + 4 + size])}
    at += 4 + size
    size, inner = struct.unpack_from(">II", data, at)
    # A number of layers below 0 is Photoshop's way to say so.
    return found, size > 6 and inner > 2 and struct.unpack_from(">h", data, at + 8)[0] < 0
