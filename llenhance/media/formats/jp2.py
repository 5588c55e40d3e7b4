"""JPEG 2000: boxes moved as bytes, pixels of up to 16 bits by OpenJPEG through imagecodecs."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Jpeg2KImagePlugin

from ...errors import MediaError
from ...pixels import Array, spread
from .. import colour
from ..picture import Limits, Picture, Writing
from .codecs import DECODER_ERRORS, Opener, pillow_array, reason

SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
CODESTREAM = b"\xff\x4f\xff\x51"
EXIF_UUID = b"JpgTiffExif->JP2"
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
IPTC_UUID = bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38")
SRGB, GREY, SYCC = 16, 17, 18  # enumerated colour spaces
SPACES = (0, SRGB, GREY, SYCC)  # those that are read; 0 where none is told
PSNR = 55  # dB of a lossy picture: JPEG 2000 does not tell how it was coded


def boxes(data: bytes, at: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the content of each box; a box that is cut ends at the end."""
    end = len(data) if end is None else end
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= end:
            size, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        stop = end if size == 0 else at + size
        if stop < at + head:
            return
        yield kind, at + head, min(stop, end)
        at = stop


def box(kind: bytes, content: bytes) -> bytes:
    """The bytes of a box."""
    if len(content) + 8 > 0xFFFFFFFF:
        return struct.pack(">I4sQ", 1, kind, len(content) + 16) + content
    return struct.pack(">I4s", len(content) + 8, kind) + content


def read(data: bytes, limits: Limits) -> Picture:
    """A JP2 file or a bare codestream, not yet upright. Raises MediaError."""
    import imagecodecs

    picture = Picture([], "jp2")
    stream, space, has_palette = data, 0, False
    channels: dict[int, int] = {}
    if not data.startswith(CODESTREAM):
        stream = b""
        for kind, at, end in boxes(data):
            if kind == b"jp2c" and not stream:
                stream = data[at:end]
            elif kind == b"jp2h":
                space, has_palette, channels = _header(picture, data, at, end)
            elif kind == b"uuid":
                _uuid(picture, data[at : at + 16], data[at + 16 : end])
    width, height, depths = _size(stream)
    limits.check(width, height)
    icc = picture.icc or b""
    if space not in SPACES or (icc[36:40] == b"acsp" and colour.space(icc) not in ("rgb", "gray")):
        raise MediaError("is a JPEG 2000 of a rare kind (neither RGB, YCC nor grey)")
    picture.lossless = _is_reversible(stream)
    picture.depth = max(depths)
    if has_palette or space == SYCC:
        if picture.depth > 8:
            raise MediaError("is a JPEG 2000 of a rare kind (YCC of more than 8 bits)")
        pixels = pillow_array(
            Opener(lambda: Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data))), limits, picture
        )
        picture.frames = [pixels]
        return picture
    if len(set(depths)) > 1 or not 1 <= picture.depth <= 16 or not 1 <= len(depths) <= 4:
        raise MediaError("is a JPEG 2000 of a rare kind (components unlike each other)")
    try:
        decoded = imagecodecs.jpeg2k_decode(stream, numthreads=1)
    except DECODER_ERRORS as error:
        limits.damaged(reason(error))
        # OpenJPEG's forgiving mode is only to be had through Pillow, in 8 bits.
        picture.truncated = True
        picture.frames = [
            pillow_array(
                Opener(lambda: Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data))), limits, picture
            )
        ]
        return picture
    picture.frames = [_arranged(decoded, picture.depth, channels)]
    return picture


def _header(picture: Picture, data: bytes, at: int, end: int) -> tuple[int, bool, dict[int, int]]:
    """The jp2h box: enumerated space, whether there is a palette, the kind of each channel."""
    space, palette, channels = 0, False, {}
    for kind, start, stop in boxes(data, at, end):
        body = data[start:stop]
        if kind == b"colr" and body[:1] == b"\1" and len(body) >= 7:
            space = struct.unpack_from(">I", body, 3)[0]
        elif kind == b"colr" and body[:1] in (b"\2", b"\3"):
            picture.icc = body[3:]
        elif kind == b"pclr":
            palette = True
        elif kind == b"cdef" and len(body) >= 2:
            rows = struct.unpack_from(f">{(len(body) - 2) // 6 * 3}H", body, 2)
            channels = dict(zip(rows[::3], rows[1::3], strict=True))
        elif kind == b"res ":
            for name, inner, _ in boxes(data, start, stop):
                if name in (b"resd", b"resc") and inner + 10 <= stop:
                    picture.dpi = _resolution(data[inner : inner + 10]) or picture.dpi
    return space, palette, channels


def _resolution(body: bytes) -> tuple[float, float] | None:
    top_y, bottom_y, top_x, bottom_x, power_y, power_x = struct.unpack(">HHHHbb", body)
    if not (top_x and top_y and bottom_x and bottom_y):
        return None
    down = top_y / bottom_y * 10.0**power_y
    return top_x / bottom_x * 10.0**power_x * 0.0254, down * 0.0254


