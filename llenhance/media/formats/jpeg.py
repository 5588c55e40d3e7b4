"""JPEG: segments moved as bytes, pixels by libjpeg-turbo, quality and sampling as they were."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, JpegImagePlugin

from ...errors import MediaError
from ...pixels import Array
from .. import colour, metadata
from ..picture import JpegCoding, Limits, Picture, Writing
from .codecs import quiet, reason

SOI, EOI, SOS, COM = 0xD8, 0xD9, 0xDA, 0xFE
APP0, APP1, APP2, APP11, APP13, APP14 = 0xE0, 0xE1, 0xE2, 0xEB, 0xED, 0xEE
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
ALONE = frozenset(range(0xD0, 0xD8)) | {0x01}  # markers without a length

EXIF = b"Exif\0\0"
XMP = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
ICC = b"ICC_PROFILE\0"
PHOTOSHOP = b"Photoshop 3.0\0"
MPF = b"MPF\0"
GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"
ICC_PART = 65533 - len(ICC) - 2
PHOTOSHOP_PART = 65533 - len(PHOTOSHOP)

MAX_SCANS = 500  # a hostile progressive file has thousands, and each costs a pass over the picture
QUALITY = 95  # for a picture that was no JPEG


def called(marker: bytes, payload: bytes) -> str:
    """What a segment that is carried is called; "" for one that other formats need not have."""
    if marker[0] == COM:
        return "comment"
    if payload.startswith(EXTENDED_XMP):
        return "extended XMP"
    return f"APP{marker[0] - APP0}" if marker[0] != APP0 else ""


@dataclass
class _Structure:
    """What stands around the coded pixels."""

    segments: list[tuple[int, bytes]] = field(default_factory=list)
    width: int = 0
    height: int = 0
    precision: int = 8
    sampling: list[tuple[int, int]] = field(default_factory=list)
    frame: int = 0
    scans: int = 0
    end: int = 0  # one past EOI; 0 where there is none
    core: bytes = b"\xff\xd8"  # what stands before the first scan, without metadata


def _walk(data: bytes) -> _Structure:
    """Follow the markers from SOI to EOI, through all scans."""
    found = _Structure()
    at = 2
    marker_in_scan = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            at = data.find(b"\xff", at)  # garbage that a decoder skips, and warns about
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker in (0xFF, 0x00):
            at += 1
            continue
        at += 2
        if marker == EOI:
            found.end = at
            break
        if marker in ALONE or marker == SOI:
            continue
        if at + 2 > len(data):
            break
        size = struct.unpack_from(">H", data, at)[0]
        payload = data[at + 2 : at + size]
        if size < 2 or at + size > len(data):
            break
        at += size
        if marker in FRAMES and not found.frame and len(payload) >= 6:
            found.frame = marker
            found.precision, found.height, found.width, count = struct.unpack_from(">BHHB", payload)
            parts = [payload[6 + 3 * n : 9 + 3 * n] for n in range(count)]
            found.sampling = [(p[1] >> 4, p[1] & 15) for p in parts if len(p) == 3]
        elif marker == SOS:
            found.scans += 1
            following = marker_in_scan.search(data, at)
            at = following.end() - 2 if following else len(data)
        elif APP0 <= marker <= 0xEF or marker == COM:
            found.segments.append((marker, payload))
            continue
        if found.scans < 2:
            found.core += struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
    return found


def _joined_icc(parts: list[bytes]) -> bytes | None:
    """The profile from its numbered segments; None where one is missing."""
    numbered = {part[0]: part[2:] for part in parts if len(part) > 2}
    if not numbered or sorted(numbered) != list(range(1, parts[0][1] + 1)):
        return None
    return b"".join(numbered[number] for number in sorted(numbered))


def _density(payload: bytes) -> tuple[float, float] | None:
    """Pixels per inch of a JFIF segment."""
    if len(payload) < 12:
        return None
    unit, across, down = struct.unpack_from(">BHH", payload, 7)
    inch = {1: 1.0, 2: 2.54}.get(unit)
    return (across * inch, down * inch) if inch and across and down else None


def read(data: bytes, limits: Limits) -> Picture:
    """A JPEG, not yet upright. Raises MediaError."""
    found = _walk(data)
    if not found.frame:
        raise MediaError("is a JPEG without a picture in it")
    if found.height == 0:
        raise MediaError("is a JPEG that does not tell its height (DNL)")
    limits.check(found.width, found.height)
    if found.scans > MAX_SCANS:
        raise MediaError(f"is a JPEG of {found.scans} scans, more than {MAX_SCANS}")
    if found.precision != 8 or found.frame in (0xC3, 0xC7, 0xCB, 0xCF):
        raise MediaError(
            f"is a JPEG of a rare kind (frame type {found.frame:02X}, "
            f"{found.precision} bits) that is not read"
        )
    picture = Picture([], "jpeg")
    adobe = _sort_segments(picture, found)
    if found.end:
        picture.drop_rest(data, found.end)
    pixels = _decode(data[: found.end or len(data)], limits, len(found.sampling), picture)
    if pixels.shape[2] == 4:
        pixels = 255 - pixels if adobe is not None else pixels  # Adobe stores ink upside down
        pixels = colour.cmyk_to_srgb(pixels, picture)
    picture.frames = [pixels[..., 0] if pixels.shape[2] == 1 else pixels]
    # JFIF says YCbCr, and decoders believe it before Adobe's transform.
    jfif = any(m == APP0 and p[:5] == b"JFIF\0" and len(p) >= 14 for m, p in found.segments)
    picture.quality = _coding(found, rgb=adobe == 0 and len(found.sampling) == 3 and not jfif)
    return picture


def _sort_segments(picture: Picture, found: _Structure) -> int | None:
    """Give each segment its place in the picture; returns Adobe's colour transform, if told."""
    icc: list[bytes] = []
    photoshop = b""
    adobe = None
    dropped: dict[str, None] = {}
    for marker, payload in found.segments:
        if marker == APP0 and payload[:5] == b"JFIF\0":
            picture.dpi = _density(payload)
            # Its thumbnail, if any, is cut off.
            if len(payload) >= 14:
                picture.carried.append((bytes([marker]), payload[:12] + b"\0\0"))
        elif marker == APP0 and payload[:5] == b"JFXX\0":
            continue  # a thumbnail and nothing else
        elif marker == APP1 and payload.startswith(EXIF) and picture.exif is None:
            picture.exif = payload[len(EXIF) :]
        elif marker == APP1 and payload.startswith(XMP) and picture.xmp is None:
            picture.xmp = payload[len(XMP) :]
        elif marker == APP2 and payload.startswith(ICC):
            icc.append(payload[len(ICC) :])
        elif marker == APP13 and payload.startswith(PHOTOSHOP):
            photoshop += payload[len(PHOTOSHOP) :]
        elif marker == APP2 and payload.startswith(MPF):
            continue  # an index of what follows the picture, which is named when it is dropped
        elif marker == APP2 and payload.startswith(GAIN_MAP):
            dropped["a gain map was dropped (it was made for the dark picture)"] = None
        elif marker == APP11:
            dropped["content credentials were dropped (they are signed for the original)"] = None
        elif marker == APP14 and payload[:5] == b"Adobe" and len(payload) >= 12:
            adobe = payload[11]
        else:
            picture.carried.append((bytes([marker]), payload))
    if metadata.has_gain_map(picture.xmp):
        dropped["a gain map was dropped (it was made for the dark picture)"] = None
    picture.notes += dropped
    picture.icc = _joined_icc(icc)
    if icc and picture.icc is None:
        picture.notes.append("the colour profile is incomplete and was dropped")
    picture.iptc, picture.photoshop = metadata.split_photoshop(photoshop)
    return adobe


