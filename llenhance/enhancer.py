"""One method, its weights and an engine, ready to enhance arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from . import checkpoints, pixels, tiling
from .engines import Engine, open_engine
from .errors import ControlError
from .methods import DEFAULT, METHODS, Method, get

WORKING_MEMORY = 1 << 30  # bytes that one run of a network may need before a picture is cut


def load(
    method: str = DEFAULT,
    *,
    device: str = "auto",
    engine: str = "auto",
    weights: str | Path | None = None,
    threads: int | None = None,
) -> Enhancer:
    """Find, verify and open a method.

    ``method``: a name in METHODS. ``device``: auto, cpu, cuda, cuda:N or mps; only auto may end up
    on another device than the first choice, and ``Enhancer.note`` then says why. ``engine``: auto,
    onnx or torch. ``weights``: a shipped set's name or the path of a .safetensors file.
    ``threads``: CPU threads; default OMP_NUM_THREADS or all cores given to this process.

    Raises ControlError, WeightsError or DeviceError, each with one line that says what is wrong.
    """
    row = get(method)
    found = checkpoints.find(row, weights)
    opened, note = open_engine(row, found, engine, device, threads)
    return Enhancer(row, found, opened, note)


class Enhancer:
    """Made by :func:`load`."""

    def __init__(
        self, method: Method, weights: checkpoints.Weights, engine: Engine, note: str
    ) -> None:
        self.method = method
        self.weights = weights
        self.engine = engine
        self.note = note  # why this engine and device

    @property
    def device(self) -> str:
        """What is really in use: "cpu", "cuda:0", "mps"."""
        return self.engine.device

    @overload
    def enhance(
        self,
        image: NDArray[Any],
        *,
        strength: float = ...,
        scale: int | None = ...,
        return_map: Literal[False] = ...,
        tile: int | Literal["auto", "off"] = ...,
        **controls: float,
    ) -> NDArray[Any]: ...

    @overload
    def enhance(
        self,
        image: NDArray[Any],
        *,
        strength: float = ...,
        scale: int | None = ...,
        return_map: Literal[True],
        tile: int | Literal["auto", "off"] = ...,
        **controls: float,
    ) -> tuple[NDArray[Any], NDArray[np.float32]]: ...

    def enhance(
        self,
        image: NDArray[Any],
        *,
        strength: float = 1.0,
        scale: int | None = None,
        return_map: bool = False,
        tile: int | Literal["auto", "off"] = "auto",
        **controls: float,
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.float32]]:
        """Make a dark picture visible.

        ``image``: (H, W) or (H, W, 1) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4)
        RGBA, of uint8, uint16 or float32 (0 to 1; above 1 is highlight that keeps its excess).
        The range comes from the dtype, never from the values. Any size from 1x1.
        ``strength``: 0 gives the input, 1 the method, between is a blend.
        ``scale``: output size over input size; one of the method's scales.
        ``tile``: the side in pixels of the tiles that a large picture is cut into; auto cuts where
        the whole would need more than a gigabyte of working memory; off never cuts. Tiles give
        the picture that the whole would give.
        ``controls``: the method's own, for instance ``alpha`` of residual.
        ``return_map``: also return the method's map, float32 (H, W, 3); residual's is D.

        Returns an array of the same layout and dtype, (scale*H, scale*W); alpha is kept as it is.
        Raises ControlError for a control that the method lacks or a value out of range, and
        LLEnhanceError for an array that is no picture.
        """
        scale, settings = check(self.method, strength, scale, return_map, controls)
        rgb, layout = pixels.split(image)
        original = rgb
        if rgb.dtype == np.float32:  # light above 1 is mapped for the network and given back after
            rgb = pixels.tone_map(rgb)
        # A blend of two rounded pictures is off by up to one level: blend before rounding.
        given = rgb if strength == 1 else pixels.to_float(rgb)
        height, width = given.shape[:2]
        padded, top, left = pad(given, self.method.multiple_of)
        enhanced, *maps = self._run(padded, scale, settings, return_map, tile)
        enhanced = enhanced[
            top * scale : (top + height) * scale, left * scale : (left + width) * scale
        ]
        if strength != 1:
            blended = pixels.enlarge(given, scale) * (1 - strength) + enhanced * strength
            enhanced = pixels.from_float(blended.astype(np.float32), rgb.dtype)
        if rgb is not original:
            enhanced = pixels.apply_change(original, rgb, enhanced)
        result = pixels.join(enhanced, layout)
        if not return_map:
            return result
        return result, maps[0][top : top + height, left : left + width]

    def _run(
        self,
        image: NDArray[Any],
        scale: int,
        controls: dict[str, float],
        maps: bool,
        tile: int | Literal["auto", "off"],
    ) -> list[NDArray[Any]]:
        """A padded picture through the engine, in one piece or in tiles."""
        height, width = image.shape[:2]
        size = self._tile_side(height, width, tile)
        if size is None:
            return [p[0] for p in self.engine.run(image[None], scale, controls, maps=maps)]
        method = self.method
        tiles = list(tiling.cut(height, width, size, method.receptive_radius, method.multiple_of))
        means = self._measure(image, tiles, scale) if method.means else None
        joined: list[NDArray[Any]] = []
        for part in tiles:
            planes = self.engine.run(
                image[part.outer][None], scale, controls, maps=maps, means=means
            )
            for number, plane in enumerate(planes):
                factor = 1 if number else scale  # maps have the input's size
                if number == len(joined):
                    shape = (height * factor, width * factor, 3)
                    joined.append(np.empty(shape, plane.dtype))
                joined[number][_scaled(part.inner, factor)] = plane[0][_scaled(part.crop, factor)]
        return joined

    def _tile_side(self, height: int, width: int, tile: int | Literal["auto", "off"]) -> int | None:
        """The side of the tiles, or None for one piece."""
        method = self.method
        if tile == "off" or self.weights.options.get("align_corners"):
            # The authors' EnlightenGAN enlarges on a grid that depends on the whole picture's size.
            return None
        if tile == "auto":
            if height * width * method.memory <= WORKING_MEMORY:
                return None
            pixels = WORKING_MEMORY // method.memory
            tile = tiling.side(pixels, method.receptive_radius, method.multiple_of)
        if tile < 1:
            raise ControlError(f"tile {tile}: a tile has at least one pixel")
        tile = -(-tile // method.multiple_of) * method.multiple_of
        return None if tile >= max(height, width) else tile

    def _measure(
        self, image: NDArray[Any], tiles: list[tiling.Tile], scale: int
    ) -> NDArray[np.float32]:
        """The whole-picture means, exactly: one pass over all tiles for each of them."""
        channels = self.method.means
        means = np.zeros(sum(channels), np.float32)
        begin = 0
        for number, count in enumerate(channels):
            total = np.zeros(count, np.float64)
            for part in tiles:
                outer = image[part.outer]
                window = np.zeros(outer.shape[:2], np.float32)
                window[part.crop] = 1
                total += part.area * self.engine.measure(outer, window, scale, number, means)
            means[begin : begin + count] = total / (image.shape[0] * image.shape[1])
            begin += count
        return means


def _scaled(place: tuple[slice, slice], scale: int) -> tuple[slice, slice]:
    rows, columns = (slice(part.start * scale, part.stop * scale) for part in place)
    return rows, columns


def check(
    method: Method,
    strength: float,
    scale: int | None,
    return_map: bool,
    controls: dict[str, float],
) -> tuple[int, dict[str, float]]:
    """(scale, every control of the method with its value); raises ControlError."""
    if not 0 <= strength <= 1:
        raise ControlError(f"strength {strength:g}: it goes from 0 to 1")
    if scale is None:
        scale = method.scales[0]
    elif scale not in method.scales:
        having = [m.name for m in METHODS.values() if scale in m.scales]
        raise ControlError(
            f"scale {scale}: {method.name} has scale {_listed(method.scales)};"
            f" {_listed(having) if having else 'no method'} has {scale}"
        )
    if return_map and not method.maps:
        having = [m.name for m in METHODS.values() if m.maps]
        raise ControlError(f"{method.name} has no map; {_listed(having)} has one")
    known = {control.name: control for control in method.controls}
    for name, value in controls.items():
        if name not in known:
            raise ControlError(lacking(name, method.name))
        control = known[name]
        if not control.low <= value <= control.high:
            raise ControlError(
                f"{name} {value:g}: it goes from {control.low:g} to {control.high:g}"
            )
    return scale, {c.name: float(controls.get(c.name, c.default)) for c in method.controls}


def lacking(control: str, *names: str) -> str:
    """The sentence for a control that these methods do not have."""
    having = [m.name for m in METHODS.values() if any(c.name == control for c in m.controls)]
    lacks = f"{_listed(names)} {'has' if len(names) == 1 else 'have'} no such control"
    return f"{control}: {lacks}; {_listed(having) + ' has it' if having else 'no method has it'}"


def _listed(values: tuple[object, ...] | list[str]) -> str:
    return " and ".join(str(value) for value in values)


def pad(image: NDArray[Any], multiple: int) -> tuple[NDArray[Any], int, int]:
    """(H, W, 3) reflected at its edges to multiples of ``multiple``; and the rows and columns
    added above and to the left. As the authors of EnlightenGAN do: split on both sides."""
    down, right = -image.shape[0] % multiple, -image.shape[1] % multiple
    if not down and not right:
        return image, 0, 0
    top, left = down // 2, right // 2
    # numpy's reflection repeats where the padding is larger than the picture
    return (
        np.pad(image, ((top, down - top), (left, right - left), (0, 0)), "reflect"),
        top,
        left,
    )
