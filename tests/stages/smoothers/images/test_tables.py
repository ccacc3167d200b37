"""Windows, and sums over windows by doubling."""

from __future__ import annotations

import numpy as np
import pytest

from stages.smoothers.images.pixels import AT_ONCE, Array
from stages.smoothers.images.tables import Memo, WindowSums, window


def test_windows_are_moved_inwards_at_the_ends() -> None:
    assert window(5, 20, 3) == range(2, 9)
    assert window(0, 20, 3) == range(7)
    assert window(19, 20, 3) == range(13, 20)
    assert window(2, 4, 30) == range(4)
    assert window(3, 9, 0) == range(3, 4)


class Counted:
    """Frames are numbers; carrying one costs a count."""

    def __init__(self, count: int) -> None:
        self.values = np.random.default_rng(0).integers(0, 100, count).astype(np.float32)
        self.carried = 0
        self.sums = WindowSums(lambda index: self.values[index].reshape(1, 1, 1), self.link, self.carry)

    def link(self, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        assert 0 < len(pairs) <= AT_ONCE
        assert all(index != other for index, other in pairs)
        return pairs

    def carry(self, links: list[tuple[int, int]], held: list[np.ndarray]) -> np.ndarray:
        self.carried += len(links)
        return np.stack(held)

    def total(self, index: int, frames: range) -> Array:
        return self.sums.totals({index: frames})[0]


@pytest.mark.parametrize("reach", [0, 1, 2, 5, 7, 15, 30, 200])
def test_sums_are_those_of_the_window(reach: int) -> None:
    video = Counted(50)
    for index in range(50):
        frames = window(index, 50, reach)
        assert video.total(index, frames).item() == video.values[frames.start : frames.stop].sum()
        video.sums.forget(index, frames)


@pytest.mark.parametrize("reach", [15, 30])
def test_work_a_frame_grows_with_the_windows_logarithm_and_what_is_kept_with_the_window(reach: int) -> None:
    video, kept = Counted(400), 0
    for index in range(100, 300):
        frames = window(index, 400, reach)
        if index == 150:
            video.carried = 0
        video.total(index, frames)
        video.sums.forget(index, frames)
        kept = max(kept, len(video.sums.runs))
    levels = reach.bit_length()
    assert video.carried / 150 <= 4 * levels
    assert kept <= 2 * (levels + 1) * (reach + 1)


def test_results_do_not_depend_on_earlier_requests() -> None:
    one, other = Counted(60), Counted(60)
    for index in range(20, 40):
        one.total(index, window(index, 60, 9))
        one.sums.forget(index, window(index, 60, 9))
    frames = window(30, 60, 9)
    assert one.total(30, frames) == other.total(30, frames)


def test_results_come_in_blocks_that_do_not_depend_on_what_is_cached() -> None:
    made: list[range] = []

    def make(block: range) -> range:
        made.append(block)
        return block

    results = Memo(make, count=10, size=4)
    assert [results[index] for index in (5, 9, 4)] == [5, 9, 4]
    results.forget(6)
    assert results[6] == 6 and results[4] == 4
    assert made == [range(4, 8), range(8, 10), range(4, 8)]


@pytest.mark.parametrize("size", [3, 8])
def test_blocks_have_the_sums_of_single_frames(size: int) -> None:
    one, other = Counted(40), Counted(40)
    for first in range(0, 40, size):
        windows = {index: window(index, 40, 6) for index in range(first, min(first + size, 40))}
        assert one.sums.totals(windows) == [other.total(index, frames) for index, frames in windows.items()]
