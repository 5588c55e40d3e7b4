"""Stages that run side by side, between them queues that cannot grow without bound."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

QUEUED = 2  # how many pictures or frames may wait between two stages


def prefetch(
    items: Iterable[T], size: int = QUEUED, leave: Callable[[], None] | None = None
) -> Generator[T, None, None]:
    """The same items, made in a thread of their own, at most ``size`` of them waiting.

    What ``items`` raises is raised here. Closing the generator stops the thread: it calls
    ``leave``, which is to end what the making of an item may wait for, and waits for the thread.
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
        if leave is not None:
            leave()
        thread.join()


def dispatch(items: Iterable[T], workers: Sequence[Callable[[T], None]]) -> None:
    """Give each item to that of the workers which is free first.

    Each worker has one item at a time, in a thread; at the end, and whatever ends it, none is at
    work any more. What a worker raises is raised here, and no item is given out after that.
    """
    free: queue.SimpleQueue[Callable[[T], None]] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)
    given: deque[Future[None]] = deque()

    def work(worker: Callable[[T], None], item: T) -> None:
        try:
            worker(item)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        for item in items:
            worker = free.get()
            for _ in range(len(given)):
                future = given.popleft()
                if future.done():
                    future.result()
                else:
                    given.append(future)
            given.append(pool.submit(work, worker, item))
        for future in given:
            future.result()


class BoundedExecutor:
    """Work done in threads of its own, begun in order, at most ``size`` pieces of it unfinished.

    With one thread it is also finished in order. Several threads may submit, and wait where there
    is no room. Leaving the block waits for what is under way. What a piece raised is raised at the
    next one or on leaving; pieces not yet begun are then dropped.
    """

    def __init__(self, size: int = QUEUED, threads: int = 1) -> None:
        self.pool = ThreadPoolExecutor(threads)
        self.room = threading.Semaphore(size)
        self.failed: list[BaseException] = []

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        self.room.acquire()
        if self.failed:
            self.room.release()  # for others that wait to submit
            raise self.failed[0]
        self.pool.submit(self._do, work, arguments)

    def _do(self, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
        try:
            if not self.failed:
                work(*arguments)
        except BaseException as error:  # raised at the next submit, whatever it is
            self.failed.append(error)
        finally:
            self.room.release()

    def __enter__(self) -> BoundedExecutor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.pool.shutdown(wait=True)
        finally:  # a signal may end the wait
            self.pool.shutdown(wait=True, cancel_futures=True)
        if kind is None and self.failed:
            raise self.failed[0]
