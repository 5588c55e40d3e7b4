"""The benchmark of videos runs as its own command, and keeps its promise."""

import math
import subprocess
import sys
from pathlib import Path

import clips
import pytest

ROOT = Path(__file__).parents[1]


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.video", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_row_for_each_clip_and_method(tmp_path):
    one = clips.clip(tmp_path / "one.mp4", frames=12)
    two = clips.clip(tmp_path / "two.mkv", frames=12, audio=("aac",))
    words = ("--methods", "lightweight,residual", "--threads", "1", "--frames", "6")
    done = run(one, two, *words, "--width", "80")
    lines = done.stdout.splitlines()
    assert done.returncode == int("MISSED" in done.stdout), done.stderr
    assert len(lines) == 6
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0] for row in cells] == ["one.mp4"] * 2 + ["two.mkv"] * 2
    assert [row[2] for row in cells] == ["lightweight", "residual"] * 2
    for row in cells:
        assert row[1] == "6 of 80x48"
        before, after = row[3].split(" (")[0].split(" -> ")
        assert math.isfinite(float(before))
        assert math.isfinite(float(after))
        assert float(row[6]) > 0


@pytest.mark.parametrize(
    ("before", "after", "held"),
    [(3.0, 1.8, True), (3.0, 1.81, False), (1.3, 1.1, True), (1.2, 1.15, False), (0.7, 0.8, True)],
)
def test_what_is_promised_of_the_flicker(before, after, held):
    code = f"from benchmarks.video import kept; print(kept({before}, {after}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(held)
