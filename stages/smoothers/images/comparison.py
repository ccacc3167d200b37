"""Compare a smoothed frame with its style frame: invented detail, lost structure, unchanged areas.

No ground truth is needed. Frames are uint8 RGB [H, W, 3]; maps are float32 [H, W].
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from stages.base.arrays import Floats, Image, Mask

DETAIL_BLUR = 0.7  # px, so that the noise of single pixels counts less
DETAIL_REACH = 3  # px within which the style may hold the same detail
STRUCTURE_BLUR = 1.0  # px, so that grain counts less than shapes
STRUCTURE_SQUARE = 16  # px a side
STRUCTURE_PERCENTILE = 1  # of the similarity: the worst places, without outliers
STRUCTURE_FLOOR = 58.5  # levels², SSIM's constant for contrast, (0.03 * 255)²
STRUCTURE_LOST = 0.5  # below this, the loss is visible
UNCHANGED_SQUARE = 8  # px a side
UNCHANGED_LEVELS = 1  # may come from rounding


def brightness(frame: Image) -> Floats:
    """Return the mean of the three channels as a map, in levels."""
    return np.asarray(cv2.transform(frame.astype(np.float32), np.full((1, 3), 1 / 3, np.float32)), np.float32)


def detail(brightness: Floats) -> Floats:
    """Return the strength of fine detail as a map: the absolute Laplacian of the slightly blurred brightness."""
    return np.abs(cv2.Laplacian(cv2.GaussianBlur(brightness, (0, 0), DETAIL_BLUR), cv2.CV_32F))


def invented(detail: Floats, style_detail: Floats) -> float:
    """Return how much detail exceeds the strongest detail of the style within DETAIL_REACH pixels, mean level.

    Detail that moved by less than that, or got weaker, counts as 0. Blocks, torn outlines and ghosts do not.
    """
    side = 2 * DETAIL_REACH + 1
    return float(np.maximum(detail - cv2.dilate(style_detail, np.ones((side, side), np.uint8)), 0).mean())


def similarity(brightness: Floats, style_brightness: Floats) -> Floats:
    """Return SSIM's structure and contrast terms over squares as a map, at most 1. Changes of light do not count."""
    a, b = (_blurred(image, STRUCTURE_BLUR) for image in (brightness, style_brightness))
    mean_a, mean_b = _square_mean(a), _square_mean(b)
    variance_a = _square_mean(a * a) - mean_a * mean_a
    variance_b = _square_mean(b * b) - mean_b * mean_b
    covariance = _square_mean(a * b) - mean_a * mean_b
    similar = (2 * covariance + STRUCTURE_FLOOR) / (variance_a + variance_b + STRUCTURE_FLOOR)
    return np.asarray(similar, np.float32)


def structure(similarity: Floats) -> float:
    """Return how much structure the worst places kept: 1 is all of it, 0 none, below 0 is reversed."""
    return float(np.percentile(similarity, STRUCTURE_PERCENTILE))


def lost_structure(structure: Sequence[float]) -> str:
    """Describe which frames lost structure; empty if none did.

    Args:
        structure: one number per frame, from `structure`.
    """
    lost = sum(value < STRUCTURE_LOST for value in structure)
    if not lost:
        return ""
    worst = int(np.argmin(structure))
    return f"lost structure in {lost} of {len(structure)} frames, worst in frame {worst} ({structure[worst]:.2f})"


def unchanged_squares(frame: Image, style: Image) -> Mask:
    """Return which squares of UNCHANGED_SQUARE pixels were left as they were, bool, one per square.

    A square counts if none of its pixels changed by more than UNCHANGED_LEVELS in any channel: single pixels come out
    equal by chance, whole squares do not.
    """
    within = cv2.inRange(cv2.absdiff(frame, style), (0, 0, 0), (UNCHANGED_LEVELS,) * 3)
    square = np.ones((UNCHANGED_SQUARE, UNCHANGED_SQUARE), np.uint8)
    return cv2.erode(within, square, anchor=(0, 0))[::UNCHANGED_SQUARE, ::UNCHANGED_SQUARE] > 0


def _square_mean(values: Floats) -> Floats:
    return np.asarray(cv2.blur(values, (STRUCTURE_SQUARE, STRUCTURE_SQUARE)), np.float32)


def _blurred(values: Floats, deviation: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), deviation), np.float32)
