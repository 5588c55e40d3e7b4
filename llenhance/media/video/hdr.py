"""HDR video: a picture that the networks understand, and their light put on the original signal.

The networks learned from ordinary photographs. A PQ or HLG signal looks to them like a flat grey
picture, so they are shown a tone-mapped one, and only what they did to its brightness goes back:
every pixel of the original is multiplied, in linear light, by the gain that its luminance got.
Colours outside BT.709 and highlights above diffuse white, which the shown picture does not have,
are still those of the original. What a network does to hue alone is not taken over.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from .info import Image, VideoInfo

PQ, HLG = 16, 18  # transfer characteristics in ITU-T H.273
BT2020 = 9
_WHITE = {PQ: 203.0 / 10_000, HLG: 0.26496}  # diffuse white (ITU-R BT.2408) in linear light
_KNEE = 0.8  # up to here, of diffuse white, the shown picture is the original
_FLOOR = 2e-4  # of diffuse white: below it is noise, which a quotient must not blow up
_MOST = 64.0  # times that a pixel may become brighter
_STEPS = 65_535

# Linear light with BT.2020 primaries -> with BT.709 primaries (ITU-R BT.2087).
_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)
_LUMA = np.array([[0.2126, 0.7152, 0.0722]], np.float32)


def linear(signal: NDArray[np.float64], transfer: int) -> NDArray[np.float64]:
    """Linear light in [0, 1] of a PQ (1 is 10,000 cd/m2) or HLG (scene light) signal in [0, 1]."""
    if transfer == PQ:
        power = np.power(signal, 1 / 78.84375)
        return np.power(
            np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power), 1 / 0.1593017578125
        )
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def signal(light: NDArray[np.float64], transfer: int) -> NDArray[np.float64]:
    """The inverse of :func:`linear`."""
    if transfer == PQ:
        power = np.power(light, 0.1593017578125)
        return np.power((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power), 78.84375)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    upper = a * np.log(np.maximum(12 * light - b, 1e-9)) + c
    return np.where(light <= 1 / 12, np.sqrt(3 * light), upper)


@cache
def _table(transfer: int) -> NDArray[np.float32]:
    """Linear light, 1 at diffuse white, for each of the 65,536 values of a signal."""
    values = linear(np.arange(_STEPS + 1) / _STEPS, transfer) / _WHITE[transfer]
    return values.astype(np.float32)


@cache
def _srgb() -> NDArray[np.float32]:
    """Linear light for each of the 65,536 values of an sRGB picture."""
    value = np.arange(_STEPS + 1) / _STEPS
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


class HdrView:
    """Turns the frames of one HDR video into pictures for a network, and its results back."""

    def __init__(self, info: VideoInfo) -> None:
        if not info.hdr:
            raise ValueError("this video is not HDR")
        self._transfer = info.color_transfer
        self._wide = info.color_primaries == BT2020

    def view(self, image: Image) -> NDArray[np.uint16]:
        """The (H, W, 3) uint16 sRGB picture that a network is shown for a frame."""
        light = self._narrow(_table(self._transfer)[_deep(image)])
        peak = float(_table(self._transfer)[-1])
        brightest = light.max(axis=2, keepdims=True)
        # Above the knee the brightest channel is pressed into what is left below 1, with its
        # slope unbroken at the knee; the others follow it, so the hue stays.
        over = np.maximum(brightest - _KNEE, 0)
        room, span = 1 - _KNEE, peak - _KNEE
        pressed = over * (1 + over * room / span**2) / (1 + over / room)
        light *= np.where(over > 0, (_KNEE + pressed) / np.maximum(brightest, _KNEE), 1)
        np.clip(light, 0, 1, out=light)
        value = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
        shown: NDArray[np.uint16] = np.rint(value * _STEPS).astype(np.uint16)
        return shown

    def apply(self, image: Image, before: Image, after: Image) -> NDArray[np.uint16]:
        """The frame with the light that a network added.

        ``image``: (H, W, 3), as the reader gave it; ``before``: what :meth:`view` made of
        it; ``after``: the network's result, (sH, sW, 3), uint16 or uint8. Returns (sH, sW, 3).
        """
        import cv2

        image = _deep(image)
        old, new = _luminance(before), _luminance(after)
        if new.shape != old.shape:
            size = new.shape[::-1]
            old = np.asarray(cv2.resize(old, size, interpolation=cv2.INTER_CUBIC), np.float32)
            image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        gain = np.clip((new + _FLOOR) / (np.maximum(old, 0) + _FLOOR), 0, _MOST)
        light = _table(self._transfer)[image] * gain[..., None] * _WHITE[self._transfer]
        value = signal(np.clip(light, 0, 1), self._transfer)
        result: NDArray[np.uint16] = np.rint(np.clip(value, 0, 1) * _STEPS).astype(np.uint16)
        return result

    def _narrow(self, light: NDArray[np.float32]) -> NDArray[np.float32]:
        """Linear light with BT.709 primaries."""
        return _transform(light, _TO_709) if self._wide else light


def _deep(picture: Image) -> NDArray[np.uint16]:
    """uint8 or uint16 -> uint16 over its full range, for the tables."""
    return picture if picture.dtype == np.uint16 else picture.astype(np.uint16) * 257


def _luminance(picture: Image) -> NDArray[np.float32]:
    """(H, W) linear luminance of an sRGB picture."""
    return _transform(_srgb()[_deep(picture)], _LUMA).reshape(picture.shape[:2])


def _transform(light: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    import cv2  # late: a machine without it can still read and write videos

    return np.asarray(cv2.transform(light, matrix), np.float32)
