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
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, real_dark_photos
from test_engines import dark_scene
from torch.overrides import TorchFunctionMode

from llenhance import budget, engines, load
from llenhance.checkpoints import build, find
from llenhance.engines import lanes, pytorch
from llenhance.errors import ControlError, DeviceError, LLEnhanceError
from llenhance.methods import METHODS

NAMES = list(METHODS)
CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(not engines.cuda_devices(), reason="no NVIDIA GPU on this machine"),
]
WITH_BF16 = pytest.mark.skipif(
    not pytorch.cpu_has_bf16(), reason="this processor does not multiply in bf16"
)


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
    assert sizes == [7, 3, 1, 2, 2, 2]  # and 4 are not tried any more
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
        with pytest.raises(DeviceError, match="has none of its own") as error:
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
                with pytest.raises(DeviceError, match="has none of its own"):
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


def test_threads_take_turns_with_a_recording(monkeypatch):
    """There is one place for what goes in, and torch lets other threads in between."""

    def record(work, given):
        static = given.clone()

        def replay(new):
            static.copy_(new)
            time.sleep(0.002)
            return [result.clone() for result in work(static)]

        return replay

    monkeypatch.setattr(lanes, "record", record)
    kept = lanes.Recordings(2)

    def ask(number):
        return kept("key", lambda x: [x + 1], torch.full((3,), float(number)))[0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(40)))
    assert [result[0].item() for result in found] == [number + 1 for number in range(40)]


def test_what_a_caller_set_for_his_own_networks_changes_nothing():
    picture = dark_scene(40, 30, np.random.default_rng(0))
    enhancer = load("residual", device="cpu", engine="torch", precision="fp32")
    expected = enhancer.enhance(picture)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(enhancer.enhance(picture), expected)


def test_a_gpu_that_takes_a_network_and_cannot_compute_it_is_none(monkeypatch):
    """torch is built for some GPUs, and finds others too: --device auto then goes on on the CPU."""
    method = METHODS["dln"]  # without statistics of batches, which tell of meta tensors
    real = torch.nn.Module.to
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: real(self, "meta"))
    monkeypatch.setattr(torch, "zeros", lambda *shape, **_: torch.ones(*shape, device="meta"))
    with pytest.raises(DeviceError, match="device mps: ") as error:
        pytorch.TorchEngine(method, find(method), "mps", 1, "fp32")
    assert "\n" not in str(error.value)


def test_what_cannot_be_recorded_runs_as_it_is(monkeypatch):
    """On this machine nothing can be, unless there is a GPU."""

    class Refuses:
        def __init__(self, *_, **__):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "graph", Refuses)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)

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
