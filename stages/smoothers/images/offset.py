"""Find by how many frames a stylised video runs ahead of the video it was made from, or lags behind it.

Styles repaint colour and texture but keep most outlines, so frames are compared by small edge maps. Only the
deviations from other frames of the same video count, since a shared background fits at every offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.base.arrays import Floats, Image, Times

Indices = NDArray[np.intp]
Likeness = NDArray[np.float64]

SIDE = 64  # px, longer side of an edge map: fine enough for one frame's motion, coarse enough to ignore brush strokes
MIN_FRAMES = 6  # of the style that must have a partner at an offset
MIN_SHARE = 0.5  # of a stretch's frames that must have one
MIN_MOTION = 0.25  # correlation of motion that shows that videos belong together; unrelated pairs reach 0.13
MIN_GAIN = 0.06  # relative improvement of that correlation that an offset other than 0 needs
MIN_AGREEMENT = 0.8  # of single frames on that improvement: 1 if all agree, about 0 for noise
REPEAT = 0.98  # of the highest peak: lower ones are preferred if closer to 0, since movements repeat
MIN_MIRROR_GAIN = 0.15  # in correlation of edge maps over a mirrored guide
STILL = 0.02  # variance of edge maps over time below which nothing moves
MIN_STILL_LIKENESS = 0.6  # correlation of edge maps at which still videos count as the same


@dataclass(frozen=True)
class Stretch:
    """Consecutive frames of both videos.

    Attributes:
        style, guide: Edge maps float32 [N, h, w] from `edge_map`.
        style_at, guide_at: Time of each frame since the start of its video, in frames of the style.
    """

    style: Floats
    style_at: Times
    guide: Floats
    guide_at: Times

    @cached_property
    def likeness(self) -> Likeness:
        """Correlation of every style frame with every guide frame, [N, M]."""
        likeness: Likeness = _flat(self.style) @ _flat(self.guide).T
        return likeness

    @cached_property
    def style_likeness(self) -> Likeness:
        likeness: Likeness = _flat(self.style) @ _flat(self.style).T
        return likeness

    @cached_property
    def guide_likeness(self) -> Likeness:
        likeness: Likeness = _flat(self.guide) @ _flat(self.guide).T
        return likeness

    def partners(self, offset: float) -> tuple[Indices, Indices]:
        """Return the indices of style frames that have a partner at `offset`, and those of their partners."""
        target = self.style_at + offset
        edges = (self.guide_at[:-1] + self.guide_at[1:]) / 2
        nearest = np.searchsorted(edges, target, side="right")
        reach = max(1.0, float(np.median(np.diff(self.guide_at)))) / 2 if len(edges) else 0.5
        found = np.abs(self.guide_at[nearest] - target) <= reach + 1e-6
        return np.flatnonzero(found), nearest[found]

    def mirrored(self) -> list[Stretch]:
        """Return copies with the guide mirrored left to right, top to bottom, and both."""
        flips = (np.s_[:, :, ::-1], np.s_[:, ::-1], np.s_[:, ::-1, ::-1])
        return [Stretch(self.style, self.style_at, self.guide[flip], self.guide_at) for flip in flips]


@dataclass(frozen=True)
class Alignment:
    """How the videos fit: frame i of the style shows what the guide shows at i + `offset`, in frames of the style.

    Attributes:
        offset: The offset found.
        fits: Whether the guide seems to belong to the style at all.
        motion, motion_at_zero: Correlation of motion at that offset and at 0.
        likeness: Correlation of whole edge maps at that offset.
    """

    offset: float
    fits: bool
    motion: float
    motion_at_zero: float
    likeness: float


def map_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) to shrink frames of this size to before `edge_map`."""
    scale = min(1.0, SIDE / max(height, width))
    return max(8, round(height * scale)), max(8, round(width * scale))


