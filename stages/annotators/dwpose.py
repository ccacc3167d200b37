"""Skeletons of people by DWPose's two networks: YOLOX finds people, RTMPose the points of each.

ONNX Runtime runs them. Numbers and drawing are those of the published annotator (github.com/IDEA-Research/DWPose).
Input sizes are read from the files, so smaller estimators work too. docs/annotators.md says why rtmlib is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stages.annotators import ANNOTATORS
from stages.annotators.controlnet_aux import CHECK_FILE, quiet
from stages.annotators.pose import PoseOptions, resized
from stages.base.arrays import Floats, Image, Images
from stages.base.paths import WeightsName
from stages.models.weights import Weights, explained, pick_device

Points: TypeAlias = NDArray[np.floating]

# Points of COCO-WholeBody: 17 of the body, 6 of the feet, 68 of the face, 21 of each hand.
POINTS = 133
FACE, LEFT_HAND, RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, POINTS)
SHOULDERS = [5, 6]
# The points that are OpenPose's 18 of the body. COCO has no neck, which is appended.
NECK = POINTS
OPENPOSE_BODY = [0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
SURE = 0.3  # min. confidence of points that are drawn

# Height and width of the networks' inputs, if their files do not fix them.
DETECTOR_SIZE, ESTIMATOR_SIZE = (640, 640), (384, 288)

STRIDES = (8, 16, 32)  # px, sizes of YOLOX's grid cells
PERSON_SCORE, OVERLAP = 0.3, 0.45
GREY = 114  # padding of YOLOX's input

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RTMPose's input, RGB
MARGIN = 1.25  # RTMPose's input is a person's box enlarged by this factor


@ANNOTATORS.register
class DwposeOptions(PoseOptions):
    """Skeletons of people by DWPose: body, hands and face; needs `pip install 'diffsynth-cli[dwpose]'`."""

    files = ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")
    requires, extra = "onnxruntime", "dwpose"
    name: Literal["dwpose"]
    model: WeightsName = "yzd-v/DWPose"

    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> Dwpose:
        assert weights is not None, "see `weights`"
        return Dwpose(self, weights, device)


class Dwpose:
    """Draws skeletons per frame."""

    def __init__(self, options: DwposeOptions, weights: Weights, device: str):
        self.weights, self.device, self.resolution = weights, device, options.resolution
        self.parts = {"hands": options.hands, "face": options.face}

    @cached_property
    def networks(self) -> tuple[Network, Network]:
        """The detector of people and the estimator of their points."""
        detector, estimator = (self.weights.folder() / file for file in self.weights.files)
        return (
            self._load(detector, DETECTOR_SIZE, check_detector),
            self._load(estimator, ESTIMATOR_SIZE, check_estimator),
        )

    def maps(self, frames: Images) -> Images:
        return np.stack([self._map(frame) for frame in frames])

    def poses(self, frame: Image) -> tuple[Points, Points]:
        """Find the points of all people in a frame [H, W, 3].

        If nobody is detected, one person is assumed to fill the frame, as published.

        Returns:
            x and y in pixels of the frame [PEOPLE, POINTS, 2], and confidences [PEOPLE, POINTS].
        """
        detector, estimator = self.networks
        boxes = find_people(detector, frame)
        if len(boxes) == 0:
            boxes = np.array([[0, 0, frame.shape[1], frame.shape[0]]])
        found = [find_points(estimator, frame, box) for box in boxes]
        return np.stack([points for points, _ in found]), np.stack([scores for _, scores in found])

    def _map(self, frame: Image) -> Image:
        height, width = frame.shape[:2]
        seen = resized(frame, self.resolution)
        points, scores = self.poses(seen)
        return draw(points / (seen.shape[1], seen.shape[0]), scores, height, width, **self.parts)

    def _load(self, file: Path, size: tuple[int, int], check: Callable[[Network], None]) -> Network:
        what = f"{file} (weights of 'dwpose')"
        with explained(self.weights.key, what, CHECK_FILE):
            network = Network(file, size, self.device)
            check(network)
        return network


class Network:
    """A network in an ONNX file that takes one image. `size` is that of its input, if the file does not fix it."""

    def __init__(self, file: Path, size: tuple[int, int], device: str):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(str(file), options, providers=_providers(device))
        given = self.session.get_inputs()[0]
        self.name = given.name
        sides = [given_side if isinstance(given_side, int) else side for given_side, side in zip(given.shape[2:], size)]
        self.size = sides[0], sides[1]

    def __call__(self, image: NDArray[np.generic]) -> list[Floats]:
        """Return the outputs for an image [H, W, 3] of the network's size."""
        batch = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)
        outputs: list[Floats] = self.session.run(None, {self.name: batch})
        return outputs


def _providers(device: str) -> list[str | tuple[str, dict[str, object]]]:
    """Choose CUDA if it is the device and ONNX Runtime supports it, else the CPU."""
    import onnxruntime

    picked = pick_device(device)
    cpu = "CPUExecutionProvider"
    if picked.type != "cuda" or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return [cpu]
    return [("CUDAExecutionProvider", {"device_id": picked.index or 0}), cpu]


# --- people ---------------------------------------------------------------------------------------------


