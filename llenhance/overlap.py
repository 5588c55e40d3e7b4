"""Two ways to let stages overlap through bounded queues: work ahead, and work behind."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

AHEAD = 2  # how many pictures or frames may wait between two stages


def ahead(items: Iterable[T], size: int = AHEAD) -> Generator[T, None, None]:
    """The same items, made in a thread of their own, at most ``size`` of them waiting.

    What ``items`` raises is raised here. Closing the generator stops the thread.
    """
    waiting: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(size)
    stop = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                waiting.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # handed to the consumer, whatever it is
            put((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            more, item = waiting.get()
            if more:
                yield item  # type: ignore[misc]
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        stop.set()
        thread.join()


class Behind:
    """Work done in order in a thread of its own, at most ``size`` pieces of it waiting.

    Leaving the block waits for what is under way. What a piece raised is raised at the next one
    or on leaving; pieces not yet begun are then dropped.
    """

    def __init__(self, size: int = AHEAD) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.pending: deque[Future[None]] = deque()
        self.size = size

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        self.pending.append(self.pool.submit(work, *arguments))
        while len(self.pending) > self.size:
            self.pending.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                while self.pending:
                    self.pending.popleft().result()
        finally:
            self.pool.shutdown(wait=True, cancel_futures=True)
