"""Deflickering that keeps detail: light from the whole window, detail from what neighbours agree on.

Flicker is of two kinds. Light and colour change over wide areas: each frame is given, area by area, the gain and offset
that fit it to the mean of its window. That moves no edge and blurs nothing, however wide the window is.
Detail is noisy, or swims. Frames nearby are carried onto this one and registered to their own consensus; where this
frame's detail stands above the noise it is kept, and where detail swims the consensus takes over, sharpened for what
averaging costs. docs/smoothers.md has the reasons and the measurements.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import cv2
import numpy as np

from stages.smoothing import Frames
from stages.smoothing.matching import PATCH, agreement, carry, flow, mean_square, motion
from stages.smoothing.tables import WHOLE, WindowSums, window

# Light
SHRINK = 4  # times smaller is what light is compared on
FLOW_SHRINK = 2  # times smaller is what its motion is found on
AREA = 5  # px a side, of the small picture, that share a gain and an offset
COARSE = 1.0  # px of the small picture; finer things are not compared
STIFFNESS = 100.0  # levels²: where colours vary less than this, the gain stays near 1 (He & Sun 2015)
# Detail
NEIGHBOURS = 3  # frames to each side that detail is compared with
NEAR = 4.0  # frames away at which trust is halved
FURTHEST = 2.5  # px that detail can have swum
RIGID = 4.0  # px; swimming is this smooth
TOLERANCE = 2.0  # times the usual deviation at which a patch's weight is halved (Geman & McClure's estimator)
FLOOR = 4.0  # levels², deviation that is usual anyway
FINE = 2.0  # px; detail is what is finer than this
GRAIN = 9  # px a side over which the power of detail is measured
QUIET = 20  # per cent of a frame hold nothing but noise
NOISE_MARGIN = 1.2  # times what those parts hold is noise
STEADY = 0.3  # px (root mean square) of swimming at which a frame's own detail counts 1/e
SWIM_AREA = 16.0  # px; swimming is measured over areas this wide
BLUR = 1.5  # px and
SHARPEN = 0.4  # how much of what is finer than that is added where the consensus replaces detail


class PatchBlendSmoother:
    """`window`: frames to each side that light is averaged over, None = the whole video (up to WHOLE to each side).
    `strength`: 0 (as it was) to 1. `detail`: 0 = the plain consensus, 0.5 = see above, 1 = each frame keeps its own.
    `patch_size`: px, odd, of the matching of patches. `guide_weight`: how much it counts against a match that the
    guides differ there, 0 = not at all.
    """

    def __init__(
        self,
        guides: Frames,
        styles: Frames,
        window: int | None = 15,
        strength: float = 1.0,
        detail: float = 0.5,
        patch_size: int = PATCH,
        guide_weight: float = 1.0,
    ):
        self.guides, self.styles = guides, styles
        self.reach, self.strength, self.detail = WHOLE if window is None else window, strength, detail
        self.patch_size, self.guide_weight = patch_size, guide_weight
        self.small = Memo(self._shrunk)
        self.lit = Memo(self._lit)
        self.sums = WindowSums(lambda index: self.small[index][1], self._carry_light, np.float32)

    def smooth(self, start: int, stop: int) -> np.ndarray:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.stack([self._frame(index, pool) for index in range(start, stop)])

    def _frame(self, index: int, pool: ThreadPoolExecutor) -> np.ndarray:
        style = self.styles[index].astype(np.float32)
        smooth = self.lit[index] if self.detail == 1 else self._detailed(index, pool)
        self.lit.forget(window(min(index + 1, len(self.styles) - 1), len(self.styles), NEIGHBOURS).start)
        if index == len(self.styles) - 1:
            for kept in (self.small, self.lit, self.sums.runs):
                kept.clear()
        return np.clip(np.rint(style + self.strength * (smooth - style)), 0, 255).astype(np.uint8)

    # -- light ---------------------------------------------------------------------------------------------------------

    def _lit(self, index: int) -> np.ndarray:
        """The frame in the light of its window, float32 [H, W, 3]."""
        frames = window(index, len(self.styles), self.reach)
        total, own = self.sums.total(index, frames), self.small[index][1][..., :3]
        self.sums.forget(index, frames)
        self.small.forget(frames.start)
        return _apply(self.styles[index].astype(np.float32), *_fit(own, total[..., :3] / total[..., 3:]))

    def _shrunk(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The guide, small as motion is found on; the style, smaller, with a weight of 1, float32 [h, w, 4]."""
        guide, style = _shrink(self.guides[index], FLOW_SHRINK), _shrink(self.styles[index], SHRINK)
        return guide, np.dstack([style.astype(np.float32), np.ones(style.shape[:2], np.float32)])

    def _carry_light(self, index: int, other: int, held: np.ndarray) -> np.ndarray:
        guides = [self.small[k][0] for k in (index, other)]
        height, width = held.shape[:2]
        moved, weight = _fine_to_small(flow(*guides), guides, (width, height), self.guide_weight)
        carried, _ = carry(held, moved, cv2.INTER_CUBIC)  # linear would blur, and once more at every carry
        return carried * weight[..., None]

    # -- detail --------------------------------------------------------------------------------------------------------

    def _detailed(self, index: int, pool: ThreadPoolExecutor) -> np.ndarray:
        """The frame in its own detail and that of its neighbours, float32 [H, W, 3]."""
        frames = window(index, len(self.styles), NEIGHBOURS)
        found = list(pool.map(partial(self._match, index), frames))
        motions, trust = [moved for moved, _ in found], [weight for _, weight in found]
        layers = [self.lit[other] for other in frames]
        rough = _mean(pool.map(_carried, layers, motions), trust)
        swum = list(pool.map(lambda layer, moved: registration(rough, _carried(layer, moved)), layers, motions))
        # Each layer is moved to where the layers are on average, not to where their blurred mean seems to be.
        average = _mean(swum, trust)
        motions = [moved + by - average for moved, by in zip(motions, swum, strict=True)]
        registered = list(pool.map(_carried, layers, motions))
        consensus = _robust_mean(registered, trust, rough)
        distances = [other - index for other in frames]
        return _keep(self.lit[index], consensus, _steadiness(swum, trust, distances, rough), self.detail)

    def _match(self, index: int, other: int) -> tuple[np.ndarray, np.ndarray]:
        """Where frame `index` is found in frame `other`, and how far that is to be trusted."""
        guide = self.guides[index]
        if other == index:
            return np.zeros((*guide.shape[:2], 2), np.float32), np.ones(guide.shape[:2], np.float32)
        there = self.guides[other]
        moved = motion(guide, there, self.patch_size, threads=1)
        return moved, agreement(guide, there, moved, self.guide_weight) / (1 + ((other - index) / NEAR) ** 2)


