"""How much memory enhancing takes, what bounds it, and what happens when it runs out."""

import json
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llenhance import load, memory, tiling
from llenhance.errors import ControlError, LLEnhanceError
from llenhance.methods import METHODS
from llenhance.networks.means import Means

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
ENGINES = ["openvino", "onnx", "torch"]

# The most that a process has ever held: unlike ru_maxrss nothing of the one that started it.
PEAK = """
def held(which="VmHWM"):
    for line in open("/proc/self/status"):
        if line.startswith(which):
            return int(line.split()[1]) * 1024
"""


def dark(height, width, seed=0):
    rng = np.random.default_rng(seed)
    ramp = np.linspace(5, 60, width)[None, :, None] * np.linspace(1, 0.3, height)[:, None, None]
    return np.clip(ramp + rng.normal(0, 3, (height, width, 3)), 0, 255).astype(np.uint8)


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def told(enhancer):
    """What is told of how pictures are cut, from now on."""
    lines = []
    enhancer.budget.tell = lines.append
    return lines


# --- what is measured -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"), [("dln", 0), ("dln", 1), ("dln", 2), ("neid", 0)], ids=str
)
def test_a_mean_sees_as_far_as_its_row_says(name, number):
    """The gradient of the mean over a window reaches beyond it by the radius, and no farther."""
    method = METHODS[name]
    network = method.build().double()
    radius, multiple = method.mean_radii[number], method.multiple_of
    side = -(-(2 * radius + 40) // multiple // 2) * multiple * 2 + multiple
    x = (torch.rand(1, 3, side, side, dtype=torch.double) * 0.5).requires_grad_()
    first, last = (side - multiple) // 2, (side + multiple) // 2
    window = torch.zeros(1, 1, side, side, dtype=torch.double)
    window[..., first:last, first:last] = 1
    known = (torch.arange(len(method.means)) < number).double()
    means = Means(window, torch.rand(1, sum(method.means), dtype=torch.double), known)
    network(x, means=means)
    means.found[number].sum().backward()
    rows = (x.grad[0].abs().sum((0, 2)) > 0).nonzero().flatten()
    reach = max(first - rows.min().item(), rows.max().item() - (last - 1))
    assert radius - multiple < reach <= radius


@LINUX
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "name",
    [pytest.param(m, marks=() if m == "lightweight" else pytest.mark.slow) for m in METHODS],
)
def test_a_run_takes_no_more_than_its_row_says(name, engine):
    """In a fresh process, of one size after the first run prepared the engine."""
    side = {"dln": 512, "lightweight": 1536}.get(name, 1024)
    code = PEAK + (
        "import sys, numpy as np\n"
        "from llenhance import load\n"
        "e = load(sys.argv[1], engine=sys.argv[2], device='cpu', threads=2)\n"
        "side = int(sys.argv[3])\n"
        "image = np.full((side, side, 3), 20, np.uint8)\n"
        "controls = {c.name: c.default for c in e.method.controls}\n"
        "e.engine.run(image[None, :64, :64], 1, controls)\n"
        "before = held('VmRSS')\n"
        "e.engine.run(image[None], 1, controls, again=True)\n"
        "per_pixel = e.method.bytes_per_pixel(e.engine.name, e.engine.precision)\n"
        "print((held() - before) / side**2 / per_pixel)\n"
    )
    done = python(code, name, engine, side)
    assert done.returncode == 0, done.stderr
    # What a library prepares for a size and keeps beside the features is not in proportion to it.
    assert 0.4 < float(done.stdout) < 1.15


@LINUX
def test_what_this_process_holds_is_known():
    before = memory.resident()
    with mmap.mmap(-1, 50_000_000) as ballast:
        ballast.write(bytes([1]) * 50_000_000)
        assert 45e6 < memory.resident() - before < 110e6
    assert 0 < memory.available() < 1 << 50


# --- what is free ---------------------------------------------------------------------------------


