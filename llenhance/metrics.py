"""How good is an enhanced picture or video, in figures.

Against a reference: :func:`psnr`, :func:`ssim`, and :func:`psnr_best_gain` as a diagnosis. Without
one: :func:`newly_clipped`, and NIQE in ``niqe.py``. Over time: :class:`Flicker` and
:class:`TemporalNoise`, which take a clip frame by frame.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import LLEnhanceError
from .pixels import Array, Rgb8

Frame = NDArray[np.uint8] | NDArray[np.uint16]
Floats = NDArray[np.float64]


# Against a reference


def psnr(out: Rgb8, reference: Rgb8) -> float:
    """Peak signal-to-noise ratio in dB over all samples; infinite for equal pictures.

    Both (H, W, 3) uint8 of one size. Raises LLEnhanceError for anything else.
    """
    _same(out, reference)
    return _decibels(float(np.mean(np.square(out.astype(np.float32) - reference))))


def psnr_map(difference: Array, low: Rgb8, high: Rgb8) -> float:
    """PSNR in dB of ``difference``, floats in [-1, 1], against ``high`` - ``low``; all (H, W, 3).

    A difference of zeros has the :func:`psnr` of ``low``. Raises LLEnhanceError for sizes that
    differ.
    """
    _same(low, high)
    error = 255 * difference - (high.astype(np.float32) - low)
    return _decibels(float(np.mean(np.square(error))))


def psnr_best_gain(out: Rgb8, reference: Rgb8) -> float:
    """PSNR in dB after ``out`` is multiplied by the one number that brings it closest.

    A diagnosis, not a result: what remains is colour, noise and structure, what it gains over
    :func:`psnr` was exposure. The gain is the least-squares one, the product is clipped at 255
    and not rounded. Arguments and errors as for :func:`psnr`.
    """
    _same(out, reference)
    values, target = out.astype(np.float64), reference.astype(np.float64)
    power = float(np.vdot(values, values))
    gain = float(np.vdot(values, target)) / power if power else 1.0
    return _decibels(float(np.mean(np.square(np.minimum(gain * values, 255) - target))))


def ssim(out: Rgb8, reference: Rgb8) -> float:
    """Structural similarity, at most 1: the mean over the picture and its three channels.

    Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to
    Structural Similarity", IEEE TIP 2004: an 11x11 Gaussian window with sigma 1.5, K1 = 0.01,
    K2 = 0.03, variances of the population, and only windows that lie inside the picture.
    Both (H, W, 3) uint8 of one size, at least 11x11; raises LLEnhanceError for anything else.
    """
    _same(out, reference)
    if min(out.shape[:2]) < 11:
        raise LLEnhanceError("SSIM needs pictures of at least 11x11 pixels")
    window = cv2.getGaussianKernel(11, 1.5, cv2.CV_64F)

    def local(values: Floats) -> Floats:
        blurred = cv2.sepFilter2D(values, cv2.CV_64F, window, window)
        return np.asarray(blurred[5:-5, 5:-5])

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    scores = []
    for channel in range(3):  # one at a time: a 24-megapixel picture needs a third of the memory
        a = out[..., channel].astype(np.float64)
        b = reference[..., channel].astype(np.float64)
        mean_a, mean_b = local(a), local(b)
        variances = local(a * a + b * b) - mean_a**2 - mean_b**2
        covariance = local(a * b) - mean_a * mean_b
        above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        below = (mean_a**2 + mean_b**2 + c1) * (variances + c2)
        scores.append(float(np.mean(above / below)))
    return math.fsum(scores) / 3


def newly_clipped(low: Rgb8, out: Rgb8) -> float:
    """Share (0 to 1) of the pixels of ``out`` at 255 in a channel that were at 255 in none.

    ``low`` is the input, (H, W, 3) uint8; ``out`` is the output, of the same size or of a whole
    multiple of it. Raises LLEnhanceError for anything else.
    """
    check_picture(low)
    check_picture(out)
    before = (low == 255).any(2)
    after = (out == 255).any(2)
    if before.shape != after.shape:
        scale = after.shape[0] // before.shape[0]
        if after.shape != (before.shape[0] * scale, before.shape[1] * scale):
            raise LLEnhanceError(f"sizes differ: {_size(low)} and {_size(out)}")
        before = before.repeat(scale, 0).repeat(scale, 1)
    return float(np.mean(after & ~before))


def check_picture(picture: NDArray[Any]) -> None:
    """Raise LLEnhanceError unless it is (H, W, 3) uint8."""
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise LLEnhanceError(f"expected a picture (H, W, 3), found {picture.shape}")
    if picture.dtype != np.uint8:
        raise LLEnhanceError(f"expected uint8, found {picture.dtype}")


def _same(a: NDArray[Any], b: NDArray[Any]) -> None:
    check_picture(a)
    check_picture(b)
    if a.shape != b.shape:
        raise LLEnhanceError(f"sizes differ: {_size(a)} and {_size(b)}")


def _size(picture: NDArray[Any]) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def _decibels(square_error: float) -> float:
    return 10 * math.log10(255**2 / square_error) if square_error else math.inf


# Over time


def luma(frame: Frame) -> NDArray[np.float32]:
    """BT.709 luma of the code values, (H, W) in [0, 1], from (H, W, 3) uint8 or uint16 RGB."""
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise LLEnhanceError(f"expected a frame (H, W, 3), found {frame.shape}")
    if frame.dtype not in (np.uint8, np.uint16):
        raise LLEnhanceError(f"expected uint8 or uint16, found {frame.dtype}")
    weights = np.array([[0.2126, 0.7152, 0.0722]], np.float32) / np.iinfo(frame.dtype).max
    return np.asarray(cv2.transform(frame.astype(np.float32), weights))


_ROUNDING = 1e-6  # of full scale: what single precision leaves in a luma that stands still


class Flicker:
    """How much an enhanced clip pumps, beyond what the light in the input does by itself.

    Mean absolute second difference over time of the luma, of the whole picture (``whole``) and of
    the blocks of an 8x8 grid (``blocks``), divided by the same of the input times the clip's mean
    gain. A perfectly steady gain gives 1; above 1 the enhancement adds flicker.
    Feed (input, output) frames in order with :meth:`add`; memory does not grow.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._last: list[NDArray[np.float64]] = []  # two frames back, each (2, 65)
        self._level = np.zeros(2)
        self._change = np.zeros((2, 65))

    def add(self, frame: Frame, enhanced: Frame) -> None:
        """Take a pair: (H, W, 3) and (sH, sW, 3) RGB, uint8 or uint16."""
        now = np.stack([_lumas(frame), _lumas(enhanced)])
        if len(self._last) == 2:
            before, middle = self._last
            change = np.abs(now - 2 * middle + before)
            self._change += np.where(change > _ROUNDING, change, 0)
        self._last = [*self._last[-1:], now]
        self._level += now[:, 0]
        self.frames += 1

    @property
    def gain(self) -> float:
        """Mean luma of the output over that of the input, over the whole clip."""
        low, high = self._level
        return float(high / low) if low else 1.0

    @property
    def whole(self) -> float | None:
        """The measure of the mean luma; None before the third frame."""
        return self._ratio(self._change[:, 0])

    @property
    def blocks(self) -> float | None:
        """The measure of the 8x8 blocks' lumas; None before the third frame."""
        return self._ratio(self._change[:, 1:].mean(1))

    def _ratio(self, change: Floats) -> float | None:
        if self.frames < 3:
            return None
        expected = float(change[0]) * self.gain
        if not expected:  # nothing moves in the input: nothing may move in the output
            return math.inf if change[1] > 0 else 1.0
        return float(change[1]) / expected


