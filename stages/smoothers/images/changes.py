"""Measure how smoothing changes a video while its frames are written, and collect the most interesting places.

Frames are uint8 RGB [H, W, 3] and are read once, in order. Memory does not grow with the length of the video
beyond a few numbers per frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from stages.base.arrays import Floats, Image, Mask
from stages.smoothers.images.comparison import (
    UNCHANGED_SQUARE,
    brightness,
    lost_structure,
    similarity,
    structure,
    unchanged_squares,
)
from stages.smoothers.images.metrics import flicker

CROP = 96  # px a side
PLACES = 6  # of each kind
POOL = 24  # candidates of each kind; more than PLACES, since a better one may replace several
PEAKS = 4  # candidates of each kind per frame
SHORTEST_GAP = 8  # min. distance in frames of overlapping places
PARTS = 6  # of a long video; overlapping places are at least one part apart
LEAST_LEFT = 0.5  # mean levels of remaining flicker and motion that make a place worth showing


@dataclass(frozen=True)
class Place:
    """A square of one frame, before and after smoothing, and what was measured there.

    Attributes:
        frame, x, y: Frame index and upper left pixel.
        score: Rank among places of the same kind: `change` for those that changed most, minus `structure` for those
            that kept the least. For unchanged places, the mean difference of their unchanged pixels to the style's
            previous frame, in levels.
        change: Mean difference between before and after, in levels.
        structure: Lowest similarity of a square of pixels in it, at most 1.
        unchanged: Share of unchanged pixels.
    """

    frame: int
    x: int
    y: int
    score: float
    before: Image
    after: Image
    change: float
    structure: float
    unchanged: float


@dataclass
class Places:
    """The places with the highest scores, no two of them close to each other in both space and time."""

    gap: int = SHORTEST_GAP
    pool: list[Place] = field(default_factory=list)

    def best(self) -> list[Place]:
        """Return up to PLACES places, best first."""
        return self.pool[:PLACES]

    def wants(self, score: float) -> bool:
        """Return whether a place with this score can still get in."""
        return len(self.pool) < POOL or score > self.pool[-1].score

    def offer(self, place: Place) -> None:
        """Add a place if it beats all nearby places, which it replaces, and the last one of a full pool."""
        close = [other for other in self.pool if self._close(other, place)]
        if all(place.score > other.score for other in close):
            rest = [other for other in self.pool if not self._close(other, place)]
            self.pool = sorted([*rest, place], key=lambda other: -other.score)[:POOL]

    def _close(self, a: Place, b: Place) -> bool:
        height, width = a.before.shape[:2]
        return abs(a.frame - b.frame) < self.gap and abs(a.x - b.x) < width and abs(a.y - b.y) < height


class Changes:
    """What smoothing changed in a video, measured frame by frame.

    Attributes:
        structure: Structure kept in the worst places of each frame.
        unchanged: Unchanged share of each frame.
        luminance: Mean luminance of each frame, before and after.
        changed, lost, kept: Places that changed most, that lost the most structure, and that did not change although
            the style moved or flickered there. Empty unless `keep_places` is set.
    """

    def __init__(self, keep_places: bool = False):
        self.keep_places = keep_places
        self.structure: list[float] = []
        self.unchanged: list[float] = []
        self.luminance: tuple[list[float], list[float]] = ([], [])
        self.changed, self.lost, self.kept = Places(), Places(), Places()
        self._previous: Image | None = None

    def watch(self, styles: Iterable[Image], smoothed: Iterable[Image], count: int) -> Iterator[Image]:
        """Measure and yield the `count` frames of `smoothed`."""
        for places in (self.changed, self.lost, self.kept):
            places.gap = max(SHORTEST_GAP, count // PARTS)
        for style, frame in zip(styles, smoothed, strict=True):
            self.add(style, frame)
            yield frame

    def add(self, style: Image, frame: Image) -> None:
        """Measure the next frame."""
        alike = similarity(brightness(frame), brightness(style))
        squares = unchanged_squares(frame, style)
        self.structure.append(structure(alike))
        self.unchanged.append(float(squares.mean()))
        for levels, image in zip(self.luminance, (style, frame), strict=True):
            levels.append(float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean()))
        if self.keep_places:
            self._keep_places(style, frame, alike, squares)
            self._previous = style

    def summary(self) -> str:
        """Summarise in one line: flicker before and after, structure kept, unchanged share."""
        worst = int(np.argmin(self.structure))
        untouched = sum(share == 1 for share in self.unchanged)
        left = f"{percent(float(np.mean(self.unchanged)))} of the picture"
        left += f" and {untouched} of {len(self.unchanged)} frames" if untouched else ""
        kept = f"structure kept {np.mean(self.structure):.2f} (worst frame {worst}: {self.structure[worst]:.2f})"
        if len(self.structure) < 2:
            return f"{kept}, {left} left as it was"
        before, after = (flicker(levels) for levels in self.luminance)
        return f"flicker {before:.1f} → {after:.1f} levels, {kept}, {left} left as it was"

    def warning(self) -> str:
        """Describe which frames lost structure; empty if none did."""
        return lost_structure(self.structure)

    def _keep_places(self, style: Image, frame: Image, alike: Floats, squares: Mask) -> None:
        height, width = min(CROP, frame.shape[0]), min(CROP, frame.shape[1])
        change = _difference(style, frame)
        unrest = np.zeros_like(change) if self._previous is None else _difference(style, self._previous)
        unchanged = squares.repeat(UNCHANGED_SQUARE, 0).repeat(UNCHANGED_SQUARE, 1)[: frame.shape[0], : frame.shape[1]]

        def consider(places: Places, score: float, y: int, x: int) -> None:
            if not places.wants(score):
                return
            y, x = min(max(y, 0), frame.shape[0] - height), min(max(x, 0), frame.shape[1] - width)
            area = slice(y, y + height), slice(x, x + width)
            measured = float(change[area].mean()), float(alike[area].min()), float(unchanged[area].mean())
            place = Place(len(self.structure) - 1, x, y, score, style[area].copy(), frame[area].copy(), *measured)
            places.offer(place)

        for score, y, x in _peaks(_crop_means(change, height, width), height, width):
            consider(self.changed, score, y, x)
        for score, y, x in _peaks(-alike, height, width):  # places around the worst squares
            consider(self.lost, score, y - height // 2, x - width // 2)
        for score, y, x in _peaks(_crop_means(unrest * unchanged, height, width), height, width):
            if score >= LEAST_LEFT:
                consider(self.kept, score, y, x)


def _difference(a: Image, b: Image) -> Floats:
    """Return the mean difference of the three channels as a map, in levels."""
    return brightness(np.asarray(cv2.absdiff(a, b), np.uint8))


def _crop_means(values: Floats, height: int, width: int) -> Floats:
    """Return the mean over every crop, by the crop's upper left pixel."""
    means = np.asarray(cv2.blur(values, (width, height), anchor=(0, 0)), np.float32)
    return means[: values.shape[0] - height + 1, : values.shape[1] - width + 1]


def _peaks(scores: Floats, height: int, width: int) -> Iterator[tuple[float, int, int]]:
    """Yield up to PEAKS highest scores with their row and column, no two of them within one crop."""
    scores = scores.copy()
    for _ in range(PEAKS):
        y, x = divmod(int(scores.argmax()), scores.shape[1])
        if np.isneginf(scores[y, x]):
            return
        yield float(scores[y, x]), y, x
        scores[max(y - height + 1, 0) : y + height, max(x - width + 1, 0) : x + width] = -np.inf


def percent(share: float) -> str:
    """Return a share as whole per cent, such as "3 %"; only nothing is "0 %" and only all of it "100 %"."""
    if 0 < share < 0.01:
        return "under 1 %"
    if 0.99 < share < 1:
        return "over 99 %"
    return f"{share:.0%}".replace("%", " %")
