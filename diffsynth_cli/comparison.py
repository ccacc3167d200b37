"""Show several videos of the same frames side by side in one video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from stages.base.arrays import Frames, Image
from stages.base.outputs import SIGNATURE
from stages.base.reporting import Reporter, with_progress
from stages.base.words import counted
from stages.video import Encoding, encode, fit

TALLEST, WIDEST = 480, 1920  # px, of a video and of all of them
GAP, LABEL_HEIGHT, LABEL_SIZE = 4, 28, 18  # px
PAPER, INK = (250, 250, 250), (40, 40, 40)


def write_comparison(path: Path, videos: Mapping[str, Frames], fps: Fraction, reporter: Reporter) -> None:
    """Write an H.264 video that shows videos from left to right.

    Args:
        path: The .mp4 file.
        videos: Videos of the same length and size, by label.
        fps: Frame rate.
        reporter: Receives progress.
    """
    count = len(next(iter(videos.values())))
    reporter.begin(path.name, count)
    reporter.phase("write h264")
    encode(path, with_progress(side_by_side(videos), reporter), Encoding(fps, comment=f"{SIGNATURE} comparison"))
    reporter.end("written", f"{path}: {counted(count, 'frame')}")


def side_by_side(videos: Mapping[str, Frames]) -> Iterator[Image]:
    """Yield pictures of the frames of videos side by side, uint8 RGB, with even sides."""
    first = next(iter(videos.values()))[0]
    height, width = tile_size(first.shape[0], first.shape[1], len(videos))
    labels = _labels(list(videos), width)
    for frames in zip(*videos.values(), strict=True):
        tiles = [np.pad(fit(frame, height, width), ((0, 0), (0, GAP), (0, 0)), constant_values=250) for frame in frames]
        yield np.concatenate([labels, np.concatenate(tiles, axis=1)])


def tile_size(height: int, width: int, count: int) -> tuple[int, int]:
    """Return the size at which frames of this size are shown beside each other, enlarged if they are small."""
    scale = min(TALLEST / height, (WIDEST / count - GAP) / width)
    if scale > 1:
        scale = int(scale)
    return round(height * scale / 2) * 2, round(width * scale / 2) * 2


def _labels(names: list[str], width: int) -> Image:
    strip = Picture.new("RGB", (len(names) * (width + GAP), LABEL_HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(LABEL_SIZE)
    for index, name in enumerate(names):
        draw.text((index * (width + GAP) + 2 * GAP, GAP), name, INK, font)
    return np.asarray(strip)
