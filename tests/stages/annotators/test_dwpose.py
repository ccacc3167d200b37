"""DWPose: who is found where, and the map that its published annotator draws of the same people."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from stages.annotators import ANNOTATORS, build
from stages.annotators.dwpose import MARGIN, find_people, find_points
from stages.base.errors import DiffSynthError
from stages.models.weights import Weights
from tests.conftest import write_images
from tests.stages.annotators.onnx_networks import BOX, ESTIMATOR_SIZE, OFFSETS, SURE, UNSURE_OF_Y
from tests.stages.annotators.random_weights import write_weights

BLUE, GREEN, RED = (0, 0, 255), (0, 255, 0), (255, 0, 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Weights:
    folder = write_weights("dwpose", tmp_path_factory.mktemp("weights"))
    return Weights("controlnet_processor[0]", str(folder), ANNOTATORS["dwpose"].files)


@pytest.fixture
def dwpose(weights) -> Callable:
    return lambda **options: build("dwpose", options, None, weights, "cpu")


def crowd(*discs: tuple[tuple[int, int], tuple[int, int, int]], size=(320, 512), radius=24) -> np.ndarray:
    """A frame with discs of these centres (x, y) and colours."""
    frame = np.full((*size, 3), 40, np.uint8)
    for centre, colour in discs:
        cv2.circle(frame, centre, radius, colour, -1)
    return frame


def test_people_are_found_where_they_are_surest_first(dwpose):
    frame = crowd(((112, 144), BLUE), ((390, 180), BLUE), ((240, 60), GREEN), ((250, 250), RED))
    boxes = find_people(dwpose().networks[0], frame)
    scale = 640 / 512
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], np.full((2, 2), BOX) / scale, rtol=1e-5)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(centres, [[112, 144], [390, 180]], atol=32 / scale)  # a cell; a dog and red are nobody


def test_points_lie_about_the_disc_as_the_network_puts_them(dwpose):
    box = np.array([70.0, 60.0, 190.0, 260.0])
    points, scores = find_points(dwpose().networks[1], crowd(((120, 150), BLUE)), box)
    scale = MARGIN * max(120 / ESTIMATOR_SIZE[1], 200 / ESTIMATOR_SIZE[0])
    np.testing.assert_allclose(points, (120, 150) + OFFSETS * scale, atol=scale)
    np.testing.assert_allclose(scores, SURE.min(axis=1), atol=1e-3)  # as sure as of the less sure axis


@pytest.mark.parametrize("size", [(320, 512), (512, 320)])
def test_maps_are_those_of_the_published_annotator(dwpose, size, monkeypatch):
    """controlnet_aux's DWposeDetector, with our networks in place of those of mmdet and mmpose."""
    height, width = size
    frame = crowd(((width // 4, height // 2), BLUE), ((width * 3 // 4, height // 2 - 30), BLUE), size=size)
    annotator = dwpose()
    (drawn,) = annotator.maps(frame[None])
    np.testing.assert_array_equal(drawn, published(annotator, frame, monkeypatch))
    assert (drawn == 255).all(axis=2).sum() > 500  # faces
    assert (drawn == (0, 0, 255)).all(axis=2).sum() > 500  # hands


def published(annotator, frame: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    detector, estimator = annotator.networks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that mmcv is not installed
        from controlnet_aux.dwpose import DWposeDetector, wholebody

    class Instances(dict):
        __getattr__ = dict.__getitem__

    class OnTheCpu(np.ndarray):
        def cpu(self):
            return self

        def numpy(self):
            return np.asarray(self)

    def detect(_, image):
        boxes = find_people(detector, image[..., ::-1])
        found = Instances(bboxes=boxes, scores=np.ones(len(boxes)), labels=np.zeros(len(boxes)))
        found = Instances({key: value.view(OnTheCpu) for key, value in found.items()})
        return SimpleNamespace(pred_instances=SimpleNamespace(cpu=lambda: SimpleNamespace(numpy=lambda: found)))

    def estimate(_, image, boxes):
        return [find_points(estimator, image[..., ::-1], box) for box in np.asarray(boxes)]

    def merge(people):
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
    return drawer(frame, detect_resolution=side, image_resolution=side, output_type="np")


def test_a_point_that_one_axis_is_unsure_of_is_not_drawn(dwpose):
    points, scores = dwpose().poses(crowd(((250, 150), BLUE)))
    assert scores[0, UNSURE_OF_Y] < 0.3 < scores[0, 7]  # the right elbow, the left one
    x, y = points[0, UNSURE_OF_Y].astype(int)
    (drawn,) = dwpose(hands=False, face=False).maps(crowd(((250, 150), BLUE))[None])
    left = points[0, 7].astype(int)
    assert drawn[left[1], left[0]].any() and not drawn[y, x].any()


def test_hands_and_face_can_be_left_out(dwpose):
    frame = crowd(((250, 150), BLUE))[None]
    maps = {
        (hands, face): dwpose(hands=hands, face=face).maps(frame)[0]
        for hands in (True, False)
        for face in (True, False)
    }
    white = {key: (drawn == 255).all(axis=2).sum() for key, drawn in maps.items()}
    assert white[True, True] == white[False, True] > 100 and white[True, False] == white[False, False] == 0
    assert (maps[True, False] != maps[False, False]).any() and maps[False, False].any()


def test_where_nobody_is_found_the_whole_frame_is_looked_at(dwpose):
    small = crowd(((250, 150), BLUE), radius=4)
    assert len(find_people(dwpose().networks[0], small)) == 0
    points, scores = dwpose().poses(small)
    assert points.shape == (1, 133, 2) and (scores[0, :5] > 0.3).all()
    scale = MARGIN * max(512 / ESTIMATOR_SIZE[1], 320 / ESTIMATOR_SIZE[0])
    np.testing.assert_allclose(points[0], (250, 150) + OFFSETS * scale, atol=1.5 * scale)
    assert not dwpose().maps(crowd()[None]).any()  # an empty street


def test_a_smaller_copy_is_looked_at_and_the_map_is_as_large_as_the_frame(dwpose, monkeypatch):
    frame = crowd(((250, 150), BLUE))
    annotator, seen = dwpose(resolution=160), []
    look = annotator.poses
    monkeypatch.setattr(annotator, "poses", lambda image: seen.append(image.shape) or look(image))
    small, full = annotator.maps(frame[None])[0], dwpose().maps(frame[None])[0]
    assert seen == [(160, 256, 3)] and small.shape == full.shape
    centres = [np.argwhere(drawn.any(axis=2)).mean(axis=0) for drawn in (small, full)]
    np.testing.assert_allclose(*centres, atol=3)


@pytest.mark.parametrize("file", ANNOTATORS["dwpose"].files)
@pytest.mark.parametrize("content", ["garbage", "the other network"])
def test_wrong_files_are_named(file, content, tmp_path, weights):
    folder = write_weights("dwpose", tmp_path)
    (other,) = set(weights.files) - {file}
    (folder / file).write_bytes(b"garbage" if content == "garbage" else (folder / other).read_bytes())
    wrong = Weights("controlnet_processor[0]", str(folder), weights.files)
    said = "" if content == "garbage" else "its output"
    pattern = re.escape(f"controlnet_processor[0]: {folder / file} (weights of 'dwpose') cannot be loaded: {said}")
    with pytest.raises(DiffSynthError, match=pattern):
        build("dwpose", {}, None, wrong, "cpu").maps(crowd()[None])


# --- in a job -------------------------------------------------------------------------------------------


def test_a_jobs_maps_are_the_annotators(tmp_path, dwpose, make_job, cli):
    frames = np.stack([crowd(((200 + 8 * index, 150), BLUE)) for index in range(3)])
    write_images(tmp_path / "images", frames)
    write_weights("dwpose", tmp_path)
    job = make_job(controlnet_processor=[{"name": "dwpose", "model": "./dwpose", "face": False}], device="cpu")
    for stage in ("extract", "control"):
        assert cli(stage, job, "-q") == (0, "")
    (drawn,) = Maps(tmp_path)
    np.testing.assert_array_equal(drawn, dwpose(face=False).maps(frames))
    assert (drawn[0] != drawn[2]).any()


def Maps(folder):
    from stages.base.cache import FrameCache

    cache = FrameCache(folder / "out/cache.zarr")
    return [cache[name][:] for name in cache.arrays("control/*")]


def test_without_the_extra_nothing_is_begun(tmp_path, make_job, cli, monkeypatch):
    job = make_job(2, controlnet_processor=["dwpose"])
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda package: None)
        code, said = cli("run", job)
        assert cli("extract", job, "-q") == (0, "")
    assert code == 2
    assert "controlnet_processor[0]: the annotator 'dwpose' needs onnxruntime" in said
    assert "pip install 'diffsynth-cli[dwpose]'" in said
    assert len(said.splitlines()) <= 3


def test_finished_maps_need_no_extra(tmp_path, make_job, cli, monkeypatch):
    write_weights("dwpose", tmp_path)
    job = make_job(2, controlnet_processor=[{"name": "dwpose", "model": "./dwpose"}], device="cpu")
    for stage in ("extract", "control"):
        assert cli(stage, job, "-q") == (0, "")
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    assert cli("control", job, "-q") == (0, "")
    code, said = cli("control", job, "-q", "--restart")
    assert code == 2 and "needs onnxruntime" in said
    assert len(Maps(tmp_path)) == 1  # the old ones stay
