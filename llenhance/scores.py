"""The pictures of an evaluation, what competes on them, and the scores; knows no command line."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import metrics
from .enhancer import Enhancer
from .errors import LLEnhanceError, Refusal
from .heldout import scenes, synthetic_test
from .media import files, images
from .methods import Method
from .niqe import NiqeModel, niqe
from .pictures import read_rgb8
from .pixels import Rgb8
from .report import Report

PUBLISHED = (18.12, 0.85)  # PSNR and SSIM that its paper gives, on pictures of its own


# --- what is scored -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One picture to score; it is read when its turn comes."""

    name: str
    low: Path
    high: Path | None = None
    preds: tuple[Path, ...] = ()
    made: int | None = None  # the dark picture is made from ``low`` by darkened(..., made)


@dataclass(frozen=True)
class Sample:
    """A case's pictures, (H, W, 3) uint8 RGB; ``low`` is smaller where the scale is above 1."""

    low: Rgb8
    high: Rgb8 | None
    preds: tuple[Rgb8, ...]
    controls: Mapping[str, float] = field(default_factory=dict)


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, by name; raises Refusal when it is none or holds none."""
    if not folder.is_dir():
        raise Refusal(f"{folder}: not a folder")
    found = [
        path
        for path in files.walk(folder, recursive=False)
        if images.format_of_suffix(path.suffix) or images.sniff(files.head(path))
    ]
    if not found:
        raise Refusal(f"{folder}: no pictures in it")
    return found


def match(
    folders: Sequence[Path], wanted: set[str] | None, report: Report
) -> dict[str, tuple[Path, ...]]:
    """Stem -> its file in every folder, for the stems that all of them have (and are wanted).

    The report hears which stems a folder lacks. Raises Refusal when no stem is left, and when two
    pictures of a folder have the same stem.
    """
    found = [_by_stem(folder, wanted) for folder in folders]
    every: set[str] = set(wanted or ()).union(*found)
    common = sorted(every.intersection(*found))
    if not common:
        chosen = "" if wanted is None else "of the chosen split "
        raise Refusal(f"no picture {chosen}has its name in {' and '.join(map(str, folders))}")
    for folder, stems in zip(folders, found, strict=True):
        if lacks := sorted(every - stems.keys()):
            report.warn(str(folder), f"has no picture named {', '.join(lacks)}: left out")
    return {stem: tuple(stems[stem] for stems in found) for stem in common}


def _by_stem(folder: Path, wanted: set[str] | None) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in pictures(folder):
        if wanted is not None and path.stem not in wanted:
            continue
        if path.stem in stems:
            raise Refusal(f"{folder}: {stems[path.stem].name} and {path.name} have one name")
        stems[path.stem] = path
    return stems


def split_of(table: Path, split: str) -> set[str]:
    """The stems of a split in a table of tab-separated columns stem, scene, split.

    Raises Refusal for a file that is no such table and for a split that it does not have.
    """
    splits = {stem: own for stem, (_, own) in scenes(table).items()}
    stems = {stem for stem, own in splits.items() if own == split}
    if not stems:
        known = ", ".join(sorted(set(splits.values()))) or "none"
        raise Refusal(f"{table}: no split {split!r} in it (there are: {known})")
    return stems


def synthetic(folder: Path) -> list[Case]:
    """The fixed synthetic test: the 100 pictures whose names have the smallest SHA-256."""
    paths = synthetic_test(pictures(folder))
    return [Case(path.stem, path, made=n) for n, path in enumerate(paths)]


def darkened(image: Rgb8, number: int) -> tuple[Rgb8, float]:
    """A dark picture by the residual paper's model, and its alpha.

    ``image``: (H, W, 3) uint8 RGB, returned in the same form. Seed 0; the ``number`` of the
    picture gives it draws of its own, so that one that cannot be read does not move the others'.
    """
    from .networks.residual import photographed  # loads torch

    rng = np.random.default_rng((0, number))
    dark, alpha, _ = photographed(image.astype(np.float32) / np.float32(255), rng)
    return dark.astype(np.uint8), alpha


def read(case: Case, scale: int = 1) -> Sample:
    """Decode a case's pictures to 8 bits.

    With a ``scale`` above 1 the dark picture is reduced by it (bicubic with antialiasing), after
    all are cut at the right and bottom to a multiple of it. Raises LLEnhanceError for a picture
    that cannot be read and for sizes that differ.
    """
    low = read_rgb8(case.low)
    if case.made is not None:
        dark, alpha = darkened(low, case.made)
        return Sample(dark, low, (), {"alpha": alpha})
    others = [] if case.high is None else [case.high]
    others += case.preds
    decoded = [read_rgb8(path) for path in others]
    for path, picture in zip(others, decoded, strict=True):
        if picture.shape != low.shape:
            raise LLEnhanceError(
                f"sizes differ: {case.low} is {_size(low)}, {path} is {_size(picture)}"
            )
    if scale > 1:
        if min(low.shape[:2]) < scale:
            raise LLEnhanceError(f"{case.low}: too small to be reduced by {scale}")
        height, width = (side // scale * scale for side in low.shape[:2])
        decoded = [np.ascontiguousarray(picture[:height, :width]) for picture in decoded]
        low = resized(low[:height, :width], width // scale, height // scale)
    high = None if case.high is None else decoded.pop(0)
    return Sample(low, high, tuple(decoded))


def _size(picture: Rgb8) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def resized(image: Rgb8, width: int, height: int) -> Rgb8:
    """(H, W, 3) uint8 -> (height, width, 3): bicubic (a = -0.5), antialiased where it reduces."""
    if image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


# --- what competes --------------------------------------------------------------------------------


class Made(NamedTuple):
    """What a contender made of a sample."""

    picture: Rgb8
    seconds: float | None = None  # of the network
    difference: NDArray[np.float32] | None = None  # alpha D, (H, W, 3) in [-1, 1]


@dataclass(frozen=True)
class Contender:
    """A row of the table: ``apply`` makes its picture."""

    label: str
    apply: Callable[[Sample], Made]
    enhancer: Enhancer | None = None
    scale: int = 1  # at which its network runs


def equalised(image: Rgb8) -> Rgb8:
    """Histogram equalisation of the luma (Y of YCrCb); the chroma stays."""
    planes = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    planes[..., 0] = cv2.equalizeHist(np.ascontiguousarray(planes[..., 0]))
    return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YCrCb2RGB), np.uint8)


def brightened(image: Rgb8) -> Rgb8:
    """x^(1/2.2) of every sample in [0, 1]."""
    table = np.rint((np.arange(256) / 255) ** (1 / 2.2) * 255).astype(np.uint8)
    return table[image]


CLASSIC: Mapping[str, Callable[[Rgb8], Rgb8]] = {
    "input": lambda image: image,
    "histogram equalisation": equalised,
    "gamma 2.2": brightened,
}


def classic(scale: int) -> list[Contender]:
    """The untouched input and the baselines, enlarged where the scale asks for it."""

    def make(label: str, change: Callable[[Rgb8], Rgb8]) -> Contender:
        def apply(sample: Sample) -> Made:
            return Made(enlarged(change(sample.low), scale))

        return Contender(_label(label, scale), apply)

    return [make(label, change) for label, change in CLASSIC.items()]


def network(enhancer: Enhancer, scale: int) -> Contender:
    """A method: at the scale if it has it, else at 1 and enlarged."""
    method = enhancer.method
    own = scale if scale in method.scales else 1
    names = {control.name for control in method.controls}

    def apply(sample: Sample) -> Made:
        controls: dict[str, Any] = {n: v for n, v in sample.controls.items() if n in names}
        began = time.perf_counter()
        if "alpha" in controls:
            out, found = enhancer.enhance(sample.low, return_map=True, **controls)
            seconds = time.perf_counter() - began
            return Made(out, seconds, controls["alpha"] * found)
        out = enhancer.enhance(sample.low, scale=own, **controls)
        seconds = time.perf_counter() - began
        return Made(enlarged(out, scale // own), seconds)

    label = _label(method.name, scale) if own != scale else method.name
    return Contender(f"{label} x{own}" if own > 1 else label, apply, enhancer, own)


def prediction(label: str, number: int) -> Contender:
    """Another tool's pictures: the ``number``-th of a sample's predictions."""

    def apply(sample: Sample) -> Made:
        return Made(sample.preds[number])

    return Contender(label, apply)


def _label(name: str, scale: int) -> str:
    return f"{name} + bicubic x{scale}" if scale > 1 else name


def enlarged(image: Rgb8, scale: int) -> Rgb8:
    """``scale`` times as high and wide, bicubic."""
    return resized(image, image.shape[1] * scale, image.shape[0] * scale)


def cost(method: Method, options: Mapping[str, object], scale: int) -> tuple[int, int]:
    """(parameters, multiply-accumulates a megapixel of input) of a method's network.

    Counted by torch on a picture without memory, so it costs nothing to speak of.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side = 1024  # large, so that what is done once a picture hardly counts
    with torch.device("meta"):
        module = method.build(**options).eval()
        picture = torch.empty(1, 3, side, side)
    arguments = {"scale": scale} if len(method.scales) > 1 else {}
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(picture, **arguments)
    macs = counter.get_total_flops() / 2  # it counts a multiplication and an addition as two
    return sum(p.numel() for p in module.parameters()), round(macs / side**2 * 1e6)


