"""TIFF: pages by tifffile, tags moved as bytes."""

from __future__ import annotations

import io
import logging
import math
from typing import Any

import numpy as np

from ...errors import MediaError
from ...pixels import WHITE, Array, from_float, spread, to_float
from .. import colour, metadata, tiffblock
from ..picture import Limits, Picture, Writing
from ..tiffblock import Block, Tag, Tags
from .codecs import DECODER_ERRORS, quiet, reason

MINISWHITE, MINISBLACK, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
COLOURS = {MINISWHITE: 1, MINISBLACK: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
LOSSLESS = {"NONE", "LZW", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "ZSTD", "LZMA"}
REDUCED, MASK = 1, 4  # bits of NewSubfileType
SUB_IFDS, DNG_VERSION, CREDENTIALS = 330, 50706, 52545

# Tags that tell how the pixels are stored, or that only fit the pixels that were: size, bits,
# compression, strips and tiles, planes, predictor, transfer curves, palettes, YCbCr, old JPEG;
# and directories, whose offsets mean nothing elsewhere. The writer makes those that it needs.
STRUCTURE = (
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284}
    | {288, 289, 290, 291, 292, 293, 301, 317, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334}
    | {336, 338, 339, 340, 341, 342, 347, 529, 530, 531, 532, 34665, 34853, 34675, 50674}
    | set(range(512, 522))
)
LAYERS = 37724  # Photoshop's own copy of the layers, which are the dark ones
DNG = range(50706, 52600)  # how to develop a raw picture that is now developed

# tifffile reports odd files to its log, which would end up on stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False


def read(data: bytes, limits: Limits) -> Picture:
    """All pages of a TIFF, upright. Raises MediaError."""
    import tifffile

    picture = Picture([], "tiff")
    block = Block(data)
    directories = _directories(block, limits, picture)
    wanted = _wanted(block, directories, picture)
    _check_headers(block, [directories[n] for n in wanted], limits)
    profiles: list[bytes | None] = []
    straight = False  # whether alpha is on its own in any page
    try:
        with quiet(), tifffile.TiffFile(io.BytesIO(data)) as file:
            for number in wanted:
                page: Any = file.pages[number]
                picture.icc = page.iccprofile
                frame = _page(page, data, limits, picture)
                colour.usable(picture, 1 if frame.ndim == 2 else frame.shape[2])
                profiles.append(picture.icc)
                alpha = frame.ndim == 3 and frame.shape[2] in (2, 4)
                straight |= alpha and list(page.extrasamples[:1]) != [1]
                picture.frames.append(frame)
                picture.pages.append(_tags(block, directories[number], picture))
    except MediaError:
        raise
    except DECODER_ERRORS as error:
        raise MediaError(f"is damaged: {reason(error)}") from None
    picture.premultiplied &= not straight  # one way for all pages: the one that loses nothing
    _agree(picture, profiles)
    _turn_pages(picture)
    picture.notes = list(dict.fromkeys(picture.notes))  # of several pages, often the same
    return picture


def _directories(block: Block, limits: Limits, picture: Picture) -> list[int]:
    """The offsets of all directories; raises MediaError for a chain that leads to none."""
    found: list[int] = []
    try:
        for at in block.directories():
            block.entries(at)
            found.append(at)
    except MediaError as error:
        if not found:
            raise
        limits.damaged(f"after page {len(found)} it {error}")
        picture.truncated = True
    return found


def _agree(picture: Picture, profiles: list[bytes | None]) -> None:
    """One profile for all pages: theirs, or where they differ sRGB, with a note."""
    picture.icc = profiles[0]
    if len(set(profiles)) == 1 or all(map(colour.is_srgb, profiles)):
        return
    picture.frames = [
        colour.as_srgb(frame, icc) for frame, icc in zip(picture.frames, profiles, strict=True)
    ]
    picture.icc = None
    picture.notes.append("its pages have unlike colour profiles and come back as sRGB")


