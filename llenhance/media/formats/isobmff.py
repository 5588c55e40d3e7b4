"""The boxes of HEIC and AVIF: what they say of the picture, and metadata put into an AVIF."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from ...errors import MediaError
from .jp2 import box, boxes

HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
UNSPECIFIED = (2, 2)  # primaries and transfer of a file that does not tell them
GAIN_MAPS = (b"tmap", b"urn:com:apple:photo:2020:aux:hdrgainmap", b"21496")


ALPHA = (b"auxiliary:alpha", b"auxid:1")
DEPTH = (b"auxiliary:depth", b"auxid:2")


@dataclass
class Meta:
    """What the meta box tells of the primary picture."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # of all items: tiles, thumbnails
    depth: int = 8
    icc: bytes | None = None
    cicp: tuple[int, int, int] | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    gain_map: bool = False
    others: list[str] = field(default_factory=list)  # what else is in the file


def brand(head: bytes) -> str | None:
    """ "avif", "heif", "raw" (CR3) or None, by the ftyp box."""
    if head[4:8] != b"ftyp":
        return None
    size = struct.unpack_from(">I", head)[0]
    names = [head[at : at + 4] for at in (8, *range(16, min(size, len(head)), 4))]
    if AVIF_BRANDS & set(names):
        return "avif"
    if names[0] == b"crx ":
        return "raw"
    return "heif" if HEIF_BRANDS & set(names) else None


def parse(data: bytes) -> Meta:
    """Read the meta box. Raises MediaError where there is none, or a broken one."""
    try:
        return _parse(data)
    except (struct.error, IndexError, ValueError) as error:
        raise MediaError(f"is damaged: its boxes make no sense ({error})") from None


def _parse(data: bytes) -> Meta:
    meta = next(((at + 4, end) for kind, at, end in boxes(data) if kind == b"meta"), None)
    if meta is None:
        raise MediaError("is damaged: it has no meta box")
    found = Meta()
    if any(kind == b"mpvd" for kind, _, _ in boxes(data)):
        found.others.append("a video")
    items: dict[int, bytes] = {}
    places: dict[int, list[tuple[int, int]]] = {}
    inside = b""
    for kind, at, end in boxes(data, *meta):
        if kind == b"iinf":
            items = _items(data, at, end)
        elif kind == b"iloc":
            places = _locations(data[at:end])
        elif kind == b"idat":
            inside = data[at:end]
        elif kind == b"iprp":
            for name, start, stop in boxes(data, at, end):
                if name == b"ipco":
                    _properties(found, data, start, stop)
    for number, kind in items.items():
        parts = places.get(number, [])
        if kind == b"tmap":
            found.gain_map = True
        if kind not in (b"Exif", b"mime") or not parts:
            continue
        if sum(size for _, size in parts) > len(data):
            raise ValueError("an item is larger than the file")
        block = b"".join(
            inside[-at - 1 : -at - 1 + size] if at < 0 else data[at : at + size]
            for at, size in parts
        )
        if kind == b"Exif" and found.exif is None and len(block) > 4:
            skip = struct.unpack_from(">I", block)[0]
            found.exif = block[4 + skip :] if skip < len(block) else None
            found.exif = found.exif and found.exif.removeprefix(b"Exif\0\0")
        elif kind == b"mime" and found.xmp is None and (b"xmpmeta" in block or b"rdf:RDF" in block):
            found.xmp = block
    return found


def _items(data: bytes, at: int, end: int) -> dict[int, bytes]:
    """The type of each item by its number."""
    start = at + (6 if data[at] == 0 else 8)
    found = {}
    for kind, inner, stop in boxes(data, start, end):
        if kind == b"infe" and data[inner] >= 2 and inner + 12 <= stop:
            wide = data[inner] == 3
            number = struct.unpack_from(">I" if wide else ">H", data, inner + 4)[0]
            name = inner + (10 if wide else 8)
            found[number] = data[name : name + 4]
    return found


def _locations(body: bytes) -> dict[int, list[tuple[int, int]]]:
    """Offset and length of each item's parts; ~offset (below 0) for those inside idat."""
    version, sizes = body[0], struct.unpack_from(">H", body, 4)[0]
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    at = 6

    def number(size: int) -> int:
        nonlocal at
        if at + size > len(body):
            raise ValueError("a location is cut")
        at += size
        return int.from_bytes(body[at - size : at], "big")

    found, count = {}, 0
    for _ in range(number(4 if version == 2 else 2)):
        item = number(4 if version == 2 else 2)
        method = number(2) & 15 if version else 0
        number(2)  # the data reference: this file
        base = number(base_size)
        parts = []
        for _ in range(number(2)):
            number(index_size)
            offset, length = base + number(offset_size), number(length_size)
            parts.append((~offset if method == 1 else offset, length))
            count += 1
            if count > len(body):  # parts of no bytes
                raise ValueError("items of more parts than can be")
        found[item] = parts if method < 2 else []
    return found


