"""Frames between rendered ones, painted from the two keyframes around them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np
from array_api_compat import array_namespace

from stages.smoothing import Frames
from stages.smoothing.light import fit_light
from stages.smoothing.matching import PATCH, agreement, carry, motion
from stages.smoothing.patch_blend import registration
from stages.smoothing.pixels import Array, fetch, floats, flow, gauss

SEAM = 2.0  # px over which one keyframe gives way to the other
SHOWN = 0.3  # agreement below which a place is not in a keyframe
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
    """`keyframes[n]` is the stylised frame `keys[n]` of the video; `keys` ascend. A frame is both of its keyframes
    carried onto it, registered to each other, brought to one light and mixed by nearness in time and by how well each
    fits the guide there.
    """

    def __init__(self, guides: Frames, keyframes: Frames, keys: Sequence[int], patch_size: int = PATCH):
        self.guides, self.keyframes, self.keys, self.patch_size = guides, keyframes, keys, patch_size

    def paint(self, index: int) -> tuple[np.ndarray, float]:
        """Frame `index`, uint8 [H, W, 3], and the share of it, 0..1, that neither keyframe shows."""
        after = bisect_right(self.keys, index)
        if after > 0 and self.keys[after - 1] == index:
            return fetch(self.keyframes[after - 1]), 0.0
        around = [place for place in (after - 1, after) if 0 <= place < len(self.keys)]
        sides = [self._carried(index, place) for place in around]
        if len(sides) == 1:  # before the first or after the last keyframe
            (style, moved, weight), time = sides[0], 0.0
            painted = carry(style, moved, cubic=True)[0]
        else:
            first, last = (self.keys[place] for place in around)
            time = (index - first) / (last - first)
            xp = array_namespace(sides[0][2])
            painted, weight = _mix(sides, time), xp.maximum(sides[0][2], sides[1][2])
        return fetch(painted), _share(weight < SHOWN)

    def _carried(self, index: int, place: int) -> tuple[Array, Array, Array]:
        """A keyframe, where each pixel of frame `index` is found in it, and how well that fits the guide."""
        guide, there = self.guides[index], self.guides[self.keys[place]]
        moved = motion(guide, there, self.patch_size)
        return floats(self.keyframes[place]), moved, agreement(guide, there, moved)


def _share(pixels: Array) -> float:
    return float(array_namespace(pixels).mean(floats(pixels)))


def _mix(sides: list[tuple[Array, Array, Array]], time: float) -> Array:
    """`time`: 0 at the first side's keyframe, 1 at the other's."""
    copies = [carry(style, moved, cubic=True)[0] for style, moved, _ in sides]
    # Two stylised frames do not agree to the pixel; mixed as they are, every line would show twice.
    off = registration(*copies) * array_namespace(copies[0]).minimum(sides[0][2], sides[1][2])
    steps = (-time * off, (1 - time) * off)
    copies = [carry(style, moved + step, cubic=True)[0] for (style, moved, _), step in zip(sides, steps, strict=True)]
    weights = [near * weight for near, (_, _, weight) in zip((1 - time, time), sides, strict=True)]
    # Light goes over evenly from one to the other. Detail keeps longer to the nearer one: a mean of two is softer.
    lit = [fit_light(copy, _fade(copies, weights)) for copy in copies]
    return _fade(lit, [weight**2 for weight in weights])


def _fade(copies: list[Array], weights: list[Array]) -> Array:
    first, second = (gauss(weight, SEAM) for weight in weights)
    share = first / (first + second)
    return share * copies[0] + (1 - share) * copies[1]
