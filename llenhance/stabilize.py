"""Evens the enhancement of a video over time, so that a network's pumping is not seen.

The enhancement of a frame is described by a smooth tone curve that may differ from place to place:
the mean log gain from input to output over a coarse grid of (luma, y, x), as in the bilateral grid
of Chen, Paris, Durand (SIGGRAPH 2007). That description is followed slowly over time, and each
output frame is multiplied by the ratio of the slow gain to its own. Nothing of an earlier frame's
pixels enters the picture, so nothing can smear: what moves is looked up by its own luma and place.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Frame = TypeVar("Frame", NDArray[np.uint8], NDArray[np.uint16])
Floats = NDArray[np.float32]

_LEVELS = 8  # luma nodes, one an octave: the dark ones matter, and noise is smaller there
_BLACK = np.float32(2 / 255)  # added before a logarithm: below it, ratios are noise
_THUMB = 160  # pixels of the long side of the frames that gains are measured on
_CELL = 20  # of those pixels between two nodes of the grid
_FIELD = 480  # pixels of the long side of the correction before it is enlarged
_SLOW, _FAST = 0.1, 0.6  # share of the way to the new gain that the slow one goes each frame
_MEMORY = 0.98  # a node's weight a frame later
_KNOWN = 4.0  # thumb pixels that a node has to have seen to be trusted
_LOCAL = 40.0  # thumb pixels that outweigh what the rest of the frame says about a node
_LARGEST = 0.5  # of a correction, as a natural logarithm
_CUT = 0.3  # mean change of log luma that is a scene cut, unless the clip always moves so


class Stabilizer:
    """Call it with each input frame and its enhanced frame, in order.

    ``strength``: 0 leaves the output as it is, 1 evens it fully; None (auto) evens fully and
    follows faster where the gain changes in one direction, as when a real change of light goes
    on. Causal, without delay; memory does not grow. Raises ControlError for another strength.
    """
