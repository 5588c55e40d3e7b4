"""What readers and writers of videos share: they are contexts that end well or are given up."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Scope:
    """A context that calls :meth:`close` at its end, or :meth:`abandon` after an exception."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def close(self) -> None:
        """Finish, and let go of what is open."""

    def abandon(self) -> None:
        """Let go of what is open."""
        self.close()
