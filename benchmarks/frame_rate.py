"""How well frames painted in between replace real ones: `export --fps 2x` beside simpler ways.

    python -m benchmarks.frame_rate VIDEO [--guide VIDEO] [--frames 60]

Every second frame is left out and made again from the two around it: by repeating the nearer one, by averaging them, by
OpenCV's DIS optical flow in both directions, and by this program. PSNR in dB is pooled over all frames, SSIM is a mean.
For a stylised video without flicker, such as one that `diffsynth smooth` wrote, give the original one as --guide.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from skimage.metrics import structural_similarity

from stages.base.arrays import Flow, Image, Images
from stages.frame_rate import Raised
from stages.smoothers.images.pixels import flow
from stages.video import fit, open_source

Way = Callable[[Image, Image], Image]
"""Returns the frame in the middle of two."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--guide", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    given = parser.parse_args()
    video = frames_of(given.video, given.frames)
    guide = None if given.guide is None else [fit(frame, *video.shape[1:3]) for frame in frames_of(given.guide, None)]
    kept, left_out = video[::2], video[1:-1:2]
    table = Table(title=f"{given.video.name}: {len(left_out)} frames left out and made again")
    for heading in ("way", "PSNR, dB", "SSIM"):
        table.add_column(heading, justify="right")
    for name, way in {"nearest frame": nearer, "average": average, "DIS optical flow": by_flow}.items():
        table.add_row(name, *compared([way(*pair) for pair in pairwise(kept)], left_out))
    ours = [*Raised(kept, None if guide is None else guide[::2], 2)][1::2]
    table.add_row("--fps 2x", *compared(ours, left_out))
    Console().print(table)


def frames_of(path: Path, most: int | None) -> Images:
    """Return the first frames of a video, of odd number if `most` is given, so that one is left at the end."""
    frames = [shot.image() for _, shot in zip(range(most or 10**9), open_source(path).shots(), strict=False)]
    return np.stack(frames[: len(frames) - (len(frames) + 1) % 2])


def nearer(first: Image, second: Image) -> Image:
    return first


def average(first: Image, second: Image) -> Image:
    return ((first.astype(np.uint16) + second + 1) // 2).astype(np.uint8)


def by_flow(first: Image, second: Image) -> Image:
    """Move both frames by half of the mean of the flows in both directions, and average them."""
    motion = (flow(first, second) - flow(second, first)) / 4
    return average(*(_moved(frame, motion * sign) for frame, sign in ((first, -1), (second, 1))))


def _moved(image: Image, motion: Flow) -> Image:
    height, width = motion.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    at = x + motion[..., 0], y + motion[..., 1]
    return np.asarray(cv2.remap(image, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def compared(made: list[Image], expected: Images) -> list[str]:
    """Return PSNR and SSIM as text."""
    errors = [np.square(a.astype(float) - b).mean() for a, b in zip(made, expected, strict=False)]
    likeness = np.mean([structural_similarity(*pair, channel_axis=2) for pair in zip(made, expected, strict=False)])
    return [f"{10 * np.log10(255**2 / np.mean(errors)):.1f}", f"{likeness:.3f}"]


if __name__ == "__main__":
    main()
