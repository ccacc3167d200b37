"""Frames painted from keyframes, compared with the true frames."""

from __future__ import annotations

from typing import Never

import cv2
import numpy as np
import pytest

from native import binding
from stages.base.errors import DiffSynthError
from stages.smoothers.images import keyframes
from stages.smoothers.images.keyframes import LONGEST, Interpolator, choose
from tests.stages.smoothers.scenes import Scene, scene, squared_error


@pytest.fixture(scope="module")
def clip() -> Scene:
    return scene("light", frames=13)


def test_frames_between_keyframes_follow_the_guide(clip: Scene) -> None:
    keys = [0, 6, 12]
    painter = Interpolator(clip.guides, clip.truth[keys], keys)
    between = (1, 3, 8, 11)
    for index, (frame, unseen) in zip(between, painter.paint(between), strict=True):
        first = max(key for key in keys if key < index)
        faded = clip.truth[first] + (clip.truth[first + 6].astype(float) - clip.truth[first]) * (index - first) / 6
        assert unseen < 0.1
        assert squared_error(frame, clip.truth[index]) < 0.05 * squared_error(faded, clip.truth[index])
    ((frame, unseen),) = painter.paint([6])
    np.testing.assert_array_equal(frame, clip.truth[6])
    assert unseen == 0


def test_light_goes_over_from_one_keyframe_to_the_other(clip: Scene) -> None:
    dark, bright = clip.truth[0] // 2, clip.truth[6]
    painter = Interpolator(clip.guides, [dark, bright], [0, 6])
    means = [frame.mean() for frame, _ in painter.paint(range(7))]
    steps = np.diff(means)
    assert np.all(steps > 0) and steps.max() < 2 * steps.mean()


def test_outside_the_keyframes_the_nearest_is_carried(clip: Scene) -> None:
    painter = Interpolator(clip.guides, clip.truth[[4]], [4])
    for index, (frame, _) in zip((2, 5), painter.paint((2, 5)), strict=True):
        assert squared_error(frame, clip.truth[index]) < 0.2 * squared_error(clip.truth[4], clip.truth[index])


def test_areas_that_no_keyframe_shows_are_measured(clip: Scene) -> None:
    guides = clip.guides.copy()
    guides[6, 20:70, 30:90] = 0
    ((_, unseen),) = Interpolator(guides, clip.truth[[4, 8]], [4, 8]).paint([6])
    assert 0.8 < unseen / (50 * 60 / guides[0, ..., 0].size) < 1.5  # patches reach beyond the hole


def test_a_cut_begins_a_keyframe_and_none_is_too_far_from_the_last(clip: Scene) -> None:
    still = [clip.guides[0]] * (LONGEST + 3)
    assert choose(still) == [0, LONGEST]
    other = np.roll(255 - clip.guides[0][::-1], 40, axis=1)
    assert choose([clip.guides[0]] * 4 + [other] * 3) == [0, 4]


def test_what_moves_too_fast_for_flow_keeps_its_shape() -> None:
    """An arm that swings by 24 px a frame is painted as one, not as a cloud of small blocks."""
    rng = np.random.default_rng(3)
    wall = 170 + 10 * cv2.GaussianBlur(rng.normal(0, 8, (160, 200, 3)), (0, 0), 4)
    grain = rng.normal(0, 3, (5, 160, 200, 3))

    def frame(angle: float) -> np.ndarray:
        image = wall.copy()
        end = (100 + 90 * np.cos(angle), 150 - 90 * np.sin(angle))
        cv2.line(image, (100, 150), tuple(round(place) for place in end), (190, 40, 60), 24, cv2.LINE_AA)
        return image

    clean = np.stack([frame(0.6 + 0.27 * time) for time in range(5)])
    guides = np.clip(clean + grain, 0, 255).astype(np.uint8)
    style = np.clip(clean[..., ::-1] * 0.8, 0, 255).astype(np.uint8)
    painter = Interpolator(guides, style[[0, 4]], [0, 4])
    for index, (painted, _) in enumerate(painter.paint((1, 2, 3)), 1):
        edges, there = (
            cv2.Laplacian(image.mean(axis=2), cv2.CV_64F) for image in (painted, style[index].astype(float))
        )
        invented = np.clip(abs(edges) - cv2.dilate(abs(there), np.ones((9, 9))), 0, None).mean()
        assert invented < 0.02
        assert squared_error(painted, style[index]) < 0.01 * squared_error(style[0], style[index])


def test_library_errors_become_one_message(clip: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*images: object, **options: object) -> Never:
        raise binding.EbsynthError("no memory left")

    monkeypatch.setattr(keyframes, "synthesize", fail)
    with pytest.raises(DiffSynthError, match="no memory left"):
        next(Interpolator(clip.guides[::6], clip.truth[[0, 12]], [0, 2]).paint([1]))
