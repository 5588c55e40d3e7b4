"""How natural a picture looks, without a reference: NIQE, and the fitting of its model.

Mittal, Soundararajan, Bovik, "Making a 'Completely Blind' Image Quality Analyzer", IEEE Signal
Processing Letters 2013. A picture's blocks give 36 numbers each that follow a Gaussian in good
photographs; the score is how far the picture's Gaussian lies from theirs.

``python -m llenhance.niqe FOLDER OUT.npz`` fits the model that is shipped as ``niqe.npz``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from .errors import LLEnhanceError, MediaError, Refusal
from .metrics import Floats, check_picture
from .pixels import Rgb8

_BLOCK = 96  # pixels a side at the first scale, half of it at the second
_SHARP = 0.75  # share of a picture's sharpest block that a block needs to count in a model
_FEATURES = 36
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # neighbours right, below and on both diagonals


@dataclass(frozen=True)
class NiqeModel:
    """What good photographs look like: ``mean`` (36,) and ``covariance`` (36, 36)."""

    mean: Floats
    covariance: Floats

    @classmethod
    def load(cls, path: str | Path | None = None) -> NiqeModel:
        """Read an .npz file; None is our own default, fitted on normal photographs.

        The arrays are called ``mean`` and ``covariance``, or ``mu_pris_param`` and
        ``cov_pris_param`` as in copies of the published model. Raises Refusal for a file that
        cannot be read or holds no such model.
        """
        if path is None:
            with resources.files(__package__).joinpath("niqe.npz").open("rb") as file:
                return cls._read(file, "niqe.npz")
        try:
            with open(path, "rb") as file:
                return cls._read(file, str(path))
        except OSError as error:
            raise Refusal(f"{path}: cannot be read ({error.strerror})") from None

    @classmethod
    def _read(cls, file: Any, name: str) -> NiqeModel:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                for names in (("mean", "covariance"), ("mu_pris_param", "cov_pris_param")):
                    if all(key in arrays for key in names):
                        mean, covariance = (np.asarray(arrays[key], np.float64) for key in names)
                        break
                else:
                    raise Refusal(f"{name}: expected arrays mean and covariance")
        except Refusal:
            raise
        except Exception:  # the unpacker raises many kinds; each means that this is no such file
            raise Refusal(f"{name}: not an .npz file that can be read") from None
        if mean.size != _FEATURES or covariance.shape != (_FEATURES, _FEATURES):
            raise Refusal(f"{name}: expected 36 means and 36x36 covariances")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise Refusal(f"{name}: holds numbers that are not finite")
        return cls(mean.reshape(_FEATURES), covariance)

    def save(self, file: str | Path | BinaryIO) -> None:
        """Write the model as float32 arrays to an .npz file, without compression or a time in
        it: the same model gives the same bytes."""
        np.savez(file, mean=np.float32(self.mean), covariance=np.float32(self.covariance))


def niqe(image: Rgb8, model: NiqeModel) -> float | None:
    """The picture's distance from ``model``: lower is more natural.

    ``image``: (H, W, 3) uint8 RGB. None where there are fewer than two whole blocks of 96x96
    pixels that have any texture: no statistics can be told then. Raises LLEnhanceError for an
    array that is no picture. Figures of different models are not comparable.
    """
    check_picture(image)
    features, _ = _blocks(image)
    features = features[np.isfinite(features).all(1)]
    if len(features) < 2:
        return None
    distance = features.mean(0) - model.mean
    covariance = (np.cov(features, rowvar=False) + model.covariance) / 2
    return math.sqrt(max(float(distance @ np.linalg.pinv(covariance) @ distance), 0.0))


def fit_niqe(pictures: Iterable[Rgb8]) -> NiqeModel:
    """Fit a model to good photographs: (H, W, 3) uint8 RGB, at least 96x96 pixels to count.

    Takes from each picture the blocks that are at least 0.75 times as sharp as its sharpest, as
    the paper does. Raises LLEnhanceError where there are fewer blocks than a covariance needs.
    """
    chosen: list[Floats] = []
    for picture in pictures:
        check_picture(picture)
        features, sharpness = _blocks(picture)
        if len(features):
            sharp = sharpness > _SHARP * sharpness.max()
            chosen.append(features[sharp & np.isfinite(features).all(1)])
    blocks = np.concatenate(chosen) if chosen else np.empty((0, _FEATURES))
    if len(blocks) <= _FEATURES:
        raise LLEnhanceError(
            f"a NIQE model needs more than {_FEATURES} sharp blocks, found {len(blocks)}"
        )
    return NiqeModel(blocks.mean(0), np.cov(blocks, rowvar=False))


def _blocks(image: Rgb8) -> tuple[Floats, Floats]:
    """Features (B, 36) and sharpness (B,) of the whole 96x96 blocks of a picture; a flat block's
    features are not finite."""
    rows, columns = image.shape[0] // _BLOCK, image.shape[1] // _BLOCK
    if not rows or not columns:
        return np.empty((0, _FEATURES)), np.empty(0)
    crop = image[: rows * _BLOCK, : columns * _BLOCK]
    grey = np.round(crop @ np.array([0.2989, 0.5870, 0.1140]))
    parts: list[Floats] = []
    sharpness = np.empty(0)
    for size in (_BLOCK, _BLOCK // 2):
        normalised, deviation = _normalise(grey)
        cut = _cut(normalised, size)
        parts.append(np.array([_describe(block) for block in cut]))
        if size == _BLOCK:
            sharpness = _cut(deviation, size).mean((1, 2))
            grey = _halve(grey)
    return np.concatenate(parts, 1), sharpness


def _cut(plane: Floats, size: int) -> Floats:
    """(rows*size, columns*size) -> (rows*columns, size, size), in reading order."""
    rows, columns = plane.shape[0] // size, plane.shape[1] // size
    tiles = plane.reshape(rows, size, columns, size).swapaxes(1, 2)
    return tiles.reshape(rows * columns, size, size)


def _normalise(grey: Floats) -> tuple[Floats, Floats]:
    """Mean-subtracted, contrast-normalised values and the local standard deviation."""
    window = cv2.getGaussianKernel(7, 7 / 6, cv2.CV_64F)

    def local(values: Floats) -> Floats:
        blurred = cv2.sepFilter2D(
            values, cv2.CV_64F, window, window, borderType=cv2.BORDER_REPLICATE
        )
        return np.asarray(blurred)

    mean = local(grey)
    deviation = np.sqrt(np.abs(local(grey * grey) - mean * mean))
    return (grey - mean) / (deviation + 1), deviation


def _halve(grey: Floats) -> Floats:
    """Half the size by the cubic kernel (a = -0.5) stretched over two pixels, edges mirrored."""

    def cubic(x: float) -> float:
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2

    # An output pixel lies between two input pixels: 0.5, 1.5, 2.5 and 3.5 away to either side.
    half = np.array([cubic((k + 0.5) / 2) / 2 for k in range(4)])
    kernel = np.concatenate((half[::-1], half))
    # An even kernel has no middle; anchor 3 puts it between a pixel and its successor.
    filtered = cv2.sepFilter2D(
        grey, cv2.CV_64F, kernel, kernel, anchor=(3, 3), borderType=cv2.BORDER_REFLECT
    )
    return np.asarray(filtered[::2, ::2])


def _describe(block: Floats) -> Floats:
    """18 numbers: shape and width of the values, and shape, mean and both widths of the products
    of neighbours in four directions."""
    shape, left, right = _fit_aggd(block)
    numbers = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = _fit_aggd(block * np.roll(block, shift, (0, 1)))
        mean = math.nan
        if math.isfinite(shape):
            mean = (right - left) * math.gamma(2 / shape) / math.gamma(1 / shape)
        numbers += [shape, mean, left, right]
    return np.array(numbers)


@cache
def _aggd_table() -> tuple[Floats, Floats]:
    """Shapes from 0.2 to 10 and the ratio of moments that belongs to each."""
    shapes = np.arange(0.2, 10.0005, 0.001)
    gamma = np.frompyfunc(math.gamma, 1, 1)
    ratio = gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))
    return shapes, np.asarray(ratio, np.float64)


def _fit_aggd(values: Floats) -> tuple[float, float, float]:
    """Shape, left and right width of an asymmetric generalised Gaussian, by matching moments
    (Lasmar, Stitou, Berthoumieu, ICIP 2009); not finite where one side has no value."""
    negative, positive = values[values < 0], values[values > 0]
    if not negative.size or not positive.size:
        return math.nan, math.nan, math.nan
    left = math.sqrt(float(np.mean(negative**2)))
    right = math.sqrt(float(np.mean(positive**2)))
    g = left / right
    ratio = float(np.mean(np.abs(values))) ** 2 / float(np.mean(values**2))
    target = ratio * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    shapes, ratios = _aggd_table()
    shape = float(shapes[np.argmin((ratios - target) ** 2)])
    width = math.sqrt(math.gamma(1 / shape) / math.gamma(3 / shape))
    return shape, left * width, right * width


def main(arguments: Sequence[str]) -> int:
    """``FOLDER OUT.npz``: fit a NIQE model on a folder of photographs. Returns an exit status."""
    if len(arguments) != 2:
        print("usage: python -m llenhance.niqe FOLDER OUT.npz", file=sys.stderr)
        return 2
    folder, target = Path(arguments[0]), Path(arguments[1])
    paths = sorted(p for p in folder.glob("*") if p.is_file() and not p.name.startswith("."))

    def pictures() -> Iterable[Rgb8]:
        for path in paths:
            data = np.fromfile(path, np.uint8)  # cv2.imread takes only some names on Windows
            picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
            if picture is None:
                raise MediaError(f"{path}: is not a picture")
            yield np.asarray(picture[..., ::-1], np.uint8)

    try:
        fit_niqe(pictures()).save(target)
    except (LLEnhanceError, OSError) as error:
        print(f"llenhance: {error}", file=sys.stderr)
        return 1
    print(f"{target}: fitted on {len(paths)} pictures", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
