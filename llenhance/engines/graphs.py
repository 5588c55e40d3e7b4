"""What the engines of exported graphs share: which file, of which weights, and what goes in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Weights
from ..errors import WeightsError
from ..methods import Method

Feeds = dict[str, NDArray[Any]]


def found(method: Method, weights: Weights, scale: int) -> Path:
    """The graph of a scale; raises WeightsError where there is none."""
    graph = weights.graph(method, scale)
    if not graph.is_file():
        raise WeightsError(
            f"{graph}: no graph beside the weights; --engine torch runs them,"
            " 'llenhance weights export' makes it"
        )
    return graph


def check_digest(graph: Path, weights: Weights, digest: str | None) -> None:
    """Raises WeightsError where a graph says that it was made for other weights."""
    if digest != weights.digest:
        raise WeightsError(f"{graph}: made for other weights than {weights.path.name}")


def feeds(
    method: Method,
    batch: NDArray[Any],
    controls: Mapping[str, float],
    means: NDArray[np.float32] | None = None,
) -> Feeds:
    """All inputs of a graph but the pictures of ``batch``, (N, H, W, 3): the method's controls, and
    its whole-picture means where they are known."""
    given: Feeds = {c.name: np.asarray(controls[c.name], np.float32) for c in method.controls}
    if method.means:
        window = np.ones((len(batch), 1, *batch.shape[1:3]), np.float32)
        given |= feed_means(method, window, means, 0 if means is None else len(method.means))
    return given


def feed_means(
    method: Method, window: NDArray[np.float32], means: NDArray[np.float32] | None, known: int
) -> Feeds:
    """The inputs of a graph for whole-picture means, the first ``known`` of them given.

    ``window``: (N, 1, H, W); ``means``: (sum of their channels,).
    """
    given = np.zeros((len(window), sum(method.means)), np.float32)
    if means is not None:
        given[:] = means
    flags = (np.arange(len(method.means)) < known).astype(np.float32)
    return {"window": window, "given": given, "known": flags}
