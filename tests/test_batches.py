"""Batches: many pictures in one run, tensors that stay on their device, several devices, videos.

Nothing here needs a GPU but the tests marked ``cuda``: what is special to one runs on the CPU, with
stand-ins for the streams and recordings of CUDA.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import clips
import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, real_dark_photos
from test_engines import dark_scene
from torch.overrides import TorchFunctionMode

from llenhance import budget, engines, footage, load, segments
from llenhance.checkpoints import build, find
from llenhance.engines import lanes, pytorch
from llenhance.errors import ControlError, DeviceError, LLEnhanceError
from llenhance.jobs import Loading, Settings, Watch, run
from llenhance.methods import METHODS
from llenhance.pipelining import dispatch
from llenhance.plan import Job, plan
from llenhance.report import Report

NAMES = list(METHODS)
COMMAND = (sys.executable, "-m", "llenhance")
CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(not engines.cuda_devices(), reason="no NVIDIA GPU on this machine"),
]
WITH_BF16 = pytest.mark.skipif(
    not pytorch.cpu_has_bf16(), reason="this processor does not multiply in bf16"
)


@pytest.fixture(scope="module")
def opened():
    """An enhancer by method, engine and precision, opened once."""
    kept: dict[tuple[str, str, str], Any] = {}

    def get(name: str, engine: str = "onnx", precision: str = "fp32") -> Any:
        key = (name, engine, precision)
        if key not in kept:
            kept[key] = load(name, engine=engine, device="cpu", precision=precision)
        return kept[key]

    return get


def scenes(rng, count=3, size=(45, 70)):
    """Pictures of one size that differ in light, so that their whole-picture means do."""
    shares = np.linspace(0.3, 2.5, count)
    return [np.clip(dark_scene(*size, rng) * s, 0, 255).astype(np.uint8) for s in shares]


def psnr(one, other):
    return 10 * np.log10(1 / max(1e-12, float(np.mean((one - other) ** 2))))


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_each_of_a_batch_is_as_by_itself(opened, name, engine, rng):
    images = scenes(rng)
    alone = opened(name, engine)
    for scale in METHODS[name].scales:
        together = alone.enhance_batch(np.stack(images), scale=scale)
        assert together.shape == (3, 45 * scale, 70 * scale, 3)
        for image, out in zip(images, together, strict=True):
            assert np.abs(out.astype(int) - alone.enhance(image, scale=scale)).max() <= 1
        floats = [image.astype(np.float32) / 255 for image in images]
        for image, out in zip(floats, alone.enhance_batch(floats, scale=scale), strict=True):
            assert np.abs(out - alone.enhance(image, scale=scale)).max() < 1e-5


@pytest.mark.parametrize("name", ["dln", "neid"])
def test_whole_picture_means_are_of_each_picture(opened, name, rng):
    """A bright neighbour in the batch would change the gates, if they saw it."""
    dark, bright = scenes(rng, 2)
    one, other = opened(name), opened(name, "torch")
    for enhancer_ in (one, other):
        pairs = [enhancer_.enhance_batch([dark, also])[0] for also in (dark, bright)]
        assert np.abs(pairs[0].astype(int) - pairs[1]).max() <= 1


def test_a_list_of_anything_keeps_its_order(opened, rng):
    shapes = [(20, 31, 3), (8, 8), (20, 31, 3), (20, 31, 4), (1, 1, 3), (20, 31), (9, 5, 2)]
    images = [rng.integers(0, 60, shape).astype(np.uint8) for shape in shapes]
    images[2] = images[2].astype(np.uint16) * 257
    images.append(rng.random((20, 31, 3)).astype(np.float32) * 3)  # with highlights above 1
    for settings in ({}, {"strength": 0.4}, {"strength": 0.0}):
        alone = opened("lightweight")
        outs = alone.enhance_batch(images, **settings)
        assert isinstance(outs, list)
        for image, out in zip(images, outs, strict=True):
            expected = alone.enhance(image, **settings)
            assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
            top = 1 if out.dtype == np.float32 else np.iinfo(out.dtype).max
            limit = 1e-5 if top == 1 else 1
            assert np.abs(out.astype(np.float64) - expected).max() <= limit


def test_controls_and_strength_go_with_a_batch(opened, rng):
    images = scenes(rng, 2)
    residual = opened("residual")
    outs = residual.enhance_batch(images, alpha=1.7, strength=0.5)
    for image, out in zip(images, outs, strict=True):
        expected = residual.enhance(image, alpha=1.7, strength=0.5)
        assert np.abs(out.astype(int) - expected).max() <= 1
    with pytest.raises(ControlError, match="alpha"):
        opened("dln").enhance_batch(images, alpha=1.0)


def test_nothing_in_nothing_out(opened):
    neid = opened("neid")
    assert neid.enhance_batch([]) == []
    out = neid.enhance_batch(np.empty((0, 10, 12, 3), np.uint16), scale=2)
    assert (out.shape, out.dtype) == ((0, 20, 24, 3), np.uint16)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 6, 3), np.uint8),
        [np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6, 3), np.int64)],
        [np.zeros((4, 6, 3), np.uint8), "photo.jpg"],
        [torch.zeros(3, 4, 6)],
    ],
    ids=["one picture", "dtype", "name", "tensors in a list"],
)
def test_what_is_no_batch_is_refused_in_one_line(opened, frames):
    with pytest.raises(LLEnhanceError) as error:
        opened("lightweight").enhance_batch(frames)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_runs_are_bounded_by_memory_and_not_smaller(engine, rng, monkeypatch):
    alone = load("lightweight", engine=engine, device="cpu", precision="fp32")
    sizes = []
    real = type(alone.engine).run

    def run_(self, batch, *given, **named):
        sizes.append(len(batch))
        return real(self, batch, *given, **named)

    if engine == "torch":
        begin = pytorch.TorchEngine.begin

        def begin_(self, batch, *given, **named):
            sizes.append(len(batch))
            return begin(self, batch, *given, **named)

        monkeypatch.setattr(pytorch.TorchEngine, "begin", begin_)
    else:
        monkeypatch.setattr(type(alone.engine), "run", run_)
    images = [*scenes(rng, 7, (20, 30)), *scenes(rng, 2, (40, 30))]
    monkeypatch.setattr(budget, "WORKING_MEMORY", 3 * 20 * 30 * alone.budget._per_pixel)
    assert alone.budget.at_once(20, 30) == 3
    assert alone.budget.at_once(4000, 3000) == 1
    outs = alone.enhance_batch(images)
    assert sizes == [3, 3, 1, 1, 1]
    monkeypatch.undo()
    for image, out in zip(images, outs, strict=True):
        assert np.abs(out.astype(int) - alone.enhance(image)).max() <= 1


def test_a_batch_that_is_too_large_after_all_is_halved(opened, rng, monkeypatch):
    alone = load("lightweight", engine="onnx", device="cpu")
    sizes = []
    real = type(alone.engine).run

    def run_(self, batch, *given, **named):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate a lot")
        return real(self, batch, *given, **named)

    monkeypatch.setattr(type(alone.engine), "run", run_)
    images = scenes(rng, 7, (20, 30))
    outs = alone.enhance_batch(images)
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    for image, out in zip(images, outs, strict=True):
        assert np.abs(out.astype(int) - opened("lightweight").enhance(image)).max() <= 1


def test_a_batch_of_arrays_does_not_load_torch():
    code = (
        "import sys, numpy as np\n"
        "from llenhance import load\n"
        "e = load('lightweight', device='cpu', engine='onnx')\n"
        "out = e.enhance_batch(np.full((2, 9, 7, 3), 9, np.uint8))\n"
        "assert out.shape == (2, 9, 7, 3)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- tensors --------------------------------------------------------------------------------------


def as_tensor(images, dtype=torch.float32):
    planes = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return planes.contiguous() if dtype == torch.uint8 else planes.to(dtype).div(255).contiguous()


@pytest.mark.parametrize("size", [(45, 70), (1, 1), (32, 64), (3, 50)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_is_enhanced_as_an_array(opened, name, size, rng):
    images = scenes(rng, 2, size)
    alone = opened(name, "torch")
    for scale, strength in itertools.product(METHODS[name].scales, (1.0, 0.5)):
        settings = {"scale": scale, "strength": strength}
        out = alone.enhance_batch(as_tensor(images), **settings)
        assert out.shape == (2, 3, size[0] * scale, size[1] * scale)
        floats = np.stack(images).astype(np.float32) / 255
        expected = alone.enhance_batch(floats, **settings)
        assert np.abs(out.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-5
        packed = alone.enhance_batch(as_tensor(images, torch.uint8), **settings)
        assert packed.dtype == torch.uint8
        expected = alone.enhance_batch(images, **settings)
        levels = packed.permute(0, 2, 3, 1).numpy().astype(int)
        assert max(np.abs(a - b).max() for a, b in zip(levels, expected, strict=True)) <= 1


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtype_and_layout_of_a_tensor_come_back(opened, dtype, layout, rng):
    alone = opened("lightweight", "torch")
    given = as_tensor(scenes(rng), dtype).contiguous(memory_format=layout)
    out = alone.enhance_batch(given)
    assert (out.dtype, out.shape, out.device) == (dtype, given.shape, given.device)
    assert out.is_contiguous(memory_format=layout)
    exact = alone.enhance_batch(given.double() / (255 if dtype == torch.uint8 else 1))
    top = 255 if dtype == torch.uint8 else 1
    off = {torch.uint8: 0.51 / 255, torch.float16: 6e-4, torch.bfloat16: 5e-3}.get(dtype, 1e-5)
    assert (out.double() / top - exact).abs().max() <= off


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_is_not_copied_to_the_host(name):
    """On torch's device without data, every look at a value from the host raises."""
    method = METHODS[name]
    engine = pytorch.TorchEngine(method, find(method), "cpu", 1, "fp32")
    engine.network.to("meta")
    controls = {control.name: control.default for control in method.controls}
    for dtype in (torch.uint8, torch.float32):
        given = torch.zeros((3, 3, 37, 50), dtype=dtype, device="meta")
        for scale in method.scales:
            out = engine.on_device(given, scale, controls, 0.5, lambda *_: 2)
            assert out.device.type == "meta"
            assert out.shape == (3, 3, 37 * scale, 50 * scale)
        with pytest.raises((NotImplementedError, RuntimeError)):
            out.cpu()


