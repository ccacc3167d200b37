"""Deflickering that preserves detail: light from the whole window, detail from the agreement of neighbours.

Flicker has two components. Light and colour change over wide areas (images/light.py). Detail is noisy or swims: nearby
frames are warped onto the frame, along the guide's motion or, where that fails, the style's own, and registered to
their consensus. Each is weighted by how well it fits the frame's own pixels (images/evidence.py), so that a frame stays
unchanged where none fits. Detail above the noise is kept. Where detail swims, the consensus replaces it, sharpened to
make up for averaging. docs/smoothers.md gives reasons and measurements.
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace
from pydantic import Field

from stages.base.arrays import Image, Images
from stages.smoothers import SMOOTHERS, Frames, PatchSize, SmootherOptions
from stages.smoothers.images.evidence import FINE, flicker_level, flicker_line, keep_structure, misfit, support
from stages.smoothers.images.light import WindowLight
from stages.smoothers.images.matching import PATCH, agreement, carry, grain, mean_square, motion
from stages.smoothers.images.pixels import (
    Array,
    box,
    each,
    enlarge,
    fetch,
    floats,
    flow,
    gauss,
    median,
    percentile,
    shrink,
)
from stages.smoothers.images.tables import WHOLE_VIDEO_REACH, Memo, window

NEIGHBOURS = 3  # frames to each side that detail is compared with
NEAR = 4.0  # frames of distance at which trust is halved
BETTER = 1.2  # factor by which the style's own motion must fit better than the guide's to replace it
SWIMMING, FAR_APART = (
    6.0,
    9.0,
)  # px between the two motions; up to the first, the fit must also improve by the level of flicker
FOLLOWED = 3.0  # px over which the choice of motion is constant
MATCHED = 8.0  # times the level of flicker at which a neighbour counts half, before registration ...
REGISTERED = 6.0  # ... and after it
FURTHEST = 2.5  # px, max. swimming of detail
RIGID = 4.0  # px, smoothness of swimming
GRAIN = 9  # px a side over which the power of detail is measured
QUIET = 20  # per cent of a frame, which contain only noise
NOISE_MARGIN = 1.2  # times the power in those areas counts as noise
STEADY = 0.3  # px (root mean square) of swimming at which a frame's own detail counts 1/e
SWIM_AREA = 16.0  # px over which swimming is measured
BLUR = 1.5  # px; finer detail is sharpened
FINEST = 0.6  # px; finer detail determines by how much
CRISP = 1.2  # times the frame's own sharpness is the aim, since images without noise look softer
MAX_SHARPENING = 0.6


@SMOOTHERS.register
class PatchBlend(SmootherOptions):
    """Remove flicker but keep detail: light from the whole window, detail from the agreement of neighbours."""

    name = "PatchBlendSmoother"
    on_gpu = True
    window: int | None = Field(15, ge=0, le=1000)
    """Frames to each side for averaging light and colour (null = the whole video, up to 63 to each side)."""
    strength: float = Field(1.0, ge=0, le=1)
    """0 = no change, 1 = remove all flicker."""
    detail: float = Field(0.5, ge=0, le=1)
    """0 = only detail that neighbours agree on, 0.5 = own detail where it stays in place, 1 = all own detail."""
    patch_size: PatchSize = PATCH
    """Side of matched patches in pixels, odd."""
    guide_weight: float = Field(1.0, ge=0, le=100)
    """Weight of the original video in matching (0 = none). Lower it if that video is grainy."""

    def build(self, guides: Frames, styles: Frames, device: str) -> PatchBlendSmoother:
        return PatchBlendSmoother(guides, styles, self)


class PatchBlendSmoother:
    """The smoother that `PatchBlend` configures. If `guides` is `styles`, the video is its own guide."""

    def __init__(self, guides: Frames, styles: Frames, options: PatchBlend):
        self.guides, self.styles = guides, styles
        self.strength, self.detail = options.strength, options.detail
        self.patch_size, self.guide_weight = options.patch_size, options.guide_weight
        reach = WHOLE_VIDEO_REACH if options.window is None else options.window
        self.light = WindowLight(guides, styles, reach, options.guide_weight)
        self.lit = Memo(self.light.frame)
        self.lines = Memo(self._line)
        self.grains = Memo(lambda index: grain(self._guide(index)))

    def smooth(self, start: int, stop: int) -> Images:
        return np.stack([self._frame(index) for index in range(start, stop)])

    def _frame(self, index: int) -> Image:
        style = floats(self.styles[index])
        smooth = self.lit[index] if self.detail == 1 or len(self.styles) == 1 else self._detailed(index)
        first_needed = window(min(index + 1, len(self.styles) - 1), len(self.styles), NEIGHBOURS).start
        for kept in (self.lit, self.lines, self.grains):
            kept.forget(first_needed)
        if index == len(self.styles) - 1:
            self.light.clear()
            for kept in (self.lit, self.lines, self.grains):
                kept.clear()
        return fetch(style + self.strength * (smooth - style))

    def _detailed(self, index: int) -> Array:
        """Combine the detail of a frame and its neighbours, float32 [H, W, 3].

        Stacks contain the neighbours, later preceded by the frame itself.
        """
        others = [other for other in window(index, len(self.styles), NEIGHBOURS) if other != index]
        own, level = self.lit[index], self._flicker_level(index, others)
        xp = array_namespace(own)
        layers = xp.stack([self.lit[other] for other in others])
        motions, trust = self._follow(index, others, own, layers, level)
        layers = xp.concat([own[None], layers])
        motions = xp.concat([xp.zeros_like(motions[:1]), motions])
        trust = xp.concat([xp.ones_like(trust[:1]), trust])
        copies = each(layers, _carried, motions)
        rough = _mean(copies, trust)
        swum = each(copies, lambda copy: registration(rough, copy))
        # Layers are moved to their mean position, not to the apparent position of their blurred mean.
        registered = each(layers, _carried, motions + swum - _mean(swum, trust))
        own_moved = registered[0]
        fits = each(registered, lambda layer: support(misfit(own_moved, layer), level, REGISTERED))
        consensus = _mean(registered, trust * fits)
        distances = [0, *(other - index for other in others)]
        kept = _keep(own, consensus, _steadiness(swum, trust, distances, rough), self.detail)
        return keep_structure(own_moved, kept, level)

    def _flicker_level(self, index: int, others: list[int]) -> Array:
        """Return the level of flicker in a frame, from the differences between consecutive frames around it."""
        pairs = sorted([index, *others])[:-1]
        line = median(array_namespace(self.lit[index]).stack([self.lines[first] for first in pairs]))
        return flicker_level(self.lit[index], line)

    def _line(self, index: int) -> Array:
        """Fit the flicker line of a frame and the next, along the style's own motion since the guide's may be wrong."""
        own, other = self.lit[index], self.lit[index + 1]
        return flicker_line(own, misfit(own, _carried(other, flow(own, other, stiff=True))))

    def _follow(self, index: int, others: list[int], own: Array, layers: Array, level: Array) -> tuple[Array, Array]:
        """Return the motion from frame `index` to each of `others` and its weight, as stacks.

        It is the guide's motion, unless the style moves differently and its own motion fits much better.
        """
        xp = array_namespace(own)
        led, agreed = self._matches(index, others)
        seen = each(layers, lambda layer: flow(own, layer, stiff=True))
        led_misfit = each(layers, lambda layer, moved: _registered_misfit(own, layer, moved), led)
        seen_misfit = each(layers, lambda layer, moved: misfit(own, _carried(layer, moved)), seen)
        apart = each(seen - led, lambda off: xp.sqrt(gauss(xp.sum(off**2, axis=-1, keepdims=True), RIGID)))
        # Swimming detail moves a little and flow follows its noise, so a slightly better fit proves nothing. Where the
        # two motions differ widely, any improvement decides.
        doubt = xp.clip((FAR_APART - apart) / (FAR_APART - SWIMMING), 0, 1)
        better = xp.astype(led_misfit > BETTER * seen_misfit + doubt * level, xp.float32)
        follow = each(better, lambda share: gauss(share, FOLLOWED)) > 0.5
        fits = support(xp.where(follow, seen_misfit, led_misfit), level, MATCHED)
        nearness = xp.stack([xp.ones_like(level) / (1 + ((other - index) / NEAR) ** 2) for other in others])
        return xp.where(follow, seen, led), nearness * fits * xp.where(follow, xp.ones_like(agreed), agreed)

    def _matches(self, index: int, others: list[int]) -> tuple[Array, Array]:
        """Return the guide's motion from frame `index` to each of `others` and how well it fits, as stacks."""
        guide, theirs = self._guide(index), [self._guide(other) for other in others]
        stack = array_namespace(guide).stack(theirs)
        moved = each(stack, lambda there: motion(guide, there, self.patch_size, threads=1))
        noise = array_namespace(guide).stack([self.grains[index] + self.grains[other] for other in others])
        fits = each(
            stack, lambda there, by, both: agreement(guide, there, by, self.guide_weight, both), moved, noise
        )  # fmt: skip
        return moved, fits

    def _guide(self, index: int) -> Array:
        """Return the guide of a frame, uint8. A video that is its own guide is used in steady light."""
        if self.guides is not self.styles:
            return self.guides[index]
        lit = self.lit[index]
        xp = array_namespace(lit)
        return xp.astype(xp.clip(xp.round(lit), 0, 255), xp.uint8)