def machine(monkeypatch, folder, available, groups):
    """A machine of files: kilobytes available, and the lines of /proc/self/cgroup."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in groups))
    (folder / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {available} kB\n")
    monkeypatch.setattr(memory, "PROC", folder / "proc")
    monkeypatch.setattr(memory, "GROUPS", folder / "cgroup")


def group(place, names, limit, used, cached):
    place.mkdir(parents=True, exist_ok=True)
    stat = names[2]
    (place / names[0]).write_text(f"{limit}\n")
    (place / names[1]).write_text(f"{used}\n")
    (place / "memory.stat").write_text(f"anon 1\n{stat} {cached}\n")


NEW = ("memory.max", "memory.current", "inactive_file")
OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_control_groups_bound_what_is_free(monkeypatch, tmp_path):
    machine(monkeypatch, tmp_path, 8_000_000, ["0::/slice/scope"])
    assert memory.available() == 8_000_000 * 1024
    group(tmp_path / "cgroup/slice/scope", NEW, "max", 10, 0)
    assert memory.available() == 8_000_000 * 1024
    group(tmp_path / "cgroup/slice", NEW, 3_000_000_000, 1_500_000_000, 500_000_000)
    assert memory.available() == 2_000_000_000
    group(tmp_path / "cgroup/slice/scope", NEW, 1_000_000_000, 400_000_000, 0)
    assert memory.available() == 600_000_000
    group(tmp_path / "cgroup/slice/scope", NEW, 1_000_000_000, 1_400_000_000, 0)
    assert memory.available() == 0


def test_the_first_version_of_control_groups(monkeypatch, tmp_path):
    machine(monkeypatch, tmp_path, 8_000_000, ["5:cpu:/", "4:memory:/box", "0::/"])
    group(tmp_path / "cgroup/memory", OLD, 9223372036854771712, 5, 0)
    assert memory.available() == 8_000_000 * 1024
    group(tmp_path / "cgroup/memory", OLD, 2_000_000_000, 1_500_000_000, 100_000_000)
    assert memory.available() == 600_000_000  # the place of the group itself is not seen here


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROC", tmp_path / "nothing")
    assert memory.available() is None
    assert memory.resident() is None
    enhancer = load("lightweight", device="cpu", threads=2, max_memory=1 << 30)
    assert enhancer.enhance(dark(40, 50)).shape == (40, 50, 3)


# --- what is chosen -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", METHODS)
def test_tiles_fit_what_is_useful_and_what_is_free(name, engine, monkeypatch):
    from llenhance import budget
    from llenhance.parts import Whole

    method = METHODS[name]
    enhancer = load(name, device="cpu", engine=engine, threads=2)
    per_pixel = method.bytes_per_pixel(engine, enhancer.engine.precision)
    monkeypatch.setattr(memory, "available", lambda: 1 << 40)

    def grid(height, width):
        picture = Whole(np.zeros((height, width, 3), np.uint8), 1, 1, method.multiple_of)
        return enhancer.budget.grid(picture, "auto")

    assert grid(200, 300).whole
    large = grid(6000, 9000)
    assert not large.whole
    doubled = 2 if engine == "torch" and enhancer.engine.precision != "fp32" else 1
    assert large.pixels * per_pixel <= budget.WORKING_MEMORY * doubled
    assert large.work < 2.1  # margins are not most of the work
    monkeypatch.setattr(memory, "available", lambda: 6000 * 9000 * 3 + (800 << 20))
    tight = grid(6000, 9000)
    assert tight.pixels * per_pixel <= 400 << 20 or tight.size == least(method)
    assert tight.pixels <= large.pixels


def least(method):
    side = tiling.least(method.receptive_radius, method.multiple_of) ** 0.5
    return side, side


@LINUX
@pytest.mark.parametrize(("name", "limit"), [("residual", 300), ("dln", 400)])
def test_a_bound_holds_for_the_whole_command(name, limit, tmp_path):
    """Peak resident size, from start to exit; without the bound it is more."""
    photo = tmp_path / "photo.jpg"
    height, width = {"residual": (1200, 1600), "dln": (500, 700)}[name]
    Image.fromarray(dark(height, width)).save(photo)
    code = PEAK + (
        "import sys\n"
        "from llenhance.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(held())\n"
    )
    peaks = {}
    for bound in (f"{limit}M", "16G"):
        words = (photo, "-m", name, "-v", "--max-memory", bound, "--threads", 2, "-o")
        done = python(code, *words, tmp_path / f"{bound}.png", "--device", "cpu")
        assert done.returncode == 0, done.stderr
        peaks[bound] = int(done.stdout)
        assert (" tiles of " in done.stderr) == (bound != "16G")
    assert peaks[f"{limit}M"] <= limit << 20 < peaks["16G"]
    tight, wide = (np.asarray(Image.open(tmp_path / f"{bound}.png")).astype(int) for bound in peaks)
    assert np.abs(tight - wide).max() <= 1


@LINUX
@pytest.mark.parametrize("words", [(), ("--fast",)], ids=["whole", "fast"])
def test_a_bound_that_does_for_a_picture_does_for_many(words, tmp_path):
    """They are not read and written beside each other, nor is what the engine keeps counted again
    for each."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        photo = np.repeat(np.repeat(dark(750, 1000, number), 4, 0), 4, 1)
        Image.fromarray(photo).save(tmp_path / "in" / f"{number}.jpg")
    code = (
        "import resource\n"
        "from llenhance.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
    )
    options = ("-m", "lightweight", "--max-memory", "340M", "--threads", 1, "--device", "cpu")
    done = python(code, tmp_path / "in", "-o", tmp_path / "out", *options, *words)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 3
    assert int(done.stdout) <= 340 << 20


