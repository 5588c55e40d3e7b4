"""Read and write a photo with everything it carries. Bytes in, bytes out; the disk is not touched.

``read`` finds the format by the bytes, checks the size before it decodes, turns the pixels
upright, and keeps all metadata beside them. ``encode`` writes frames of the same or another size
with that metadata, as the input was coded. Nothing but MediaError leaves either, and MemoryError
where there is too little of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import MediaError
from ..pixels import Array, convert
from . import colour, metadata
from .formats import avif, foreign, gif, isobmff, jp2, jpeg, plain, png, rare, scene, tiff, webp
from .formats.codecs import DECODER_ERRORS, reason
from .picture import MAX_PIXELS, Limits, Picture, Writing

__all__ = [
    "FORMATS", "Picture", "encode", "enhanced", "format_of_suffix",
    "losses", "read", "sniff",
]  # fmt: skip


@dataclass(frozen=True)
class Format:
    """What a picture format is called and what it can hold."""

    suffixes: tuple[str, ...]  # the first is the usual one
    depths: tuple[str, ...]  # dtypes of its samples
    grey: bool = False
    alpha: bool = False
    frames: str = ""  # "animation", "pages", or "" for one picture
    exif: bool = False
    xmp: bool = False
    iptc: bool = False
    icc: bool = False
    cicp: bool = False  # colours told by the numbers of H.273
    bits: int = 0  # of a sample, where they are fewer than the dtype has
    linear: bool = False  # values are light
    instead: str = ""  # what is written in the place of a format that is only read


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "jpeg": Format(
            (".jpg", ".jpeg", ".jpe", ".jfif"), ("uint8",), grey=True,
            exif=True, xmp=True, iptc=True, icc=True,
        ),
        "png": Format(
            (".png", ".apng"), ("uint8", "uint16"), grey=True, alpha=True, frames="animation",
            exif=True, xmp=True, iptc=True, icc=True, cicp=True,
        ),
        "tiff": Format(
            (".tif", ".tiff"), ("uint8", "uint16", "float32"), grey=True, alpha=True,
            frames="pages", exif=True, xmp=True, iptc=True, icc=True,
        ),
        "webp": Format(
            (".webp",), ("uint8",), alpha=True, frames="animation", exif=True, xmp=True, icc=True,
        ),
        "bmp": Format((".bmp", ".dib"), ("uint8",), grey=True, alpha=True),
        "jp2": Format(
            (".jp2", ".j2k", ".jpx", ".jpf", ".j2c"), ("uint8", "uint16"), grey=True, alpha=True,
            exif=True, xmp=True, iptc=True, icc=True,
        ),
        "avif": Format(
            (".avif", ".avifs"), ("uint8", "uint16"), grey=True, alpha=True, frames="animation",
            exif=True, xmp=True, icc=True, cicp=True, bits=12,
        ),
        "gif": Format((".gif",), ("uint8",), alpha=True, frames="animation", xmp=True, icc=True),
        "heif": Format((".heic", ".heif", ".hif"), (), instead="jpeg"),
        "raw": Format(
            (".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".srf", ".sr2", ".raf", ".orf",
             ".rw2", ".pef", ".srw", ".raw", ".3fr", ".fff", ".iiq", ".mrw", ".x3f", ".kdc",
             ".dcr", ".mos", ".erf", ".rwl"), (), instead="tiff",
        ),
        "rare": Format((".psd", ".dds", ".ico", ".sgi", ".pcx"), (), instead="png"),
        "exr": Format((".exr",), ("float32",), grey=True, alpha=True, linear=True),
        "hdr": Format((".hdr", ".pic"), ("float32",), linear=True),
        "pnm": Format((".ppm", ".pgm", ".pbm", ".pnm"), ("uint8", "uint16"), grey=True),
    }
)  # fmt: skip

RAW_MAGIC = (b"FUJIFILM", b"FOVb", b"\0MRM")
FLOAT = np.dtype(np.float32)


def format_of_suffix(suffix: str) -> str | None:
    """The format of a file name's suffix (".JPG"), or None."""
    wanted = suffix.lower()
    return next((name for name, row in FORMATS.items() if wanted in row.suffixes), None)


def writable(suffix: str) -> str | None:
    """The format that a picture of that suffix is written in; None where none is."""
    named = format_of_suffix(suffix)
    return None if named is None or FORMATS[named].instead else named


