"""The mean over neighbouring frames: the baseline that all other smoothers are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.base.numbers import Count
from stages.smoothers import SMOOTHERS, Frames, SmootherOptions


@SMOOTHERS.register
class TemporalMean(SmootherOptions):
    """Mean over the frames around each frame. No patch matching: the baseline."""

    name = "TemporalMeanSmoother"
    chunk = 8
    radius: Count = 1
    """Frames to each side."""

    def build(self, guides: Frames, styles: Frames, device: str) -> TemporalMeanSmoother:
        return TemporalMeanSmoother(styles, self.radius)


class TemporalMeanSmoother:
    """Mean over frames i-radius..i+radius, indexes clamped, rounded to the nearest (ties to even)."""

    def __init__(self, styles: Frames, radius: int):
        self.styles, self.radius = styles, radius
        self.next: tuple[int, Any] | None = None  # a frame, and the sum of its window but for the last frame of it

    def smooth(self, start: int, stop: int) -> np.ndarray:
        # A running sum of integers: exact, and as cheap for a wide window as for a narrow one.
        total = self.next[1] if self.next and self.next[0] == start else self._window(start)
        smoothed = []
        for index in range(start, stop):
            total = total + self._frame(index + self.radius)
            smoothed.append(np.rint(total / (2 * self.radius + 1)).astype(np.uint8))
            total = total - self._frame(index - self.radius)
        self.next = (stop, total) if stop < len(self.styles) else None
        return np.stack(smoothed)

    def _window(self, index: int) -> Any:
        """The sum of frames index-radius..index+radius-1, each read once."""
        last = len(self.styles) - 1
        first, end = index - self.radius, index + self.radius - 1
        inside = sum((self._frame(other) for other in range(max(first, 0), min(end, last) + 1)), np.int64(0))
        return inside + max(-first, 0) * self._frame(0) + max(end - last, 0) * self._frame(last)

    def _frame(self, index: int) -> np.ndarray:
        return self.styles[min(max(index, 0), len(self.styles) - 1)].astype(np.int64)
