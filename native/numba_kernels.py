"""The compiled loops of numba_backend.py: fields, usage, search, vote. Names and shapes are explained there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

TILE, COLOURS = 8, 4  # as in core.h
MASK = 0xFFFFFFFF  # keeps numbers in 32 bits, as the C library does

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]


class Comparison(NamedTuple):
    """What patches are compared on, and how.

    Attributes:
        source, target: Features with a border, [B, H, W * channels].
        modulation: Like `target`; empty if there is none.
        weights: One per value in a row of a patch, uint32 [patch * channels].
        usage: How much the current field uses each source pixel, [B, H, W].
        usage_cost: Cost of one unit of usage.
        patch: Side of the patches in pixels.
        inset: Features between the border's first pixel and the patch of pixel (0, 0).
    """

    source: Bytes
    target: Bytes
    modulation: Bytes
    weights: NDArray[np.uint32]
    usage: Integers
    usage_cost: int
    patch: int
    inset: int


# Integers have 64 bits here. Where a product overflows, only its lower half is used, which is correct.
# Indices of prange are unsigned and would turn into floats when mixed with signed integers, hence np.int64.


@njit(cache=True, nogil=True)
def mix(h: int) -> int:
    """Hash 32 bits."""
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & MASK
    h = ((h ^ (h >> 15)) * 0x846CA68B) & MASK
    return h ^ (h >> 16)


@njit(cache=True, nogil=True)
def mix_in(a: int, b: int) -> int:
    """Hash two numbers of 32 bits into one."""
    return mix((a + 0x9E3779B9 * (b + 1)) & MASK)


@njit(cache=True, nogil=True)
def pick(bits16: int, low: int, high: int) -> int:
    """Map 16 random bits to an integer in low..high."""
    return low + ((bits16 * (high - low + 1)) >> 16)


@njit(cache=True, nogil=True)
def random_field(batch: int, height: int, width: int, source_height: int, source_width: int, key: int) -> Integers:
    """Draw a field from the random numbers of `key`."""
    field = np.empty((batch * height * width, 2), np.int64)
    for i in range(len(field)):
        bits = mix_in(key, i % (height * width))
        field[i, 0] = pick(bits >> 16, 0, source_height - 1)
        field[i, 1] = pick(bits & 0xFFFF, 0, source_width - 1)
    return field.reshape((batch, height, width, 2))


@njit(cache=True, nogil=True)
def count(field: Integers, source_height: int, source_width: int) -> Integers:
    """Count how many field entries point to each source pixel, [B, H, W]."""
    used = np.zeros((len(field), source_height, source_width), np.int64)
    for item in range(len(field)):
        for entry in field[item].reshape((-1, 2)):
            used[item, entry[0], entry[1]] += 1
    return used


def box_sum(values: Integers, patch: int, repeat: bool) -> Integers:
    """Sum values over patches, [B, H, W]. Outside the image is 0 or, with `repeat`, the nearest pixel."""
    return row_sums(row_sums(values, patch, repeat), patch, repeat)


@njit(cache=True, nogil=True, parallel=True)
def row_sums(values: Integers, patch: int, repeat: bool) -> Integers:
    """Sum values over windows of `patch` along rows, at most 2^32 - 1, and transpose: [B, H, W] to [B, W, H]."""
    batch, height, width = values.shape
    out, radius = np.empty((batch, width, height), np.int64), patch // 2
    for line in prange(batch * height):
        item, y = np.int64(line) // height, np.int64(line) % height
        total = 0
        for x in range(-radius, radius):
            total += value_at(values[item, y], x, repeat)
        for x in range(width):
            total += value_at(values[item, y], x + radius, repeat)
            out[item, x, y] = min(total, MASK)
            total -= value_at(values[item, y], x - radius, repeat)
    return out


@njit(cache=True, nogil=True)
def value_at(row: Integers, x: int, repeat: bool) -> int:
    """Return a value of a row; outside of it 0 or, with `repeat`, the nearest value."""
    return row[min(max(x, 0), len(row) - 1)] if repeat or 0 <= x < len(row) else 0


@njit(cache=True, nogil=True, parallel=True)
def errors(field: Integers, how: Comparison) -> Integers:
    """Return the patch errors of fields, [B, H, W]."""
    batch, height, width = field.shape[:3]
    out, limit = np.empty((batch, height, width), np.int64), np.iinfo(np.int64).max
    for line in prange(batch * height):
        item, y = np.int64(line) // height, np.int64(line) % height
        for x in range(width):
            out[item, y, x] = one_error(how, item, field[item, y, x, 0], field[item, y, x, 1], y, x, limit)
    return out


@njit(cache=True, nogil=True, parallel=True)
def sweep(
    field: Integers, error: Integers, active: NDArray[np.bool_], how: Comparison, radius: int, shrink: int,
    forward: bool, shift: int, colour: int, key: int,
) -> None:  # fmt: skip
    """Run PatchMatch on the tiles of one colour, which are independent of each other. Updates field and error."""
    batch, height, width = error.shape
    down, across = (height + shift + TILE - 1) // TILE, (width + shift + TILE - 1) // TILE
    for tile in prange(batch * down * across):
        item, ty, tx = np.int64(tile) // (down * across), np.int64(tile) // across % down, np.int64(tile) % across
        if (ty & 1) * 2 + ((tx + ty) & 1) == colour:
            top, left = ty * TILE - shift, tx * TILE - shift
            sweep_tile(field, error, active, how, radius, shrink, forward, top, left, item, key)


@njit(cache=True, nogil=True)
def sweep_tile(
    field: Integers, error: Integers, active: NDArray[np.bool_], how: Comparison, radius: int, shrink: int,
    forward: bool, top: int, left: int, item: int, key: int,
) -> None:  # fmt: skip
    """Try, for each pixel of a tile, its neighbours' matches moved by one pixel, then random ones around the best."""
    (_, height, width), (_, source_height, source_width) = error.shape, how.usage.shape
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + TILE, height), min(left + TILE, width)
    step, first_y, first_x = (1, y0, x0) if forward else (-1, y1 - 1, x1 - 1)
    for y in range(first_y, y1 if forward else y0 - 1, step):
        for x in range(first_x, x1 if forward else x0 - 1, step):
            if not active[item, y, x]:
                continue
            at_y, at_x, found = field[item, y, x, 0], field[item, y, x, 1], error[item, y, x]
            best = (at_y, at_x, found, found + how.usage_cost * how.usage[item, at_y, at_x])
            if x != first_x:
                at_y, at_x = field[item, y, x - step, 0], field[item, y, x - step, 1] + step
                if 0 <= at_x < source_width:
                    best = better(best, how, item, at_y, at_x, y, x)
            if y != first_y:
                at_y, at_x = field[item, y - step, x, 0] + step, field[item, y - step, x, 1]
                if 0 <= at_y < source_height:
                    best = better(best, how, item, at_y, at_x, y, x)
            centre_y, centre_x, reach = best[0], best[1], radius
            bits = mix_in(key, y * width + x)
            while reach >= 1:
                bits = mix(bits)
                at_y = pick(bits >> 16, max(centre_y - reach, 0), min(centre_y + reach, source_height - 1))
                at_x = pick(bits & 0xFFFF, max(centre_x - reach, 0), min(centre_x + reach, source_width - 1))
                best = better(best, how, item, at_y, at_x, y, x)
                reach //= shrink
            field[item, y, x, 0], field[item, y, x, 1], error[item, y, x] = best[0], best[1], best[2]


