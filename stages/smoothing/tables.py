"""Sums over windows of frames that move, with O(log window) frames carried for each."""

from __future__ import annotations

from collections.abc import Callable

from stages.smoothing.pixels import Array, floats

WHOLE = 63  # frames to each side that stand for "the whole video": time and memory must not grow with it


def window(index: int, count: int, reach: int) -> range:
    """`reach` frames to each side of `index`. At the ends of the video it is moved inwards rather than cut, so that the
    first and last frames have as many neighbours as all others."""
    size = min(2 * reach + 1, count)
    low = min(max(index - reach, 0), count - size)
    return range(low, low + size)


class WindowSums:
    """For a frame, the sum of what all frames of a window hold, each carried onto it.

    A run of 2^k frames, seen from the frame at its one end, is a run of 2^(k-1) and the one behind it, carried here:
    the blending tables of FastBlend (arXiv 2311.09265, section 3.2), by need instead of all at once. Every run is
    a function of the video alone. Kept runs only save time: none is older than the window, so memory is bounded.

    `hold(i)` gives what frame i holds, float32 [H, W, C]; `carry(i, j, held)` what frame j holds, as seen from frame i.
    `pack` makes a run smaller, to be kept.
    """

    def __init__(
        self,
        hold: Callable[[int], Array],
        carry: Callable[[int, int, Array], Array],
        pack: Callable[[Array], Array] = lambda run: run,
    ):
        self.hold, self.carry, self.pack = hold, carry, pack
        self.runs: dict[tuple[int, int, int], Array] = {}

    def total(self, index: int, frames: range) -> Array:
        """The sum over `frames`, seen from `index`, which is one of them; float32."""
        later = self._side(index, 1, frames.stop - index)
        earlier = self._side(index, -1, index - frames.start + 1)
        return later + earlier - self.hold(index)

    def forget(self, index: int, frames: range) -> None:
        """Drops what frames after `index`, whose window was `frames`, have no use for."""
        length = 1 << ((frames.stop - index).bit_length() - 1)
        for step, level, place in list(self.runs):
            first = index + 1 + max(0, length - (2 << level)) if step == 1 else frames.start
            if place < first:
                del self.runs[step, level, place]

    def _side(self, index: int, step: int, frames: int) -> Array:
        total, place = 0, index
        for level in reversed(range(frames.bit_length())):
            if frames >> level & 1:
                run = self._run(place, step, level)
                total = total + (run if place == index else self.carry(index, place, run))
                place += step << level
        return total

    def _run(self, place: int, step: int, level: int) -> Array:
        """The sum over the 2^level frames from `place` on, forwards or backwards, seen from `place`."""
        if level == 0:
            return self.hold(place)
        key = (step, level, place)
        if key not in self.runs:
            behind = place + (step << level - 1)
            far = self.carry(place, behind, self._run(behind, step, level - 1))
            self.runs[key] = self.pack(self._run(place, step, level - 1) + far)
        return floats(self.runs[key])
