"""Following an object, against transformers' own loop over a whole video in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Sam2ImageProcessor, Sam2VideoModel, Sam2VideoProcessor, Sam2VideoVideoProcessor

from stages.annotators.pretrained import FILES
from stages.annotators.tracking import Tracker
from stages.models.weights import Weights
from tests.conftest import scene
from tests.stages.annotators.people_networks import SAM_SIDE, write_sam
from tests.typing import Image

FRAMES = 24  # more than the networks remember
POINTS, OTHERS = [(30.0, 20.0), (36.0, 24.0)], [(70.0, 40.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sam(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def frames() -> list[Image]:
    return [scene(index, 48, 80) for index in range(FRAMES)]


def test_masks_are_those_of_the_whole_video(folder: Path, frames: list[Image]) -> None:
    tracker = Tracker(Weights("model", str(folder), FILES), POINTS, OTHERS, "cpu")
    found = np.stack([*tracker.masks(frames)])
    network = Sam2VideoModel.from_pretrained(folder).eval()
    side = {"height": SAM_SIDE, "width": SAM_SIDE}
    images = Sam2ImageProcessor.from_pretrained(folder)
    process: Any = Sam2VideoProcessor(images, Sam2VideoVideoProcessor(size=side), target_size=SAM_SIDE)
    session = process.init_video_session(video=frames)
    process.add_inputs_to_inference_session(
        session, 0, 1, input_points=[[[*map(list, POINTS), *map(list, OTHERS)]]], input_labels=[[[1, 1, 0]]]
    )
    for number, output in enumerate(network.propagate_in_video_iterator(session, start_frame_idx=0)):
        (mask,) = process.post_process_masks([output.pred_masks], [(48, 80)])
        expected = 255 * mask[0, 0].numpy().astype(np.uint8)
        assert np.mean(found[number] != expected[..., None]) < 0.01, number  # frames are resized in another way
    assert 0.1 < np.mean(found > 0) < 0.9 and number == FRAMES - 1


def test_memory_does_not_grow(folder: Path, frames: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[int, int]] = []
    forget = Tracker._forget

    def watched(session: Any, number: int, config: Any) -> None:
        forget(session, number, config)
        pixels = sum(frame.numel() for frame in session.processed_frames.values())
        kept.append((pixels, len(session.output_dict_per_obj[0]["non_cond_frame_outputs"])))

    monkeypatch.setattr(Tracker, "_forget", staticmethod(watched))
    whole = np.stack([*Tracker(Weights("model", str(folder), FILES), POINTS, [], "cpu").masks(frames)])
    assert kept[-1] == kept[-5] and kept[-1][0] == 0 and kept[-1][1] <= 16
    monkeypatch.setattr(Tracker, "_forget", staticmethod(lambda session, number, config: None))
    everything = np.stack([*Tracker(Weights("model", str(folder), FILES), POINTS, [], "cpu").masks(frames)])
    np.testing.assert_array_equal(whole, everything)
    assert torch.is_inference_mode_enabled() is False
