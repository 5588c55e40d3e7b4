"""Dark pictures and videos made by code: the spectrum of photographs, shapes, noise of a sensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llenhance.media import images
from llenhance.media.picture import Picture

# Width, height and how many of each 20 photos have them: pictures from the web, phones, cameras.
MIX = (
    (600, 400, 6),
    (960, 640, 5),
    (1280, 853, 4),
    (1600, 1200, 3),
    (2048, 1365, 1),
    (3000, 2000, 1),
)
FORMATS = (".jpg", ".jpg", ".jpg", ".png", ".jpg", ".jpg", ".webp", ".jpg", ".jpg", ".tif")
SCENES = 2  # of which photos show parts


def dark(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: clouds of every size with amplitudes as photographs have them, a few hard
    edges and lamps, exposed for a tenth of the light, with a sensor's noise."""
    rng = np.random.default_rng(seed)
    scene = np.zeros((height, width, 3), np.float32)
    side = 4
    while side < 2 * max(height, width):  # each octave half as strong: 1/f
        grid = rng.standard_normal((min(side, height) + 1, min(side, width) + 1, 3), np.float32)
        scene += _enlarged(grid, height, width) * np.float32(2.0 / side**0.7)
        side *= 2
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(12):
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        reach = rng.uniform(0.03, 0.2) * min(height, width)
        inside = np.hypot(y - row, x - column) < reach
        scene[inside] += rng.uniform(-0.8, 0.8, 3).astype(np.float32)
    light = 1 / (1 + np.exp(-1.5 * scene))
    light = 0.1 * light + rng.standard_normal(light.shape, np.float32) * np.float32(0.004)
    coded = np.clip(light, 0, 1) ** np.float32(1 / 2.2)
    return np.asarray(np.rint(coded * 255 * np.float32(0.6)), np.uint8)


def _enlarged(grid: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    import cv2

    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def photos(folder: Path, count: int) -> list[Path]:
    """Write so many photos of mixed sizes and formats; the same ones each time."""
    rng = np.random.default_rng(7)
    sizes = [(width, height) for width, height, share in MIX for _ in range(share)]
    order = rng.permutation(max(count, len(sizes))) % len(sizes)
    widest, highest = max(width for width, *_ in MIX), max(height for _, height, _ in MIX)
    scenes = [dark(highest, widest, number) for number in range(min(SCENES, count))]
    made: list[Path] = []
    for number in range(count):
        width, height = sizes[order[number]]
        top, left = rng.integers(highest - height + 1), rng.integers(widest - width + 1)
        view = scenes[number % SCENES][top : top + height, left : left + width]
        path = folder / f"photo{number:04d}{FORMATS[number % len(FORMATS)]}"
        write(path, np.ascontiguousarray(view[:, :: rng.choice((1, -1))]))
        made.append(path)
    return made


def write(path: Path, image: NDArray[np.uint8]) -> None:
    """In the format of its suffix."""
    wanted = images.format_of_suffix(path.suffix) or "png"
    path.write_bytes(images.encode(Picture([image], wanted), wanted))


def clip(path: Path, frames: int, width: int = 640, height: int = 360) -> None:
    """An H.264 video of a camera that moves over one large dark picture."""
    import av

    scene = dark(height * 2, width * 2, 99)
    rng = np.random.default_rng(3)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            top = round((1 + np.sin(number / 40)) / 2 * height)
            left = round((1 + np.sin(number / 29)) / 2 * width)
            view = scene[top : top + height, left : left + width].astype(np.int16)
            view = view + rng.integers(-2, 3, (height, width, 1), np.int16)
            image = np.clip(view, 0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
