"""Motion between frames: flow, and what patch matching adds to it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stages.smoothers.images.matching import NEVER, agreement, carry, grain, motion
from stages.smoothers.images.pixels import flow
from tests.stages.smoothers.scenes import SPEED, scene
from tests.typing import Images


@pytest.fixture(scope="module")
def guides() -> Images:
    return scene("light").guides


def test_motion_follows_what_moves(guides: Images) -> None:
    moved = motion(guides[0], guides[2])
    inner = moved[12:-12, 3 * SPEED : -12]
    assert np.abs(inner[..., 0] + 2 * SPEED).mean() < 0.3 and np.abs(inner[..., 1]).mean() < 0.3


def test_patch_matching_finds_what_flow_has_lost(guides: Images) -> None:
    here, there = guides[0].copy(), guides[0].copy()
    patch = np.random.default_rng(3).integers(0, 256, (14, 14, 3), np.uint8)
    patch = cv2.GaussianBlur(patch, (0, 0), 1)
    here[30:44, 40:54] = patch
    there[30:44, 62:76] = patch  # has jumped by more than its own width
    errors = []
    for find in (flow, motion):
        carried, _ = carry(there.astype(np.float32), find(here, there))
        errors.append(((carried - here) ** 2)[32:42, 42:52].mean())
    assert errors[1] < 0.25 * errors[0]


def test_agreement_is_low_where_nothing_fits_and_outside(guides: Images) -> None:
    still = np.zeros((*guides[0].shape[:2], 2), np.float32)
    changed = guides[0].copy()
    changed[20:60, 20:60] = 255 - changed[20:60, 20:60]
    weight = agreement(guides[0], changed, still)
    assert weight.dtype == np.float32
    assert weight[30:50, 30:50].mean() < 0.2 and weight[70:].min() > 0.99
    outside = agreement(guides[0], guides[0], still + 1000)
    np.testing.assert_allclose(outside, NEVER)


@pytest.mark.parametrize("deviation", [0, 5, 15])
def test_grain_is_distinguished_from_detail(guides: Images, deviation: int) -> None:
    # Clear of black and white, where noise is cut off.
    noisy = 64 + guides[0] / 2 + np.random.default_rng(0).normal(0, deviation, guides[0].shape)
    found = grain(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    assert found.item() == pytest.approx(deviation**2, rel=0.25, abs=2)


def test_pictures_too_small_for_flow_stand_still() -> None:
    tiny = np.zeros((4, 6, 3), np.uint8)
    assert flow(tiny, tiny).shape == (4, 6, 2)
    assert motion(tiny, tiny).shape == (4, 6, 2)


def test_threads_do_not_change_the_result(guides: Images) -> None:
    before = cv2.getNumThreads()
    try:
        found = []
        for threads in (1, 2, 4):
            cv2.setNumThreads(threads)
            found.append(motion(guides[0], guides[3]))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
