"""Remap and blend (FastBlend, arXiv 2311.09265): every frame is the mean of its window, carried onto it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from array_api_compat import array_namespace

from stages.smoothing import Frames
from stages.smoothing.matching import PATCH, agreement, carry, motion
from stages.smoothing.pixels import Array, each, fetch, floats, halves
from stages.smoothing.tables import WHOLE, WindowSums, links, window


class PySynthSmoother:
    """`window`: frames to each side, None = the whole video (up to WHOLE to each side). `exhaustive`: every frame of
    the window is carried at once, instead of by O(log window) steps through blending tables. What does not fit the
    guide where it is carried to hardly counts. Rounded to the nearest.
    """

    def __init__(
        self,
        guides: Frames,
        styles: Frames,
        window: int | None = None,
        exhaustive: bool = False,
        patch_size: int = PATCH,
    ):
        self.guides, self.styles, self.patch_size = guides, styles, patch_size
        self.reach, self.exhaustive = WHOLE if window is None else window, exhaustive
        # Half precision: a mean of bytes needs no more than the 11 bits it has, and tables are what takes memory.
        # It ends at 65504: colours are held as 0..1.
        self.sums = WindowSums(self._hold, self._link, _carry, halves)

    def smooth(self, start: int, stop: int) -> np.ndarray:
        smoothed = []
        for index in range(start, stop):
            frames = window(index, len(self.styles), self.reach)
            total = self._every_pair(index, frames) if self.exhaustive else self.sums.total(index, frames)
            smoothed.append(fetch(255 * total[..., :3] / total[..., 3:]))
            self.sums.forget(index, frames)
        if stop == len(self.styles):
            self.sums.runs.clear()
        return np.stack(smoothed)

    def _every_pair(self, index: int, frames: range) -> Array:
        others, total = [other for other in frames if other != index], self._hold(index)
        for other, found in zip(others, links(self._link, [(index, other) for other in others]), strict=True):
            total = total + _carry(found, self._hold(other))
        return total

    def _hold(self, index: int) -> Array:
        """The frame, 0..1, and a weight of 1."""
        style = floats(self.styles[index]) / 255
        xp = array_namespace(style)
        return xp.concat([style, xp.ones_like(style[..., :1])], axis=-1)

    def _link(self, pairs: list[tuple[int, int]]) -> Iterator[tuple[Array, Array]]:
        """Motion and agreement of pairs of frames."""
        xp = array_namespace(self.guides[pairs[0][0]])
        here, there = (xp.stack([self.guides[index] for index in side]) for side in zip(*pairs, strict=True))
        moved = each(here, lambda one, other: motion(one, other, self.patch_size, threads=1), there)
        return zip(moved, each(here, agreement, there, moved), strict=True)


def _carry(link: tuple[Array, Array], held: Array) -> Array:
    moved, weight = link
    return carry(held, moved)[0] * weight