def _shrink(image: np.ndarray, times: int) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.resize(image, (-(-width // times), -(-height // times)), interpolation=cv2.INTER_AREA)


def _fine_to_small(
    moved: np.ndarray, guides: list[np.ndarray], size: tuple[int, int], guide_weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Motion and agreement at `size` (width, height), of those of larger guides."""
    weight = agreement(guides[0], guides[1], moved, guide_weight)
    scale = np.array([size[0] / moved.shape[1], size[1] / moved.shape[0]], np.float32)
    small = cv2.resize(moved, size, interpolation=cv2.INTER_AREA) * scale
    return small, cv2.resize(weight, size, interpolation=cv2.INTER_AREA)


def fit_light(image: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`image` in the light and colours of `wanted`, with its own detail; float32 [H, W, 3]."""
    return _apply(image, *_fit(_shrink(image, SHRINK), _shrink(wanted, SHRINK)))


def _apply(image: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    wide = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in (gain, offset)]
    return np.asarray(wide[0] * image + wide[1])


def _fit(own: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel and channel the gain and offset that take `own` to `mean`, by least squares over an area."""

    def over_area(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (AREA, AREA), borderType=cv2.BORDER_REFLECT)

    # What detail the mean has lost must not look like a loss of contrast.
    own, mean = (cv2.GaussianBlur(image, (0, 0), COARSE) for image in (own, mean))
    own_mean, wanted = over_area(own), over_area(mean)
    variance = over_area(own * own) - own_mean**2
    covariance = over_area(own * mean) - own_mean * wanted
    gain = (covariance + STIFFNESS) / (variance + STIFFNESS)
    return over_area(gain), over_area(wanted - gain * own_mean)


def _carried(image: np.ndarray, moved: np.ndarray) -> np.ndarray:
    return carry(image, moved, cv2.INTER_CUBIC)[0]


def _robust_mean(layers: list[np.ndarray], trust: list[np.ndarray], rough: np.ndarray) -> np.ndarray:
    """The mean that patches which stand out from `rough` count little in (Geman & McClure 1987)."""
    deviations = np.stack([_power(layer - rough, PATCH) for layer in layers])
    usual = TOLERANCE * (np.median(deviations, axis=0) + FLOOR)
    return _mean(layers, [weight / (1 + (off / usual) ** 2) for weight, off in zip(trust, deviations, strict=True)])


def _steadiness(
    swum: list[np.ndarray], trust: list[np.ndarray], distances: list[int], consensus: np.ndarray
) -> np.ndarray:
    """0 where detail swims from frame to frame, 1 where it stays in its place, float32 [H, W]."""
    times = [np.full(weight.shape, distance, np.float32) for weight, distance in zip(trust, distances, strict=True)]
    place, time = _mean(swum, trust), _mean((t[..., None] for t in times), trust)
    since = [t[..., None] - time for t in times]
    off = [moved - place for moved in swum]
    # What grows steadily with time is an error of the flow, not swimming.
    spread = _mean((t**2 for t in since), trust)
    drift = _mean((a * t for a, t in zip(off, since, strict=True)), trust) / (spread + 1e-3)
    squares = _mean((((a - drift * t) ** 2).sum(axis=2)[..., None] for a, t in zip(off, since, strict=True)), trust)
    freedom = len(swum) / max(len(swum) - 2, 1)
    seen = cv2.GaussianBlur(_power(_fine(consensus), 1), (0, 0), RIGID)  # where nothing is seen, nothing swims
    distance = freedom * _wide(squares[..., 0] * seen) / (_wide(seen) + 1e-3)
    return np.exp(-distance / STEADY**2)


def _keep(own: np.ndarray, consensus: np.ndarray, steady: np.ndarray, detail: float) -> np.ndarray:
    """The consensus, and of the frame's own detail what is steady and more than noise."""
    difference = own - consensus
    deviation = _power(_fine(difference), GRAIN)
    noise = NOISE_MARGIN * np.percentile(deviation, QUIET)
    kept = steady * np.clip(1 - noise / (deviation + 1e-3), 0, 1)  # Wiener's share
    sharper = SHARPEN * (1 - steady)[..., None] * (consensus - cv2.GaussianBlur(consensus, (0, 0), BLUR))
    found, own_share = min(2 * detail, 1), max(2 * detail - 1, 0)
    blended = consensus + found * (sharper + kept[..., None] * difference)
    return blended + own_share * (own - blended)


def registration(consensus: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """How far the layer's detail lies from that of the consensus, px, float32 [H, W, 2]."""
    moved = flow(*(np.clip(image, 0, 255).astype(np.uint8) for image in (consensus, layer)))
    return cv2.GaussianBlur(np.clip(moved, -FURTHEST, FURTHEST), (0, 0), RIGID)


def _mean(layers: Iterable[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    total = sum((layer * weight[..., None] for layer, weight in zip(layers, weights, strict=True)), np.float32(0))
    return np.asarray(total / np.asarray(sum(weights, np.float32(0)))[..., None])


def _fine(image: np.ndarray) -> np.ndarray:
    return image - cv2.GaussianBlur(image, (0, 0), FINE)


def _power(values: np.ndarray, side: int) -> np.ndarray:
    """Mean square over channels and squares of `side`, float32 [H, W]."""
    return cv2.blur(mean_square(values), (side, side))


def _wide(values: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(values, (0, 0), SWIM_AREA)


class Memo(dict[int, Any]):
    """What `make` gives for a frame's number, kept until it is forgotten."""

    def __init__(self, make: Callable[[int], Any]):
        super().__init__()
        self.make = make

    def __missing__(self, index: int) -> Any:
        self[index] = self.make(index)
        return self[index]

    def forget(self, below: int) -> None:
        for index in [index for index in self if index < below]:
            del self[index]
