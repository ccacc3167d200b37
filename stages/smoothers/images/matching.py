"""Motion between two frames of the guide, and warping along it.

Optical flow tracks smooth motion with subpixel precision, but fails where objects jump or appear from behind others.
Patch matching finds these, in whole pixels. So the search starts at the flow, and replaces it where it ends elsewhere.

Arrays are those of stages.smoothers.images.pixels. On a GPU, frames and results may be stacks.
"""

from __future__ import annotations

from typing import Unpack

from array_api_compat import array_namespace

from stages.smoothers.images.library import library_errors
from stages.smoothers.images.pixels import (
    Array,
    Where,
    box,
    floats,
    flow,
    match,
    mean_square,
    percentile,
    positions,
    warp,
)

PATCH = 5  # px
SEARCH_RADIUS = 64  # px of the random search around a match: how far objects may jump
SWEEPS = 2
LEVELS = 2  # sizes of the picture, coarse to fine
JUMP = 1.0  # px of difference at which flow and patch matching disagree
LIKENESS = 8.0  # levels, root mean square colour difference at which the weight of a warped pixel falls to 1/√e
LIGHT = 31  # px a side; differences that are uniform over this area are changes of light
GRAIN = 9  # px a side over which noise is measured
EVEN = 20  # per cent of a frame, which contain only noise
NEVER = 1e-6  # min. weight; not 0, so that means are defined where nothing fits


def motion(guide: Array, other: Array, patch_size: int = PATCH, threads: int = 0) -> Array:
    """Estimate motion by optical flow, corrected by patch matching where the flow is wrong.

    Args:
        guide, other: uint8 frames.
        patch_size: Side of the patches in pixels, odd.
        threads: CPU threads of the patch-matching library (0 = all).

    Returns:
        As `flow`.
    """
    smooth = flow(guide, other)
    return corrected(smooth, field(guide, other, smooth, patch_size, threads=threads))


def corrected(smooth: Array, field: Array) -> Array:
    """Replace the motion `smooth` by that of a nearest-neighbour field where that goes elsewhere."""
    xp = array_namespace(smooth)
    found = floats(xp.flip(field, axis=-1)) - positions(smooth)
    jumped = xp.max(xp.abs(found - smooth), axis=-1, keepdims=True) > JUMP
    most = box(xp.astype(jumped, xp.float32), PATCH) > 0.5  # single pixels may jump by chance
    return xp.where(most, found, smooth)


def field(guide: Array, other: Array, start: Array, patch_size: int = PATCH, **where: Unpack[Where]) -> Array:
    """Find the nearest-neighbour field int32 [H, W, 2] (row, column) from `guide` to `other`.

    The search starts at the motion `start`. `where` are options of `native.binding.match`.
    """
    xp = array_namespace(guide)
    places = xp.flip(xp.round(start + positions(guide)), axis=-1)  # the library clamps them to the image
    with library_errors():
        return match(
            other, guide, places, patch_sizes=(patch_size,) * SWEEPS, patch_match_iterations=1,
            pyramid_levels=LEVELS, search_radius=SEARCH_RADIUS, **where,
        )  # fmt: skip


def carry(image: Array, motion: Array, cubic: bool = False) -> tuple[Array, Array]:
    """Warp an image: sample it at p + motion(p).

    Returns:
        The samples, float32, and which of them lie inside the image, bool [H, W, 1].
    """
    height, width = image.shape[-3:-1]
    places = positions(motion) + motion
    x, y = places[..., :1], places[..., 1:]
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    return warp(image, motion, cubic), inside


def agreement(guide: Array, other: Array, motion: Array, strictness: float = 1, noise: Array | None = None) -> Array:
    """Return how well `other` fits the guide when warped: float32 [H, W, 1], 1 at best, NEVER outside.

    Args:
        strictness: Weight of colour differences beyond those of noise and light.
        noise: The sum of both images' `grain`, if already known.
    """
    xp = array_namespace(motion)
    noise = grain(guide) + grain(other) if noise is None else noise
    carried, inside = carry(floats(other), motion)
    off = carried - floats(guide)
    del carried  # which may be a large stack
    seen, in_one_light = (box(mean_square(values), PATCH) for values in (off, off - box(off, LIGHT)))
    difference = xp.clip(xp.minimum(seen, in_one_light) - noise, min=0)
    return xp.exp(difference * (strictness / (-2 * LIKENESS**2))) * inside + NEVER


def grain(image: Array) -> Array:
    """Estimate the noise variance of an image in levels², as an image of one pixel.

    It is measured in the most uniform areas, after removing everything smooth (Immerkær 1996).
    """
    rest = floats(image)
    if min(rest.shape[-3:-1]) < 3:
        return percentile(mean_square(rest - rest), EVEN)
    # Second differences in both directions remove slopes and straight edges.
    rest = rest[..., 2:, :, :] - 2 * rest[..., 1:-1, :, :] + rest[..., :-2, :, :]
    rest = rest[..., 2:, :] - 2 * rest[..., 1:-1, :] + rest[..., :-2, :]
    return percentile(box(mean_square(rest), GRAIN), EVEN) / (1 + 4 + 1) ** 2
