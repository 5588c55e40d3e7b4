"""TIFF structure on bytes: what an EXIF block is, and what a TIFF file is around its pixels.

Offsets inside a MakerNote count from the start of the block, and nobody but its maker knows where
they stand. So an EXIF block is not rebuilt: values are overwritten where they lie, and a directory
that must grow is written again at the end, with the old values left where they were. Only the tags
of a TIFF or a raw picture, which stand among its pixels, go into a block that is built anew, and so
do all tags that a TIFF is written with; there a MakerNote keeps its bytes, but moves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import MediaError

# Bytes of one value of each type: BYTE ASCII SHORT LONG RATIONAL SBYTE UNDEFINED SSHORT SLONG
# SRATIONAL FLOAT DOUBLE IFD, and LONG8 SLONG8 IFD8 of BigTIFF.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}
ASCII, SHORT, LONG, UNDEFINED, SLONG, LONG8, SLONG8, IFD8 = 2, 3, 4, 7, 9, 16, 17, 18

IMAGE_WIDTH, IMAGE_LENGTH, ORIENTATION, SOFTWARE = 256, 257, 274, 305
THUMBNAIL_OFFSET, THUMBNAIL_LENGTH = 513, 514
EXIF_IFD, GPS_IFD, INTEROP_IFD = 34665, 34853, 40965
PIXEL_X, PIXEL_Y = 40962, 40963
XMP, IPTC, PHOTOSHOP, ICC = 700, 33723, 34377, 34675

MAX_ENTRIES = 4096  # no writer comes near; a hostile count would keep us busy


class Tag(NamedTuple):
    """The value of one tag: ``number`` values of type ``kind`` as they lie in the file."""

    kind: int
    number: int
    data: bytes


@dataclass
class Tags:
    """Descriptive tags of one page, copied out of their block; values in byte ``order``."""

    order: str = "<"  # or ">"
    main: dict[int, Tag] = field(default_factory=dict)
    exif: dict[int, Tag] = field(default_factory=dict)
    gps: dict[int, Tag] = field(default_factory=dict)
    interop: dict[int, Tag] = field(default_factory=dict)

    def text(self, tag: int, text: str) -> None:
        """Set a tag to ``text``."""
        data = text.encode("ascii", "replace") + b"\0"
        self.main[tag] = Tag(ASCII, len(data), data)


class Entry(NamedTuple):
    """Where a tag stands in its block."""

    tag: int
    kind: int
    number: int
    at: int  # of the directory entry
    data_at: int
    size: int  # bytes of the value


class Block:
    """A TIFF block under the knife. Raises MediaError where there is no TIFF header."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]), "")
        magic = self._number(2, 2) if self.order and len(data) >= 8 else 0
        if magic not in (42, 43):
            raise MediaError("has no TIFF header")
        self.big = magic == 43
        self.width = 8 if self.big else 4  # of an offset
        self.first = 8 if self.big else 4  # where the offset of the first directory stands

    def _number(self, at: int, size: int) -> int:
        if at < 0 or at + size > len(self.data):
            raise MediaError("has a TIFF directory beyond its end")
        return int.from_bytes(self.data[at : at + size], "little" if self.order == "<" else "big")

    def _bytes(self, number: int, size: int) -> bytes:
        return number.to_bytes(size, "little" if self.order == "<" else "big")

    def offset(self, at: int) -> int:
        """The offset that stands at ``at``."""
        return self._number(at, self.width)

    def entries(self, directory: int) -> list[Entry]:
        """The entries of the directory at an offset; those with values beyond the end left out."""
        head, size = (8, 20) if self.big else (2, 12)
        number = self._number(directory, head)
        if number > MAX_ENTRIES:
            raise MediaError(f"has a TIFF directory of {number} entries")
        self._number(directory + head + number * size, 0)
        found = []
        for at in range(directory + head, directory + head + number * size, size):
            tag, kind = self._number(at, 2), self._number(at + 2, 2)
            count = self._number(at + 4, self.width)
            length = SIZES.get(kind, 0) * count
            data_at = at + 4 + self.width
            if length > self.width:
                data_at = self.offset(data_at)
            if length and data_at + length <= len(self.data):
                found.append(Entry(tag, kind, count, at, data_at, length))
        return found

    def next_at(self, directory: int) -> int:
        """Where the offset of the directory after this one stands."""
        head, size = (8, 20) if self.big else (2, 12)
        return directory + head + self._number(directory, head) * size

    def following(self, directory: int) -> int:
        """The offset of the directory after this one; 0 for none, also where the link is cut off:
        some writers leave the last one out."""
        at = self.next_at(directory)
        return self.offset(at) if at + self.width <= len(self.data) else 0

    def find(self, directory: int, tag: int) -> Entry | None:
        """The first entry of a tag."""
        return next((entry for entry in self.entries(directory) if entry.tag == tag), None)

    def value(self, entry: Entry) -> Tag:
        """The value of an entry."""
        data = bytes(self.data[entry.data_at : entry.data_at + entry.size])
        return Tag(entry.kind, entry.number, data)

    def integer(self, entry: Entry | None) -> int | None:
        """The first value of an entry of an integer type; None for any other."""
        if entry is None or entry.kind not in (1, 3, 4, 13, 16, 18):
            return None
        return self._number(entry.data_at, SIZES[entry.kind])

    def integers(self, entry: Entry) -> list[int]:
        """All values of an entry of an integer type."""
        size = SIZES[entry.kind]
        return [
            self._number(at, size) for at in range(entry.data_at, entry.data_at + entry.size, size)
        ]

    def set_integer(self, directory: int, tag: int, number: int) -> None:
        """Overwrite a tag's first value where it lies, if it is there and large enough."""
        entry = self.find(directory, tag)
        if entry and entry.kind in (1, 3, 4, 16) and number < 256 ** SIZES[entry.kind]:
            size = SIZES[entry.kind]
            self.data[entry.data_at : entry.data_at + size] = self._bytes(number, size)

    def directories(self) -> Iterator[int]:
        """The offsets of the chain of directories; ends where it bites its tail."""
        seen = set()
        at = self.offset(self.first)
        while at and at not in seen:
            seen.add(at)
            yield at
            at = self.following(at)

    def child(self, directory: int, tag: int) -> int | None:
        """The offset of a directory that a tag points to, if it does."""
        at = self.integer(self.find(directory, tag))
        return at if at and at < len(self.data) else None

    def tags(self, directory: int) -> Tags:
        """All tags of a directory and of its EXIF, GPS and interoperability directories."""

        def collect(at: int | None) -> dict[int, Tag]:
            entries = self.entries(at) if at else []
            return {entry.tag: self.value(entry) for entry in entries}

        exif_at = self.child(directory, EXIF_IFD)
        found = Tags(self.order, collect(directory), collect(exif_at))
        found.gps = collect(self.child(directory, GPS_IFD))
        found.interop = collect(self.child(exif_at, INTEROP_IFD) if exif_at else None)
        for pointer in (EXIF_IFD, GPS_IFD):
            found.main.pop(pointer, None)
        found.exif.pop(INTEROP_IFD, None)
        return found

    def _append(self, data: bytes) -> int:
        self.data += bytes(-len(self.data) % 2)
        at = len(self.data)
        self.data += data
        return at

    def write_directory(self, pointer_at: int, new: dict[int, Tag]) -> None:
        """Append a directory of ``new`` tags and point to it from ``pointer_at``.

        What the pointer led to stays: its entries are copied, but for those of the same tags, and
        so is its link to the next directory.
        """
        head, size = (8, 20) if self.big else (2, 12)
        rows: dict[int, bytes] = {}
        following = 0
        old = self.offset(pointer_at)
        if old:
            for at in range(old + head, self.next_at(old), size):
                rows[self._number(at, 2)] = bytes(self.data[at : at + size])
            following = self.following(old)
        for number, given in new.items():
            tag = given if self.big else _narrowed(given, self.order)
            if tag is None:
                continue
            inline = tag.data.ljust(self.width, b"\0")
            if len(inline) > self.width:
                inline = self._bytes(self._append(tag.data), self.width)
            key = struct.pack(self.order + "HH", number, tag.kind)
            rows[number] = key + self._bytes(tag.number, self.width) + inline
        body = b"".join(rows[number] for number in sorted(rows))
        count = self._bytes(len(rows), head)
        at = self._append(count + body + self._bytes(following, self.width))
        self.data[pointer_at : pointer_at + self.width] = self._bytes(at, self.width)

    def write_tags(self, pointer_at: int, tags: Tags) -> None:
        """Add all of ``tags``, which are of this block's byte order, to one directory."""
        kind = IFD8 if self.big else LONG

        def pointer(entries: dict[int, Tag]) -> Tag:
            slot = self._append(bytes(self.width))
            self.write_directory(slot, entries)
            return Tag(kind, 1, self._bytes(self.offset(slot), self.width))

        main, exif = dict(tags.main), dict(tags.exif)
        if tags.interop:
            exif[INTEROP_IFD] = pointer(tags.interop)
        if exif:
            main[EXIF_IFD] = pointer(exif)
        if tags.gps:
            main[GPS_IFD] = pointer(tags.gps)
        self.write_directory(pointer_at, main)


def _narrowed(tag: Tag, order: str) -> Tag | None:
    """A tag with values of 4 bytes for those of 8 that only BigTIFF has; None where they do not
    fit, and for offsets, which mean nothing elsewhere."""
    if tag.kind not in (LONG8, SLONG8, IFD8):
        return tag
    if tag.kind == IFD8:
        return None
    letter = "i" if tag.kind == SLONG8 else "I"
    values = struct.unpack(f"{order}{tag.number}{'q' if letter == 'i' else 'Q'}", tag.data)
    try:
        data = struct.pack(f"{order}{tag.number}{letter}", *values)
    except struct.error:
        return None
    return Tag(SLONG if letter == "i" else LONG, tag.number, data)


def build(tags: Tags) -> bytes:
    """An EXIF block of ``tags``."""
    start = b"II*\0" if tags.order == "<" else b"MM\0*"
    block = Block(start + bytes(4))
    block.write_tags(block.first, tags)
    return bytes(block.data)
