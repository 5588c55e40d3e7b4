"""Tiles join without a seam and give the picture that the whole would give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llenhance import load, tiling
from llenhance.errors import ControlError
from llenhance.methods import METHODS

# size of the picture and of the tiles: large enough that tiles do not see the whole
CASES = {
    "dln": (200, 250, 48),
    "lightweight": (150, 200, 48),
    "residual": (150, 200, 48),
    "neid": (1000, 160, 64),
    "enlightengan": (750, 96, 64),
}


def scene(height, width):
    rng = np.random.default_rng(0)
    base = np.linspace(0.01, 0.3, width)[None, :, None] * np.linspace(1, 0.2, height)[:, None, None]
    base = base * [1, 0.8, 0.6] + rng.normal(0, 0.01, (height, width, 3))
    base[height // 2 : height // 2 + 9, width // 2 : width // 2 + 9] = 1  # a lamp
    return np.clip(base, 0, 1).astype(np.float32)


@pytest.mark.parametrize("engine", ["openvino", "onnx", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_tiles_equal_the_whole(name, engine, monkeypatch):
    height, width, size = CASES[name]
    enhancer = load(name, device="cpu", engine=engine, precision="fp32")
    image = scene(height + 1, width - 1)  # odd sizes, so that padding is cut too
    for scale in METHODS[name].scales:
        whole = enhancer.enhance(image, tile="off", scale=scale)
        shapes = []
        run = enhancer.engine.run

        def spy(batch, *others, run=run, shapes=shapes, **named):
            shapes.append(batch.shape)
            return run(batch, *others, **named)

        monkeypatch.setattr(enhancer.engine, "run", spy)
        tiled = enhancer.enhance(image, tile=size, scale=scale)
        monkeypatch.undo()
        assert len(shapes) >= 7
        assert whole.shape == tiled.shape
        assert np.abs(whole - tiled).max() < 1e-5
        assert np.abs(whole - image.mean()).max() > 0.1  # something to differ in
        assert len(set(shapes)) == 1  # what an engine prepares for one tile serves all


def test_the_shared_mean_is_what_makes_tiles_equal():
    """Gated by its own means, a tile differs: the test above would notice."""
    enhancer = load("dln", device="cpu", precision="fp32")
    image = scene(150, 200)
    whole = enhancer.enhance(image, tile="off")
    alone = enhancer.enhance(image[:80, :80], tile="off")
    assert np.abs(whole[:48, :48] - alone[:48, :48]).max() > 1e-4


def test_maps_are_tiled_too():
    enhancer = load("residual", device="cpu", precision="fp32")
    image = scene(150, 200)
    _, whole = enhancer.enhance(image, tile="off", return_map=True)
    _, tiled = enhancer.enhance(image, tile=64, return_map=True)
    assert np.abs(whole - tiled).max() < 1e-5


def check_cover(grid, halo):
    """Tiles give every pixel once, lie on the grid, have their margins, and are of one size."""
    covered = np.zeros((grid.height, grid.width), int)
    region = np.arange(covered.size).reshape(covered.shape)
    for tile in grid.tiles():
        covered[tile.inner] += 1
        for part, length, around in zip(tile.inner, covered.shape, tile.outer, strict=True):
            assert around.start % grid.multiple == part.start % grid.multiple == 0
            assert around.start == 0 or part.start - around.start >= halo
            assert around.stop == length or around.stop - part.stop >= halo
        np.testing.assert_array_equal(region[tile.outer][tile.crop], region[tile.inner])
        assert region[tile.outer].shape == grid.size
        assert tile.area == region[tile.inner].size > 0
    assert (covered == 1).all()


@settings(max_examples=300)
@given(
    multiple=st.sampled_from([1, 2, 16, 32]),
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    halo=st.integers(0, 250),
    side=st.integers(1, 500),
    pixels=st.integers(1, 200_000),
)
def test_tiles_cover_a_picture_once(multiple, height, width, halo, side, pixels):
    height, width = -(-height // multiple) * multiple, -(-width // multiple) * multiple
    by_side = tiling.by_side(height, width, side, halo, multiple)
    check_cover(by_side, halo)
    by_area = tiling.by_area(height, width, pixels, halo, multiple)
    check_cover(by_area, halo)
    if by_area.pixels > pixels:  # then these are the smallest ones
        assert by_area == tiling.by_side(height, width, tiling.LEAST, halo, multiple)


def test_tiles_of_an_area_are_small_where_that_costs_little():
    """Against all grids there are."""
    for height, width, pixels, halo in ((900, 1400, 90_000, 31), (640, 2000, 300_000, 100)):
        grids = [
            tiling.Grid(height, width, down, across, halo, 1)
            for down in range(1, 30)
            for across in range(1, 40)
        ]
        fitting = [grid for grid in grids if grid.pixels <= pixels]
        most = tiling.SPARED * min(grid.work for grid in fitting)
        found = tiling.by_area(height, width, pixels, halo, 1)
        assert found in fitting
        assert found.work <= most
        assert found.pixels == min(grid.pixels for grid in fitting if grid.work <= most)


def test_a_tile_of_nothing_is_refused():
    with pytest.raises(ControlError, match="tile 0"):
        load("lightweight", device="cpu").enhance(scene(20, 20), tile=0)
    with pytest.raises(ControlError, match="tile '64': auto, off or a number of pixels"):
        load("lightweight", device="cpu").enhance(scene(20, 20), tile="64")
    with pytest.raises(ControlError, match="threads -1: at least 1"):
        load("lightweight", device="cpu", threads=-1)
