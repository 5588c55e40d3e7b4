"""The OpenVINO engine: nothing is sent, precisions keep their bounds, memory stays bounded."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from llenhance import load, pixels
from llenhance.engines import columns
from llenhance.engines import openvino as engine
from llenhance.engines.rewrites import with_pixels
from llenhance.errors import DeviceError
from llenhance.methods import METHODS

REDUCED = [p for p in engine.native_precisions() if p != "fp32"]


def opened(name, **settings):
    return load(name, engine="openvino", device="cpu", **settings)


def dark_scene(height, width, rng):
    """Light from a lamp, a dark corner, edges and noise; uint8."""
    y, x = np.mgrid[:height, :width]
    light = 120 * np.exp(-((y - height / 3) ** 2 + (x - width / 4) ** 2) / (height * width / 30))
    edges = 12 * (((x // 23) + (y // 17)) % 2)
    noisy = (light + edges + 6)[..., None] * [1, 0.85, 0.6] + rng.normal(0, 2, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


# --- nothing is sent ------------------------------------------------------------------------------

COUNTS_USERS = """
import json, os
class Telemetry:
    def __init__(self, *a, **k): pass
    def send_event(self, *a, **k): open(os.environ["SENT"], "a").write(json.dumps(a))
"""


def python(code, **environment):
    """What a fresh interpreter prints, outside continuous integration as far as it can tell."""
    given = {k: v for k, v in os.environ.items() if k not in ("CI", "GITHUB_ACTIONS", "TF_BUILD")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=given | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_users_are_not_counted(tmp_path):
    """A stand-in for the package that sends: openvino alone uses it, through us it does not."""
    package = tmp_path / "site" / "openvino_telemetry"
    (package / "backend").mkdir(parents=True)
    (package / "__init__.py").write_text(COUNTS_USERS)
    (package / "backend" / "__init__.py").write_text("backend_ga4 = None")
    sent = tmp_path / "sent"
    environment = {"PYTHONPATH": str(package.parent), "SENT": str(sent), "HOME": str(tmp_path)}
    code = "import llenhance; llenhance.load('lightweight', engine='openvino', device='cpu')"
    python(code, **environment)
    assert not sent.exists()
    python("import openvino", **environment)
    assert "import" in sent.read_text(), "openvino no longer counts by this package: look anew"


def test_no_file_no_thread_and_no_socket(tmp_path):
    """With the package as it is installed, in a home that nobody has said yes or no in."""
    code = """
