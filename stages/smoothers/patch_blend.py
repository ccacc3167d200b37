"""Deflickering that preserves detail: light from the whole window, detail from the agreement of neighbours.

Flicker has two components. Light and colour change over wide areas (images/light.py). Detail is noisy or swims: nearby
frames are warped onto the frame, along the guide's motion or, where that fails, the style's own, and registered to
their consensus. Each is weighted by how well it fits the frame's own pixels (images/evidence.py), so that a frame stays
unchanged where none fits. Detail above the noise is kept. Where detail swims, the consensus replaces it, sharpened to
make up for averaging. docs/smoothers.md gives reasons and measurements.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from array_api_compat import array_namespace
from pydantic import Field

from stages.base.arrays import Image, Images
from stages.smoothers import SMOOTHERS, Frames, PatchSize, SmootherOptions
from stages.smoothers.images.evidence import FINE, flicker_level, flicker_line, keep_structure, misfit, support
from stages.smoothers.images.light import WindowLight
from stages.smoothers.images.matching import PATCH, agreement, corrected, field, grain
from stages.smoothers.images.pixels import (
    Array,
    as_it_is,
    box,
    each,
    enlarge,
    fetch,
    floats,
    flow,
    frames_at_once,
    fuse,
    gauss,
    mean,
    mean_square,
    median,
    numbers,
    percentile,
    shrink,
    stacked,
    warp,
)
from stages.smoothers.images.tables import WHOLE_VIDEO_REACH, Memo, per_frame_beyond, window, window_pairs

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
WINDOW_PER_FRAME = 4  # frames of the window whose light takes as long as smoothing one frame; measured at 15


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

    @property
    def warm_up(self) -> int:
        return (WHOLE_VIDEO_REACH if self.window is None else self.window) // WINDOW_PER_FRAME

    def pairs(self, frames: int) -> float:
        reach = WHOLE_VIDEO_REACH if self.window is None else self.window
        light = per_frame_beyond(lambda count: window_pairs(count, reach), frames, reach)
        return light + frames * (len(window(0, frames, NEIGHBOURS)) - 1)

    def build(self, guides: Frames, styles: Frames, device: str) -> PatchBlendSmoother:
        return PatchBlendSmoother(guides, styles, self)

    def build_compiled(self, guides: Frames, styles: Frames, device: str) -> PatchBlendSmoother:
        return PatchBlendSmoother(guides, styles, self, compiled=True)


class PatchBlendSmoother:
    """The smoother that `PatchBlend` configures. If `guides` is `styles`, the video is its own guide."""

    def __init__(self, guides: Frames, styles: Frames, options: PatchBlend, compiled: bool = False):
        self.guides, self.styles = guides, styles
        self.strength, self.detail = options.strength, options.detail
        self.patch_size, self.guide_weight = options.patch_size, options.guide_weight
        reach = WHOLE_VIDEO_REACH if options.window is None else options.window
        count, size = len(styles), frames_at_once(styles[0]) if len(styles) else 1
        fused = partial(fuse, styles[0]) if compiled and len(styles) else as_it_is
        self.flow, self.corrected, self.fit = map(fused, (_flows, _corrected, _fits))
        self.line, self.level, self.follow, self.merge = map(fused, (_flicker_lines, _flicker_levels, _follow, _merged))
        self.light = WindowLight(guides, styles, reach, options.guide_weight, size, fused)
        self.lit = Memo(self.light.frames, count, size)
        self.lines = Memo(self._lines, count, size)
        self.grains = Memo(lambda block: each(self._guides(block), grain), count, size)
        self.smoothed: Memo[Image] = Memo(self._smooth, count, size)

    def smooth(self, start: int, stop: int) -> Images:
        return np.stack([self._frame(index) for index in range(start, stop)])

    def _frame(self, index: int) -> Image:
        smoothed = self.smoothed[index]
        self.smoothed.forget(index + 1)
        if index == len(self.styles) - 1:
            self.light.clear()
            for kept in (self.lit, self.lines, self.grains):
                kept.clear()
        return smoothed

    def _smooth(self, block: range) -> Images:
        """Smooth frames together, uint8 [N, H, W, 3]."""
        styles = floats(stacked([self.styles[index] for index in block]))
        as_lit = self.detail == 1 or len(self.styles) == 1
        smooth = stacked([self.lit[index] for index in block]) if as_lit else self._detailed(block)
        first_needed = window(min(block.stop, len(self.styles) - 1), len(self.styles), NEIGHBOURS).start
        for kept in (self.lit, self.lines, self.grains):
            kept.forget(first_needed)
        smoothed: Images = fetch(styles + self.strength * (smooth - styles))
        return smoothed

    def _detailed(self, block: range) -> Array:
        """Combine the detail of frames and their neighbours, float32 [N, H, W, 3].

        Stacks contain the neighbours of each frame, later preceded by the frame itself: [N, neighbours, H, W, C].
        """
        windows = [window(index, len(self.styles), NEIGHBOURS) for index in block]
        others = [[other for other in frames if other != index] for index, frames in zip(block, windows, strict=True)]
        # Lines need the earliest frames. Requested in order, each sum over a window is computed once.
        lines = _rows([[self.lines[later] for later in frames[1:]] for frames in windows])
        own = _rows([[self.lit[index]] for index in block])
        layers = _rows([[self.lit[other] for other in row] for row in others])
        distances = _distances(own, block, others)
        led, agreed = self._matches(block, others)
        level = self.level(own, lines)
        motions, trust = self.follow(own, layers, level, led, agreed, distances)
        del led, agreed  # large, as is what follows
        layers, motions, trust, distances = _with_own(own, layers, motions, trust, distances)
        return self.merge(own, layers, level, motions, trust, distances, self.detail)

    def _lines(self, block: range) -> Array:
        """Fit the flicker lines of frames and those before them; the first frame gets the line of the second."""
        before, after = (stacked([self.lit[max(index, 1) - step] for index in block]) for step in (1, 0))
        return self.line(before, after)

    def _matches(self, block: range, others: list[list[int]]) -> tuple[Array, Array]:
        """Return the guide's motion from each frame to its neighbours and how well it fits, as stacks."""
        guides = self._guides(block)[:, None]
        theirs = self._guides([other for row in others for other in row]).reshape(len(block), -1, *guides.shape[-3:])
        grains, their_grains = (
            _rows([[self.grains[index] for index in row] for row in rows])
            for rows in ([[index] for index in block], others)
        )
        smooth = self.flow(guides, theirs)
        moved = self.corrected(smooth, each(guides, self._field, theirs, smooth))
        del smooth
        return moved, self.fit(guides, theirs, moved, grains + their_grains, self.guide_weight)

    def _field(self, here: Array, there: Array, start: Array) -> Array:
        return field(here, there, start, self.patch_size, threads=1)

    def _guides(self, indexes: Iterable[int]) -> Array:
        """Return the guides of frames, uint8. A video that is its own guide is used in steady light."""
        if self.guides is not self.styles:
            return stacked([self.guides[index] for index in indexes])
        lit = stacked([self.lit[index] for index in indexes])
        xp = array_namespace(lit)
        return xp.astype(xp.clip(xp.round(lit), 0, 255), xp.uint8)


