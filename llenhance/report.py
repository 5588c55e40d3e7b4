"""What became of each job: lines and progress for people on stderr, data on stdout, exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from .errors import ExitStatus
from .names import shown


class Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text(
            "" if task.speed is None else f"{task.speed:.3g}/s", style="progress.data.speed"
        )


class Report:
    """Collects done, skipped and failed, and tells of them as asked.

    ``verbosity``: -1 errors only, 0 a line a file and the sum, 1 every choice made. ``as_json``:
    one object a line on stdout instead of the lines for people. ``keep``: keep a row for each file
    in ``rows``, for a report file; without it memory does not grow with the files that went well.
    ``fail_fast``: ``stopping`` is true after the first failure. A name may hold anything: people
    see it escaped in one line, JSON carries it whole.
    """

    def __init__(
        self,
        verbosity: int = 0,
        as_json: bool = False,
        *,
        keep: bool = False,
        fail_fast: bool = False,
    ) -> None:
        self.verbosity = verbosity
        self.as_json = as_json
        self.keep = keep
        self.fail_fast = fail_fast
        # soft_wrap: a line that names a file is one line, however narrow the terminal.
        self.console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        self.finished = 0
        self.passed_over = 0
        self.foreign = 0  # of those passed over: the target is not known to the journal
        self.failures: list[tuple[str, str]] = []
        self.buried = False  # a failure's line is no longer among the last ones
        self.rows: list[dict[str, Any]] = []
        self.warnings: dict[str, list[str]] = {}  # of files that are not yet done
        self.progress: Progress | None = None

    @property
    def exit_status(self) -> ExitStatus:
        return ExitStatus.FAILED if self.failures else ExitStatus.OK

    @property
    def stopping(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.fail_fast and bool(self.failures)

    def say(self, line: str, verbosity: int = 1) -> None:
        """A line for people, when they want to hear that much."""
        if self.verbosity >= verbosity:
            self.buried = bool(self.failures)
            self.console.print(escape(shown(line)))

    def warn(self, name: str, line: str) -> None:
        """Something was lost or changed that was not asked for; before the file's ``done``."""
        if self.keep:
            self.warnings.setdefault(name, []).append(line)
        if self.verbosity >= 0:
            self.buried = bool(self.failures)
            self.console.print(f"[yellow]{escape(shown(name))}: {escape(shown(line))}[/]")

    def done(
        self,
        source: str,
        target: str,
        seconds: float,
        *,
        warnings: Sequence[str] = (),
        **fields: Any,
    ) -> None:
        for line in warnings:
            self.warn(source, line)
        self.finished += 1
        self._emit("done", source, target=target, seconds=round(seconds, 3), **fields)
        self.say(f"{source} -> {target} ({seconds:.2f} s)", 0)

    def skipped(
        self,
        source: str,
        target: str | None,
        reason: str,
        *,
        foreign: bool = False,
        verbosity: int = 1,
        **fields: Any,
    ) -> None:
        """``foreign``: the target is there, but not by our doing as far as we know."""
        self.passed_over += 1
        self.foreign += foreign
        if target is not None:
            fields = {"target": target, **fields}
        self._emit("skipped", source, **fields, reason=reason)
        self.say(f"{source}: skipped, {reason}", verbosity)

    def failed(self, source: str, reason: str, **fields: Any) -> None:
        """One line with the name and what is wrong; the batch goes on."""
        reason = " ".join(reason.splitlines())
        self.failures.append((source, reason))
        self._emit("failed", source, **fields, error=reason)
        self.console.print(f"[red]{escape(shown(source))}: {escape(shown(reason))}[/]")

    def _emit(self, status: str, source: str, **fields: Any) -> None:
        row = {"status": status, "source": source, **fields}
        if self.keep:
            row["warnings"] = self.warnings.pop(source, [])
            self.rows.append(row)
        self._print(row)

    def _print(self, row: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(row, ensure_ascii=True), flush=True)

    def summary(self) -> None:
        """At the end of several jobs: what failed, if other lines came after it, and the sum."""
        if self.finished + self.passed_over + len(self.failures) <= 1 and not self.foreign:
            return
        if self.buried:
            self.say("failed:", 0)
            for source, reason in self.failures:
                self.say(f"  {source}: {reason}", 0)
        parts = [f"{self.finished} done"]
        if self.passed_over:
            unknown = f" ({self.foreign} not in the journal)" if self.foreign else ""
            parts.append(f"{self.passed_over} skipped{unknown}")
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        self.say(", ".join(parts), 0)

    def tracking(self) -> AbstractContextManager[object]:
        """Progress bars while the block runs, on a terminal and unless quiet."""
        if self.verbosity < 0 or self.as_json or not sys.stderr.isatty():
            return nullcontext()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        return self.progress

    def event(self, status: str, source: str, **fields: Any) -> None:
        """Something on the way that only programs want to hear of."""
        self._print({"status": status, "source": source, **fields})

    def task(self, description: str, total: int | None, completed: int = 0) -> Any:
        """A bar; give what it returns to :meth:`advance`."""
        if self.progress is None:
            return None
        return self.progress.add_task(escape(shown(description)), total=total, completed=completed)

    def describe(self, task: Any, description: str) -> None:
        """Put other words beside a bar."""
        if self.progress is not None and task is not None:
            self.progress.update(task, description=escape(shown(description)))

    def advance(self, task: Any, done: bool = False) -> None:
        """One step further, or finished and gone."""
        if self.progress is None or task is None:
            return
        if done:
            self.progress.remove_task(task)
        else:
            self.progress.advance(task)
