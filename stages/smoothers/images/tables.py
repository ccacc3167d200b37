"""Sums over windows of moving frames, with O(log window) warps per frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from stages.smoothers.images.pixels import AT_ONCE, Array, stacked

WHOLE_VIDEO_REACH = 63  # frames to each side that stand for the whole video, so that time and memory stay bounded

T = TypeVar("T")
Motion = TypeVar("Motion")
Link = Callable[[list[tuple[int, int]]], Iterable[Motion]]
"""Finds for each pair (i, j) of frames how frame j is warped onto frame i."""


def window(index: int, count: int, reach: int) -> range:
    """Return the window of `reach` frames to each side of `index`.

    At the ends of the video it is shifted inwards instead of cut off, so that all frames have equally many neighbours.
    """
    size = min(2 * reach + 1, count)
    low = min(max(index - reach, 0), count - size)
    return range(low, low + size)


class Run(NamedTuple):
    """A run of 2^level frames that starts at `place` and goes forwards (step 1) or backwards (-1)."""

    step: int
    level: int
    place: int

    @property
    def halves(self) -> tuple[Run, Run]:
        behind = self.place + (self.step << self.level - 1)
        return Run(self.step, self.level - 1, self.place), Run(self.step, self.level - 1, behind)

    @property
    def pair(self) -> tuple[int, int]:
        near, far = self.halves
        return near.place, far.place


class WindowSums(Generic[Motion]):
    """Sums of the frames in a window, each warped onto one frame.

    The sum of a run of 2^k frames, seen from the frame at one end, is that of the nearer half plus the warped sum of
    the other half: the blending tables of FastBlend (arXiv 2311.09265, section 3.2), computed when needed. Sums depend
    on the video only. Cached sums only save time, and none is older than the window, so memory is bounded.

    Args:
        hold: Returns the image of a frame, float32 [H, W, C].
        link: Finds how frames are warped onto others.
        carry: Warps images by what `link` found for each, and returns them as a stack.
        batch: How many pairs are linked together, which bounds the memory.
    """

    def __init__(
        self,
        hold: Callable[[int], Array],
        link: Link[Motion],
        carry: Callable[[list[Motion], list[Array]], Array],
        batch: int = AT_ONCE,
    ):
        self.hold, self.link, self.carry, self.batch = hold, link, carry, batch
        self.runs: dict[Run, Array] = {}

    def totals(self, windows: dict[int, range]) -> list[Array]:
        """Sum the frames of each window, warped onto the frame, one of them, that it belongs to; float32."""
        parts = [
            (index, part)
            for index, frames in windows.items()
            for part in (*_parts(index, 1, frames.stop - index), *_parts(index, -1, index - frames.start + 1))
        ]
        missing = dict.fromkeys(run for _, part in parts for run in self._missing(part))
        self._add(sorted(missing, key=lambda run: run.level))
        totals = {index: -self.hold(index) for index in windows}  # which is part of both sides
        for index, part in parts:
            if part.place == index:
                totals[index] = totals[index] + self._sum(part)
        there = [(index, part) for index, part in parts if part.place != index]
        for batch, found in self._linked(there, lambda needed: (needed[0], needed[1].place)):
            carried = self.carry(found, [self._sum(part) for _, part in batch])
            for (index, _), image in zip(batch, carried, strict=True):
                totals[index] = totals[index] + image
        return list(totals.values())

    def forget(self, index: int, frames: range) -> None:
        """Drop the sums that no frame after `index`, whose window is `frames`, needs."""
        length = 1 << ((frames.stop - index).bit_length() - 1)
        for run in list(self.runs):
            first = index + 1 + max(0, length - (2 << run.level)) if run.step == 1 else frames.start
            if run.place < first:
                del self.runs[run]

    def _add(self, missing: list[Run]) -> None:
        """Compute runs, which are sorted by level, together as far as they do not need each other."""
        for batch, found in self._linked(missing, lambda run: run.pair):
            for _, level in groupby(zip(batch, found, strict=True), key=lambda linked: linked[0].level):
                runs, motions = (list(column) for column in zip(*level, strict=True))
                near, far = ([self._sum(half) for half in halves] for halves in zip(*(run.halves for run in runs)))
                self.runs.update(zip(runs, stacked(near) + self.carry(motions, far), strict=True))

    def _linked(self, needed: list[T], pair: Callable[[T], tuple[int, int]]) -> Iterator[tuple[list[T], list[Motion]]]:
        """Yield batches of `needed` and what `link` finds for the pair of frames of each."""
        for first in range(0, len(needed), self.batch):
            batch = needed[first : first + self.batch]
            yield batch, list(self.link([pair(item) for item in batch]))

    def _missing(self, run: Run) -> list[Run]:
        """Return the runs to compute for a run."""
        if run.level == 0 or run in self.runs:
            return []
        return [*(needed for half in run.halves for needed in self._missing(half)), run]

    def _sum(self, run: Run) -> Array:
        return self.hold(run.place) if run.level == 0 else self.runs[run]


def window_pairs(count: int, reach: int) -> int:
    """Return how many pairs are linked for the windows of `reach` frames to each side of all of `count` frames."""
    pairs = 0

    def link(linked: list[tuple[int, int]]) -> list[None]:
        nonlocal pairs
        pairs += len(linked)
        return [None] * len(linked)

    blank = np.zeros((1, 1, 1), np.float32)
    sums: WindowSums[None] = WindowSums(lambda index: blank, link, lambda found, images: stacked(images))
    for index in range(count):
        frames = window(index, count, reach)
        sums.totals({index: frames})
        sums.forget(index, frames)
    return pairs


def per_frame_beyond(pairs: Callable[[int], int], count: int, reach: int) -> float:
    """Return about `pairs(count)`, which is linear once `count` is several times the window of `reach` frames."""
    short, long = (times * (2 << reach.bit_length()) for times in (1, 2))
    if count <= long:
        return float(pairs(count))
    return pairs(long) + (count - long) * (pairs(long) - pairs(short)) / (long - short)


def _parts(index: int, step: int, frames: int) -> Iterator[Run]:
    """Split `frames` frames from `index` on into runs, longest first."""
    for level in reversed(range(frames.bit_length())):
        if frames >> level & 1:
            yield Run(step, level, index)
            index += step << level


class Memo(dict[int, T]):
    """Results of `make` by frame index, cached until they are forgotten.

    `make` gets blocks of `size` frames, which do not depend on what is cached, and returns a result for each frame.
    """

    def __init__(self, make: Callable[[range], Iterable[T]], count: int, size: int):
        super().__init__()
        self.make, self.count, self.size = make, count, size

    def __missing__(self, index: int) -> T:
        first = index - index % self.size
        block = range(first, min(first + self.size, self.count))
        self.update(zip(block, self.make(block), strict=True))
        return self[index]

    def forget(self, below: int) -> None:
        """Drop the results of frames before `below`."""
        for index in [index for index in self if index < below]:
            del self[index]
