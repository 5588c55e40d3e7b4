"""Standard input, which a reader can be called away from while nothing comes."""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import Any

from .errors import MediaError

PATIENCE = 0.2  # seconds between two looks at whether the reader is still wanted
MOST = 1 << 20  # bytes at a time: room for all that is asked for would be taken at once


class StandardInput:
    """``read`` waits for what comes, in whatever thread, until ``leave`` is called in another.

    A thread in a plain read would hold up the end of a command that was told to stop for as long
    as the other end of the pipe keeps silent.
    """

    def __init__(self) -> None:
        self._left = threading.Event()

    def leave(self) -> None:
        """Let ``read`` return what it has."""
        self._left.set()

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or fewer at the end of the stream or once it was left; -1 is all. Raises
        MediaError where it cannot be read."""
        file: Any = sys.stdin.buffer
        descriptor = self._waitable()
        parts: list[bytes] = []
        missing = sys.maxsize if size < 0 else size
        try:
            while missing and not self._left.is_set():
                if descriptor is not None and not _has_something(descriptor):
                    continue
                chunk = file.read1(min(missing, MOST))
                if not chunk:
                    break
                parts.append(chunk)
                missing -= len(chunk)
        except OSError as error:  # closed, or open for writing alone, as nohup leaves it
            raise MediaError(f"cannot be read: {error.strerror or error}") from None
        return b"".join(parts)

    @staticmethod
    def _waitable() -> int | None:
        """What ``select`` can wait for, where the system and the stream have such a thing."""
        if os.name == "nt":
            return None
        try:
            return sys.stdin.fileno()
        except (AttributeError, OSError, ValueError):
            return None


def _has_something(descriptor: int) -> bool:
    """Whether a read would not wait, after ``PATIENCE`` seconds of waiting for that."""
    return bool(select.select([descriptor], [], [], PATIENCE)[0])
