"""How far a video is: a bar for people, events for programs."""

from __future__ import annotations

import time
from typing import Protocol

from .plan import Job
from .report import Report

_TELL = 1.0  # seconds between two events


class Growing(Protocol):
    """Something that is being written."""

    @property
    def size(self) -> int: ...  # bytes so far


def megabytes(size: int) -> str:
    """For a person."""
    return f"{size / 1e6:,.1f} MB"


class Progress:
    """Tells people, and about once a second programs, how far a video is.

    ``total``: frames that will come, an estimate, None where nobody knows; ``done``: of those, what
    an earlier run did.
    """

    def __init__(
        self, report: Report, job: Job, total: int | None, done: int, sink: Growing
    ) -> None:
        self._report, self._job, self._sink = report, job, sink
        self._total, self._before, self.frames = total, done, done
        self._began = self._told = time.perf_counter()
        self._bar = report.task(job.name, total, done)
        report.event("started", job.name, target=job.target_name, frames=total, frames_done=done)

    def step(self) -> None:
        """One frame further."""
        self.frames += 1
        self._report.advance(self._bar)
        now = time.perf_counter()
        if now - self._told < _TELL:
            return
        self._told = now
        rate = (self.frames - self._before) / (now - self._began)
        size = self._sink.size
        left = None
        if self._total is not None:
            left = round(max(0, self._total - self.frames) / rate, 1)
        self._report.describe(self._bar, f"{self._job.name} ({megabytes(size)})")
        self._report.event(
            "progress",
            self._job.name,
            frames_done=self.frames,
            frames=self._total,
            fps=round(rate, 3),
            seconds_left=left,
            bytes=size,
        )

    def close(self) -> None:
        """Take the bar away."""
        self._report.advance(self._bar, done=True)
