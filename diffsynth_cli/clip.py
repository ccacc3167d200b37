"""Encode several videos of the same frames into one small clip, in which they cannot get out of step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from stages.base.arrays import Image
from stages.base.cache import FrameArray
from stages.base.reporting import Reporter, with_progress
from stages.video import Encoding, encode, fit

SIDE = 480  # px; larger frames are shrunk
GRID = 16  # px of the codec's blocks, which should not show pixels of two videos
MOST_FRAMES = 1500  # one minute at 25 frames/s
MOST_BYTES = 12_000_000  # with what else is on a page, the most that mail servers accept
BEST_CRF, WORST_CRF, CRF_STEP = 24, 36, 6


@dataclass(frozen=True)
class Clip:
    """The same frames of several videos, in tiles of one picture.

    Attributes:
        first: The number of the first frame.
        count: The number of frames.
        height, width: Size of a tile in pixels.
        columns: Number of tiles in a row.
    """

    first: int
    count: int
    height: int
    width: int
    columns: int


def write_clip(
    path: Path, videos: Sequence[FrameArray], fps: Fraction, reporter: Reporter, *, centre: int, first: int | None
) -> Clip:
    """Write a clip of MOST_BYTES at most. If all frames do not fit at a reasonable quality, it has fewer.

    Args:
        path: The .mp4 file.
        videos: Frames uint8 RGB [N, H, W, 3].
        fps: Frame rate.
        reporter: Receives progress.
        centre: A frame that is in the clip, about in the middle if others must be left out.
        first: The first frame of the clip, instead of `centre`.
    """
    clip, crf = _layout(videos), BEST_CRF
    while True:
        clip = replace(clip, first=_first(len(videos[0]), clip.count, centre, first))
        clip = replace(clip, count=min(clip.count, len(videos[0]) - clip.first))
        reporter.begin("clip", clip.count)
        reporter.phase("encode")
        encode(path, with_progress(_pictures(videos, clip), reporter), Encoding(fps, crf=crf))
        if path.stat().st_size <= MOST_BYTES or clip.count == 1:
            return clip
        if crf < WORST_CRF:
            crf += CRF_STEP
        else:
            clip = replace(clip, count=clip.count // 2)


def _layout(videos: Sequence[FrameArray]) -> Clip:
    """Return a clip of as many frames as there can be, with tiles in about a square."""
    count, height, width, _ = videos[0].shape
    scale = min(1.0, SIDE / max(height, width))
    height, width = (max(GRID, round(side * scale / GRID) * GRID) for side in (height, width))
    columns = max(1, round((len(videos) * height / width) ** 0.5))
    return Clip(0, min(count, MOST_FRAMES), height, width, columns)


def _first(frames: int, count: int, centre: int, first: int | None) -> int:
    """Return the first frame of a clip of `count` of so many frames."""
    return max(0, min(centre - count // 2, frames - count)) if first is None else first


def _pictures(videos: Sequence[FrameArray], clip: Clip) -> Iterator[Image]:
    """Yield each picture of a clip."""
    rows = -(-len(videos) // clip.columns)
    spans = (video.between(clip.first, clip.first + clip.count) for video in videos)
    for frames in zip(*spans, strict=True):
        picture = np.zeros((rows * clip.height, clip.columns * clip.width, 3), np.uint8)
        for index, frame in enumerate(frames):
            row, column = divmod(index, clip.columns)
            y, x = row * clip.height, column * clip.width
            picture[y : y + clip.height, x : x + clip.width] = fit(frame, clip.height, clip.width)
        yield picture
