"""Picture: the pixels of a photo and everything that came with them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MediaError
from ..pixels import Array

if TYPE_CHECKING:
    from .tiffblock import Tags

# How a video begins that a phone put behind a picture.
VIDEO = re.compile(rb"\0\0\0.ftyp(?:mp4|isom|iso\d|qt|avc|M4V|3gp|MSNV)|MotionPhoto_Data", re.S)
MAX_PIXELS = 268_000_000
MAX_FRAMES = 10_000


@dataclass
class Picture:
    """What a file held. Replace ``frames`` by enhanced ones (all of one scale) and encode it."""

    # Upright: (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB, (H, W, 4) RGBA of uint8,
    # uint16 or float32. More than one: the frames of an animation, or the pages of a TIFF.
    frames: list[Array]
    format: str  # a key of images.FORMATS, decided by the bytes

    durations: list[Fraction] | None = None  # seconds of each frame of an animation
    loops: int = 0  # how often an animation plays; 0 is for ever

    exif: bytes | None = None  # a TIFF block ("II*\0..." or "MM\0*..."), without "Exif\0\0"
    xmp: bytes | None = None  # the packet
    iptc: bytes | None = None  # IIM records (Photoshop resource 0x0404)
    photoshop: bytes | None = None  # other Photoshop resources, as "8BIM" blocks, no thumbnails
    icc: bytes | None = None  # the profile that the frames' values are in; None is sRGB
    # Primaries, transfer and matrix by the numbers of H.273, where the file tells them. A profile
    # goes before them.
    cicp: tuple[int, int, int] | None = None
    dpi: tuple[float, float] | None = None  # pixels per inch across and down

    # How it was coded, so that it can be coded so again.
    quality: JpegCoding | None = None
    lossless: bool | None = None  # WebP and JPEG 2000; None where a file does not tell
    depth: int | None = None  # bits of a sample in the file, where the dtype does not tell
    compression: str | None = None  # of a TIFF, by tifffile's name; or of an EXR
    predictor: bool = False  # of a TIFF
    pages: list[Tags] = field(default_factory=list)  # a TIFF's descriptive tags, for each page
    linear: bool = False  # the values are proportional to light (EXR, HDR)
    premultiplied: bool = False  # the file's colours were multiplied by alpha; here they are not
    glow: Array | None = None  # (H, W) bool: where there is light although alpha is 0 (EXR)

    # What only the same format can take back, by name: a JPEG's segments, a PNG's chunks, an EXR's
    # attributes, the lines of a Radiance header, a GIF's comments.
    carried: list[tuple[bytes, bytes]] = field(default_factory=list)

    notes: list[str] = field(default_factory=list)  # what reading dropped or changed
    truncated: bool = False  # damaged, and accepted because the caller allowed it

    def share(self, alpha: Array) -> Array:
        """What colours are multiplied by in a file: alpha, (H, W) floats, but for light where it is
        0: that is added to what lies behind, and stays whole."""
        if self.glow is None:
            return alpha
        scale = alpha.shape[0] // self.glow.shape[0]
        glow = self.glow.repeat(scale, 0).repeat(scale, 1)
        return np.where(glow & (alpha <= 0), np.float32(1), alpha)

    @property
    def animated(self) -> bool:
        return self.durations is not None and len(self.frames) > 1

    def drop_rest(self, data: bytes, end: int) -> None:
        """Say what follows the picture's ``end`` in its file; none of it is kept."""
        rest = data[end:]
        if not rest.strip(b"\0\r\n"):
            return
        what = "data were"
        if VIDEO.search(rest):  # behind a gain map, too
            what = "a video was"
        elif any("gain map" in note for note in self.notes):
            return
        elif rest.lstrip(b"\0")[:3] == b"\xff\xd8\xff":
            what = "previews were"
        elif rest[:2] == data[:2]:
            what = "more pictures were"
        self.notes.append(f"behind the picture, {what} dropped ({len(rest)} bytes)")


@dataclass(frozen=True)
class JpegCoding:
    """Quantisation and sampling of a JPEG, as Pillow's encoder takes them."""

    tables: tuple[tuple[int, ...], ...]  # 64 numbers each
    subsampling: str  # "4:4:4", "4:2:2", "4:2:0"
    progressive: bool
    rgb: bool  # components are R, G, B, not Y, Cb, Cr


@dataclass(frozen=True)
class Limits:
    """What a reader may take and forgive."""

    max_pixels: int = MAX_PIXELS
    allow_truncated: bool = False

    @property
    def size(self) -> int:
        """Bytes that the longest file within these limits may have: RGBA as floats, and 256 MiB of
        metadata."""
        return 16 * self.max_pixels + (1 << 28)

    def check(self, width: int, height: int, frames: int = 1) -> None:
        """Raise MediaError unless so many pixels may be decoded. Call it before decoding."""
        if width < 1 or height < 1 or frames < 1:
            raise MediaError(f"claims to be {width}x{height} pixels")
        if frames > MAX_FRAMES:
            raise MediaError(f"has {frames} frames, more than {MAX_FRAMES}")
        if width * height * frames > self.max_pixels:
            times = f" times {frames} frames" if frames > 1 else ""
            raise MediaError(
                f"claims {width}x{height} pixels{times}, more than the limit of {self.max_pixels}"
                " (--max-pixels)"
            )

    def damaged(self, what: str) -> None:
        """Raise MediaError for a damage that a caller may allow, unless this one does."""
        if not self.allow_truncated:
            raise MediaError(f"is damaged: {what} (--allow-truncated takes what decodes)")


@dataclass(frozen=True)
class Writing:
    """How a picture is to be written."""

    quality: int | None = None  # 1 to 100, where the format has one; None for the input's own
    software: str | None = None  # what made the picture
    keep: bool = True  # all metadata; else only what tells the meaning of the values
