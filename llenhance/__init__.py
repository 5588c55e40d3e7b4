"""llenhance makes dark pictures and videos visible.

>>> import llenhance
>>> bright = llenhance.load("dln").enhance(dark)  # (H, W, 3) RGB, uint8, uint16 or float32
"""

from typing import TYPE_CHECKING, Any

from .errors import LLEnhanceError
from .methods import METHODS
from .version import __version__

if TYPE_CHECKING:
    from .enhancer import Enhancer, load

__all__ = ["METHODS", "Enhancer", "LLEnhanceError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Late, so that --help and --version do not wait for numpy.
    if name in ("Enhancer", "load"):
        from . import enhancer

        return getattr(enhancer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
