"""Comparisons of a result with its style frame, checked with SciPy and known answers."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from stages.smoothers.images.comparison import (
    brightness,
    detail,
    invented,
    lost_structure,
    similarity,
    structure,
    unchanged_squares,
)
from tests.typing import Image

SIZE = 96


@pytest.fixture(scope="module")
def style() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.float32)
    picture = cv2.GaussianBlur(noise, (0, 0), 2)
    levels: Image = np.clip((picture - picture.mean()) * 4 + 128, 20, 235).astype(np.uint8)
    return levels


def kept(frame: np.ndarray, style: np.ndarray) -> float:
    return structure(similarity(brightness(frame), brightness(style)))


def made_up(frame: np.ndarray, style: np.ndarray) -> float:
    return invented(detail(brightness(frame)), detail(brightness(style)))


def pasted(style: np.ndarray) -> np.ndarray:
    """The style with blocks that belong elsewhere, as patch matching leaves them behind."""
    frame = style.copy()
    for y, x in np.random.default_rng(1).integers(0, SIZE - 5, (90, 2)):
        frame[y : y + 5, x : x + 5] = 255 - style[y, x]
    return frame


def test_an_equal_frame_keeps_all_structure_and_invents_nothing(style: Image) -> None:
    assert kept(style, style) == pytest.approx(1, abs=1e-6) and made_up(style, style) == 0
    assert unchanged_squares(style, style).all()


def test_light_is_not_structure(style: Image) -> None:
    brighter = np.clip(style.astype(int) + 15, 0, 255).astype(np.uint8)
    assert kept(brighter, style) == pytest.approx(1, abs=1e-3) and made_up(brighter, style) < 1e-6


def test_blur_loses_structure_and_invents_nothing(style: Image) -> None:
    blurred = cv2.GaussianBlur(style, (0, 0), 5)
    assert kept(blurred, style) < 0.5 and made_up(blurred, style) < 1e-3


def test_blocks_lose_structure_and_are_invented(style: Image) -> None:
    assert kept(pasted(style), style) < 0.5 and made_up(pasted(style), style) > 0.5


def test_detail_that_moved_by_less_than_three_pixels_is_not_invented(style: Image) -> None:
    framed = np.pad(style, ((0, 0), (12, 12), (0, 0)))
    near, far = (np.roll(framed, shift, axis=1) for shift in (2, 9))
    assert made_up(near, framed) < 1e-3 and made_up(far, framed) > 0.05


def test_similarity_is_that_of_its_definition(style: Image) -> None:
    frame = pasted(style)
    a, b = (ndimage.gaussian_filter(image.mean(axis=2), 1, mode="mirror") for image in (frame, style))
    found = similarity(brightness(frame), brightness(style))
    for y, x in ((8, 8), (40, 61), (88, 30)):
        square = slice(y - 8, y + 8), slice(x - 8, x + 8)
        covariance = np.cov(a[square].ravel(), b[square].ravel(), bias=True)
        expected = (2 * covariance[0, 1] + 58.5) / (np.trace(covariance) + 58.5)
        assert found[y, x] == pytest.approx(expected, abs=1e-3)


def test_invented_detail_is_that_of_its_definition(style: Image) -> None:
    frame = pasted(style)

    def strength(image: Image) -> NDArray[np.float64]:
        smooth = ndimage.gaussian_filter(image.mean(axis=2), 0.7, mode="mirror")
        return np.asarray(np.abs(ndimage.laplace(smooth, mode="mirror")), np.float64)

    expected = np.maximum(strength(frame) - ndimage.maximum_filter(strength(style), 7), 0).mean()
    assert made_up(frame, style) == pytest.approx(expected, rel=1e-3)


def test_a_square_is_unchanged_only_as_a_whole(style: Image) -> None:
    frame = np.clip(style.astype(int) + np.random.default_rng(2).integers(-1, 2, style.shape), 0, 255).astype(np.uint8)
    frame[20, 50, 1] = style[20, 50, 1] + 2
    expected = np.ones((12, 12), bool)
    expected[2, 6] = False
    np.testing.assert_array_equal(unchanged_squares(frame, style), expected)
    assert unchanged_squares(style[:20, :30], style[:20, :30]).shape == (3, 4)  # ragged at the borders


def test_lost_structure_is_reported_in_words() -> None:
    assert lost_structure([0.9, 0.5, 0.7]) == lost_structure([]) == ""
    assert lost_structure([0.9, 0.45, 0.31, 0.8]) == "lost structure in 2 of 4 frames, worst in frame 2 (0.31)"
