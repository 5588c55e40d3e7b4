"""Work ahead and work behind."""

import threading
import time

import pytest

from llenhance.overlap import Behind, ahead


def test_ahead_keeps_order_and_values():
    assert list(ahead(range(100))) == list(range(100))


def test_ahead_waits_for_its_consumer():
    made = []

    def items():
        for n in range(50):
            made.append(n)
            yield n

    stream = ahead(items(), size=2)
    next(stream)
    time.sleep(0.3)
    assert len(made) <= 5
    stream.close()


def test_ahead_raises_what_its_source_raises():
    def items():
        yield 1
        raise ValueError("boom")

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="boom"):
        next(stream)


def test_ahead_ends_its_thread_when_closed():
    before = threading.active_count()
    stream = ahead(iter(int, 1), size=1)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_behind_keeps_order():
    seen = []
    with Behind() as work:
        for n in range(20):
            work.submit(seen.append, n)
    assert seen == list(range(20))


def test_behind_bounds_what_waits():
    gate, running = threading.Event(), []

    def piece(n):
        gate.wait(5)
        running.append(n)

    with Behind(size=2) as work:
        work.submit(piece, 0)
        work.submit(piece, 1)
        blocked = threading.Thread(target=work.submit, args=(piece, 2))
        blocked.start()
        blocked.join(0.2)
        assert blocked.is_alive()
        gate.set()
        blocked.join(5)
        assert not blocked.is_alive()
    assert running == [0, 1, 2]


def test_behind_raises_what_a_piece_raised():
    def fail():
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"), Behind() as work:
        work.submit(fail)
