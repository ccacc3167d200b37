"""Skeletons of people (OpenPose through controlnet_aux), with face points optionally smoothed over time.

Poses are float32 [..., PEOPLE, POINTS, 2]: x and y as fractions of the frame, NaN for points that were not found.
Points are 18 of the body, 21 of each hand and 70 of the face. A person whose points are all NaN is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.annotators import ANNOTATORS, PUBLISHED_SIDE, Resized, Weighted
from stages.annotators.controlnet_aux import load, pad, quiet
from stages.base.arrays import Floats, Image, Images
from stages.models.weights import Weights

PEOPLE = 64  # per frame at most; those with the highest scores are kept
POINTS = 18 + 21 + 21 + 70
BODY, LEFT, RIGHT, FACE = slice(0, 18), slice(18, 39), slice(39, 60), slice(60, POINTS)
WINDOW, ORDER = 7, 2  # of the smoothing: frames and polynomial order, as published with DiffSynth


class PoseOptions(Weighted, Resized):
    """Options of annotators that draw skeletons."""

    hands: bool = True
    face: bool = True


@ANNOTATORS.register
class OpenposeOptions(PoseOptions):
    """Skeletons of people: body, hands and face."""

    diffsynth = {"ControlnetImageProcesserPose": {}}
    files = ("body_pose_model.pth", "hand_pose_model.pth", "facenet.pth")
    name: Literal["openpose"]

    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> Openpose:
        return Openpose(self, weights, device)


@ANNOTATORS.register
class OpenposeVideoOptions(PoseOptions):
    """Like openpose, with face points smoothed over time (Savitzky-Golay, window 7, order 2)."""

    diffsynth = {"VideoControlnetImageProcesserOpenpose": {"resolution": PUBLISHED_SIDE}}
    files = OpenposeOptions.files
    name: Literal["openpose_video"]

    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> VideoOpenpose:
        return VideoOpenpose(Openpose(self, weights, device))


class Openpose:
    """Draws skeletons per frame."""

    def __init__(self, options: PoseOptions, weights: Weights | None, device: str):
        self.weights, self.device, self.resolution = weights, device, options.resolution
        self.parts = {"include_hand": options.hands, "include_face": options.face}

    @cached_property
    def detector(self) -> Any:
        return load("openpose", "OpenposeDetector", self.weights, self.device)

    def maps(self, frames: Images) -> Images:
        return np.stack([draw(pose, *frames.shape[1:3]) for pose in self.poses(frames)])

    def poses(self, frames: Images) -> Floats:
        """Return the poses [K, PEOPLE, POINTS, 2] of frames."""
        with quiet():
            return np.stack([self._pose(frame) for frame in frames])

    def _pose(self, frame: Image) -> Floats:
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
        scaled: Floats = poses * padding
        return scaled


class VideoOpenpose:
    """Draws skeletons with face points smoothed over time while the number of faces is constant."""

    MEASURES = 1

    def __init__(self, openpose: Openpose):
        self.openpose = openpose

    def note_shape(self, height: int, width: int) -> tuple[int, ...]:
        return PEOPLE, POINTS, 2

    def look(self, frames: Images) -> Floats:
        return self.openpose.poses(frames)

    def measure(self, notes: Floats) -> NDArray[np.float64]:
        """Return the number of faces in each frame."""
        return np.array([[len(_faces(pose))] for pose in notes], np.float64)

    def draw(
        self, notes: Sequence[Floats], start: int, stop: int, measures: NDArray[np.float64], size: tuple[int, int]
    ) -> Images:
        first, last = max(0, start - WINDOW + 1), min(len(notes), stop + WINDOW - 1)
        near = np.stack([notes[index] for index in range(first, last)])
        return np.stack([draw(smooth_face(near, index - first), *size) for index in range(start, stop)])

    def draw_still(self, note: Floats, measures: NDArray[np.float64], size: tuple[int, int]) -> Image:
        return draw(note, *size)


def resized(frame: Image, resolution: int | None) -> Image:
    """Resize a frame to a shorter side of `resolution` pixels; None leaves it unchanged."""
    scale = 1.0 if resolution is None else resolution / min(frame.shape[:2])
    if scale == 1:
        return frame
    import cv2

    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=how), np.uint8)


def smooth_face(poses: Floats, index: int) -> Floats:
    """Smooth the face points of frame `index` of poses [K, PEOPLE, POINTS, 2] (Savitzky and Golay 1964).

    Runs of fewer than WINDOW frames with the same number of faces stay unchanged, and so do points that are missing in
    a frame of the window. Near the ends of a run, the window is its first or last WINDOW frames. Only WINDOW - 1 frames
    to each side of `index` matter. Faces are matched between frames by distance.
    """
    from scipy.signal import savgol_coeffs

    faces = [_faces(pose) for pose in poses]
    begin = end = index
    while begin > 0 and len(faces[begin - 1]) == len(faces[index]):
        begin -= 1
    while end < len(poses) and len(faces[end]) == len(faces[index]):
        end += 1
    if end - begin < WINDOW or len(faces[index]) == 0:
        unchanged: Floats = poses[index]
        return unchanged
    first = min(max(begin, index - WINDOW // 2), end - WINDOW)
    own = poses[index][faces[index], FACE]
    window = np.stack([_matched(own, poses[k][faces[k], FACE]) for k in range(first, first + WINDOW)])
    coefficients = savgol_coeffs(WINDOW, ORDER, pos=index - first, use="dot")
    smooth = np.tensordot(coefficients, window.astype(np.float64), axes=1)
    result: Floats = poses[index].copy()
    result[faces[index], FACE] = np.where(np.isnan(smooth), own, smooth)
    return result


def draw(pose: Floats, height: int, width: int) -> Image:
    """Draw the map uint8 [height, width, 3] of the poses [PEOPLE, POINTS, 2] of one frame."""
    with quiet():
        from controlnet_aux.open_pose import PoseResult, draw_poses
        from controlnet_aux.open_pose.body import BodyResult, Keypoint

    def points(part: Floats, missing: Keypoint | None) -> list[Keypoint | None]:
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
    drawn: Image = draw_poses(people, height, width)
    return drawn


def _faces(pose: Floats) -> NDArray[np.intp]:
    """Return the indices of people [PEOPLE, POINTS, 2] who have a face."""
    return np.flatnonzero(~np.isnan(pose[:, FACE]).all(axis=(1, 2)))


def _matched(own: Floats, others: Floats) -> Floats:
    """Order the faces `others` [F, 70, 2] like `own`, by distance."""
    from scipy.optimize import linear_sum_assignment

    centres = [np.nanmean(faces, axis=1) for faces in (own, others)]
    distance = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=2)
    matched: Floats = others[linear_sum_assignment(distance)[1]]
    return matched
