"""PNG and APNG: chunks moved as bytes, pixels by Pillow (8 bits) and OpenCV (16 bits)."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import PngImagePlugin

from ...errors import MediaError
from ...pixels import WHITE, Array
from .. import metadata
from ..picture import Limits, Picture, Writing
from .codecs import Opener, opencv_decode, opencv_encode, pillow_array

SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP_KEY = b"XML:com.adobe.xmp"
RAW_PROFILE = b"Raw profile type "
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"  # as in a JPEG
MAX_TEXT = 64 << 20  # bytes that a compressed text or profile may grow to
# Chunks that follow from the pixels, or that the writer makes itself.
OWN = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"eXIf"}
# Chunks that no longer fit once the pixels changed: background and histogram of a palette,
# significant bits, a suggested palette, levels of light, offsets into the coded pixels (Apple's).
STALE = {b"bKGD", b"hIST", b"sBIT", b"sPLT", b"cLLI", b"pCAL", b"iDOT"}
# Chunks that tell what the pixels' values mean, and stand before them.
COLOUR = {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV"}
# Chunks that fit other pixels too, though their names say that whoever does not know them must not
# keep them: the time, which stays as EXIF's does, the size of what is seen, a stereo layout.
FITTING = COLOUR | {b"tIME", b"sCAL", b"sTER"}
# What sRGB's curve and primaries are in such chunks.
SRGB = {
    (b"gAMA", struct.pack(">I", 45455)),
    (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
}
NEARLY = 500  # of 100,000, by which writers round and no eye tells
CREDENTIALS = b"caBX"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def tells_colours(kind: bytes, _body: bytes) -> bool:
    """Whether a chunk that is carried is needed to show the picture as it is meant."""
    return kind in COLOUR


def called(kind: bytes, body: bytes) -> str:
    """What a chunk that is carried is called; "" for one that other formats need not have."""
    return (
        "" if kind == b"pHYs" or (kind, body) in SRGB or kind == b"sRGB" else kind.decode("latin-1")
    )


@dataclass(frozen=True)
class Header:
    width: int
    height: int
    bits: int
    colour: int  # 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Each chunk: its type, its data, and whether its checksum is right; the last may be cut."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + size > len(data):
            yield kind, data[at + 8 : at + 8 + size], False
            return
        body = data[at + 8 : at + 8 + size]
        (crc,) = struct.unpack_from(">I", data, at + 8 + size)
        yield kind, body, zlib.crc32(body, zlib.crc32(kind)) == crc
        at += 12 + size
        if kind == b"IEND":
            return


def chunk(kind: bytes, body: bytes) -> bytes:
    """The bytes of a chunk."""
    return (
        struct.pack(">I4s", len(body), kind)
        + body
        + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
    )


def _inflate(data: bytes) -> bytes:
    """Decompressed, up to MAX_TEXT bytes. Raises MediaError."""
    engine = zlib.decompressobj()
    try:
        out = engine.decompress(data, MAX_TEXT)
    except zlib.error as error:
        raise MediaError(f"has a damaged text: {error}") from None
    if engine.unconsumed_tail:
        raise MediaError("has a text that decompresses to more than 64 MiB")
    return out


def read(data: bytes, limits: Limits) -> Picture:
    """A PNG or APNG, not yet upright. Raises MediaError."""
    picture = Picture([], "png")
    header: Header | None = None
    pixels: list[tuple[bytes, bytes]] = []
    ended, end = False, len(SIGNATURE)
    for kind, body, sound in chunks(data):
        end += 12 + len(body)
        if not sound:
            if kind[:1].isupper() or kind == b"fdAT":
                limits.damaged(f"the checksum of a {kind.decode('latin-1')} chunk is wrong")
                picture.truncated = True
            else:
                picture.notes.append(f"a damaged {kind.decode('latin-1')} chunk was dropped")
                continue
        if header is None:
            if kind != b"IHDR" or len(body) != 13:
                raise MediaError("is a PNG without a header")
            header = Header(*struct.unpack(">IIBB", body[:10]))
            limits.check(header.width, header.height)
        if kind == b"acTL" and len(body) == 8:
            frames, picture.loops = struct.unpack(">II", body)
            limits.check(header.width, header.height, max(frames, 1))
        if kind in OWN - {b"iCCP", b"eXIf", b"IEND"}:
            pixels.append((kind, body))
        elif kind == b"IEND":
            ended = True
        elif kind not in STALE:
            _sort(picture, kind, body)
    if header is None or not any(kind == b"IDAT" for kind, _ in pixels):
        raise MediaError("is a PNG without a picture in it")
    if not ended:
        limits.damaged("it ends before its last chunk")
        picture.truncated = True
    picture.drop_rest(data, end)
    _tell_colours(picture)
    if any(kind == b"fcTL" for kind, _ in pixels):
        picture.frames, picture.durations = _animation(header, pixels, limits, picture)
    else:
        picture.frames = [_still(header, pixels, limits, picture)]
    return picture


def _sort(picture: Picture, kind: bytes, body: bytes) -> None:
    """Give a chunk of metadata its place in the picture."""
    try:
        if kind == b"eXIf":
            picture.exif = body.removeprefix(b"Exif\0\0")  # JPEG's, which some writers put there
        elif kind == b"iCCP":
            picture.icc = _inflate(body[body.index(b"\0") + 2 :])
        elif kind == b"cICP" and body[2:] == b"\0\1":  # else of a range that only PNG takes back
            picture.cicp = (body[0], body[1], body[2])
        elif kind == b"pHYs" and len(body) == 9 and body[8] == 1:
            across, down = struct.unpack(">II", body[:8])
            picture.dpi = (across * 0.0254, down * 0.0254) if across and down else None
            picture.carried.append((kind, body))
        elif kind == b"iTXt" and body.startswith(XMP_KEY + b"\0"):
            picture.xmp = _international_text(body)
        elif kind == CREDENTIALS:
            _note(picture, "content credentials were dropped (they are signed for the original)")
        elif kind[3:4].isupper() and kind not in FITTING:
            name = kind.decode("latin-1")
            _note(picture, f"a chunk {name} was dropped (it belongs to the original's pixels)")
        elif kind in (b"zTXt", b"tEXt") and body.startswith(RAW_PROFILE):
            _raw_profile(picture, kind, body)
        else:
            picture.carried.append((kind, body))
    except (ValueError, IndexError, MediaError):
        picture.notes.append(f"a damaged {kind.decode('latin-1')} chunk was dropped")


def _tell_colours(picture: Picture) -> None:
    """Say so where gamma and primaries, which nothing here goes by, are not those of sRGB."""
    if picture.icc or picture.cicp or any(kind == b"sRGB" for kind, _ in picture.carried):
        return
    usual = dict(SRGB)
    odd = []
    for kind, body in picture.carried:
        if kind in usual and len(body) == len(usual[kind]):
            numbers, wanted = (np.frombuffer(b, ">u4").astype(int) for b in (body, usual[kind]))
            if np.abs(numbers - wanted).max() > NEARLY:
                odd.append(kind.decode("ascii"))
    if odd:
        _note(picture, f"its colours ({', '.join(odd)}) are taken for sRGB")


def _note(picture: Picture, text: str) -> None:
    if text not in picture.notes:
        picture.notes.append(text)


def _international_text(body: bytes) -> bytes:
    """The text of an iTXt chunk. Raises ValueError or MediaError."""
    flag = body[body.index(b"\0") + 1]
    text = body.split(b"\0", 1)[1][2:].split(b"\0", 2)[2]
    return _inflate(text) if flag else text


def _raw_profile(picture: Picture, kind: bytes, body: bytes) -> None:
    """A block that ImageMagick wrote as text: newline, name, length, hexadecimal digits."""
    key, rest = body.split(b"\0", 1)
    text = rest if kind == b"tEXt" else _inflate(rest[1:])
    name = key[len(RAW_PROFILE) :].lower()
    block = bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    if name in (b"exif", b"app1") and block.startswith(b"Exif\0\0") and picture.exif is None:
        picture.exif = block[6:]
    elif name == b"app1" and block.startswith(XMP_PREFIX) and picture.xmp is None:
        picture.xmp = block.removeprefix(XMP_PREFIX)
    elif name == b"xmp" and picture.xmp is None:
        picture.xmp = block
    elif name in (b"iptc", b"8bim"):
        start = block.find(b"8BIM")
        picture.iptc, picture.photoshop = metadata.split_photoshop(block[max(start, 0) :])
    elif name in (b"icc", b"icm"):
        picture.icc = picture.icc or block
    elif name not in (b"exif", b"app1", b"xmp"):
        picture.carried.append((kind, body))


def _still(
    header: Header, pixels: list[tuple[bytes, bytes]], limits: Limits, picture: Picture
) -> Array:
    """Decode the chunks of one picture: (H, W), (H, W, 2), (H, W, 3) or (H, W, 4)."""
    ihdr, rest = pixels[0], pixels[1:]
    transparent = next((body for kind, body in rest if kind == b"tRNS"), None)
    rest = [(kind, body) for kind, body in rest if kind in (b"PLTE", b"tRNS", b"IDAT")]
    if header.bits == 16:
        rest = [(kind, body) for kind, body in rest if kind != b"tRNS"]
        if not _has_all_bytes(header, [ihdr, *rest]):
            limits.damaged("it holds fewer pixels than it claims")
            picture.truncated = True
        return _still_16(header, [ihdr, *rest], transparent)
    if header.colour == 0 and header.bits < 8:
        # Pillow spreads the samples over 8 bits, and leaves the clear one's value as it was.
        rest = [
            (kind, _spread(body, header.bits) if kind == b"tRNS" else body) for kind, body in rest
        ]
    coded = SIGNATURE + b"".join(chunk(*part) for part in [ihdr, *rest]) + chunk(b"IEND", b"")
    opener = Opener(lambda: PngImagePlugin.PngImageFile(io.BytesIO(coded)))
    return pillow_array(opener, limits, picture)


def _spread(key: bytes, bits: int) -> bytes:
    """A grey tRNS chunk's value of so many bits over the range of 8."""
    top = 2**bits - 1
    return struct.pack(">H", (int.from_bytes(key[:2], "big") & top) * 255 // top)


def _still_16(header: Header, parts: list[tuple[bytes, bytes]], transparent: bytes | None) -> Array:
    coded = SIGNATURE + b"".join(chunk(*part) for part in parts) + chunk(b"IEND", b"")
    image = opencv_decode(coded)
    if (
        image is None
        or image.dtype != np.uint16
        or image.shape[:2] != (header.height, header.width)
    ):
        raise MediaError("is damaged: the PNG does not decode")
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]
    channels = CHANNELS[header.colour]
    if channels < 3 and image.ndim == 3:
        image = image[..., [0, 3]] if channels == 2 else image[..., 0]
    if transparent and channels in (1, 3) and len(transparent) >= 2 * channels:
        key = np.frombuffer(transparent[: 2 * channels], ">u2")
        planes = image.reshape(header.height, header.width, channels)
        alpha = np.where((planes == key).all(2, keepdims=True), 0, 65535).astype(np.uint16)
        image = np.concatenate((planes, alpha), 2)
    return np.ascontiguousarray(image)