def _wanted(block: Block, directories: list[int], picture: Picture) -> list[int]:
    """Which directories are pages: not the thumbnails, not the masks."""
    kinds = [block.integer(block.find(at, 254)) or 0 for at in directories]
    pages = [n for n, kind in enumerate(kinds) if not kind & (REDUCED | MASK)]
    if not pages:
        if not directories:
            raise MediaError("is a TIFF without a page")
        if block.find(directories[0], SUB_IFDS):
            raise MediaError("is a TIFF with its picture beside a thumbnail, which is not read")
        pages = list(range(len(directories)))
    elif len(pages) < len(kinds):
        picture.notes.append("smaller copies or masks beside the pages were dropped")
    return pages


def _check_headers(block: Block, directories: list[int], limits: Limits) -> None:
    total = 0
    for at in directories:
        sides = [block.integer(block.find(at, tag)) or 0 for tag in (256, 257)]
        limits.check(*sides)
        # A tile may be larger than the picture, and is decoded whole.
        tile = [block.integer(block.find(at, tag)) or 1 for tag in (322, 323)]
        limits.check(*tile)
        if (block.integer(block.find(at, 277)) or 1) > 8:
            raise MediaError("is a TIFF of more than 8 samples a pixel")
        total += sides[0] * sides[1]
    limits.check(total, 1)


def _page(page: Any, data: bytes, limits: Limits, picture: Picture) -> Array:
    """The pixels of a page as in its file's orientation."""
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    colours = COLOURS.get(photometric)
    if colours is None or samples < colours or page.imagedepth > 1:
        raise MediaError(
            "is a TIFF with pixels of a rare kind that are not read "
            f"(photometric {photometric}, {samples} samples)"
        )
    if photometric == YCBCR and page.compression.name not in ("JPEG", "OJPEG"):
        raise MediaError("is a TIFF of YCbCr samples, which are not read")
    counts = page.databytecounts
    ends = [at + size for at, size in zip(page.dataoffsets, counts, strict=False)]
    missing = len(ends) < math.prod(page.chunked)  # which tifffile fills with black
    if not ends or missing or max(ends) > len(data) or not all(counts):
        limits.damaged("its pixels reach beyond its end")
        picture.truncated = True
    # (planes, depth, height, width, samples) is tifffile's normal form.
    shaped = page.asarray(maxworkers=1).reshape(page.shaped)
    if shaped.dtype == np.float64:
        picture.notes.append("floating point values of 64 bits were read as 32 bits")
    planes = np.moveaxis(shaped[:, 0], 0, 2)
    planes = planes.reshape(*planes.shape[:2], -1)
    planes = _full_range(planes, int(page.bitspersample), palette=photometric == PALETTE)
    if not picture.frames:
        picture.compression = page.compression.name
        picture.predictor = int(page.predictor) != 1
        picture.depth = int(page.bitspersample)
    elif planes.dtype == np.float32:  # all floats are written alike
        picture.depth = max(picture.depth or 0, int(page.bitspersample))
    # One sample more is alpha where no kind is told, as OpenCV writes it. Of kind 0 it is none:
    # near infrared, depth, a spot colour.
    extras = [int(kind) for kind in page.extrasamples]
    alpha = planes[..., colours] if samples > colours and extras[:1] != [0] else None
    if dropped := samples - colours - (alpha is not None):
        channels = "extra channel was" if dropped == 1 else "extra channels were"
        picture.notes.append(f"{dropped} {channels} dropped")
    image = planes[..., :colours]
    if photometric == PALETTE:
        table = np.asarray(page.colormap)
        table = table >> 8 if table.max() > 255 else table
        image = table[:, image[..., 0]].transpose(1, 2, 0).astype(np.uint8)
    elif photometric == CMYK:
        image = colour.cmyk_to_srgb(np.ascontiguousarray(image), picture)
    elif photometric == MINISWHITE and image.dtype != np.float32:
        image = WHITE[image.dtype] - image
    if int(page.bitspersample) == 1 and image.shape[2] == 1:
        image = np.repeat(image, 3, 2)
    if alpha is not None:
        if alpha.dtype != image.dtype:
            raise MediaError("is a TIFF with a palette and alpha, which is not read")
        if extras[:1] == [1]:
            picture.premultiplied = True
            image = unmultiplied(image, alpha)
        image = np.concatenate((image, alpha[..., None]), 2)
    return np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)


