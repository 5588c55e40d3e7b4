"""EXIF, XMP, IPTC and Photoshop blocks as bytes: read a little, change the least.

Each function takes a block and gives the block that belongs to a picture turned upright, of a
given size, without thumbnails of the dark original. (A preview inside a MakerNote stays: nobody but
its maker knows where it is.) What is not touched keeps its bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from html import escape

import numpy as np

from ..errors import MediaError
from ..pixels import Array
from . import tiffblock
from .picture import Picture
from .tiffblock import Block

TIFF_NS = "http://ns.adobe.com/tiff/1.0/"
EXIF_NS = "http://ns.adobe.com/exif/1.0/"
XMP_NS = "http://ns.adobe.com/xap/1.0/"
XMP_MM_NS = "http://ns.adobe.com/xap/1.0/mm/"
EVENT_NS = "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
RDF_NS = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
GAIN_MAP_NS = "http://ns.adobe.com/hdr-gain-map/1.0/"
APPLE_GAIN_MAP_NS = "http://ns.apple.com/HDRGainMap/1.0/"
CAMERA_NS = "http://ns.google.com/photos/1.0/camera/"
CONTAINER_NS = "http://ns.google.com/photos/1.0/container/"

MAX_PREFIXES = 16  # writers give one; each costs passes over the packet, and it may have thousands

PHOTOSHOP_IPTC = 0x0404
PHOTOSHOP_THUMBNAILS = (0x0409, 0x040C)

# EXIF ------------------------------------------------------------------------------------------


def orientation(exif: bytes | None) -> int:
    """1 to 8 by the EXIF block; 1 where it says nothing that makes sense."""
    if not exif:
        return 1
    try:
        block = Block(exif)
        first = block.offset(block.first)
        turn = block.integer(block.find(first, tiffblock.ORIENTATION)) if first else None
    except MediaError:
        return 1
    return turn if turn and turn < 9 else 1


def has_orientation(exif: bytes | None) -> bool:
    """Whether the EXIF block says anything of orientation."""
    try:
        block = Block(exif or b"")
        first = block.offset(block.first)
        return bool(first) and block.find(first, tiffblock.ORIENTATION) is not None
    except MediaError:
        return False


def says_adobe_rgb(exif: bytes | None) -> bool:
    """Whether the EXIF block tells the colours of Adobe RGB, as cameras do without a profile."""
    try:
        block = Block(exif or b"")
        at: int | None = block.offset(block.first)
        for pointer in (tiffblock.EXIF_IFD, tiffblock.INTEROP_IFD):
            at = block.child(at, pointer) if at else None
        index = block.find(at, 1) if at else None
        return index is not None and block.value(index).data[:3] == b"R03"
    except MediaError:
        return False


def upright(frame: Array, turn: int) -> Array:
    """(H, W) or (H, W, C) pixels as a camera held by EXIF orientation ``turn`` saw them."""
    if turn in (5, 6, 7, 8):
        frame = frame.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        frame = frame[:, ::-1]
    if turn in (3, 4, 7, 8):
        frame = frame[::-1]
    return np.ascontiguousarray(frame)


def renewed_exif(exif: bytes, width: int, height: int) -> bytes:
    """The block of an upright picture of this size, without the thumbnail.

    Raises MediaError where it is too damaged to be changed.
    """
    block = Block(exif)
    chain = block.directories()
    first = next(chain, 0)
    if not first:
        return exif
    with suppress(MediaError):  # a thumbnail that is damaged: the link to it is cut in any case
        for directory in chain:
            _blank_thumbnail(block, directory)
    link = block.next_at(first)
    if link + block.width <= len(block.data):
        block.data[link : link + block.width] = bytes(block.width)
    block.set_integer(first, tiffblock.ORIENTATION, 1)
    block.set_integer(first, tiffblock.IMAGE_WIDTH, width)
    block.set_integer(first, tiffblock.IMAGE_LENGTH, height)
    if deeper := block.child(first, tiffblock.EXIF_IFD):
        block.set_integer(deeper, tiffblock.PIXEL_X, width)
        block.set_integer(deeper, tiffblock.PIXEL_Y, height)
    return bytes(block.data)


def _blank_thumbnail(block: Block, directory: int) -> None:
    """Zeros over a thumbnail, which is cut off where it is the end of the block."""
    offset = block.integer(block.find(directory, tiffblock.THUMBNAIL_OFFSET))
    length = block.integer(block.find(directory, tiffblock.THUMBNAIL_LENGTH))
    if not offset or not length or offset + length > len(block.data):
        return
    if offset <= directory < offset + length:  # or it would be overwritten itself
        return
    if offset + length == len(block.data):
        del block.data[offset:]
    else:
        block.data[offset : offset + length] = bytes(length)


def with_software(exif: bytes | None, software: str) -> bytes:
    """The block, or a new one, with ``Software`` set. Raises MediaError for a damaged block."""
    tags = tiffblock.Tags()
    tags.text(tiffblock.SOFTWARE, software)
    if exif is None:
        return tiffblock.build(tags)
    block = Block(exif)
    block.write_directory(block.first, tags.main)
    return bytes(block.data)


# XMP -------------------------------------------------------------------------------------------


def _prefixes(xmp: bytes, namespace: str) -> list[bytes]:
    """The prefixes that the packet gives to a namespace, MAX_PREFIXES at most."""
    pattern = rb"xmlns:([\w.-]+)\s*=\s*[\"']" + re.escape(namespace.encode()) + rb"[\"']"
    return list(dict.fromkeys(re.findall(pattern, xmp)))[:MAX_PREFIXES]


def _set_number(xmp: bytes, namespace: str, name: str, number: int) -> bytes:
    """The packet with a number that stands in it, as attribute or element, replaced."""
    for prefix in _prefixes(xmp, namespace):
        key = re.escape(prefix) + b":" + name.encode()
        value = b"%d" % number
        attribute = rb"(\s" + key + rb"\s*=\s*[\"'])\s*\d+\s*([\"'])"
        element = rb"(<" + key + rb"\s*>)\s*\d+\s*(</" + key + rb"\s*>)"
        for pattern in (attribute, element):
            xmp = re.sub(pattern, lambda m, v=value: m[1] + v + m[2], xmp)  # type: ignore[misc]
    return xmp


def _drop(xmp: bytes, namespace: str, name: bytes = rb"[\w.-]+") -> bytes:
    """The packet without the elements and attributes of a name (any name) in a namespace."""
    for prefix in _prefixes(xmp, namespace):
        key = re.escape(prefix) + b":" + name
        xmp = _drop_elements(xmp, key)
        xmp = re.sub(rb"<" + key + rb"(?:\s[^<>]*)?/>", b"", xmp)
        xmp = re.sub(rb"\s" + key + rb"\s*=\s*(?:\"[^\"]*\"|'[^']*')", b"", xmp)
    return xmp


def without(xmp: bytes, namespace: str) -> bytes:
    """The packet without anything of a namespace; itself where it cannot be changed."""
    xmp = as_utf8(xmp)
    return _drop(xmp, namespace) if is_utf8_xmp(xmp) else xmp


def _drop_elements(xmp: bytes, key: bytes) -> bytes:
    """The packet without elements of a name. One pass: a pattern with ``.*?`` could take hours."""
    kept, at = b"", 0
    for opening in re.finditer(rb"<(" + key + rb")(?:\s[^<>]*)?(?<!/)>", xmp):
        if opening.start() < at:
            continue
        closing = b"</" + opening[1] + b">"
        end = xmp.find(closing, opening.end())
        if end < 0:
            break
        kept += xmp[at : opening.start()]
        at = end + len(closing)
    return kept + xmp[at:]


def is_utf8_xmp(xmp: bytes) -> bool:
    """Whether the packet can be changed byte by byte."""
    return b"\0" not in xmp


def as_utf8(xmp: bytes) -> bytes:
    """The packet in UTF-8, which every reader of JPEG and PNG expects, without zeros at its end;
    itself where it is neither that nor UTF-16."""
    bare = xmp.rstrip(b"\0")
    if is_utf8_xmp(bare):
        return bare
    marked = xmp[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = xmp.decode("utf-16" if marked else "utf-16-le" if xmp[0] else "utf-16-be")
    except UnicodeDecodeError:
        return xmp
    return xmp if "\0" in text else text.encode()


def xmp_orientation(xmp: bytes | None) -> int:
    """1 to 8 by the packet's tiff:Orientation; 1 where there is none."""
    xmp = as_utf8(xmp or b"")
    for prefix in _prefixes(xmp, TIFF_NS):
        key = re.escape(prefix) + rb":Orientation"
        if found := re.search(key + rb"(?:\s*=\s*[\"']|\s*>)\s*([1-8])\s*[\"'<]", xmp):
            return int(found[1])
    return 1


