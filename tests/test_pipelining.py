"""Work ahead and work behind; and libraries that do not crowd the cores."""

import os
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from llenhance.pipelining import BoundedExecutor, prefetch


def test_ahead_keeps_order_and_values():
    assert list(prefetch(range(100))) == list(range(100))


def test_ahead_waits_for_its_consumer():
    made = []

    def items():
        for n in range(50):
            made.append(n)
            yield n

    stream = prefetch(items(), size=2)
    next(stream)
    time.sleep(0.3)
    assert len(made) <= 5
    stream.close()


def test_ahead_raises_what_its_source_raises():
    def items():
        yield 1
        raise ValueError("boom")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="boom"):
        next(stream)


def test_ahead_ends_its_thread_when_closed():
    before = threading.active_count()
    stream = prefetch(iter(int, 1), size=1)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_behind_keeps_order():
    seen = []
    with BoundedExecutor() as work:
        for n in range(20):
            work.submit(seen.append, n)
    assert seen == list(range(20))


def test_behind_bounds_what_waits():
    gate, running = threading.Event(), []

    def piece(n):
        gate.wait(5)
        running.append(n)

    with BoundedExecutor(size=2) as work:
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

    with pytest.raises(ValueError, match="boom"), BoundedExecutor() as work:
        work.submit(fail)


def test_behind_in_several_threads_is_not_held_up_by_a_long_piece():
    gate, done = threading.Event(), []

    def piece(n):
        if n == 0:
            gate.wait(10)
        done.append(n)

    with BoundedExecutor(size=2, threads=2) as work:
        for n in range(5):
            work.submit(piece, n)
        for _ in range(100):
            if len(done) == 4:
                break
            time.sleep(0.05)
        assert done == [1, 2, 3, 4]
        gate.set()
    assert done == [1, 2, 3, 4, 0]


def test_behind_bounds_what_is_unfinished_in_several_threads():
    gate, lock = threading.Event(), threading.Lock()
    begun = []

    def piece(n):
        with lock:
            begun.append(n)
        gate.wait(10)

    with BoundedExecutor(size=3, threads=2) as work:
        for n in range(3):
            work.submit(piece, n)
        blocked = threading.Thread(target=work.submit, args=(piece, 3))
        blocked.start()
        blocked.join(0.2)
        assert blocked.is_alive()
        assert sorted(begun) == [0, 1]
        gate.set()
        blocked.join(5)
        assert not blocked.is_alive()
    assert sorted(begun) == [0, 1, 2, 3]


def test_behind_drops_what_follows_a_failure():
    gate, done = threading.Event(), []

    def fail():
        gate.wait(10)
        raise ValueError("boom")

    def submit_all():
        with BoundedExecutor(size=3) as work:
            work.submit(fail)
            work.submit(done.append, 1)
            gate.set()
            for n in range(2, 100):
                work.submit(done.append, n)
                time.sleep(0.01)

    with pytest.raises(ValueError, match="boom"):
        submit_all()
    assert done == []


def test_behind_left_by_an_error_drops_what_is_not_begun():
    gate, done = threading.Event(), []

    def leave():
        with BoundedExecutor(size=3) as work:
            work.submit(gate.wait, 10)
            work.submit(done.append, 1)
            threading.Timer(0.2, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert done == []


# --- libraries' threads ---------------------------------------------------------------------------

ASKED = """
import os, sys
from llenhance import cli
real = cli._bound_threads
def bound(threads):
    assert "numpy" not in sys.modules and "cv2" not in sys.modules, "they are loaded already"
    real(threads)
cli._bound_threads = bound
status = cli.cli.main(sys.argv[1:], standalone_mode=False)
import cv2
told = [os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")]
print(status, cv2.getNumThreads(), *told)
"""


@pytest.mark.parametrize(("given", "expected"), [(("--threads", "1"), "1"), ((), "3")])
def test_every_library_is_told_how_many_threads_there_are(tmp_path, given, expected):
    """OpenBLAS, whose helpers spin, has one in any case."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(cv2.imencode(".png", np.full((20, 30, 3), 9, np.uint8))[1].tobytes())
    told = {
        k: v for k, v in os.environ.items() if "NUM_THREADS" not in k and "THREADS_NUM" not in k
    }
    done = subprocess.run(
        [sys.executable, "-c", ASKED, str(photo), "-m", "lightweight", "--device", "cpu", *given],
        env=told | {"OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", expected, expected, "1"]
