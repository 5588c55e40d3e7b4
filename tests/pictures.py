"""Pictures made by code, for all tests: dark scenes, profiles, metadata, damaged files."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

MAKER_NOTE = b"Maker\0II" + bytes(range(256)) * 2 + b"end"
DARK_THUMBNAIL_MARK = b"the dark thumbnail"


def dark_scene(height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """A dim scene, (height, width, 3) uint8 RGB: gradients, a few shapes, a lamp, some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    scene = np.stack((0.05 + 0.20 * x, 0.04 + 0.15 * y, 0.10 - 0.05 * x * y), -1)
    for _ in range(4):
        centre = rng.random(2) * (height / max(height, width), width / max(height, width))
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < rng.uniform(0.05, 0.2) ** 2
        scene[inside] = rng.uniform(0.02, 0.4, 3)
    lamp = np.exp(-((y - 0.2) ** 2 + (x - 0.7) ** 2) * 300)
    scene += lamp[..., None] * (0.8, 0.7, 0.4) + rng.normal(0, 0.01, scene.shape)
    return np.rint(np.clip(scene, 0, 1) * 255).astype(np.uint8)


def dark_scene_16(height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint16]:
    """The same in 16 bits, so dark that no value is above 256."""
    return dark_scene(height, width, seed).astype(np.uint16)


def alpha_plane(height: int, width: int, top: int = 255) -> NDArray[np.int64]:
    """A ramp from clear to opaque, with some of both."""
    ramp = np.linspace(-0.2, 1.2, width).clip(0, 1) * top
    return np.rint(np.broadcast_to(ramp, (height, width))).astype(np.int64)


# EXIF ------------------------------------------------------------------------------------------


def exif(
    orientation: int = 1,
    size: tuple[int, int] = (64, 48),
    *,
    order: str = "<",
    thumbnail: bool = True,
    software: bytes = b"camera 1.0\0",
) -> bytes:
    """A block as cameras write it: IFD0, EXIF with a MakerNote, GPS, and IFD1 with a thumbnail.

    Laid out by hand, so that a test can tell by offset what moved. ``size``: (width, height).
    """
    blobs = bytearray()
    start = 1000  # far behind all directories

    def entry(tag: int, kind: int, count: int, value: int | bytes) -> bytes:
        head = struct.pack(order + "HHI", tag, kind, count)
        if isinstance(value, bytes):
            at = start + len(blobs)
            blobs.extend(value + b"\0" * (len(value) % 2))
            return head + struct.pack(order + "I", at)
        if kind == 3:
            return head + struct.pack(order + "HH", value, 0)
        return head + struct.pack(order + "I", value)

    def directory(entries: list[bytes], following: int = 0) -> bytes:
        count = struct.pack(order + "H", len(entries))
        return count + b"".join(entries) + struct.pack(order + "I", following)

    exif_at, gps_at, thumb_at = 300, 600, 800
    make = b"Make & Co\0"
    main = [
        entry(271, 2, len(make), make),
        entry(274, 3, 1, orientation),
        entry(305, 2, len(software), software),
        entry(34665, 4, 1, exif_at),
        entry(34853, 4, 1, gps_at),
    ]
    date = b"2024:05:06 07:08:09\0"
    deeper = [
        entry(33434, 5, 1, struct.pack(order + "II", 1, 8)),
        entry(36867, 2, len(date), date),
        entry(37500, 7, len(MAKER_NOTE), MAKER_NOTE),
        entry(40962, 4, 1, size[0]),
        entry(40963, 4, 1, size[1]),
    ]
    place = struct.pack(order + "6I", 52, 1, 31, 1, 12, 1)
    gps = [
        entry(1, 2, 2, int.from_bytes(b"N\0\0\0", "little" if order == "<" else "big")),
        entry(2, 5, 3, place),
    ]
    out = bytearray(start)
    out[:8] = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    dark = b"\xff\xd8\xff\xe0" + DARK_THUMBNAIL_MARK * 20 + b"\xff\xd9"
    first = directory(main, thumb_at if thumbnail else 0)
    out[8 : 8 + len(first)] = first
    for at, block in ((exif_at, directory(deeper)), (gps_at, directory(gps))):
        out[at : at + len(block)] = block
    if thumbnail:
        small = directory(
            [entry(259, 3, 1, 6), entry(513, 4, 1, start + len(blobs)), entry(514, 4, 1, len(dark))]
        )
        out[thumb_at : thumb_at + len(small)] = small
        blobs.extend(dark)
    return bytes(out + blobs)


