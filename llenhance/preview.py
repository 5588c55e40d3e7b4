"""A look at a video before hours are spent: a strip of frames, before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from . import ends, sheets
from .choice import Choice
from .errors import MediaError
from .media import files, images, videos
from .media.picture import Picture
from .pixels import Array, convert

FRAMES = 5
_ANYWHERE = (0.0, 2.0, 10.0, 60.0, 300.0)  # seconds, where nobody knows how long it is
_BYTE = np.dtype(np.uint8)


def preview(
    source: Path,
    apply: Callable[[Array], Array],
    choice: Choice,
    target: Path,
    *,
    overwrite: bool,
) -> None:
    """Write one strip, before and after, of frames spread over the video; HDR as it is shown to
    the network. Raises MediaError."""
    opened = ends.open_source(source, choice, exact=False)
    info = opened.info
    hdr = videos.HdrView(info) if info.hdr else None
    begin, seconds = choice.start or 0.0, info.duration * opened.share(choice)
    pairs = []
    places = [seconds * (number + 0.5) / FRAMES for number in range(FRAMES)]
    for frame in _frames(opened, begin, _ANYWHERE if opened.endless else places):
        image = frame.image if hdr is None else hdr.view(frame.image)
        seen = videos.clock(float((frame.pts - info.start) * info.time_base))
        pairs.append((seen, convert(image, _BYTE), convert(apply(image), _BYTE)))
    if not pairs:
        raise MediaError("no frames to preview")
    sheet = Picture([sheets.strip(pairs)], "png")
    with files.publish(target, overwrite=overwrite, like=opened.path) as temporary:
        temporary.write_bytes(images.encode(sheet, "png"))


def _frames(opened: ends.Source, begin: float, places: Iterable[float]) -> Iterator[videos.Frame]:
    """The first frame that begins at each of the places (seconds from ``begin``) or later, where
    there is one; at least the first of all."""
    found = False
    for place in (*places, 0.0):
        if found and place == 0.0:
            return  # else the last frame begins before all places, and is shown for long
        with opened.reader(begin + place) as reader:
            try:
                frame = next(iter(reader))
            except MediaError:  # the estimate of the length was too long
                continue
        found = True
        yield frame
