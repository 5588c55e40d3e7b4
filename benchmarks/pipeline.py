"""How much of what the machine allows a folder of photos and a video reach.

The machine allows min(1 / slowest stage, cores / sum of the stages' CPU seconds): the stages
(decode, network, encode) may overlap, but each photo passes all of them and no core does two things
at once. The stages are measured one at a time, with nothing beside them, on the same files and in
the same run as the command, whose time counts from its start to its end, start-up included.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from . import material
from .apart import ROOT, apart, environment
from .first import command

TARGET = 0.85
PHOTOS, FRAMES = 200, 600
FASTEST = "lightweight"  # has the whole folder; where the network is slow the rest hardly counts
SLOWER = 20  # photos, and frames, for the others
STAGES = ("decode", "network", "encode")


def measure(
    threads: int,
    methods: Sequence[str] = (FASTEST,),
    photos: Path | None = None,
    *,
    quick: bool = False,
) -> list[dict[str, Any]]:
    """A row for the folder and one for the video with each method."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for method in methods:
            share = 1 if method == FASTEST else SLOWER
            folder, clip = Path(place) / method, Path(place) / f"{method}.mp4"
            if photos is None:
                folder.mkdir()
                count = 3 if quick else PHOTOS if share == 1 else SLOWER
                apart(make_photos, str(folder), count, threads=threads)
            found = photos or folder
            frames = 12 if quick else FRAMES // share
            apart(make_clip, str(clip), frames, threads=threads)
            for kind, source, stages in (
                ("folder", found, folder_stages),
                ("video", clip, video_stages),
            ):
                rows.append(_row(kind, method, source, stages, Path(place), threads, quick=quick))
    return rows


def _row(
    kind: str, method: str, source: Path, stages: Any, place: Path, threads: int, *, quick: bool
) -> dict[str, Any]:
    """The command and the stages in turn, so that what else the machine does meets both."""
    runs, alone = [], []
    for _ in range(1 if quick else 2):
        target = place / "out" / (source.stem + source.suffix)
        runs.append(run(method, source, target, threads))
        alone.append(apart(stages, method, str(source), str(place / "stages"), threads=threads))
    stage, whole = total(alone), {key: statistics.fmean(r[key] for r in runs) for key in runs[0]}
    row = {"kind": kind, "method": method, "items": stage["items"]}
    row |= {"megapixels": stage["megapixels"], "stages": stage, "command": whole}
    row |= {"rounds": {"command": runs, "stages": alone}}
    return row | limit(stage, whole["wall"], threads)