# --- scores ---------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """One picture of one row; None is what cannot be told or was not asked for."""

    psnr: float | None  # dB
    ssim: float | None
    psnr_best_gain: float | None  # dB; a diagnosis
    niqe: float | None
    newly_clipped: float | None  # share of the pixels
    seconds: float | None  # a megapixel of input
    psnr_map: float | None = None  # dB, of alpha D against I - I'; a map of zeros has the input's


class Result(NamedTuple):
    """What became of a case: one output and its scores a contender, in their order."""

    case: Case
    sample: Sample
    outputs: list[Rgb8]
    scores: list[Scores]


def run(
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    model: NiqeModel | None,
    scale: int,
    report: Report,
) -> Iterator[Result]:
    """Score every contender on every case; without a ``model`` there is no NIQE.

    A case on which anything fails is reported and left out of all rows, so that every mean is one
    over the same pictures.
    """
    bar = report.task("evaluating", len(cases))
    warm = False
    for case in cases:
        try:
            sample = read(case, scale)
            if not warm:  # the first call of an engine also pays for its setting up
                corner = Sample(np.ascontiguousarray(sample.low[:64, :64]), None, ())
                for contender in contenders:
                    if contender.enhancer is not None:
                        contender.apply(corner)
                warm = True
            made = [contender.apply(sample) for contender in contenders]
            scores = [_score(one, sample, model) for one in made]
        except LLEnhanceError as error:
            report.failed(case.name, str(error))
        else:
            yield Result(case, sample, [one.picture for one in made], scores)
        report.advance(bar)