def test_a_fast_picture_that_cannot_stay_within_the_bound_is_refused():
    enhancer = load("lightweight", device="cpu", threads=2)
    image = np.zeros((4000, 6000, 3), np.uint8)
    memory.trim()  # what tests before this one have left
    enhancer.budget.max_memory = (memory.resident() or 0) + (150 << 20)
    with pytest.raises(LLEnhanceError, match=r"6000x4000 pixels take .*[GM]B, more than the max"):
        enhancer.enhance(image, fast=True)
    enhancer.budget.max_memory += 300 << 20
    assert enhancer.enhance(image, fast=True).shape == image.shape


@LINUX
def test_a_fast_picture_in_floats_takes_no_more_than_is_counted():
    code = PEAK + (
        "import re, numpy as np\n"
        "from llenhance import load, memory\n"
        "e = load('lightweight', device='cpu', threads=2)\n"
        "image = np.full((1500, 2000, 3), 1.1, np.float32)\n"
        "e.budget.max_memory = memory.resident() + (1 << 20)\n"
        "try: e.enhance(image, fast=True)\n"
        "except Exception as error: told = int(re.search(r'take (\\d+) MB', str(error))[1])\n"
        "e.budget.max_memory = told * 1_000_000 + 1_000_000\n"
        "e.enhance(image, fast=True)\n"
        "print(held() / e.budget.max_memory)\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) <= 1


def test_a_picture_that_cannot_stay_within_the_bound_is_refused():
    enhancer = load("lightweight", device="cpu", threads=2)
    enhancer.budget.max_memory = (memory.resident() or 0) + (100 << 20)
    image = np.zeros((8000, 8000, 3), np.uint8)
    with pytest.raises(LLEnhanceError, match=r"8000x8000 pixels take .*[GM]B, more than the max"):
        enhancer.enhance(image)


def test_a_bound_below_what_a_method_needs_is_refused():
    with pytest.raises(ControlError, match=r"max memory 1 MB: dln takes .* before the first"):
        load("dln", device="cpu", max_memory=1_000_000)


@pytest.mark.parametrize(
    ("words", "size"),
    [("2G", 2 << 30), ("800M", 800 << 20), ("1.5GiB", 3 << 29), ("512 mb", 1 << 29), ("9", 9)],
)
def test_sizes(words, size):
    from llenhance.options import size_callback

    assert size_callback(None, None, words) == size


@pytest.mark.parametrize("words", ["", "G", "-2G", "2 apples", "1e9", "2GG", "2P", "9" * 400])
def test_what_is_no_size(words):
    import click

    from llenhance.options import size_callback

    with pytest.raises(click.BadParameter, match="is not a size"):
        size_callback(None, None, words)


@pytest.mark.parametrize(
    ("words", "said"), [("some", "'some' is not a size"), ("20M", "max memory 21 MB: lightweight")]
)
def test_a_wrong_bound_is_one_line_and_starts_nothing(words, said, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(dark(20, 30)).save(photo)
    code = "from llenhance.cli import main; main()"
    done = python(code, photo, "-m", "lightweight", "--device", "cpu", "--max-memory", words)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


# --- a picture in another profile -----------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    ("channels", "kind"), [(3, "rgb"), (4, "rgb"), (1, "rgb"), (1, "gray"), (2, "gray")]
)
def test_the_way_back_to_a_profile_is_the_same_in_bands(channels, kind, dtype, scale, monkeypatch):
    import imagecodecs

    from llenhance import pixels
    from llenhance.media import colour

    primaries = (0.68, 0.32, 1.0, 0.265, 0.69, 1.0, 0.15, 0.06, 1.0) if kind == "rgb" else None
    white = (0.3127, 0.3290, 1.0)
    icc = bytes(imagecodecs.cms_profile(kind, whitepoint=white, primaries=primaries, gamma=2.0))
    peak = 1 if dtype == np.float32 else np.iinfo(dtype).max
    frame = (np.random.default_rng(0).random((37, 29, channels)) * peak).astype(dtype)

    def enhance(image):
        return np.sqrt(np.clip(pixels.enlarge(image, scale), 0, 1))

    whole = colour.through_srgb(frame, icc, enhance)
    for rows in (1, 7, 36):
        monkeypatch.setattr(colour, "BAND", rows * 29)
        np.testing.assert_array_equal(colour.through_srgb(frame, icc, enhance), whole)
    # As told at the top of colour.py, in one piece.
    rgb, layout = pixels.split(frame)
    values = colour.to_srgb(rgb, icc)
    seen = values if dtype == np.float32 else np.clip(values, 0, 1)
    lit = pixels.apply_change(values, seen, enhance(seen))
    plain = pixels.join(colour.from_srgb(lit, icc, frame.dtype), layout)
    np.testing.assert_allclose(whole, plain, rtol=0, atol=2e-6 if dtype == np.float32 else 0)


# --- when it runs out -----------------------------------------------------------------------------


def onnx_failure():
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    return Fail(
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node."
        " Name:'conv' Status Message: bfc_arena.cc:360 void* onnxruntime::BFCArena::"
        "AllocateRawInternal(size_t) Failed to allocate memory for requested buffer of size 3"
    )


SHORTAGES = {
    "python": MemoryError,
    "numpy": lambda: np._core._exceptions._ArrayMemoryError((9, 9), np.dtype(np.uint8)),
    "onnx": onnx_failure,
    "openvino": lambda: RuntimeError("Exception from src/inference: std::bad_alloc"),
    "torch": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory:"
        " you tried to allocate 3 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"),
    "cudnn": lambda: RuntimeError("GET was unable to find an engine to execute this computation"),
    "counts": lambda: RuntimeError(
        "it only supports output tensors with less than INT_MAX elements"
    ),
}


