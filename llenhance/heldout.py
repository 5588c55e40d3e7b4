"""Pictures that a fixed test uses and that no training may see."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

SYNTHETIC = 100


def synthetic_test(paths: Iterable[Path]) -> list[Path]:
    """The pictures of the residual method's synthetic test: smallest SHA-256 of their names."""
    ordered = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path.name)).digest())
    return ordered[:SYNTHETIC]