def test_a_tensor_goes_on_into_a_network_that_learns(opened, rng):
    out = opened("lightweight", "torch").enhance_batch(as_tensor(scenes(rng)))
    detector = torch.nn.Conv2d(3, 2, 3)
    detector(out).sum().backward()
    assert detector.weight.grad is not None
    assert not out.requires_grad


def test_values_beyond_the_range_are_clipped(opened, rng):
    alone = opened("lightweight", "torch")
    given = as_tensor(scenes(rng)) * 8 - 0.1
    assert given.max() > 1
    assert given.min() < 0
    assert torch.equal(alone.enhance_batch(given), alone.enhance_batch(given.clamp(0, 1)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.zeros(3, 8, 8), "N, 3, height, width"),
        (torch.zeros(1, 4, 8, 8), "N, 3, height, width"),
        (torch.zeros(1, 3, 0, 8), "N, 3, height, width"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int32), "float or uint8"),
        (torch.zeros(1, 3, 8, 8, device="meta"), "on meta, the network is on cpu"),
    ],
    ids=["three", "channels", "empty", "dtype", "device"],
)
def test_a_tensor_that_does_not_fit_is_refused_in_one_line(opened, given, words):
    with pytest.raises(ControlError, match=words) as error:
        opened("lightweight", "torch").enhance_batch(given)
    assert "\n" not in str(error.value)
    with pytest.raises(ControlError, match="needs the torch engine"):
        opened("lightweight", "onnx").enhance_batch(given)