def _full_range(planes: Array, bits: int, *, palette: bool) -> Array:
    """Samples of any width -> uint8, uint16 or float32 over their whole range."""
    kind = planes.dtype
    if kind == np.bool_:
        return planes.astype(np.uint8) if palette else planes.astype(np.uint8) * np.uint8(255)
    if kind.kind == "f":
        return planes.astype(np.float32)
    if kind not in (np.uint8, np.uint16):
        raise MediaError(f"is a TIFF with samples of type {kind}, which is not read")
    native = planes.astype(kind.newbyteorder("="), copy=False)
    if bits < 8 * kind.itemsize and not palette:
        return spread(native, 2**bits - 1, native.dtype)
    return native


def unmultiplied(image: Array, alpha: Array) -> Array:
    """Colours divided by alpha, (H, W, C) and (H, W); black where alpha is 0."""
    share = to_float(alpha)[..., None]
    plain = to_float(image) / np.where(share > 0, share, 1)
    return from_float(np.where(share > 0, plain, 0).astype(np.float32), image.dtype)


def multiplied(frame: Array, picture: Picture) -> Array:
    """A frame with alpha -> the same with its colours multiplied by it."""
    share = picture.share(to_float(frame[..., -1]))[..., None]
    colours = from_float(to_float(frame[..., :-1]) * share, frame.dtype)
    return np.concatenate((colours, frame[..., -1:]), 2)


def _tags(block: Block, directory: int, picture: Picture) -> Tags:
    """The descriptive tags of a page; XMP, IPTC and Photoshop of the first go to the picture."""
    tags = block.tags(directory)
    if LAYERS in tags.main:
        picture.notes.append("Photoshop layers were dropped (they hold the dark picture)")
    if CREDENTIALS in tags.main:
        note = "content credentials were dropped (they are signed for the original)"
        picture.notes.append(note)
    raw = DNG if DNG_VERSION in tags.main else ()
    tags.main = {
        number: tag
        for number, tag in tags.main.items()
        if number not in STRUCTURE and number not in (LAYERS, CREDENTIALS) and number not in raw
    }
    resources = tags.main.pop(tiffblock.PHOTOSHOP, None)
    if not picture.pages:
        blocks = [tags.main.pop(n, None) for n in (tiffblock.XMP, tiffblock.IPTC)]
        picture.xmp, picture.iptc = (tag.data if tag else None for tag in blocks)
        if resources:
            iptc, picture.photoshop = metadata.split_photoshop(resources.data)
            picture.iptc = picture.iptc or iptc
        picture.dpi = _dpi(tags)
    unit, one = tags.main.get(296), np.array([1, 1], tags.order + "u4").tobytes()
    if unit and unit.data[:2].strip(b"\0") == b"\1" and tags.main.get(282, unit).data == one:
        # What writers put that know no resolution: as many pixels as units, of no unit.
        for number in (282, 283, 296):
            tags.main.pop(number, None)
    return tags


def _dpi(tags: Tags) -> tuple[float, float] | None:
    values = []
    for number in (282, 283):
        tag = tags.main.get(number)
        if tag is None or tag.kind != 5 or len(tag.data) < 8:
            return None
        top, bottom = np.frombuffer(tag.data[:8], tags.order + "u4").tolist()
        values.append(top / bottom if bottom else 0)
    unit = tags.main.get(296)
    code = np.frombuffer(unit.data[:2], tags.order + "u2")[0] if unit and len(unit.data) > 1 else 2
    inch = {2: 1.0, 3: 2.54}.get(int(code))
    return (values[0] * inch, values[1] * inch) if inch and all(values) else None


def _turn_pages(picture: Picture) -> None:
    """Each page upright by its own Orientation, which becomes 1."""
    for number, tags in enumerate(picture.pages):
        tag = tags.main.get(tiffblock.ORIENTATION)
        if tag is None or tag.kind != tiffblock.SHORT:
            continue
        turn = int(np.frombuffer(tag.data[:2], tags.order + "u2")[0])
        picture.frames[number] = metadata.upright(picture.frames[number], turn)
        upright = np.array(1, tags.order + "u2").tobytes()
        tags.main[tiffblock.ORIENTATION] = Tag(tiffblock.SHORT, 1, upright)
    first = picture.pages[0]
    if first.main or first.exif or first.gps:
        picture.exif = tiffblock.build(first)


