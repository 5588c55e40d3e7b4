"""Formats that hold light itself: OpenEXR by FFmpeg's codec, Radiance HDR by OpenCV.

Their values are proportional to light and may be above 1. The picture says so by a linear
profile, and EXR's chromaticities become that profile's primaries.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ...errors import MediaError
from ...pixels import Array
from .. import colour
from ..picture import Limits, Picture, Writing
from .codecs import DECODER_ERRORS, opencv_decode, opencv_encode, reason

EXR_MAGIC = b"v/1\x01"
TILED, DEEP, MULTIPART = 0x200, 0x800, 0x1000
HALF, FLOAT = 1, 2
COMPRESSIONS = (
    "NONE",
    "RLE",
    "ZIPS",
    "ZIP",
    "PIZ",
    "PXR24",
    "B44",
    "B44A",
    "DWAA",
    "DWAB",
)
LINES = dict(zip(COMPRESSIONS, (1, 1, 1, 16, 32, 16, 32, 32, 32, 256), strict=True))  # in a chunk
# What FFmpeg's encoder makes of each; whatever it lacks becomes ZIP, which loses nothing.
WRITES = {"NONE": "none", "RLE": "rle", "ZIPS": "zip1"}
# Attributes that follow from the pixels; the preview is a thumbnail of the dark picture.
STRUCTURE = {
    b"channels",
    b"compression",
    b"dataWindow",
    b"displayWindow",
    b"lineOrder",
    b"tiles",
    b"type",
    b"chunkCount",
    b"version",
    b"preview",
    b"name",
    b"view",
    b"multiView",
}


# Header lines of a Radiance picture that say what its values mean.
MEANING = (b"EXPOSURE=", b"COLORCORR=", b"PRIMARIES=", b"PIXASPECT=")


def exr_tells_colours(name: bytes, _value: bytes) -> bool:
    """Whether an attribute that is carried is needed to show an EXR as it is meant."""
    return name in (b"chromaticities", b"whiteLuminance", b"pixelAspectRatio")


def hdr_tells_colours(_name: bytes, line: bytes) -> bool:
    """Whether a header line is needed to show a Radiance picture as it is meant."""
    return line.startswith(MEANING)


# Attributes that every EXR has, or that become the colours of another format.
ORDINARY = (b"chromaticities", b"pixelAspectRatio", b"screenWindowCenter", b"screenWindowWidth")


def exr_called(name: bytes, _value: bytes) -> str:
    """What an attribute is called; "" for one that other formats need not have."""
    return "" if name in ORDINARY else name.decode("latin-1")


def hdr_called(_name: bytes, line: bytes) -> str:
    """What a header line is called."""
    return line.split(b"=")[0].decode("latin-1") if b"=" in line else "comment"


class _Attribute(NamedTuple):
    name: bytes
    kind: bytes
    value: bytes
    at: int = 0  # where the value begins in a file


def _attributes(data: bytes) -> tuple[list[_Attribute], int]:
    """The attributes of an EXR header, and where it ends."""
    found: list[_Attribute] = []
    at = 8
    while True:
        if data[at : at + 1] == b"\0":
            return found, at + 1
        name_end = data.find(b"\0", at, at + 256)
        kind_end = data.find(b"\0", name_end + 1, name_end + 257)
        if name_end < 0 or kind_end < 0 or kind_end + 5 > len(data):
            raise MediaError("is damaged: the EXR header has no end")
        size = struct.unpack_from("<I", data, kind_end + 1)[0]
        start = kind_end + 5
        if start + size > len(data):
            raise MediaError("is damaged: the EXR header has no end")
        found.append(
            _Attribute(
                data[at:name_end],
                data[name_end + 1 : kind_end],
                data[start : start + size],
                start,
            )
        )
        at = start + size


def _channels(value: bytes) -> Iterator[tuple[str, int]]:
    """Name and pixel type of each channel."""
    at = 0
    while at < len(value) and value[at]:
        end = value.index(b"\0", at)
        yield value[at:end].decode("latin-1"), struct.unpack_from("<i", value, end + 1)[0]
        at = end + 17


def read_exr(data: bytes, limits: Limits) -> Picture:
    """The RGB(A) or grey of a flat EXR as float32. Raises MediaError."""
    flags = struct.unpack_from("<I", data, 4)[0] if len(data) > 8 else 0
    if flags & (DEEP | MULTIPART):
        raise MediaError("is an EXR of several parts or of deep pixels, which is not read")
    attributes, end = _attributes(data)
    values = {attribute.name: attribute.value for attribute in attributes}
    try:
        windows = [struct.unpack("<4i", values[n]) for n in (b"dataWindow", b"displayWindow")]
        channels = dict(_channels(values[b"channels"]))
        compression = COMPRESSIONS[values[b"compression"][0]]
    except (KeyError, IndexError, ValueError, struct.error):
        raise MediaError("is damaged: the EXR header lacks what it must have") from None
    for left, top, right, bottom in windows:
        limits.check(right - left + 1, bottom - top + 1)
    picture = Picture([], "exr", linear=True, compression=compression)
    height = windows[0][3] - windows[0][1] + 1
    count = 0 if flags & TILED else -(-height // LINES.get(compression, 1))
    if not flags & TILED:
        line = (windows[0][2] - windows[0][0] + 1) * sum(
            2 if kind == HALF else 4 for kind in channels.values()
        )
        _check_chunks(data, end, compression, (windows[0][1], height, line), limits, picture)
    grey = "Y" in channels and not {"R", "G", "B"} & set(channels)
    used = {"Y"} if grey else {"R", "G", "B"}
    if not used <= set(channels):
        raise MediaError(f"is an EXR without RGB or Y ({', '.join(list(channels)[:8])})")
    if extra := [name for name in channels if name not in used | {"A"}]:
        picture.notes.append(f"the channels {', '.join(extra[:8])} were dropped")
    picture.depth = 16 if channels["Y" if grey else "R"] == HALF else 32
    if beyond := _beyond(*windows):
        picture.notes.append(f"{beyond} of its pixels lie outside the display window: left out")
    planes = _decode_exr(_at_origin(data, attributes, (end, count), windows[1][:2]))
    if grey:  # Y comes alone, or as three equal planes beside A
        planes = [planes[0], *planes[3:]]
    frame = np.stack(planes, -1)
    if "A" in channels and frame.shape[2] in (2, 4):
        picture.premultiplied = True
        clear = frame[..., -1] <= 0
        glow = clear & (frame[..., :-1] != 0).any(2)
        picture.glow = glow if glow.any() else None
        colours = frame[..., :-1] / np.where(clear[..., None], 1, frame[..., -1:])
        frame = np.concatenate((colours, frame[..., -1:]), 2)
    picture.frames = [frame[..., 0] if frame.shape[2] == 1 else frame]
    chromaticities = values.get(b"chromaticities", b"")
    primaries = struct.unpack("<8f", chromaticities) if len(chromaticities) == 32 else ()
    if primaries and np.allclose(primaries, colour.REC709, atol=1e-4):
        primaries = ()  # what an EXR without them has
    picture.icc = colour.linear_profile(*primaries)
    picture.carried = [
        (attribute.name, attribute.kind + b"\0" + attribute.value)
        for attribute in attributes
        if attribute.name not in STRUCTURE
    ]
    return picture


def _check_chunks(
    data: bytes,
    at: int,
    compression: str,
    lines: tuple[int, int, int],
    limits: Limits,
    picture: Picture,
) -> None:
    """FFmpeg leaves black what is missing or damaged and says nothing: look ourselves.

    ``lines``: the number of the first one, how many there are, and the bytes in one.
    """
    first, height, line = lines
    together = LINES.get(compression, 1)
    try:
        for offset in struct.unpack_from(f"<{-(-height // together)}Q", data, at):
            number, size = struct.unpack_from("<iI", data, offset)
            body = data[offset + 8 : offset + 8 + size]
            if len(body) < size or offset < at:
                raise ValueError("a chunk is cut")
            # What does not become smaller is stored as it is.
            packed = size < min(together, first + height - number) * line
            if packed and compression in ("ZIP", "ZIPS"):
                zlib.decompress(body, bufsize=1 << 16)
    except (struct.error, ValueError, OverflowError, zlib.error) as error:
        limits.damaged(f"not all of its pixels are there ({reason(error)})")
        picture.truncated = True


def _beyond(data: tuple[int, ...], display: tuple[int, ...]) -> str:
    """How much of the data window the display window does not show; "" for nothing."""
    left, top = max(data[0], display[0]), max(data[1], display[1])
    right, bottom = min(data[2], display[2]), min(data[3], display[3])
    whole = (data[2] - data[0] + 1) * (data[3] - data[1] + 1)
    hidden = whole - max(0, right - left + 1) * max(0, bottom - top + 1)
    return f"{hidden / whole:.0%}" if hidden else ""


def _at_origin(
    data: bytes, attributes: list[_Attribute], chunks: tuple[int, int], origin: tuple[int, ...]
) -> bytes:
    """The same EXR with a display window that begins at 0, 0, without which FFmpeg shifts pixels.

    ``chunks``: where the table of those of lines stands, whose numbers count from that origin, and
    how many they are; none where there are tiles.
    """
    left, top = origin
    if not (left or top):
        return data
    moved = bytearray(data)
    for attribute in attributes:
        if attribute.name in (b"dataWindow", b"displayWindow"):
            window = struct.unpack("<4i", attribute.value)
            shifted = (value - (top if n % 2 else left) for n, value in enumerate(window))
            struct.pack_into("<4i", moved, attribute.at, *shifted)
    table, count = chunks
    with suppress(struct.error, OverflowError):  # what is cut off was told by _check_chunks
        for offset in struct.unpack_from(f"<{count}Q", data, table):
            (number,) = struct.unpack_from("<i", data, offset)
            struct.pack_into("<i", moved, offset, number - top)
    return bytes(moved)


def _decode_exr(data: bytes) -> list[Array]:
    """Planes R, G, B and perhaps A (or Y alone), (H, W) float32."""
    import av

    try:
        context = av.CodecContext.create("exr", "r")
        frames = [*context.decode(av.Packet(data)), *context.decode(None)]
        frame = frames[0]
    except (av.FFmpegError, *DECODER_ERRORS) as error:
        raise MediaError(
            f"is damaged, or an EXR of a kind that is not read: {reason(error)}"
        ) from None
    name = frame.format.name
    kind = np.float16 if "f16" in name else np.float32
    rows = [np.frombuffer(bytes(plane), kind).reshape(frame.height, -1) for plane in frame.planes]
    planes = [values[:, : frame.width].astype(np.float32) for values in rows]
    if name.startswith("gbr"):
        return [planes[2], planes[0], planes[1], *planes[3:]]
    if name.startswith("gray"):
        return planes
    if name.startswith("ya"):
        pairs = rows[0].reshape(frame.height, -1, 2)[:, : frame.width].astype(np.float32)
        return [pairs[..., 0]] * 3 + [pairs[..., 1]]
    raise MediaError(f"is an EXR of a kind that is not read ({name})")


def write_exr(picture: Picture, writing: Writing) -> bytes:
    """An EXR of the first frame, float32, half or full as the input was, attributes kept."""
    import av

    frame = picture.frames[0].astype(np.float32)
    if frame.ndim == 2:
        frame = frame[..., None]
    if frame.shape[2] in (2, 4):  # the format's colours are multiplied by alpha
        share = picture.share(frame[..., -1])[..., None]
        frame = np.concatenate((frame[..., :-1] * share, frame[..., -1:]), 2)
    if frame.shape[2] == 2:
        frame = frame[..., [0, 0, 0, 1]]
    height, width, channels = frame.shape
    name = {1: "grayf32le", 3: "gbrpf32le", 4: "gbrapf32le"}[channels]
    context = av.CodecContext.create("exr", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, name
    context.time_base = Fraction(1, 1)
    half = picture.depth == 16
    context.options = {
        "compression": WRITES.get(picture.compression or "", "zip16"),
        "format": "half" if half else "float",
    }
    if half:  # light beyond what a half can hold would come back as infinity
        # FFmpeg would cut off what numpy rounds.
        frame = np.clip(frame, -65504, 65504).astype(np.float16).astype(np.float32)
    shell = av.VideoFrame(width, height, name)
    for plane, number in zip(shell.planes, (0,) if channels == 1 else (1, 2, 0, 3), strict=False):
        rows = np.zeros((height, plane.line_size // 4), np.float32)
        rows[:, :width] = frame[..., number]
        plane.update(rows.tobytes())
    try:
        packets = [*context.encode(shell), *context.encode(None)]
    except av.FFmpegError as error:
        raise MediaError(f"cannot be written as EXR: {reason(error)}") from None
    coded = b"".join(bytes(packet) for packet in packets)
    extra = []
    for called, carried in picture.carried:
        kind, _, value = carried.partition(b"\0")
        extra.append(_Attribute(called, kind, value))
    if writing.software and writing.keep:
        extra = [row for row in extra if row.name != b"software"]
        extra.append(_Attribute(b"software", b"string", writing.software.encode()))
    return _with_attributes(coded, extra)


def _with_attributes(coded: bytes, extra: list[_Attribute]) -> bytes:
    """The EXR with more attributes; its chunks move, and their offsets with them."""
    attributes, end = _attributes(coded)
    own = [a for a in attributes if a.name not in {b"writer", b"gamma"} | {e.name for e in extra}]
    head = b"".join(
        a.name + b"\0" + a.kind + b"\0" + struct.pack("<I", len(a.value)) + a.value
        for a in own + extra
    )
    header = coded[:8] + head + b"\0"
    first = struct.unpack_from("<Q", coded, end)[0]
    offsets = struct.unpack_from(f"<{(first - end) // 8}Q", coded, end)
    moved = [offset + len(header) - end for offset in offsets]
    return header + struct.pack(f"<{len(moved)}Q", *moved) + coded[first:]


_HDR_SIZE = re.compile(rb"\n([-+][XY]) (\d{1,9}) ([-+][XY]) (\d{1,9})\n")


def read_hdr(data: bytes, limits: Limits) -> Picture:
    """A Radiance picture as float32. Raises MediaError."""
    size = _HDR_SIZE.search(data[: 1 << 16])
    if not size:
        raise MediaError("is damaged: the Radiance header gives no size")
    if (size[1], size[3]) != (b"-Y", b"+X"):
        raise MediaError("is a Radiance picture that is stored turned, which is not read")
    if b"32-bit_rle_xyze" in data[: size.start()]:
        raise MediaError("is a Radiance picture in XYZ, which is not read")
    height, width = int(size[2]), int(size[4])
    limits.check(width, height)
    image = opencv_decode(data)
    if image is None or image.shape != (height, width, 3):
        raise MediaError("is damaged: the Radiance picture does not decode")
    picture = Picture([np.ascontiguousarray(image[..., ::-1])], "hdr", linear=True)
    picture.icc = colour.linear_profile()
    lines = data[: size.start()].split(b"\n")[1:]
    picture.carried = [(b"", line) for line in lines if line and not line.startswith(b"FORMAT=")]
    return picture


def write_hdr(picture: Picture, writing: Writing) -> bytes:
    """A Radiance picture of the first frame, with the input's header lines."""
    frame = picture.frames[0].astype(np.float32)
    rgb = np.repeat(frame[..., None], 3, 2) if frame.ndim == 2 else frame
    coded = opencv_encode(".hdr", np.maximum(rgb, 0)[..., ::-1])
    lines = [line for _, line in picture.carried]
    if writing.software and writing.keep:
        lines = [line for line in lines if not line.startswith(b"SOFTWARE=")]
        lines.append(b"SOFTWARE=" + writing.software.encode("ascii", "replace"))
    head, rest = coded.split(b"\n", 1)
    return b"\n".join([head, *lines, rest])
