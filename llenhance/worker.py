"""A batch in a process of its own: what crashes or hangs there takes one file with it, no more.

The whole way of a file, from decoder through network to encoder, happens in one worker process, so
that no pixel is copied from process to process. It tells the parent where each job stands. When
it dies, or a job takes too long, the parent lets that job fail and starts a new worker for the
others; where several were at work, they are tried again one at a time, and the one that dies again
is the one. Processes are spawned, not forked, which is the same on every system and leaves
nothing of the parent's threads and libraries behind in the child.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from . import journal
from .errors import LLEnhanceError, Refusal
from .jobs import Batch, Watch, check_videos, run
from .media import files
from .plan import Job
from .report import Report

GRACE = 8.0  # seconds that a worker has to stop when it is asked to
HEARING = 1.0  # seconds
BLAME = {
    "check": "reading its header",
    "read": "decoding it",
    "enhance": "enhancing it",
    "write": "encoding it",
    "video": "working on it",
}


# --- the parent -----------------------------------------------------------------------------------


def run_in_workers(
    batch: Batch, report: Report, loaded: Callable[[], None], timeout: float | None = None
) -> None:
    """Do a batch in worker processes, one at a time. ``timeout``: seconds for each file.

    Raises what the worker raises, and LLEnhanceError when workers die without work.
    """
    jobs = list(batch.jobs)
    waiting = dict.fromkeys(range(len(jobs)))
    suspects: list[int] = []
    with report.tracking():
        bar = report.task("enhancing", len(jobs)) if len(jobs) > 1 else None

        def over(number: int) -> None:
            del waiting[number]
            report.advance(bar)

        idle = 0
        begun = False

        def begin() -> None:
            nonlocal begun
            if not begun:
                begun = True
                loaded()

        while waiting and not report.stopping:
            before = len(waiting)
            rest = [number for number in waiting if number not in suspects]
            running = Worker(replace(batch, jobs=jobs), (suspects, rest), report)
            try:
                fate = running.follow(over, begin, timeout)
            except Refusal as refusal:
                if begun:  # by an earlier worker: then it is no refusal of the whole any more
                    raise LLEnhanceError(str(refusal)) from None
                raise
            finally:
                running.stop()
            if fate is None:
                return
            suspects = _blame(jobs, running, fate, report, timeout, over)
            for number in running.writing:  # it may have got its name in the last moment
                job = jobs[number]
                with suppress(OSError):
                    if job.target is not None:
                        jobs[number] = replace(job, target_state=journal.state(job.target))
            suspects = [number for number in suspects if number in waiting]
            idle = 0 if len(waiting) < before else idle + 1
            if idle > 1:
                raise LLEnhanceError(f"the worker process dies without work: {fate}")
        begin()  # where every job failed while its header was read


def _blame(
    jobs: list[Job],
    running: Worker,
    fate: str,
    report: Report,
    timeout: float | None,
    over: Callable[[int], None],
) -> list[int]:
    """Let the jobs fail that ended a worker; returns those that are to be tried alone."""
    active = running.active
    guilty = running.late
    reason = f"took longer than {timeout or 0:g} s (--timeout)"
    if not guilty:
        if len({jobs[number].source for number in active}) != 1:
            return list(active)
        guilty = list(active)
        reason = f"the process {fate} while {BLAME[next(iter(active.values())).stage]}"
    for number in guilty:
        job = jobs[number]
        seconds = round(running.seconds(number), 3)
        fields = {"target": job.target_name, "model": job.model, "seconds": seconds}
        report.failed(job.name, reason, **fields)
        over(number)
    return []


@dataclass
class Stage:
    """Where a job is, and since when."""

    stage: str
    since: float


@dataclass
class Worker:
    """A worker process and what it has told."""

    batch: Batch
    rounds: tuple[list[int], list[int]]  # jobs to be done one at a time, and overlapping
    report: Report
    active: dict[int, Stage] = field(default_factory=dict)  # jobs at work
    late: list[int] = field(default_factory=list)  # of those: out of time
    writing: set[int] = field(default_factory=set)
    spent: dict[int, float] = field(default_factory=dict)  # seconds, of jobs that are not over
    bars: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        told = (self.report.verbosity, self.report.fail_fast, self.report.progress is not None)
        self.process = context.Process(
            target=serve, args=(theirs, self.batch, self.rounds, told), daemon=True
        )
        with _signals_later():
            self.process.start()
        theirs.close()  # so that the pipe ends when the worker does

    def follow(
        self, over: Callable[[int], None], loaded: Callable[[], None], timeout: float | None
    ) -> str | None:
        """Hear the worker until it has done all (None) or has died or been ended: how."""
        while True:
            try:
                if not self.pipe.poll(self._patience(timeout)):
                    if self._find_late(timeout):
                        return "was ended"
                    # Windows's pipe does not end with a worker that died before it had its end.
                    if not self.process.is_alive() and not self.pipe.poll():
                        return self._fate()
                    continue
                word, *values = self.pipe.recv()
            except (EOFError, OSError):
                return self._fate()
            if word == "end":
                return None
            if word == "loaded":
                loaded()
            elif word == "raised":
                raise values[0]
            elif word == "report":
                self._tell(*values)
            else:
                self._stand(word, *values)
                if word == "over":
                    over(values[0])
            if self._find_late(timeout):
                return "was ended"

    def _stand(self, word: str, number: int, stage: str = "") -> None:
        """Note where a job stands."""
        now = time.monotonic()
        if word == "begins":
            self.active[number] = Stage(stage, now)
            if stage in ("write", "video"):
                self.writing.add(number)
            return
        ended = self.active.pop(number, None)
        if ended is not None:
            self.spent[number] = self.spent.get(number, 0.0) + now - ended.since
        if word == "over":
            self.spent.pop(number, None)
            self.writing.discard(number)

    def _tell(self, name: str, values: tuple[Any, ...], fields: dict[str, Any]) -> None:
        """Do what the worker's report was asked to; bars go by the worker's numbers."""
        if name == "task":
            self.bars[values[0]] = self.report.task(*values[1:])
        elif name in ("advance", "describe"):
            getattr(self.report, name)(self.bars.get(values[0]), *values[1:], **fields)
        else:
            getattr(self.report, name)(*values, **fields)

    def seconds(self, number: int) -> float:
        """How long a job that is at work has been so, in all its stages."""
        return self.spent.get(number, 0.0) + time.monotonic() - self.active[number].since

    def _patience(self, timeout: float | None) -> float:
        """Seconds to wait: until the first job will be late, and not so long that Ctrl-C, which
        does not end a wait on every system, would go unheard."""
        if timeout is None:
            return HEARING
        return max(0.0, min([HEARING, *(timeout - self.seconds(n) for n in self.active)]))

    def _find_late(self, timeout: float | None) -> bool:
        if timeout is not None:
            self.late = [n for n in self.active if self.seconds(n) >= timeout]
        return bool(self.late)

    def _fate(self) -> str:
        """How the process died."""
        self.process.join(GRACE)
        code = self.process.exitcode
        if code is not None and code >= 0xC0000000:  # Windows's way to tell
            return f"crashed (0x{code:08X})"
        if code is None or code >= 0:
            return f"ended with status {code}"
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        return "was killed (perhaps for want of memory)" if -code == 9 else f"crashed ({name})"

    def stop(self) -> None:
        """End the process: softly where it is not late, so that it cleans up after itself."""
        for bar in self.bars.values():
            with suppress(KeyError):
                self.report.advance(bar, done=True)
        if self.process.is_alive() and not self.late:
            deadline = time.monotonic() + GRACE
            with suppress(EOFError, OSError):
                self.pipe.send("stop")
                while (left := deadline - time.monotonic()) > 0 and self.pipe.poll(left):
                    word, *values = self.pipe.recv()  # what it finishes, and its last words
                    if word == "report":
                        self._tell(*values)
            self.process.join(max(0.1, deadline - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()
        if self.process.exitcode:
            for number in self.active:
                target = self.batch.jobs[number].target
                if target is not None:
                    files.sweep(target.parent)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Keep Ctrl-C and a closed terminal, which reach every process of the terminal, from a child
    that is being made: it inherits what is blocked. The parent hears of them afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker  # of Unix

    resource_tracker.ensure_running()  # else it would be started inside, and unblock them
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


# --- the worker -----------------------------------------------------------------------------------


class Line:
    """The worker's end of the pipe, for its threads."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.lock = threading.Lock()

    def __call__(self, *message: object) -> None:
        with self.lock:
            self.pipe.send(message)