def total(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of what several rounds told of the stages."""
    told = dict(rounds[0])
    for kind in ("wall", "cpu"):
        told[kind] = {s: statistics.fmean(r[kind][s] for r in rounds) for s in rounds[0][kind]}
    return told


def limit(stages: dict[str, Any], wall: float, cores: int) -> dict[str, Any]:
    """What the machine allows and what was reached, both in items a second."""
    count = stages["items"]
    slowest = max(stages["wall"].values()) / count
    together = sum(stages["cpu"].values()) / count
    allowed = min(1 / slowest, cores / together)
    reached = count / wall
    return {
        "allowed": allowed,
        "reached": reached,
        "share": reached / allowed,
        "target": TARGET,
        "met": reached / allowed >= TARGET,
    }


def run(method: str, source: Path, target: Path, threads: int) -> dict[str, float]:
    """The command: seconds from start to end, CPU seconds, largest resident megabytes."""
    words = [*command(), str(source), "-m", method, "-o", str(target), "--on-exists", "overwrite"]
    began = time.perf_counter()
    process = subprocess.Popen([*words, "--quiet"], cwd=ROOT, env=environment(threads))
    if not hasattr(os, "wait4"):
        status, cpu, resident = process.wait(), float("nan"), float("nan")
    else:
        _, status, usage = os.wait4(process.pid, 0)  # with those that it has waited for
        process.returncode = status
        cpu, resident = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    wall = time.perf_counter() - began
    if status:
        raise RuntimeError(f"{' '.join(words)}: status {status}")
    return {"wall": wall, "cpu": cpu, "megabytes": resident}


class Clock:
    """Adds up the wall and CPU seconds of named stages that take turns in this process."""

    def __init__(self) -> None:
        self.wall, self.cpu = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0)
        self.stage: str | None = None
        self.since = (0.0, 0.0)

    def enter(self, stage: str) -> None:
        """From now on it is this stage."""
        self.leave()
        self.stage, self.since = stage, (time.perf_counter(), time.process_time())

    def leave(self) -> None:
        """From now on it is none."""
        if self.stage is not None:
            self.wall[self.stage] += time.perf_counter() - self.since[0]
            self.cpu[self.stage] += time.process_time() - self.since[1]
        self.stage = None


def folder_stages(method: str, source: str, target: str) -> dict[str, Any]:
    """Each photo of a folder through each stage, with nothing beside it."""
    from llenhance import jobs
    from llenhance.choice import Choice
    from llenhance.plan import Job, plan
    from llenhance.report import Report

    clock = Clock()
    names = {"read": "decode", "enhance": "network", "write": "encode"}

    class Watch(jobs.Watch):
        def begins(self, job: Job, stage: str) -> None:  # noqa: ARG002
            clock.enter(names[stage])

        def pauses(self, job: Job) -> None:  # noqa: ARG002
            clock.leave()

        def over(self, job: Job) -> None:  # noqa: ARG002
            clock.leave()

    planned = plan([source], target, models=[method], on_exists="overwrite")
    settings = jobs.Settings(1.0, None, {}, "auto", None, overwrite=True)
    report = Report(-1, as_json=False, keep=True)
    enhancers = jobs.Loading().open([method], report)
    jobs.run(planned.jobs[:1], enhancers, report, settings, Choice(), jobs.Watch())  # warms up
    jobs.run(planned.jobs, enhancers, report, settings, Choice(), Watch(), overlap=False)
    if report.failures:
        raise RuntimeError(f"photos of the benchmark fail: {report.failures[0]}")
    pixels = sum(row["width"] * row["height"] for row in report.rows[1:])
    return _told(clock, len(planned.jobs), pixels)


def video_stages(method: str, source: str, target: str) -> dict[str, Any]:
    """All frames of a video through each stage, with nothing beside it."""
    from llenhance import load
    from llenhance.choice import Choice
    from llenhance.ends import open_source
    from llenhance.engines import available_threads
    from llenhance.media import videos
    from llenhance.stabilize import Stabilizer

    clock, threads = Clock(), available_threads()
    opened = open_source(Path(source), Choice())
    enhancer, steady = load(method), Stabilizer()
    with opened.reader(None) as reader:
        clock.enter("decode")
        frames = list(reader)
        clock.leave()
    enhancer.enhance(frames[0].image)
    clock.enter("network")
    enhanced = [steady(frame.image, enhancer.enhance(frame.image)) for frame in frames]
    clock.enter("encode")
    written = Path(target + ".mp4")
    plan = videos.plan_encoding(opened.info, container=".mp4")
    with videos.VideoWriter(written, opened.info, plan, threads=threads) as writer:
        for frame, image in zip(frames, enhanced, strict=True):
            writer.write(image, frame.pts, frame.duration)
    clock.leave()
    height, width = frames[0].image.shape[:2]
    return _told(clock, len(frames), len(frames) * height * width)


def _told(clock: Clock, items: int, pixels: int) -> dict[str, Any]:
    return {"items": items, "megapixels": pixels / 1e6, "wall": clock.wall, "cpu": clock.cpu}


def make_photos(folder: str, count: int) -> None:
    """So many photos of mixed sizes and formats."""
    material.photos(Path(folder), count)


def make_clip(path: str, frames: int, width: int = 640, height: int = 360) -> None:
    """A video of so many frames."""
    material.clip(Path(path), frames, width, height)


def tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """For people."""
    table = Table(
        *("what", "method", "items", "MP", *(f"{stage}, CPU s" for stage in STAGES)),
        *("slowest, s", "command, s", "its CPU s", "allowed/s", "reached/s", "share", "target"),
        title="The whole pipeline",
    )
    for column in table.columns[2:13]:
        column.justify = "right"
    for row in rows:
        stages, whole = row["stages"], row["command"]
        table.add_row(
            row["kind"],
            row["method"],
            str(row["items"]),
            f"{row['megapixels']:.0f}",
            *(f"{stages['cpu'][stage]:.1f}" for stage in STAGES),
            f"{max(stages['wall'].values()):.1f}",
            f"{whole['wall']:.1f}",
            f"{whole['cpu']:.1f}",
            f"{row['allowed']:.2f}",
            f"{row['reached']:.2f}",
            f"{row['share']:.2f}",
            f"{row['target']:.2f} {'met' if row['met'] else 'missed'}",
        )
    yield table
