"""Steady light and colour: each frame gets the mean light of its window.

Local gains and offsets fit each frame to the mean of its window. This neither moves edges nor blurs, however wide the
window is. Where the frame and the mean show different things, the correction of the surroundings is used.
"""

from __future__ import annotations

from collections.abc import Iterator

from array_api_compat import array_namespace

from stages.base.arrays import Frames
from stages.smoothers.images.evidence import flicker_level, flicker_line, misfit, support
from stages.smoothers.images.matching import agreement, carry
from stages.smoothers.images.pixels import Array, box, each, enlarge, floats, flow, gauss, percentile, shrink
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
    """Frames in the light of their window of `reach` frames to each side. `strictness` is that of `agreement`."""

    def __init__(self, guides: Frames, styles: Frames, reach: int, strictness: float = 1):
        self.guides, self.styles, self.reach, self.strictness = guides, styles, reach, strictness
        self.small = Memo(self._shrunk)
        self.sums = WindowSums(lambda index: self.small[index][1], self._link, _carry)

    def frame(self, index: int) -> Array:
        """Return frame `index` in the light of its window, float32 [H, W, 3]."""
        frames = window(index, len(self.styles), self.reach)
        total, own = self.sums.total(index, frames), self.small[index][1][..., :3]
        self.sums.forget(index, frames)
        self.small.forget(frames.start)
        matched = total[..., 3:] - 1
        mean = (total[..., :3] - (1 - OWN) * own) / (matched + OWN)
        sure = matched / (matched + ENOUGH) * _likeness(own, mean)
        return _apply(floats(self.styles[index]), *_fit(own, mean, sure))

    def clear(self) -> None:
        self.small.clear()
        self.sums.runs.clear()

    def _shrunk(self, index: int) -> tuple[Array, Array]:
        """Return the shrunk guide, and the style, shrunk further, with a weight of 1, float32 [h, w, 4]."""
        guide, style = _smaller(floats(self.guides[index]), FLOW_SHRINK), _smaller(floats(self.styles[index]), SHRINK)
        xp = array_namespace(style)
        return guide, xp.concat([style, xp.ones_like(style[..., :1])], axis=-1)

    def _link(self, pairs: list[tuple[int, int]]) -> Iterator[tuple[Array, Array]]:
        """Find the motion between pairs of frames and their similarity, at the style's shrunk size."""
        xp = array_namespace(self.small[pairs[0][0]][0])
        sides = [[self.small[index] for index in side] for side in zip(*pairs, strict=True)]
        (guide, style), (guides, styles) = (
            [xp.stack(images) for images in zip(*side, strict=True)] for side in sides
        )  # fmt: skip
        moved = each(guide, flow, guides)
        fits = each(guide, lambda one, other, by: agreement(one, other, by, self.strictness), guides, moved)
        size = style.shape[-3:-1]
        moved = each(moved, lambda by: _small_motion(by, *size))
        alike = each(style, lambda one, other, by: _likeness(one[..., :3], carry(other[..., :3], by)[0]), styles, moved)
        return zip(moved, each(fits, lambda fit: shrink(fit, *size)) * alike, strict=True)


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


def _carry(link: tuple[Array, Array], held: Array) -> Array:
    moved, weight = link
    return carry(held, moved, cubic=True)[0] * weight  # linear interpolation would blur at every warp