@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize("name", ["residual", "dln"])
def test_a_shortage_makes_tiles_smaller(name, shortage, monkeypatch):
    """Engines that take no more than so many pixels, and say so in their own words."""
    enhancer = load(name, device="cpu", precision="fp32", threads=2)
    image = dark(170, 330)
    whole = enhancer.enhance(image, tile="off").astype(int)
    run, lines, sizes = enhancer.engine.run, told(enhancer), []

    def short(batch, *others, **named):
        pixels = batch.shape[1] * batch.shape[2]
        sizes.append(pixels)
        if pixels > 30_000:
            raise SHORTAGES[shortage]()
        return run(batch, *others, **named)

    monkeypatch.setattr(enhancer.engine, "run", short)
    result = enhancer.enhance(image)
    assert np.abs(result - whole).max() <= 1
    assert lines.count("not enough memory: going on with smaller tiles") == 1
    assert sizes[0] == 170 * 330
    assert max(sizes[1:]) <= 170 * 330 / 2
    enhancer.enhance(image)  # which is not tried as a whole any more
    assert sizes.count(170 * 330) == 1


def test_another_failure_is_not_taken_for_a_shortage(monkeypatch):
    enhancer = load("residual", device="cpu", threads=2)
    calls = []

    def broken(*_, **__):
        calls.append(1)
        raise RuntimeError("expected 3 channels, found 4")

    monkeypatch.setattr(enhancer.engine, "run", broken)
    with pytest.raises(RuntimeError, match="expected 3 channels"):
        enhancer.enhance(dark(60, 80))
    assert calls == [1]