# XMP and IPTC ----------------------------------------------------------------------------------


def xmp(orientation: int = 1, *, history: bool = False, thumbnail: bool = False) -> bytes:
    """A packet with a title, an orientation and perhaps a history and a thumbnail."""
    past = (
        b'<xmpMM:History><rdf:Seq><rdf:li stEvt:action="saved"/></rdf:Seq></xmpMM:History>'
        if history
        else b""
    )
    small = (
        b'<xmp:Thumbnails><rdf:Alt><rdf:li rdf:parseType="Resource">'
        b"<xmpGImg:image>" + DARK_THUMBNAIL_MARK + b"</xmpGImg:image></rdf:li></rdf:Alt>"
        b"</xmp:Thumbnails>"
        if thumbnail
        else b""
    )
    return (
        b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        b'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        b'xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        b'xmlns:xmpGImg="http://ns.adobe.com/xap/1.0/g/img/" '
        b'xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/" '
        b'xmlns:stEvt="http://ns.adobe.com/xap/1.0/sType/ResourceEvent#" '
        b'tiff:Orientation="%d"><dc:title><rdf:Alt><rdf:li xml:lang="x-default">N\xc3\xa4chte '
        b"&amp; Lampen</rdf:li></rdf:Alt></dc:title>%s%s</rdf:Description></rdf:RDF></x:xmpmeta>\n"
        b'<?xpacket end="w"?>' % (orientation, past, small)
    )


def iptc() -> bytes:
    """Two IIM records: caption and keyword."""
    rows = ((2, 120, b"A lamp at night"), (2, 25, b"lamp"))
    return b"".join(struct.pack(">BBBH", 0x1C, r, d, len(text)) + text for r, d, text in rows)


def photoshop(*, thumbnail: bool = False) -> bytes:
    """Photoshop resources: IPTC, one more, and perhaps a thumbnail."""
    rows = [(0x0404, iptc()), (0x03ED, b"resolution info!")]
    if thumbnail:
        rows.append((0x040C, DARK_THUMBNAIL_MARK))
    out = b""
    for number, data in rows:
        out += b"8BIM" + struct.pack(">HHI", number, 0, len(data)) + data + bytes(len(data) % 2)
    return out


# ICC -------------------------------------------------------------------------------------------

PRIMARIES = {
    "p3": (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),
    "adobe": (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.3290),
    "prophoto": (0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001, 0.3457, 0.3585),
}
GAMMA = {"p3": 2.2, "adobe": 563 / 256, "prophoto": 1.8}


def icc(name: str) -> bytes:
    """A profile: "srgb", "grey", "p3", "adobe" or "prophoto"."""
    import imagecodecs
    from PIL import ImageCms

    if name == "srgb":
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if name == "grey":
        return bytes(imagecodecs.cms_profile("gray", whitepoint=(0.3457, 0.3585, 1.0), gamma=1.8))
    a, b, c, d, e, f, x, y = PRIMARIES[name]
    return bytes(
        imagecodecs.cms_profile(
            "rgb", whitepoint=(x, y, 1.0), primaries=(a, b, 1.0, c, d, 1.0, e, f, 1.0),
            gamma=GAMMA[name],
        )
    )  # fmt: skip


