"""Any picture array <-> packed RGB. The value range follows from the dtype, never from the values.

``uint8`` is 0..255, ``uint16`` 0..65535 and ``float32`` 0..1, where a float picture may go beyond
(a scene in high dynamic range). A dark 16-bit photo has small values and is still a 16-bit photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import LLEnhanceError

Array: TypeAlias = NDArray[Any]
Rgb8: TypeAlias = NDArray[np.uint8]  # (H, W, 3)

# What 1.0 is in each dtype that a picture may have.
WHITE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG's Y
KNEE = 0.8  # tone_map leaves what lies below as it is
DARK = 1e-3  # added to both sides of a ratio of lights, so that black has one


@dataclass(frozen=True)
class Layout:
    """What :func:`split` took from a picture and :func:`join` gives back."""

    shape: tuple[int, ...]  # of the picture: (H, W), or (H, W, channels) with 1 to 4 channels
    dtype: np.dtype[Any]
    grey: bool
    alpha: Array | None  # (H, W), of the picture's dtype


def check(image: Array) -> None:
    """Raise LLEnhanceError unless ``image`` is a picture.

    A picture is (H, W) or (H, W, 1 to 4), not empty, of uint8, uint16 or float32.
    """
    if not isinstance(image, np.ndarray):
        raise LLEnhanceError(f"a picture is a numpy array, not {type(image).__name__}")
    if image.dtype not in WHITE:
        raise LLEnhanceError(f"a picture has dtype uint8, uint16 or float32, not {image.dtype}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and not 1 <= image.shape[2] <= 4):
        raise LLEnhanceError(
            f"a picture is (height, width) or (height, width, 1 to 4), not {image.shape}"
        )
    if not image.size:
        raise LLEnhanceError(f"a picture of {image.shape[1]}x{image.shape[0]} pixels is empty")


def spread(samples: Array, top: int, dtype: Any) -> Array:
    """Samples of 0 to ``top`` -> the same shape over the whole range of an integer ``dtype``.

    What is more than ``top`` counts as that much.
    """
    table = np.round(np.arange(top + 1) * np.iinfo(dtype).max / top).astype(dtype)
    spread_out: Array = table[np.minimum(samples, top)]
    return spread_out


def split(image: Array) -> tuple[Array, Layout]:
    """A picture -> its colours, packed (H, W, 3) RGB of the same dtype, and all the rest.

    Takes (H, W), (H, W, 1), (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4) RGBA. Grey is
    repeated. The colours may share memory with ``image``. Raises LLEnhanceError.
    """
    check(image)
    channels = 1 if image.ndim == 2 else image.shape[2]
    grey = channels < 3
    planes = image[..., None] if image.ndim == 2 else image
    rgb = np.repeat(planes[..., :1], 3, axis=2) if grey else planes[..., :3]
    alpha = planes[..., -1] if channels in (2, 4) else None
    return np.ascontiguousarray(rgb), Layout(image.shape, image.dtype, grey, alpha)


def join(rgb: Array, layout: Layout) -> Array:
    """(s*H, s*W, 3) RGB -> a picture as the one that :func:`split` took, s times as large.

    Out comes the dtype that went into ``split``, whatever the dtype of ``rgb``. Grey is the luma.
    Alpha is untouched, or enlarged linearly when s is above 1.
    """
    check(rgb)
    height, width = layout.shape[:2]
    scale = rgb.shape[0] // height
    if rgb.ndim != 3 or rgb.shape != (height * scale, width * scale, 3) or not scale:
        raise LLEnhanceError(f"colours of shape {rgb.shape} do not fit a picture {layout.shape}")
    if not layout.grey and layout.alpha is None:
        return convert(rgb, layout.dtype)
    colours = convert(luma(rgb)[..., None] if layout.grey else rgb, layout.dtype)
    if layout.alpha is None:
        return colours.reshape(rgb.shape[:2] + layout.shape[2:])
    alpha = layout.alpha
    if scale > 1:
        alpha = from_float(enlarge(to_float(alpha), scale), layout.dtype)
    return np.concatenate((colours, alpha[..., None]), axis=2)


def luma(rgb: Array) -> Array:
    """(H, W, 3) RGB -> (H, W) of the same dtype, rounded. Equal channels come back exactly."""
    first = rgb[..., 0]
    if np.array_equal(first, rgb[..., 1]) and np.array_equal(first, rgb[..., 2]):
        return np.ascontiguousarray(first)
    weighed = rgb.astype(np.float32) @ LUMA
    return weighed if rgb.dtype == np.float32 else np.rint(weighed).astype(rgb.dtype)


def convert(image: Array, dtype: np.dtype[Any]) -> Array:
    """The same picture in another of the three dtypes; itself when it has it already."""
    return image if image.dtype == dtype else from_float(to_float(image), dtype)


def to_float(image: Array) -> NDArray[np.float32]:
    """uint8 or uint16 -> float32 in [0, 1]; float32 comes back as it is."""
    if image.dtype == np.float32:
        return image
    return image * np.float32(1 / WHITE[image.dtype])


def from_float(image: Array, dtype: np.dtype[Any]) -> Array:
    """float32 -> ``dtype``: clipped to [0, 1], rounded, NaN to 0; float32 comes back as it is."""
    if dtype == np.float32:
        return np.asarray(image, np.float32)
    # fmax takes 0 where a float picture holds NaN.
    scaled = np.fmin(np.fmax(image, np.float32(0)), np.float32(1)) * np.float32(WHITE[dtype])
    return np.rint(scaled, out=scaled).astype(dtype)


def enlarge(image: Array, scale: int) -> NDArray[np.float32]:
    """(H, W) or (H, W, C) float32 -> ``scale`` times as high and wide, linear between centres."""
    out = np.asarray(image, np.float32)
    if scale == 1:
        return out
    for axis in (0, 1):
        length = out.shape[axis]
        where = (np.arange(length * scale) + 0.5) / scale - 0.5
        low = np.floor(where).astype(int)
        share = (where - low).astype(np.float32)
        share = share.reshape([-1 if n == axis else 1 for n in range(out.ndim)])
        first = np.take(out, np.clip(low, 0, length - 1), axis)
        second = np.take(out, np.clip(low + 1, 0, length - 1), axis)
        out = first + (second - first) * share
    return out


def has_highlights(rgb: NDArray[np.float32]) -> bool:
    """Whether a float picture has light above 1."""
    return bool(np.fmax.reduce(rgb, axis=None) > 1)


def tone_map(rgb: NDArray[np.float32], highlights: bool | None = None) -> NDArray[np.float32]:
    """(H, W, 3) float32 of any range, display-encoded -> the same in [0, 1], for a network.

    A picture with no value above 1 only loses what is below 0. In any other, a pixel whose largest
    channel m is above 0.8 is scaled, hue kept, so that m becomes 0.8 + 0.2 (1 - exp((0.8 - m) /
    0.2)): a shoulder that joins the line smoothly and never quite reaches 1.
    NaN counts as 0, infinity as the largest finite float. ``highlights``: what
    :func:`has_highlights` says of the whole, where ``rgb`` is a part of a picture.
    """
    if not (has_highlights(rgb) if highlights is None else highlights):
        return np.maximum(np.nan_to_num(rgb, nan=0.0), 0)
    rgb = np.maximum(np.nan_to_num(rgb, nan=0.0), 0)
    peak = rgb.max(axis=2, keepdims=True)
    room = np.float32(1 - KNEE)
    bent = KNEE + room * (1 - np.exp((KNEE - np.clip(peak, KNEE, 9)) / room))
    shrunk = rgb * np.where(peak > KNEE, bent / np.maximum(peak, KNEE), 1)
    return np.minimum(shrunk, 1, dtype=np.float32)


def apply_change(
    original: NDArray[np.float32], mapped: NDArray[np.float32], enhanced: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The change of light from ``mapped`` to ``enhanced``, applied to the values of ``original``.

    ``mapped`` is what the network saw of ``original``, a float picture that may leave [0, 1];
    ``enhanced`` is what it made of that, (s*H, s*W, 3). The result is

        enhanced + gain * (original - mapped),    gain = (max enhanced + 0.001) / (max mapped +
        0.001), the maximum over the three channels of a pixel.

    Where the network saw the very values, that is its own output. What it could not see, light
    above 1 or colours outside its gamut, gets brighter as much as the pixel that it belongs to.
    """
    scale = enhanced.shape[0] // original.shape[0]
    unseen = np.nan_to_num(original, nan=0.0) - mapped
    if not unseen.any():
        return enhanced
    before = enlarge(mapped.max(axis=2, keepdims=True), scale) + np.float32(DARK)
    gain = (enhanced.max(axis=2, keepdims=True) + np.float32(DARK)) / before
    # The largest float times a gain is infinite: stay a number that a file can hold.
    top = np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        result: NDArray[np.float32] = np.clip(enhanced + gain * enlarge(unseen, scale), -top, top)
    return result


def reflected(length: int, multiple: int) -> NDArray[np.intp]:
    """Where each row or column of a padded picture lies in the picture of ``length``: the result is
    as long as the next multiple, reflected on both sides, as the authors of EnlightenGAN pad."""
    missing = -length % multiple
    # numpy's reflection goes back and forth where more is missing than the picture has.
    return np.pad(np.arange(length), (missing // 2, missing - missing // 2), "reflect")
