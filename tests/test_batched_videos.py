"""Videos whose frames go into the network several at a time: the frames of one by one."""

from __future__ import annotations

import itertools
from collections import deque

import clips
import numpy as np
import pytest
import torch

from llenhance import engines, footage, load, segments
from llenhance.jobs import Settings
from llenhance.methods import METHODS
from llenhance.plan import Job
from llenhance.report import Report

SETTINGS = Settings(1.0, None, {}, "auto", None, overwrite=False)


def pumping(image):
    """In the place of a network: a gain that differs from frame to frame, by what is seen."""
    gain = 2.0 + 0.4 * np.sin(float(image[..., 1].mean(dtype=np.float64)) * 50)
    top = np.iinfo(image.dtype).max
    return np.clip(image * gain, 0, top).astype(image.dtype)


def in_batches(one, most, sizes, ahead=1, stop=-1):
    """``Together`` that enhances by ``one``, and begins batches before it gives the last one, as
    on a GPU; Ctrl-C at the frame ``stop``."""
    count = itertools.count()

    def begin(batch):
        for _ in batch:
            if next(count) == stop:
                raise KeyboardInterrupt
        sizes.append(len(batch))
        return [one(image) for image in batch]

    def apply(batches):
        begun = deque()
        for batch in batches:
            begun.append(begin(batch))
            if len(begun) > ahead:
                yield begun.popleft()
        yield from begun

    return footage.Together(lambda *_: most, apply)


def frames_of(path, level=False):
    times, frames = clips.decoded(path)
    return times, [frame.to_ndarray(format="rgb24" if level else None) for frame in frames]


def do(source, target, one, together, **choices):
    report = Report(-1)
    footage.enhance(
        *(Job(source, target, "video", "lightweight"), one, 1),
        *(footage.Choice(**choices), report),
        recipe="",
        overwrite=False,
        together=together,
    )
    assert report.failures == []


