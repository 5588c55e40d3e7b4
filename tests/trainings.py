"""Small data and short runs, for all tests of training."""

import dataclasses

import cv2
import numpy as np

from llenhance.methods import METHODS
from llenhance.train.data import Data, Pair
from llenhance.train.loop import Run, Trainer
from llenhance.train.recipes import RECIPES


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


def made(count=8):
    """Normal pictures, uint8 RGB of 72 x 96 pixels."""
    rng = np.random.default_rng(0)
    return [cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (96, 72)) for _ in range(count)]


def small_data():
    """Eight pairs of four scenes, one of them for validation, and normal and dark pictures."""
    pictures = made()
    pairs = [Pair(str(n), f"pairs/{n // 2}", high // 10, high) for n, high in enumerate(pictures)]
    normal = [255 - high for high in pictures]
    return Data(pairs[:6], [1.0] * 6, normal, [high // 20 for high in pictures], pairs[6:])


def small(recipe, size=64):
    """The recipe on two crops of ``size`` pixels a step."""
    views, finish_views = (
        tuple(dataclasses.replace(v, height=size, width=size, batch=2) for v in some)
        for some in (recipe.views, recipe.finish_views)
    )
    return dataclasses.replace(recipe, views=views, finish_views=finish_views)


def trainer(name, data, out, steps=2, recipe=None, **run):
    recipe = small(recipe or RECIPES[name])
    return Trainer(METHODS[name], recipe, data, Run(out, steps=steps, precision="fp32", **run))
