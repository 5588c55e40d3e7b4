"""Means over the whole picture, which the tiles of a large picture have to share."""

from torch import Tensor
from torch.nn import functional as F


class Means:
    """The means that a network asks for, one after the other, while it runs.

    ``Means()`` takes each over the picture at hand. For a tile, ``window`` (N, 1, h, w) weighs the
    pixels that the tile answers for, ``given`` (N, C) holds all means of the whole picture, the
    first ones first, and ``known`` (count,) is 1 for those of them that are known already and 0
    for those to be taken over the window.
    """

    def __init__(
        self,
        window: Tensor | None = None,
        given: Tensor | None = None,
        known: Tensor | None = None,
    ) -> None:
        self.window, self.given, self.known = window, given, known
        self.found: list[Tensor] = []
        self._channels = 0

    def reduce(self, stride: int) -> None:
        """Bring the window to the size of features that are ``stride`` times smaller."""
        if self.window is not None:
            self.window = F.avg_pool2d(self.window, stride)

    def __call__(self, features: Tensor) -> Tensor:
        """The mean of ``features`` (N, C, h, w) to go on with: (N, C, 1, 1)."""
        if self.window is None or self.given is None or self.known is None:
            return features.mean((2, 3), keepdim=True)
        # A matrix product reads the features once; weighing them first would copy them.
        weights = (self.window / self.window.sum((2, 3), keepdim=True)).flatten(2)
        mean = (features.flatten(2) @ weights.transpose(1, 2))[..., None]
        known = self.known[len(self.found)]
        given = self.given[:, self._channels : self._channels + features.shape[1], None, None]
        self.found.append(mean)
        self._channels += features.shape[1]
        return known * given + (1 - known) * mean