def test_no_pictures_in_a_tensor(opened):
    out = opened("neid", "torch").enhance_batch(torch.zeros(0, 3, 5, 6), scale=2)
    assert out.shape == (0, 3, 10, 12)


@pytest.mark.parametrize("length", range(1, 40))
def test_reflection_is_numpys(length):
    planes = torch.arange(length * 3.0).reshape(1, 1, length, 3)
    padded, top, left = pytorch.reflect(planes, 16)
    assert (top, left) == (-length % 16 // 2, 6)
    around = [(top, -length % 16 - top), (left, 13 - left)]
    expected = np.pad(planes.numpy()[0, 0], around, "reflect")
    np.testing.assert_array_equal(padded.numpy()[0, 0], expected)


# --- precision ------------------------------------------------------------------------------------


def lowered(name, dtype):
    network = build(METHODS[name], find(METHODS[name]))
    return network, pytorch.lower(network, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_kept_away_from_the_picture(name):
    network, any_lowered = lowered(name, torch.bfloat16)
    weighed = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    picture = [m for m in weighed if m.in_channels <= 4 or m.out_channels in (3, 12)]
    assert len(picture) >= 2
    assert all(m.weight.dtype == torch.float32 for m in picture)
    reduced = sum(m.weight.numel() for m in weighed if m.weight.dtype == torch.bfloat16)
    assert any_lowered == (reduced > 0) == (name != "lightweight")
    if any_lowered:  # the bulk of the network
        assert reduced > 0.9 * sum(m.weight.numel() for m in weighed)


@WITH_BF16
@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_within_45_db_of_fp32(opened, name, rng):
    wide, narrow = opened(name, "torch"), opened(name, "torch", "auto")
    assert narrow.engine.precision == ("fp32" if name == "lightweight" else "bf16")
    images = [image.astype(np.float32) / 255 for image in scenes(rng, 2, (96, 128))]
    for path in real_dark_photos(2):
        photo = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)[:150, :200]
        images.append(photo.astype(np.float32) / 255)
    for image in images:
        for scale in METHODS[name].scales:
            one, other = (e.enhance(image, scale=scale) for e in (wide, narrow))
            assert psnr(one, other) > 45
            assert name == "lightweight" or not np.array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_fp16_is_within_60_db_of_fp32(name, rng):
    """The layers themselves in fp16; slow on most processors, hence the small picture."""
    exact = pytorch.TorchEngine(METHODS[name], find(METHODS[name]), "cpu", 1, "fp32")
    rough = pytorch.TorchEngine(METHODS[name], find(METHODS[name]), "cpu", 1, "fp32")
    assert pytorch.lower(rough.network, torch.float16)
    rough.precision = "fp16"
    batch = np.stack(scenes(rng, 2, (32, 64))).astype(np.float32) / 255
    controls = {control.name: control.default for control in METHODS[name].controls}
    (one, *_), (other, *_) = (e.run(batch, 1, controls) for e in (exact, rough))
    assert other.dtype == np.float32
    assert psnr(one, other) > 60
    assert not np.array_equal(one, other)


@WITH_BF16
@pytest.mark.parametrize("name", ["dln", "neid"])
def test_tiles_in_reduced_precision_give_the_whole(opened, name, rng):
    """What is measured of the whole picture is measured in fp32."""
    narrow = opened(name, "torch", "auto")
    image = np.clip(dark_scene(256, 1216, rng), 0, 255).astype(np.float32) / 255
    image = image[:, :352] if name == "dln" else image
    whole = narrow.enhance(image, tile="off")
    tiled = narrow.enhance(image, tile=128)
    assert np.quantile(np.abs(whole - tiled), 0.999) < 1 / 255


def test_precision_is_what_the_device_has(monkeypatch):
    dln = METHODS["dln"]
    monkeypatch.setattr(pytorch, "cpu_has_bf16", lambda: False)
    assert pytorch._precision("cpu", "auto", dln) == "fp32"
    for wanted in ("bf16", "fp16"):
        with pytest.raises(DeviceError, match="emulates") as error:
            load("dln", engine="torch", device="cpu", precision=wanted)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(pytorch, "cpu_has_bf16", lambda: True)
    assert pytorch._precision("cpu", "auto", dln) == "bf16"
    with pytest.raises(DeviceError, match="no layer of lightweight"):
        load("lightweight", engine="torch", device="cpu", precision="bf16")
    for version, auto, refused in (
        ((6, 1), "fp32", {"fp16", "bf16"}),
        ((7, 5), "fp16", {"bf16"}),
        ((9, 0), "fp16", set()),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, v=version: v)
        assert pytorch._precision("cuda:0", "auto", dln) == auto
        for wanted in ("fp16", "bf16", "fp32"):
            if wanted in refused:
                with pytest.raises(DeviceError, match="emulates"):
                    pytorch._precision("cuda:0", wanted, dln)
            else:
                assert pytorch._precision("cuda:0", wanted, dln) == wanted


# --- copies and recordings, with stand-ins for CUDA -----------------------------------------------


@pytest.fixture
def like_cuda(monkeypatch):
    """torch's streams and events of the CPU, which do nothing, in the place of CUDA's; the memory
    is not pinned. What they are asked for is noted."""
    asked = []
    cpu = torch.cpu

    class Event(cpu.Event):
        def __init__(self, blocking=False):
            super().__init__()
            assert blocking

        def synchronize(self):
            asked.append("synchronize")

    monkeypatch.setattr(torch.cuda, "Stream", lambda _=None: cpu.Stream())
    monkeypatch.setattr(torch.cuda, "stream", cpu.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: cpu.Stream())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: asked.append("record_stream"))
    real = torch.empty

    def empty(*shape, **named):
        asked.append("pinned" if named.pop("pin_memory", False) else "empty")
        return real(*shape, **named)

    monkeypatch.setattr(torch, "empty", empty)
    return asked


