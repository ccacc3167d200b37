"""Mean over neighbouring frames: the baseline for comparing smoothers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.base.arrays import Images
from stages.base.numbers import Count
from stages.smoothers import SMOOTHERS, Frames, SmootherOptions


@SMOOTHERS.register
class TemporalMean(SmootherOptions):
    """Average each frame with its neighbours, without patch matching: a baseline."""

    name = "TemporalMeanSmoother"
    chunk = 8
    radius: Count = 1
    """Frames to each side."""

    def build(self, guides: Frames, styles: Frames, device: str) -> TemporalMeanSmoother:
        return TemporalMeanSmoother(styles, self.radius)


class TemporalMeanSmoother:
    """Averages frames i-radius..i+radius, indexes clamped, rounded to the nearest (ties to even)."""

    def __init__(self, styles: Frames, radius: int):
        self.styles, self.radius = styles, radius
        self.next: tuple[int, NDArray[np.int64]] | None = (
            None  # the next frame, its window's sum without the last frame
        )

    def smooth(self, start: int, stop: int) -> Images:
        # A running sum of integers is exact, and its cost does not depend on the window.
        total = self.next[1] if self.next and self.next[0] == start else self._window(start)
        smoothed = []
        for index in range(start, stop):
            total = total + self._frame(index + self.radius)
            smoothed.append(np.rint(total / (2 * self.radius + 1)).astype(np.uint8))
            total = total - self._frame(index - self.radius)
        self.next = (stop, total) if stop < len(self.styles) else None
        return np.stack(smoothed)

    def _window(self, index: int) -> NDArray[np.int64]:
        """Sum frames index-radius..index+radius-1. Each frame is read once."""
        last = len(self.styles) - 1
        first, end = index - self.radius, index + self.radius - 1
        frames = (self._frame(other) for other in range(max(first, 0), min(end, last) + 1))
        inside: NDArray[np.int64] = sum(frames, np.zeros((), np.int64))
        return inside + max(-first, 0) * self._frame(0) + max(end - last, 0) * self._frame(last)

    def _frame(self, index: int) -> NDArray[np.int64]:
        return self.styles[min(max(index, 0), len(self.styles) - 1)].astype(np.int64)
