"""Frames painted between two frames, compared with the true ones."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stages.smoothers.images.between import motions, paint_between
from tests.stages.smoothers.scenes import Scene, scene, squared_error
from tests.typing import Image


@pytest.fixture(scope="module")
def clip() -> Scene:
    return scene("light", frames=5)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("index", [1, 2, 3])
def test_frames_are_painted_along_the_motion(clip: Scene, guided: bool, index: int) -> None:
    frames, guides = [*clip.truth[[0, 4]]], [*clip.guides[[0, 4]]] if guided else None
    painted = paint_between(frames, motions(frames, guides), index / 4)
    faded = frames[0] + (frames[1].astype(float) - frames[0]) * index / 4
    nearest = frames[index // 3]
    for other in (faded, nearest):
        assert squared_error(painted, clip.truth[index]) < 0.1 * squared_error(other, clip.truth[index])


def square(left: int, colour: int = 255) -> Image:
    """A textured background with a bright square."""
    noise = np.random.default_rng(3).integers(0, 90, (96, 160, 3)).astype(np.float32)
    image = cv2.GaussianBlur(noise, (0, 0), 2).astype(np.uint8)
    image[30:60, left : left + 24] = colour
    return image


@pytest.mark.parametrize("time", [0.25, 0.5, 0.75])
def test_an_object_that_appears_is_never_half_transparent(time: float) -> None:
    frames = [square(40, colour=45), square(40)]
    painted = paint_between(frames, motions(frames, None), time)
    inside = painted[34:56, 44:60].astype(int)
    assert np.mean((inside > 100) & (inside < 220)) < 0.1  # a blend would be 97, 150 or 203 throughout


def test_frames_without_anything_in_common_are_repeated() -> None:
    rng = np.random.default_rng(0)
    frames = [np.kron(rng.integers(0, 256, (24, 32, 3)), np.ones((4, 4, 1))).astype(np.uint8) for _ in range(2)]
    moved = motions(frames, None)
    assert moved == []
    for time, shown in ((0.25, 0), (0.5, 0), (0.75, 1)):
        np.testing.assert_array_equal(paint_between(frames, moved, time), frames[shown])


def test_still_frames_stay_as_they_are(clip: Scene) -> None:
    still = [clip.truth[0], clip.truth[0]]
    np.testing.assert_array_equal(paint_between(still, motions(still, None), 0.5), clip.truth[0])


def test_tiny_frames_can_be_painted() -> None:
    frames = [np.full((5, 7, 3), level, np.uint8) for level in (100, 110)]
    painted = paint_between(frames, motions(frames, None), 0.5)
    assert painted.shape == (5, 7, 3) and painted.min() >= 100 and painted.max() <= 110
