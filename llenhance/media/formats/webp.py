"""WebP: RIFF chunks moved as bytes, pixels by libwebp through Pillow."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction

from PIL import Image, WebPImagePlugin

from ...errors import MediaError
from ...pixels import Array
from ..picture import Limits, Picture, Writing
from .codecs import DECODER_ERRORS, Opener, pillow_array, reason

QUALITY = 90  # of a lossy picture: WebP does not tell how it was coded
LARGE = 178_956_970  # pixels beyond which Pillow takes any picture for an attack
ICC_FLAG, ALPHA_FLAG, EXIF_FLAG, XMP_FLAG, ANIMATION_FLAG = 0x20, 0x10, 0x08, 0x04, 0x02


def _chunks(data: bytes, at: int = 12) -> Iterator[tuple[bytes, bytes]]:
    """Each chunk's type and data; a last one that is cut short ends them."""
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if at + 8 + size > len(data):
            return
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(body)) + body + bytes(len(body) % 2)


def _three(body: bytes, at: int) -> int:
    return int.from_bytes(body[at : at + 3], "little")


def _size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    """Width and height by a VP8X, VP8 or VP8L chunk; None for any other."""
    if kind == b"VP8X" and len(body) >= 10:
        return _three(body, 4) + 1, _three(body, 7) + 1
    if kind == b"VP8 " and len(body) >= 10:
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(body) >= 5:
        bits = struct.unpack_from("<I", body, 1)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def read(data: bytes, limits: Limits) -> Picture:
    """A WebP, not yet upright; all frames of an animation. Raises MediaError."""
    picture = Picture([], "webp")
    claimed = struct.unpack_from("<I", data, 4)[0] + 8 if len(data) >= 12 else 0
    if claimed > len(data) + 1:
        limits.damaged("it ends before its claimed length")
        picture.truncated = True
    size = None
    durations: list[Fraction] = []
    coded: list[bytes] = []
    for kind, body in _chunks(data[:claimed]):
        size = size or _size(kind, body)
        if kind == b"ANMF" and len(body) >= 16:
            durations.append(Fraction(_three(body, 12), 1000))
            coded += [inner for inner, _ in _chunks(body, 16)]
        elif kind == b"ANIM" and len(body) >= 6:
            picture.loops = struct.unpack_from("<H", body, 4)[0]
        elif kind == b"ICCP":
            picture.icc = body
        elif kind == b"EXIF":
            # Some writers put JPEG's prefix in front.
            picture.exif = body.removeprefix(b"Exif\0\0")
        elif kind == b"XMP ":
            picture.xmp = body
        coded.append(kind)
    if size is None:
        raise MediaError("is a WebP without a picture in it")
    limits.check(*size, frames=max(1, len(durations)))
    picture.lossless = b"VP8L" in coded and b"VP8 " not in coded
    if not durations and size[0] * size[1] > LARGE:
        picture.frames = [_large(data, limits)]
    else:
        picture.frames = _frames(data, limits, picture, max(1, len(durations)))
    picture.durations = durations or None
    return picture


def _frames(data: bytes, limits: Limits, picture: Picture, count: int) -> list[Array]:
    opener = Opener(lambda: WebPImagePlugin.WebPImageFile(io.BytesIO(data)))

    return [pillow_array(opener, limits, picture, frame=number) for number in range(count)]


def _large(data: bytes, limits: Limits) -> Array:
    """A still picture that Pillow refuses to decode, whatever one's own limit is."""
    import imagecodecs

    try:
        frame: Array = imagecodecs.webp_decode(data)
    except DECODER_ERRORS as error:
        limits.damaged(reason(error))
        raise MediaError(f"is damaged: {reason(error)}") from None
    return frame


def write(picture: Picture, writing: Writing) -> bytes:
    """A WebP of 8-bit frames, lossless as the input was unless ``writing`` has a quality."""
    height, width = picture.frames[0].shape[:2]
    if max(height, width) > 16383:
        raise MediaError("is larger than the 16383 pixels a side that a WebP can have")
    coded = [_coded(frame, picture, writing.quality) for frame in picture.frames]
    alpha = any(frame.ndim == 3 and frame.shape[2] in (2, 4) for frame in picture.frames)
    tail = b""
    flags = ALPHA_FLAG if alpha else 0
    for flag, kind, block in (
        (EXIF_FLAG, b"EXIF", picture.exif),
        (XMP_FLAG, b"XMP ", picture.xmp),
    ):
        if block is not None:
            flags |= flag
            tail += _chunk(kind, block)
    head = b""
    if picture.icc:
        flags |= ICC_FLAG
        head += _chunk(b"ICCP", picture.icc)
    if picture.animated:
        flags |= ANIMATION_FLAG
        head += _chunk(b"ANIM", struct.pack("<IH", 0, min(picture.loops, 65535)))
        body = b"".join(
            _chunk(b"ANMF", _frame_head(width, height, duration) + frame)
            for frame, duration in zip(coded, picture.durations or [], strict=True)
        )
    else:
        body = coded[0]
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = _chunk(b"VP8X", struct.pack("<I", flags) + sides)
    whole = b"WEBP" + (extended if flags or body[:4] == b"ALPH" else b"") + head + body + tail
    return struct.pack("<4sI", b"RIFF", len(whole)) + whole


def _frame_head(width: int, height: int, duration: Fraction) -> bytes:
    """Position, size, duration; not blended with the frame before, not cleared after."""
    numbers = (0, 0, width - 1, height - 1, min(round(duration * 1000), (1 << 24) - 1))
    return b"".join(number.to_bytes(3, "little") for number in numbers) + b"\x02"


def _coded(frame: Array, picture: Picture, quality: int | None) -> bytes:
    """The chunks of one still frame: VP8L, or VP8 with ALPH where it has alpha."""
    image = Image.fromarray(frame, "LA" if frame.ndim == 3 and frame.shape[2] == 2 else None)
    image = image.convert("RGBA" if image.mode in ("LA", "RGBA") else "RGB")
    lossless = quality is None and picture.lossless is not False and picture.format != "jpeg"
    out = io.BytesIO()
    try:
        image.save(
            out,
            "WEBP",
            lossless=lossless,
            quality=100 if lossless else QUALITY if quality is None else quality,
            method=4,
            alpha_quality=100,
            exact=True,
        )
    except DECODER_ERRORS as error:
        raise MediaError(f"cannot be written as WebP: {reason(error)}") from None
    parts = _chunks(out.getvalue())
    return b"".join(_chunk(*part) for part in parts if part[0] in (b"ALPH", b"VP8 ", b"VP8L"))
