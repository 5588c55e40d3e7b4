"""Two lists for unpaired training: dark pictures, and normal ones of other scenes."""

from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import Refusal
from ..pixels import LUMA, Rgb8
from .data import Data

SAME_SCENE = 0.95  # exposures of one scene correlate by more, other scenes by less than 0.9


@dataclass
class Pool:
    """Pictures, and how often each is drawn relative to the others."""

    pictures: list[Rgb8] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def draw(self, rng: np.random.Generator) -> Rgb8:
        """One of the pictures."""
        shares = np.asarray(self.shares)
        return self.pictures[rng.choice(len(shares), p=shares / shares.sum())]


def _ranks(image: Rgb8) -> NDArray[np.float32]:
    """A picture's thumbnail as ranks of its luma, (1024,), of mean 0 and length 1.

    Ranks do not change with exposure, so products of two are how alike two scenes are, -1 to 1.
    """
    # Reduced before it is weighted: a dark picture's luma in 8 bits has a few steps only.
    small = cv2.resize(image.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA)
    luma = (small @ LUMA).ravel()
    order = np.argsort(np.argsort(luma, kind="stable"), kind="stable").astype(np.float32)
    order -= order.mean()
    return order / np.linalg.norm(order)


def _scenes(data: Data) -> NDArray[np.intp]:
    """A number for each pair, dark and normal picture in turn, equal for those of one scene.

    Of one scene are pictures that say so, and those that look so whatever their exposure: data
    sets share photographs, and none of their lists says which.
    """
    names = [pair.scene for pair in data.pairs]
    names += data.scenes or [""] * (len(data.dark) + len(data.normal))
    named: dict[str, int] = {}
    number = np.asarray([named.setdefault(x, n) if x else n for n, x in enumerate(names)])
    looks = np.stack([_ranks(x) for x in [p.high for p in data.pairs] + data.dark + data.normal])
    for one, other in np.argwhere(np.triu(looks @ looks.T > SAME_SCENE, 1)):
        if number[one] != number[other]:
            number[number == number[other]] = number[one]
    return number


@lru_cache(maxsize=1)
def dark_and_normal(data: Data) -> tuple[Pool, Pool]:
    """The two pools: a scene that both could show is given to one of them, in turn.

    Folders of dark and of normal pictures together weigh two thirds of the pairs' share. Raises
    Refusal where one pool would be empty.
    """
    number = _scenes(data)
    pairs, darks = len(data.pairs), len(data.pairs) + len(data.dark)
    could_be_dark, could_be_normal = set(number[:darks]), {*number[:pairs], *number[darks:]}
    shared = sorted(could_be_dark & could_be_normal)
    to_normal = set(shared[::2])
    to_dark = set(shared[1::2])
    dark, normal = Pool(), Pool()
    for pair, share, scene in zip(data.pairs, data.shares, number, strict=False):
        pool, picture = (normal, pair.high) if scene in to_normal else (dark, pair.low)
        pool.pictures.append(picture)
        pool.shares.append(share)
    for pool, folder, scenes, taken in (
        (dark, data.dark, number[pairs:darks], to_normal),
        (normal, data.normal, number[darks:], to_dark),
    ):
        free = [x for x, scene in zip(folder, scenes, strict=True) if scene not in taken]
        total = sum(pool.shares) or 1.0
        pool.pictures += free
        pool.shares += [total * 2 / 3 / len(free) for _ in free]
        if not pool.pictures:
            raise Refusal("unpaired training needs dark and normal pictures of different scenes")
    return dark, normal
