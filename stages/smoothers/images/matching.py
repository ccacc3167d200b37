"""What moved where between two frames of the guide, and images carried along it.

Optical flow knows where smooth motion leads, to a fraction of a pixel, but is lost where things jump or come out from
behind others. Patch matching finds those, in whole pixels. So flow is where the search starts, and where the search
ends somewhere else, it is believed.

Arrays as in stages.smoothers.images.pixels: on a GPU the second of two frames, and what is found, may be a stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from array_api_compat import array_namespace, device

from native import binding
from stages.base.errors import DiffSynthError
from stages.smoothers.images.pixels import Array, box, floats, flow, match, percentile, sample

PATCH = 5  # px
SEARCH_RADIUS = 64  # px around a match that the random search tries: how far things may jump
SWEEPS = 2
LEVELS = 3  # sizes of the picture, coarse to fine: what moves far is found where it moves few pixels
JUMP = 1.0  # px between flow and patch match beyond which they disagree
LIKENESS = 8.0  # levels (root mean square) of the guide's colours at which a carried pixel's weight falls to 1/√e
LIGHT = 31  # px a side; differences that are even over this much are light, and say nothing about the match
GRAIN = 9  # px a side over which noise is measured
EVEN = 20  # per cent of a frame, at least, show nothing but noise
NEVER = 1e-6  # the weight of what does not fit at all: a pixel that nothing fits is its own mean


def motion(guide: Array, other: Array, patch_size: int = PATCH, threads: int = 0) -> Array:
    """As `flow`, where that leads to patches that are not alike corrected by a nearest-neighbour field. uint8 frames;
    `threads` of the patch-matching library, 0 = all."""
    xp = array_namespace(guide)
    smooth = flow(guide, other)
    found = floats(xp.flip(field(guide, other, smooth, patch_size, threads=threads), axis=-1)) - positions(guide)
    jumped = xp.max(xp.abs(found - smooth), axis=-1, keepdims=True) > JUMP
    most = box(xp.astype(jumped, xp.float32), PATCH) > 0.5  # single pixels jump by chance
    return xp.where(most, found, smooth)


def field(guide: Array, other: Array, start: Array, patch_size: int = PATCH, **where: Any) -> Array:
    """The nearest-neighbour field int32 [H, W, 2] (row, column) from `guide` to `other`, searched from the motion
    `start` on. `where`: back end and threads, as of `native.binding.match`."""
    xp = array_namespace(guide)
    places = xp.flip(xp.round(start + positions(guide)), axis=-1)  # the library clamps them to the picture
    with library_errors():
        return match(
            other, guide, places, patch_sizes=(patch_size,) * SWEEPS, patch_match_iterations=1,
            pyramid_levels=LEVELS, search_radius=SEARCH_RADIUS, **where,
        )  # fmt: skip


@contextmanager
def library_errors() -> Iterator[None]:
    """What the patch-matching library refuses, or runs out of, as DiffSynthError."""
    try:
        yield
    except binding.EbsynthError as error:
        raise DiffSynthError(str(error)) from error


def carry(image: Array, motion: Array, cubic: bool = False) -> tuple[Array, Array]:
    """`image` sampled at p + motion(p), and which samples lie inside it, bool [H, W, 1]."""
    xp = array_namespace(image)
    height, width = image.shape[-3:-1]
    places = positions(motion) + motion
    x, y = places[..., :1], places[..., 1:]
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    return sample(xp.astype(image, xp.float32), places, cubic), inside


def agreement(guide: Array, other: Array, motion: Array, strictness: float = 1, noise: Array | None = None) -> Array:
    """How well `other`, carried, fits the guide's frame, float32 [H, W, 1], 1 at best, NEVER outside. `strictness`:
    how much it counts that colours differ by more than by noise and by light. `noise`: the `grain` of both together,
    if it is known."""
    xp = array_namespace(motion)
    guide, other = floats(guide), floats(other)
    carried, inside = carry(other, motion)
    noise = grain(guide) + grain(other) if noise is None else noise
    off = carried - guide
    seen, in_one_light = (box(mean_square(values), PATCH) for values in (off, off - box(off, LIGHT)))
    difference = xp.clip(xp.minimum(seen, in_one_light) - noise, min=0)
    return xp.exp(difference * (strictness / (-2 * LIKENESS**2))) * inside + NEVER


def grain(image: Array) -> Array:
    """The variance of the noise of an image, levels², as a map of one pixel: what is left of its evenest parts when all
    that is smooth has been taken out (Immerkær 1996)."""
    rest = floats(image)
    if min(rest.shape[-3:-1]) < 3:
        return percentile(mean_square(rest - rest), EVEN)
    # Second differences, down and across, are blind to slopes and to straight edges.
    rest = rest[..., 2:, :, :] - 2 * rest[..., 1:-1, :, :] + rest[..., :-2, :, :]
    rest = rest[..., 2:, :] - 2 * rest[..., 1:-1, :] + rest[..., :-2, :]
    return percentile(box(mean_square(rest), GRAIN), EVEN) / (1 + 4 + 1) ** 2


def mean_square(values: Array) -> Array:
    """Over channels: [H, W, 1] of [H, W, C]."""
    return array_namespace(values).vecdot(values, values)[..., None] / values.shape[-1]


def positions(image: Array) -> Array:
    """Every pixel's own place, float32 [H, W, 2], x then y."""
    xp = array_namespace(image)
    rows, columns = (xp.arange(size, dtype=xp.float32, device=device(image)) for size in image.shape[-3:-1])
    return xp.stack(xp.meshgrid(columns, rows, indexing="xy"), axis=-1)
