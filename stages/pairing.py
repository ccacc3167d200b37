"""Pairing of the guide's and the style's frames, and detection of the offset between the two videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from stages.smoothers.images.offset import Alignment, Stretch, edge_map, find_offset, map_size
from stages.video import ImageFolder, Shot, Source, fit, open_source, stated_length

SPEED_TOLERANCE = 0.005  # relative difference up to which two frame rates count as equal
SEARCH = 2.0  # s; offsets up to this are searched
STRETCHES, STRETCH = 4, 40  # number of parts of the style that are compared with the guide, and their length in frames


def are_paired_by_number(guide: Source, style: Source) -> bool:
    """Whether frames are paired by number rather than by time, as for equal frame rates and folders of images."""
    folders = isinstance(guide, ImageFolder) or isinstance(style, ImageFolder)
    return folders or abs(float(guide.fps / style.fps) - 1) < SPEED_TOLERANCE


def pairs(guide: Source, style: Source, offset: float = 0.0) -> Iterator[tuple[Shot | None, Shot]]:
    """Yield each frame of the style with the nearest one of the guide, None before and after the guide.

    Frame i of the style shows what the guide shows at i + `offset`, in frames of the style.
    """
    by_number, rate = are_paired_by_number(guide, style), float(style.fps)
    margin = 0.5 if by_number else float(style.fps / guide.fps)
    guides = _placed(guide, None if by_number else rate)
    now, later = next(guides, None), next(guides, None)
    for position, shot in _placed(style, None if by_number else rate):
        target = position + offset
        while now and later and abs(later[0] - target) <= abs(now[0] - target):
            now, later = later, next(guides, None)
        inside = now and (abs(now[0] - target) <= margin or (later and now[0] < target < later[0]))
        yield now[1] if now and inside else None, shot


@dataclass(frozen=True)
class GuideShots:
    """The guide's frame for each frame of the style from one on, or the style's own where the guide has none.

    Repeating the guide's nearest frame instead would mean that nothing moves there.
    """

    guide: Path
    style: Path
    offset: float

    def __call__(self, first: int) -> Iterator[Shot]:
        paired = pairs(open_source(self.guide), open_source(self.style), self.offset)
        return (shot if guide is None else guide for guide, shot in islice(paired, first, None))


def unused_frames(guide: Source, style: Source, offset: float, count: int) -> int:
    """Return how many frames of the guide, by its header, follow the last of `count` frames of the style."""
    length = stated_length(guide) or 0
    speed = 1.0 if are_paired_by_number(guide, style) else float(guide.fps / style.fps)
    return max(0, length - round((count + offset) * speed))


def _placed(source: Source, rate: float | None) -> Iterator[tuple[float, Shot]]:
    """Yield frames with their positions: numbers, or times since the first frame multiplied by `rate`."""
    start = None
    for number, shot in enumerate(source.shots()):
        start = shot.time if start is None else start
        yield float(number) if rate is None else (shot.time - start) * rate, shot


def align(
    guide: Source, style: Source, advance: Callable[[int], None], numbers: Sequence[int] | None = None
) -> Alignment:
    """Find the offset between two videos from a few short parts.

    Args:
        guide: The original video.
        style: The stylised video.
        advance: Called with the number of frames read.
        numbers: Frame numbers of the style's images if they are keyframes.
    """
    by_number, rate = are_paired_by_number(guide, style), float(style.fps)
    guide_rate = float(guide.fps) if by_number else rate
    starts = [next(source.shots()).time for source in (guide, style)]
    size = map_size(style.height, style.width)
    farthest = SEARCH * (rate if numbers is None else guide_rate)

    def maps(source: Source, rate: float, start: float, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
        """Return edge maps of the frames from position `first` to `last`, and their positions."""
        found, places = [], []
        for shot in source.shots(max(0.0, start + (first - 0.5) / rate)):
            place = (shot.time - start) * rate
            if place > last + 0.5:
                break
            found.append(edge_map(fit(shot.image(), *size)))
            places.append(place)
            advance(1)
        return np.array(found, np.float32).reshape(-1, *size), np.array(places)

    stretches = []
    for first, last in _parts(stated_length(style)):
        style_maps, style_at = maps(style, rate, starts[1], first, last)
        if numbers is not None and len(style_at):
            style_at = np.asarray(numbers, np.float64)[np.rint(style_at).astype(int)]
            first, last = int(style_at[0]), int(style_at[-1])
        guide_maps, guide_at = maps(guide, guide_rate, starts[0], first - farthest, last + farthest)
        if len(style_maps) and len(guide_maps):
            stretches.append(Stretch(style_maps, style_at, guide_maps, guide_at))
    return find_offset(stretches, farthest, 1.0 if by_number else min(1.0, float(style.fps / guide.fps)))


def _parts(frames: int | None) -> list[tuple[int, int]]:
    """Return the first and last frame of each part to compare: all of a short video, else evenly spaced parts."""
    if frames is None or frames <= STRETCHES * STRETCH:
        return [(0, STRETCHES * STRETCH - 1)]
    return [(int(first), int(first) + STRETCH - 1) for first in np.linspace(0, frames - STRETCH, STRETCHES)]