def _rows(images: list[list[Array]]) -> Array:
    """Stack lists of images, [N, images, H, W, C]."""
    stack = stacked([image for row in images for image in row])
    return stack.reshape(len(images), -1, *stack.shape[1:])


def _distances(image: Array, block: range, others: list[list[int]]) -> Array:
    """Return the distances in frames from each frame to its neighbours, float32 [N, neighbours, 1, 1, 1]."""
    values = [other - index for index, row in zip(block, others, strict=True) for other in row]
    return numbers(image, tuple(values)).reshape(len(block), -1, 1, 1, 1)


def _flows(guides: Array, theirs: Array) -> Array:
    return each(guides, flow, theirs)


def _corrected(smooth: Array, found: Array) -> Array:
    return each(smooth, corrected, found)


def _fits(guides: Array, theirs: Array, moved: Array, noise: Array, strictness: float) -> Array:
    def fit(here: Array, there: Array, moved: Array, noise: Array) -> Array:
        return agreement(here, there, moved, strictness, noise)

    return each(guides, fit, theirs, moved, noise)


def _flicker_levels(own: Array, lines: Array) -> Array:
    return each(own, flicker_level, median(lines))


def _flicker_lines(before: Array, after: Array) -> Array:
    return each(before, _line, after)


def _line(own: Array, other: Array) -> Array:
    """Fit the flicker line of two frames, along the style's own motion since the guide's may be wrong."""
    return flicker_line(own, misfit(own, _carried(other, flow(own, other, stiff=True))))


def _follow(
    own: Array, layers: Array, level: Array, led: Array, agreed: Array, distances: Array
) -> tuple[Array, Array]:
    """Return the motion from each frame to its neighbours and their weights, as stacks.

    It is the guide's motion `led`, which fits as well as `agreed`, unless the style moves differently and its own
    motion fits much better.
    """
    xp = array_namespace(own)
    seen = each(own, lambda own, layer: flow(own, layer, stiff=True), layers)
    led_misfit = each(own, _registered_misfit, layers, led)
    seen_misfit = each(own, lambda own, layer, moved: misfit(own, _carried(layer, moved)), layers, seen)
    apart = each(seen - led, lambda off: xp.sqrt(gauss(xp.sum(off**2, axis=-1, keepdims=True), RIGID)))
    # Swimming detail moves a little and flow follows its noise, so a slightly better fit proves nothing. Where the
    # two motions differ widely, any improvement decides.
    doubt = xp.clip((FAR_APART - apart) / (FAR_APART - SWIMMING), 0, 1)
    better = xp.astype(led_misfit > BETTER * seen_misfit + doubt * level, xp.float32)
    follow = each(better, lambda share: gauss(share, FOLLOWED)) > 0.5
    fits = support(xp.where(follow, seen_misfit, led_misfit), level, MATCHED)
    nearness = 1 / (1 + (distances / NEAR) ** 2)
    return xp.where(follow, seen, led), nearness * fits * xp.where(follow, xp.ones_like(agreed), agreed)


