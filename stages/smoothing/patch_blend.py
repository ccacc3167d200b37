"""Deflickering that keeps detail: light from the whole window, detail from what neighbours agree on.

Flicker is of two kinds. Light and colour change over wide areas: each frame is given, area by area, the gain and offset
that fit it to the mean of its window. That moves no edge and blurs nothing, however wide the window is.
Detail is noisy, or swims. Frames nearby are carried onto this one and registered to their own consensus; where this
frame's detail stands above the noise it is kept, and where detail swims the consensus takes over, sharpened for what
averaging costs. docs/smoothers.md has the reasons and the measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from stages.smoothing import Frames
from stages.smoothing.matching import PATCH, agreement, carry, mean_square, motion
from stages.smoothing.pixels import Array, box, each, enlarge, fetch, floats, flow, gauss, median, percentile, shrink
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
        self.sums = WindowSums(lambda index: self.small[index][1], self._link_light, _carry_light)

    def smooth(self, start: int, stop: int) -> np.ndarray:
        return np.stack([self._frame(index) for index in range(start, stop)])

    def _frame(self, index: int) -> np.ndarray:
        style = floats(self.styles[index])
        smooth = self.lit[index] if self.detail == 1 else self._detailed(index)
        self.lit.forget(window(min(index + 1, len(self.styles) - 1), len(self.styles), NEIGHBOURS).start)
        if index == len(self.styles) - 1:
            for kept in (self.small, self.lit, self.sums.runs):
                kept.clear()
        return fetch(style + self.strength * (smooth - style))

    # -- light ---------------------------------------------------------------------------------------------------------

    def _lit(self, index: int) -> Array:
        """The frame in the light of its window, float32 [H, W, 3]."""
        frames = window(index, len(self.styles), self.reach)
        total, own = self.sums.total(index, frames), self.small[index][1][..., :3]
        self.sums.forget(index, frames)
        self.small.forget(frames.start)
        return _apply(floats(self.styles[index]), *_fit(own, total[..., :3] / total[..., 3:]))

    def _shrunk(self, index: int) -> tuple[Array, Array]:
        """The guide, small as motion is found on; the style, smaller, with a weight of 1, float32 [h, w, 4]."""
        guide, style = _smaller(floats(self.guides[index]), FLOW_SHRINK), _smaller(floats(self.styles[index]), SHRINK)
        xp = array_namespace(style)
        return guide, xp.concat([style, xp.ones_like(style[..., :1])], axis=-1)

    def _link_light(self, pairs: list[tuple[int, int]]) -> Iterator[tuple[Array, Array]]:
        """Motion and agreement of pairs of frames, as small as what is carried."""
        xp = array_namespace(self.small[pairs[0][0]][0])
        here, there = (xp.stack([self.small[index][0] for index in side]) for side in zip(*pairs, strict=True))
        moved = each(here, flow, there)
        fits = each(here, lambda one, other, by: agreement(one, other, by, self.guide_weight), there, moved)
        size = self.small[pairs[0][0]][1].shape[-3:-1]
        small = (each(moved, lambda by: _small_motion(by, *size)), each(fits, lambda fit: shrink(fit, *size)))
        return zip(*small, strict=True)

    # -- detail --------------------------------------------------------------------------------------------------------

    def _detailed(self, index: int) -> Array:
        """The frame in its own detail and that of its neighbours, float32 [H, W, 3]. Stacks are of the frames that it
        is compared with, itself among them."""
        frames = window(index, len(self.styles), NEIGHBOURS)
        motions, trust = self._matches(index, frames)
        layers = array_namespace(motions).stack([self.lit[other] for other in frames])
        rough = _mean(each(layers, _carried, motions), trust)
        swum = each(layers, lambda layer, moved: registration(rough, _carried(layer, moved)), motions)
        # Each layer is moved to where the layers are on average, not to where their blurred mean seems to be.
        registered = each(layers, _carried, motions + swum - _mean(swum, trust))
        consensus = _robust_mean(registered, trust, rough)
        distances = [other - index for other in frames]
        return _keep(self.lit[index], consensus, _steadiness(swum, trust, distances, rough), self.detail)

    def _matches(self, index: int, frames: range) -> tuple[Array, Array]:
        """Where frame `index` is found in each of `frames`, and how far that is to be trusted: stacks."""
        guide, others = self.guides[index], [other for other in frames if other != index]
        xp = array_namespace(guide)
        still = xp.zeros_like(floats(guide))
        motions, trust = still[None, ..., :2], still[None, ..., :1] + 1
        if others:
            theirs = xp.stack([self.guides[other] for other in others])
            moved = each(theirs, lambda there: motion(guide, there, self.patch_size, threads=1))
            fits = each(theirs, lambda there, moved: agreement(guide, there, moved, self.guide_weight), moved)
            before = index - frames.start
            motions = xp.concat([moved[:before], motions, moved[before:]])
            trust = xp.concat([fits[:before], trust, fits[before:]])
        nearness = [1 / (1 + ((other - index) / NEAR) ** 2) for other in frames]
        return motions, xp.stack([weight * near for weight, near in zip(trust, nearness, strict=True)])


def _smaller(image: Array, times: int) -> Array:
    height, width = image.shape[-3:-1]
    return shrink(image, -(-height // times), -(-width // times))


def _small_motion(moved: Array, height: int, width: int) -> Array:
    """A motion, of smaller images."""
    x, y = width / moved.shape[-2], height / moved.shape[-3]
    small = shrink(moved, height, width)
    return array_namespace(moved).concat([small[..., :1] * x, small[..., 1:] * y], axis=-1)


def _carry_light(link: tuple[Array, Array], held: Array) -> Array:
    moved, weight = link
    return carry(held, moved, cubic=True)[0] * weight  # linear would blur, and once more at every carry


def fit_light(image: Array, wanted: Array) -> Array:
    """`image` in the light and colours of `wanted`, with its own detail; float32 [H, W, 3]."""
    return _apply(image, *_fit(_smaller(image, SHRINK), _smaller(wanted, SHRINK)))


def _apply(image: Array, gain: Array, offset: Array) -> Array:
    gain, offset = (enlarge(plane, *image.shape[-3:-1]) for plane in (gain, offset))
    return gain * image + offset


def _fit(own: Array, mean: Array) -> tuple[Array, Array]:
    """For each pixel and channel the gain and offset that take `own` to `mean`, by least squares over an area."""
    # What detail the mean has lost must not look like a loss of contrast.
    own, mean = gauss(own, COARSE), gauss(mean, COARSE)
    own_mean, wanted = box(own, AREA), box(mean, AREA)
    variance = box(own * own, AREA) - own_mean**2
    covariance = box(own * mean, AREA) - own_mean * wanted
    gain = (covariance + STIFFNESS) / (variance + STIFFNESS)
    return box(gain, AREA), box(wanted - gain * own_mean, AREA)


def _carried(image: Array, moved: Array) -> Array:
    return carry(image, moved, cubic=True)[0]


def _robust_mean(layers: Array, trust: Array, rough: Array) -> Array:
    """The mean that patches which stand out from `rough` count little in (Geman & McClure 1987)."""
    deviations = each(layers, lambda layer: _power(layer - rough, PATCH))
    usual = TOLERANCE * (median(deviations) + FLOOR)
    return _mean(layers, trust / (1 + (deviations / usual) ** 2))


def _steadiness(swum: Array, trust: Array, distances: list[int], consensus: Array) -> Array:
    """0 where detail swims from frame to frame, 1 where it stays in its place, float32 [H, W, 1]."""
    xp = array_namespace(swum)
    place, time = _mean(swum, trust), _mean(distances, trust)
    since = xp.stack([distance - time for distance in distances])
    off = swum - place
    # What grows steadily with time is an error of the flow, not swimming.
    drift = _mean(off * since, trust) / (_mean(since**2, trust) + 1e-3)
    squares = _mean(xp.sum((off - drift * since) ** 2, axis=-1, keepdims=True), trust)
    freedom = len(distances) / max(len(distances) - 2, 1)
    seen = gauss(_power(_fine(consensus), 1), RIGID)  # where nothing is seen, nothing swims
    distance = freedom * gauss(squares * seen, SWIM_AREA) / (gauss(seen, SWIM_AREA) + 1e-3)
    return xp.exp(-distance / STEADY**2)


def _keep(own: Array, consensus: Array, steady: Array, detail: float) -> Array:
    """The consensus, and of the frame's own detail what is steady and more than noise."""
    difference = own - consensus
    deviation = _power(_fine(difference), GRAIN)
    noise = NOISE_MARGIN * percentile(deviation, QUIET)
    kept = steady * array_namespace(own).clip(1 - noise / (deviation + 1e-3), min=0, max=1)  # Wiener's share
    sharper = SHARPEN * (1 - steady) * (consensus - gauss(consensus, BLUR))
    found, own_share = min(2 * detail, 1), max(2 * detail - 1, 0)
    blended = consensus + found * (sharper + kept * difference)
    return blended + own_share * (own - blended)


def registration(consensus: Array, layer: Array) -> Array:
    """How far the layer's detail lies from that of the consensus, px, float32 [H, W, 2]."""
    moved = flow(consensus, layer, stiff=True)
    return gauss(array_namespace(moved).clip(moved, min=-FURTHEST, max=FURTHEST), RIGID)


def _mean(layers: Array, weights: Array) -> Array:
    """Of a stack of images, or of numbers, with a stack of weights."""
    return sum(layer * weight for layer, weight in zip(layers, weights, strict=True)) / sum(weights)


def _fine(image: Array) -> Array:
    return image - gauss(image, FINE)


def _power(values: Array, side: int) -> Array:
    """Mean square over channels and squares of `side`, float32 [H, W, 1]."""
    return box(mean_square(values), side)


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