def _uuid(picture: Picture, name: bytes, body: bytes) -> None:
    if name == EXIF_UUID:
        picture.exif = body.removeprefix(b"Exif\0\0")
    elif name == XMP_UUID:
        picture.xmp = body
    elif name == IPTC_UUID:
        picture.iptc = body


def _size(stream: bytes) -> tuple[int, int, list[int]]:
    """Width, height and bits of each component, from the SIZ segment. Raises MediaError."""
    if not stream.startswith(CODESTREAM) or len(stream) < 45:
        raise MediaError("is a JPEG 2000 without a picture in it")
    right, bottom, left, top = struct.unpack_from(">4I", stream, 8)
    count = struct.unpack_from(">H", stream, 40)[0]
    parts = stream[42 : 42 + 3 * count]
    if not 1 <= count <= 5 or len(parts) < 3 * count:
        raise MediaError(f"is a JPEG 2000 of {count} components")
    if any(part & 0x80 for part in parts[::3]):
        raise MediaError("is a JPEG 2000 of signed values, which is not read")
    if any(part != 1 for part in parts[1::3] + parts[2::3]):
        raise MediaError("is a JPEG 2000 with components of unlike size, which is not read")
    return right - left, bottom - top, [part + 1 for part in parts[::3]]


def _is_reversible(stream: bytes) -> bool:
    """Whether the first coding style says the lossless wavelet."""
    at = 2
    while at + 14 <= len(stream):
        marker, size = struct.unpack_from(">HH", stream, at)
        if marker == 0xFF52:
            return stream[at + 13] == 1
        if marker == 0xFF90:
            break
        at += 2 + size
    return False


def _arranged(decoded: Array, depth: int, channels: dict[int, int]) -> Array:
    """Samples over their whole range, alpha last and only if it is one."""
    planes = decoded[..., None] if decoded.ndim == 2 else decoded
    count = planes.shape[2]
    if count in (2, 4) and channels.get(count - 1, 1) not in (1, 2):
        planes = planes[..., :-1]
    if count == 3 and channels.get(2) in (1, 2):
        raise MediaError("is a JPEG 2000 with channels in a rare order")
    kind = np.uint8 if depth <= 8 else np.uint16
    if depth < 8 * np.dtype(kind).itemsize:
        planes = spread(planes, 2**depth - 1, kind)
    return np.ascontiguousarray(planes[..., 0] if planes.shape[2] == 1 else planes)


def write(picture: Picture, writing: Writing) -> bytes:
    """A JP2 of the first frame, 8 or 16 bits; lossless unless the input was not.

    A quality of 1 to 100 stands for 30 to 60 dB of peak signal to noise.
    """
    import imagecodecs

    quality = writing.quality
    frame = picture.frames[0]
    height, width = frame.shape[:2]
    channels = 1 if frame.ndim == 2 else frame.shape[2]
    lossless = quality is None and picture.lossless is not False and picture.format != "jpeg"
    level = 0 if lossless else PSNR if quality is None else round(30 + 0.3 * quality)
    # Five halvings need a picture that large.
    resolutions = max(1, min(6, min(height, width).bit_length()))
    try:
        stream = imagecodecs.jpeg2k_encode(
            frame,
            level=level,
            codecformat="j2k",
            reversible=lossless,
            resolutions=resolutions,
            mct=channels >= 3,
            numthreads=1,
        )
    except DECODER_ERRORS as error:
        raise MediaError(f"cannot be written as JPEG 2000: {reason(error)}") from None
    bits = 8 * frame.dtype.itemsize
    header = box(b"ihdr", struct.pack(">IIHBBBB", height, width, channels, bits - 1, 7, 0, 0))
    if picture.icc:
        header += box(b"colr", b"\2\0\0" + picture.icc)
    else:
        header += box(b"colr", struct.pack(">BBBI", 1, 0, 0, SRGB if channels > 2 else GREY))
    if channels in (2, 4):
        rows = [(n, 0, n + 1) for n in range(channels - 1)] + [(channels - 1, 1, 0)]
        body = b"".join(struct.pack(">3H", *row) for row in rows)
        header += box(b"cdef", struct.pack(">H", channels) + body)
    if picture.dpi:
        header += box(b"res ", box(b"resd", _packed_resolution(picture.dpi)))
    out = SIGNATURE + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", header)
    blocks = ((EXIF_UUID, picture.exif), (XMP_UUID, picture.xmp), (IPTC_UUID, picture.iptc))
    out += b"".join(box(b"uuid", name + block) for name, block in blocks if block is not None)
    return out + box(b"jp2c", bytes(stream))


def _packed_resolution(dpi: tuple[float, float]) -> bytes:
    across, down = (min(max(round(dots / 0.0254), 1), 65535) for dots in dpi)
    return struct.pack(">HHHHbb", down, 1, across, 1, 0, 0)
