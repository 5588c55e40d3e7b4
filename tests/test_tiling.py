"""Tiles join without a seam and give the picture that the whole would give."""

import numpy as np
import pytest

from llenhance import load, tiling
from llenhance.errors import ControlError
from llenhance.methods import METHODS

# size of the picture and of the tiles: large enough that tiles do not see the whole
CASES = {
    "dln": (150, 200, 48),
    "lightweight": (150, 200, 48),
    "residual": (150, 200, 48),
    "neid": (600, 160, 64),
    "enlightengan": (400, 96, 64),
}


def scene(height, width):
    rng = np.random.default_rng(0)
    base = np.linspace(0.01, 0.3, width)[None, :, None] * np.linspace(1, 0.2, height)[:, None, None]
    base = base * [1, 0.8, 0.6] + rng.normal(0, 0.01, (height, width, 3))
    base[height // 2 : height // 2 + 9, width // 2 : width // 2 + 9] = 1  # a lamp
    return np.clip(base, 0, 1).astype(np.float32)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_tiles_equal_the_whole(name, engine, monkeypatch):
    height, width, size = CASES[name]
    enhancer = load(name, device="cpu", engine=engine)
    image = scene(height + 1, width - 1)  # odd sizes, so that padding is cut too
    for scale in METHODS[name].scales:
        whole = enhancer.enhance(image, tile="off", scale=scale)
        pieces = []
        run = enhancer.engine.run
        monkeypatch.setattr(
            enhancer.engine,
            "run",
            lambda *a, run=run, pieces=pieces, **k: pieces.append(1) or run(*a, **k),
        )
        tiled = enhancer.enhance(image, tile=size, scale=scale)
        monkeypatch.undo()
        assert len(pieces) >= 7
        assert whole.shape == tiled.shape
        assert np.abs(whole - tiled).max() < 1e-5
        assert np.abs(whole - image.mean()).max() > 0.1  # something to differ in


def test_the_shared_mean_is_what_makes_tiles_equal():
    """Gated by its own means, a tile differs: the test above would notice."""
    enhancer = load("dln", device="cpu")
    image = scene(150, 200)
    whole = enhancer.enhance(image, tile="off")
    alone = enhancer.enhance(image[:80, :80], tile="off")
    assert np.abs(whole[:48, :48] - alone[:48, :48]).max() > 1e-4


def test_maps_are_tiled_too():
    enhancer = load("residual", device="cpu")
    image = scene(150, 200)
    _, whole = enhancer.enhance(image, tile="off", return_map=True)
    _, tiled = enhancer.enhance(image, tile=64, return_map=True)
    assert np.abs(whole - tiled).max() < 1e-5


@pytest.mark.parametrize(
    ("height", "width", "size", "halo", "multiple"),
    [
        (64, 96, 32, 10, 16),
        (100, 30, 7, 3, 1),
        (16, 16, 16, 8, 16),
        (48, 160, 64, 100, 16),
        (1, 1, 5, 2, 1),
    ],
)
def test_tiles_cover_a_picture_once(height, width, size, halo, multiple):
    covered = np.zeros((height, width), int)
    for tile in tiling.cut(height, width, size, halo, multiple):
        covered[tile.inner] += 1
        inside = np.zeros_like(covered)
        inside[tile.outer] = 1
        rows, columns = tile.inner
        for part, length, around in (
            (rows, height, tile.outer[0]),
            (columns, width, tile.outer[1]),
        ):
            assert around.start % multiple == 0
            assert around.start == 0 or part.start - around.start >= halo
            assert around.stop == length or around.stop - part.stop >= halo
        region = np.arange(height * width).reshape(height, width)
        np.testing.assert_array_equal(region[tile.outer][tile.crop], region[tile.inner])
        assert tile.area == region[tile.inner].size
    assert (covered == 1).all()


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_automatic_tiles_fit_the_memory(method):
    from llenhance.enhancer import WORKING_MEMORY

    enhancer = load(method.name, device="cpu")
    assert enhancer._tile_side(200, 300, "auto") is None
    side = enhancer._tile_side(9600, 12800, "auto")
    assert side is not None
    assert side % method.multiple_of == 0
    halo = -(-method.receptive_radius // method.multiple_of) * method.multiple_of
    assert (side + 2 * halo) ** 2 * method.memory <= WORKING_MEMORY
    assert side >= 2 * halo or side >= 256  # most of the work is not margin


def test_a_tile_of_nothing_is_refused():
    with pytest.raises(ControlError, match="tile 0"):
        load("lightweight", device="cpu").enhance(scene(20, 20), tile=0)