def edge_map(image: Image) -> Floats:
    """Return the edge strength of an image uint8 [h, w, 3] of `map_size`, float32 [h, w]."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    strength = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    faint_kept = np.sqrt(strength)  # faint outlines count as well
    return np.asarray(cv2.GaussianBlur(faint_kept, (0, 0), 1.0), np.float32)


def find_offset(stretches: Sequence[Stretch], farthest: float, step: float = 1.0) -> Alignment:
    """Find the offset at which the guide moves as the style does; 0 unless another one is clearly better.

    Args:
        stretches: Parts of both videos. Parts in which more moves count more.
        farthest: Largest offset to try, in frames of the style.
        step: Distance of the offsets to try; below 1 where the guide has more frames than the style.

    Returns:
        The offset and how well it fits. `fits` is False if the guide shows something else at every offset.
    """
    too_short = all(min(len(part.style), len(part.guide)) < MIN_FRAMES for part in stretches)
    if too_short or not any(part.style.any() or part.guide.any() for part in stretches):
        return Alignment(0.0, True, 0.0, 0.0, _likeness(stretches, 0.0))  # there is no evidence against it
    steps = int(farthest / step + 1e-6)
    offsets = [step * number for number in range(-steps, steps + 1)]
    curve = np.array([_motion(stretches, offset) for offset in offsets])
    best = _peak(curve)
    zero = float(curve[steps])
    clear = (
        curve[best] >= MIN_MOTION
        and curve[best] - zero >= MIN_GAIN * curve[best]
        and _agreement(stretches, offsets[best]) >= MIN_AGREEMENT
    )
    used = best if clear else steps
    fits = _belongs(stretches, offsets, float(curve.max()))
    return Alignment(offsets[used], fits, float(curve[used]), zero, _likeness(stretches, offsets[used]))


def _peak(curve: NDArray[np.float64]) -> int:
    """Return the index of the highest peak, or of an almost equal one closer to the middle."""
    padded = np.pad(curve, 1, constant_values=-np.inf)
    peaks = np.flatnonzero(
        (curve >= padded[:-2]) & (curve >= padded[2:]) & (curve >= curve.max() - (1 - REPEAT) * abs(curve.max()))
    )
    return int(peaks[np.argmin(np.abs(peaks - len(curve) // 2))])


def _flat(maps: Floats) -> Likeness:
    """Return edge maps as rows of mean 0 and norm 1.

    In single precision, rounding would look like motion where nothing moves, and it depends on the number of threads.
    """
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    flat = flat - flat.mean(axis=1, keepdims=True)
    normalised: Likeness = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-3)
    return normalised


def _enough(stretch: Stretch, rows: Indices) -> bool:
    shorter = min(len(stretch.style), len(stretch.guide))
    return len(rows) >= max(MIN_FRAMES, MIN_SHARE * shorter)


def _motion(stretches: Sequence[Stretch], offset: float) -> float:
    """Correlate the deviations of edge maps from their mean over time, -1..1; 0 if too few frames have partners.

    The covariance is the extra similarity of partners, compared with frames that are not partners.
    """
    together = of_style = of_guide = 0.0
    for stretch in stretches:
        rows, columns = stretch.partners(offset)
        if not _enough(stretch, rows):
            continue
        together += float(np.sum(_contributions(stretch, rows, columns)))
        of_style += len(rows) * _variance(stretch.style_likeness, rows)
        of_guide += len(rows) * _variance(stretch.guide_likeness, columns)
    return float(together / max((of_style * of_guide) ** 0.5, 1e-6))


def _contributions(stretch: Stretch, rows: Indices, columns: Indices) -> Likeness:
    """Return for each style frame how much more similar its partner is than the partners of other frames."""
    contributions: Likeness = stretch.likeness[rows, columns] - stretch.likeness[np.ix_(rows, columns)].mean(axis=1)
    return contributions


def _variance(likeness: Likeness, frames: Indices) -> float:
    return max(0.0, float(likeness[frames, frames].mean() - likeness[np.ix_(frames, frames)].mean()))


def _agreement(stretches: Sequence[Stretch], offset: float) -> float:
    """Return how consistently single style frames fit better at `offset` than at 0, -1..1."""
    gain = total = 0.0
    for stretch in stretches:
        (rows, columns), (rows0, columns0) = stretch.partners(offset), stretch.partners(0.0)
        both, here, there = np.intersect1d(rows, rows0, return_indices=True)
        gains = stretch.likeness[both, columns[here]] - stretch.likeness[both, columns0[there]]
        gain, total = gain + float(gains.sum()), total + float(np.abs(gains).sum())
    return float(gain / total) if total else 0.0


def _likeness(stretches: Sequence[Stretch], offset: float) -> float:
    found = [stretch.likeness[stretch.partners(offset)] for stretch in stretches]
    every = np.concatenate(found) if found else np.zeros(0)
    return float(every.mean()) if len(every) else 0.0


def _belongs(stretches: Sequence[Stretch], offsets: Sequence[float], motion: float) -> bool:
    """Whether the guide seems to belong to the style, by the best correlation of motion and by whole edge maps.

    The flicker of a style hides slow motion, so where little moves, whole edge maps decide. They are no evidence where
    the guide moves as much as the style does, but differently: parts of one film share their background.
    """
    return motion >= MIN_MOTION or (motion >= MIN_MOTION * _expected(stretches) and _looks_alike(stretches, offsets))


def _expected(stretches: Sequence[Stretch]) -> float:
    """Return the correlation to expect if the style moves like the guide and the rest is flicker, 0..1."""
    of_style = sum(_variance(part.style_likeness, np.arange(len(part.style))) for part in stretches)
    of_guide = sum(_variance(part.guide_likeness, np.arange(len(part.guide))) for part in stretches)
    return float(min(1.0, (of_guide / max(of_style, 1e-6)) ** 0.5))


def _looks_alike(stretches: Sequence[Stretch], offsets: Sequence[float]) -> bool:
    alike = max(_likeness(stretches, offset) for offset in offsets)
    still = all(_variance(part.guide_likeness, np.arange(len(part.guide))) < STILL for part in stretches)
    if still and alike >= MIN_STILL_LIKENESS:
        return True
    mirrored = zip(*(part.mirrored() for part in stretches), strict=True)
    return alike - max(_likeness(parts, offset) for parts in mirrored for offset in offsets) >= MIN_MIRROR_GAIN
