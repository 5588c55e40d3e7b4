"""Training pictures: folders read into memory, crops of them, and darkness that is made.

Every draw takes its randomness from a generator that the caller seeds with (seed, step), so a run
that was killed and resumed sees exactly the pictures it would have seen.
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import Refusal
from ..heldout import scenes
from ..pixels import LUMA, Rgb8

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Pair:
    """Two aligned pictures, uint8 RGB (H, W, 3); ``scene`` is shared by pairs of one scene."""

    name: str
    scene: str
    low: Rgb8
    high: Rgb8


@dataclass(frozen=True)
class View:
    """How one kind of batch is cut: ``batch`` crops of ``height`` x ``width`` pixels.

    ``reduce``: each crop is that many times larger in the picture and then reduced by area, so a
    reduce of 2 or 3 shows the network nearly whole pictures at little cost. ``share``: how often
    this view is drawn, relative to the others. A view with ``quarter_turns`` is drawn lying and
    standing; without, pictures are mirrored and turned upside down only.
    """

    height: int
    width: int
    batch: int
    reduce: float = 1.0
    share: float = 1.0
    quarter_turns: bool = True

    def turned(self) -> "View":
        """The same view of pictures that are turned by a quarter."""
        return replace(self, height=self.width, width=self.height)


@dataclass(eq=False)  # what is made of it once is remembered by its identity
class Data:
    """Everything a recipe draws from. ``shares`` holds one weight for each pair.

    ``scenes``, where it is not empty: of each dark and then of each normal picture, the name of its
    scene, "" where none is known.
    """

    pairs: list[Pair] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    normal: list[Rgb8] = field(default_factory=list)
    dark: list[Rgb8] = field(default_factory=list)
    validation: list[Pair] = field(default_factory=list)
    scenes: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """What tells these pictures from others: their number, names, shares and first rows."""
        sha = hashlib.sha256()
        for pair in (*self.pairs, *self.validation):
            sha.update(f"{pair.scene} {pair.name}\n".encode())
            sha.update(pair.low[0].tobytes() + pair.high[0].tobytes())
        sha.update(repr((self.shares, len(self.pairs), len(self.normal))).encode())
        sha.update("\n".join(self.scenes).encode())
        for image in (*self.normal, *self.dark):
            sha.update(repr(image.shape).encode() + image[0].tobytes())
        return sha.hexdigest()[:16]


def read(path: Path) -> Rgb8:
    """An 8-bit RGB picture; raises Refusal when the file is none."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror or error}") from None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise Refusal(f"{path}: not a picture")
    return np.ascontiguousarray(image[:, :, ::-1], np.uint8)


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by name; raises Refusal when there are none."""
    if not folder.is_dir():
        raise Refusal(f"{folder}: not a folder")
    found = sorted(  # not macOS's "._IMG.jpg" beside "IMG.jpg"
        p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    )
    if not found:
        raise Refusal(f"{folder}: no pictures in it")
    return found


def matched(low: Path, high: Path) -> list[tuple[Path, Path]]:
    """(low, high) files with the same stem; raises Refusal when there are none."""
    highs = {path.stem: path for path in pictures(high)}
    found = [(path, highs[path.stem]) for path in pictures(low) if path.stem in highs]
    if not found:
        raise Refusal(f"{low} and {high}: no file has the same name in both")
    return found


def read_pairs(folder: Path) -> tuple[list[Pair], list[Pair]]:
    """(training, validation) pairs of a folder with ``low/`` and ``high/``.

    A ``scenes.tsv`` (stem, scene, split) beside them holds out its validation scenes; without it
    all pairs are for training and each is a scene of its own. Raises Refusal where there are no
    pairs, where the two of a pair differ in size, and for a table that cannot be read, knows
    another split, or holds out a pair that is not there.
    """
    table = folder / "scenes.tsv"
    splits = scenes(table) if table.is_file() else {}
    training: list[Pair] = []
    validation: list[Pair] = []
    for low, high in matched(folder / "low", folder / "high"):
        scene, split = splits.get(low.stem, (low.stem, "train"))
        if split not in ("train", "validation"):
            raise Refusal(f"{table}: {low.stem}: split {split!r} is neither train nor validation")
        pair = Pair(low.stem, f"{folder.name}/{scene}", read(low), read(high))
        if pair.low.shape != pair.high.shape:
            raise Refusal(f"{low}: its size differs from that of {high}")
        (validation if split == "validation" else training).append(pair)
    there = {pair.name for pair in (*training, *validation)}
    for stem, (_, split) in splits.items():
        if split == "validation" and stem not in there:
            raise Refusal(f"{table}: {stem} is to be held out, and there is no such pair")
    return training, validation


def one_per_scene(pairs: list[Pair], limit: int) -> list[Pair]:
    """At most ``limit`` pairs, one from each of as many scenes, spread evenly."""
    firsts = list({pair.scene: pair for pair in reversed(pairs)}.values())[::-1]
    if len(firsts) <= limit:
        return firsts
    return [firsts[round(i * (len(firsts) - 1) / max(1, limit - 1))] for i in range(limit)]


def _region(shape: tuple[int, ...], view: View, rng: np.random.Generator) -> tuple[slice, slice]:
    """Where to cut: the view's shape, reduced further if the picture is too small for it."""
    reduce = min(view.reduce, shape[0] / view.height, shape[1] / view.width)
    height, width = max(1, int(view.height * reduce)), max(1, int(view.width * reduce))
    top = int(rng.integers(shape[0] - height + 1))
    left = int(rng.integers(shape[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def cut(images: list[Rgb8], view: View, rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """The same random crop, flip and turn of aligned pictures: float32 (H, W, 3) in [0, 1].

    A picture that stands is turned for a view that lies, and the other way round: across the view,
    a nearly whole picture would be an enlarged part of it.
    """
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    height, width = images[0].shape[:2]
    if not view.quarter_turns:
        turns -= turns % 2
    elif (view.height - view.width) * (height - width):
        turns += turns % 2 != ((view.height > view.width) != (height > width))
    turned = [np.rot90(image, turns) for image in images]
    region = _region(turned[0].shape, view, rng)
    crops = []
    for image in turned:
        crop: NDArray[Any] = np.ascontiguousarray(image[region])
        if crop.shape[:2] != (view.height, view.width):
            interpolation = cv2.INTER_AREA if crop.shape[0] > view.height else cv2.INTER_CUBIC
            crop = cv2.resize(crop, (view.width, view.height), interpolation=interpolation)
        if flip:
            crop = crop[:, ::-1]
        crops.append(crop.astype(np.float32) / np.float32(255))
    return crops


def stack(crops: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Crops (H, W, 3) -> one batch (N, 3, H, W)."""
    return np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2))


def with_lamps(high: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """One to three lamps and windows in a picture (H, W, 3) in [0, 1], glowing.

    Discs and rectangles of 1.5 to 60 times white, with edges from soft to sharp. The result goes
    far above 1, so that a short exposure of it still shows them bright. Without them in the made
    pictures, networks learn to draw rings around the real ones.
    """
    height, width = high.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    scene = high.copy()
    for _ in range(rng.integers(1, 4)):
        radius = max(1.0, np.exp(rng.uniform(np.log(0.01), np.log(0.15))) * min(height, width))
        stretch = np.exp(rng.uniform(-0.6, 0.6))
        dy = (y - np.float32(rng.uniform(0, height))) / np.float32(radius * stretch)
        dx = (x - np.float32(rng.uniform(0, width))) / np.float32(radius / stretch)
        distance = np.hypot(dy, dx)
        shape = distance if rng.random() < 0.5 else np.maximum(np.abs(dy), np.abs(dx))
        sharpness = np.float32(np.exp(rng.uniform(np.log(8), np.log(4 * max(radius, 2)))))
        lamp = 1 / (1 + np.exp(np.minimum(sharpness * (shape - 1), 60)))
        glow = np.float32(np.exp(rng.uniform(np.log(5e-4), np.log(0.03)))) / (1 + distance**2)
        warm = 1 - rng.uniform(0, 0.5) * np.array([0, 0.4, 1], np.float32)
        peak = np.float32(np.exp(rng.uniform(np.log(1.5), np.log(60))))
        scene += (peak * (lamp + glow))[..., None] * warm.astype(np.float32)
    return scene


def partly_unlit(high: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A picture (H, W, 3) in [0, 1] with parts, on average half, that no light reaches: exactly 0.

    Night skies and silhouettes, with edges from soft to sharp. Real pairs hardly have a place where
    a block of the low one is 0, and networks that never saw one make it grey.
    """
    coarse = rng.uniform(-1, 1, (4, 4)).astype(np.float32)
    light = cv2.resize(coarse, high.shape[1::-1], interpolation=cv2.INTER_CUBIC)[..., None]
    steepness = np.float32(np.exp(rng.uniform(np.log(2), np.log(200))))
    lit: NDArray[np.float32] = high * np.clip(steepness * light, 0, 1)
    return lit


def in_shade(
    high: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(the scene, the picture wanted of it) with light that falls unevenly on a picture (H, W, 3).

    The light goes smoothly from 1 down to as little as 0.02. What is wanted keeps its cube root:
    places in the dark become visible and stay darker than the lit ones, and black stays black.
    """
    coarse = np.log(rng.uniform(0.02, 1, (4, 4)).astype(np.float32))
    light = np.exp(cv2.resize(coarse, high.shape[1::-1], interpolation=cv2.INTER_LINEAR))[..., None]
    return high * light, high * np.cbrt(light)


def underexpose(high: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A made dark picture that looks like a short exposure, from a normal one (H, W, 3).

    Light above 1 in ``high`` is what a longer exposure clips and this one may not.

    A nearly linear gain of 0.03 to 0.25, a mild gamma, a slight colour cast, noise that grows with
    the signal, and 8-bit quantisation: what real pairs of short and long exposures show.
    """
    gain = np.exp(rng.uniform(np.log(0.03), np.log(0.25)))
    gamma = rng.uniform(0.9, 1.5)
    cast = rng.uniform(0.9, 1.1, 3).astype(np.float32)
    low = gain * cast * high ** np.float32(gamma)
    shot, floor = rng.uniform(0, 0.008), rng.uniform(0, 0.008)
    deviation = np.sqrt(shot * gain * low + floor**2)
    noise = rng.standard_normal(low.shape, np.float32)
    return np.round(np.clip(low + deviation * noise, 0, 1) * 255).astype(np.float32) / 255


def compressed(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A picture (H, W, 3) in [0, 1] after JPEG of quality 50 to 95, as dark photos mostly are."""
    bytes_ = np.round(image[:, :, ::-1] * 255).astype(np.uint8)
    quality = int(rng.integers(50, 96))
    _, encoded = cv2.imencode(".jpg", bytes_, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: Any = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return decoded[:, :, ::-1].astype(np.float32) / np.float32(255)


def rexpose(low: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A real dark picture (H, W, 3) at 0.6 to 1.6 times its exposure, in 8 bits."""
    gain = np.exp(rng.uniform(np.log(0.6), np.log(1.6)))
    return np.round(np.clip(low * gain, 0, 1) * 255).astype(np.float32) / 255


def lose_light(
    high: NDArray[np.float32], mean: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A made dark picture as the DLN paper makes it, from a normal one (H, W, 3).

    Colour saturation and then contrast scaled by U(0.7, 1), the latter about the ``mean`` luma of
    the whole picture; beta * (alpha * I)^gamma with beta ~ U(0.5, 1), alpha ~ U(0.9, 1) and
    gamma ~ U(1.5, 5); 8 bits; no noise.
    """
    grey = (high @ LUMA)[..., None]
    # Luma, and so its mean, is the same before and after the loss of saturation.
    faded = grey + np.float32(rng.uniform(0.7, 1)) * (high - grey)
    faded = np.float32(mean) + np.float32(rng.uniform(0.7, 1)) * (faded - np.float32(mean))
    beta, alpha, gamma = rng.uniform(0.5, 1), rng.uniform(0.9, 1), rng.uniform(1.5, 5)
    dark = beta * (alpha * np.clip(faded, 0, 1)) ** gamma
    levels: NDArray[np.float32] = np.round(np.clip(dark, 0, 1) * 255).astype(np.float32)
    return levels / np.float32(255)
