"""Numbered pictures as a video, and a video as numbered pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ... import pixels
from ...errors import MediaError, Refusal
from .. import colour, files, images
from ..picture import MAX_PIXELS, Limits, Picture
from .alone import Lost
from .info import Image, VideoInfo, plain_info
from .places import find, numbered
from .reading import VideoReader
from .scope import Scope


class SequenceReader(VideoReader):
    """Pictures whose names differ in a number alone, in its order, as a video of ``rate``.

    The n-th file there is the n-th frame. Takes what VideoReader takes; a picture that cannot be
    read is a damaged frame, and what the video is like is said by the first one that can. Colours
    come as sRGB, transparency is left out.
    """

    def __init__(
        self, path: Path, rate: Fraction, *, max_pixels: int = MAX_PIXELS, **choices: Any
    ) -> None:
        self._files, self._max_pixels = find(path), max_pixels
        if not self._files:
            raise MediaError("no files have such names")
        first, alpha, lost = self._first()
        info = plain_info(
            path,
            "pictures",
            (first.shape[1], first.shape[0]),
            rate,
            time_base=1 / rate,
            frames=len(self._files),
            depth=8 if first.dtype == np.uint8 else 16,
        )
        super().__init__(path, info=replace(info, alpha=alpha), **choices)
        self.decoder = "pictures"
        self.notes += lost
        numbers = [number for number, _ in self._files]
        absent = numbers[-1] - numbers[0] + 1 - len(numbers)
        if absent:
            self.notes.append(f"{absent} numbers between the first and the last have no file")

    def _first(self) -> tuple[Image, bool, list[str]]:
        """The first picture that can be read, whether it is transparent anywhere, and what of it
        is left out. Raises MediaError, what the very first one said, where there is none."""
        failure: MediaError | None = None
        for _, path in self._files:
            try:
                return _read(path, self._max_pixels)
            except MediaError as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def _pixels(self) -> Iterator[tuple[int, int, Image | None]]:
        kind = np.dtype(np.uint8 if self.info.bit_depth == 8 else np.uint16)
        for index, (_, path) in enumerate(self._files):
            if self._from is not None and index < self._from - 1:
                continue
            try:
                image = pixels.convert(_read(path, self._max_pixels)[0], kind)
            except MediaError:
                yield index, 1, None
                continue
            if image.shape[:2] != (self.info.height, self.info.width):
                raise MediaError(
                    f"the frame size changes from {self.info.width}x{self.info.height} to "
                    f"{image.shape[1]}x{image.shape[0]} at {path.name}"
                )
            yield index, 1, image


def _read(path: Path, max_pixels: int) -> tuple[Image, bool, list[str]]:
    """(H, W, 3) RGB, uint8 or uint16, whether it is transparent anywhere, and what of the picture
    is left out, for people. Raises MediaError."""
    data = files.read(path, Limits(max_pixels).size)
    picture = images.read(data, max_pixels=max_pixels)
    frame = colour.as_srgb(picture.frames[0], picture.icc, mapped=picture.linear)
    rgb, layout = pixels.split(frame)
    alpha = layout.alpha
    opaque = 1 if frame.dtype == np.float32 else np.iinfo(frame.dtype).max
    transparent = alpha is not None and bool((alpha < opaque).any())
    if rgb.dtype == np.float32:
        rgb = pixels.convert(pixels.tone_map(rgb), np.dtype(np.uint16))
    lost = {
        "light above white is compressed, and floats become 16 bits": frame.dtype == np.float32,
        "their colour profile is dropped: frames are sRGB": not (
            picture.linear or colour.is_srgb(picture.icc)
        ),
        "their metadata is dropped": picture.exif is not None or picture.xmp is not None,
        "of several frames or pages in a file the first is taken": len(picture.frames) > 1,
    }
    return rgb, transparent, [sentence for sentence, true in lost.items() if true]


def picture_format(path: Path) -> str:
    """The format of a name's suffix; raises Refusal where pictures are not written so."""
    name = images.writable(path.suffix)
    if name is None:
        raise Refusal(f"{path}: pictures are not written as {path.suffix}")
    return name


class SequenceWriter(Scope):
    """Writes each frame as a picture, whole by rename; ``first`` is the first one's number.

    There is nothing to close. ``source`` is what the frames come from; ``quality`` as for
    :func:`images.encode`; ``software`` names in the metadata what made the picture; ``like`` is a
    file with the permissions that pictures get.
    """

    def __init__(
        self,
        path: Path,
        source: VideoInfo,
        *,
        first: int = 1,
        overwrite: bool = False,
        quality: int | None = None,
        software: str | None = None,
        like: Path | None = None,
    ) -> None:
        self._path, self._format = path, picture_format(path)
        self._next, self._overwrite = first, overwrite
        self._quality, self._software, self._like = quality, software, like
        self.frames = self.size = 0
        self.span = (0, 0)  # when the first frame begins and the last one ends
        self._lost = Lost(source)
        self.dropped = self._lost.sentences

    def write(self, image: Image, pts: int, duration: int = 0) -> None:
        """(H, W, 3) RGB, uint8 or uint16. Raises MediaError."""
        picture = Picture([image], self._format)
        if not self.frames:
            self.dropped += images.losses(picture, self._format)
        self._lost.see(pts)
        target = numbered(self._path, self._next)
        with files.publish(target, overwrite=self._overwrite, like=self._like) as temporary:
            data = images.encode(
                picture, self._format, quality=self._quality, provenance=self._software
            )
            temporary.write_bytes(data)
        self.size += len(data)
        self.span = (self.span[0] if self.frames else pts, pts + duration)
        self.frames += 1
        self._next += 1


def first_number(source: VideoInfo) -> int:
    """The number that a source's first frame has; 1 where it has none."""
    return find(source.path)[0][0] if source.codec == "pictures" else 1
