"""Pictures of old or rare formats, read by imageio and written as PNG."""

from __future__ import annotations

import io

import numpy as np

from ...errors import MediaError
from ..picture import Limits, Picture
from .codecs import DECODER_ERRORS, quiet, reason

MAGIC = (b"8BPS\0\1", b"DDS ", b"\0\0\1\0", b"\x01\xda\0\1", b"\x01\xda\1\1")
PCX = b"\x0a"  # then a version of 0 to 5, and 1 for run lengths


def recognised(head: bytes) -> bool:
    """Whether a file begins like a Photoshop document, a DDS, an icon, an SGI or a PCX picture."""
    is_pcx = head[:1] == PCX and head[1:2] in b"\0\2\3\4\5" and head[2:3] == b"\1"
    return len(head) > 16 and (head.startswith(MAGIC) or is_pcx)


def read(data: bytes, limits: Limits) -> Picture:
    """The picture (of a Photoshop document, all its layers flattened). Raises MediaError."""
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
