"""Masks and skeletons of people, by random networks of the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModelForObjectDetection, RTDetrImageProcessor, Sam2ImageProcessor, Sam2Model, Sam2Processor

from stages.annotators import ANNOTATORS, build
from stages.annotators.people import PeopleOptions, PersonMask, Vitpose, body
from stages.annotators.pose import PEOPLE
from stages.base.cache import FrameCache
from stages.base.errors import DiffSynthError
from tests.conftest import scene
from tests.stages.annotators.people_networks import SAM_SIDE, write_detector, write_sam, write_vitpose
from tests.typing import Cli, Images, Keys, MakeJob


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    write_detector(folder / "detector")
    write_sam(folder / "person_mask")
    write_vitpose(folder / "vitpose")
    return folder


@pytest.fixture
def frames() -> Images:
    return np.stack([scene(index, 48, 80) for index in range(3)])


def annotator(name: str, folder: Path, **options: object) -> Any:
    paths = {"model": str(folder / name), "detector": str(folder / "detector")}
    keys = cast(Keys, {"threshold": 0.0, **paths, **options})
    settings = ANNOTATORS[name].model_validate({"name": name, **keys})
    assert isinstance(settings, PeopleOptions)
    return build(name, keys, None, settings.weights("controlnet_processor[0]"), "cpu")


def test_a_mask_shows_all_persons(folder: Path, frames: Images) -> None:
    maps = annotator("person_mask", folder).maps(frames)
    detect = RTDetrImageProcessor.from_pretrained(folder / "detector")
    detector = AutoModelForObjectDetection.from_pretrained(folder / "detector").eval()
    process = Sam2Processor(Sam2ImageProcessor.from_pretrained(folder / "person_mask"), target_size=SAM_SIDE)
    network = Sam2Model.from_pretrained(folder / "person_mask").eval()
    for frame, drawn in zip(frames, maps, strict=True):
        with torch.inference_mode():
            found = detector(**detect(images=[frame], return_tensors="pt"))
            (result,) = detect.post_process_object_detection(found, threshold=0.0, target_sizes=[(48, 80)])
            boxes = result["boxes"][result["labels"] == 0].clamp(min=0).minimum(torch.tensor([80, 48, 80, 48]))
            expected = np.zeros((48, 80), bool)
            for box in boxes.tolist():  # one by one
                inputs = process(images=[frame], input_boxes=[[box]], return_tensors="pt")
                masks = network(**inputs, multimask_output=False).pred_masks
                expected |= process.post_process_masks(masks, inputs["original_sizes"])[0][0, 0].numpy()
        assert len(boxes) and 0 < expected.mean() < 1
        assert np.mean(drawn != 255 * expected[..., None]) < 0.01  # rounding


@pytest.mark.parametrize("name", ["person_mask", "vitpose"])
def test_maps_do_not_depend_on_chunks(name: str, folder: Path, frames: Images) -> None:
    maps = annotator(name, folder).maps(frames)
    assert maps.shape == frames.shape and maps.dtype == np.uint8
    if name == "person_mask":
        assert set(np.unique(maps)) == {0, 255}
    np.testing.assert_array_equal(annotator(name, folder).maps(frames[2:]), maps[2:])


@pytest.mark.parametrize("name", ["person_mask", "vitpose"])
def test_without_people_maps_are_black(name: str, folder: Path, frames: Images, tmp_path: Path) -> None:
    assert not annotator(name, folder, threshold=1.0).maps(frames).any()
    dogs = str(write_detector(tmp_path / "dogs", ("dog", "cat")))
    assert not annotator(name, folder, detector=dogs).maps(frames).any()


@pytest.mark.parametrize("experts", [1, 6])
def test_skeletons_have_the_bodys_points_only(experts: int, tmp_path: Path, folder: Path, frames: Images) -> None:
    model = write_vitpose(tmp_path / "experts", experts)
    vitpose = annotator("vitpose", folder, model=str(model))
    assert isinstance(vitpose, Vitpose)
    pose = vitpose.pose(frames[0])
    people = len(vitpose.detector.boxes(frames[0]))
    assert 0 < people <= PEOPLE and np.isnan(pose[people:]).all() and np.isnan(pose[:, 18:]).all()


def test_points_are_openposes() -> None:
    points = np.stack([np.arange(17), 2 * np.arange(17)], axis=1).astype(np.float32)
    scores = np.ones(17, np.float32)
    scores[9] = 0.2  # the left wrist, OpenPose's number 7
    converted = body(points, scores, np.zeros((20, 10, 3), np.uint8)) * (10, 20)
    assert np.isnan(converted[7]).all() and not np.isnan(np.delete(converted, 7, axis=0)).any()
    np.testing.assert_allclose(converted[0], points[0])  # the nose
    np.testing.assert_allclose(converted[1], points[[5, 6]].mean(axis=0))  # the neck
    np.testing.assert_allclose(converted[2], points[6], rtol=1e-6)  # the right shoulder
    np.testing.assert_allclose(converted[[16, 17]], points[[4, 3]], rtol=1e-6)  # right ear, left ear


@pytest.mark.parametrize(("option", "other"), [("model", "detector"), ("detector", "vitpose")])
def test_other_models_are_refused(option: str, other: str, folder: Path, frames: Images) -> None:
    with pytest.raises(DiffSynthError, match=r"controlnet_processor\[0\]") as refused:
        annotator("person_mask", folder, **{option: str(folder / other)}).maps(frames)
    assert str(folder / other) in refused.value.message


def test_both_models_are_checked_before_the_job_runs(folder: Path, tmp_path: Path) -> None:
    options = ANNOTATORS["person_mask"].model_validate(
        {"name": "person_mask", "model": str(folder / "person_mask"), "detector": str(tmp_path)}
    )
    weights = options.weights("controlnet_processor[0]")
    assert weights is not None
    with pytest.raises(DiffSynthError, match=r"controlnet_processor\[0\]\.detector"):
        weights.check()


def test_a_job_makes_masks_and_makes_them_again_for_another_detector(
    tmp_path: Path, folder: Path, make_job: MakeJob, cli: Cli
) -> None:
    detector = tmp_path / "own"
    write_detector(detector)
    maker = {"name": "person_mask", "model": str(folder / "person_mask"), "detector": str(detector), "threshold": 0}
    job = make_job(2, controlnet_processor=[maker])
    assert cli("extract", job, "-q") == (0, "") and cli("control", job, "-q") == (0, "")
    cache = FrameCache(tmp_path / "out/cache.zarr")
    (name,) = cache.arrays("control/*")
    assert set(np.unique(cache[name][:])) <= {0, 255}
    write_detector(detector, ("dog", "cat"))
    assert "stale" in cli("status", job)[1]
    assert cli("control", job, "-q", "--restart") == (0, "")
    (other,) = set(cache.arrays("control/*")) - {name} or {""}
    assert other and not cache[other][:].any()


def test_the_mask_is_built_for_the_registered_class(folder: Path) -> None:
    assert isinstance(annotator("person_mask", folder), PersonMask)