def find_people(detector: Network, frame: Image) -> Points:
    """Detect people in a frame [H, W, 3]: left, top, right and bottom in pixels [PEOPLE, 4], best first."""
    import cv2

    image, scale = _fit(frame, detector.size)
    found = detector(image)[0][0]
    cells, strides = _grid(detector.size)
    centres = (found[:, :2] + cells) * strides / scale
    sizes = np.exp(found[:, 2:4]) * strides / scale
    scores = found[:, 4] * found[:, 5]  # object × class confidence
    likely = scores > PERSON_SCORE
    centres, sizes, scores = centres[likely], sizes[likely], scores[likely]
    corners = centres - sizes / 2
    kept = cv2.dnn.NMSBoxes(np.hstack([corners, sizes]).tolist(), scores.tolist(), PERSON_SCORE, OVERLAP)
    boxes: Points = np.hstack([corners, corners + sizes])[np.asarray(kept, int)]
    return boxes


def check_detector(detector: Network) -> None:
    """Raise ValueError if the network's output is not that of YOLOX."""
    shapes = [output.shape for output in detector(np.zeros((*detector.size, 3)))]
    cells = len(_grid(detector.size)[0])
    if len(shapes) != 1 or shapes[0][:2] != (1, cells) or len(shapes[0]) != 3 or shapes[0][2] < 6:
        raise ValueError(f"its output has shape {_listed(shapes)}, but YOLOX's has [1, {cells}, 85]")


def _fit(frame: Image, size: tuple[int, int]) -> tuple[Image, float]:
    """Fit a frame into the upper left of a BGR image of this size. Returns the image and the scale factor."""
    import cv2

    height, width = frame.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    height, width = int(height * scale), int(width * scale)
    image = np.full((*size, 3), GREY, np.uint8)
    image[:height, :width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    return image, scale


def _grid(size: tuple[int, int]) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Return column and row [CELLS, 2] of YOLOX's grid cells and their strides [CELLS, 1]."""
    cells = [
        np.stack(np.meshgrid(np.arange(size[1] // stride), np.arange(size[0] // stride)), axis=2).reshape(-1, 2)
        for stride in STRIDES
    ]
    strides = np.repeat(STRIDES, [len(part) for part in cells])
    return np.concatenate(cells), strides[:, None]


# --- points ---------------------------------------------------------------------------------------------


def find_points(estimator: Network, frame: Image, box: Points) -> tuple[Points, Points]:
    """Estimate the points of the person in a box of a frame [H, W, 3].

    Returns:
        x and y in pixels of the frame [POINTS, 2], and confidences [POINTS].
    """
    import cv2

    size = np.array(estimator.size[::-1])  # width, height
    scale = MARGIN * ((box[2:] - box[:2]) / size).max()  # pixels of the frame per pixel of the input
    origin = (box[:2] + box[2:]) / 2 - scale * size / 2
    into = np.array([[1 / scale, 0, -origin[0] / scale], [0, 1 / scale, -origin[1] / scale]])
    image = cv2.warpAffine(frame, into, tuple(map(int, size)), flags=cv2.INTER_LINEAR)
    by_axis = [likelihoods[0] for likelihoods in estimator((image - MEAN) / STD)]  # [POINTS, columns], [POINTS, rows]
    places = np.stack([axis.argmax(axis=1) * side / axis.shape[1] for axis, side in zip(by_axis, size)], axis=1)
    scores = np.minimum(*(axis.max(axis=1) for axis in by_axis))
    return places * scale + origin, scores


def check_estimator(estimator: Network) -> None:
    """Raises ValueError if the network's outputs are not those of RTMPose for whole bodies."""
    height, width = estimator.size
    shapes = [output.shape for output in estimator(np.zeros((*estimator.size, 3)))]
    expected = [(1, POINTS, 2 * side) for side in (width, height)]
    if shapes != expected:
        raise ValueError(f"its outputs have shapes {_listed(shapes)}, but RTMPose's have {_listed(expected)}")


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(str(list(shape)) for shape in shapes)


# --- the map --------------------------------------------------------------------------------------------


def draw(points: Points, scores: Points, height: int, width: int, hands: bool = True, face: bool = True) -> Image:
    """Draw a map uint8 [height, width, 3] as DWPose does.

    Args:
        points: x and y as fractions of the frame [PEOPLE, POINTS, 2].
        scores: Confidences [PEOPLE, POINTS].
        hands, face: Whether to draw these.
    """
    with quiet():
        from controlnet_aux.dwpose import draw_pose

    sure = scores > SURE
    points = np.concatenate([points, points[:, SHOULDERS].mean(axis=1, keepdims=True)], axis=1)
    sure = np.concatenate([sure, sure[:, SHOULDERS].all(axis=1, keepdims=True)], axis=1)
    body, sure_body = points[:, OPENPOSE_BODY], sure[:, OPENPOSE_BODY]
    numbers = np.arange(sure_body.size).reshape(sure_body.shape)
    shown = np.where(sure[..., None], points, -1)
    pose: dict[str, object] = {
        "bodies": {"candidate": body.reshape(-1, 2), "subset": np.where(sure_body, numbers, -1)},
        "hands": np.concatenate([shown[:, LEFT_HAND], shown[:, RIGHT_HAND]]) if hands else [],
        "faces": shown[:, FACE] if face else [],
    }
    drawn: Image = draw_pose(pose, height, width)
    return drawn