import json, sys, threading
seen = []
sys.addaudithook(lambda event, args: event.startswith("socket.") and seen.append(event))
import numpy as np, llenhance
enhancer = llenhance.load("lightweight", engine="openvino", device="cpu")
enhancer.enhance(np.full((20, 30, 3), 9, np.uint8))
telemetry = [m for m in sys.modules if m.startswith("openvino_telemetry") and sys.modules[m]]
print(json.dumps([seen, [t.name for t in threading.enumerate()], telemetry]))
"""
    sockets, threads, telemetry = json.loads(python(code, HOME=str(tmp_path)))
    assert (sockets, threads, telemetry) == ([], ["MainThread"], [])
    assert list(tmp_path.iterdir()) == []


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.skipif(not REDUCED, reason="this processor has fp32 alone")
def test_the_command_loads_neither_torch_nor_the_converter_of_models(tmp_path):
    cv2.imwrite(str(tmp_path / "dark.png"), np.full((20, 30, 3), 9, np.uint8))
    code = (
        "import sys; sys.argv = ['llenhance', 'dark.png', '-m', 'lightweight', '-o', 'out.png']\n"
        "sys.argv += ['--engine', 'openvino', '--device', 'cpu', '-q']\n"
        "from llenhance.cli import main\n"
        "try: main()\n"
        "except SystemExit as error: assert error.code == 0\n"
        "loaded = {name for name, module in sys.modules.items() if module is not None}\n"
        "print('openvino' in loaded, {'torch', 'openvino.tools.ovc'} & loaded)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["True", "set()"]


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_a_reduced_precision_stays_within_45_db(method, rng):
    image = dark_scene(203, 301, rng)
    exact = opened(method.name, precision="fp32").enhance(image.astype(np.float32) / 255)
    for precision in set(REDUCED) & set(method.reduced):
        enhancer = opened(method.name, precision=precision)
        assert enhancer.engine.precision == precision
        for given, peak in ((image, 255), (image.astype(np.float32) / 255, 1)):
            error = enhancer.enhance(given) / peak - exact
            assert 0 < np.mean(np.square(error, dtype=np.float64)) < 10**-4.5


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_auto_is_the_fastest_precision_that_is_borne(method, monkeypatch):
    for native in (("fp32",), ("bf16", "fp32"), ("fp16", "fp32")):
        monkeypatch.setattr(engine, "native_precisions", lambda native=native: native)
        chosen = opened(method.name).engine.precision
        assert chosen == (native[0] if native[0] in method.reduced else "fp32")


@pytest.mark.parametrize("precision", ["fp32", *REDUCED])
def test_what_is_compiled_is_what_is_said(precision):
    enhancer = opened("lightweight", precision=precision, threads=1)
    enhancer.enhance(np.full((20, 30, 3), 9, np.uint8))
    (request,) = enhancer.engine.anysize.values()
    compiled = request.get_compiled_model()
    asked = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    assert asked == engine.TYPES[precision]
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_a_precision_that_the_processor_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(engine, "native_precisions", lambda: ("fp32",))
    for kind in ("openvino", "auto"):
        with pytest.raises(DeviceError, match="precision bf16: this processor has no bf16"):
            load("lightweight", engine=kind, device="cpu", precision="bf16")
    with pytest.raises(DeviceError, match="precision bf16: --engine onnx has fp32 alone"):
        load("lightweight", engine="onnx", device="cpu", precision="bf16")
    with pytest.raises(DeviceError, match="no precision 'int8'; there are auto, fp32, bf16, fp16"):
        load("lightweight", device="cpu", precision="int8")


def test_a_refused_precision_ends_with_status_2(tmp_path):
    photo = tmp_path / "dark.png"
    photo.write_bytes(cv2.imencode(".png", np.full((20, 30, 3), 9, np.uint8))[1].tobytes())
    command = [sys.executable, "-m", "llenhance", str(photo), "-m", "lightweight"]
    result = subprocess.run(
        [*command, "--engine", "onnx", "--precision", "bf16", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "precision bf16: --engine onnx has fp32 alone" in result.stderr


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_tiles_are_exact(method, rng):
    image = dark_scene(331, 297, rng).astype(np.float32) / 255
    enhancer = opened(method.name, precision="fp32")
    for scale in method.scales:
        whole = enhancer.enhance(image, scale=scale, tile="off")
        tiled = enhancer.enhance(image, scale=scale, tile=96)
        bound = 1e-4 if method.means else 1e-5
        assert np.abs(whole - tiled).max() < bound


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_one_graph_for_many_sizes_gives_what_one_for_the_size_does(method, rng, monkeypatch):
    image = dark_scene(61, 43, rng).astype(np.float32) / 255
    for scale in method.scales:
        enhancer = opened(method.name, precision="fp32")
        any_size = enhancer.enhance(image, scale=scale)
        assert (len(enhancer.engine.anysize), len(enhancer.engine.sized)) == (1, 0)
        monkeypatch.setattr(engine, "SIZED", 0)
        of_this_size = enhancer.enhance(image, scale=scale)
        assert (len(enhancer.engine.anysize), len(enhancer.engine.sized)) == (1, 1)
        monkeypatch.undo()
        assert np.abs(any_size - of_this_size).max() < 1e-5


def test_a_graph_for_one_size_copies_nothing_together_and_needs_no_window(rng, monkeypatch):
    """Of dln only the four input planes are concatenated, and means come from where they are."""
    seen = []
    monkeypatch.setattr(engine, "with_pixels", lambda *a: (seen.append(a[1]), with_pixels(*a))[1])
    opened("dln").enhance(dark_scene(48, 96, rng), tile=32)  # three passes for means, and the last
    monkeypatch.setattr(engine, "SIZED", 0)
    opened("dln").enhance(dark_scene(32, 48, rng))
    assert len(seen) == 5
    for number, model in enumerate(seen):
        joined = [n.get_output_shape(0) for n in model.get_ops() if n.get_type_name() == "Concat"]
        assert [shape[1] for shape in joined if list(shape[2:]) != [1, 1]] == [4]
        (window,) = (p for p in model.get_parameters() if p.get_friendly_name() == "window")
        assert bool(window.output(0).get_target_inputs()) == (number < 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_bands_are_exact(dtype, rng, monkeypatch):
    peak = 1 if dtype == np.float32 else np.iinfo(dtype).max
    frames = np.stack([dark_scene(1200, 24, rng), dark_scene(1200, 24, rng)])
    frames = (frames / 255 * peak).astype(dtype)
    monkeypatch.setattr(engine, "CACHED", 1 << 40)
    whole = opened("lightweight", precision="fp32").engine
    assert whole._bands(1200, 24).whole
    expected = whole.run(frames, 1, {})[0]
    monkeypatch.setattr(engine, "CACHED", 400 * 24 * 165)
    banded = opened("lightweight", precision="fp32").engine
    assert banded._bands(1200, 24).down > 2
    assert banded._bands(40, 10_000).whole, "its margins would cost too much"
    found = banded.run(frames, 1, {})[0]
    assert found.dtype == dtype
    assert not np.array_equal(found[0], found[1])
    difference = np.abs(found.astype(np.float64) - expected)
    if dtype == np.float32:
        assert difference.max() <= 1e-6
    else:  # then a value between two levels may be rounded to either
        assert difference.max() <= 1
        assert (difference > 0).mean() < 2e-3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("width", [4, 8, 100, 101, 102])
def test_folded_columns_are_exact(width, dtype, rng, monkeypatch):
    """lightweight's graph for a width that is a multiple of four has columns as channels."""
    folded = []
    monkeypatch.setattr(engine, "fold", lambda *a: (folded.append(a[2]), columns.fold(*a)))
    monkeypatch.setattr(engine, "SIZED", 0)
    enhancer = opened("lightweight", precision="fp32")
    other = load("lightweight", engine="onnx", device="cpu")
    image = dark_scene(37, width, rng)
    expected = other.enhance(pixels.convert(image, np.dtype(np.float32))).astype(np.float64)
    if dtype != np.uint8:
        image = pixels.convert(image, np.dtype(dtype))
    found = enhancer.enhance(image)
    assert folded == ([4] if width % 4 == 0 else [])
    if dtype == np.float32:
        assert np.abs(found - expected).max() <= 1e-6
    else:  # rounded from a value as near: one between two levels may become either
        peak = np.iinfo(dtype).max
        assert np.abs(found - expected * peak).max() <= 0.5 + 1e-6 * peak


