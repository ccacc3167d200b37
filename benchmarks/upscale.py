"""What a second pass adds, and what it costs in consistency: the job key `upscale` beside plain enlargement.

    python -m benchmarks.upscale [VIDEO] [--strength 0.3 0.5] [--tile 0 160] [--steps 10]

The embedded model renders the video once. Its result, enlarged with Lanczos' filter, is compared with a second pass at
twice the size for each strength, in whole frames (tile 0) and in tiles, smoothed like the first one. Measures are those
of docs/metrics.md, along the motion of the source at the larger size. Without VIDEO, the demo's clip is used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

import diffsynth_cli as ds
from stages.base.arrays import Images
from stages.base.cache import FrameCache
from stages.smoothers.images.metrics import measure

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
METRICS = ("warp1", "warp5", "flicker", "sharpness")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path, default=TEMPLATES / "demo.mp4")
    parser.add_argument("--strength", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--tile", type=int, nargs="+", default=[0, 160], help="0 for whole frames")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    table = Table(title=f"{given.video.name}, twice as large")
    for heading in ("result", *METRICS):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        keys = {"input_video": str(given.video.resolve()), "output_path": folder}
        small = deflickered(keys)
        for number, (strength, tile) in enumerate(product(given.strength, given.tile)):
            upscale = {"strength": strength, "steps": given.steps, "tile": tile or None}
            large = deflickered({**keys, "upscale": upscale})
            guide = FrameCache(Path(folder) / "cache.zarr")["large_frames"][:]
            if not number:
                table.add_row("enlarged", *measured(guide, enlarged(small, *guide.shape[1:3])))
            table.add_row(f"strength {strength:g}, tile {tile or 'none'}", *measured(guide, large))
    Console().print(table)


def deflickered(keys: Mapping[str, object]) -> Images:
    """Run the demo's job with these keys, redoing what they change, and return the result."""
    demo = json.loads((TEMPLATES / "demo.json").read_text())
    result = ds.run({**demo, **keys}, restart=True)
    return FrameCache(result.output_path / "cache.zarr")["deflickered"][:]


def enlarged(frames: Images, height: int, width: int) -> Images:
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_LANCZOS4) for frame in frames])


def measured(guide: Images, video: Images) -> list[str]:
    (curve,) = measure(guide, [video])
    return [f"{curve.summary()[metric]:.2f}" for metric in METRICS]


if __name__ == "__main__":
    main()
