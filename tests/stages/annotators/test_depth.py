"""Depth over time, compared with a plain NumPy implementation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest

from stages.annotators.depth import Depth, DepthModel, DepthOptions, VideoDepth
from stages.models.weights import Weights
from tests.conftest import scene
from tests.stages.annotators.random_weights import write_depth_model, write_zoe_depth
from tests.typing import Floats, Image, Images

SIZE = (40, 56)


class Model(TypedDict):
    """Arguments of DepthModel."""

    weights: Weights
    device: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return {"weights": weights(write_depth_model(tmp_path_factory.mktemp("depth"))), "device": "cpu"}


@pytest.fixture(scope="module")
def frames() -> Images:
    return np.stack([np.roll(scene(3 * i, *SIZE), 7 * i, axis=1) // (1 + i % 3) for i in range(7)])


def weights(folder: Path) -> Weights:
    return Weights("controlnet_processor[0]", str(folder), DepthOptions.files)


def over_time(frames: Images, model: Model, **settings: Any) -> Images:
    """All maps, drawn in two chunks from notes made in three."""
    annotator = VideoDepth(DepthModel(**model), **settings)
    notes = np.concatenate([annotator.look(frames[k : k + 3]) for k in range(0, len(frames), 3)])
    assert notes.shape == (len(frames), *annotator.note_shape(*SIZE)) and notes.dtype == np.float32
    measures = annotator.measure(notes)
    return np.concatenate([annotator.draw(list(notes), *part, measures, SIZE) for part in ((0, 4), (4, len(frames)))])


def grey(depth: Floats, low: float, high: float) -> Floats:
    return (depth - low) / (high - low) * 255


def test_normalizing_per_frame_spans_black_to_white(model: Model, frames: Images) -> None:
    maps = Depth(DepthModel(**model), "frame").maps(frames)
    assert maps.shape == frames.shape and (maps[..., 0] == maps[..., 2]).all()
    assert (maps.min(axis=(1, 2, 3)) == 0).all() and (maps.max(axis=(1, 2, 3)) == 255).all()
    depth = DepthModel(**model).depth(frames)
    expected = [grey(frame, frame.min(), frame.max()).round() for frame in depth]
    assert np.abs(maps[..., 0] - np.stack(expected)).max() <= 1


def test_the_videos_range_is_one_for_all_frames(model: Model, frames: Images) -> None:
    maps = over_time(frames, model, common="range")
    depth = DepthModel(**model).depth(frames)
    expected = grey(depth, depth.min(), depth.max()).round()
    assert np.abs(maps[..., 0] - expected).max() <= 1
    assert maps.min() == 0 and maps.max() == 255
    assert (maps.max(axis=(1, 2, 3)) < 255).any()  # one frame alone holds the nearest point


@pytest.mark.parametrize(("sigmoid", "threshold"), [(False, 1.0), (True, 1.0), (True, 0.7)])
def test_depth_video_shifts_every_frame_to_the_videos_mean(
    sigmoid: bool, threshold: float, model: Model, frames: Images
) -> None:
    maps = over_time(frames, model, common="mean", sigmoid=sigmoid, threshold=threshold)
    own = np.stack([grey(frame, frame.min(), frame.max()) for frame in DepthModel(**model).depth(frames)])
    shifted = np.stack([frame - frame.mean() + own.mean() for frame in own])
    if sigmoid:
        shifted = 255 / (1 + np.exp(-5 * (shifted / 127.5 - threshold)))
    assert np.abs(maps[..., 0] - shifted.clip(0, 255).round()).max() <= 1


def pipeline_of_2023(depth: Floats) -> Image:
    """The grey levels that transformers' depth-estimation pipeline gave for one frame's depth, when DiffSynth was."""
    return (depth * 255 / np.max(depth)).astype("uint8")


@pytest.fixture
def far_off(model: Model, frames: Images, monkeypatch: pytest.MonkeyPatch) -> Floats:
    """Depth [K, H, W] in which nothing is at 0, nor is everything in range: resizing overshoots."""
    depth = DepthModel(**model).depth(frames)
    depth += 0.3 * depth.max()
    depth[:, 0, 0] = -0.01 * depth.max()
    monkeypatch.setattr(DepthModel, "depth", lambda self, given: depth[: len(given)])
    return depth


def test_by_diffsynths_name_depth_is_scaled_by_its_maximum_alone(far_off: Floats, model: Model, frames: Images) -> None:
    found = Depth(DepthModel(**model), "max").maps(frames)
    np.testing.assert_array_equal(found[..., 1], np.stack([pipeline_of_2023(frame) for frame in far_off.clip(0)]))
    assert found[:, 1:].min() > 20  # what is farthest is not black


@pytest.mark.parametrize(("sigmoid", "threshold"), [(False, 1.0), (True, 0.7)])
def test_by_diffsynths_name_depth_video_shifts_those_levels(
    sigmoid: bool, threshold: float, far_off: Floats, model: Model, frames: Images
) -> None:
    annotator = VideoDepth(DepthModel(**model), "mean", "max", sigmoid, threshold)
    notes = annotator.look(frames)
    found = annotator.draw(list(notes), 0, len(frames), annotator.measure(notes), SIZE)
    own = np.stack([pipeline_of_2023(frame) for frame in far_off.clip(0)]).astype(float)
    shifted = np.stack([frame - frame.mean() + own.mean() for frame in own])
    if sigmoid:
        shifted = 255 / (1 + np.exp(-5 * (shifted / 127.5 - threshold)))
    np.testing.assert_array_equal(found[..., 0], shifted.clip(0, 255).astype("uint8"))


def test_depth_without_a_range_is_black(model: Model, frames: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DepthModel, "depth", lambda self, given: np.zeros(given.shape[:3], np.float32))
    assert not Depth(DepthModel(**model), "max").maps(frames).any()


def test_references_are_drawn_in_the_videos_terms(model: Model, frames: Images) -> None:
    annotator = VideoDepth(DepthModel(**model), "range")
    notes = annotator.look(frames)
    still = annotator.draw_still(notes[2], annotator.measure(notes), SIZE)
    np.testing.assert_array_equal(still, over_time(frames, model, common="range")[2])


@pytest.mark.parametrize("write", [partial(write_depth_model, metric=True), write_zoe_depth])
def test_models_that_predict_distances_are_inverted(
    write: Callable[[Path], Path], model: Model, frames: Images, tmp_path: Path
) -> None:
    metric = DepthModel(weights(write(tmp_path)), "cpu")
    near_is_small = DepthModel(metric.weights, "cpu", invert=False).depth(frames)
    np.testing.assert_allclose(metric.depth(frames), 1 / np.maximum(near_is_small, 1e-3), rtol=1e-5)
    assert metric.invert and not DepthModel(**model).invert