def _lumas(frame: Frame) -> Floats:
    """Mean luma of a frame and of its 8x8 blocks: (65,). Blocks may overlap by a pixel where
    eight does not divide the size."""
    plane = luma(frame)
    height, width = plane.shape
    table = cv2.integral(plane, sdepth=cv2.CV_64F)
    top, bottom = np.arange(8) * height // 8, -(-np.arange(1, 9) * height // 8)
    left, right = np.arange(8) * width // 8, -(-np.arange(1, 9) * width // 8)
    sums = (
        table[np.ix_(bottom, right)]
        - table[np.ix_(top, right)]
        - table[np.ix_(bottom, left)]
        + table[np.ix_(top, left)]
    )
    means = sums / np.outer(bottom - top, right - left)
    return np.concatenate(([table[-1, -1] / plane.size], means.ravel()))


class TemporalNoise:
    """Noise over time of the regions that stand still, of a clip's input and of its output.

    Per pixel the standard deviation over time is estimated from successive differences (von
    Neumann: their mean square is twice the variance), so slow changes of light do not count. A
    pixel stands still from one frame to the next if its blurred luma changes no more in the
    input than noise makes it change, and is not clipped. Both sides are measured on the same
    pixels. Feed (input, output) frames in order with :meth:`add`; memory does not grow.
    """

    def __init__(self) -> None:
        self._last: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._square = [0.0, 0.0]
        self._count = [0, 0]

    def add(self, frame: Frame, enhanced: Frame | None = None) -> None:
        """Take a pair: (H, W, 3) and (sH, sW, 3) RGB, uint8 or uint16; no second: a clip alone."""
        planes = luma(frame), luma(frame if enhanced is None else enhanced)
        if self._last is not None:
            change = planes[0] - self._last[0]
            still = _still(change) & (np.maximum(planes[0], self._last[0]) < 250 / 255)
            for side, (now, before) in enumerate(zip(planes, self._last, strict=True)):
                mask = still
                if now.shape != mask.shape:
                    mask = cv2.resize(
                        mask.view(np.uint8), now.shape[::-1], interpolation=cv2.INTER_NEAREST
                    ).astype(bool)
                kept = (now - before)[mask].astype(np.float64)
                self._square[side] += float(kept @ kept)
                self._count[side] += kept.size
        self._last = planes

    @property
    def before(self) -> float | None:
        """Standard deviation of the input in 8-bit code values; None before the second frame."""
        return self._deviation(0)

    @property
    def after(self) -> float | None:
        """Standard deviation of the output in 8-bit code values."""
        return self._deviation(1)

    def _deviation(self, side: int) -> float | None:
        if not self._count[side]:
            return None
        return 255 * math.sqrt(self._square[side] / self._count[side] / 2)


def _still(change: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a luma difference (H, W) is noise, not motion."""
    blurred = np.abs(cv2.GaussianBlur(change, (0, 0), 2))
    # The median is the noise of the still part where more than half stands still; where more
    # moves, four code values are the most that blurred noise of a very bad camera reaches.
    limit = min(4.5 * float(np.median(blurred)) + 0.25 / 255, 4 / 255)
    return np.asarray(blurred <= limit)