@njit(cache=True, nogil=True)
def better(
    best: tuple[int, int, int, int], how: Comparison, item: int, at_y: int, at_x: int, y: int, x: int
) -> tuple[int, int, int, int]:
    """Return the cheaper of `best` (row, column, error, cost) and source pixel (at_y, at_x) for target pixel (y, x)."""
    if at_y == best[0] and at_x == best[1]:
        return best
    extra = how.usage_cost * how.usage[item, at_y, at_x]
    limit = best[3] - extra
    found = one_error(how, item, at_y, at_x, y, x, limit) if limit > 0 else limit
    return (at_y, at_x, found, found + extra) if found < limit else best


@njit(cache=True, nogil=True)
def one_error(how: Comparison, item: int, source_y: int, source_x: int, y: int, x: int, limit: int) -> int:
    """Return the patch error if it is below `limit`, else any value that is not."""
    length, total = len(how.weights), 0
    channels = length // how.patch
    s0, t0 = (source_x + how.inset) * channels, (x + how.inset) * channels
    for k in range(how.inset, how.inset + how.patch):
        s, t = how.source[item, source_y + k, s0 : s0 + length], how.target[item, y + k, t0 : t0 + length]
        if how.modulation.size:
            m = how.modulation[item, y + k, t0 : t0 + length]
            for j in range(length):
                d = np.int32(t[j]) - np.int32(s[j])
                total += how.weights[j] * (d * d * m[j])
        else:
            for j in range(length):
                d = np.int32(t[j]) - np.int32(s[j])
                total += how.weights[j] * (d * d)
        if total >= limit:
            break
    return total


@njit(cache=True, nogil=True, parallel=True)
def vote(source: Bytes, field: Integers, weight: Integers, patch: int, border: int) -> Bytes:
    """Average the patches that cover each pixel by weight, ties rounded up, [B, H, W, C]. The source has a border."""
    (batch, height, width), channels, radius = weight.shape, source.shape[3], patch // 2
    image = np.empty((batch, height, width, channels), np.uint8)
    for line in prange(batch * height):
        item, y = np.int64(line) // height, np.int64(line) % height
        total = np.empty(channels, np.int64)
        for x in range(width):
            total[:], whole = 0, np.int64(0)
            for ty in range(max(y - radius, 0), min(y + radius + 1, height)):
                for tx in range(max(x - radius, 0), min(x + radius + 1, width)):
                    from_y, from_x = field[item, ty, tx, 0] + border + y - ty, field[item, ty, tx, 1] + border + x - tx
                    whole += weight[item, ty, tx]
                    for c in range(channels):
                        total[c] += weight[item, ty, tx] * source[item, from_y, from_x, c]
            for c in range(channels):
                image[item, y, x, c] = (2 * total[c] + whole) // (2 * whole)
    return image
