"""Light and colour that are steady over time: each frame in the mean light of its window.

A frame is given, area by area, the gain and offset that fit it to the mean of its window. That moves no edge and blurs
nothing, however wide the window is. Where the frame and that mean do not show the same thing, the fit says nothing, and
the correction is that of the surroundings.
"""

from __future__ import annotations

from collections.abc import Iterator

from array_api_compat import array_namespace

from stages.smoothers import Frames
from stages.smoothers.images.evidence import flicker_level, flicker_line, misfit, support
from stages.smoothers.images.matching import agreement, carry
from stages.smoothers.images.pixels import Array, box, each, enlarge, floats, flow, gauss, percentile, shrink
from stages.smoothers.images.tables import Memo, WindowSums, window

SHRINK = 4  # times smaller is what light is compared on
FLOW_SHRINK = 2  # times smaller is what its motion is found on
AREA = 5  # px a side, of the small picture, that share a gain and an offset
AROUND = 8.0  # px of the small picture, and
AROUND_WEIGHT = 0.2  # the weight of surroundings this wide; the whole frame has its square
COARSE = 1.0  # px of the small picture; finer things are not compared
STIFFNESS = 200.0  # levels²: where colours vary less than this, the gain stays near 1 (He & Sun 2015)
REACH = 1.5  # px of the small picture; likeness is judged over areas this wide
TOLERANCE = 4.0  # times the level of flicker at which a match in light counts half
OWN = 0.3  # weight of the frame in its window's mean; matches weigh up to 1
ENOUGH = 1.0  # weight of matches at which a fit is believed by half
UNSURE = 1e-4  # weight of what matches nothing


class WindowLight:
    """Frames in the light of their window, `reach` frames to each side. `strictness`: as of `agreement`."""

    def __init__(self, guides: Frames, styles: Frames, reach: int, strictness: float = 1):
        self.guides, self.styles, self.reach, self.strictness = guides, styles, reach, strictness
        self.small = Memo(self._shrunk)
        self.sums = WindowSums(lambda index: self.small[index][1], self._link, _carry)

    def frame(self, index: int) -> Array:
        """Frame `index` in the light of its window, float32 [H, W, 3]."""
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
        """The guide, small as motion is found on; the style, smaller, with a weight of 1, float32 [h, w, 4]."""
        guide, style = _smaller(floats(self.guides[index]), FLOW_SHRINK), _smaller(floats(self.styles[index]), SHRINK)
        xp = array_namespace(style)
        return guide, xp.concat([style, xp.ones_like(style[..., :1])], axis=-1)

    def _link(self, pairs: list[tuple[int, int]]) -> Iterator[tuple[Array, Array]]:
        """Motion of pairs of frames and how far they are alike, in the guide and in the style, as small as what is
        carried."""
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


def fit_light(image: Array, wanted: Array) -> Array:
    """`image` in the light and colours of `wanted`, with its own detail; float32 [H, W, 3]."""
    own = _smaller(image, SHRINK)
    return _apply(image, *_fit(own, _smaller(wanted, SHRINK), array_namespace(own).ones_like(own[..., :1])))


def _likeness(own: Array, other: Array) -> Array:
    """How far two small images show the same thing in another light, 0..1 [h, w, 1]. Most of the picture says how
    different the light is; what differs by much more is something else."""
    off = other - percentile(other - own, 50)
    differences = misfit(own, off, REACH)
    return support(differences, flicker_level(own, flicker_line(own, differences, REACH), REACH), TOLERANCE)


def _fit(own: Array, mean: Array, sure: Array) -> tuple[Array, Array]:
    """For each pixel and channel the gain and offset that take `own` to `mean`, by least squares over an area, the
    linear model of the guided filter (He & Sun 2015). `sure`: weights 0..1 [h, w, 1]."""
    # What detail the mean has lost must not look like a loss of contrast.
    own, mean = gauss(own, COARSE), gauss(mean, COARSE)
    weight = _pooled(sure + UNSURE)
    own_mean, wanted, squares, products = (
        _pooled((sure + UNSURE) * values) / weight for values in (own, mean, own * own, own * mean)
    )
    gain = (products - own_mean * wanted + STIFFNESS) / (squares - own_mean**2 + STIFFNESS)
    return box(gain, AREA), box(wanted - gain * own_mean, AREA)


def _pooled(values: Array) -> Array:
    """Means over an area, and for want of anything better over its surroundings and over the whole frame."""
    whole = array_namespace(values).mean(values, axis=(-3, -2), keepdims=True)
    return box(values, AREA) + AROUND_WEIGHT * gauss(values, AROUND) + AROUND_WEIGHT**2 * whole


def _apply(image: Array, gain: Array, offset: Array) -> Array:
    gain, offset = (enlarge(plane, *image.shape[-3:-1]) for plane in (gain, offset))
    return gain * image + offset


def _smaller(image: Array, times: int) -> Array:
    height, width = image.shape[-3:-1]
    return shrink(image, -(-height // times), -(-width // times))


def _small_motion(moved: Array, height: int, width: int) -> Array:
    """A motion, of smaller images."""
    x, y = width / moved.shape[-2], height / moved.shape[-3]
    small = shrink(moved, height, width)
    return array_namespace(moved).concat([small[..., :1] * x, small[..., 1:] * y], axis=-1)


def _carry(link: tuple[Array, Array], held: Array) -> Array:
    moved, weight = link
    return carry(held, moved, cubic=True)[0] * weight  # linear would blur, and once more at every carry
