"""Sums over windows of frames that move, with O(log window) frames carried for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from stages.smoothers.images.pixels import AT_ONCE, Array, floats

WHOLE = 63  # frames to each side that stand for "the whole video": time and memory must not grow with it

Link = Callable[[list[tuple[int, int]]], Iterable[Any]]
"""For each pair (i, j) of frames, how frame j is carried onto frame i."""


def window(index: int, count: int, reach: int) -> range:
    """`reach` frames to each side of `index`. At the ends of the video it is moved inwards rather than cut, so that the
    first and last frames have as many neighbours as all others."""
    size = min(2 * reach + 1, count)
    low = min(max(index - reach, 0), count - size)
    return range(low, low + size)


class Run(NamedTuple):
    """2^level frames from `place` on, forwards (step 1) or backwards (-1)."""

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


class WindowSums:
    """For a frame, the sum of what all frames of a window hold, each carried onto it.

    A run of 2^k frames, seen from the frame at its one end, is a run of 2^(k-1) and the one behind it, carried here:
    the blending tables of FastBlend (arXiv 2311.09265, section 3.2), by need instead of all at once. Every run is
    a function of the video alone. Kept runs only save time: none is older than the window, so memory is bounded.

    `hold(i)` gives what frame i holds, float32 [H, W, C]; `link` finds how frames are carried onto others, and
    `carry(found, held)` does it. `pack` makes a run smaller, to be kept.
    """

    def __init__(
        self,
        hold: Callable[[int], Array],
        link: Link,
        carry: Callable[[Any, Array], Array],
        pack: Callable[[Array], Array] = lambda run: run,
    ):
        self.hold, self.link, self.carry, self.pack = hold, link, carry, pack
        self.runs: dict[Run, Array] = {}

    def total(self, index: int, frames: range) -> Array:
        """The sum over `frames`, seen from `index`, which is one of them; float32."""
        parts = [*_parts(index, 1, frames.stop - index), *_parts(index, -1, index - frames.start + 1)]
        missing = dict.fromkeys(run for part in parts for run in self._missing(part))
        for run, found in zip(missing, links(self.link, [run.pair for run in missing]), strict=True):
            near, far = run.halves
            self.runs[run] = self.pack(self._sum(near) + self.carry(found, self._sum(far)))
        here = [part for part in parts if part.place == index]
        total = sum((self._sum(part) for part in here), -self.hold(index))  # which is in both sides
        there = [part for part in parts if part.place != index]
        for part, found in zip(there, links(self.link, [(index, part.place) for part in there]), strict=True):
            total = total + self.carry(found, self._sum(part))
        return total

    def forget(self, index: int, frames: range) -> None:
        """Drops what frames after `index`, whose window was `frames`, have no use for."""
        length = 1 << ((frames.stop - index).bit_length() - 1)
        for run in list(self.runs):
            first = index + 1 + max(0, length - (2 << run.level)) if run.step == 1 else frames.start
            if run.place < first:
                del self.runs[run]

    def _missing(self, run: Run) -> list[Run]:
        """What must be made for a run, in order."""
        if run.level == 0 or run in self.runs:
            return []
        return [*(needed for half in run.halves for needed in self._missing(half)), run]

    def _sum(self, run: Run) -> Array:
        return self.hold(run.place) if run.level == 0 else floats(self.runs[run])


def links(link: Link, pairs: list[tuple[int, int]]) -> Iterator[Any]:
    """What `link` finds for each of `pairs`, a few at a time: never more is held than these."""
    for first in range(0, len(pairs), AT_ONCE):
        yield from link(pairs[first : first + AT_ONCE])


def _parts(index: int, step: int, frames: int) -> Iterator[Run]:
    """The runs that `frames` frames from `index` on are made of, longest first."""
    for level in reversed(range(frames.bit_length())):
        if frames >> level & 1:
            yield Run(step, level, index)
            index += step << level


class Memo(dict[int, Any]):
    """What `make` gives for a frame's number, kept until it is forgotten."""

    def __init__(self, make: Callable[[int], Any]):
        super().__init__()
        self.make = make

    def __missing__(self, index: int) -> Any:
        self[index] = self.make(index)
        return self[index]

    def forget(self, below: int) -> None:
        for index in [index for index in self if index < below]:
            del self[index]
