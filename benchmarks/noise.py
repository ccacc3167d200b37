"""What noise does to the consistency of rendered frames: the job key `noise` on panning footage.

    python -m benchmarks.noise [VIDEO ...] [--step 4] [--frames 24] [--size 160 256] [--seeds 0 1 2]

A camera pans over the first frame of each video, `step` pixels per frame, so that the true motion is known to be
simple. The embedded model renders it with every noise, two prompts and three seeds. warp1 and warp5 are differences
along the motion, ×1000 (docs/metrics.md); less is better. Without VIDEO, the demo's clip is used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

import diffsynth_cli as ds
from stages.base.arrays import Image
from stages.base.cache import FrameCache
from stages.jobs.job import Job
from stages.smoothers.images.metrics import measure
from stages.video import fit, open_source, write_frames

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
PROMPTS = ("winter, snow, night", "oil painting, autumn")
METRICS = ("warp1", "warp5", "sharpness")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, default=[TEMPLATES / "demo.mp4"])
    parser.add_argument("--step", type=float, default=4)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    kinds = get_args(Job.model_fields["noise"].annotation)
    table = Table(title=f"{given.frames} frames, panning {given.step:g} px per frame; rendered, and deflickered")
    for heading in ("video", "prompt", "seed", "noise", *METRICS, *METRICS):
        table.add_column(heading, justify="right")
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        for video in given.videos:
            footage = Path(folder) / video.stem
            write_frames(footage, pan(video, given.step, given.frames, *given.size), "pan")
            for prompt, seed, kind in ((p, s, k) for p in PROMPTS for s in given.seeds for k in kinds):
                numbers = evaluate(footage, prompt, seed, kind)
                found[kind].append(numbers)
                table.add_row(video.stem, prompt, str(seed), kind, *(f"{number:.2f}" for number in numbers))
    for kind, rows in found.items():
        table.add_row("mean", "", "", kind, *(f"{number:.2f}" for number in np.mean(rows, axis=0)))
    Console().print(table)


def pan(video: Path, step: float, frames: int, height: int, width: int) -> Iterator[Image]:
    """Yield what a camera sees that pans over the first frame of a video."""
    still = next(open_source(video).shots()).image()
    wide = fit(still, height, int(width + step * frames))
    for frame in range(frames):
        centre = (width - 1) / 2 + step * frame, (height - 1) / 2
        yield np.asarray(cv2.getRectSubPix(wide, (width, height), centre), np.uint8)


def evaluate(footage: Path, prompt: str, seed: int, kind: str) -> list[float]:
    """Render the footage and return METRICS of the rendered frames, then of the deflickered ones."""
    demo = json.loads((TEMPLATES / "demo.json").read_text())
    output = footage.parent / "output"
    keys = {"input_video": str(footage), "output_path": str(output), "smoother": None, "noise": kind}
    ds.run({**demo, **keys, "prompt": prompt, "seed_of_noise": seed}, restart=True)
    cache = FrameCache(output / "cache.zarr")
    guide = cache["frames"][:]
    curves = measure(guide, [cache[name][:] for name in ("rendered", "deflickered")])
    return [curve.summary()[metric] for curve in curves for metric in METRICS]


if __name__ == "__main__":
    main()
