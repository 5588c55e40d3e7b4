"""ICC: what a picture's values mean, by LittleCMS.

The networks know sRGB. A picture with another profile is brought to sRGB in floating point,
unclipped: a colour outside sRGB has values below 0 or above 1 there. The network sees it clipped;
:func:`llenhance.pixels.apply_change` gives what was clipped back, lightened as its pixel was; and
the result returns to the picture's own profile, which stays as it was, byte for byte. A colour
that sRGB can show is thus enhanced exactly as in an sRGB copy of the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MediaError
from ..pixels import Array, apply_change, from_float, join, split, to_float, tone_map
from .picture import Picture

BAND = 1 << 20  # pixels that are converted at once: LittleCMS wants a copy in floats of each
REC709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)  # sRGB's primaries and white
SPACES = {b"RGB ": "rgb", b"GRAY": "gray", b"CMYK": "cmyk"}


# The numbers of H.273: which are sRGB's, near it, or say nothing; what others are called.
NEAR_PRIMARIES, NEAR_TRANSFERS = (0, 1, 2, 5, 6, 7), (0, 1, 2, 4, 5, 6, 13, 14, 15)
PRIMARIES_NAMES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
TRANSFER_NAMES = {8: "linear", 16: "PQ", 18: "HLG"}


def unlike_srgb(cicp: tuple[int, int, int] | None) -> str:
    """What the numbers of H.273 (primaries, transfer, matrix) tell that is not as in sRGB, as
    "BT.2020, PQ"; "" for nothing."""
    if cicp is None:
        return ""
    found = []
    if cicp[0] not in NEAR_PRIMARIES:
        found.append(PRIMARIES_NAMES.get(cicp[0], f"primaries {cicp[0]}"))
    if cicp[1] not in NEAR_TRANSFERS:
        found.append(TRANSFER_NAMES.get(cicp[1], f"transfer {cicp[1]}"))
    return ", ".join(found)


def space(icc: bytes) -> str:
    """ "rgb", "gray" or "cmyk"; "" for a profile that is none, or of another space."""
    if len(icc) < 132 or icc[36:40] != b"acsp":
        return ""
    return SPACES.get(icc[16:20], "")


def encode_srgb(linear: NDArray[np.float32]) -> NDArray[np.float32]:
    """Light -> sRGB values (IEC 61966-2-1); the curve goes on above 1 and mirrored below 0."""
    size = np.abs(linear)
    with np.errstate(invalid="ignore", over="ignore"):  # float pictures hold NaN and infinity too
        high = np.float32(1.055) * size ** np.float32(1 / 2.4) - np.float32(0.055)
        encoded = np.where(size <= 0.0031308, size * np.float32(12.92), high)
    return np.copysign(encoded, linear)


def decode_srgb(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse of :func:`encode_srgb`."""
    size = np.abs(values)
    with np.errstate(invalid="ignore", over="ignore"):
        high = ((size + np.float32(0.055)) / np.float32(1.055)) ** np.float32(2.4)
        decoded = np.where(size <= 0.04045, size / np.float32(12.92), high)
    return np.copysign(decoded, values)


