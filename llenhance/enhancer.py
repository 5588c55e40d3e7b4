"""One method, its weights and an engine, ready to enhance arrays."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from . import checkpoints, memory, pixels, tiling
from .budget import Budget
from .controls import check
from .engines import Engine, available_threads, open_engine
from .errors import ControlError, LLEnhanceError
from .fast import SIDE, carried, reduced
from .methods import DEFAULT, Method, get
from .parts import Whole

if TYPE_CHECKING:
    from torch import Tensor

    from .engines.pytorch import TorchEngine


def load(
    method: str = DEFAULT,
    *,
    device: str = "auto",
    engine: str = "auto",
    weights: str | Path | None = None,
    threads: int | None = None,
    precision: str = "auto",
    max_memory: int | None = None,
) -> Enhancer:
    """Find, verify and open a method.

    ``method``: a name in METHODS. ``device``: auto, cpu, cuda, cuda:N or mps; only auto may end up
    on another device than the first choice, and ``Enhancer.note`` then says why. ``engine``: auto,
    openvino, onnx or torch. ``weights``: a shipped set's name or the path of a .safetensors file.
    ``threads``: CPU threads; default OMP_NUM_THREADS or all cores given to this process.
    ``precision``: auto, fp32, bf16 or fp16; auto is a reduced one where the processor has it and
    the method's quality does not suffer, and ``Enhancer.engine.precision`` says which it is.
    ``max_memory``: bytes of physical memory that this process is to stay within while it enhances,
    all that it already has included; default what the machine has to spare, and no more than is
    useful. Larger pictures are cut into tiles, smaller ones take what they need.

    Raises ControlError, WeightsError or DeviceError, each with one line that says what is wrong.
    """
    row = get(method)
    found = checkpoints.find(row, weights)
    if threads is not None and threads < 1:
        raise ControlError(f"threads {threads}: at least 1")
    threads = threads or available_threads()
    opened, note = open_engine(row, found, engine, device, threads, precision)
    return Enhancer(row, found, opened, note, max_memory, threads)


class Enhancer:
    """Made by :func:`load`."""

    def __init__(
        self,
        method: Method,
        weights: checkpoints.Weights,
        engine: Engine,
        note: str,
        max_memory: int | None = None,
        threads: int = 1,
    ) -> None:
        self.method = method
        self.weights = weights
        self.engine = engine
        self.note = note  # why this engine and device
        self.threads = threads  # for what is done beside the engine
        # The authors' EnlightenGAN enlarges on a grid that depends on the whole picture's size.
        may_cut = not weights.options.get("align_corners")
        self.budget = Budget(method, engine, max_memory, may_cut)

    def __str__(self) -> str:
        """What does the work, as people are told it."""
        return (
            f"{self.method.name}: {self.engine.name} {self.engine.precision} on {self.device}"
            f" ({self.note}), weights {self.weights.name} {self.weights.digest[:12]}"
        )

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
        fast: bool = ...,
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
        fast: Literal[False] = ...,
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
        fast: bool = False,
        **controls: float,
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.float32]]:
        """Make a dark picture visible.

        ``image``: (H, W) or (H, W, 1) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4)
        RGBA, of uint8, uint16 or float32 (0 to 1; above 1 is highlight that keeps its excess).
        The range comes from the dtype, never from the values. Any size from 1x1.
        ``strength``: 0 gives the input, 1 the method, between is a blend.
        ``scale``: output size over input size; one of the method's scales.
        ``tile``: the side in pixels of the tiles that a large picture is cut into; auto cuts where
        the whole would need more memory than there is or than is useful; off never cuts. Tiles
        give the picture that the whole would give. Where memory runs out nevertheless, the picture
        is cut into tiles of half the size, and so on.
        ``fast``: the network sees a copy with a long side of 1024 pixels, and its change of light
        and colour is carried to the picture; one that is no larger comes out as without.
        ``controls``: the method's own, for instance ``alpha`` of residual.
        ``return_map``: also return the method's map, float32 (H, W, 3); residual's is D. Not with
        ``fast``.

        Returns an array of the same layout and dtype, (scale*H, scale*W); alpha is kept as it is.
        Raises ControlError for a control that the method lacks or a value out of range, and
        LLEnhanceError for an array that is no picture or where memory does not even do for the
        smallest tile.
        """
        scale, settings = check(
            self.method, strength=strength, scale=scale, return_map=return_map, controls=controls
        )
        if fast:
            if return_map:
                raise ControlError("fast gives no map")
            pixels.check(image)
            if max(image.shape[:2]) > SIDE:
                return self._fast(image, strength, scale, tile, settings)
        picture = Whole(image, strength, scale, self.method.multiple_of)
        enhanced, *maps = self._run(picture, settings, return_map, tile)
        result = picture.joined(enhanced)
        return (result, maps[0]) if return_map else result

    def _fast(
        self,
        image: NDArray[Any],
        strength: float,
        scale: int,
        tile: int | Literal["auto", "off"],
        settings: dict[str, float],
    ) -> NDArray[Any]:
        """The change that is made to a reduced copy, carried to the picture."""
        picture = Whole(image, strength, scale, self.method.multiple_of)
        self.budget.check_fast(picture, self.threads)
        original = picture.original
        mapped = pixels.tone_map(original) if original.dtype == np.float32 else original
        copy = reduced(mapped, threads=self.threads)
        options: dict[str, Any] = {"strength": strength, "scale": scale, "tile": tile, **settings}
        changed = self.enhance(copy, **options)
        if self.budget.max_memory is not None:
            self.budget.release()
        enhanced = carried(mapped, copy, changed, scale, threads=self.threads)
        if mapped is not original:
            enhanced = pixels.apply_change(original, mapped, enhanced)
        return picture.joined(enhanced)

    @overload
    def enhance_batch(
        self,
        frames: NDArray[Any],
        *,
        strength: float = ...,
        scale: int | None = ...,
        **controls: float,
    ) -> NDArray[Any]: ...

    @overload
    def enhance_batch(
        self,
        frames: Sequence[NDArray[Any]],
        *,
        strength: float = ...,
        scale: int | None = ...,
        **controls: float,
    ) -> list[NDArray[Any]]: ...

    @overload
    def enhance_batch(
        self,
        frames: Tensor,
        *,
        strength: float = ...,
        scale: int | None = ...,
        **controls: float,
    ) -> Tensor: ...

    def enhance_batch(
        self,
        frames: NDArray[Any] | Sequence[NDArray[Any]] | Tensor,
        *,
        strength: float = 1.0,
        scale: int | None = None,
        **controls: float,
    ) -> NDArray[Any] | list[NDArray[Any]] | Tensor:
        """Make many dark pictures visible, those of one size in one run of the network.

        ``frames``: an array (N, H, W, 1 to 4), or a list of pictures of any sizes; each as
        :meth:`enhance` takes it. Each comes out as ``enhance`` would give it, within the engine's
        rounding: what a network wants to know of the whole picture it learns of each by itself.
        So many go into one run as its memory allows. ``strength``, ``scale`` and ``controls`` as
        in ``enhance``. Returns an array for an array, a list for a list.

        With the torch engine, ``frames`` may also be a tensor (N, 3, H, W) of floats in [0, 1]
        (what lies beyond is clipped) or of uint8, on the device that the engine uses. Out comes a
        tensor (N, 3, scale*H, scale*W) of the same dtype, layout and device that nothing has
        copied to the host. Gradients do not flow through it, and it is not cut into tiles.

        Raises what :meth:`enhance` does, and ControlError for a tensor where there is another
        engine or another device.
        """
        scale, settings = check(self.method, strength=strength, scale=scale, controls=controls)
        torch = sys.modules.get("torch")  # who has a tensor has imported it
        if torch is not None and isinstance(frames, torch.Tensor):
            engine = self._torch
            if engine is None:
                raise ControlError(
                    f"a tensor needs the torch engine (load(..., engine='torch')); this is"
                    f" {self.engine.name}"
                )
            at_once = partial(self.budget.at_once, scale=scale)
            return engine.on_device(frames, scale, settings, strength, at_once)
        if isinstance(frames, np.ndarray) and frames.ndim != 4:
            raise LLEnhanceError(
                f"a batch is (N, height, width, 1 to 4) or a list, not {frames.shape}"
            )
        images = list(frames)
        for image in images:
            pixels.check(image)
        results = list(images)
        parts = self._parts(images, scale)
        batches = [[images[number] for number in part] for part in parts]
        done = self.enhance_batches(batches, strength=strength, scale=scale, **controls)
        for part, outputs in zip(parts, done, strict=True):
            for number, output in zip(part, outputs, strict=True):
                results[number] = output
        if not isinstance(frames, np.ndarray):
            return results
        count, height, width, channels = frames.shape
        if not count:
            return np.empty((0, height * scale, width * scale, channels), frames.dtype)
        return np.stack(results)

    def enhance_batches(
        self,
        batches: Iterable[Sequence[NDArray[Any]]],
        *,
        strength: float = 1.0,
        scale: int | None = None,
        **controls: float,
    ) -> Iterator[list[NDArray[Any]]]:
        """Each batch of pictures as :meth:`enhance` would give them, in order.

        A batch of one size and dtype is one run of the network, whatever memory that takes. On an
        NVIDIA GPU the next batch is taken and begun before this one is waited for, so that copying
        and computing overlap; elsewhere nothing is taken ahead. Raises as :meth:`enhance` does.
        """
        scale, settings = check(self.method, strength=strength, scale=scale, controls=controls)
        begun: deque[Callable[[], list[NDArray[Any]]]] = deque()
        ahead = 1 if self._overlaps else 0
        for images in batches:
            begun.append(self._begin(images, strength, scale, settings))
            if len(begun) > ahead:
                yield begun.popleft()()
        while begun:
            yield begun.popleft()()

    @property
    def _torch(self) -> TorchEngine | None:
        """The engine, where it is torch's."""
        if self.engine.name != "torch":
            return None
        from .engines.pytorch import TorchEngine

        return self.engine if isinstance(self.engine, TorchEngine) else None

    @property
    def _overlaps(self) -> bool:
        """Whether runs go on after they have begun."""
        return self._torch is not None and self.device.startswith("cuda")

    def _parts(self, images: Sequence[NDArray[Any]], scale: int) -> list[list[int]]:
        """The numbers of pictures that go into the network together, of one size and dtype."""
        alike: dict[tuple[int, int, np.dtype[Any]], list[int]] = {}
        for number, image in enumerate(images):
            alike.setdefault((*image.shape[:2], image.dtype), []).append(number)
        parts = []
        for (height, width, _), numbers in alike.items():
            size = self.budget.at_once(height, width, scale)
            parts += [numbers[at : at + size] for at in range(0, len(numbers), size)]
        return parts

    def _begin(
        self,
        images: Sequence[NDArray[Any]],
        strength: float,
        scale: int,
        settings: dict[str, float],
    ) -> Callable[[], list[NDArray[Any]]]:
        """Begin a batch; what is returned waits for it and gives the pictures. Where memory runs
        out it is halved."""
        pictures = [Whole(i, strength, scale, self.method.multiple_of) for i in images]
        kinds = {(picture.shape, picture.original.dtype) for picture in pictures}
        if len(kinds) == 1 and self.budget.grid(pictures[0], "auto").whole:
            height, width = pictures[0].shape
            half = len(images) // 2
            if not half or self.budget.fits(len(images) * height * width):
                try:
                    return self._begin_run(pictures, scale, settings)
                except Exception as error:
                    if not memory.ran_out(error):
                        raise
                # Outside of the handler: what the failed run held is free only now.
                if half:
                    self.budget.lower_to((len(images) - half) * height * width)
                else:
                    self.budget.release()
            if half:
                halves = (images[:half], images[half:])
                begun = [self._begin(half, strength, scale, settings) for half in halves]
                return lambda: [image for wait in begun for image in wait()]
        options: dict[str, Any] = {"strength": strength, "scale": scale, **settings}
        results = [self.enhance(image, **options) for image in images]
        return lambda: results

    def _begin_run(
        self, pictures: Sequence[Whole], scale: int, settings: dict[str, float]
    ) -> Callable[[], list[NDArray[Any]]]:
        """Pictures of one size and dtype in one run."""
        parts = [picture.part() for picture in pictures]
        batch = np.stack([part.given for part in parts])

        def finished(enhanced: NDArray[Any]) -> list[NDArray[Any]]:
            return [
                picture.joined(part.finished(colours)[picture.within(scale)])
                for picture, part, colours in zip(pictures, parts, enhanced, strict=True)
            ]

        engine = self._torch
        if engine is None:
            enhanced = self.engine.run(batch, scale, settings)[0]
            return lambda: finished(enhanced)
        wait = engine.begin(batch, scale, settings, again=True)
        return lambda: finished(wait()[0])

    def _run(
        self,
        picture: Whole,
        controls: dict[str, float],
        maps: bool,
        tile: int | Literal["auto", "off"],
    ) -> list[NDArray[Any]]:
        """The colours of the enhanced picture and the maps: in one piece, or in tiles, which are
        made smaller where memory runs out."""
        grid = self.budget.grid(picture, tile)
        means: list[NDArray[np.float32]] = []  # those that have been measured
        while True:
            try:
                found = self._through(picture, grid, controls, maps, means)
                self.budget.ran(sum(plane.nbytes for plane in found))
                return found
            except Exception as error:
                if not memory.ran_out(error):
                    raise
            # Outside of the handler: what the failed run held is free only now.
            grid = self.budget.smaller(picture, grid, tile)

    def _through(
        self,
        picture: Whole,
        grid: tiling.Grid,
        controls: dict[str, float],
        maps: bool,
        means: list[NDArray[np.float32]],
    ) -> list[NDArray[Any]]:
        scale = picture.scale
        if grid.whole:
            part = picture.part()
            # An engine that is prepared for one size needs less memory.
            again = self.budget.max_memory is not None
            first, *rest = self.engine.run(
                part.given[None], scale, controls, maps=maps, again=again
            )
            enhanced = part.finished(first[0])[picture.within(scale)]
            return [enhanced, *(plane[0][picture.within(1)] for plane in rest)]
        height, width = grid.size
        self.budget.tell(f"{grid.down * grid.across} tiles of {width}x{height} pixels")
        given = self._measure(picture, grid, means) if self.method.means else None
        joined: list[NDArray[Any]] = []
        for tile in grid.tiles():
            part = picture.part(tile.outer)
            first, *rest = self.engine.run(
                part.given[None], scale, controls, maps=maps, means=given, again=True
            )
            planes = [part.finished(first[0]), *(plane[0] for plane in rest)]
            for number, plane in enumerate(planes):
                factor = 1 if number else scale  # maps have the input's size
                if number == len(joined):
                    joined.append(np.empty(picture.sized(factor), plane.dtype))
                place, kept = picture.place(tile, factor)
                joined[number][place] = plane[kept]
        self.budget.release()  # writing a large picture takes memory too
        return joined

    def _measure(
        self, picture: Whole, grid: tiling.Grid, found: list[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """The whole-picture means, exactly: one pass over all tiles for each of them.

        ``found`` keeps those that are done, for another try.
        """
        method, (height, width) = self.method, picture.shape
        counts = method.means
        means = np.zeros(sum(counts), np.float32)
        begin = 0
        for number, (count, radius) in enumerate(zip(counts, method.mean_radii, strict=True)):
            if number == len(found):
                total = np.zeros(count, np.float64)
                own = tiling.by_area(height, width, grid.pixels, radius, method.multiple_of)
                for tile in own.tiles():
                    given = picture.part(tile.outer).given
                    window = np.zeros(given.shape[:2], np.float32)
                    window[tile.crop] = 1
                    total += tile.area * self.engine.measure(
                        given, window, picture.scale, number, means
                    )
                found.append((total / (height * width)).astype(np.float32))
                self.budget.release()  # the next pass is another part of the network
            means[begin : begin + count] = found[number]
            begin += count
        return means