def sniff(head: bytes) -> str | None:
    """The format by the first bytes; None for none of ours.

    64 bytes suffice, but to tell a camera's raw file from a TIFF, which takes a few thousand.
    """
    if head[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if head[:8] == png.SIGNATURE:
        return "png"
    if head[:4] in foreign.DISGUISED or head[:8] in RAW_MAGIC or head[:4] in RAW_MAGIC:
        return "raw"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "raw" if foreign.is_raw_tiff(head) else "tiff"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "bmp"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\n\r#" and len(head) > 2:
        return "pnm"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:12] == jp2.SIGNATURE or head[:4] == jp2.CODESTREAM:
        return "jp2"
    if head[4:8] == b"ftyp" and len(head) >= 12:
        return isobmff.brand(head)
    if head[:4] == scene.EXR_MAGIC:
        return "exr"
    if head[:11] == b"#?RADIANCE\n" or head[:7] == b"#?RGBE\n":
        return "hdr"
    return "rare" if rare.recognised(head) else None


READERS = {
    "jpeg": jpeg.read,
    "png": png.read,
    "tiff": tiff.read,
    "webp": webp.read,
    "bmp": plain.read_bmp,
    "pnm": plain.read_pnm,
    "gif": gif.read,
    "jp2": jp2.read,
    "avif": avif.read,
    "heif": foreign.read_heif,
    "raw": foreign.read_raw,
    "rare": rare.read,
    "exr": scene.read_exr,
    "hdr": scene.read_hdr,
}


WRITERS = {
    "jpeg": jpeg.write,
    "png": png.write,
    "tiff": tiff.write,
    "webp": webp.write,
    "bmp": plain.write_bmp,
    "pnm": plain.write_pnm,
    "gif": gif.write,
    "jp2": jp2.write,
    "avif": avif.write,
    "exr": scene.write_exr,
    "hdr": scene.write_hdr,
}


# Which of the parts that only the same format takes back stay when metadata is stripped.
SHOWING: Mapping[str, Callable[[bytes, bytes], bool]] = {
    "png": png.tells_colours,
    "exr": scene.exr_tells_colours,
    "hdr": scene.hdr_tells_colours,
}


# What each of them is called where another format loses it.
CALLED: Mapping[str, Callable[[bytes, bytes], str]] = {
    "jpeg": jpeg.called,
    "png": png.called,
    "gif": gif.called,
    "exr": scene.exr_called,
    "hdr": scene.hdr_called,
}


def read(data: bytes, *, max_pixels: int = MAX_PIXELS, allow_truncated: bool = False) -> Picture:
    """Decode a picture, upright, with its metadata.

    ``max_pixels`` bounds width x height x frames and is checked before decoding. A damaged
    picture is refused unless ``allow_truncated``; ``Picture.truncated`` tells that one was taken.
    Raises MediaError, whose one line goes after the file's name: "is damaged: ...".
    """
    if not data:
        raise MediaError("is empty")
    name = sniff(data)
    if name is None:
        raise MediaError("is not a picture of a format that is read")
    try:
        picture = READERS[name](bytes(data), Limits(max_pixels, allow_truncated))
        _turn_upright(picture)
        first = picture.frames[0]
        colour.usable(picture, 1 if first.ndim == 2 else first.shape[2])
        told = colour.unlike_srgb(picture.cicp)
        if told and not picture.icc:
            picture.notes.append(f"its colours ({told}) are taken for sRGB")
        if name == "jpeg" and not picture.icc and metadata.says_adobe_rgb(picture.exif):
            picture.notes.append("its colours (Adobe RGB, by its EXIF) are taken for sRGB")
    except MediaError:
        raise
    except DECODER_ERRORS as error:
        # The readers check what they can; this is for the ways to be broken that nobody thought of.
        raise MediaError(f"is damaged: {reason(error)}") from None
    return picture


def _turn_upright(picture: Picture) -> None:
    """Apply the orientation, once, and renew the metadata for it."""
    turn = metadata.orientation(picture.exif)
    if turn == 1 and not metadata.has_orientation(picture.exif):
        turn = metadata.xmp_orientation(picture.xmp)
    if turn != 1:
        picture.frames = [metadata.upright(frame, turn) for frame in picture.frames]
        if turn > 4 and picture.dpi:
            picture.dpi = picture.dpi[::-1]
    metadata.renew(picture)