def has_gain_map(xmp: bytes | None) -> bool:
    """Whether the packet speaks of a gain map."""
    xmp = as_utf8(xmp or b"")
    return any(_prefixes(xmp, name) for name in (GAIN_MAP_NS, APPLE_GAIN_MAP_NS))


def renewed_xmp(xmp: bytes, width: int, height: int) -> bytes:
    """The packet of an upright picture of this size, alone: without thumbnails, gain maps and
    videos of the moment."""
    xmp = as_utf8(xmp)
    if not is_utf8_xmp(xmp):
        return xmp
    if xmp_orientation(xmp) != 1:
        xmp = _set_number(xmp, TIFF_NS, "Orientation", 1)
    for namespace, across, down in (
        (TIFF_NS, "ImageWidth", "ImageLength"),
        (EXIF_NS, "PixelXDimension", "PixelYDimension"),
    ):
        xmp = _set_number(xmp, namespace, across, width)
        xmp = _set_number(xmp, namespace, down, height)
    xmp = _drop(xmp, XMP_NS, rb"Thumbnails")
    for namespace in (GAIN_MAP_NS, APPLE_GAIN_MAP_NS):
        xmp = _drop(xmp, namespace)
    xmp = _drop(xmp, CAMERA_NS, rb"(?:MotionPhoto|MicroVideo)\w*")
    return _drop(xmp, CONTAINER_NS, rb"Directory")  # of what followed the picture in its file