def cmyk_icc() -> bytes:
    """A CMYK profile by hand: a table (mft2) from ink to Lab, of inks a little off the formula."""
    from skimage.color import rgb2lab

    grid = np.linspace(0, 1, 5)
    ink = np.stack(np.meshgrid(grid, grid, grid, grid, indexing="ij"), -1).reshape(-1, 4)
    rgb = (1 - ink[:, :3] * (0.9, 0.85, 0.95)) * (1 - 0.92 * ink[:, 3:])
    lab = rgb2lab(rgb[None], illuminant="D50")[0]
    stored = np.stack((lab[:, 0] * 652.8, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256), -1)
    ramp = struct.pack(">2H", 0, 65535)
    table = b"mft2" + bytes(4) + bytes([4, 3, 5, 0])
    table += struct.pack(">9i", *(65536 if n % 4 == 0 else 0 for n in range(9)))
    table += struct.pack(">2H", 2, 2) + ramp * 4
    table += np.rint(stored).clip(0, 65535).astype(">u2").tobytes() + ramp * 3
    text = b"a test's inks\0"
    parts = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061),
        b"A2B0": table,
    }
    at, body, rows = 132 + 12 * len(parts), b"", b""
    for name, part in parts.items():
        rows += struct.pack(">4sII", name, at + len(body), len(part))
        body += part + bytes(-len(part) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s", at + len(body), b"none", 0x02400000, b"prtr", b"CMYK",
                       b"Lab ", bytes(12), b"acsp")  # fmt: skip
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + rows + body


# Encoders --------------------------------------------------------------------------------------


def pillow(image: Array | Image.Image, format: str, **options: Any) -> bytes:  # noqa: A002
    """What Pillow makes of an array in a format."""
    out = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(out, format, **options)
    return out.getvalue()


