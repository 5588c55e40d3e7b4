"""Engines: the same picture from each, and honest about where they run."""

import sys

import cv2
import numpy as np
import pytest
from conftest import real_dark_photos

from llenhance import engines, load
from llenhance.checkpoints import find
from llenhance.engines import onnx as onnx_engine
from llenhance.engines import openvino as openvino_engine
from llenhance.errors import DeviceError, WeightsError
from llenhance.methods import METHODS

SIZES = [(601, 399), (1, 1), (3, 200), (64, 96), (33, 17)]


ON_CPU = engines.KINDS[1:]


@pytest.fixture(scope="module")
def every():
    """Every engine of a method in fp32, opened once; torch, which the others follow, is first."""
    opened = {}

    def get(name, weights=None):
        if (name, weights) not in opened:
            kinds = sorted(ON_CPU, key=lambda kind: kind != "torch")
            opened[name, weights] = [
                load(name, engine=kind, device="cpu", precision="fp32", weights=weights)
                for kind in kinds
            ]
        return opened[name, weights]

    return get


def dark_scene(height, width, rng):
    ramp = np.linspace(0, 40, width)[None, :, None] + np.linspace(0, 20, height)[:, None, None]
    return np.clip(ramp * [1, 0.8, 0.6] + rng.normal(0, 3, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


def variants(method):
    """Every control at its ends and every scale."""
    yield {}
    for control in method.controls:
        yield {control.name: control.low}
        yield {control.name: control.high}
    for scale in method.scales[1:]:
        yield {"scale": scale}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_engines_agree(every, method, size, rng):
    image = dark_scene(*size, rng).astype(np.float32) / 255
    for settings in variants(method):
        first, *others = (enhancer.enhance(image, **settings) for enhancer in every(method.name))
        scale = settings.get("scale", 1)
        assert first.shape == (size[0] * scale, size[1] * scale, 3)
        for other in others:
            assert other.shape == first.shape
            assert np.abs(first - other).max() < 1 / 255


def test_the_mild_set_agrees_and_leaves_bright_pictures_nearly_alone(every, rng):
    image = (96 + 2 * dark_scene(60, 90, rng)).astype(np.float32) / 255
    first, *others = (e.enhance(image) for e in every("lightweight", "mild"))
    for other in others:
        assert np.abs(first - other).max() < 1 / 255
    general = every("lightweight")[0].enhance(image)
    assert 2 * np.abs(first - image).mean() < np.abs(general - image).mean()
    assert (first >= image - 1e-6).all()


@pytest.fixture(scope="module")
def photos():
    return [cv2.imread(str(path))[..., ::-1] for path in real_dark_photos(40)]


@pytest.mark.skipif(not real_dark_photos(1), reason="no real photos beside this checkout")
@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_engines_agree_on_real_photos(every, photos, method):
    for height, width in [*SIZES, (251, 301)]:
        wide_enough = [p for p in photos if p.shape[0] >= height and p.shape[1] >= width]
        photo = wide_enough[height % len(wide_enough)]
        image = photo[-height:, -width:].astype(np.float32) / 255
        for settings in variants(method):
            first, *others = (e.enhance(image, **settings) for e in every(method.name))
            for other in others:
                assert np.abs(first - other).max() < 1 / 255


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("engine", ON_CPU)
def test_depths_agree(engine, dtype, rng):
    """One picture in three depths comes out the same within their rounding."""
    enhancer = load("lightweight", engine=engine, device="cpu", precision="fp32")
    image = dark_scene(40, 50, rng)
    exact = enhancer.enhance(image.astype(np.float32) / 255)
    peak = 1 if dtype == np.float32 else np.iinfo(dtype).max
    given = (image.astype(np.float64) / 255 * peak).astype(dtype)
    if dtype == np.uint16:
        given = image.astype(np.uint16) * 257
    out = enhancer.enhance(given)
    assert out.dtype == dtype
    assert np.abs(out / peak - exact).max() <= 0.51 / peak + 1e-6


def test_planes_round_and_do_not_truncate():
    planes = np.full((1, 3, 1, 1), 0.6 / 255, np.float32)
    assert onnx_engine.from_planes(planes, np.dtype(np.uint8)).max() == 1


def test_every_uint8_value_survives_the_round_trip():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    for dtype, picture in ((np.uint8, values), (np.uint16, values.astype(np.uint16) * 257)):
        planes = onnx_engine.to_planes(picture)
        assert planes.max() <= 1
        np.testing.assert_array_equal(onnx_engine.from_planes(planes, np.dtype(dtype)), picture)


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", "", "cuda:99", "CUDA"])
def test_a_device_that_is_none_is_refused(device):
    with pytest.raises(DeviceError) as error:
        load("lightweight", device=device)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", engines.KINDS)
def test_a_gpu_that_is_not_there_is_refused(engine, monkeypatch):
    monkeypatch.setattr(engines, "cuda_devices", lambda: 0)
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        load("lightweight", device="cuda", engine=engine)


def test_a_gpu_that_the_driver_sees_but_the_engine_cannot_use_is_refused(monkeypatch):
    """The driver reports one GPU more than there are: each engine must notice by itself."""
    real = engines.cuda_devices()
    monkeypatch.setattr(engines, "cuda_devices", lambda: real + 1)
    for engine in ON_CPU:
        with pytest.raises(DeviceError) as error:
            load("lightweight", device=f"cuda:{real}", engine=engine)
        assert "\n" not in str(error.value)
    if not real:  # and auto falls back, and says why
        enhancer = load("lightweight", device="auto")
        assert enhancer.device == "cpu"
        assert "cuda" in enhancer.note.lower()


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_auto_on_a_gpu_is_torch_and_onnx_where_torch_has_no_cuda(device, monkeypatch):
    tried = []

    def opens(works):
        def open_(method, weights, kind, device, threads, precision):
            tried.append(f"{kind} {device.partition(':')[0]}")
            if tried[-1] not in works:
                raise DeviceError(f"{kind} has no {device}")
            return kind

        monkeypatch.setattr(engines, "_open", open_)
        tried.clear()
        weights = find(METHODS["lightweight"])
        return engines.open_engine(METHODS["lightweight"], weights, "auto", device, 1, "auto")[0]

    monkeypatch.setattr(engines, "cuda_devices", lambda: 1)
    monkeypatch.setattr(engines.sys, "platform", "linux")
    assert opens(["torch cuda", "onnx cuda"]) == "torch"
    assert tried == ["torch cuda"]
    assert opens(["onnx cuda", "openvino cpu"]) == "onnx"
    assert tried == ["torch cuda", "onnx cuda"]
    if device == "cuda":
        with pytest.raises(DeviceError, match="torch has no cuda"):
            opens(["openvino cpu"])
    else:
        assert opens(["openvino cpu"]) == "openvino"


def test_auto_without_gpu_is_openvino_on_the_cpu(monkeypatch):
    monkeypatch.setattr(engines, "cuda_devices", lambda: 0)
    monkeypatch.setattr(engines.sys, "platform", "linux")
    enhancer = load("lightweight")
    assert (enhancer.engine.name, enhancer.device) == ("openvino", "cpu")
    assert enhancer.note == "no GPU found"


def test_auto_without_openvino_is_onnx_on_the_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    openvino_engine.core.cache_clear()
    openvino_engine.native_precisions.cache_clear()
    enhancer = load("lightweight", device="cpu")
    assert (enhancer.engine.name, enhancer.engine.precision) == ("onnx", "fp32")
    with pytest.raises(DeviceError, match="engine openvino: cannot be loaded"):
        load("lightweight", device="cpu", engine="openvino")


def test_weights_without_a_graph_run_on_torch(tmp_path):
    weights = find(METHODS["lightweight"])
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes(weights.path.read_bytes())
    assert load("lightweight", weights=copy, device="cpu").engine.name == "torch"
    for engine in ("openvino", "onnx"):
        with pytest.raises(WeightsError, match="no graph beside the weights"):
            load("lightweight", weights=copy, device="cpu", engine=engine)


def test_a_graph_of_other_weights_is_refused(tmp_path):
    weights = find(METHODS["lightweight"])
    copy = tmp_path / "lightweight.safetensors"
    data = bytearray(weights.path.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    (tmp_path / "lightweight.onnx").write_bytes(
        weights.graph(METHODS["lightweight"], 1).read_bytes()
    )
    for engine in ("openvino", "onnx"):
        with pytest.raises(WeightsError, match="made for other weights"):
            load("lightweight", weights=copy, device="cpu", engine=engine)


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_a_damaged_graph_is_refused_in_one_line(engine, tmp_path):
    weights = find(METHODS["lightweight"])
    graph = weights.graph(METHODS["lightweight"], 1).read_bytes()
    (tmp_path / "mine.safetensors").write_bytes(weights.path.read_bytes())
    for damaged in (b"", graph[: len(graph) // 2], b"not a graph"):
        (tmp_path / "mine.onnx").write_bytes(damaged)
        with pytest.raises(WeightsError) as error:
            load("lightweight", weights=tmp_path / "mine.safetensors", engine=engine, device="cpu")
        assert str(error.value).startswith(str(tmp_path / "mine.onnx"))
        assert "\n" not in str(error.value)


def test_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert engines.available_threads() == 3
    for value in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert engines.available_threads() >= 1
        assert engines.available_threads() <= (engines.os.cpu_count() or 1)


@pytest.mark.cuda
@pytest.mark.skipif(not engines.cuda_devices(), reason="no NVIDIA GPU on this machine")
@pytest.mark.parametrize("engine", ["torch", "onnx"])
@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_gpu_agrees_with_cpu(method, engine, rng):
    image = dark_scene(133, 201, rng).astype(np.float32) / 255
    try:
        gpu = load(method.name, device="cuda", engine=engine, precision="fp32")
    except DeviceError as error:
        if engine == "torch":
            raise
        pytest.skip(str(error))  # no CUDA libraries of ONNX Runtime's own version
    assert gpu.device.startswith("cuda")
    for settings in variants(method):
        a = gpu.enhance(image, **settings)
        cpu = load(method.name, device="cpu", engine="torch", precision="fp32")
        b = cpu.enhance(image, **settings)
        assert np.abs(a - b).max() < 1 / 255