def registration(consensus: Array, layer: Array) -> Array:
    """Return the displacement of the layer's detail from the consensus, px, float32 [H, W, 2]."""
    moved = flow(consensus, layer, stiff=True)
    return gauss(array_namespace(moved).clip(moved, min=-FURTHEST, max=FURTHEST), RIGID)


def _registered_misfit(own: Array, layer: Array, moved: Array) -> Array:
    """Return the misfit after compensating for swimming."""
    return misfit(own, _carried(layer, moved + registration(own, _carried(layer, moved))))


def _carried(image: Array, moved: Array) -> Array:
    return carry(image, moved, cubic=True)[0]


def _steadiness(swum: Array, trust: Array, distances: list[int], consensus: Array) -> Array:
    """Return how steady detail is: 0 where it swims, 1 where it stays in place, float32 [H, W, 1]."""
    xp = array_namespace(swum)
    size = swum.shape[-3:-1]
    half = [-(-side // 2) for side in size]  # swimming is smooth, so half the size is enough
    swum, trust = (each(stack, lambda image: shrink(image, *half)) for stack in (swum, trust))
    place, time = _mean(swum, trust), _mean(distances, trust)
    since = xp.stack([distance - time for distance in distances])
    off = swum - place
    # Linear drift over time is an error of the flow, not swimming.
    drift = _mean(off * since, trust) / (_mean(since**2, trust) + 1e-3)
    squares = _mean(xp.sum((off - drift * since) ** 2, axis=-1, keepdims=True), trust)
    freedom = len(distances) / max(len(distances) - 2, 1)
    seen = shrink(gauss(_power(_fine(consensus), 1), RIGID), *half)  # without visible detail, nothing swims
    distance = freedom * gauss(squares * seen, SWIM_AREA / 2) / (gauss(seen, SWIM_AREA / 2) + 1e-3)
    return enlarge(xp.exp(-distance / STEADY**2), *size)


def _keep(own: Array, consensus: Array, steady: Array, detail: float) -> Array:
    """Add the frame's own detail to the consensus where it is steady and above the noise."""
    xp = array_namespace(own)
    difference = own - consensus
    deviation = _power(_fine(difference), GRAIN)
    noise = NOISE_MARGIN * percentile(deviation, QUIET)
    kept = steady * xp.clip(1 - noise / (deviation + 1e-3), min=0, max=1)  # Wiener filter
    mixed = consensus + kept * difference
    # Sharpening makes up for averaging, but never beyond the frame's own sharpness: that would invent detail.
    missing = xp.clip(CRISP * _sharpness(own) / (_sharpness(mixed) + 0.1) - 1, 0, MAX_SHARPENING)
    sharper = missing * (1 - steady) * (consensus - gauss(consensus, BLUR))
    found, own_share = min(2 * detail, 1), max(2 * detail - 1, 0)
    blended = consensus + found * (sharper + kept * difference)
    return blended + own_share * (own - blended)


def _sharpness(image: Array) -> Array:
    """Return the root mean square of the finest detail around each pixel, levels [H, W, 1]."""
    return array_namespace(image).sqrt(gauss(mean_square(image - gauss(image, FINEST)), FOLLOWED))


def _mean(layers: Array, weights: Array) -> Array:
    """Return the weighted mean of a stack of images or numbers."""
    return sum(layer * weight for layer, weight in zip(layers, weights, strict=True)) / sum(weights)


def _fine(image: Array) -> Array:
    return image - gauss(image, FINE)


def _power(values: Array, side: int) -> Array:
    """Return the mean square over channels and squares of `side` pixels, float32 [H, W, 1]."""
    return box(mean_square(values), side)