@lru_cache(maxsize=8)
def linear_profile(*primaries: float) -> bytes:
    """A profile whose values are light: x and y of red, green, blue and white; sRGB's by default.

    Raises MediaError.
    """
    import imagecodecs

    red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y = primaries or REC709
    try:
        return bytes(
            imagecodecs.cms_profile(
                "rgb",
                whitepoint=(white_x, white_y, 1.0),
                primaries=(red_x, red_y, 1.0, green_x, green_y, 1.0, blue_x, blue_y, 1.0),
                gamma=1.0,
            )
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise MediaError(f"has primaries that cannot be used: {error}") from None


def _by_bands(convert: Callable[[Array], Array], values: Array) -> Array:
    """``convert`` over bands of rows: the steps between need many times a picture's memory."""
    rows = max(1, BAND // values.shape[1])
    starts = range(0, values.shape[0], rows)
    return np.concatenate([convert(values[at : at + rows]) for at in starts])


def _transform(values: Array, source: bytes, target: bytes, spaces: tuple[str, str]) -> Array:
    """(H, W, channels), (H, W) for grey -> float32 in another profile, relative colorimetric, by
    LittleCMS."""
    import imagecodecs

    def convert(band: Array) -> Array:
        try:
            converted: Array = imagecodecs.cms_transform(
                np.ascontiguousarray(band),
                source,
                target,
                colorspace=spaces[0],
                outcolorspace=spaces[1],
                outdtype="float32",
                intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise MediaError(f"has a colour profile that cannot be used: {error}") from None
        return converted

    return _by_bands(convert, values)


@dataclass(frozen=True)
class _Matrix:
    """A profile that is a curve for each channel and then a matrix, as nearly all of RGB are."""

    curves: NDArray[np.float32]  # (3, 65536): light of each value of a channel
    matrix: NDArray[np.float32]  # (3, 3): to the light of sRGB

    def to_light(self, rgb: Array) -> Array:
        """uint8 or uint16 -> linear sRGB, unclipped."""
        step = 257 if rgb.dtype == np.uint8 else 1
        planes = [self.curves[n, ::step][rgb[..., n]] for n in range(3)]
        return np.stack(planes, -1) @ self.matrix.T

    def from_light(self, linear: Array, dtype: np.dtype[Any]) -> Array:
        """Linear sRGB -> float32 values of the profile in [0, 1], fine enough for ``dtype``."""
        curves = self.curves[:, ::15] if dtype == np.uint8 else self.curves
        light = linear @ np.linalg.inv(self.matrix).T.astype(np.float32)
        ramp = np.linspace(0, 1, curves.shape[1])
        planes = [np.interp(light[..., n], curves[n], ramp) for n in range(3)]
        return np.stack(planes, -1).astype(np.float32)


@lru_cache(maxsize=8)
def _matrix(icc: bytes) -> _Matrix | None:
    """Measure a profile through LittleCMS; None where curves and a matrix do not tell it all.

    LittleCMS takes most of a second for each megapixel of floats, tables a tenth of that.
    """
    ramp = np.linspace(0, 1, 65536, dtype=np.float32)
    probes = np.zeros((3, ramp.size, 3), np.float32)
    for n in range(3):
        probes[n, :, n] = ramp
    light = _transform(probes, icc, linear_profile(), ("rgb", "rgb"))
    columns = light[:, -1]
    size = (columns**2).sum(1)
    if not np.isfinite(light).all() or not (size > 0).all():
        return None
    curves = (light * columns[:, None]).sum(2) / size[:, None]
    found = _Matrix(curves.astype(np.float32), columns.T.astype(np.float32))
    if np.linalg.cond(found.matrix) > 1e4 or (np.diff(found.curves) < 0).any():
        return None
    sample = np.random.default_rng(0).integers(0, 65536, (64, 64, 3)).astype(np.uint16)
    truth = _transform(to_float(sample), icc, linear_profile(), ("rgb", "rgb"))
    return found if np.abs(found.to_light(sample) - truth).max() < 1e-4 else None


def to_srgb(rgb: Array, icc: bytes) -> NDArray[np.float32]:
    """(H, W, 3) of any dtype in an RGB or grey profile -> unclipped float32 sRGB.

    For a grey profile the three channels of ``rgb`` are one. Raises MediaError.
    """
    if icc == linear_profile():
        return encode_srgb(to_float(rgb))
    kind = space(icc)
    if kind == "rgb" and rgb.dtype != np.float32 and (measured := _matrix(icc)):
        return _by_bands(lambda band: encode_srgb(measured.to_light(band)), rgb)
    values = to_float(rgb[..., 0] if kind == "gray" else rgb)
    return encode_srgb(_transform(values, icc, linear_profile(), (kind, "rgb")))


def from_srgb(
    rgb: NDArray[np.float32], icc: bytes, dtype: np.dtype[Any] | None = None
) -> NDArray[np.float32]:
    """The inverse of :func:`to_srgb`: (H, W, 3) float32 -> the same in a profile.

    ``dtype``: what the caller will make of it; for integers it need not leave [0, 1].
    Raises MediaError.
    """
    if icc == linear_profile():
        return decode_srgb(rgb)
    kind = space(icc)
    if kind == "rgb" and dtype in (np.uint8, np.uint16) and (measured := _matrix(icc)):
        return _by_bands(lambda band: measured.from_light(decode_srgb(band), dtype), rgb)
    values = _transform(decode_srgb(rgb), linear_profile(), icc, ("rgb", kind))
    return np.repeat(values.reshape((*rgb.shape[:2], -1)), 3, 2) if kind == "gray" else values


@lru_cache(maxsize=64)
def is_srgb(icc: bytes | None) -> bool:
    """Whether values in this profile mean what they mean in sRGB, to one step of 8 bits."""
    if icc is None or space(icc) not in ("rgb", "gray"):
        return True
    steps = np.linspace(0, 1, 9, dtype=np.float32)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    if space(icc) == "gray":
        cube = np.repeat(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16, 1), 3, 2)
    return bool(np.abs(to_srgb(cube, icc) - cube).max() < 1 / 255)


def through_srgb(frame: Array, icc: bytes | None, enhance: Callable[[Array], Array]) -> Array:
    """``enhance`` a frame that is in any profile by way of sRGB; see the top of this file.

    ``frame``: any picture array. ``enhance`` takes (H, W, 3) RGB of the frame's dtype or of
    float32, which may leave [0, 1] where the frame is float32 itself, and returns the same,
    perhaps larger. Returns an array like ``frame``, in its profile. Raises MediaError.
    """
    if is_srgb(icc):
        return enhance(frame)
    assert icc is not None
    values = to_srgb(split(frame)[0], icc)
    # A float frame goes as it is: whoever enhances floats maps what is out of range himself.
    seen = values if frame.dtype == np.float32 else np.clip(values, 0, 1)
    kept: Array | None = values
    if seen is not values and space(icc) == "rgb" and _matrix(icc):
        kept = None  # found again, band by band, sooner than a large picture has room for it
    del values
    enhanced = enhance(seen)
    # The way back goes by bands: a large picture has no room for all that lies between.
    scale = enhanced.shape[0] // seen.shape[0]
    result = np.empty((*enhanced.shape[:2], *frame.shape[2:]), frame.dtype)
    rows = max(1, BAND // frame.shape[1])
    for begin in range(0, frame.shape[0], rows):
        end = min(begin + rows, frame.shape[0])
        # Enlarging looks one row farther.
        first, last = (begin, end) if scale == 1 else (max(0, begin - 1), end + 1)
        rgb, layout = split(frame[first:last])
        lit = enhanced[first * scale : last * scale]
        if kept is not seen:
            before = to_srgb(rgb, icc) if kept is None else kept[first:last]
            lit = apply_change(before, seen[first:last], lit)
        band = join(from_srgb(lit, icc, frame.dtype), layout)
        result[begin * scale : end * scale] = band[(begin - first) * scale :][
            : (end - begin) * scale
        ]
    return result


def as_srgb(frame: Array, icc: bytes | None, *, mapped: bool = False) -> Array:
    """A frame in any profile -> the same dtype in sRGB; clipped unless it is float32.

    ``mapped``: light above 1 is brought into [0, 1] by :func:`llenhance.pixels.tone_map`.
    """
    if is_srgb(icc):
        return frame
    assert icc is not None
    rgb, layout = split(frame)
    values = to_srgb(rgb, icc)
    return join(tone_map(values) if mapped else values, layout)


def as_light(frame: Array) -> Array:
    """sRGB values of any dtype -> float32 in proportion to light; alpha is left alone."""
    rgb, layout = split(to_float(frame))
    return join(decode_srgb(rgb), layout)


def cmyk_to_srgb(cmyk: Array, picture: Picture) -> Array:
    """(H, W, 4) uint8 or uint16, 0 for no ink -> (H, W, 3) sRGB of the same dtype.

    By the picture's profile, which is taken off with a note; by the plain formula without one.
    """
    if picture.icc and space(picture.icc) == "cmyk":
        values = to_float(cmyk) * np.float32(100)  # LittleCMS counts ink in percent
        linear = _transform(values, picture.icc, linear_profile(), ("cmyk", "rgb"))
        rgb = encode_srgb(linear)
        picture.notes.append("CMYK was converted by its profile and comes back as sRGB")
    else:
        ink = 1 - to_float(cmyk)
        rgb = ink[..., :3] * ink[..., 3:]
        picture.notes.append("CMYK without a profile was converted by the plain formula to sRGB")
    picture.icc = None
    return from_float(rgb, cmyk.dtype)


def usable(picture: Picture, channels: int) -> None:
    """Take off a profile that does not fit the pixels, with a note."""
    icc = picture.icc
    if icc is None:
        return
    # An RGB profile on grey pixels is common, and fits: its grey axis is meant.
    if space(icc) in (("gray", "rgb") if channels < 3 else ("rgb",)):
        try:
            is_srgb(icc)
        except MediaError:
            pass
        else:
            return
    picture.icc = None
    picture.notes.append("the colour profile does not fit the picture and was dropped")