def test_copies_through_streams_are_copies(like_cuda, rng):
    ways = lanes.CudaLanes("cpu")
    batch = rng.integers(0, 255, (2, 5, 7, 3)).astype(np.uint8)
    there = ways.up(torch.from_numpy(batch))
    assert there.data_ptr() != batch.ctypes.data
    wait = ways.down([there, there.float()])
    assert "synchronize" not in like_cuda  # it has begun, and nobody has waited
    first, second = wait()
    assert {"synchronize", "record_stream", "pinned"} <= set(like_cuda)
    np.testing.assert_array_equal(first, batch)
    np.testing.assert_array_equal(second, batch)
    assert (first.dtype, second.dtype) == (np.uint8, np.float32)


@pytest.fixture
def recorded(monkeypatch):
    """``record`` with the rules of a CUDA graph: fixed places for what goes in and comes out."""
    made = []

    def record(work, given):
        static = given.clone()
        outputs = work(static)
        made.append(tuple(given.shape))

        def replay(new):
            static.copy_(new)
            for place, value in zip(outputs, work(static), strict=True):
                place.copy_(value)
            return [place.clone() for place in outputs]

        return replay

    monkeypatch.setattr(lanes, "record", record)
    return made


def test_a_run_is_recorded_when_it_comes_again(recorded):
    kept = lanes.Recordings(2)
    calls = []

    def work(x):
        calls.append(tuple(x.shape))
        return [x + 1, x * 2]

    def ask(size):
        x = torch.rand(size)
        for given, expected in zip(kept(size, work, x), (x + 1, x * 2), strict=True):
            assert torch.equal(given, expected)

    for size in (3, 3, 3, 4, 3, 4, 4):
        ask(size)
    assert recorded == [(3,), (4,)]  # each at its second time in a row, or later
    ask(3)
    for size in (5, 5):
        ask(size)  # the third one: 4 was used longest ago
    assert list(kept.kept) == [3, 5]
    kept.clear()
    ask(3)
    assert recorded == [(3,), (4,), (5,)]


