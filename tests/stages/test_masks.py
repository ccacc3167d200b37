"""Masks of videos: reading, growing and feathering them, and compositing."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.base.errors import UsageError
from stages.compositing import composite
from stages.masks import Mask, check_mask, latents_inside, mask_shots
from stages.video import Selection
from tests.conftest import scene, write_images


def square() -> np.ndarray:
    image = np.zeros((40, 40, 3), np.uint8)
    image[16:24, 16:24] = 255
    return image


def test_a_mask_grows_shrinks_and_is_inverted() -> None:
    assert (Mask("m").soften(square()) > 0).sum() == 64
    grown, shrunk = Mask("m", grow=3).soften(square()), Mask("m", grow=-2).soften(square())
    rows = [mask[20].nonzero()[0].tolist() for mask in (grown, shrunk)]
    assert rows == [[*range(13, 27)], [*range(18, 22)]]
    np.testing.assert_array_equal(Mask("m", invert=True).soften(square()), 255 - Mask("m").soften(square()))


@pytest.mark.parametrize("feather", [1, 4, 9])
def test_a_feathered_edge_has_the_width_that_was_asked_for(feather: int) -> None:
    soft = Mask("m", feather=feather).soften(square())[20].astype(int)
    hard = Mask("m").soften(square())[20].astype(int)
    changed = (soft != hard).nonzero()[0]
    assert changed.min() >= 16 - feather and changed.max() < 24 + feather
    assert (np.diff(soft[:20]) >= 0).all() and soft[0] == 0


def test_black_keeps_the_background_and_white_the_image_exactly() -> None:
    image, background = scene(0)[None], scene(9)[None]
    for level, expected in ((0, background), (255, image)):
        masks = np.full((1, 64, 64), level, np.uint8)
        np.testing.assert_array_equal(composite(image, background, masks), expected)
    half = composite(image, background, np.full((1, 64, 64), 128, np.uint8)).astype(int)
    assert np.abs(half - (image.astype(int) + background) / 2).max() <= 1


def test_a_latent_is_inside_if_any_of_its_pixels_is() -> None:
    masks = np.zeros((1, 16, 16), np.uint8)
    masks[0, 7, 8] = 1
    assert latents_inside(masks, 8).tolist() == [[[False, True], [False, False]]]


def test_one_image_is_the_mask_of_all_frames_and_a_folder_has_one_per_frame(tmp_path: Path) -> None:
    write_images(tmp_path / "masks", [square(), 255 - square()])
    shots = mask_shots(str(tmp_path / "masks/0.png"), Selection(), None, 1000)
    np.testing.assert_array_equal(next(shots).image(), next(shots).image())
    np.testing.assert_array_equal(
        next(mask_shots(str(tmp_path / "masks"), Selection(), None, 1)).image(), 255 - square()
    )
    check_mask("mask", str(tmp_path / "masks/0.png"), Selection(), 5)
    check_mask("mask", str(tmp_path / "masks"), Selection(), 1)
    for used in (Selection(), Selection(interval=2)):
        with pytest.raises(UsageError, match=r"regions\[0\].mask: .* holds 2 masks for 3 used frames"):
            check_mask("regions[0].mask", str(tmp_path / "masks"), used, 3)
    with pytest.raises(UsageError, match="fewer masks than frames"):
        list(mask_shots(str(tmp_path / "masks"), Selection(), None, 0))
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((8, 8), 65535, np.uint16))
    np.testing.assert_array_equal(next(mask_shots(str(tmp_path / "deep.png"), Selection(), None, 0)).image(), 255)


def test_masks_of_the_used_frames_are_used(tmp_path: Path) -> None:
    write_images(tmp_path / "masks", [np.full((8, 8, 3), 10 * k, np.uint8) for k in range(10)])
    for selection, fps, expected in (
        (Selection(interval=3, most=3), None, [0, 30, 60]),
        (Selection(start=0.2, end=0.75), Fraction(10), [20, 30, 40, 50, 60, 70]),
    ):
        shots = islice(mask_shots(str(tmp_path / "masks"), selection, fps, 0), len(expected))
        assert [int(shot.image()[0, 0, 0]) for shot in shots] == expected


def test_a_large_mask_grows_far_in_little_time() -> None:
    mask = np.zeros((512, 512, 3), np.uint8)
    mask[250:260, 250:260] = 255
    grown = Mask("m", grow=200).soften(mask)
    assert grown[255, 50] == grown[255, 459] == 255 and grown[255, 49] == grown[255, 460] == 0
    assert (Mask("m", grow=-200).soften(255 - mask) == 255).any() and not Mask("m", grow=-9).soften(mask).any()
