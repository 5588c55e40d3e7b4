"""AVIF: pixels of 8 to 12 bits by libavif through imagecodecs, animations through Pillow."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image

from ...errors import MediaError
from ...pixels import Array, spread, to_float
from .. import metadata
from ..picture import Limits, Picture, Writing
from . import isobmff
from .codecs import DECODER_ERRORS, Opener, pillow_array, quiet, reason

QUALITY = 90  # AVIF does not tell how it was coded
MATRICES = (1, 5, 6, 9)  # from RGB to YCbCr by H.273: BT.709, BT.601 twice, BT.2020
USUAL_MATRIX = 6


def read(data: bytes, limits: Limits) -> Picture:
    """An AVIF, upright; all frames of a sequence. Raises MediaError."""
    import imagecodecs

    meta = isobmff.parse(data)
    for size in meta.sizes:
        limits.check(*size)
    if not meta.sizes:
        raise MediaError("is damaged: it does not tell its size")
    picture = Picture([], "avif", exif=meta.exif, xmp=meta.xmp, icc=meta.icc, depth=meta.depth)
    picture.cicp = None if meta.icc else meta.cicp
    opener = Opener(lambda: AvifImagePlugin.AvifImageFile(io.BytesIO(data)))

    try:
        with quiet():
            image = opener()
    except DECODER_ERRORS as error:
        raise MediaError(f"is damaged: {reason(error)}") from None
    count = getattr(image, "n_frames", 1)
    limits.check(*image.size, count)
    # Pillow translates irot and imir, which stand above EXIF in this format, into orientation.
    turn = metadata.orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
    if meta.depth > 8 and count == 1:
        try:
            decoded = imagecodecs.avif_decode(data, numthreads=1)
        except DECODER_ERRORS as error:
            raise MediaError(f"is damaged: {reason(error)}") from None
        picture.frames = [widened(decoded, meta.depth)]
    else:
        durations = []
        for number in range(count):
            picture.frames.append(pillow_array(opener, limits, picture, frame=number))
            durations.append(Fraction(int(image.info.get("duration", 0)), 1000))
        picture.durations = durations if count > 1 else None
        if count > 1 and meta.depth > 8:
            picture.notes.append(f"the animation's {meta.depth} bits were read as 8")
            picture.depth = 8
    picture.frames = [metadata.upright(frame, turn) for frame in picture.frames]
    if meta.gain_map:
        picture.notes.append("a gain map was dropped (it was made for the dark picture)")
    for what in dict.fromkeys(meta.others):
        picture.notes.append(f"{what} beside the picture was dropped")
    metadata.renew(picture)
    return picture


def widened(image: Array, depth: int) -> Array:
    """uint16 samples of so many bits -> over the whole range of 16."""
    if image.dtype != np.uint16 or depth == 16:
        return image
    return spread(image, 2**depth - 1, np.uint16)


def write(picture: Picture, writing: Writing) -> bytes:
    """An AVIF: 8 bits, or as deep as the input (12 where it was no AVIF); or an animation."""
    level = QUALITY if writing.quality is None else writing.quality
    if picture.animated:
        return _animation(picture, level)
    import imagecodecs

    frame = picture.frames[0]
    bits = 8
    if frame.dtype == np.uint16:
        bits = picture.depth if picture.format == "avif" and picture.depth in (10, 12) else 12
        frame = np.rint(to_float(frame) * np.float32(2**bits - 1)).astype(np.uint16)
    if frame.ndim == 3 and frame.shape[2] == 2:
        frame = np.ascontiguousarray(frame[..., [0, 0, 0, 1]])
    told: dict[str, Any] = {}
    if picture.cicp and not picture.icc:
        primaries, transfer, matrix = picture.cicp
        told = {"primaries": primaries, "transfer": transfer}
        told["matrix"] = matrix if matrix in MATRICES else USUAL_MATRIX
    try:
        coded = imagecodecs.avif_encode(
            frame, level=level, speed=6, bitspersample=bits, numthreads=1, **told
        )
    except DECODER_ERRORS as error:
        raise MediaError(f"cannot be written as AVIF: {reason(error)}") from None
    return isobmff.with_metadata(bytes(coded), picture.exif, picture.xmp, picture.icc)


def _animation(picture: Picture, level: int) -> bytes:
    images = [Image.fromarray(_rgb(frame)) for frame in picture.frames]
    options: dict[str, object] = {}
    if picture.exif is not None:
        options["exif"] = picture.exif
    if picture.xmp is not None:
        options["xmp"] = picture.xmp
    if picture.icc:
        options["icc_profile"] = picture.icc
    out = io.BytesIO()
    try:
        with quiet():
            images[0].save(
                out,
                "AVIF",
                save_all=True,
                append_images=images[1:],
                duration=[round(seconds * 1000) for seconds in picture.durations or []],
                quality=level,
                subsampling="4:4:4",
                speed=6,
                **options,
            )
    except DECODER_ERRORS as error:
        raise MediaError(f"cannot be written as AVIF: {reason(error)}") from None
    return out.getvalue()


def _rgb(frame: Array) -> Array:
    """RGB or RGBA: an animation's frames must be alike, and AVIF's grey has no alpha."""
    if frame.ndim == 2:
        return np.repeat(frame[..., None], 3, 2)
    return np.ascontiguousarray(frame[..., [0, 0, 0, 1]]) if frame.shape[2] == 2 else frame
