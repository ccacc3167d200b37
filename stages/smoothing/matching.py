"""What moved where between two frames of the guide, and images carried along it.

Optical flow knows where smooth motion leads, to a fraction of a pixel, but is lost where things jump or come out from
behind others. Patch matching finds those, in whole pixels. So flow is where the search starts, and where the search
ends somewhere else, it is believed.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from native import binding
from stages.base.errors import DiffSynthError

PATCH = 5  # px
SEARCH_RADIUS = 64  # px around a match that the random search tries: how far things may jump
SWEEPS = 2
JUMP = 1.0  # px between flow and patch match beyond which they disagree
SMALLEST = 12  # px a side: optical flow cannot read smaller pictures
LIKENESS = 8.0  # levels (root mean square) of the guide's colours at which a carried pixel's weight falls to 1/√e
GRAIN = 9  # px a side over which noise is measured
EVEN = 20  # per cent of a frame, at least, show nothing but noise
SECOND_DIFFERENCES = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)  # blind to slopes and straight edges
NEVER = 1e-6  # the weight of what does not fit at all: a pixel that nothing fits is its own mean


def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Optical flow (DIS, Kroeger et al. 2016) from frame a to b, so that a(p) looks like b(p + flow(p)), float32
    [H, W, 2], x then y."""
    if min(a.shape[:2]) < SMALLEST:
        return np.zeros((*a.shape[:2], 2), np.float32)
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (a, b)]
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    return estimator.calc(*grey, None)


def motion(guide: np.ndarray, other: np.ndarray, patch_size: int = PATCH, threads: int = 0) -> np.ndarray:
    """As `flow`, where that leads to patches that are not alike corrected by a nearest-neighbour field. `threads` of
    the patch-matching library, 0 = all."""
    smooth = flow(guide, other)
    found = field(guide, other, smooth, patch_size, threads=threads)[..., ::-1] - _places(*guide.shape[:2])
    jumped = (np.abs(found - smooth).max(axis=2) > JUMP).astype(np.float32)
    most = cv2.blur(jumped, (PATCH, PATCH)) > 0.5  # single pixels jump by chance
    return np.where(most[..., None], found, smooth).astype(np.float32)


def field(guide: np.ndarray, other: np.ndarray, start: np.ndarray, patch_size: int = PATCH, **where: Any) -> np.ndarray:
    """The nearest-neighbour field int32 [H, W, 2] (row, column) from `guide` to `other`, searched from the motion
    `start` on. `where`: back end and threads, as of `native.binding.match`."""
    places = np.rint(start + _places(*guide.shape[:2]))[..., ::-1]  # the library clamps them to the picture
    try:
        return binding.match(
            np.ascontiguousarray(other)[None], np.ascontiguousarray(guide)[None],
            patch_sizes=(patch_size,) * SWEEPS, patch_match_iterations=1, pyramid_levels=1,
            search_radius=SEARCH_RADIUS, start="given", nnf=np.ascontiguousarray(places, np.int32)[None], **where,
        ).nnf[0]  # fmt: skip
    except binding.EbsynthError as error:
        raise DiffSynthError(str(error)) from error


def carry(
    image: np.ndarray, motion: np.ndarray, interpolation: int = cv2.INTER_LINEAR
) -> tuple[np.ndarray, np.ndarray]:
    """`image` sampled at p + motion(p), and which samples lie inside it, bool [H, W]."""
    height, width = image.shape[:2]
    x, y = np.moveaxis(_places(*motion.shape[:2]) + motion, 2, 0)
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    return cv2.remap(image, x, y, interpolation, borderMode=cv2.BORDER_REPLICATE), inside


def agreement(guide: np.ndarray, other: np.ndarray, motion: np.ndarray, strictness: float = 1) -> np.ndarray:
    """How well `other`, carried, fits the guide's frame, float32 [H, W], 1 at best, NEVER outside. `strictness`: how
    much it counts that colours differ by more than by noise."""
    carried, inside = carry(other.astype(np.float32), motion)
    noise = grain(guide) + grain(other)
    difference = np.maximum(cv2.blur(mean_square(carried - guide), (PATCH, PATCH)) - noise, 0)
    return np.where(inside, np.exp(strictness * difference / (-2 * LIKENESS**2)), 0).astype(np.float32) + np.float32(
        NEVER
    )


def grain(image: np.ndarray) -> float:
    """The variance of the noise of an image, levels²: what is left of its evenest parts when all that is smooth has
    been taken out (Immerkær 1996)."""
    edges = cv2.filter2D(image.astype(np.float32), -1, SECOND_DIFFERENCES, borderType=cv2.BORDER_REFLECT)
    return float(np.percentile(cv2.blur(mean_square(edges), (GRAIN, GRAIN)), EVEN) / (SECOND_DIFFERENCES**2).sum())


def mean_square(values: np.ndarray) -> np.ndarray:
    """Over channels: [H, W] of [H, W, C]."""
    return np.asarray(np.einsum("hwc,hwc->hw", values, values) / np.float32(values.shape[2]))


def _places(height: int, width: int) -> np.ndarray:
    """Every pixel's own place, float32 [H, W, 2], x then y."""
    return np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=2)
