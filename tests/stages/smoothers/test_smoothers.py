"""The contract of all smoothers, and the arithmetic of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from PIL import ImageEnhance

from native import binding
from stages.smoothers import SMOOTHERS, Enhancement, build, enhance
from stages.smoothers.images.light import WindowLight
from tests.typing import Image, Images, Keys

CONFIGS: dict[str, list[Keys]] = {  # in addition to the defaults
    "TemporalMeanSmoother": [{"radius": 2}],
    "PatchBlendSmoother": [{"window": 3}],
    "EbsynthSmoother": [{"smooth_index": [-1, 2], "patch_size": 5}],
    "PySynthSmoother": [{"speed": "slowest", "window_size": 2}, {"window_size": 3}, {"window_size": 10_000}],
    "VideoPatchMatchSmoother": [{"postprocessing": {"contrast": 1.5, "sharpness": 3.0}}],
}
CASES = [(name, config) for name in SMOOTHERS.built_in for config in ({}, *CONFIGS.get(name, []))]
EXACT = ("TemporalMeanSmoother",)  # still videos are not changed at all


class Counted(list[Image]):
    """Frames that count how often one of them is read."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        Counted.reads += 1
        return super().__getitem__(index)


@pytest.fixture
def video() -> tuple[Counted, Images]:
    noise = np.random.default_rng(0).integers(0, 256, (11, 16, 24, 3), np.uint8)
    return Counted(noise), noise


@pytest.mark.parametrize(("name", "config"), CASES)
def test_chunks_do_not_change_the_result(name: str, config: Keys, video: tuple[Counted, Images]) -> None:
    frames, _ = video
    whole = build(name, config, frames, frames).smooth(0, 11)
    assert whole.dtype == np.uint8 and whole.shape == (11, 16, 24, 3)
    for size in (1, 8):
        smoother = build(name, config, frames, frames)
        parts = [smoother.smooth(start, min(start + size, 11)) for start in range(0, 11, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    fresh = build(name, config, frames, frames)  # as after a kill
    np.testing.assert_array_equal(fresh.smooth(7, 9), whole[7:9])
    np.testing.assert_array_equal(fresh.smooth(2, 4), whole[2:4])  # out of order


@pytest.mark.parametrize(("name", "config"), CASES)
def test_the_number_of_matched_pairs_is_known_ahead(
    name: str, config: Keys, video: tuple[Counted, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def count(owner: object, function: str, pairs: Callable[..., int]) -> None:
        real = getattr(owner, function)

        def counting(*given: object, **more: object) -> object:
            found.append(pairs(*given))
            return real(*given, **more)

        monkeypatch.setattr(owner, function, counting)

    count(binding, "match", lambda sources, *_: len(sources))
    count(binding, "synthesize", lambda styles, *_: len(styles))
    count(WindowLight, "_link", lambda self, pairs: len(pairs))
    build(name, config, video[0], video[0]).smooth(0, 11)
    assert sum(found) == SMOOTHERS[name].model_validate(config).pairs(11)
    assert bool(found) == (name != "TemporalMeanSmoother")


@pytest.mark.parametrize("name", SMOOTHERS.built_in)
def test_a_video_that_stands_still_is_not_changed(name: str) -> None:
    frames = [np.random.default_rng(1).integers(0, 256, (16, 24, 3), np.uint8)] * 5
    smoothed = build(name, {}, frames, frames).smooth(0, 5)
    assert np.abs(smoothed.astype(int) - np.stack(frames)).mean() <= (0 if name in EXACT else 0.5)


@pytest.mark.parametrize("radius", [0, 1, 4, 30, 1000])
def test_temporal_mean_is_the_mean_of_clamped_neighbours(radius: int, video: tuple[Counted, Images]) -> None:
    frames, noise = video
    expected = []
    for i in range(11):
        window = noise[np.clip(np.arange(i - radius, i + radius + 1), 0, 10)]
        expected.append(np.rint(window.astype(np.float64).mean(axis=0)))
    found = build("TemporalMeanSmoother", {"radius": radius}, frames, frames).smooth(0, 11)
    np.testing.assert_array_equal(found, np.stack(expected))


@pytest.mark.parametrize("radius", [100, 1_000_000_000])
def test_a_wide_window_reads_each_frame_a_few_times_only(radius: int, video: tuple[Counted, Images]) -> None:
    frames, noise = video
    Counted.reads = 0
    smoother = build("TemporalMeanSmoother", {"radius": radius}, frames, frames)
    parts = [smoother.smooth(start, min(start + 2, 11)) for start in range(0, 11, 2)]
    assert Counted.reads <= 11 + 2 + 2 * 11
    both_ends = (noise[0].astype(float) + noise[-1]) / 2  # what is left of a window that is much longer than the video
    assert np.abs(np.concatenate(parts) - both_ends).max() <= 0.5 + 255 * 11 / radius


def test_frames_may_be_enhanced_before_they_are_smoothed_too(video: tuple[Counted, Images]) -> None:
    frames, noise = video
    factors: Enhancement = {"contrast": 1.5, "sharpness": 3.0}
    found = build(
        "VideoPatchMatchSmoother", {"postprocessing": {"contrast": 1.5, "sharpness": 3.0}}, frames, frames
    ).smooth(4, 6)
    plain = build("PySynthSmoother", {}, frames, [enhance(frame, factors) for frame in noise]).smooth(4, 6)
    np.testing.assert_array_equal(found, np.stack([enhance(frame, factors) for frame in plain]))


@pytest.mark.parametrize("order", [("contrast", "sharpness"), ("sharpness", "contrast")])
def test_postprocessing_is_pillows_in_the_order_given(order: tuple[str, ...], video: tuple[Counted, Images]) -> None:
    frames, noise = video
    factors = {"contrast": 1.5, "sharpness": 5.0}
    config: Keys = {"radius": 0, "postprocessing": {name: factors[name] for name in order}}
    image = PilImage.fromarray(noise[4])
    for name in order:
        image = getattr(ImageEnhance, name.capitalize())(image).enhance(factors[name])
    found = build("TemporalMeanSmoother", config, frames, frames).smooth(4, 5)
    np.testing.assert_array_equal(found[0], np.asarray(image))


def test_ebsynth_carries_neighbours_along_the_guides_motion() -> None:
    rng = np.random.default_rng(2)
    world = cv2.GaussianBlur(rng.integers(0, 256, (40, 72, 3)).astype(np.float32), (0, 0), 2)
    picture: Images = np.clip((world - 128) * 4 + 128, 0, 255).astype(np.uint8)
    guides = [picture[:, 4 * t : 4 * t + 48] for t in range(5)]  # moves 4 px a frame
    painted = [255 - guide for guide in guides]
    lights = (30, -30, 20, -20, 0)
    styles = [np.clip(image.astype(int) + light, 0, 255).astype(np.uint8) for image, light in zip(painted, lights)]
    config: Keys = {"smooth_index": [-2, -1, 1, 2], "patch_size": 5}
    smoothed = build("EbsynthSmoother", config, guides, styles).smooth(2, 3)[0]
    error = np.abs(smoothed.astype(int) - painted[2]).mean()
    assert error < 0.6 * np.abs(styles[2].astype(int) - painted[2]).mean()  # the lights' mean is 0
    mean = build("TemporalMeanSmoother", {"radius": 2}, guides, styles).smooth(2, 3)[0]
    assert error < 0.5 * np.abs(mean.astype(int) - painted[2]).mean()