def _with_own(own: Array, layers: Array, motions: Array, trust: Array, distances: Array) -> tuple[Array, ...]:
    """Put each frame itself before its neighbours, at no distance, unmoved and trusted."""
    xp = array_namespace(own)
    motions, distances = (xp.concat([xp.zeros_like(row[:, :1]), row], axis=1) for row in (motions, distances))
    return xp.concat([own, layers], axis=1), motions, xp.concat([xp.ones_like(trust[:, :1]), trust], axis=1), distances


def _merged(
    own: Array, layers: Array, level: Array, motions: Array, trust: Array, distances: Array, detail: float
) -> Array:
    """Combine the detail of frames and their neighbours, whose stacks begin with the frames; float32 [N, H, W, 3]."""
    copies = each(layers, _carried, motions)
    rough = mean(copies, trust)
    swum = each(rough, registration, copies)
    del copies  # which are large
    # Layers are moved to their mean position, not to the apparent position of their blurred mean.
    registered = each(layers, _carried, motions + swum - mean(swum, trust))
    own_moved = registered[:, :1]
    fits = each(own_moved, _registered_support, registered, level)
    consensus = mean(registered, trust * fits)
    steady = _steadiness(swum, trust, distances, rough)

    def kept(own: Array, own_moved: Array, consensus: Array, steady: Array, level: Array) -> Array:
        return keep_structure(own_moved, _keep(own, consensus, steady, detail), level)

    return each(own, kept, own_moved, consensus, steady, level)[:, 0]


def registration(consensus: Array, layer: Array) -> Array:
    """Return the displacement of the layer's detail from the consensus, px, float32 [H, W, 2]."""
    moved = flow(consensus, layer, stiff=True)
    return gauss(array_namespace(moved).clip(moved, min=-FURTHEST, max=FURTHEST), RIGID)


def _registered_misfit(own: Array, layer: Array, moved: Array) -> Array:
    """Return the misfit after compensating for swimming."""
    return misfit(own, _carried(layer, moved + registration(own, _carried(layer, moved))))


def _registered_support(own: Array, layer: Array, level: Array) -> Array:
    return support(misfit(own, layer), level, REGISTERED)


def _carried(image: Array, moved: Array) -> Array:
    return warp(image, moved, cubic=True)


def _steadiness(swum: Array, trust: Array, distances: Array, consensus: Array) -> Array:
    """Return how steady detail is: 0 where it swims, 1 where it stays in place, float32 [N, 1, H, W, 1]."""
    xp = array_namespace(swum)
    half = [-(-side // 2) for side in swum.shape[-3:-1]]  # swimming is smooth, so half the size is enough
    swum, trust = (each(stack, lambda image: shrink(image, *half)) for stack in (swum, trust))
    since = distances - mean(distances, trust)
    off = swum - mean(swum, trust)
    # Linear drift over time is an error of the flow, not swimming.
    drift = mean(off * since, trust) / (mean(since**2, trust) + 1e-3)
    squares = mean(xp.sum((off - drift * since) ** 2, axis=-1, keepdims=True), trust)
    freedom = swum.shape[1] / max(swum.shape[1] - 2, 1)
    return each(consensus, lambda image, square: _stillness(image, square, freedom), squares)


def _stillness(consensus: Array, squares: Array, freedom: float) -> Array:
    """Return how steady detail is, float32 [H, W, 1], by the mean `squares` of how far it swims, at half the size."""
    # Without visible detail, nothing swims.
    seen = shrink(gauss(_power(_fine(consensus), 1), RIGID), *squares.shape[-3:-1])
    distance = freedom * gauss(squares * seen, SWIM_AREA / 2) / (gauss(seen, SWIM_AREA / 2) + 1e-3)
    return enlarge(array_namespace(seen).exp(-distance / STEADY**2), *consensus.shape[-3:-1])


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


def _fine(image: Array) -> Array:
    return image - gauss(image, FINE)


def _power(values: Array, side: int) -> Array:
    """Return the mean square over channels and squares of `side` pixels, float32 [H, W, 1]."""
    return box(mean_square(values), side)