class Remote(Report):
    """A report whose every word is said by the parent."""

    def __init__(self, line: Line, verbosity: int, fail_fast: bool, progress: bool) -> None:
        super().__init__(verbosity, fail_fast=fail_fast)
        self.line = line
        self.tells_progress = progress
        self.tasks = 0

    def _say(self, name: str, *values: object, **fields: object) -> None:
        self.line("report", name, values, fields)

    def say(self, line: str, verbosity: int = 1) -> None:
        if self.verbosity >= verbosity:
            self._say("say", line, verbosity)

    def warn(self, name: str, line: str) -> None:
        self._say("warn", name, line)

    def done(self, source: str, target: str, seconds: float, **fields: Any) -> None:
        self._say("done", source, target, seconds, **fields)

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
        told = {"foreign": foreign, "verbosity": verbosity, **fields}
        self._say("skipped", source, target, reason, **told)

    def failed(self, source: str, reason: str, **fields: Any) -> None:
        self.failures = [(source, reason)]  # one is enough for ``stopping``
        self._say("failed", source, reason, **fields)

    def event(self, status: str, source: str, **fields: Any) -> None:
        self._say("event", status, source, **fields)

    def task(self, description: str, total: int | None, completed: int = 0) -> Any:
        if not self.tells_progress:
            return None
        self.tasks += 1
        self._say("task", self.tasks, description, total, completed)
        return self.tasks

    def describe(self, task: Any, description: str) -> None:
        if task is not None:
            self._say("describe", task, description)

    def advance(self, task: Any, done: bool = False) -> None:
        if task is not None:
            self._say("advance", task, done=done)