def test_means_that_are_known_are_not_measured_again(monkeypatch):
    enhancer = load("dln", device="cpu", precision="fp32", threads=2)
    run, measure, numbers = enhancer.engine.run, enhancer.engine.measure, []

    def counting(tile, window, scale, number, means):
        numbers.append(number)
        return measure(tile, window, scale, number, means)

    def short(batch, *others, **named):
        if batch.shape[1] * batch.shape[2] > 20_000:
            raise MemoryError
        return run(batch, *others, **named)

    image = dark(170, 330)
    whole = enhancer.enhance(image, tile="off").astype(int)
    monkeypatch.setattr(enhancer.engine, "run", short)
    monkeypatch.setattr(enhancer.engine, "measure", counting)
    enhancer.budget._most = 30_000
    assert np.abs(enhancer.enhance(image) - whole).max() <= 1
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("tile", ["auto", "off"])
def test_no_memory_at_all_is_one_clear_line(tile, monkeypatch):
    enhancer = load("residual", device="cpu", threads=2)
    calls = []

    def short(batch, *_, **__):
        calls.append(batch.shape[1] * batch.shape[2])
        raise MemoryError

    monkeypatch.setattr(enhancer.engine, "run", short)
    line = "there is not enough memory for 400x300 pixels"
    end = ", even in small tiles" if tile == "auto" else r" in one piece \(--tile off\)"
    with pytest.raises(LLEnhanceError, match=line + end):
        enhancer.enhance(dark(300, 400), tile=tile)
    assert calls == sorted(calls, reverse=True)
    assert (len(calls) > 2) == (tile == "auto")


# The real thing: the address space ends a little above what the process has when a network begins.
SHORT = """
import resource, sys
from llenhance.engines import onnx
real, room, calls = onnx.OnnxEngine.run, int(sys.argv.pop(1)), []
def run(self, batch, *others, **named):
    if not calls:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    calls.append(1)
    return real(self, batch, *others, **named)
onnx.OnnxEngine.run = run
from llenhance.cli import main
main()
"""


@LINUX
@pytest.mark.parametrize(
    ("name", "room", "status"), [("residual", 130_000_000, 0), ("enlightengan", 20_000_000, 1)]
)
def test_a_real_shortage(name, room, status, tmp_path):
    photo, target = tmp_path / "photo.png", tmp_path / "out.png"
    image = dark(600, 800)
    Image.fromarray(image).save(photo)
    words = ("-m", name, "--engine", "onnx", "--device", "cpu", "--threads", 1, "-v")
    done = python(SHORT, room, photo, *words, "-o", target)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "not enough memory: going on with smaller tiles" in done.stderr
    if status:
        assert "there is not enough memory for 800x600 pixels, even in small tiles" in done.stderr
        assert not target.exists()
        return
    whole = load(name, engine="onnx", device="cpu", threads=2).enhance(image, tile="off")
    assert np.abs(np.asarray(Image.open(target)).astype(int) - whole).max() <= 1


# --- the benchmark --------------------------------------------------------------------------------


@LINUX
def test_the_curve_of_memory(tmp_path):
    """The smallest one there is."""
    words = (
        "--method",
        "lightweight",
        "--megapixels",
        "0.3",
        "--megapixels",
        "1",
        "--threads",
        "1",
    )
    told = tmp_path / "curve.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *words, "--json", str(told)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(told.read_text())["rows"]
    assert row["method"] == "lightweight"
    assert row["exponent"] is None  # neither was cut
    small, large = row["points"]
    assert small["peak"] < large["peak"]
    for point, megapixels in ((small, 0.3), (large, 1.0)):
        assert abs(point["megapixels"] - megapixels) < 0.01
        assert point["tiles"] == 1
        assert 50 < point["process"] < point["enhancing"] < point["peak"] + 3 < 1500
        parts = point["process"] + point["pictures"] + point["beyond"]
        assert abs(parts - point["enhancing"]) < 1
