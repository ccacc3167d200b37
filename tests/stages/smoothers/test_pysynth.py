"""PySynthSmoother compared with results of the published one, and its blending tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from native import binding
from stages.smoothers import build, pysynth
from stages.smoothers.images.library import library_options
from stages.smoothers.pysynth import BlendingTables, PySynth, PySynthSmoother, Run, runs
from tests.stages.smoothers.scenes import scene, squared_error
from tests.typing import Images, Keys

CASE = Path(__file__).parents[2] / "golden" / "pysynth" / "case.safetensors"
VIDEO = 250  # frames
LARGE = 10_000  # frames to each side: more than any video here has
HAS_LIBRARY = pytest.mark.skipif(not binding.library_path().exists(), reason="no library was built")


@pytest.fixture(scope="module")
def golden() -> dict[str, Images]:
    return load_file(CASE)


def distance(speed: str, window: int, golden: dict[str, np.ndarray], frames: range) -> float:
    """Root mean square of the difference to the mean of what the published smoother gave with two seeds, in levels."""
    config: Keys = {"speed": speed, "window_size": window}
    found = build("PySynthSmoother", config, golden["guide"], golden["style"]).smooth(frames.start, frames.stop)
    published = np.mean([golden[f"{speed}_window{window}_{seed}"].astype(float) for seed in (0, 1)], axis=0)
    return float(np.sqrt(((found - published[frames.start : frames.stop]) ** 2).mean()))


@pytest.mark.parametrize(("speed", "window"), [("slowest", 3), ("fastest", 30)])
@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=HAS_LIBRARY), "numba"])
def test_frames_are_those_of_the_published_smoother(
    golden: dict[str, Images], speed: str, window: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "numba":
        monkeypatch.setenv("EBSYNTH_LIBRARY", "missing")
    assert library_options("cpu")["backend"] == backend
    frames = range(6) if backend == "cpu" else range(2, 4)  # numba takes ten times as long
    assert distance(speed, window, golden, frames) < 0.7


@HAS_LIBRARY
def test_the_whole_video_is_the_default(golden: dict[str, Images]) -> None:
    frames = golden["guide"], golden["style"]
    whole = build("PySynthSmoother", {"window_size": None}, *frames).smooth(2, 3)
    np.testing.assert_array_equal(whole, build("PySynthSmoother", {}, *frames).smooth(2, 3))
    np.testing.assert_array_equal(whole, build("PySynthSmoother", {"window_size": LARGE}, *frames).smooth(2, 3))
    np.testing.assert_array_equal(whole, build("VideoPatchMatchSmoother", {}, *frames).smooth(2, 3))


@HAS_LIBRARY
def test_ebsynth_config_is_honoured(golden: dict[str, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Keys] = []
    real = binding.match

    def match(*images: np.ndarray, **options: Any) -> binding.Fields:
        asked.append(options)
        return real(*images, **options)

    monkeypatch.setattr(binding, "match", match)
    options: Keys = {"patch_size": 7, "num_iter": 2, "guide_weight": 3.0}
    nested: Keys = {"speed": "slowest", "window_size": 1, "ebsynth_config": options}
    found = build("PySynthSmoother", nested, golden["guide"], golden["style"]).smooth(0, 1)
    assert [(call["patch_sizes"], call["guide_weight"]) for call in asked] == [([7, 7], 3.0)]
    older: Keys = {"speed": "slowest", "window_size": 1, **options}
    np.testing.assert_array_equal(found, build("PySynthSmoother", older, golden["guide"], golden["style"]).smooth(0, 1))


@pytest.mark.parametrize("speed", ["slowest", "fastest"])
def test_frames_follow_motion(speed: str) -> None:
    clip = scene("light", frames=6)
    config: Keys = {"speed": speed, "window_size": 2, "ebsynth_config": {"patch_size": 7}}
    error, mean_error = (
        squared_error(build(name, options, clip.guides, clip.styles).smooth(2, 4), clip.truth[2:4])
        for name, options in (("PySynthSmoother", config), ("TemporalMeanSmoother", {"radius": 2}))
    )
    assert error < 0.5 * squared_error(clip.styles[2:4], clip.truth[2:4])
    assert error < 0.3 * mean_error


# -- blending tables ---------------------------------------------------------------------------------------------------


class Counted:
    """Frames are single numbers, means of up to 128 of which are bytes; carrying one costs a count."""

    def __init__(self, count: int, reach: int, ascending: bool = True) -> None:
        self.values = 128 * np.random.default_rng(0).integers(0, 2, count).astype(np.uint8).reshape(count, 1, 1, 1)
        self.carried, self.reach, self.ascending = 0, reach, ascending
        self.tables = BlendingTables(lambda index: self.values[index], count, self.carry, reach, ascending)

    def carry(self, images: Iterable[tuple[np.ndarray, int]], target: int) -> Iterator[np.ndarray]:
        for image, source in images:
            assert source < target
            self.carried += 1
            yield image

    def check(self, index: int) -> None:
        total, frames = self.tables.total(index)
        window = self.values[max(index - self.reach, 0) : index + 1]
        assert total.item() == window.sum(dtype=np.int64) and frames == len(window)

    def work(self, frames: range) -> float:
        """Carries per frame."""
        before = self.carried
        for index in frames:
            self.check(index)
        return (self.carried - before) / len(frames)


@pytest.mark.parametrize("reach", [3, 15, LARGE])
def test_the_carries_of_long_videos_are_known_ahead(reach: int) -> None:
    sides = [Counted(VIDEO, reach, ascending) for ascending in (True, False)]
    carried = sum(side.work(range(VIDEO)[:: 1 if side.ascending else -1]) for side in sides)
    options = PySynth(window_size=reach)
    assert options.pairs(VIDEO) / VIDEO == pytest.approx(carried, rel=0.01)
    slowest = PySynth(window_size=reach, speed="slowest")
    assert slowest.pairs(VIDEO) == sum(min(i, reach) + min(VIDEO - 1 - i, reach) for i in range(VIDEO))


def test_windows_are_made_of_the_longest_runs_that_fit() -> None:
    assert runs(0, 0) == [Run(0, 0)]
    assert runs(0, 6) == [Run(6, 0), Run(5, 1), Run(3, 2)]
    assert runs(0, 7) == [Run(7, 3)]
    assert runs(3, 10) == [Run(10, 0), Run(9, 1), Run(7, 2), Run(3, 0)]
    for first in range(20):
        for last in range(first, 40):
            result = runs(first, last)
            assert result[0].end == last and result[-1].start == first
            assert all(run.start == after.end + 1 for run, after in pairwise(result))
            assert all((run.end + 1) % (1 << run.level) == 0 for run in result)


@pytest.mark.parametrize("reach", [0, 1, 2, 5, 7, 15, 30, LARGE])
def test_a_run_is_needed_by_the_windows_that_it_is_part_of(reach: int) -> None:
    users: dict[Run, list[int]] = {}
    for index in range(100):
        for run in runs(max(index - reach, 0), index):
            users.setdefault(run, []).append(index)
    for run, frames in users.items():
        needed = run.needed(reach)
        is_first_half = run.start >> run.level & 1 == 0
        assert frames[0] == max(needed.start, 0)
        assert frames[-1] in (needed.stop - 1, needed.stop - 1 - is_first_half, 99)


@pytest.mark.parametrize("reach", [0, 1, 2, 5, 7, 15, 30, LARGE])
@pytest.mark.parametrize("ascending", [True, False])
def test_sums_are_those_of_the_window(reach: int, ascending: bool) -> None:
    Counted(50, reach, ascending).work(range(50) if ascending else range(49, -1, -1))


@pytest.mark.parametrize("ascending", [True, False])
def test_results_do_not_depend_on_earlier_requests(ascending: bool) -> None:
    tables = Counted(60, 9, ascending)
    for index in np.random.default_rng(1).permutation(60):
        tables.check(int(index))


@pytest.mark.parametrize(("reach", "most"), [(15, 6), (30, 8), (LARGE, 7)])
@pytest.mark.parametrize("ascending", [True, False])
def test_work_per_frame_grows_with_the_logarithm_of_the_window(reach: int, most: int, ascending: bool) -> None:
    video = Counted(VIDEO, reach, ascending)
    video.check(0 if ascending else VIDEO - 1)
    assert video.work(range(1, VIDEO) if ascending else range(VIDEO - 2, -1, -1)) <= most


def test_a_whole_video_to_the_left_needs_one_run_for_each_power_of_two() -> None:
    video = Counted(VIDEO, LARGE)
    for index in range(VIDEO):
        video.check(index)
        assert len(video.tables.cache) <= 8


@pytest.mark.parametrize("reach", [30, LARGE])
@pytest.mark.parametrize("ascending", [True, False])
def test_what_is_kept_is_bounded_and_only_saves_time(
    reach: int, ascending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pysynth, "CACHE_BYTES", 0)
    monkeypatch.setattr(pysynth, "MIN_CACHED", 12)
    video = Counted(VIDEO, reach, ascending)
    for index in range(VIDEO) if ascending else range(VIDEO - 1, -1, -1):
        video.check(index)
        assert len(video.tables.cache) <= 12
    assert video.carried / VIDEO <= 12


def test_nothing_is_kept_after_the_last_frame() -> None:
    clip = scene("light", frames=6)
    smoother = build("PySynthSmoother", {"ebsynth_config": {"patch_size": 3, "num_iter": 1}}, clip.guides, clip.styles)
    assert isinstance(smoother, PySynthSmoother)
    smoother.smooth(0, 4)
    assert smoother.left.cache and smoother.right.cache
    smoother.smooth(4, 6)
    assert not smoother.left.cache and not smoother.right.cache


def test_sums_of_long_videos_do_not_overflow() -> None:
    frame = np.full((4, 4, 3), 250, np.uint8)
    tables = BlendingTables(
        lambda index: frame, 1200, lambda images, target: [frame for _ in images], LARGE, ascending=True
    )
    total, count = tables.total(1100)
    assert count == 1101 and (total == 1101 * 250).all()
