"""Skeletons: the detector's result as points, drawing them, and smoothing faces over time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.signal import savgol_filter

from stages.annotators.pose import (
    BODY,
    FACE,
    LEFT,
    PEOPLE,
    POINTS,
    Openpose,
    OpenposeOptions,
    VideoOpenpose,
    draw,
    smooth_face,
)
from stages.models.weights import Weights
from tests.typing import Image

RNG = np.random.default_rng(0)


def crowd(faces: np.ndarray) -> np.ndarray:
    """Poses [K, PEOPLE, POINTS, 2] of people with these faces [K, F, 70, 2]."""
    poses = np.full((len(faces), PEOPLE, POINTS, 2), np.nan, np.float32)
    poses[:, : faces.shape[1], FACE] = faces
    return poses


def trembling(frames: int, people: int = 1) -> np.ndarray:
    """Faces [frames, people, 70, 2] that drift and tremble, people well apart."""
    path = np.linspace(0, 0.05, frames)[:, None, None, None] + RNG.normal(0, 0.01, (frames, people, 70, 2))
    return 0.2 + 0.3 * np.arange(people)[None, :, None, None] + RNG.uniform(0, 0.1, (1, people, 70, 2)) + path


def smoothed(poses: np.ndarray) -> np.ndarray:
    """All frames, each from no more than the frames that count."""
    near = [(max(0, k - 6), poses[max(0, k - 6) : k + 7]) for k in range(len(poses))]
    return np.stack([smooth_face(window, k - first) for k, (first, window) in enumerate(near)])


@pytest.mark.parametrize("frames", [7, 8, 13, 30])
def test_faces_of_a_run_are_filtered_over_time(frames: int) -> None:
    faces = trembling(frames, people=2)
    expected = savgol_filter(faces, 7, 2, axis=0, mode="interp")
    np.testing.assert_allclose(smoothed(crowd(faces))[:, :2, FACE], expected, atol=1e-6)
    assert np.diff(expected, 2, axis=0).std() < 0.6 * np.diff(faces, 2, axis=0).std()


def test_a_run_ends_where_the_number_of_faces_changes() -> None:
    poses = crowd(trembling(20, people=2))
    poses[8:, 1] = np.nan  # the second person leaves
    result = smoothed(poses)
    first, second = poses[:8, :2, FACE], poses[8:, :1, FACE]
    np.testing.assert_allclose(result[:8, :2, FACE], savgol_filter(first, 7, 2, axis=0, mode="interp"), atol=1e-6)
    np.testing.assert_allclose(result[8:, :1, FACE], savgol_filter(second, 7, 2, axis=0, mode="interp"), atol=1e-6)


def test_short_runs_and_bodies_stay_as_they_are() -> None:
    poses = crowd(trembling(6))
    poses[:, 0, BODY] = RNG.uniform(0, 1, (6, 18, 2))
    np.testing.assert_array_equal(smoothed(poses), poses)


def test_people_may_change_their_order() -> None:
    faces = trembling(9, people=2)
    swapped = faces.copy()
    swapped[4] = faces[4, ::-1]
    expected = savgol_filter(faces, 7, 2, axis=0, mode="interp")
    result = smoothed(crowd(swapped))[:, :2, FACE]
    np.testing.assert_allclose(result[4], expected[4, ::-1], atol=1e-6)
    np.testing.assert_allclose(result[5], expected[5], atol=1e-6)


def test_a_point_that_is_missing_once_leaves_its_neighbours_in_time_alone() -> None:
    faces = trembling(7)
    faces[3, 0, 10] = np.nan
    result = smoothed(crowd(faces))[:, 0, FACE]
    np.testing.assert_allclose(result[:, 10], faces[:, 0, 10], atol=1e-6)
    assert not np.allclose(result[:, 11], faces[:, 0, 11], atol=1e-4)


def test_chunks_draw_what_the_whole_does() -> None:
    annotator = VideoOpenpose(Openpose(OpenposeOptions(name="openpose"), None, "cpu"))
    notes = crowd(trembling(20))
    measures = annotator.measure(notes)
    assert (measures == 1).all()
    whole = annotator.draw(list(notes), 0, 20, measures, (64, 96))
    parts = [annotator.draw(list(notes), start, min(start + 8, 20), measures, (64, 96)) for start in range(0, 20, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.shape == (20, 64, 96, 3) and whole.max() > 100


def test_what_the_detector_finds_is_drawn_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are fractions of what the detector saw, which is padded; the surest people come first."""
    frame = np.zeros((100, 150, 3), np.uint8)  # padded to 128 × 192

    def person(x: float, score: float) -> SimpleNamespace:
        body: list[SimpleNamespace | None] = [None] * 18
        body[2], body[3] = SimpleNamespace(x=x / 192, y=20 / 128), SimpleNamespace(x=x / 192, y=80 / 128)
        hand = [SimpleNamespace(x=-1 / 192, y=-1 / 128)] * 21
        return SimpleNamespace(
            body=SimpleNamespace(keypoints=body, total_score=score), left_hand=hand, right_hand=None, face=None
        )

    def detect_poses(image: Image, include_hand: bool, include_face: bool) -> list[SimpleNamespace]:
        assert image.shape == (128, 192, 3) and include_hand and not include_face
        return [person(30, 1.0), person(120, 2.0)]

    annotator = Openpose(OpenposeOptions(name="openpose", face=False), Weights("k", "/nowhere", ()), "cpu")
    annotator.__dict__["detector"] = SimpleNamespace(detect_poses=detect_poses)
    (pose,) = annotator.poses(frame[None])
    np.testing.assert_allclose(pose[0, 2], [120 / 150, 20 / 100], rtol=1e-5)
    np.testing.assert_allclose(pose[1, 3], [30 / 150, 80 / 100], rtol=1e-5)
    assert np.isnan(pose[:, LEFT]).all() and np.isnan(pose[2:]).all()
    drawn = draw(pose, 100, 150)
    columns = np.flatnonzero(drawn.max(axis=(0, 2)))
    assert {30, 120} <= set(columns) and all(min(abs(c - 30), abs(c - 120)) < 8 for c in columns)
    assert drawn[50, 30].max() > 50 and drawn[95].max() == 0