def write(picture: Picture, writing: Writing) -> bytes:
    """A TIFF of all frames with their tags, losslessly.

    The first page's tags come from the picture's EXIF block, which has been renewed.
    """
    import tifffile

    tags = [Tags() for _ in picture.frames]
    if writing.keep:
        tags = _page_tags(picture, writing.software)
    compression = picture.compression if picture.compression in LOSSLESS else "ADOBE_DEFLATE"
    predictor = picture.predictor if picture.compression in LOSSLESS else True
    predictable = compression in ("LZW", "ADOBE_DEFLATE", "DEFLATE", "ZSTD")
    out = io.BytesIO()
    order: Any = tags[0].order
    try:
        with (
            quiet(),
            tifffile.TiffWriter(out, byteorder=order, bigtiff=_is_big(picture)) as file,
        ):
            for frame in picture.frames:
                channels = 1 if frame.ndim == 2 else frame.shape[2]
                extra: dict[str, Any] = {}
                if channels in (2, 4):
                    frame = multiplied(frame, picture) if picture.premultiplied else frame
                    extra["extrasamples"] = [1 if picture.premultiplied else 2]
                if frame.dtype == np.float32 and picture.depth == 16:
                    most = np.finfo(np.float16).max  # else more light would become infinite
                    frame = np.clip(frame, -most, most).astype(np.float16)
                file.write(
                    frame,
                    photometric="rgb" if channels > 2 else "minisblack",
                    planarconfig="contig",
                    compression=None if compression == "NONE" else compression.lower(),
                    predictor=predictable and predictor,
                    rowsperstrip=max(1, (1 << 18) // max(1, frame[0].nbytes)),
                    metadata=None,
                    software=False,
                    iccprofile=picture.icc,
                    **extra,
                )
    except DECODER_ERRORS as error:
        raise MediaError(f"cannot be written as TIFF: {reason(error)}") from None
    block = Block(out.getvalue())
    at = block.first
    for page in tags:
        block.write_tags(at, page)
        at = block.next_at(block.offset(at))
    return bytes(block.data)


def _is_big(picture: Picture) -> bool:
    """Above 4 GB, offsets need 64 bits; some room is left for tags and directories."""
    return sum(frame.nbytes for frame in picture.frames) > 4_000_000_000


def _page_tags(picture: Picture, software: str | None) -> list[Tags]:
    first = Tags()
    if picture.exif is not None:
        block = Block(picture.exif)
        if directory := block.offset(block.first):
            first = block.tags(directory)
            first.main = {n: tag for n, tag in first.main.items() if n not in STRUCTURE}
    elif picture.pages:
        first.order = picture.pages[0].order
    if picture.dpi and 282 not in first.main:
        for number, dots in zip((282, 283), picture.dpi, strict=True):
            ratio = np.array([round(dots * 1000), 1000], first.order + "u4").tobytes()
            first.main[number] = Tag(5, 1, ratio)
        first.main[296] = Tag(tiffblock.SHORT, 1, np.array(2, first.order + "u2").tobytes())
    if software:
        first.text(tiffblock.SOFTWARE, software)
    if picture.xmp is not None:
        first.main[tiffblock.XMP] = Tag(1, len(picture.xmp), picture.xmp)
    if picture.iptc is not None:
        first.main[tiffblock.IPTC] = Tag(tiffblock.UNDEFINED, len(picture.iptc), picture.iptc)
    if picture.photoshop is not None:
        block_tag = Tag(1, len(picture.photoshop), picture.photoshop)
        first.main[tiffblock.PHOTOSHOP] = block_tag
    others = picture.pages[1:] if picture.format == "tiff" else []
    others = [page for page in others if page.order == first.order]
    missing = len(picture.frames) - 1 - len(others)
    return [first, *others, *[Tags(first.order) for _ in range(missing)]]