def enhanced(picture: Picture, enhance: Callable[[Array], Array]) -> Picture:
    """A copy of a picture with every frame enhanced, in its own colours.

    ``enhance`` takes and returns a picture array, as ``Enhancer.enhance`` does. A frame in sRGB
    goes to it as it is; one in another profile as (H, W, 3) float32 in sRGB, and its way back is
    told in ``media/colour.py``. Raises MediaError, and what ``enhance`` raises.
    """
    frames = [colour.through_srgb(frame, picture.icc, enhance) for frame in picture.frames]
    return replace(picture, frames=frames)


def losses(picture: Picture, format: str) -> list[str]:  # noqa: A002
    """What a format cannot hold of a picture: sentences' ends, such as "transparency is lost"."""
    row = FORMATS[format]
    found = []
    first = picture.frames[0]
    if not row.alpha and first.ndim == 3 and first.shape[2] in (2, 4):
        found.append("transparency is lost")
    now = _depth(first.dtype, row)
    bits = min(8 * now.itemsize, row.bits or 32)
    if bits < min(8 * first.dtype.itemsize, picture.depth or 32):
        was = "floating point values" if first.dtype == FLOAT else "16 bits"
        found.append(f"{was} become {bits} bits")
    if len(picture.frames) > 1:
        if not row.frames:
            found.append(f"only the first of {len(picture.frames)} frames is kept")
        elif row.frames == "pages" and picture.animated:
            found.append("the timing of the animation is lost")
        elif row.frames == "animation" and not picture.animated:
            found.append(f"only the first of {len(picture.frames)} pages is kept")
    if format == "avif" and picture.animated and picture.loops:
        found.append("the animation repeats without end")  # Pillow has no way to tell a number
    converted = row.linear or not _keeps_profile(picture, row)
    if _changes_primaries(picture, format) or (
        converted and not picture.linear and not colour.is_srgb(picture.icc)
    ):
        found.append("the colours are converted to sRGB and the profile is lost")
    # Pillow, which writes animated AVIF, has no way to tell them.
    if not row.cicp or (format == "avif" and picture.animated):
        told = "" if picture.icc else colour.unlike_srgb(picture.cicp)
        found += [f"what tells its colours ({told}) is lost"] if told else []
    if picture.linear and not row.linear and "float32" not in row.depths:
        found.append("light above 1 is compressed")
    kept = (row.exif, row.xmp, row.iptc)
    names = ("EXIF", "XMP", "IPTC")
    blocks = (picture.exif, picture.xmp, picture.iptc)
    lost = [n for n, keep, block in zip(names, kept, blocks, strict=True) if block and not keep]
    if format == "jpeg":
        written = replace(picture, notes=[])
        metadata.renew(written)  # a larger picture's numbers may have more digits
        found += [f"{name} is too large and is lost" for name in jpeg.too_large(written)]
    if format == "gif":
        found += gif.losses(picture)
    if picture.photoshop and not row.iptc and metadata.has_paths(picture.photoshop):
        found.append("Photoshop's paths are lost")
    if lost:
        found.append(f"{', '.join(lost)} {'are' if len(lost) > 1 else 'is'} lost")
    if picture.format != format and picture.format in CALLED:
        called = dict.fromkeys(CALLED[picture.format](*part) for part in picture.carried)
        if own := [name for name in called if name]:
            found.append(f"what only {picture.format.upper()} has is lost ({', '.join(own[:8])})")
    return found