def test_wide_networks_are_not_folded(rng, monkeypatch):
    monkeypatch.setattr(engine, "SIZED", 0)
    monkeypatch.setattr(engine, "fold", lambda *_: pytest.fail("folded"))
    opened("residual").enhance(dark_scene(8, 8, rng))


def test_many_sizes_keep_few_graphs(monkeypatch):
    """Graphs for one size stay within their memory together; small sizes share one graph."""
    enhancer = opened("lightweight")
    least = METHODS["lightweight"].bytes_per_pixel("openvino", enhancer.engine.precision) * 40 * 50
    monkeypatch.setattr(engine, "SIZED", least - 1)
    monkeypatch.setattr(engine, "KEPT", 5 * least)
    for n in range(12):
        small = np.full((30, 50 + n, 3), 9, np.uint8)
        assert enhancer.enhance(small).shape == small.shape
        image = np.full((40, 50 + n, 3), 9, np.uint8)
        assert enhancer.enhance(image).shape == image.shape
        assert len(enhancer.engine.anysize) == 1
        kept = list(enhancer.engine.sized)
        assert kept[-1][2] == (1, *image.shape)
        assert sum(map(enhancer.engine._bytes, kept)) <= 5 * least
    assert len(kept) == 4
    large = np.full((400, 50, 3), 9, np.uint8)  # takes more than all of that by itself
    enhancer.enhance(large)
    assert [shape for _, _, shape in enhancer.engine.sized] == [(1, *large.shape)]


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_what_was_done_before_changes_nothing(method, rng, monkeypatch):
    """A picture comes out the same bit for bit, whatever came before it: runs can be resumed."""
    image = dark_scene(99, 140, rng).astype(np.float32) / 255
    first = opened(method.name).enhance(image)
    enhancer = opened(method.name)
    enhancer.enhance(dark_scene(64, 170, rng))
    monkeypatch.setattr(engine, "SIZED", 0)  # as for a tile of the same size
    enhancer.enhance(image)
    assert len(enhancer.engine.sized) == 1
    monkeypatch.undo()
    for _ in range(3):
        np.testing.assert_array_equal(enhancer.enhance(image), first)
    enhancer.engine.release()
    np.testing.assert_array_equal(enhancer.enhance(image), first)


def test_calls_from_several_threads_do_not_mix(rng):
    enhancer = opened("lightweight")
    images = [dark_scene(30 + n % 3, 40, rng) for n in range(12)]
    alone = [enhancer.enhance(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(alone, pool.map(enhancer.enhance, images), strict=True):
            np.testing.assert_array_equal(expected, found)