class Standing(Watch):
    """Tells the parent where each job stands."""

    def __init__(self, line: Line, jobs: list[Job]) -> None:
        self.line = line
        self.numbers = {job: number for number, job in enumerate(jobs)}

    def begins(self, job: Job, stage: str) -> None:
        self.line("begins", self.numbers[job], stage)

    def pauses(self, job: Job) -> None:
        self.line("pauses", self.numbers[job])

    def over(self, job: Job) -> None:
        self.line("over", self.numbers[job])


def serve(
    pipe: Connection,
    batch: Batch,
    rounds: tuple[list[int], list[int]],
    told: tuple[int, bool, bool],
) -> None:
    """The worker's whole life."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to stop
    # What decoders print when they crash is noise; errors of ours go through the pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_listen, args=(pipe,), daemon=True).start()
    line = Line(pipe)
    try:
        _serve(line, batch, rounds, told)
        line("end")
    except SystemExit:
        pass
    except (LLEnhanceError, BrokenPipeError) as error:
        with suppress(OSError):  # the parent has gone
            line("raised", error)
    except BaseException:  # a bug keeps its traceback
        with suppress(OSError):
            line("raised", RuntimeError(f"in the worker process:\n{traceback.format_exc()}"))
    if sys.stdout is not None:
        with suppress(OSError):
            sys.stdout.flush()


def _serve(
    line: Line, batch: Batch, rounds: tuple[list[int], list[int]], told: tuple[int, bool, bool]
) -> None:
    report = Remote(line, *told)
    watch = Standing(line, batch.jobs)
    settings, choice = batch.settings, batch.choice
    alone, together = ([batch.jobs[number] for number in numbers] for numbers in rounds)
    check_videos([*alone, *together], settings, choice, watch)
    models = [job.model for job in [*alone, *together]]
    loading = batch.loading
    enhancers = loading.open(models, report)
    # Further devices are for pictures; a video is the first one's.
    spread = [job.model for job in together if job.kind == "picture"]
    others = loading.open_others(spread, report) if spread else []
    line("loaded")
    run(alone, enhancers, report, settings, choice, watch, overlap=False)
    run(
        together,
        enhancers,
        report,
        settings,
        choice,
        watch,
        overlap=loading.overlaps,
        others=others,
    )


def _leave(*_: object) -> None:
    raise SystemExit(0)


def _listen(pipe: Connection) -> None:
    """Wait for the word to stop, or for the parent's end; then stop, in any case."""
    with suppress(EOFError, OSError):
        pipe.recv()
    if hasattr(signal, "pthread_kill"):  # a true signal, which ends a wait
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        import _thread

        _thread.interrupt_main(signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)
