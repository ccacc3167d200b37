"""Deflickering that keeps detail and does no harm: light from the whole window, detail from what neighbours agree on.

Flicker is of two kinds. Light and colour change over wide areas (images/light.py). Detail is noisy, or swims:
frames nearby are carried onto this one, along the guide's motion or where that fails along the style's own, and
registered to their consensus. A copy counts as far as it fits the frame's own pixels (images/evidence.py), so
that where no copy fits the frame stays as it is. Where its detail stands above the noise it is kept, and where detail
swims the consensus takes over, sharpened for what averaging costs. docs/smoothers.md has the reasons and measurements.
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace
from pydantic import Field

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
from stages.smoothers.images.tables import WHOLE, Memo, window

NEIGHBOURS = 3  # frames to each side that detail is compared with
NEAR = 4.0  # frames away at which trust is halved
BETTER = 1.2  # times that the style's own motion must fit better than the guide's to be followed
SWIMMING, FAR_APART = 6.0, 9.0  # px between the two motions: up to the first, it must be better by the level of flicker
FOLLOWED = 3.0  # px; one motion is followed over areas this wide
MATCHED = 8.0  # times the level of flicker at which a copy counts half, before it is registered
REGISTERED = 6.0  # and after that
FURTHEST = 2.5  # px that detail can have swum
RIGID = 4.0  # px; swimming is this smooth
GRAIN = 9  # px a side over which the power of detail is measured
QUIET = 20  # per cent of a frame hold nothing but noise
NOISE_MARGIN = 1.2  # times what those parts hold is noise
STEADY = 0.3  # px (root mean square) of swimming at which a frame's own detail counts 1/e
SWIM_AREA = 16.0  # px; swimming is measured over areas this wide
BLUR = 1.5  # px; what is finer is sharpened
FINEST = 0.6  # px; what is finer shows how much has to be
CRISP = 1.2  # times as sharp as the frame's own detail is what sharpening aims at: its noise is gone, which looks soft
SHARPEN = 0.6  # at most


@SMOOTHERS.register
class PatchBlend(SmootherOptions):
    """Takes out flicker and keeps detail: light from the whole window, detail from what neighbours agree on."""

    name = "PatchBlendSmoother"
    on_gpu = True
    window: int | None = Field(15, ge=0, le=1000)
    """Frames to each side to average light and colour over; null: the whole video (up to 63 to each side)."""
    strength: float = Field(1.0, ge=0, le=1)
    """0 = leave frames as they are, 1 = remove all flicker."""
    detail: float = Field(0.5, ge=0, le=1)
    """0 = only detail that neighbours agree on, 0.5 = own detail where it stays in place, 1 = all own detail."""
    patch_size: PatchSize = PATCH
    """Side of matched patches in pixels, odd."""
    guide_weight: float = Field(1.0, ge=0, le=100)
    """Weight of the original video in matching; lower it if that video is grainy, 0 = none."""

    def build(self, guides: Frames, styles: Frames, device: str) -> PatchBlendSmoother:
        return PatchBlendSmoother(guides, styles, self)


class PatchBlendSmoother:
    """Deflickers with the options of `PatchBlend`. Where `guides` is `styles`, the video is its own guide."""

    def __init__(self, guides: Frames, styles: Frames, options: PatchBlend):
        self.guides, self.styles = guides, styles
        self.strength, self.detail = options.strength, options.detail
        self.patch_size, self.guide_weight = options.patch_size, options.guide_weight
        reach = WHOLE if options.window is None else options.window
        self.light = WindowLight(guides, styles, reach, options.guide_weight)
        self.lit = Memo(self.light.frame)
        self.lines = Memo(self._line)
        self.grains = Memo(lambda index: grain(self._guide(index)))

    def smooth(self, start: int, stop: int) -> np.ndarray:
        return np.stack([self._frame(index) for index in range(start, stop)])

    def _frame(self, index: int) -> np.ndarray:
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
        """The frame in its own detail and that of its neighbours, float32 [H, W, 3]. Stacks are of the neighbours,
        then of the frame itself and them."""
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
        # Each layer is moved to where the layers are on average, not to where their blurred mean seems to be.
        registered = each(layers, _carried, motions + swum - _mean(swum, trust))
        own_moved = registered[0]
        fits = each(registered, lambda layer: support(misfit(own_moved, layer), level, REGISTERED))
        consensus = _mean(registered, trust * fits)
        distances = [0, *(other - index for other in others)]
        kept = _keep(own, consensus, _steadiness(swum, trust, distances, rough), self.detail)
        return keep_structure(own_moved, kept, level)

    def _flicker_level(self, index: int, others: list[int]) -> Array:
        """What flicker explains in this frame, by how neighbouring frames around it differ."""
        pairs = sorted([index, *others])[:-1]
        line = median(array_namespace(self.lit[index]).stack([self.lines[first] for first in pairs]))
        return flicker_level(self.lit[index], line)

    def _line(self, index: int) -> Array:
        """The flicker line of a frame and the next, along the style's own motion: the guide's may be wrong."""
        own, other = self.lit[index], self.lit[index + 1]
        return flicker_line(own, misfit(own, _carried(other, flow(own, other, stiff=True))))

    def _follow(self, index: int, others: list[int], own: Array, layers: Array, level: Array) -> tuple[Array, Array]:
        """Where frame `index` is found in each of `others`, and how far that is to be trusted: stacks.

        The guide says where, unless the style moves in its own way: then its own motion fits much better."""
        xp = array_namespace(own)
        led, agreed = self._matches(index, others)
        seen = each(layers, lambda layer: flow(own, layer, stiff=True))
        led_misfit = each(layers, lambda layer, moved: _registered_misfit(own, layer, moved), led)
        seen_misfit = each(layers, lambda layer, moved: misfit(own, _carried(layer, moved)), seen)
        apart = each(seen - led, lambda off: xp.sqrt(gauss(xp.sum(off**2, axis=-1, keepdims=True), RIGID)))
        # Detail that swims moves a little, and flow follows its noise: a small gain in fit says nothing. Where the two
        # motions lie far apart, any gain decides.
        doubt = xp.clip((FAR_APART - apart) / (FAR_APART - SWIMMING), 0, 1)
        better = xp.astype(led_misfit > BETTER * seen_misfit + doubt * level, xp.float32)
        follow = each(better, lambda share: gauss(share, FOLLOWED)) > 0.5
        fits = support(xp.where(follow, seen_misfit, led_misfit), level, MATCHED)
        nearness = xp.stack([xp.ones_like(level) / (1 + ((other - index) / NEAR) ** 2) for other in others])
        return xp.where(follow, seen, led), nearness * fits * xp.where(follow, xp.ones_like(agreed), agreed)

    def _matches(self, index: int, others: list[int]) -> tuple[Array, Array]:
        """Where the guide of frame `index` is found in those of `others`, and how well it fits there: stacks."""
        guide, theirs = self._guide(index), [self._guide(other) for other in others]
        stack = array_namespace(guide).stack(theirs)
        moved = each(stack, lambda there: motion(guide, there, self.patch_size, threads=1))
        noise = array_namespace(guide).stack([self.grains[index] + self.grains[other] for other in others])
        fits = each(
            stack, lambda there, by, both: agreement(guide, there, by, self.guide_weight, both), moved, noise
        )  # fmt: skip
        return moved, fits

    def _guide(self, index: int) -> Array:
        """uint8. A video that is its own guide is matched in steady light."""
        if self.guides is not self.styles:
            return self.guides[index]
        lit = self.lit[index]
        xp = array_namespace(lit)
        return xp.astype(xp.clip(xp.round(lit), 0, 255), xp.uint8)


def registration(consensus: Array, layer: Array) -> Array:
    """How far the layer's detail lies from that of the consensus, px, float32 [H, W, 2]."""
    moved = flow(consensus, layer, stiff=True)
    return gauss(array_namespace(moved).clip(moved, min=-FURTHEST, max=FURTHEST), RIGID)


