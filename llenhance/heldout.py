"""What no training may see: the pictures of a fixed test, and the scenes that a table holds out."""

import csv
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from .errors import Refusal

SYNTHETIC = 100
COLUMNS = ("stem", "scene", "split")


def synthetic_test(paths: Iterable[Path]) -> list[Path]:
    """The pictures of the residual method's synthetic test: smallest SHA-256 of their names."""
    ordered = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path.name)).digest())
    return ordered[:SYNTHETIC]


def scenes(table: Path) -> dict[str, tuple[str, str]]:
    """(scene, split) of each stem in a table of tab-separated columns stem, scene, split.

    Raises Refusal for a file that is no such table, for a row that lacks one of the three, and for
    a stem or a scene that has two splits: a scene that was to be held out must not be trained on
    because of a slip.
    """
    found: dict[str, tuple[str, str]] = {}
    split_of: dict[str, str] = {}
    try:
        with table.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                stem, scene, split = ((row[name] or "").strip() for name in COLUMNS)
                if not (stem and scene and split):
                    raise Refusal(f"{table}: {stem or 'a row'} lacks its {' or '.join(COLUMNS)}")
                if stem in found:
                    raise Refusal(f"{table}: {stem} appears in two rows")
                if split_of.setdefault(scene, split) != split:
                    raise Refusal(f"{table}: scene {scene} has two splits, at {stem} another one")
                found[stem] = scene, split
    except OSError as error:
        raise Refusal(f"{table}: cannot be read ({error.strerror})") from None
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise Refusal(f"{table}: expected tab-separated columns stem, scene, split") from None
    return found
