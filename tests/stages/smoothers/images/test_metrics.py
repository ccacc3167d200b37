"""Metrics detect flicker and blur, and do not mistake motion for flicker."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from stages.smoothers.images.matching import carry
from stages.smoothers.images.metrics import BEST_PSNR, correspondence, measure, psnr
from tests.conftest import scene
from tests.typing import Image

SIZE = 96


@pytest.fixture(scope="module")
def guide() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (SIZE, SIZE + 40, 3)).astype(np.float32), (0, 0), 3)
    picture = np.clip((picture - picture.mean()) * 5 + 128, 0, 255).astype(np.uint8)
    return [picture[:, 2 * t : 2 * t + SIZE] for t in range(9)]  # everything moves 2 px to the left


def brighter(frames: list[np.ndarray], levels: list[int]) -> list[np.ndarray]:
    return [np.clip(frame.astype(int) + level, 0, 255).astype(np.uint8) for frame, level in zip(frames, levels)]


def test_flow_finds_what_moved(guide: list[Image]) -> None:
    motion, seen = correspondence(guide[0], guide[3])
    assert seen.mean() > 0.85
    np.testing.assert_allclose(np.median(motion[seen], axis=0), (-6, 0), atol=0.1)
    carried, _ = carry(guide[3].astype(np.float32), motion)
    assert np.abs(carried - guide[0])[seen].mean() < 3


def test_motion_is_no_flicker_and_flicker_is(guide: list[Image]) -> None:
    levels = [0, 20, -10, 15, -20, 5, 0, 18, -12]
    still, flickering = (curves.summary() for curves in measure(guide, [guide, brighter(guide, levels)]))
    assert still["warp1"] < 0.3 and still["warp5"] < 0.6
    assert flickering["warp1"] > 10 * still["warp1"]
    assert flickering["flicker"] == pytest.approx(np.diff(levels).std(), rel=0.1)  # a little is clipped
    assert still["flicker"] < 2


def test_flicker_of_each_pair_is_its_change_of_brightness_whatever_moves(guide: list[Image]) -> None:
    levels, ramp = [0, 20, -10, -10, -20, 5, 0, 18, -12], np.arange(SIZE + 40)[None, :, None]
    moving = [(frame // 2 + ramp[:, 2 * t : 2 * t + SIZE]).astype(np.uint8) for t, frame in enumerate(guide)]
    still, flickering = measure(moving, [moving, brighter(moving, levels)])
    assert max(still.flicker) < 0.2 < 1.5 < np.diff(still.luminance).min()
    np.testing.assert_allclose(flickering.flicker, np.abs(np.diff(levels)), rtol=0.05, atol=0.2)


def test_numbers_are_those_of_their_definitions(guide: list[Image]) -> None:
    style = brighter(guide, [0, 9, 0, 9, 0, 9, 0, 9, 0])
    curves, of_style = measure(guide, [guide, style])
    steps = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).mean() for frame in guide]
    np.testing.assert_allclose(curves.luminance, steps)
    variances = [cv2.Laplacian(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var() for frame in guide]
    np.testing.assert_allclose(curves.sharpness, variances)
    assert curves.summary(of_style)["sharp"] == pytest.approx(np.mean(variances) / np.mean(of_style.sharpness))
    assert [len(curves.warp[gap]) for gap in (1, 5)] == [8, 4]


def test_likeness_to_a_reference(guide: list[Image]) -> None:
    video, reference = measure(guide, [brighter(guide, [3] * 9)], guide)
    found = video.summary(reference=reference)
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / 9), abs=0.3)
    assert 0.9 < found["ssim"] < 1.0 and found["sharp_reference"] == pytest.approx(1.0, abs=0.05)
    same, _ = measure(guide, [guide], guide)
    assert same.summary()["psnr"] == BEST_PSNR == psnr(0.0) and same.summary()["ssim"] == pytest.approx(1.0)


def test_blur_is_seen(guide: list[Image]) -> None:
    blurred = [np.asarray(cv2.GaussianBlur(frame, (0, 0), 2), np.uint8) for frame in guide]
    curves, of_style = measure(guide, [blurred, guide])
    assert curves.summary(of_style)["sharp"] < 0.5


def test_what_cannot_be_compared_is_left_out() -> None:
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    (curves,) = measure([black, white], [[black, white]])
    assert (
        np.isnan([*curves.warp[1], *curves.flicker]).all()
        and "warp1" not in curves.summary()
        and "flicker" in curves.summary()
    )
    (alone,) = measure([black], [[black]])
    assert alone.summary() == {"sharpness": 0}


def test_a_style_shows_what_was_lost_and_invented(guide: list[Image]) -> None:
    rng = np.random.default_rng(1)
    style = [np.clip(frame + rng.normal(0, 8, frame.shape), 0, 255).astype(np.uint8) for frame in guide]
    blocks = [frame.copy() for frame in style]
    blocks[4][30:40, 30:40] = 255 - blocks[4][30:40, 30:40]
    blurred = [np.asarray(cv2.GaussianBlur(frame, (0, 0), 8), np.uint8) for frame in style]
    *curves, of_style = measure(guide, [style, blocks, blurred], style=style)
    same, damaged, soft = (curve.summary(of_style) for curve in curves)
    assert same["structure"] == same["structure_min"] == pytest.approx(1) and same["invented"] == 0
    assert same["own_warp"] == same["own_warp_style"] and same["lost_frames"] == 0
    assert damaged["lost_frames"] == 1 and damaged["worst_frame"] == 4 and damaged["structure_min"] < 0.5
    assert curves[1].invented[4] > 0 == curves[1].invented[3]
    assert soft["lost_frames"] == 9 and soft["own_warp"] < same["own_warp"]  # why warp error alone is fooled
    assert not of_style.structure and "invented" not in of_style.summary()


def test_own_warp_does_not_depend_on_the_guide(guide: list[Image]) -> None:
    style = [guide[0]] * 9
    flickering = brighter(list(np.clip(style, 10, 245)), [0, 10, 0, 10, 0, 10, 0, 10, 0])
    still, moving = (measure(video, [flickering], style=style) for video in (style, guide))
    assert still[0].own_warp == moving[0].own_warp and still[0].warp[1] != moving[0].warp[1]
    assert still[0].own_warp == pytest.approx([1e3 * (10 / 255) ** 2] * 8, rel=1e-3)
    assert still[1].own_warp == pytest.approx([0] * 8, abs=1e-6)


def test_style_and_reference_come_last(guide: list[Image]) -> None:
    shown = [guide, brighter(guide, [5] * 9)]
    video, of_style, of_reference = measure(guide, shown[:1], brighter(guide, [9] * 9), style=shown[1])
    assert video.error and video.structure and of_style.detail and not of_reference.detail
    assert video.luminance[0] < of_style.luminance[0] < of_reference.luminance[0]


def test_frames_are_read_once_and_not_kept() -> None:
    alive, most = [0], [0]

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive[0] -= 1

    def frames(count: int) -> Iterator[Image]:
        for index in range(count):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield scene(index).view(Counted)

    measure(frames(40), [frames(40)], style=frames(40))
    assert most[0] <= 3 * 8  # six of each, and those on their way