def _decode(data: bytes, limits: Limits, components: int, picture: Picture) -> Array:
    """The pixels, (H, W, 1, 3 or 4); damage that libjpeg only warns about is damage."""
    import simplejpeg

    space = {1: "GRAY", 3: "RGB", 4: "CMYK"}.get(components)
    if space is None:
        raise MediaError(f"is a JPEG of {components} components")
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, space, fastupsample=False))
    except ValueError as error:
        why = reason(error)
    limits.damaged(why)
    with quiet():
        try:
            pixels = simplejpeg.decode_jpeg(data, space, fastupsample=False, strict=False)
        except ValueError as error:
            raise MediaError(f"is damaged: {reason(error)}") from None
    picture.truncated = True
    return np.asarray(pixels)


def _coding(found: _Structure, rgb: bool) -> JpegCoding | None:
    """The tables and the sampling; None where they say nothing for an RGB or grey JPEG."""
    with quiet():
        plugin = JpegImagePlugin.JpegImageFile(io.BytesIO(found.core))
    tables = tuple(tuple(plugin.quantization[key]) for key in sorted(plugin.quantization))
    if len(found.sampling) == 4 or not tables or any(len(table) != 64 for table in tables):
        return None
    across, down = found.sampling[0]
    small = found.sampling[-1]
    ratio = (across // max(small[0], 1), down // max(small[1], 1))
    # Pillow knows three samplings. 4:4:0 becomes 4:4:4 and 4:1:1 becomes 4:2:0: never less detail
    # along an axis that had it, nearly never more.
    sampling = {(2, 1): "4:2:2", (2, 2): "4:2:0", (4, 1): "4:2:0"}.get(ratio, "4:4:4")
    return JpegCoding(tables[:4], sampling, found.frame in (0xC2, 0xCA), rgb)


def write(picture: Picture, writing: Writing) -> bytes:
    """A JPEG of the first frame, 8-bit grey or RGB, with the metadata that ``picture`` has."""
    coding, quality = picture.quality, writing.quality
    options: dict[str, object] = {"subsampling": coding.subsampling if coding else "4:4:4"}
    if coding and quality is None:
        # A quality given beside the tables would scale them.
        options["qtables"] = [list(table) for table in coding.tables]
    else:
        options["quality"] = QUALITY if quality is None else quality
    if coding:
        options["progressive"] = coding.progressive
        options["keep_rgb"] = coding.rgb
    out = io.BytesIO()
    image = Image.fromarray(picture.frames[0])
    if max(image.size) > 65535:
        raise MediaError("is larger than the 65535 pixels a side that a JPEG can have")
    try:
        image.save(out, "JPEG", **options)
    except (OSError, ValueError) as error:
        raise MediaError(f"cannot be written as JPEG: {reason(error)}") from None
    coded = out.getvalue()
    own = _walk(coded).segments
    head = sum(len(payload) + 4 for _, payload in own) + 2
    carried = [(marker[0], payload) for marker, payload in picture.carried]
    jfif = [s for s in carried if s[0] == APP0] or (
        [] if options.get("keep_rgb") else _jfif(picture)
    )
    adobe = [(marker, payload) for marker, payload in own if marker == APP14]
    segments = jfif + adobe + _metadata_segments(picture)
    segments += [s for s in carried if s[0] != APP0]
    blocks = [struct.pack(">BBH", 0xFF, m, len(payload) + 2) + payload for m, payload in segments]
    return coded[:2] + b"".join(blocks) + coded[head:]


def _jfif(picture: Picture) -> list[tuple[int, bytes]]:
    dpi = picture.dpi
    unit, across, down = (1, round(dpi[0]), round(dpi[1])) if dpi else (0, 1, 1)
    if not (0 < across < 65536 and 0 < down < 65536):
        unit, across, down = 0, 1, 1
    return [(APP0, struct.pack(">5sHBHHBB", b"JFIF\0", 0x0101, unit, across, down, 0, 0))]


def too_large(picture: Picture) -> list[str]:
    """Which blocks of a picture do not fit a JPEG's segments and are left out."""
    room = {"EXIF": 65533 - len(EXIF), "XMP": 65533 - len(XMP)}
    sizes = {"EXIF": len(picture.exif or b""), "XMP": len(picture.xmp or b"")}
    return [name for name in room if sizes[name] > room[name]]


def _metadata_segments(picture: Picture) -> list[tuple[int, bytes]]:
    segments = []
    left_out = too_large(picture)
    if picture.exif is not None and "EXIF" not in left_out:
        segments.append((APP1, EXIF + picture.exif))
    if picture.xmp is not None and "XMP" not in left_out:
        segments.append((APP1, XMP + picture.xmp))
    if picture.icc:
        parts = [picture.icc[n : n + ICC_PART] for n in range(0, len(picture.icc), ICC_PART)]
        for number, part in enumerate(parts, 1):
            segments.append((APP2, ICC + bytes([number, len(parts)]) + part))
    if block := metadata.join_photoshop(picture.iptc, picture.photoshop):
        starts = range(0, len(block), PHOTOSHOP_PART)
        segments += [(APP13, PHOTOSHOP + block[at : at + PHOTOSHOP_PART]) for at in starts]
    return segments
