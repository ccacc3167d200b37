"""Videos with painted frames in between."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stages.frame_rate import Raised, raised_times
from tests.stages.smoothers.scenes import Scene, scene


@pytest.fixture(scope="module")
def clip() -> Scene:
    return scene("light", frames=6)


def test_frames_are_kept_and_others_painted_in_between(clip: Scene) -> None:
    video = Raised(clip.truth, clip.guides, 3)
    frames = np.stack(list(video))
    assert len(frames) == len(video) == 18
    np.testing.assert_array_equal(frames[::3], clip.truth)
    np.testing.assert_array_equal(frames[-3:], clip.truth[[-1, -1, -1]])  # nothing follows
    painted = [index for index in range(18) if video.is_painted(index)]
    assert painted == [index for index in range(15) if index % 3] and len(painted) == video.painted
    assert all((frames[index] != frames[index - 1]).any() for index in painted)


def test_between_scenes_the_nearest_frame_is_repeated(clip: Scene) -> None:
    video = Raised(clip.truth, None, 4, cuts=(3,))
    frames = np.stack(list(video))
    np.testing.assert_array_equal(frames[8:13], clip.truth[[2, 2, 2, 3, 3]])
    assert video.painted == 12 == sum(map(video.is_painted, range(24)))
    assert not any(map(video.is_painted, range(9, 12)))


def test_a_painted_frame_depends_on_the_two_around_it_only(clip: Scene) -> None:
    whole = list(Raised(clip.truth, clip.guides, 2))
    part = list(Raised(clip.truth[2:4], clip.guides[2:4], 2))
    np.testing.assert_array_equal(part[1], whole[5])
    np.testing.assert_array_equal(part[1], list(Raised(clip.truth[2:5], clip.guides[2:5], 4))[2])


def test_frames_are_the_same_on_any_number_of_threads(clip: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    several = np.stack(list(Raised(clip.truth, clip.guides, 2)))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        np.testing.assert_array_equal(np.stack(list(Raised(clip.truth, clip.guides, 2))), several)
    finally:
        cv2.setNumThreads(threads)


def test_few_frames_are_in_memory() -> None:
    read: list[int] = []

    class Video(list[np.ndarray]):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            read.append(index)
            return super().__getitem__(index)

    frames = iter(Raised(Video(np.full((64, 8, 8, 3), 7, np.uint8)), None, 2))
    next(frames)
    assert max(read) <= 10


def test_a_single_frame_is_repeated(clip: Scene) -> None:
    assert len(list(Raised(clip.truth[:1], None, 4))) == 4


def test_times_divide_each_gap() -> None:
    assert raised_times([0.0, 1.0, 4.0, 5.0], 2) == [0.0, 0.5, 1.0, 2.5, 4.0, 4.5, 5.0, 5.5]
    assert raised_times([2.0], 2) == [2.0, 2.0]
