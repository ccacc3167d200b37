"""DWPose: people and points, and maps equal to those of the published annotator."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import cv2
import numpy as np
import pytest

from stages.annotators import build
from stages.annotators.dwpose import MARGIN, Dwpose, DwposeOptions, find_people, find_points
from stages.base.errors import DiffSynthError
from stages.base.json_types import Json
from stages.models.weights import Weights
from tests.conftest import write_images
from tests.stages.annotators.onnx_networks import BOX, ESTIMATOR_SIZE, OFFSETS, SURE, UNSURE_OF_Y
from tests.stages.annotators.random_weights import write_weights
from tests.typing import Cli, Floats, Image, Images, MakeJob

FILES = DwposeOptions.files
BLUE, GREEN, RED = (0, 0, 255), (0, 255, 0), (255, 0, 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = write_weights("dwpose", tmp_path_factory.mktemp("weights"))
    return Weights("controlnet_processor[0]", str(folder), FILES)


class Build(Protocol):
    """Builds the annotator with these options."""

    def __call__(self, **options: Json) -> Dwpose: ...


@pytest.fixture
def dwpose(weights: Weights) -> Build:
    def build_dwpose(**options: Json) -> Dwpose:
        annotator = build("dwpose", options, None, weights, "cpu")
        assert isinstance(annotator, Dwpose)
        return annotator

    return build_dwpose


def crowd(
    *discs: tuple[tuple[int, int], tuple[int, int, int]], size: tuple[int, int] = (320, 512), radius: int = 24
) -> np.ndarray:
    """A frame with discs of these centres (x, y) and colours."""
    frame = np.full((*size, 3), 40, np.uint8)
    for centre, colour in discs:
        cv2.circle(frame, centre, radius, colour, -1)
    return frame


def test_people_are_found_in_order_of_confidence(dwpose: Build) -> None:
    frame = crowd(((112, 144), BLUE), ((390, 180), BLUE), ((240, 60), GREEN), ((250, 250), RED))
    boxes = find_people(dwpose().networks[0], frame)
    scale = 640 / 512
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], np.full((2, 2), BOX) / scale, rtol=1e-5)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(centres, [[112, 144], [390, 180]], atol=32 / scale)  # a cell; a dog and red are nobody


def test_points_surround_the_disc_as_the_network_predicts(dwpose: Build) -> None:
    box = np.array([70.0, 60.0, 190.0, 260.0])
    points, scores = find_points(dwpose().networks[1], crowd(((120, 150), BLUE)), box)
    scale = MARGIN * max(120 / ESTIMATOR_SIZE[1], 200 / ESTIMATOR_SIZE[0])
    np.testing.assert_allclose(points, (120, 150) + OFFSETS * scale, atol=scale)
    np.testing.assert_allclose(scores, SURE.min(axis=1), atol=1e-3)  # as sure as of the less sure axis


@pytest.mark.parametrize("size", [(320, 512), (512, 320)])
def test_maps_are_those_of_the_published_annotator(
    dwpose: Build, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """controlnet_aux's DWposeDetector, with our networks in place of those of mmdet and mmpose."""
    height, width = size
    frame = crowd(((width // 4, height // 2), BLUE), ((width * 3 // 4, height // 2 - 30), BLUE), size=size)
    annotator = dwpose()
    (drawn,) = annotator.maps(frame[None])
    np.testing.assert_array_equal(drawn, published(annotator, frame, monkeypatch))
    assert (drawn == 255).all(axis=2).sum() > 500  # faces
    assert (drawn == (0, 0, 255)).all(axis=2).sum() > 500  # hands


def published(annotator: Dwpose, frame: Image, monkeypatch: pytest.MonkeyPatch) -> Image:
    detector, estimator = annotator.networks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that mmcv is not installed
        from controlnet_aux.dwpose import DWposeDetector, wholebody

    class Instances(dict[str, np.ndarray]):
        __getattr__ = dict.__getitem__

    class OnTheCpu(np.ndarray):
        def cpu(self) -> OnTheCpu:
            return self

        def numpy(self) -> np.ndarray:
            return np.asarray(self)

    def detect(_: object, image: Image) -> SimpleNamespace:
        boxes = find_people(detector, image[..., ::-1])
        found = Instances(bboxes=boxes, scores=np.ones(len(boxes)), labels=np.zeros(len(boxes)))
        found = Instances({key: value.view(OnTheCpu) for key, value in found.items()})
        return SimpleNamespace(pred_instances=SimpleNamespace(cpu=lambda: SimpleNamespace(numpy=lambda: found)))

    def estimate(_: object, image: Image, boxes: Sequence[Floats]) -> list[tuple[Floats, Floats]]:
        return [find_points(estimator, image[..., ::-1], box) for box in np.asarray(boxes)]

    def merge(people: Iterable[tuple[Floats, Floats]]) -> SimpleNamespace:
        points, scores = zip(*people)
        return SimpleNamespace(
            pred_instances=Instances(keypoints=np.stack(points), keypoint_scores=np.stack(scores).astype(float))
        )

    for name, stand_in in {
        "inference_detector": detect, "nms": lambda boxes, overlap: range(len(boxes)), "inference_topdown": estimate,
        "merge_data_samples": merge,
    }.items():  # fmt: skip
        monkeypatch.setattr(wholebody, name, stand_in, raising=False)
    body = wholebody.Wholebody.__new__(wholebody.Wholebody)
    body.detector = body.pose_estimator = None
    drawer = DWposeDetector.__new__(DWposeDetector)
    drawer.pose_estimation = body
    side = min(frame.shape[:2])
    return np.asarray(drawer(frame, detect_resolution=side, image_resolution=side, output_type="np"))


def test_a_point_that_one_axis_is_unsure_of_is_not_drawn(dwpose: Build) -> None:
    points, scores = dwpose().poses(crowd(((250, 150), BLUE)))
    assert scores[0, UNSURE_OF_Y] < 0.3 < scores[0, 7]  # the right elbow, the left one
    x, y = points[0, UNSURE_OF_Y].astype(int)
    (drawn,) = dwpose(hands=False, face=False).maps(crowd(((250, 150), BLUE))[None])
    left = points[0, 7].astype(int)
    assert drawn[left[1], left[0]].any() and not drawn[y, x].any()


def test_hands_and_face_can_be_left_out(dwpose: Build) -> None:
    frame = crowd(((250, 150), BLUE))[None]
    maps = {
        (hands, face): dwpose(hands=hands, face=face).maps(frame)[0]
        for hands in (True, False)
        for face in (True, False)
    }
    white = {key: (drawn == 255).all(axis=2).sum() for key, drawn in maps.items()}
    assert white[True, True] == white[False, True] > 100 and white[True, False] == white[False, False] == 0
    assert (maps[True, False] != maps[False, False]).any() and maps[False, False].any()


def test_a_frame_without_people_is_searched_as_a_whole(dwpose: Build) -> None:
    small = crowd(((250, 150), BLUE), radius=4)
    assert len(find_people(dwpose().networks[0], small)) == 0
    points, scores = dwpose().poses(small)
    assert points.shape == (1, 133, 2) and (scores[0, :5] > 0.3).all()
    scale = MARGIN * max(512 / ESTIMATOR_SIZE[1], 320 / ESTIMATOR_SIZE[0])
    np.testing.assert_allclose(points[0], (250, 150) + OFFSETS * scale, atol=1.5 * scale)
    assert not dwpose().maps(crowd()[None]).any()  # an empty street


def test_resolution_shrinks_what_is_looked_at_but_not_the_map(dwpose: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = crowd(((250, 150), BLUE))
    annotator, look = dwpose(resolution=160), Dwpose.poses
    seen: list[tuple[int, ...]] = []

    def poses(annotator: Dwpose, image: Image) -> tuple[Floats, Floats]:
        seen.append(image.shape)
        return look(annotator, image)

    monkeypatch.setattr(Dwpose, "poses", poses)
    (small,) = annotator.maps(frame[None])
    assert seen == [(160, 256, 3)]
    (full,) = dwpose().maps(frame[None])
    assert small.shape == full.shape
    found, expected = (np.argwhere(drawn.any(axis=2)).mean(axis=0) for drawn in (small, full))
    np.testing.assert_allclose(found, expected, atol=3)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", ["garbage", "the other network"])
def test_wrong_files_are_named(file: str, content: str, tmp_path: Path, weights: Weights) -> None:
    folder = write_weights("dwpose", tmp_path)
    (other,) = set(weights.files) - {file}
    (folder / file).write_bytes(b"garbage" if content == "garbage" else (folder / other).read_bytes())
    wrong = Weights("controlnet_processor[0]", str(folder), weights.files)
    reason = "" if content == "garbage" else "its output"
    pattern = re.escape(f"controlnet_processor[0]: {folder / file} (weights of 'dwpose') cannot be loaded: {reason}")
    with pytest.raises(DiffSynthError, match=pattern):
        Dwpose(DwposeOptions(name="dwpose"), wrong, "cpu").maps(crowd()[None])


# --- in a job -------------------------------------------------------------------------------------------


def test_a_job_stores_the_maps_that_the_annotator_draws(
    tmp_path: Path, dwpose: Build, make_job: MakeJob, cli: Cli
) -> None:
    frames = np.stack([crowd(((200 + 8 * index, 150), BLUE)) for index in range(3)])
    write_images(tmp_path / "images", frames)
    write_weights("dwpose", tmp_path)
    job = make_job(controlnet_processor=[{"name": "dwpose", "model": "./dwpose", "face": False}], device="cpu")
    for stage in ("extract", "control"):
        assert cli(stage, job, "-q") == (0, "")
    (drawn,) = maps_of(tmp_path)
    np.testing.assert_array_equal(drawn, dwpose(face=False).maps(frames))
    assert (drawn[0] != drawn[2]).any()


def maps_of(folder: Path) -> list[Images]:
    from stages.base.cache import FrameCache

    cache = FrameCache(folder / "out/cache.zarr")
    return [cache[name][:] for name in cache.arrays("control/*")]


def test_a_missing_extra_is_refused_before_any_work(
    tmp_path: Path, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(2, controlnet_processor=["dwpose"])
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda package: None)
        code, output = cli("run", job)
        assert cli("extract", job, "-q") == (0, "")
    assert code == 2
    assert "controlnet_processor[0]: the annotator 'dwpose' needs onnxruntime" in output
    assert "pip install 'diffsynth-cli[dwpose]'" in output
    assert len(output.splitlines()) <= 3


def test_finished_maps_need_no_extra(
    tmp_path: Path, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights("dwpose", tmp_path)
    job = make_job(2, controlnet_processor=[{"name": "dwpose", "model": "./dwpose"}], device="cpu")
    for stage in ("extract", "control"):
        assert cli(stage, job, "-q") == (0, "")
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    assert cli("control", job, "-q") == (0, "")
    code, output = cli("control", job, "-q", "--restart")
    assert code == 2 and "needs onnxruntime" in output
    assert len(maps_of(tmp_path)) == 1  # the old ones stay
