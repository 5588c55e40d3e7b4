"""Several devices at work on one folder, with processors in the place of the GPUs."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from llenhance import engines, load
from llenhance.choice import Choice
from llenhance.errors import DeviceError
from llenhance.jobs import Loading, Settings, Watch, run
from llenhance.pipelining import dispatch
from llenhance.plan import plan
from llenhance.report import Report

COMMAND = (sys.executable, "-m", "llenhance")


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("cuda:0,cuda:2", "cuda:2: this machine has 2"),
        ("cuda:0,cuda:0", "twice"),
        ("cuda,cuda:0", "twice"),
        ("cuda:0,cpu", "and not cpu"),
        ("cuda:0,", "no device ''"),
        ("auto,cuda:1", "and not auto"),
    ],
)
def test_a_list_of_devices_is_checked(devices, words, monkeypatch):
    monkeypatch.setattr(engines, "cuda_devices", lambda: 2)
    assert engines.device_list("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    assert engines.device_list("auto") == ["auto"]
    with pytest.raises(DeviceError, match=words) as error:
        Loading(device=devices).open(["lightweight"], Report(-1))
    assert "\n" not in str(error.value)


def test_a_gpu_that_is_not_there_ends_the_command_in_one_line(tmp_path):
    if engines.cuda_devices() >= 9:
        pytest.skip("a machine with nine GPUs")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(9))
    for given in ([tmp_path / "in" / "a.png"], [tmp_path / "in"]):
        done = subprocess.run(
            [*COMMAND, *given, "-o", tmp_path / "out/", "--device", "cuda:0,cuda:8"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "cuda:" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()


def encoded(level, size=(40, 30)):
    image = np.full((*size, 3), level, np.uint8)
    image[: level % 30 + 1] //= 2
    return cv2.imencode(".png", image)[1].tobytes()


SETTINGS = Settings(1.0, None, {}, "auto", None, overwrite=False)


class Listening(Report):
    """A report that keeps the order in which files were done."""

    def __init__(self, **named: Any) -> None:
        super().__init__(-1, keep=True, **named)
        self.order: list[str] = []

    def done(self, source: str, *given: Any, **named: Any) -> None:
        self.order.append(Path(source).name)
        super().done(source, *given, **named)


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(12):
        (source / f"{number:02}.png").write_bytes(encoded(10 + 3 * number))
    return source


def planned(folder, models=("lightweight",), output=None):
    return plan([str(folder)], str(output or folder.parent / "out"), models=models).jobs


def pair_of_cpus(models=("lightweight",)):
    return [
        {name: load(name, engine="torch", device="cpu", precision="fp32") for name in models}
        for _ in range(2)
    ]


def test_two_devices_share_a_folder_and_work_at_the_same_time(folder, monkeypatch):
    """The first two pictures wait for each other: with one device at work this would not end."""
    first, second = pair_of_cpus()
    meet = threading.Barrier(2, timeout=30)
    worked: dict[int, int] = {}
    real = Settings.apply

    def apply(self, enhancer_, image):
        worked[id(enhancer_)] = worked.get(id(enhancer_), 0) + 1
        if worked[id(enhancer_)] == 1:
            meet.wait()
        return real(self, enhancer_, image)

    monkeypatch.setattr(Settings, "apply", apply)
    report = Listening()
    jobs = planned(folder)
    run(jobs, first, report, SETTINGS, Choice(), Watch(), others=[second])
    assert report.failures == []
    assert sorted(report.order) == [f"{n:02}.png" for n in range(12)]
    assert set(worked) == {id(first["lightweight"]), id(second["lightweight"])}
    assert sum(worked.values()) == 12

    monkeypatch.undo()
    single = Listening()
    run(planned(folder, output=folder.parent / "one"), first, single, SETTINGS, Choice(), Watch())
    outs = sorted((folder.parent / "out").rglob("*.png"))
    assert len(outs) == 12
    for path in outs:
        assert path.read_bytes() == (folder.parent / "one" / path.name).read_bytes()
    journals = [
        {json.loads(line).get("target") for line in place.read_text().splitlines()}
        for place in folder.parent.glob("*/.llenhance-journal.jsonl")
    ]
    assert len(journals) == 2
    assert journals[0] == journals[1]


def test_several_methods_of_a_picture_stay_together(folder):
    models = ("lightweight", "residual")
    first, second = pair_of_cpus(models)
    report = Listening()
    run(planned(folder, models), first, report, SETTINGS, Choice(), Watch(), others=[second])
    assert report.failures == []
    assert sorted(report.order) == sorted(f"{n:02}.png" for n in range(12) for _ in models)


def test_a_bad_picture_does_not_stop_the_devices(folder):
    (folder / "05.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    first, second = pair_of_cpus()
    report = Listening()
    run(planned(folder), first, report, SETTINGS, Choice(), Watch(), others=[second])
    assert [Path(source).name for source, _ in report.failures] == ["05.png"]
    assert len(report.order) == 11


def test_fail_fast_stops_both_devices(folder):
    for number in (2, 3):
        (folder / f"{number:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    first, second = pair_of_cpus()
    report = Listening(fail_fast=True)
    run(planned(folder), first, report, SETTINGS, Choice(), Watch(), others=[second])
    assert report.failures
    assert set(report.order) <= {"00.png", "01.png", "04.png", "05.png"}


def test_one_at_a_time_is_the_first_devices(folder, monkeypatch):
    first, second = pair_of_cpus()
    seen = set()
    real = Settings.apply
    monkeypatch.setattr(
        Settings,
        "apply",
        lambda self, e, image: (seen.add(id(e)), real(self, e, image))[1],
    )
    report = Listening()
    run(
        *(planned(folder), first, report, SETTINGS, Choice(), Watch()),
        overlap=False,
        others=[second],
    )
    assert len(report.order) == 12
    assert report.order == sorted(report.order)
    assert seen == {id(first["lightweight"])}


@pytest.mark.parametrize("kind", [BrokenPipeError, KeyboardInterrupt, ZeroDivisionError])
def test_what_ends_a_device_ends_the_run_and_its_threads(folder, monkeypatch, kind):
    first, second = pair_of_cpus()
    before = threading.active_count()
    count = itertools.count()
    real = Settings.apply

    def apply(self, enhancer_, image):
        if next(count) == 3:
            raise kind
        return real(self, enhancer_, image)

    monkeypatch.setattr(Settings, "apply", apply)
    report = Listening()
    with pytest.raises(kind):
        run(planned(folder), first, report, SETTINGS, Choice(), Watch(), others=[second])
    assert threading.active_count() == before
    assert len(report.order) < 12
    assert not list((folder.parent / "out").glob("*.tmp"))


def test_devices_of_a_list_are_opened_each(monkeypatch):
    """``Loading`` itself, with processors in the place of the GPUs."""
    opened_on = []
    real = load
    monkeypatch.setattr(engines, "cuda_devices", lambda: 2)

    def load_(name, *, device, **named):
        opened_on.append((name, device))
        return real(name, device="cpu", **named)

    monkeypatch.setattr("llenhance.jobs.load", load_)
    loading = Loading(device="cuda:0,cuda:1", engine="torch")
    models = iter(["lightweight", "residual"])
    first = loading.open(["lightweight", "residual"], Report(-1))
    others = loading.open_others(models, Report(-1))
    assert set(first) == {"lightweight", "residual"}
    assert [set(other) for other in others] == [set(first)]
    assert opened_on == [
        (name, device) for device in ("cuda:0", "cuda:1") for name in ("lightweight", "residual")
    ]


def test_dispatch_gives_each_item_once_and_raises():
    seen: deque[tuple[int, int]] = deque()
    dispatch(range(50), [partial(lambda w, i: seen.append((w, i)), w) for w in range(3)])
    assert sorted(item for _, item in seen) == list(range(50))

    def fails(item):
        if item == 4:
            raise ValueError("four")
        seen.append((9, item))

    seen.clear()
    with pytest.raises(ValueError, match="four"):
        dispatch(range(1000), [fails, fails])
    assert len(seen) < 10
    with pytest.raises(ValueError, match="last"):
        dispatch(range(1), [partial(lambda _: (_ for _ in ()).throw(ValueError("last")))])