def _has_all_bytes(header: Header, parts: list[tuple[bytes, bytes]]) -> bool:
    """OpenCV fills what is missing with black and says nothing: count the bytes first."""
    size = header.bits * CHANNELS[header.colour]
    passes = [(0, 0, 1, 1)]
    if parts[0][1][12]:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4)]
        passes += [(1, 0, 2, 2), (0, 1, 1, 2)]
    want = 0
    for x, y, across, down in passes:
        width = max(0, -(-(header.width - x) // across))
        height = max(0, -(-(header.height - y) // down))
        want += height * (1 + (width * size + 7) // 8) if width else 0
    engine = zlib.decompressobj()
    got = 0
    try:
        for kind, rest in parts:
            while kind == b"IDAT" and rest and got < want:
                got += len(engine.decompress(rest, 1 << 20))
                rest = engine.unconsumed_tail
    except zlib.error:
        return False
    return got >= want


def _animation(
    header: Header, pixels: list[tuple[bytes, bytes]], limits: Limits, picture: Picture
) -> tuple[list[Array], list[Fraction]]:
    """Compose the frames of an APNG: whole pictures, and the seconds that each is shown."""
    common = [part for part in pixels if part[0] in (b"PLTE", b"tRNS")]
    controls: list[tuple[int, ...]] = []
    parts: list[list[tuple[bytes, bytes]]] = []
    hidden = False
    for kind, body in pixels:
        if kind == b"fcTL" and len(body) == 26:
            controls.append(struct.unpack(">IIIIIHHBB", body))
            parts.append([])
            limits.check(header.width, header.height, len(controls))
        elif kind == b"IDAT" and not controls:
            hidden = True
        elif kind == b"IDAT" and parts:
            parts[-1].append((kind, body))
        elif kind == b"fdAT" and parts:
            parts[-1].append((b"IDAT", body[4:]))
    if hidden:
        picture.notes.append("the still picture beside the animation was dropped")
    frames: list[Array] = []
    durations = []
    canvas: Array | None = None
    for (_, width, height, x, y, top, bottom, disposal, blend), own in zip(
        controls, parts, strict=True
    ):
        if x + width > header.width or y + height > header.height or not own:
            raise MediaError("is damaged: a frame of the animation does not fit")
        ihdr = struct.pack(">II", width, height) + pixels[0][1][8:]
        part = Header(width, height, header.bits, header.colour)
        image = _with_alpha(_still(part, [(b"IHDR", ihdr), *common, *own], limits, picture))
        if canvas is None:
            canvas = np.zeros((header.height, header.width, image.shape[2]), image.dtype)
        area = (slice(y, y + height), slice(x, x + width))
        before = canvas[area].copy()
        canvas[area] = _over(image, before) if blend else image
        frames.append(canvas.copy())
        durations.append(Fraction(top, bottom or 100))
        if disposal == 1 or (disposal == 2 and len(frames) == 1):
            canvas[area] = 0
        elif disposal == 2:
            canvas[area] = before
    if not frames:
        raise MediaError("is damaged: the animation has no frame")
    if all((frame[..., -1] == WHITE[frame.dtype]).all() for frame in frames):
        frames = [np.ascontiguousarray(frame[..., :-1]) for frame in frames]
        frames = [frame[..., 0] if frame.shape[2] == 1 else frame for frame in frames]
    return frames, durations


def _with_alpha(image: Array) -> Array:
    """(H, W, 2) or (H, W, 4), opaque where there was no alpha."""
    planes = image[..., None] if image.ndim == 2 else image
    if planes.shape[2] in (2, 4):
        return planes
    opaque = np.full((*planes.shape[:2], 1), WHITE[image.dtype], image.dtype)
    return np.concatenate((planes, opaque), 2)


def _over(image: Array, below: Array) -> Array:
    """``image`` with its alpha laid over ``below``."""
    white = WHITE[image.dtype]
    alpha, under = (a[..., -1:].astype(np.float64) / white for a in (image, below))
    total = alpha + under * (1 - alpha)
    mixed = image * alpha + below * (under * (1 - alpha))
    mixed = mixed / np.where(total > 0, total, 1)
    mixed[..., -1:] = total * white
    return np.rint(mixed).astype(image.dtype)


def write(picture: Picture, writing: Writing) -> bytes:  # noqa: ARG001
    """A PNG, or an APNG of more than one frame, uint8 or uint16, with its metadata."""
    coded = [list(chunks(_coded(frame))) for frame in picture.frames]
    body = [chunk(b"IHDR", coded[0][0][1])]
    carried = picture.carried if picture.format == "png" else []
    if picture.icc:
        body.append(chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc)))
    if picture.cicp:
        # PNG holds RGB, matrix 0, over the whole range.
        body.append(chunk(b"cICP", bytes([*(min(n, 255) for n in picture.cicp[:2]), 0, 1])))
    body += [chunk(*part) for part in carried if part[0] in COLOUR]
    if picture.dpi and not any(kind == b"pHYs" for kind, _ in carried):
        metre = [round(dots / 0.0254) for dots in picture.dpi]
        body.append(chunk(b"pHYs", struct.pack(">IIB", *metre, 1)))
    body += [chunk(*part) for part in carried if part[0] not in COLOUR]
    body += _metadata_chunks(picture)
    if picture.animated:
        body += _animated(picture, coded)
    else:
        body += [chunk(kind, data) for kind, data, _ in coded[0] if kind == b"IDAT"]
    return SIGNATURE + b"".join(body) + chunk(b"IEND", b"")


def _coded(frame: Array) -> bytes:
    """A bare PNG of one frame."""
    if frame.ndim == 3 and frame.shape[2] == 2:
        if frame.dtype == np.uint16:
            return _grey_alpha_16(frame)
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(frame, "LA").save(out, "PNG")
        return out.getvalue()
    image = frame if frame.ndim == 2 else frame[..., [2, 1, 0, 3][: frame.shape[2]]]
    return opencv_encode(".png", image)


def _grey_alpha_16(frame: Array) -> bytes:
    """No library at hand writes grey and alpha in 16 bits: rows unfiltered, then zlib."""
    height, width = frame.shape[:2]
    rows = frame.astype(">u2").reshape(height, -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (1, 0)))
    ihdr = struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)
    parts = ((b"IHDR", ihdr), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return SIGNATURE + b"".join(chunk(*part) for part in parts)


def _metadata_chunks(picture: Picture) -> list[bytes]:
    body = []
    if picture.exif is not None:
        body.append(chunk(b"eXIf", picture.exif))
    if picture.xmp is not None:
        body.append(chunk(b"iTXt", XMP_KEY + b"\0\0\0\0\0" + picture.xmp))
    if block := metadata.join_photoshop(picture.iptc, picture.photoshop):
        # There is no chunk for IPTC; this is the text that ImageMagick and exiftool read.
        text = b"\niptc\n%8d\n" % len(block)
        digits = block.hex().encode()
        text += b"\n".join(re.findall(b".{1,72}", digits)) + b"\n"
        body.append(chunk(b"zTXt", RAW_PROFILE + b"iptc\0\0" + zlib.compress(text)))
    return body


def _animated(picture: Picture, coded: list[list[tuple[bytes, bytes, bool]]]) -> list[bytes]:
    body = [chunk(b"acTL", struct.pack(">II", len(coded), picture.loops))]
    number = 0
    durations = picture.durations or [Fraction(1, 10)] * len(coded)
    for at, (parts, duration) in enumerate(zip(coded, durations, strict=True)):
        size = parts[0][1][:8]
        shown = duration if max(duration.numerator, duration.denominator) < 65536 else None
        top, bottom = (
            shown.as_integer_ratio() if shown is not None else (round(duration * 1000), 1000)
        )
        control = struct.pack(">I8sIIHHBB", number, size, 0, 0, min(top, 65535), bottom, 0, 0)
        body.append(chunk(b"fcTL", control))
        number += 1
        for data in (data for kind, data, _ in parts if kind == b"IDAT"):
            if at == 0:
                body.append(chunk(b"IDAT", data))
            else:
                body.append(chunk(b"fdAT", struct.pack(">I", number) + data))
                number += 1
    return body