def test_what_cannot_be_recorded_runs_as_it_is(monkeypatch):
    """On this machine nothing can be, unless there is a GPU."""

    class Refuses:
        def __init__(self, *_, **__):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "graph", Refuses)

    def work(x):
        return [x]

    assert lanes.record(work, torch.zeros(2)) is work


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_network_keeps_it_from_being_recorded(name):
    """A look at a value, or a tensor made on the host, would end a recording."""
    called = set()

    class Calls(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            called.add(getattr(function, "__name__", str(function)))
            return function(*args, **(kwargs or {}))

    method = METHODS[name]
    engine = pytorch.TorchEngine(method, find(method), "cpu", 1, "fp32")
    pytorch.lower(engine.network, torch.float16)
    engine.network.to("meta")
    controls = {control.name: control.default for control in method.controls}
    for scale in method.scales:
        with Calls(), torch.inference_mode():
            engine._through(torch.zeros((2, 3, 64, 96), device="meta"), scale, controls)
    assert {"conv2d", "clamp"} <= called
    assert not called & {
        *("tensor", "as_tensor", "from_numpy", "asarray"),
        *("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "nonzero"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_of_batches_through_recordings_and_streams(
    opened, name, like_cuda, recorded, rng, monkeypatch
):
    """All that a GPU is given to do, in its order, with the next batch begun before one ends."""
    alone = load(name, engine="torch", device="cpu", precision="fp32")
    engine = alone.engine
    engine.lanes = lanes.CudaLanes("cpu")
    monkeypatch.setattr(type(alone), "_overlaps", property(lambda _: True))
    taken = []

    def batches():
        for number, share in enumerate((1, 0.5, 2, 0.8, 1.5)):
            taken.append(number)
            yield [(image * share).astype(np.uint8) for image in scenes(rng, 2, (33, 40))]

    settings = {"alpha": 0.5} if name == "residual" else {}
    given, outs = [], []
    source, copy = itertools.tee(batches())
    for number, out in enumerate(alone.enhance_batches(source, **settings)):
        assert len(taken) == min(5, number + 2)  # one ahead, not more
        outs.append(out)
    given = list(copy)
    assert len(recorded) == 1
    monkeypatch.undo()
    for images, found in zip(given, outs, strict=True):
        for image, out in zip(images, found, strict=True):
            expected = opened(name, "torch").enhance(image, **settings)
            assert np.abs(out.astype(int) - expected).max() <= 1


# --- several devices ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("cuda:0,cuda:2", "cuda:2: this machine has 2"),
        ("cuda:0,cuda:0", "twice"),
        ("cuda,cuda:0", "twice"),
        ("cuda:0,cpu", "cpu is none"),
        ("cuda:0,", "no device ''"),
        ("auto,cuda:1", "no device 'auto'"),
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
    run(jobs, first, report, SETTINGS, {}, None, Watch(), others=[second])
    assert report.failures == []
    assert sorted(report.order) == [f"{n:02}.png" for n in range(12)]
    assert set(worked) == {id(first["lightweight"]), id(second["lightweight"])}
    assert sum(worked.values()) == 12

    monkeypatch.undo()
    single = Listening()
    run(planned(folder, output=folder.parent / "one"), first, single, SETTINGS, {}, None, Watch())
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
    run(planned(folder, models), first, report, SETTINGS, {}, None, Watch(), others=[second])
    assert report.failures == []
    assert sorted(report.order) == sorted(f"{n:02}.png" for n in range(12) for _ in models)


def test_a_bad_picture_does_not_stop_the_devices(folder):
    (folder / "05.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    first, second = pair_of_cpus()
    report = Listening()
    run(planned(folder), first, report, SETTINGS, {}, None, Watch(), others=[second])
    assert [Path(source).name for source, _ in report.failures] == ["05.png"]
    assert len(report.order) == 11


def test_fail_fast_stops_both_devices(folder):
    for number in (2, 3):
        (folder / f"{number:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    first, second = pair_of_cpus()
    report = Listening(fail_fast=True)
    run(planned(folder), first, report, SETTINGS, {}, None, Watch(), others=[second])
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
        *(planned(folder), first, report, SETTINGS, {}, None, Watch()),
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
        run(planned(folder), first, report, SETTINGS, {}, None, Watch(), others=[second])
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


# --- videos ---------------------------------------------------------------------------------------


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


# --- the benchmark --------------------------------------------------------------------------------


def benchmark(*given):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, given)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_without_a_gpu_says_so(tmp_path):
    assert benchmark("--json", tmp_path / "gpu.json") == "not measured: no GPU\n"
    assert not (tmp_path / "gpu.json").exists()


def test_the_benchmark_rehearsed_on_the_processor(tmp_path, monkeypatch, recorded):
    """With the stand-in for recordings, so that a row has all but what a compiler makes."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu

    monkeypatch.setattr(lanes.Lanes, "records", True)
    monkeypatch.setattr(gpu, "TARGETS", {"lightweight": 1e-9})
    monkeypatch.setattr(gpu, "TARGET_SIZE", (48, 40))
    result = gpu.measure(["lightweight", "neid"], [(48, 40)], "cpu", quick=True)
    assert len(recorded) >= 4  # the network alone and the stream, twice
    assert result["copy"] > 0
    for found, name in zip(result["rows"], ["lightweight", "neid"], strict=True):
        assert (found["method"], found["size"], found["frames"]) == (name, [48, 40], 2)
        assert 0 < found["share"] < 2
        assert found["fps"] == pytest.approx(1 / min(found["eager"], found["recorded"]))
        assert found["bytes"] > 48 * 40 * 3 * 4 * 2
        assert found["latency"]["p50"] <= found["latency"]["p99"]
        assert found["stream_fps"] > 0
    assert result["rows"][0]["met"] is True
    assert "target" not in result["rows"][1]
    assert json.loads(json.dumps(result)) == result
    text = " ".join(str(cell) for row in result["rows"] for cell in gpu._cells(row))
    assert "0: met" in text
    assert len(list(gpu.tables(result))) == 2


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def on_gpu(request):
    return load(request.param, device="cuda"), load(request.param, device="cpu", engine="torch")


class TestOnGpu:
    pytestmark = CUDA

    def test_the_reduced_precision_is_within_45_db(self, on_gpu, rng):
        gpu, _ = on_gpu
        assert gpu.engine.precision == "fp16"
        exact = load(gpu.method.name, device="cpu", engine="torch", precision="fp32")
        for image in scenes(rng, 3, (200, 300)):
            floats = image.astype(np.float32) / 255
            assert psnr(gpu.enhance(floats), exact.enhance(floats)) > 45

    def test_batches_streams_and_recordings_agree(self, on_gpu, rng):
        gpu, _ = on_gpu
        batches = [scenes(rng, 3, (64, 96)) for _ in range(6)]
        outs = list(gpu.enhance_batches(batches))
        assert len(gpu.engine.recordings.kept) == 1
        for images, found in zip(batches, outs, strict=True):
            for image, out in zip(images, found, strict=True):
                assert np.abs(out.astype(int) - gpu.enhance(image)).max() <= 2

    def test_the_network_itself_was_recorded(self, on_gpu, rng):
        """Not run as it is because it does what a recording must not."""
        gpu, _ = on_gpu
        for _ in range(3):
            list(gpu.enhance_batches([scenes(rng, 2, (64, 96))]))
        for kept in gpu.engine.recordings.kept.values():
            assert kept.__qualname__.startswith("record.")

    def test_tensors_stay_there(self, on_gpu, rng):
        gpu, _ = on_gpu
        images = scenes(rng, 3, (61, 90))
        given = as_tensor(images, torch.uint8).cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = gpu.enhance_batch(given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert out.device == given.device
        for image, found in zip(images, out.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
            assert np.abs(found.astype(int) - gpu.enhance(image)).max() <= 2

    def test_videos_go_in_batches(self, tmp_path, on_gpu):
        gpu, _ = on_gpu
        together = SETTINGS.together(gpu)
        assert together is not None
        assert together.most(64, 96) > 4
        source = clips.clip(tmp_path / "in.mp4", frames=30, size=(96, 64))
        choices = {"codec": "ffv1", "pix_fmt": "bgr0", "stabilize": "off"}
        do(source, tmp_path / "one.mkv", gpu.enhance, None, **choices)
        do(source, tmp_path / "many.mkv", None, together, **choices)
        pairs = zip(
            *(frames_of(tmp_path / f"{n}.mkv", True)[1] for n in ("one", "many")), strict=True
        )
        for a, b in pairs:
            assert np.abs(a.astype(int) - b).max() <= 2