def _registered_misfit(own: Array, layer: Array, moved: Array) -> Array:
    """The misfit that is left when swimming has been followed."""
    return misfit(own, _carried(layer, moved + registration(own, _carried(layer, moved))))


def _carried(image: Array, moved: Array) -> Array:
    return carry(image, moved, cubic=True)[0]


def _steadiness(swum: Array, trust: Array, distances: list[int], consensus: Array) -> Array:
    """0 where detail swims from frame to frame, 1 where it stays in its place, float32 [H, W, 1]."""
    xp = array_namespace(swum)
    size = swum.shape[-3:-1]
    half = [-(-side // 2) for side in size]  # swimming is smooth, half the size shows all of it
    swum, trust = (each(stack, lambda image: shrink(image, *half)) for stack in (swum, trust))
    place, time = _mean(swum, trust), _mean(distances, trust)
    since = xp.stack([distance - time for distance in distances])
    off = swum - place
    # What grows steadily with time is an error of the flow, not swimming.
    drift = _mean(off * since, trust) / (_mean(since**2, trust) + 1e-3)
    squares = _mean(xp.sum((off - drift * since) ** 2, axis=-1, keepdims=True), trust)
    freedom = len(distances) / max(len(distances) - 2, 1)
    seen = shrink(gauss(_power(_fine(consensus), 1), RIGID), *half)  # where nothing is seen, nothing swims
    distance = freedom * gauss(squares * seen, SWIM_AREA / 2) / (gauss(seen, SWIM_AREA / 2) + 1e-3)
    return enlarge(xp.exp(-distance / STEADY**2), *size)


def _keep(own: Array, consensus: Array, steady: Array, detail: float) -> Array:
    """The consensus, and of the frame's own detail what is steady and more than noise."""
    xp = array_namespace(own)
    difference = own - consensus
    deviation = _power(_fine(difference), GRAIN)
    noise = NOISE_MARGIN * percentile(deviation, QUIET)
    kept = steady * xp.clip(1 - noise / (deviation + 1e-3), min=0, max=1)  # Wiener's share
    mixed = consensus + kept * difference
    # Averaging softens; sharpening gives back no more than the frame itself had, or detail would be invented.
    missing = xp.clip(CRISP * _sharpness(own) / (_sharpness(mixed) + 0.1) - 1, 0, SHARPEN)
    sharper = missing * (1 - steady) * (consensus - gauss(consensus, BLUR))
    found, own_share = min(2 * detail, 1), max(2 * detail - 1, 0)
    blended = consensus + found * (sharper + kept * difference)
    return blended + own_share * (own - blended)


def _sharpness(image: Array) -> Array:
    """Root mean square of the finest detail around each pixel, levels [H, W, 1]."""
    return array_namespace(image).sqrt(gauss(mean_square(image - gauss(image, FINEST)), FOLLOWED))


def _mean(layers: Array, weights: Array) -> Array:
    """Of a stack of images, or of numbers, with a stack of weights."""
    return sum(layer * weight for layer, weight in zip(layers, weights, strict=True)) / sum(weights)


def _fine(image: Array) -> Array:
    return image - gauss(image, FINE)


def _power(values: Array, side: int) -> Array:
    """Mean square over channels and squares of `side`, float32 [H, W, 1]."""
    return box(mean_square(values), side)
