"""Skeletons of people (OpenPose through controlnet_aux), and face points that do not tremble.

Poses are float32 [..., PEOPLE, POINTS, 2]: x and y as fractions of the frame, NaN where a point was not found. Points
are 18 of the body, 21 of each hand, 70 of the face. Rows of NaN alone are nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from stages.annotators import ANNOTATORS, PUBLISHED_SIDE, Resized, Weighted
from stages.annotators.controlnet_aux import load, pad, quiet
from stages.models.weights import Weights

PEOPLE = 64  # in a frame at most; the surest stay
POINTS = 18 + 21 + 21 + 70
BODY, LEFT, RIGHT, FACE = slice(0, 18), slice(18, 39), slice(39, 60), slice(60, POINTS)
WINDOW, ORDER = 7, 2  # frames and polynomial of the smoothing, as published with DiffSynth


class PoseOptions(Weighted, Resized):
    """Options of all annotators that draw skeletons."""

    hands: bool = True
    face: bool = True


@ANNOTATORS.register
class OpenposeOptions(PoseOptions):
    """Skeletons of people: body, hands and face."""

    diffsynth = {"ControlnetImageProcesserPose": {}}
    files = ("body_pose_model.pth", "hand_pose_model.pth", "facenet.pth")
    name: Literal["openpose"]

    def build(self, style_image: np.ndarray | None, weights: Weights | None, device: str) -> Openpose:
        return Openpose(self, weights, device)


@ANNOTATORS.register
class OpenposeVideoOptions(PoseOptions):
    """As openpose, face points smoothed over time (Savitzky-Golay, window 7, order 2)."""

    diffsynth = {"VideoControlnetImageProcesserOpenpose": {"resolution": PUBLISHED_SIDE}}
    files = OpenposeOptions.files
    name: Literal["openpose_video"]

    def build(self, style_image: np.ndarray | None, weights: Weights | None, device: str) -> OpenposeOverTime:
        return OpenposeOverTime(Openpose(self, weights, device))


class Openpose:
    """Skeletons, frame by frame."""

    def __init__(self, options: PoseOptions, weights: Weights | None, device: str):
        self.weights, self.device, self.resolution = weights, device, options.resolution
        self.parts = {"include_hand": options.hands, "include_face": options.face}

    @cached_property
    def detector(self) -> Any:
        return load("openpose", "OpenposeDetector", self.weights, self.device)

    def maps(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([draw(pose, *frames.shape[1:3]) for pose in self.poses(frames)])

    def poses(self, frames: np.ndarray) -> np.ndarray:
        with quiet():
            return np.stack([self._pose(frame) for frame in frames])

    def _pose(self, frame: np.ndarray) -> np.ndarray:
        frame = resized(frame, self.resolution)
        padded = pad(frame)
        people = sorted(self.detector.detect_poses(padded, **self.parts), key=lambda one: -one.body.total_score)
        poses = np.full((PEOPLE, POINTS, 2), np.nan, np.float32)
        for pose, person in zip(poses, people):
            parts = ((BODY, person.body.keypoints), (LEFT, person.left_hand), (RIGHT, person.right_hand),
                     (FACE, person.face))  # fmt: skip
            for where, points in parts:
                for index, point in enumerate(points or ()):
                    if point is not None and point.x >= 0 and point.y >= 0:
                        pose[where][index] = point.x, point.y
        padding = np.array([padded.shape[1] / frame.shape[1], padded.shape[0] / frame.shape[0]], np.float32)
        return poses * padding


class OpenposeOverTime:
    """Skeletons whose face points are smoothed over time where the number of faces stays the same."""

    MEASURES = 1

    def __init__(self, openpose: Openpose):
        self.openpose = openpose

    def note_shape(self, height: int, width: int) -> tuple[int, ...]:
        return PEOPLE, POINTS, 2

    def look(self, frames: np.ndarray) -> np.ndarray:
        return self.openpose.poses(frames)

    def measure(self, notes: np.ndarray) -> np.ndarray:
        """The number of faces in each frame."""
        return np.array([[len(_faces(pose))] for pose in notes], np.float64)

    def draw(
        self, notes: Sequence[np.ndarray], start: int, stop: int, measures: np.ndarray, size: tuple[int, int]
    ) -> np.ndarray:
        first, last = max(0, start - WINDOW + 1), min(len(notes), stop + WINDOW - 1)
        near = np.stack([notes[index] for index in range(first, last)])
        return np.stack([draw(smooth_face(near, index - first), *size) for index in range(start, stop)])

    def draw_still(self, note: np.ndarray, measures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return draw(note, *size)


def resized(frame: np.ndarray, resolution: int | None) -> np.ndarray:
    """The frame with a shorter side of `resolution` pixels; None: as it is."""
    scale = 1.0 if resolution is None else resolution / min(frame.shape[:2])
    if scale == 1:
        return frame
    import cv2

    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LANCZOS4
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=how)


def smooth_face(poses: np.ndarray, index: int) -> np.ndarray:
    """The poses of frame `index` of [K, PEOPLE, POINTS, 2], its face points smoothed (Savitzky and Golay 1964).

    A run of fewer than WINDOW frames with the same number of faces stays as it is, and so does a point that is missing
    in one of the window's frames. Near a run's ends the window is its first or last WINDOW frames. WINDOW - 1 frames to
    each side of `index` are all that counts. Who is who from frame to frame is who is nearest.
    """
    from scipy.signal import savgol_coeffs

    faces = [_faces(pose) for pose in poses]
    begin = end = index
    while begin > 0 and len(faces[begin - 1]) == len(faces[index]):
        begin -= 1
    while end < len(poses) and len(faces[end]) == len(faces[index]):
        end += 1
    if end - begin < WINDOW or len(faces[index]) == 0:
        return poses[index]
    first = min(max(begin, index - WINDOW // 2), end - WINDOW)
    own = poses[index][faces[index], FACE]
    window = np.stack([_matched(own, poses[k][faces[k], FACE]) for k in range(first, first + WINDOW)])
    coefficients = savgol_coeffs(WINDOW, ORDER, pos=index - first, use="dot")
    smooth = np.tensordot(coefficients, window.astype(np.float64), axes=1)
    result = poses[index].copy()
    result[faces[index], FACE] = np.where(np.isnan(smooth), own, smooth)
    return result


def draw(pose: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map uint8 [height, width, 3] of the poses [PEOPLE, POINTS, 2] of one frame."""
    with quiet():
        from controlnet_aux.open_pose import PoseResult, draw_poses
        from controlnet_aux.open_pose.body import BodyResult, Keypoint

    def points(part: np.ndarray, missing: Any) -> list[Any] | None:
        return [Keypoint(x=float(x), y=float(y)) if x == x else missing for x, y in part]

    nowhere = Keypoint(x=-1.0, y=-1.0)
    people = [
        PoseResult(
            body=BodyResult(keypoints=points(person[BODY], None), total_score=0.0, total_parts=0),
            left_hand=points(person[LEFT], nowhere),
            right_hand=points(person[RIGHT], nowhere),
            face=points(person[FACE], nowhere),
        )
        for person in pose
        if not np.isnan(person).all()
    ]
    return draw_poses(people, height, width)


def _faces(pose: np.ndarray) -> np.ndarray:
    """Who of [PEOPLE, POINTS, 2] has a face."""
    return np.flatnonzero(~np.isnan(pose[:, FACE]).all(axis=(1, 2)))


def _matched(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`others` [F, 70, 2] in the order in which they lie nearest to `own`."""
    from scipy.optimize import linear_sum_assignment

    centres = [np.nanmean(faces, axis=1) for faces in (own, others)]
    distance = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=2)
    return others[linear_sum_assignment(distance)[1]]
