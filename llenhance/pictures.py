"""A picture from a file or standard input: decoded with all it carries, or only as it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import memory, pixels
from .errors import MediaError
from .media import colour, files, images
from .media.picture import MAX_PIXELS, Limits, Picture
from .pixels import Rgb8
from .standard_input import StandardInput


def read_picture(
    source: Path | StandardInput, max_pixels: int = MAX_PIXELS, *, allow_truncated: bool = False
) -> Picture:
    """Decode a picture; raises MediaError without its name."""
    most = Limits(max_pixels).size
    if isinstance(source, Path):
        data = files.read(source, most)
    elif len(data := source.read(most + 1)) > most:
        raise MediaError(files.too_long(most))
    elif data and images.sniff(data) is None:
        raise MediaError("is not a picture that is read (a video comes as Y4M, or with --raw)")
    return images.read(data, max_pixels=max_pixels, allow_truncated=allow_truncated)


def read_rgb8(path: Path, max_pixels: int = MAX_PIXELS, *, allow_truncated: bool = False) -> Rgb8:
    """The first frame of a picture in sRGB, (H, W, 3), without its transparency; raises MediaError
    that names the file."""
    try:
        picture = read_picture(path, max_pixels, allow_truncated=allow_truncated)
        frame = colour.as_srgb(picture.frames[0], picture.icc, mapped=picture.linear)
        rgb, _ = pixels.split(frame)
        if rgb.dtype == np.float32:
            rgb = pixels.tone_map(rgb)
        return pixels.convert(rgb, np.dtype(np.uint8))
    except MediaError as error:
        raise MediaError(f"{path}: {error}") from None
    except MemoryError:
        raise MediaError(f"{path}: {memory.TOO_LITTLE}") from None