def _properties(found: Meta, data: bytes, at: int, end: int) -> None:
    for kind, start, stop in boxes(data, at, end):
        body = data[start:stop]
        if kind == b"ispe" and len(body) >= 12:
            found.sizes.append(struct.unpack_from(">II", body, 4))
        elif kind == b"pixi" and len(body) >= 6:
            found.depth = max(found.depth, body[5])
        elif kind == b"av1C" and len(body) >= 3 and body[2] & 0x40:
            found.depth = max(found.depth, 12 if body[2] & 0x20 else 10)
        elif kind == b"hvcC" and len(body) >= 18:
            found.depth = max(found.depth, (body[17] & 7) + 8)
        elif kind == b"colr" and body[:4] in (b"prof", b"rICC") and found.icc is None:
            found.icc = body[4:]
        elif kind == b"colr" and body[:4] == b"nclx" and len(body) >= 10 and found.cicp is None:
            numbers = struct.unpack_from(">HHH", body, 4)
            found.cicp = None if numbers[:2] == UNSPECIFIED else numbers
        elif kind == b"auxC" and any(name in body for name in GAIN_MAPS):
            found.gain_map = True
        elif kind == b"auxC" and not any(name in body for name in ALPHA):
            what = "a depth map" if any(name in body for name in DEPTH) else "a matte"
            found.others.append(what)


def with_metadata(data: bytes, exif: bytes | None, xmp: bytes | None, icc: bytes | None) -> bytes:
    """A still AVIF, as libavif writes it, with more items at its end and a profile.

    Raises MediaError where the file is laid out in another way.
    """
    tops = [(kind, at, end) for kind, at, end in boxes(data)]
    where = next(((at, end) for kind, at, end in tops if kind == b"meta"), None)
    if where is None:
        raise MediaError("cannot be written as AVIF: the encoder left no meta box")
    children = {kind: data[at:end] for kind, at, end in boxes(data, where[0] + 4, where[1])}
    items = _items(data, *_span(data, where, b"iinf"))
    places = _locations(children[b"iloc"])
    primary = struct.unpack_from(">H", children[b"pitm"], 4)[0]
    infos = _info_entries(children[b"iinf"])
    blocks = []
    number = max(items) + 1
    references = children.get(b"iref", bytes(4))
    for kind, mime, block in (
        (b"Exif", b"", None if exif is None else bytes(4) + exif),
        (b"mime", b"application/rdf+xml\0", xmp),
    ):
        if block is None:
            continue
        entry = b"\2\0\0\1" + struct.pack(">HH", number, 0) + kind + b"\0" + mime
        infos.append(box(b"infe", entry))
        references += box(b"cdsc", struct.pack(">HHH", number, 1, primary))
        blocks.append((number, block))
        number += 1
    properties = children[b"iprp"]
    if icc:
        properties = _with_profile(properties, icc, [n for n in items if n == primary])
    children[b"iinf"] = bytes(4) + struct.pack(">H", len(infos)) + b"".join(infos)
    if len(references) > 4:
        children[b"iref"] = references
    children[b"iprp"] = properties
    order = [kind for kind in children if kind != b"iref"]
    if b"iref" in children:
        order.insert(order.index(b"iprp"), b"iref")

    def meta(shift: int, tail: int) -> bytes:
        rows = dict(places)
        moved = {n: [(at + shift, size) for at, size in parts] for n, parts in rows.items()}
        for item, block in blocks:
            moved[item] = [(tail, len(block))]
            tail += len(block)
        children[b"iloc"] = _packed_locations(moved)
        return box(b"meta", bytes(4) + b"".join(box(kind, children[kind]) for kind in order))

    old_size = where[1] - where[0] + 8
    shift = len(meta(0, 0)) - old_size
    tail = len(data) + shift + 8
    whole = data[: where[0] - 8] + meta(shift, tail) + data[where[1] :]
    return whole + box(b"mdat", b"".join(block for _, block in blocks)) if blocks else whole


def _span(data: bytes, where: tuple[int, int], name: bytes) -> tuple[int, int]:
    inner = boxes(data, where[0] + 4, where[1])
    return next((at, end) for kind, at, end in inner if kind == name)


def _info_entries(body: bytes) -> list[bytes]:
    return [box(kind, body[at:end]) for kind, at, end in boxes(body, 6)]


def _packed_locations(places: dict[int, list[tuple[int, int]]]) -> bytes:
    """An iloc box's content: version 0, offsets and lengths of 4 bytes, no base."""
    out = bytes(4) + struct.pack(">HH", 0x4400, len(places))
    for number, parts in places.items():
        out += struct.pack(">HHH", number, 0, len(parts))
        out += b"".join(struct.pack(">II", *part) for part in parts)
    return out


def _with_profile(properties: bytes, icc: bytes, numbers: list[int]) -> bytes:
    """The iprp content with a profile that belongs to these items."""
    parts = {kind: properties[at:end] for kind, at, end in boxes(properties)}
    count = sum(1 for _ in boxes(parts[b"ipco"]))
    parts[b"ipco"] += box(b"colr", b"prof" + icc)
    body = parts[b"ipma"]
    if body[0] or body[3] & 1 or count + 1 > 127:
        raise MediaError("cannot be written as AVIF: the encoder's properties are laid out oddly")
    at, out = 8, body[:8]
    for _ in range(struct.unpack_from(">I", body, 4)[0]):
        number, size = struct.unpack_from(">HB", body, at)
        own = body[at + 3 : at + 3 + size]
        at += 3 + size
        if number in numbers:
            own += bytes([count + 1])
        out += struct.pack(">HB", number, len(own)) + own
    parts[b"ipma"] = out
    return b"".join(box(kind, content) for kind, content in parts.items())
