"""Sums over windows of moving frames, with O(log window) warps per frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from stages.smoothers.images.pixels import AT_ONCE, Array, floats

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
        carry: Warps an image by what `link` found.
        pack: Compresses a sum for the cache.
    """

    def __init__(
        self,
        hold: Callable[[int], Array],
        link: Link[Motion],
        carry: Callable[[Motion, Array], Array],
        pack: Callable[[Array], Array] = lambda run: run,
    ):
        self.hold, self.link, self.carry, self.pack = hold, link, carry, pack
        self.runs: dict[Run, Array] = {}

    def total(self, index: int, frames: range) -> Array:
        """Sum `frames`, warped onto frame `index`, which is one of them; float32."""
        parts = [*_parts(index, 1, frames.stop - index), *_parts(index, -1, index - frames.start + 1)]
        missing = dict.fromkeys(run for part in parts for run in self._missing(part))
        for run, found in zip(missing, links(self.link, [run.pair for run in missing]), strict=True):
            near, far = run.halves
            self.runs[run] = self.pack(self._sum(near) + self.carry(found, self._sum(far)))
        here = [part for part in parts if part.place == index]
        total = sum((self._sum(part) for part in here), -self.hold(index))  # which is part of both sides
        there = [part for part in parts if part.place != index]
        for part, found in zip(there, links(self.link, [(index, part.place) for part in there]), strict=True):
            total = total + self.carry(found, self._sum(part))
        return total

    def forget(self, index: int, frames: range) -> None:
        """Drop the sums that no frame after `index`, whose window is `frames`, needs."""
        length = 1 << ((frames.stop - index).bit_length() - 1)
        for run in list(self.runs):
            first = index + 1 + max(0, length - (2 << run.level)) if run.step == 1 else frames.start
            if run.place < first:
                del self.runs[run]

    def _missing(self, run: Run) -> list[Run]:
        """Return the runs to compute for a run, in order."""
        if run.level == 0 or run in self.runs:
            return []
        return [*(needed for half in run.halves for needed in self._missing(half)), run]

    def _sum(self, run: Run) -> Array:
        return self.hold(run.place) if run.level == 0 else floats(self.runs[run])


def links(link: Link[Motion], pairs: list[tuple[int, int]]) -> Iterator[Motion]:
    """Yield what `link` finds for each pair, computed in small batches to bound memory."""
    for first in range(0, len(pairs), AT_ONCE):
        yield from link(pairs[first : first + AT_ONCE])


def _parts(index: int, step: int, frames: int) -> Iterator[Run]:
    """Split `frames` frames from `index` on into runs, longest first."""
    for level in reversed(range(frames.bit_length())):
        if frames >> level & 1:
            yield Run(step, level, index)
            index += step << level


class Memo(dict[int, T]):
    """Results of `make` by frame index, cached until they are forgotten."""

    def __init__(self, make: Callable[[int], T]):
        super().__init__()
        self.make = make

    def __missing__(self, index: int) -> T:
        self[index] = self.make(index)
        return self[index]

    def forget(self, below: int) -> None:
        """Drop the results of frames before `below`."""
        for index in [index for index in self if index < below]:
            del self[index]