def encode(
    picture: Picture,
    format: str,  # noqa: A002
    *,
    quality: int | None = None,
    strip: bool = False,
    provenance: str | None = None,
) -> bytes:
    """The bytes of a picture in a format, with its metadata; ``picture`` is not changed.

    ``quality`` (1 to 100) replaces the input's own in JPEG and AVIF, and makes WebP and JPEG 2000
    lossy. ``strip`` drops all metadata but the colour profile and what else tells how the values
    are meant, without which the colours would change. ``provenance`` is written into EXIF Software
    and the XMP history, where it fits. What the format cannot hold is dropped: :func:`losses` names
    it. Raises MediaError.
    """
    row = FORMATS.get(format)
    if row is None or row.instead:
        raise MediaError(f"pictures are not written as {format}")
    if quality is not None and not 1 <= quality <= 100:
        raise MediaError(f"a quality is 1 to 100, not {quality}")
    fitting = _fitting(picture, format, row)
    if strip:
        tells = SHOWING.get(format)
        carried = [part for part in fitting.carried if tells and tells(*part)]
        fitting = replace(
            fitting, exif=None, xmp=None, iptc=None, photoshop=None, dpi=None, carried=carried,
            pages=[],
        )  # fmt: skip
    else:
        metadata.renew(fitting)
        if provenance:
            _record(fitting, format, provenance)
    try:
        return WRITERS[format](fitting, Writing(quality, provenance, not strip))
    except DECODER_ERRORS as error:
        raise MediaError(f"cannot be written as {format}: {reason(error)}") from None


def _record(picture: Picture, name: str, provenance: str) -> None:
    """Name the tool in EXIF Software and, where there is a packet, in the XMP history; but not
    where a block that fits the format would then be too large for it."""
    row = FORMATS[name]
    signed = replace(picture)
    if row.exif:
        signed.exif = metadata.with_software(picture.exif, provenance)
    if row.xmp and picture.xmp is not None:
        signed.xmp = metadata.with_history(picture.xmp, provenance)
    left_out = jpeg.too_large(signed) if name == "jpeg" else []
    if "EXIF" not in left_out:
        picture.exif = signed.exif
    if "XMP" not in left_out:
        picture.xmp = signed.xmp


def _fitting(picture: Picture, name: str, row: Format) -> Picture:
    """A copy with frames and metadata of the kinds that a format holds."""
    frames = picture.frames
    if not row.frames or (row.frames == "animation" and not picture.animated):
        frames = frames[:1]
    icc = picture.icc
    if _changes_primaries(picture, name):
        frames = [colour.as_light(colour.as_srgb(frame, icc)) for frame in frames]
        icc = None
    elif row.linear and not picture.linear:
        values = [colour.as_srgb(convert(frame, FLOAT), icc) for frame in frames]
        frames = [colour.as_light(frame) for frame in values]
        icc = None
    elif not row.linear and not _keeps_profile(picture, row):
        frames = [colour.as_srgb(frame, icc, mapped=picture.linear) for frame in frames]
        icc = None
    fitting = [_fitting_frame(frame, row) for frame in frames]
    return replace(
        picture,
        frames=fitting,
        # 16 bits of whole numbers are not the 16 bits of a half float.
        depth=picture.depth if fitting[0].dtype == picture.frames[0].dtype else None,
        exif=picture.exif if row.exif else None,
        xmp=picture.xmp if row.xmp else None,
        iptc=picture.iptc if row.iptc else None,
        photoshop=picture.photoshop if row.iptc else None,
        icc=icc,
        carried=picture.carried if picture.format == name else [],
        notes=list(picture.notes),
    )


def _changes_primaries(picture: Picture, name: str) -> bool:
    """Whether light in primaries of its own goes to a format of light that does not tell them."""
    if not (picture.linear and FORMATS[name].linear) or picture.format == name:
        return False
    return picture.icc is not None and picture.icc != colour.linear_profile()


def _keeps_profile(picture: Picture, row: Format) -> bool:
    """Whether values can stay as they are under the profile that they are in."""
    first = picture.frames[0]
    if picture.icc is None:
        return True
    if colour.space(picture.icc) == "gray":
        # AVIF's grey has no alpha, and comes back as RGB.
        with_alpha = row.alpha and not row.bits and first.ndim == 3 and first.shape[2] == 2
        if not (row.grey and (first.ndim == 2 or with_alpha)):
            return False
    return row.icc and not (picture.linear and "float32" not in row.depths)


def _fitting_frame(frame: Array, row: Format) -> Array:
    if not row.alpha and frame.ndim == 3 and frame.shape[2] in (2, 4):
        frame = frame[..., 0] if frame.shape[2] == 2 else frame[..., :3]
    return np.ascontiguousarray(convert(frame, _depth(frame.dtype, row)))


def _depth(dtype: np.dtype[Any], row: Format) -> np.dtype[Any]:
    """The dtype that a format holds a picture of this dtype in: its own, or the deepest."""
    return dtype if str(dtype) in row.depths else np.dtype(row.depths[-1])
