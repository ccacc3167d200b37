"""Steady light and colour: each frame gets the mean light of its window.

Local gains and offsets fit each frame to the mean of its window. This neither moves edges nor blurs, however wide the
window is. Where the frame and the mean show different things, the correction of the surroundings is used.
"""

from __future__ import annotations

from collections.abc import Iterator

from array_api_compat import array_namespace

from stages.base.arrays import Frames
from stages.smoothers.images.evidence import flicker_level, flicker_line, misfit, support
from stages.smoothers.images.matching import agreement
from stages.smoothers.images.pixels import (
    AT_ONCE,
    Array,
    Fuse,
    as_it_is,
    box,
    each,
    enlarge,
    filled,
    floats,
    flow,
    gauss,
    percentile,
    shrink,
    stacked,
    warp,
)
from stages.smoothers.images.tables import Memo, WindowSums, window

SHRINK = 4  # factor by which images are shrunk to compare light
FLOW_SHRINK = 2  # factor by which images are shrunk to find motion
AREA = 5  # px a side of the shrunk image that share a gain and an offset
AROUND = 8.0  # px of the shrunk image: width of the surroundings
AROUND_WEIGHT = 0.2  # of the surroundings; that of the whole frame is its square
COARSE = 1.0  # px of the shrunk image; finer detail is not compared
STIFFNESS = 200.0  # levels²; where colours vary less, the gain stays near 1 (He & Sun 2015)
REACH = 1.5  # px of the shrunk image over which similarity is judged
TOLERANCE = 4.0  # times the level of flicker at which a match counts half
OWN = 0.3  # weight of the frame in its window's mean; matches weigh up to 1
ENOUGH = 1.0  # total weight of matches at which a fit counts half
UNSURE = 1e-4  # weight where nothing matches


class WindowLight:
    """Frames in the light of their window of `reach` frames to each side.

    Args:
        strictness: That of `agreement`.
        size: Frames processed together.
        fused: Turns functions of stacks into faster ones.
    """

    def __init__(
        self,
        guides: Frames,
        styles: Frames,
        reach: int,
        strictness: float = 1,
        size: int = 1,
        fused: Fuse = as_it_is,
    ):
        self.guides, self.styles, self.reach, self.strictness = guides, styles, reach, strictness
        self.linked, self.in_light = fused(_links), fused(_in_lights)
        self.batch = AT_ONCE * size
        self.small = Memo(self._shrunk, len(styles), size)
        self.sums = WindowSums(lambda index: self.small[index][1], self._link, _carry, self.batch)

    def frames(self, block: range) -> Array:
        """Return frames in the light of their windows, float32 [N, H, W, 3]."""
        windows = {index: window(index, len(self.styles), self.reach) for index in block}
        totals = stacked(self.sums.totals(windows))
        small = stacked([self.small[index][1] for index in block])
        self.sums.forget(block[-1], windows[block[-1]])
        self.small.forget(windows[block[-1]].start)
        return self.in_light(stacked([self.styles[index] for index in block]), small, totals)

    def clear(self) -> None:
        self.small.clear()
        self.sums.runs.clear()

    def _shrunk(self, block: range) -> Iterator[tuple[Array, Array]]:
        """Return shrunk guides, and styles, shrunk further, with a weight of 1, float32 [h, w, 4]."""
        guides, styles = (stacked([frames[index] for index in block]) for frames in (self.guides, self.styles))
        guides = each(guides, lambda guide: _smaller(floats(guide), FLOW_SHRINK))
        styles = each(styles, lambda style: _smaller(floats(style), SHRINK))
        xp = array_namespace(styles)
        return zip(guides, xp.concat([styles, xp.ones_like(styles[..., :1])], axis=-1), strict=True)

    def _link(self, pairs: list[tuple[int, int]]) -> Array:
        """Find the motion between pairs of frames and their similarity, at the style's shrunk size, [N, h, w, 3]."""
        filled_pairs = filled(self.small[pairs[0][0]][0], pairs, self.batch)
        (guide, style), (guides, styles) = (
            [stacked(list(images)) for images in zip(*(self.small[index] for index in side), strict=True)]
            for side in zip(*filled_pairs, strict=True)
        )
        return self.linked(guide, guides, style, styles, self.strictness)[: len(pairs)]


