"""Speed and peak memory of every stage, by number of frames.

    python -m benchmarks.stages [VIDEO] [--frames 24 240] [--size HEIGHT WIDTH] [--steps 3] [--batch-size 4]

Each stage runs in a process of its own. Networks are tiny, with random weights, so that this
measures the overhead of the program. Without VIDEO, a moving scene is generated. Memory is the peak
resident set of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from stages.all_stages import NAMES
from stages.base.arrays import Image
from stages.video import Encoding, encode

MODELS = Path(__file__).resolve().parent.parent / "tests" / "golden" / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path)
    parser.add_argument("--frames", type=int, nargs="+", default=[24, 240])
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    given = parser.parse_args()
    table = Table(title=f"{given.video or 'moving scene'}, {given.size[1]}×{given.size[0]}, {given.steps} steps")
    for heading in ("stage", "frames", "total seconds", "seconds of work", "frames/s", "peak MB"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        video = given.video or make_clip(Path(folder) / "clip.mp4", max(given.frames), *given.size)
        for stage, count, row in measure(Path(folder), video.resolve(), given):
            table.add_row(stage, str(count), *row)
    Console().print(table)


def measure(folder: Path, video: Path, given: argparse.Namespace) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    jobs = {count: write_job(folder, video, count, given) for count in given.frames}
    for stage in NAMES:
        for count, job in jobs.items():
            seconds, peak = run(
                [stage, str(job), "--quiet"] + ["--batch-size", str(given.batch_size)] * (stage == "render")
            )
            receipt = json.loads((folder / f"out{count}/cache.zarr/receipts/{stage}.json").read_text())
            work = receipt["seconds"]
            speed = receipt["frames"] / work
            yield stage, receipt["frames"], (f"{seconds:.1f}", f"{work:.2f}", f"{speed:.1f}", f"{peak:.0f}")


def run(arguments: list[str]) -> tuple[float, float]:
    """Run a command and return its seconds and its peak memory in MB."""
    started = time.monotonic()
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "diffsynth_cli", *arguments])
    _, status, usage = os.wait4(pid, 0)
    if status != 0:
        sys.exit(f"diffsynth {' '.join(arguments)} failed")
    return time.monotonic() - started, usage.ru_maxrss / 1024


def write_job(folder: Path, video: Path, count: int, given: argparse.Namespace) -> Path:
    height, width = given.size
    path = folder / f"job{count}.json"
    path.write_text(json.dumps({
        "model_id": str(MODELS / "sd"), "controlnet_model_id": [str(MODELS / "control0")],
        "controlnet_processor": ["canny"], "input_video": str(video), "frame_height": height, "frame_width": width,
        "frame_maximum_count": count, "output_path": f"out{count}", "prompt": "winter",
        "num_inference_steps": given.steps, "combine_pattern": [-10000, -1, 0, 1],
        "smoother": "TemporalMeanSmoother", "smoother_interval": 2, "post_smoother": "TemporalMeanSmoother",
    }))  # fmt: skip
    return path


def make_clip(path: Path, count: int, height: int, width: int) -> Path:
    """Write a video of a moving pattern."""
    y, x = np.mgrid[:height, :width]

    def frame(index: int) -> Image:
        image: Image = np.stack([(x + 3 * index) % 256, (y * 2 + index) % 256, (x ^ y) % 256], axis=2).astype(np.uint8)
        return image

    encode(path, map(frame, range(count)), Encoding(fps=Fraction(25)))
    return path


if __name__ == "__main__":
    main()
