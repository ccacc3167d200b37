"""Raise the frame rate of a video by frames painted in between."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from stages.base.arrays import Frames, Image

FACTORS = (2, 3, 4)
PAIRS_AHEAD = 8  # at most, which bounds the memory


@dataclass(frozen=True)
class Raised:
    """A video with painted frames between its frames, which stay as they are.

    Between two scenes, and after the last frame, frames are repeated instead, so that the video stays as long.

    Painted frames do not depend on frames other than the two around them, nor on the number of threads.

    Args:
        frames: The frames, uint8 RGB [H, W, 3].
        guides: The same frames of the original video, whose motion helps. None without it.
        factor: Frames for each of `frames`; 1 adds none.
        cuts: The first frame of each scene after the first.
    """

    frames: Frames
    guides: Frames | None
    factor: int
    cuts: Sequence[int] = ()

    def __len__(self) -> int:
        return self.factor * len(self.frames)

    def __iter__(self) -> Iterator[Image]:
        if self.factor == 1:
            yield from self.frames
            return
        for images in _ahead(self._from, range(len(self.frames))):
            yield from images

    @property
    def painted(self) -> int:
        """How many frames are painted, rather than kept or repeated."""
        return (self.factor - 1) * (len(self.frames) - 1 - len(self.cuts))

    def is_painted(self, index: int) -> bool:
        """Whether a frame of the result is painted."""
        last = index // self.factor + 1
        return index % self.factor > 0 and last < len(self.frames) and last not in self.cuts

    def _from(self, index: int) -> list[Image]:
        """Return a frame and those up to the next one."""
        first, last = self.frames[index], index + 1
        steps = [step / self.factor for step in range(1, self.factor)]
        if last == len(self.frames):
            return [first] * self.factor
        second = self.frames[last]
        if last in self.cuts:
            return [first, *(first if time <= 0.5 else second for time in steps)]
        return [first, *self._between(index, (first, second), steps)]

    def _between(self, index: int, frames: Sequence[Image], steps: Sequence[float]) -> Iterator[Image]:
        from stages.smoothers.images.between import motions, paint_between

        guides = None if self.guides is None else [self.guides[index], self.guides[index + 1]]
        moved = motions(frames, guides)
        return (paint_between(frames, moved, time) for time in steps)


def raised_times(times: Sequence[float], factor: int) -> list[float]:
    """Return the times of a video's frames, in seconds, and of those in between. The last gap is the median one."""
    gaps = np.diff(times)
    ends = [*times[1:], times[-1] + (float(np.median(gaps)) if len(gaps) else 0.0)]
    pairs = zip(times, ends, strict=True)
    return [start + (stop - start) * step / factor for start, stop in pairs for step in range(factor)]


def _ahead(function: Callable[[int], list[Image]], indices: range) -> Iterator[list[Image]]:
    """Yield the results of a function in order. Several threads work on the next ones."""
    threads = min(os.cpu_count() or 1, PAIRS_AHEAD)
    running: deque[Future[list[Image]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for index in indices:
            running.append(pool.submit(function, index))
            if len(running) > threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