def jpeg_segment(marker: int, payload: bytes) -> bytes:
    """One JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def photo(
    orientation: int = 1, image: Array | None = None, *, order: str = "<", **options: Any
) -> bytes:
    """A JPEG as from a camera and its owner: EXIF, XMP, IPTC, comment; thumbnails in all."""
    image = dark_scene() if image is None else image
    options = {"quality": 88, "subsampling": "4:2:0", "dpi": (300, 300), **options}
    bare = pillow(image, "JPEG", **options)
    head = 2 + 2 + struct.unpack(">H", bare[4:6])[0]
    height, width = image.shape[:2]
    segments = [
        jpeg_segment(0xE1, b"Exif\0\0" + exif(orientation, (width, height), order=order)),
        jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation, thumbnail=True)),
        jpeg_segment(0xED, b"Photoshop 3.0\0" + photoshop(thumbnail=True)),
        jpeg_segment(0xE5, b"maker's own segment"),
        jpeg_segment(0xFE, b"a comment"),
    ]
    return bare[:head] + b"".join(segments) + bare[head:]


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """The segments of a JPEG up to its first scan, read independently of llenhance."""
    found = []
    at = 2
    while data[at + 1] != 0xDA:
        size = struct.unpack(">H", data[at + 2 : at + 4])[0]
        found.append((data[at + 1], data[at + 4 : at + 2 + size]))
        at += 2 + size
    return found


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, read independently of llenhance."""
    found = []
    at = 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        found.append((kind, data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def with_png_chunks(data: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG with more chunks right behind its header."""
    import zlib

    new = b"".join(
        struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in extra
    )
    return data[:33] + new + data[33:]


# HEIC and DNG: no library at hand writes them, so they are put together here ------------------


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", len(body) + 8, kind) + body


def heic(
    image: Array, *, turn: int = 0, ten_bit: bool = False, colour: bytes | None = None
) -> bytes:
    """A HEIC of one picture, by x265 in PyAV.

    ``turn``: quarter turns to the left (irot). ``colour``: a colr box.
    """
    import av

    out = io.BytesIO()
    name = "yuv420p10le" if ten_bit else "yuv420p"
    with av.open(out, "w", "mp4") as container:
        stream = container.add_stream("libx265", rate=1)
        stream.width, stream.height, stream.pix_fmt = image.shape[1], image.shape[0], name
        # keyint=1: of a lone picture x265 makes, now and then, one that MP4 does not take.
        parameters = "log-level=none:crf=4:info=0:keyint=1"
        stream.options = {"x265-params": parameters, "preset": "ultrafast"}
        frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=name)
        frame.pts = 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    video = out.getvalue()
    at = video.index(b"hvcC") - 4
    config = video[at : at + struct.unpack(">I", video[at : at + 4])[0]]
    at = video.index(b"mdat") - 4
    data = video[at + 8 : at + struct.unpack(">I", video[at : at + 4])[0]]
    height, width = image.shape[:2]
    properties = [config, _box(b"ispe", bytes(4), struct.pack(">II", width, height))]
    properties.append(_box(b"pixi", bytes(4), bytes([3] + [10 if ten_bit else 8] * 3)))
    if turn:
        properties.append(_box(b"irot", bytes([turn])))
    if colour:
        properties.append(colour)
    numbers = bytes([0x81, *range(2, len(properties) + 1)])
    head = _box(b"ftyp", b"heic", bytes(4), b"heic", b"mif1")

    def meta(offset: int) -> bytes:
        return _box(
            b"meta", bytes(4),
            _box(b"hdlr", bytes(8), b"pict", bytes(13)),
            _box(b"pitm", bytes(4), struct.pack(">H", 1)),
            _box(b"iloc", bytes(4), struct.pack(">HHHHHII", 0x4400, 1, 1, 0, 1, offset, len(data))),
            _box(b"iinf", bytes(4), struct.pack(">H", 1),
                 _box(b"infe", b"\2\0\0\0", struct.pack(">HH", 1, 0), b"hvc1\0")),
            _box(b"iprp", _box(b"ipco", *properties),
                 _box(b"ipma", bytes(4), struct.pack(">IHB", 1, 1, len(numbers)), numbers)),
        )  # fmt: skip

    offset = len(head) + len(meta(0)) + 8
    return head + meta(offset) + _box(b"mdat", data)


def psd(
    image: Array, mode: int = 3, *, bits: int = 8, transparent: bool = False,
    resources: tuple[tuple[int, bytes], ...] = (),
) -> bytes:  # fmt: skip
    """A flat Photoshop document of (H, W, channels) samples. ``mode``: 3 RGB, 4 CMYK, 9 Lab.

    ``transparent``: the layers that are not there say that the last channel is their alpha.
    """
    height, width, channels = image.shape
    rows = b""
    for number, data in resources:
        rows += b"8BIM" + struct.pack(">HHI", number, 0, len(data)) + data + bytes(len(data) % 2)
    layers = struct.pack(">IhH", 4, -1 if transparent else 0, 0)
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, channels, height, width, bits, mode)
    sections = (b"", rows, layers)
    head += b"".join(struct.pack(">I", len(part)) + part for part in sections)
    return head + bytes(2) + image.transpose(2, 0, 1).tobytes()


def dng(image: Array, orientation: int = 1) -> bytes:
    """A DNG of an RGGB sensor that saw ``image``, (H, W, 3) uint16 linear sRGB light."""
    import tifffile

    mosaic = image[..., 1].copy()
    mosaic[0::2, 0::2] = image[0::2, 0::2, 0]
    mosaic[1::2, 1::2] = image[1::2, 1::2, 2]
    # XYZ (D65) to linear sRGB, which is then this camera's own space.
    matrix = (32406, -15372, -4986, -9689, 18758, 415, 557, -2040, 10570)
    rational = [number for value in matrix for number in (value, 10000)]
    out = io.BytesIO()
    tags = [
        (33421, 3, 2, (2, 2), True),
        (33422, 1, 4, b"\0\1\1\2", True),
        (50706, 1, 4, b"\1\4\0\0", True),
        (50707, 1, 4, b"\1\1\0\0", True),
        (50708, 2, None, "Made by a test", True),
        (50717, 4, 1, 65535, True),
        (50721, 10, 9, rational, True),
        (50728, 5, 3, (1, 1, 1, 1, 1, 1), True),
        (50778, 3, 1, 21, True),
        (271, 2, None, "Maker", True),
        (272, 2, None, "Model", True),
        (274, 3, 1, orientation, True),
        (33432, 2, None, "Someone", True),
    ]
    tifffile.imwrite(out, mosaic, photometric=32803, metadata=None, extratags=tags)
    return out.getvalue()