def _links(guide: Array, guides: Array, style: Array, styles: Array, strictness: float) -> Array:
    return each(guide, lambda *images: _link(images, strictness), guides, style, styles)


def _link(images: tuple[Array, ...], strictness: float) -> Array:
    """Find the motion between two frames and their similarity, at the style's shrunk size, [h, w, 3].

    Args:
        images: The guide of a frame and of another one, and their styles, shrunk.
        strictness: That of `agreement`.
    """
    guide, other_guide, style, other = images
    moved = flow(guide, other_guide)
    fit = agreement(guide, other_guide, moved, strictness)
    size = style.shape[-3:-1]
    moved = _small_motion(moved, *size)
    alike = _likeness(style[..., :3], warp(other[..., :3], moved))
    return array_namespace(moved).concat([moved, shrink(fit, *size) * alike], axis=-1)


def _in_lights(images: Array, small: Array, totals: Array) -> Array:
    return each(images, _in_light, small, totals)


def _in_light(image: Array, small: Array, total: Array) -> Array:
    """Give an image the light of its window.

    Args:
        small: The shrunk image.
        total: The sum of its window and of the weights.
    """
    own, matched = small[..., :3], total[..., 3:] - 1
    mean = (total[..., :3] - (1 - OWN) * own) / (matched + OWN)
    sure = matched / (matched + ENOUGH) * _likeness(own, mean)
    return _apply(floats(image), *_fit(own, mean, sure))


def fit_light(image: Array, target: Array) -> Array:
    """Give `image` the light and colours of `target` but keep its detail; float32 [H, W, 3]."""
    own = _smaller(image, SHRINK)
    return _apply(image, *_fit(own, _smaller(target, SHRINK), array_namespace(own).ones_like(own[..., :1])))


def _likeness(own: Array, other: Array) -> Array:
    """Return how likely two shrunk images show the same in different light, 0..1 [h, w, 1].

    The majority of pixels determines the difference of light; those that differ by much more show something else.
    """
    off = other - percentile(other - own, 50)
    differences = misfit(own, off, REACH)
    return support(differences, flicker_level(own, flicker_line(own, differences, REACH), REACH), TOLERANCE)


def _fit(own: Array, mean: Array, sure: Array) -> tuple[Array, Array]:
    """Fit a gain and offset from `own` to `mean` for each pixel and channel, by local least squares.

    This is the linear model of the guided filter (He & Sun 2015). `sure` are weights 0..1 [h, w, 1].
    """
    # Detail that the mean has lost must not look like a loss of contrast.
    own, mean = gauss(own, COARSE), gauss(mean, COARSE)
    weight = _pooled(sure + UNSURE)
    own_mean, target_mean, squares, products = (
        _pooled((sure + UNSURE) * values) / weight for values in (own, mean, own * own, own * mean)
    )
    gain = (products - own_mean * target_mean + STIFFNESS) / (squares - own_mean**2 + STIFFNESS)
    return box(gain, AREA), box(target_mean - gain * own_mean, AREA)


def _pooled(values: Array) -> Array:
    """Average over an area and, with lower weights, over its surroundings and the whole frame."""
    whole = array_namespace(values).mean(values, axis=(-3, -2), keepdims=True)
    return box(values, AREA) + AROUND_WEIGHT * gauss(values, AROUND) + AROUND_WEIGHT**2 * whole


def _apply(image: Array, gain: Array, offset: Array) -> Array:
    gain, offset = (enlarge(plane, *image.shape[-3:-1]) for plane in (gain, offset))
    return gain * image + offset


def _smaller(image: Array, times: int) -> Array:
    height, width = image.shape[-3:-1]
    return shrink(image, -(-height // times), -(-width // times))


def _small_motion(moved: Array, height: int, width: int) -> Array:
    """Shrink a motion to smaller images."""
    x, y = width / moved.shape[-2], height / moved.shape[-3]
    small = shrink(moved, height, width)
    return array_namespace(moved).concat([small[..., :1] * x, small[..., 1:] * y], axis=-1)


def _carry(links: list[Array], images: list[Array]) -> Array:
    """Warp shrunk images along their motion and weigh them by their similarity."""
    found = stacked(links)
    # Linear interpolation would blur at every warp.
    carried = each(stacked(images), lambda image, moved: warp(image, moved, cubic=True), found[..., :2])
    return carried * found[..., 2:]
