"""Videos: flicker with and without ``--stabilize``, noise over time, speed and memory.

    python -m benchmarks.video CLIP... [--methods dln,neid] [--start 16.7] [--frames 60]

Prints a Markdown table with a row for each clip and method. Flicker and noise are measured on the
frames as they leave the network and the stabilizer, before an encoder smooths them; what they mean
is said in ``llenhance/metrics.py``. Frames a second and memory are those of the real command on the
same part of the clip: decoding, network, evening, encoding and verifying, without loading.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from llenhance import METHODS, load
from llenhance.media import videos
from llenhance.media.video.info import plain_info
from llenhance.metrics import Flicker, TemporalNoise
from llenhance.stabilize import Stabilizer

ENOUGH = 1.1  # a flicker that needs no evening
SHARE = 0.6  # of the excess over 1 that evening takes out of a larger one


@dataclass(frozen=True)
class Steadiness:
    """Of one method on one clip; each pair is without and with ``--stabilize auto``."""

    frames: int
    size: tuple[int, int]  # width, height
    whole: tuple[float, float]  # flicker of the mean luma
    blocks: tuple[float, float]  # flicker of the 8x8 blocks
    noise_in: float  # standard deviation over time of still regions, in 8-bit code values
    noise_out: tuple[float, float]

    @property
    def held(self) -> bool:
        """Whether evening does what is promised of it."""
        return all(kept(*pair) for pair in (self.whole, self.blocks))


@dataclass(frozen=True)
class Speed:
    """Of the real command."""

    fps: float
    megabytes: float | None  # largest resident size; None where the system does not tell


def taken_out(before: float, after: float) -> float:
    """The share of a flicker's excess over 1 that is gone."""
    return (before - after) / (before - 1) if before > 1 else 0.0


def kept(before: float, after: float) -> bool:
    """Whether 60% of the excess is gone, or too little is there to be seen."""
    return after <= max(ENOUGH, 1 + (1 - SHARE) * (before - 1))


def frames_of(
    clip: Path, *, start: float = 0.0, count: int | None = None, width: int | None = None
) -> Generator[Any, None, None]:
    """Frames (H, W, 3) RGB of a clip from ``start`` seconds on, made smaller where wider."""
    with videos.VideoReader(clip, start=start or None) as reader:
        for frame in islice(reader, count):
            image = frame.image
            if width is not None and image.shape[1] > width:
                height = round(image.shape[0] * width / image.shape[1])
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            yield image


def steadiness(frames: Iterable[Any], method: str, threads: int | None = None) -> Steadiness:
    """Flicker and noise of a method on frames (H, W, 3) RGB, at least three."""
    enhancer, evening = load(method, device="cpu", threads=threads), Stabilizer()
    flicker = Flicker(), Flicker()
    noise = TemporalNoise(), TemporalNoise()
    shape: tuple[int, ...] = ()
    for frame in frames:
        shape = frame.shape
        result = enhancer.enhance(frame)
        for side, image in enumerate((result, evening(frame, result))):
            flicker[side].add(frame, image)
            noise[side].add(frame, image)
    values = [(measure.whole, measure.blocks) for measure in flicker]
    outs = [measure.after for measure in noise]
    if None in values[0] or outs[0] is None:
        raise SystemExit("a clip needs at least three frames")
    return Steadiness(
        flicker[0].frames,
        (shape[1], shape[0]),
        (values[0][0] or 0.0, values[1][0] or 0.0),
        (values[0][1] or 0.0, values[1][1] or 0.0),
        noise[0].before or 0.0,
        (outs[0] or 0.0, outs[1] or 0.0),
    )


def speed(clip: Path, method: str, options: Sequence[str] = ()) -> Speed:
    """The rate and the memory of the command on a clip."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.mkv"
        words = ["--device", "cpu", "--json", *options]
        arguments = ["-c", _COMMAND, str(clip), "-m", method, "-o", str(target), *words]
        ran = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        if ran.returncode:
            raise SystemExit(f"{clip}, {method}: {ran.stderr.decode(errors='replace').strip()}")
    *_, done, memory = (json.loads(line) for line in ran.stdout.splitlines())
    return Speed(done["frames"] / done["seconds"], memory)


# The command, and then a line with its largest resident size. Linux counts what the parent had when
# it started the process into ru_maxrss, but not into VmHWM.
_COMMAND = """
import atexit, sys
from pathlib import Path
from llenhance import cli
def tell():
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        size = next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    except OSError:
        try:
            import resource
        except ImportError:
            size = "null"
        else:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            size = most / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
    print(size)
atexit.register(tell)
cli.main()
"""


def reduced(clip: Path, target: Path, width: int, start: float, count: int | None) -> None:
    """A part of a clip with smaller frames, lossless."""
    info = videos.probe(clip)
    writer: videos.VideoWriter | None = None
    with closing(frames_of(clip, start=start, count=count, width=width)) as frames:
        for number, image in enumerate(frames):
            if writer is None:
                small = plain_info(
                    clip,
                    "pictures",
                    (image.shape[1], image.shape[0]),
                    info.frame_rate,
                    time_base=1 / info.frame_rate,
                    frames=1,
                )
                plan = videos.plan_encoding(small, container=".mkv", codec="ffv1", pix_fmt="bgr0")
                writer = videos.VideoWriter(target, small, plan)
            writer.write(np.ascontiguousarray(image), number)
    assert writer is not None
    writer.close()


def row(clip: str, method: str, found: Steadiness, rate: Speed) -> str:
    """A line of the table."""

    def pair(values: tuple[float, float]) -> str:
        before, after = values
        told = "steady" if after <= ENOUGH else f"{taken_out(*values):.0%} gone"
        return f"{before:.3f} -> {after:.3f} ({told if kept(*values) else told + ', MISSED'})"

    noise = f"{found.noise_in:.2f} -> {found.noise_out[0]:.2f} / {found.noise_out[1]:.2f}"
    size = f"{found.frames} of {found.size[0]}x{found.size[1]}"
    memory = "?" if rate.megabytes is None else f"{rate.megabytes:,.0f} MB"
    cells = (clip, size, method, pair(found.whole), pair(found.blocks), noise)
    return f"| {' | '.join(cells)} | {rate.fps:.2f} | {memory} |"


HEAD = (
    "| clip | frames | method | flicker, whole | flicker, 8x8 blocks"
    " | noise in -> out / evened | frames/s | memory |\n|---|---|---|---|---|---|---|---|"
)


def main(arguments: Sequence[str]) -> int:
    """Measure what the arguments say; the status is 1 where a promise is not held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video", description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--start", type=float, default=0.0, help="seconds")
    parser.add_argument("--frames", type=int, help="how many; all of them if not given")
    parser.add_argument("--width", type=int, help="make wider frames smaller")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    print(HEAD, flush=True)
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for clip in options.clips:
            part = Path(folder) / "part.mkv"
            whole = options.width is None and options.frames is None and not options.start
            if not whole:
                width = options.width or sys.maxsize
                reduced(clip, part, width, options.start, options.frames)
            for method in options.methods.split(","):
                found = steadiness(frames_of(clip if whole else part), method, options.threads)
                words = [] if options.threads is None else ["--threads", str(options.threads)]
                rate = speed(clip if whole else part, method, words)
                print(row(clip.name, method, found, rate), flush=True)
                missed += not found.held
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
