"""The errors that this package raises on purpose, each with a line for people; exit statuses."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path


class ExitStatus(IntEnum):
    """What the shell is told."""

    OK = 0
    FAILED = 1  # something asked for is not there
    REFUSED = 2  # nothing was started
    INTERRUPTED = 130


class LLEnhanceError(Exception):
    """Something asked for could not be done. The command exits 1."""


class MediaError(LLEnhanceError):
    """A picture or video cannot be read, decoded, encoded or written."""


class Appeared(MediaError):
    """A target that was free when the work was planned is another run's by now, and is kept.

    ``rest``: what to add where it is not skipped.
    """

    def __init__(self, target: Path, reason: str = "the file exists", rest: str = "") -> None:
        super().__init__(f"cannot write {target}: {reason}{rest}")
        self.target, self.reason = target, reason


class Refusal(LLEnhanceError):
    """Nothing was started: the request itself cannot be carried out. The command exits 2."""


class ControlError(Refusal):
    """A control that the method does not have, or a value outside its range."""


class DeviceError(Refusal):
    """A device or engine that cannot be used here."""


class WeightsError(Refusal):
    """Weights that are missing, damaged, or not of this method."""
