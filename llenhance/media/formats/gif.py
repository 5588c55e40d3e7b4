"""GIF: frames composed by Pillow, written whole, each with a palette of its own.

Pillow's writer would merge frames that look the same and crop the others to what changed; the
blocks of one frame are plain enough to be put together here.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

import numpy as np
from PIL import GifImagePlugin, Image

from ...errors import MediaError
from ...pixels import Array, convert, split
from ..picture import Limits, Picture, Writing
from .codecs import Opener, pillow_array

COLOURS = 255  # in a frame, beside the clear one
BYTE = np.dtype(np.uint8)
XMP = b"XMP DataXMP"
ICC = b"ICCRGBG1012"
LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
# The end of an XMP packet in a GIF: a reader that takes its bytes for block sizes lands on 0.
XMP_TRAILER = bytes([1, *range(255, -1, -1), 0])


def called(name: bytes, _text: bytes) -> str:
    """What a part that is carried is called."""
    return name.decode()


@dataclass
class _Structure:
    width: int
    height: int
    delays: list[int] = field(default_factory=list)  # hundredths of a second, one for each frame
    loops: int | None = None
    comments: list[bytes] = field(default_factory=list)
    xmp: bytes | None = None
    icc: bytes | None = None
    whole: bool = False


def _sub_blocks(data: bytes, at: int) -> tuple[bytes, int]:
    """The joined data of sub-blocks and where they end; IndexError where they are cut."""
    parts = []
    while size := data[at]:
        if at + 1 + size > len(data):
            raise IndexError
        parts.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    return b"".join(parts), at + 1


def _walk(data: bytes, limits: Limits) -> _Structure:
    if len(data) < 13:
        raise MediaError("is a GIF that ends in its header")
    found = _Structure(*struct.unpack_from("<HH", data, 6))
    limits.check(found.width, found.height)
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    delay = 0
    start = at
    try:
        while data[start] != 0x3B:
            at = start
            kind = data[at]
            if kind == 0x2C:
                left, top, width, height, flags = struct.unpack_from("<HHHHB", data, at + 1)
                limits.check(left + width, top + height)
                at += 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0) + 1
                _, at = _sub_blocks(data, at)
                found.delays.append(delay)
                limits.check(found.width, found.height, len(found.delays))
                delay = 0
            elif kind == 0x21:
                label, inner = data[at + 1], at + 2
                body, at = _sub_blocks(data, inner)
                if label == 0xF9 and len(body) >= 4:
                    delay = struct.unpack_from("<H", body, 1)[0]
                elif label == 0xFE:
                    found.comments.append(body)
                elif label == 0xFF:
                    _application(found, data, inner, body, at)
            else:
                raise IndexError
            start = at
        found.whole = True
    except (IndexError, struct.error):
        # Many writers leave the last byte out.
        found.whole = start == len(data) and bool(found.delays)
    return found


def _application(found: _Structure, data: bytes, start: int, body: bytes, end: int) -> None:
    name = body[:11]
    if name in LOOPS and len(body) >= 14:
        found.loops = struct.unpack_from("<H", body, 12)[0]
    elif name == XMP:
        packet = data[start + 12 : end]
        found.xmp = packet[: -len(XMP_TRAILER)] if packet.endswith(XMP_TRAILER) else None
    elif name == ICC:
        found.icc = body[11:]


class _Gif(GifImagePlugin.GifImageFile):
    """Pillow takes a first palette of all greys for no palette, and then gives the indices of later
    frames, which have colours, for greys."""

    def _is_palette_needed(self, p: bytes) -> bool:  # noqa: ARG002
        return True


def read(data: bytes, limits: Limits) -> Picture:
    """All frames of a GIF as RGB or RGBA, whole and composed. Raises MediaError."""
    found = _walk(data, limits)
    picture = Picture([], "gif", xmp=found.xmp, icc=found.icc)
    if not found.whole:
        limits.damaged("it ends within a frame")
        picture.truncated = True
    opener = Opener(lambda: _Gif(io.BytesIO(data)))

    count = max(1, len(found.delays))
    frames = [pillow_array(opener, limits, picture, frame=number) for number in range(count)]
    if any(frame.ndim == 3 and frame.shape[2] == 4 for frame in frames):
        frames = [_rgba(frame) for frame in frames]
    picture.frames = _of_one_size([_rgb(frame) for frame in frames], picture)
    if count > 1:
        picture.durations = [Fraction(delay, 100) for delay in found.delays]
        # A GIF's number counts repetitions, and without one it plays once.
        picture.loops = 1 if found.loops is None else found.loops + 1 if found.loops else 0
    picture.carried = [(b"comment", comment) for comment in found.comments]
    return picture


def _of_one_size(frames: list[Array], picture: Picture) -> list[Array]:
    """The frames as large as the first: Pillow lets later ones grow, where players cut them off."""
    height, width = frames[0].shape[:2]
    if all(frame.shape[:2] == (height, width) for frame in frames):
        return frames
    picture.notes.append("frames reach beyond the first one's size: that is left out, as it shows")
    return [np.ascontiguousarray(frame[:height, :width]) for frame in frames]


def _rgb(frame: Array) -> Array:
    return np.repeat(frame[..., None], 3, 2) if frame.ndim == 2 else frame


def _rgba(frame: Array) -> Array:
    frame = _rgb(frame)
    if frame.shape[2] == 4:
        return frame
    return np.concatenate((frame, np.full_like(frame[..., :1], 255)), 2)


def _block(label: int, *parts: bytes) -> bytes:
    """An extension of sub-blocks of at most 255 bytes."""
    out = b""
    for part in parts:
        for at in range(0, len(part), 255):
            piece = part[at : at + 255]
            out += bytes([len(piece)]) + piece
    return bytes([0x21, label]) + out + b"\0"


def losses(picture: Picture) -> list[str]:
    """What a GIF cannot hold of a picture that was none, in ends of sentences."""
    if picture.format == "gif":
        return []
    found = []
    if any(_has_many_colours(frame) for frame in picture.frames):
        found.append(f"the colours become {COLOURS} a frame")
    if any(_is_half_clear(frame) for frame in picture.frames):
        found.append("half-clear pixels become clear or opaque")
    if picture.animated and _delays(picture) != [100 * time for time in picture.durations or []]:
        found.append("times become hundredths of a second")
    return found


def _has_many_colours(frame: Array) -> bool:
    colours = convert(split(frame)[0], BYTE)
    # Nearly all photos can be told by a few of their pixels.
    return any(np.unique(_packed(part)).size > COLOURS for part in (colours[::8, ::8], colours))


def _is_half_clear(frame: Array) -> bool:
    alpha = split(frame)[1].alpha
    return alpha is not None and bool(np.isin(convert(alpha, BYTE), (0, 255), invert=True).any())


def _delays(picture: Picture) -> list[int]:
    """How long each frame is shown, in hundredths of a second. What rounding takes from one, the
    next is given; but players take a single hundredth for a tenth of a second, so none is made."""
    delays, due, shown = [], Fraction(0), 0
    for duration in picture.durations or []:
        due += 100 * duration
        delay = max(round(due) - shown, min(2, ceil(100 * duration)))
        delays.append(min(delay, 65535))
        shown += delay
    return delays


def write(picture: Picture, writing: Writing) -> bytes:  # noqa: ARG001
    """A GIF of 8-bit frames, 255 colours and one clear one in each."""
    height, width = picture.frames[0].shape[:2]
    if max(height, width) > 65535:
        raise MediaError("is larger than the 65535 pixels a side that a GIF can have")
    out = [b"GIF89a", struct.pack("<HHBBB", width, height, 0x70, 0, 0)]
    if picture.animated and picture.loops != 1:
        repeats = min(max(picture.loops - 1, 0), 65535)
        out.append(_block(0xFF, LOOPS[0], struct.pack("<BH", 1, repeats)))
    out += [_block(0xFE, text) for name, text in picture.carried if name == b"comment"]
    if picture.icc:
        out.append(_block(0xFF, ICC, picture.icc))
    if picture.xmp is not None:
        out.append(b"\x21\xff" + bytes([len(XMP)]) + XMP + picture.xmp + XMP_TRAILER)
    delays = _delays(picture) if picture.animated else [0] * len(picture.frames)
    for frame, delay in zip(picture.frames, delays, strict=True):
        out.append(_frame(frame, delay))
    return b"".join(out) + b"\x3b"


def _frame(frame: Array, delay: int) -> bytes:
    """Graphic control, image descriptor, palette and data of one whole frame."""
    clear = frame[..., -1] < 128 if frame.ndim == 3 and frame.shape[2] in (2, 4) else None
    rgb, _ = split(frame)
    indices, table = _reduced(rgb)
    if clear is not None:
        indices[clear] = 255
    indexed = Image.fromarray(indices, "P")
    indexed.putpalette(table)
    data = _coded(indexed)
    # Every frame is whole: those with clear pixels take the one before away first.
    flags, index = (2 << 2 | 1, 255) if clear is not None else (1 << 2, 0)
    control = struct.pack("<BBBBHBB", 0x21, 0xF9, 4, flags, delay, index, 0)
    descriptor = struct.pack("<BHHHHB", 0x2C, 0, 0, *indexed.size, 0x87)
    return control + descriptor + table + data


def _reduced(rgb: Array) -> tuple[Array, bytes]:
    """(H, W, 3) -> indices (H, W) below 255 and a palette of 768 bytes.

    Exact where there are few enough colours, which Pillow's quantisers are not. No dither: a dark
    photo's noise is one.
    """
    packed = _packed(rgb)
    few, inverse = np.unique(packed, return_inverse=True)
    if few.size <= COLOURS:
        table = (few[:, None] >> np.array([16, 8, 0], np.uint32)).astype(np.uint8)
        return inverse.reshape(packed.shape).astype(np.uint8), table.tobytes().ljust(768, b"\0")
    image = Image.fromarray(rgb).quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=2)
    return np.array(image), bytes(image.getpalette() or []).ljust(768, b"\0")


def _packed(rgb: Array) -> Array:
    """(H, W, 3) uint8 -> (H, W): one number for each colour."""
    return np.asarray(rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32))


def _coded(indexed: Image.Image) -> bytes:
    """The LZW code size and sub-blocks that Pillow makes of a picture with a palette."""
    out = io.BytesIO()
    indexed.save(out, "GIF", optimize=False, interlace=False)
    data = out.getvalue()
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while data[at] == 0x21:
        _, at = _sub_blocks(data, at + 2)
    flags = data[at + 9]
    at += 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    _, end = _sub_blocks(data, at + 1)
    return data[at:end]