def _score(made: Made, sample: Sample, model: NiqeModel | None) -> Scores:
    out, seconds, difference = made
    low, high = sample.low, sample.high
    megapixels = low.shape[0] * low.shape[1] / 1e6
    return Scores(
        psnr=None if high is None else metrics.psnr(out, high),
        ssim=None if high is None else metrics.ssim(out, high),
        psnr_best_gain=None if high is None else metrics.psnr_best_gain(out, high),
        niqe=None if model is None else niqe(out, model),
        newly_clipped=metrics.newly_clipped(low, out),
        seconds=None if seconds is None else seconds / megapixels,
        psnr_map=(
            None if difference is None or high is None else metrics.psnr_map(difference, low, high)
        ),
    )


def mean(rows: Sequence[Sequence[Scores]]) -> list[Scores]:
    """Each contender's mean, from its scores picture by picture; seconds are the median.

    NIQE is the mean over the pictures for which every contender has one.
    """
    means = []
    told = niqe_told(rows)
    for row in rows:
        niqe = [scores.niqe for scores, whole in zip(row, told, strict=True) if whole]
        means.append(
            Scores(
                psnr=_mean([scores.psnr for scores in row]),
                ssim=_mean([scores.ssim for scores in row]),
                psnr_best_gain=_mean([scores.psnr_best_gain for scores in row]),
                niqe=_mean(niqe),
                newly_clipped=_mean([scores.newly_clipped for scores in row]),
                seconds=_median([scores.seconds for scores in row]),
                psnr_map=_mean([scores.psnr_map for scores in row]),
            )
        )
    return means


def niqe_told(rows: Sequence[Sequence[Scores]]) -> list[bool]:
    """For each picture whether every contender has a NIQE on it."""
    return [all(s.niqe is not None for s in picture) for picture in zip(*rows, strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if math.inf in known:  # equal pictures
        return math.inf
    return statistics.fmean(known) if known else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
