"""Frames between rendered ones, painted from the two keyframes around them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np
from array_api_compat import array_namespace

from stages.smoothers import Frames
from stages.smoothers.images.light import fit_light
from stages.smoothers.images.matching import PATCH, agreement, carry, library_errors, positions
from stages.smoothers.images.pixels import Array, fetch, floats, flow, gauss, synthesize
from stages.smoothers.patch_blend import registration

SEAM = 2.0  # px over which one keyframe gives way to the other
SHOWN = 0.3  # agreement below which a place is not in a keyframe
ASTRAY = 1.0  # px by which flow there and back may miss where it came from
BORDER = 3.0  # px over which flow gives way to guided synthesis
GUIDE_WEIGHT, EDGE_WEIGHT = 4.0, 2.0  # of the guide's colours and of its edges in guided synthesis; the style's is 1
EDGE = 4.0  # px; edges are what is finer
EFFORT = {"search_vote_iterations": 3, "patch_match_iterations": 2}  # more takes longer and gives the same
LONGEST = 12  # frames from one keyframe to the next, where they are chosen by what they show
NEW = 0.1  # share of a frame that no keyframe shows, from which on it should be one itself
TOLD = 20  # such frames are named, at most


def choose(guides: Frames, progress: Callable[[int], None] = lambda frames: None) -> list[int]:
    """The frames that show what the ones before did not: cuts, what comes out from behind, and every LONGEST-th."""
    keys = [0]
    for index in range(1, len(guides)):
        progress(1)
        guide, there = guides[index], guides[keys[-1]]
        unseen = _share(agreement(guide, there, flow(guide, there)) < SHOWN)
        if unseen > NEW or index - keys[-1] >= LONGEST:
            keys.append(index)
    return keys


def guessed(unseen: Sequence[float]) -> str:
    """The frames of which a share worth telling is shown by no keyframe, in words; "" if there is none."""
    worst = [f"{index} ({share:.0%})" for index, share in enumerate(unseen) if share > NEW]
    more = ", …" if len(worst) > TOLD else ""
    if not worst:
        return ""
    what = f"{len(worst)} of {len(unseen)} frames show what no keyframe shows, guessed in the share given"
    return f"{what}: {', '.join(worst[:TOLD])}{more}"


class Interpolator:
    """`keyframes[n]` is the stylised frame `keys[n]` of the video; `keys` ascend. A frame is made from a copy of each
    of its keyframes: carried along the guide's motion where optical flow is sure of it, elsewhere painted by guided
    synthesis. The copies are registered to each other, brought to one light and mixed by nearness in time and by how
    well each fits the guide there.
    """

    def __init__(self, guides: Frames, keyframes: Frames, keys: Sequence[int], patch_size: int = PATCH):
        self.guides, self.keyframes, self.keys, self.patch_size = guides, keyframes, keys, patch_size

    def paint(self, index: int) -> tuple[np.ndarray, float]:
        """Frame `index`, uint8 [H, W, 3], and the share of it, 0..1, that neither keyframe shows."""
        after = bisect_right(self.keys, index)
        if after > 0 and self.keys[after - 1] == index:
            return fetch(self.keyframes[after - 1]), 0.0
        around = [place for place in (after - 1, after) if 0 <= place < len(self.keys)]
        copies, fits = zip(*(self._copy(index, place) for place in around), strict=True)
        if len(around) == 1:  # before the first or after the last keyframe
            return fetch(copies[0]), _share(fits[0] < SHOWN)
        first, last = (self.keys[place] for place in around)
        painted = _mix(copies, fits, (index - first) / (last - first))
        return fetch(painted), _share(array_namespace(painted).maximum(*fits) < SHOWN)

    def _copy(self, index: int, place: int) -> tuple[Array, Array]:
        """Frame `index` after a keyframe, float32 [H, W, 3], and how well it fits the guide, [H, W, 1]."""
        guide, there, style = self.guides[index], self.guides[self.keys[place]], self.keyframes[place]
        moved = flow(guide, there)
        fit = agreement(guide, there, moved)
        led = _led(fit, moved, flow(there, guide))
        copy = carry(style, moved, cubic=True)[0]
        if _share(led) == 1:
            return copy, fit
        painted, jumps = _painted(style, there, guide, self.patch_size)
        return _between(led, copy, painted), _between(led, fit, agreement(guide, there, jumps))


def _led(fit: Array, moved: Array, back: Array) -> Array:
    """Where optical flow is believed, 0..1, [H, W, 1]: what it leads to is alike, and leads back. `fit`: how well the
    other frame, carried along `moved`, fits; `back`: the flow from there."""
    xp = array_namespace(fit)
    astray = xp.linalg.vector_norm(moved + carry(back, moved)[0], axis=-1, keepdims=True)
    return xp.clip(2 * gauss(floats((fit > SHOWN) & (astray < ASTRAY)), BORDER) - 1, 0, 1)


def _painted(style: Array, guide: Array, target: Array, patch_size: int) -> tuple[Array, Array]:
    """The style of `guide` on `target` by guided synthesis, float32 [H, W, 3], and from how far each patch comes,
    float32 [H, W, 2], x then y."""
    weights = [GUIDE_WEIGHT / 3] * 3 + [EDGE_WEIGHT]
    guides = _outlined(guide), _outlined(target)
    with library_errors():
        image, field = synthesize(style, *guides, guide_weights=weights, patch_size=patch_size, **EFFORT)
    return floats(image), floats(array_namespace(field).flip(field, axis=-1)) - positions(field)


def _outlined(guide: Array) -> Array:
    """The guide with its edges as a fourth channel, so that outlines count where colours hardly differ."""
    xp, image = array_namespace(guide), floats(guide)
    edges = xp.mean(image - gauss(image, EDGE), axis=-1, keepdims=True)
    return xp.concat([guide, xp.astype(xp.clip(2 * edges + 128, 0, 255), xp.uint8)], axis=-1)


def _share(pixels: Array) -> float:
    return float(array_namespace(pixels).mean(floats(pixels)))


def _mix(copies: Sequence[Array], fits: Sequence[Array], time: float) -> Array:
    """`time`: 0 at the first copy's keyframe, 1 at the other's."""
    # Two stylised frames do not agree to the pixel; mixed as they are, every line would show twice.
    off = registration(*copies) * array_namespace(copies[0]).minimum(*fits)
    registered = [carry(copy, step * off, cubic=True)[0] for copy, step in zip(copies, (-time, 1 - time), strict=True)]
    weights = [near * fit for near, fit in zip((1 - time, time), fits, strict=True)]
    # Light goes over evenly from one to the other. Detail keeps longer to the nearer one: a mean of two is softer.
    lit = [fit_light(copy, _fade(registered, weights)) for copy in registered]
    return _fade(lit, [weight**2 for weight in weights])


def _fade(copies: Sequence[Array], weights: Sequence[Array]) -> Array:
    first, second = (gauss(weight, SEAM) for weight in weights)
    return _between(first / (first + second), *copies)


def _between(share: Array, one: Array, other: Array) -> Array:
    return share * one + (1 - share) * other