def with_history(xmp: bytes, software: str) -> bytes:
    """The packet with one more event in its history; itself where it has no place for one."""
    if not is_utf8_xmp(xmp):
        return xmp
    agent = escape(software).encode()
    event = (
        b'<rdf:li xmlns:rdf="%s" xmlns:stEvt="%s" rdf:parseType="Resource">'
        b"<stEvt:action>edited</stEvt:action>"
        b"<stEvt:softwareAgent>%s</stEvt:softwareAgent></rdf:li>"
        % (RDF_NS.encode(), EVENT_NS.encode(), agent)
    )
    events = b'<rdf:Seq xmlns:rdf="%s">%s</rdf:Seq>' % (RDF_NS.encode(), event)
    for prefix in _prefixes(xmp, XMP_MM_NS):
        name = prefix + b":History"
        history = re.search(rb"<" + re.escape(name) + rb"(?:\s[^<>]*)?/?>", xmp)
        if not history:
            continue
        start, stop = history.span()
        if history[0].endswith(b"/>"):
            return xmp[:start] + b"<%s>%s</%s>" % (name, events, name) + xmp[stop:]
        closing = xmp.find(b"</" + name, stop)
        if closing < 0:
            return xmp
        if end := re.compile(rb"</[\w.-]+:Seq\s*>").search(xmp, stop, closing):
            return xmp[: end.start()] + event + xmp[end.start() :]
        return xmp[:stop] + events + xmp[closing:]
    end = re.search(rb"</[\w.-]+:RDF\s*>", xmp)
    if not end:
        return xmp
    description = (
        b'<rdf:Description xmlns:rdf="%s" xmlns:xmpMM="%s" rdf:about="">'
        b"<xmpMM:History><rdf:Seq>%s</rdf:Seq></xmpMM:History></rdf:Description>"
        % (RDF_NS.encode(), XMP_MM_NS.encode(), event)
    )
    return xmp[: end.start()] + description + xmp[end.start() :]


# Photoshop resources and IPTC ------------------------------------------------------------------


def resources(block: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Each whole Photoshop resource: its number, all of its bytes, its data."""
    at = 0
    while block[at : at + 4] == b"8BIM" and at + 7 <= len(block):
        number = struct.unpack_from(">H", block, at + 4)[0]
        size_at = at + 6 + (block[at + 6] + 2) // 2 * 2  # a Pascal string, padded to even
        if size_at + 4 > len(block):
            return
        size = struct.unpack_from(">I", block, size_at)[0]
        end = size_at + 4 + size
        if end > len(block):
            return
        padded = min(end + size % 2, len(block))
        yield number, block[at:padded], block[size_at + 4 : end]
        at = padded


def split_photoshop(block: bytes) -> tuple[bytes | None, bytes | None]:
    """Photoshop resources -> (the IPTC records, all others but thumbnails); None for none."""
    iptc = None
    others = b""
    for number, whole, data in resources(block):
        if number == PHOTOSHOP_IPTC:
            iptc = data
        elif number not in PHOTOSHOP_THUMBNAILS:
            others += whole
    return iptc, others or None


def has_paths(block: bytes) -> bool:
    """Whether there are paths, such as one to clip by, among Photoshop resources."""
    return any(2000 <= number < 3000 for number, _, _ in resources(block))


def join_photoshop(iptc: bytes | None, others: bytes | None) -> bytes | None:
    """The inverse of :func:`split_photoshop`, the IPTC records first."""
    block = b""
    if iptc is not None:
        head = struct.pack(">4sHHI", b"8BIM", PHOTOSHOP_IPTC, 0, len(iptc))
        block = head + iptc + bytes(len(iptc) % 2)
    return block + (others or b"") or None


def renew(picture: Picture) -> None:
    """Bring size and orientation in the metadata up to date; drop what is broken, with a note."""
    height, width = picture.frames[0].shape[:2]
    if picture.exif is not None:
        try:
            picture.exif = renewed_exif(picture.exif, width, height)
        except MediaError:
            picture.exif = None
            picture.notes.append("a damaged EXIF block was dropped")
    if picture.xmp is not None:
        picture.xmp = renewed_xmp(picture.xmp, width, height)