@pytest.mark.parametrize("most", [2, 4, 7, 30])
@pytest.mark.parametrize(
    ("making", "choices"),
    [
        ({}, {}),
        ({}, {"stabilize": "off"}),
        ({"pix_fmt": "yuv420p10le", "codec": "libx265", "colour": (9, 18, 9, 1)}, {}),
        ({}, {"constant_rate": True, "start": 0.5, "end": 2.0}),
    ],
    ids=["stabilized", "not", "hlg", "cut"],
)
def test_frames_in_batches_are_those_one_by_one(tmp_path, monkeypatch, most, making, choices):
    monkeypatch.setattr(segments, "FRAMES", 13)
    source = clips.clip(tmp_path / "in.mkv", frames=60, size=(96, 64), **making)
    choices = {"codec": "ffv1", **choices}
    do(source, tmp_path / "one.mkv", pumping, None, **choices)
    sizes: list[int] = []
    together = in_batches(pumping, most, sizes)
    do(source, tmp_path / "many.mkv", None, together, **choices)
    one, many = frames_of(tmp_path / "one.mkv"), frames_of(tmp_path / "many.mkv")
    assert one[0] == many[0]
    for a, b in zip(one[1], many[1], strict=True):
        np.testing.assert_array_equal(a, b)
    most = min(most, footage.MOST)
    whole = [most] * (13 // most) + [13 % most] * (13 % most > 0)
    assert sizes[: len(whole)] == whole  # a batch ends where a piece of the video does
    assert sum(sizes) == len(one[0])


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_in_batches_that_went_on_differs_in_nothing(tmp_path, monkeypatch, ahead):
    monkeypatch.setattr(segments, "FRAMES", 13)
    source = clips.clip(tmp_path / "in.mp4", frames=100, size=(96, 64), audio=("aac",))
    choices = {"preset": "ultrafast"}
    whole: list[int] = []
    do(source, tmp_path / "whole.mkv", None, in_batches(pumping, 4, whole, ahead), **choices)
    target, sizes = tmp_path / "out.mkv", []
    for stop in (31, 30):
        with pytest.raises(KeyboardInterrupt):
            do(source, target, None, in_batches(pumping, 4, sizes, ahead, stop), **choices)
        assert segments.folder_of(target).is_dir()
        assert not list(segments.folder_of(target).glob("*.tmp"))
    last: list[int] = []
    do(source, target, None, in_batches(pumping, 4, last, ahead), **choices)
    assert whole == [4, 4, 4, 1] * 7 + [4, 4, 1]
    assert last == whole[-len(last) :]  # the same batches, or floats might round otherwise
    assert len(last) < len(whole)
    one, many = frames_of(tmp_path / "whole.mkv"), frames_of(target)
    assert one[0] == many[0]
    for a, b in zip(one[1], many[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_real_network_in_batches_gives_the_frames_to_the_level(tmp_path, opened, engine):
    source = clips.clip(tmp_path / "in.mp4", frames=12, size=(96, 64))
    alone = opened("neid", engine)
    for stabilize in ("off", "auto"):
        choices = {"codec": "ffv1", "pix_fmt": "bgr0", "stabilize": stabilize}
        one, many = tmp_path / f"one.{stabilize}.mkv", tmp_path / f"many.{stabilize}.mkv"
        do(source, one, alone.enhance, None, **choices)
        together = footage.Together(lambda *_: 4, alone.enhance_batches)
        do(source, many, None, together, **choices)
        for a, b in zip(frames_of(one, True)[1], frames_of(many, True)[1], strict=True):
            difference = np.abs(a.astype(int) - b)
            # Evening multiplies what was rounded, and so the one level that rounding may differ by.
            assert difference.max() <= (1 if stabilize == "off" else 2)
            assert (difference > 0).mean() < 0.001


def test_a_size_change_ends_a_batch():
    """Readers give frames of one size; where one did not, no batch would be of two."""

    class Frame:
        def __init__(self, size, pts):
            self.image = np.zeros((*size, 3), np.uint8)
            self.pts = pts

    work = object.__new__(footage._Work)
    work._most = 4
    sizes = [(8, 8)] * 5 + [(8, 9)] * 2 + [(8, 8)]
    steps = [(Frame(size, n), None) for n, size in enumerate(sizes)]
    batches = list(work._batches(steps))
    assert [len(batch) for batch in batches] == [4, 1, 2, 1]
    assert [f.pts for batch in batches for f, _ in batch] == list(range(8))


def test_one_by_one_on_a_cpu(opened):
    assert SETTINGS.together(opened("lightweight")) is None


def test_a_gpu_takes_several_and_bounds_them(opened, monkeypatch):
    """Four to eight frames of 1920x1080 on a large GPU, fewer on a small one."""
    dln = load("dln", engine="torch", device="cpu", precision="fp32")
    engine = dln.engine
    engine.device, engine.precision = "cuda:0", "fp16"

    class Properties:
        total_memory = 80 << 30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    together = SETTINGS.together(dln)
    assert 4 <= min(footage.MOST, together.most(1080, 1920)) <= 8
    Properties.total_memory = 12 << 30
    assert together.most(1080, 1920) == 1


@pytest.mark.cuda
@pytest.mark.skipif(not engines.cuda_devices(), reason="no NVIDIA GPU on this machine")
@pytest.mark.parametrize("name", METHODS)
def test_videos_go_in_batches_on_a_gpu(tmp_path, name):
    gpu = load(name, device="cuda")
    together = SETTINGS.together(gpu)
    assert together is not None
    assert together.most(64, 96) > 4
    source = clips.clip(tmp_path / "in.mp4", frames=30, size=(96, 64))
    choices = {"codec": "ffv1", "pix_fmt": "bgr0", "stabilize": "off"}
    do(source, tmp_path / "one.mkv", gpu.enhance, None, **choices)
    do(source, tmp_path / "many.mkv", None, together, **choices)
    pairs = zip(*(frames_of(tmp_path / f"{n}.mkv", True)[1] for n in ("one", "many")), strict=True)
    for a, b in pairs:
        assert np.abs(a.astype(int) - b).max() <= 2
