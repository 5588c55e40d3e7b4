"""Videos that are no files: numbered pictures, raw frames on a pipe, a camera. Imports nothing big.

Each of them is known by its name alone, and only where no file has exactly that name.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ...errors import MediaError, Refusal

_NUMBER = re.compile(r"%(?:0(\d))?d")
_RAW = re.compile(r"(\w+):(\d+)x(\d+)@(\d+(?:\.\d+)?|\d+/\d+)")
_CAMERA = re.compile(r"camera:(\d{1,3})")
_LARGEST = 1 << 15  # pixels of a side


@dataclass(frozen=True)
class RawFormat:
    """Frames without a header, one after the other."""

    pix_fmt: str
    width: int
    height: int
    rate: Fraction


def raw_format(text: str) -> RawFormat:
    """What rgb24:1280x720@25 says; Refusal for anything else."""
    found = _RAW.fullmatch(text)
    if found is None:
        raise Refusal(f"--raw {text}: write it as rgb24:1280x720@25")
    width, height = int(found[2]), int(found[3])
    rate = frame_rate(found[4])
    if not (0 < width <= _LARGEST and 0 < height <= _LARGEST):
        raise Refusal(f"--raw {text}: {width}x{height} is not a size")
    return RawFormat(found[1], width, height, rate)


def frame_rate(text: str) -> Fraction:
    """Frames a second: 25, 23.976 or 30000/1001; Refusal for anything else."""
    try:
        rate = Fraction(text).limit_denominator(1001)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise Refusal(f"{text!r} is no frame rate: give 25, 23.976 or 30000/1001")
    return rate


def is_numbered(path: Path) -> bool:
    """Whether a name stands for numbered files: it has one %d, and no file has that name."""
    name = path.name
    return (
        len(_NUMBER.findall(name)) == name.count("%") == 1
        and bool(path.suffix)
        and not os.path.lexists(path)
    )


def camera_number(path: Path) -> int | None:
    """The number of a camera in camera:0, where no file has that name; else None."""
    found = _CAMERA.fullmatch(str(path))
    return int(found[1]) if found and not os.path.lexists(path) else None


def numbered(path: Path, number: int) -> Path:
    """The file with this number."""
    return path.with_name(_NUMBER.sub(lambda found: f"{number:0{found[1] or 1}d}", path.name))


def folder_of(target: Path) -> Path:
    """Where an unfinished run keeps what it has of a target: .NAME.llenhance-parts beside it."""
    name = f".{target.name}.llenhance-parts"
    if len(os.fsencode(name)) > 255:
        digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]
        name = f".{digest}.llenhance-parts"
    return target.with_name(name)


def state_of(target: Path) -> Path:
    """The file in :func:`folder_of` that says how far that run came, and what it was of."""
    return folder_of(target) / "state.json"


def find(path: Path) -> list[tuple[int, Path]]:
    """(number, file) for those that are there, in order. Raises MediaError."""
    found = _NUMBER.search(path.name)
    assert found is not None
    digits = rf"\d{{{found[1]},}}" if found[1] else r"0|[1-9]\d*"
    before, after = re.escape(path.name[: found.start()]), re.escape(path.name[found.end() :])
    name = re.compile(f"{before}({digits}){after}", re.DOTALL)
    try:
        entries = [entry.name for entry in os.scandir(path.parent)]
    except OSError as error:
        raise MediaError(f"{path.parent}: {error.strerror or error}") from None
    matches = [match for entry in entries if (match := name.fullmatch(entry))]
    pairs = {int(match[1]): path.with_name(match[0]) for match in matches}
    return sorted(pairs.items())
