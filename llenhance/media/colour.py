"""ICC: what a picture's values mean, by LittleCMS.

The networks know sRGB. A picture with another profile is brought to sRGB in floating point,
unclipped: a colour outside sRGB has values below 0 or above 1 there. The network sees it clipped;
:func:`llenhance.pixels.apply_change` gives what was clipped back, lightened as its pixel was; and
the result returns to the picture's own profile, which stays as it was, byte for byte. A colour
that sRGB can show is thus enhanced exactly as in an sRGB copy of the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import MediaError
from ..pixels import Array, apply_change, from_float, join, split, to_float, tone_map
from .picture import Picture

BAND = 1 << 20  # pixels that are converted at once: LittleCMS wants a copy in floats of each
REC709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)  # sRGB's primaries and white
SPACES = {b"RGB ": "rgb", b"GRAY": "gray", b"CMYK": "cmyk"}


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


def _transform(values: Array, source: bytes, target: bytes, spaces: tuple[str, str]) -> Array:
    """(H, W, channels) -> float32 in another profile, relative colorimetric, band by band."""
    import imagecodecs

    rows = max(1, BAND // values.shape[1])
    bands = []
    for at in range(0, values.shape[0], rows):
        band = np.ascontiguousarray(values[at : at + rows])
        try:
            bands.append(
                imagecodecs.cms_transform(
                    band,
                    source,
                    target,
                    colorspace=spaces[0],
                    outcolorspace=spaces[1],
                    outdtype="float32",
                    intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
                )
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise MediaError(f"has a colour profile that cannot be used: {error}") from None
    return np.concatenate(bands)


def to_srgb(rgb: Array, icc: bytes) -> NDArray[np.float32]:
    """(H, W, 3) of any dtype in an RGB or grey profile -> unclipped float32 sRGB.

    For a grey profile the three channels of ``rgb`` are one. Raises MediaError.
    """
    kind = space(icc)
    values = to_float(rgb)
    if kind == "gray":
        values = values[..., :1]
    if icc == linear_profile():
        return encode_srgb(values)
    return encode_srgb(_transform(values, icc, linear_profile(), (kind, "rgb")))


def from_srgb(rgb: NDArray[np.float32], icc: bytes) -> NDArray[np.float32]:
    """The inverse of :func:`to_srgb`: (H, W, 3) float32, unclipped. Raises MediaError."""
    kind = space(icc)
    if icc == linear_profile():
        return decode_srgb(rgb)
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
    rgb, layout = split(frame)
    values = to_srgb(rgb, icc)
    # A float frame goes as it is: whoever enhances floats maps what is out of range himself.
    seen = values if frame.dtype == np.float32 else np.clip(values, 0, 1)
    enhanced = enhance(seen)
    return join(from_srgb(apply_change(values, seen, enhanced), icc), layout)


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
    want = "gray" if channels < 3 else "rgb"
    if space(icc) == want:
        try:
            is_srgb(icc)
        except MediaError:
            pass
        else:
            return
    if want == "gray" and space(icc) == "rgb":
        return  # an RGB profile on grey pixels is common, and fits: its grey axis is meant
    picture.icc = None
    picture.notes.append("the colour profile does not fit the picture and was dropped")
