"""PatchBlendSmoother on flicker with known ground truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stages.smoothers import build
from stages.smoothers.images.metrics import measure
from stages.smoothers.patch_blend import PatchBlendSmoother
from tests.stages.smoothers.scenes import Scene, scene, squared_error
from tests.typing import Images, Keys

FRAMES = 12
SOME = slice(4, 8)  # in the middle, where a frame has neighbours on both sides


def sharpness(video: np.ndarray) -> float:
    return float(np.mean(measure(video, [video])[0].sharpness))


def warp_error(guides: np.ndarray, video: np.ndarray) -> float:
    return measure(guides, [video])[0].summary()["warp1"]


@pytest.fixture(scope="module")
def lit() -> Scene:
    return scene("light")


@pytest.fixture(scope="module")
def swimming() -> Scene:
    return scene("swimming")


def smooth(clip: Scene, config: Keys | None = None, frames: slice = slice(0, FRAMES)) -> Images:
    return build("PatchBlendSmoother", config or {}, clip.guides, clip.styles).smooth(frames.start, frames.stop)


def test_flickering_light_goes_and_detail_stays(lit: Scene) -> None:
    smoothed = smooth(lit)
    brightness = [np.diff(video.mean(axis=(1, 2, 3))).std() for video in (smoothed, lit.styles)]
    assert brightness[0] < 0.1 * brightness[1]
    assert squared_error(smoothed, lit.truth) < 0.35 * squared_error(lit.styles, lit.truth)
    sharp, truth = sharpness(smoothed), sharpness(lit.truth)
    assert 0.9 * truth < sharp < truth + 0.3 * (sharpness(lit.styles) - truth)  # what is above the truth is noise


def test_swimming_detail_comes_to_rest_and_is_not_blurred(swimming: Scene) -> None:
    smoothed = smooth(swimming)
    assert warp_error(swimming.guides, smoothed) < 0.35 * warp_error(swimming.guides, swimming.styles)
    assert squared_error(smoothed, swimming.truth) < 0.5 * squared_error(swimming.styles, swimming.truth)
    assert sharpness(smoothed) > 0.8 * sharpness(swimming.styles)


def test_strength_0_is_the_input_and_half_is_between(lit: Scene) -> None:
    none, half, full = (smooth(lit, {"strength": strength}, SOME).astype(int) for strength in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(none, lit.styles[SOME])
    inner = (full > 0) & (full < 255)
    assert np.abs(half - (none + full) / 2)[inner].max() <= 1


def test_detail_goes_from_consensus_to_own(swimming: Scene) -> None:
    errors = [
        warp_error(swimming.guides[SOME], smooth(swimming, {"detail": detail}, SOME))
        for detail in (0.0, 0.5, 0.75, 1.0)
    ]
    assert errors[0] <= errors[1] < errors[2] < errors[3]


def test_grain_in_the_guide_hides_no_match(swimming: Scene) -> None:
    grain = np.random.default_rng(0).normal(0, 12, swimming.guides.shape)
    grainy = np.clip(np.rint(swimming.guides + grain), 0, 255).astype(np.uint8)
    clean, led_by_grain, strict = (
        squared_error(smooth(replace(swimming, guides=guides), config, SOME), swimming.truth[SOME])
        for guides, config in ((swimming.guides, {}), (grainy, {}), (grainy, {"guide_weight": 30}))
    )
    assert led_by_grain < 1.2 * clean
    assert strict > 1.5 * clean


def test_a_frame_that_is_wrong_does_not_spread(lit: Scene) -> None:
    styles = lit.truth.copy()
    styles[6, 30:60, 50:90] = (0, 255, 0)  # painted wrongly in one frame only
    smoothed = dict(zip((5, 6, 7), smooth(replace(lit, styles=styles), frames=slice(5, 8)), strict=True))
    for neighbour in (5, 7):
        assert squared_error(smoothed[neighbour], lit.truth[neighbour]) < 0.02 * squared_error(styles[6], lit.truth[6])


def test_nothing_is_kept_after_the_last_frame(lit: Scene) -> None:
    smoother = build("PatchBlendSmoother", {}, lit.guides[:5], lit.styles[:5])
    assert isinstance(smoother, PatchBlendSmoother)
    smoother.smooth(0, 5)
    kept = [smoother.lit, smoother.lines, smoother.grains, smoother.light.small, smoother.light.sums.runs]
    assert not any(kept)
