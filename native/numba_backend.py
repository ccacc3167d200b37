"""The patch-matching library in numba: a port of libebsynth (src/) for machines where no compiler was at hand.

Every result equals the C library's bit for bit, on any number of threads: src/ defines what is computed, and
include/ebsynth.h says what it means. The order here is that of the data: calls, the solver, fields, features, usage,
search, vote. Only binding.py calls this module; it has checked all arguments: C-contiguous arrays, values in range.

B is the batch, H x W the size of sources or targets, C channels: S of the style, G of the guides. Images are uint8
[B, H, W, C]. Fields are [B, H, W, 2]: for each target pixel a source pixel's row and column (int64 here).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, njit, prange, set_num_threads

TILE, COLOURS = 8, 4  # as in core.h
MASK = 0xFFFFFFFF  # of numbers that the C library keeps in 32 bits
TWO_40 = 1099511627776
FEW = 8192  # pixels that one thread does faster than several agree on who does what

Size = Sequence[int]  # height, width
Progress = Callable[[float], object] | None

# Where it has neither TBB nor OpenMP, numba aborts the process when two threads are in its parallel loops.
_one_at_a_time = threading.RLock()


def synthesize(
    source_style: np.ndarray, source_guides: np.ndarray, target_guides: np.ndarray, modulation: np.ndarray | None,
    style_weights: np.ndarray, guide_weights: np.ndarray, *, uniformity: float, patch_size: int, pyramid_levels: int,
    search_vote_iterations: int, patch_match_iterations: int, stop_threshold: int, weighted_vote: bool,
    extra_pass_3x3: bool, seed: int, progress: Progress,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Targets in the style of their sources: image [B, H, W, S], field [B, H, W, 2], float32 error [B, H, W]."""
    images = Images(source_style, None, source_guides, target_guides, modulation if len(guide_weights) else None)
    weights = [float(weight) for weight in (*style_weights, *guide_weights)]
    problem = Problem(
        weights, [patch_size], pyramid_levels, patch_match_iterations, start="random", seed=seed,
        repeats=search_vote_iterations, uniformity=float(np.float32(uniformity)), threshold=stop_threshold,
        weighted_vote=bool(weighted_vote), extra_pass=bool(extra_pass_3x3),
    )  # fmt: skip
    return Solver(images, problem, None, progress).solve()


def match(
    source_guide: np.ndarray, target_guide: np.ndarray, source_style: np.ndarray | None,
    target_style: np.ndarray | None, *, style_weight: float, guide_weight: float, patch_sizes: Sequence[int],
    pyramid_levels: int, patch_match_iterations: int, search_radius: int, start: str, nnf: np.ndarray | None,
    seed: int, border: str, progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Fields between pairs of images [B, H, W, 2], and their float32 error [B, H, W]. Reads nnf if start is "given"."""
    images = pair(source_guide, target_guide, source_style, target_style)
    patches = [int(patch) for patch in patch_sizes]
    problem = Problem(
        even_weights(images, style_weight, guide_weight), patches, pyramid_levels, patch_match_iterations,
        start=start, seed=seed, radius=search_radius, border=border,
    )  # fmt: skip
    return Solver(images, problem, nnf, progress).solve()[1:]


def remap(source: np.ndarray, nnf: np.ndarray, *, patch_size: int, border: str) -> np.ndarray:
    """Images [B, H, W, C] painted through fields: each target pixel is the mean of the patches that cover it."""
    radius = patch_size // 2
    with _one_at_a_time:
        field = import_field(nnf, 0, nnf.shape[1:3], source.shape[1:3])
        return vote(pad(source, radius, border), field, np.ones(nnf.shape[:3], np.int64), patch_size, radius)


def patch_error(
    source_guide: np.ndarray, target_guide: np.ndarray, source_style: np.ndarray | None,
    target_style: np.ndarray | None, nnf: np.ndarray, *, style_weight: float, guide_weight: float, patch_size: int,
    border: str,
) -> np.ndarray:  # fmt: skip
    """The patch error of given fields, float32 [B, H, W]."""
    images = pair(source_guide, target_guide, source_style, target_style)
    weights = even_weights(images, style_weight, guide_weight)
    problem = Problem(weights, [patch_size], 1, 0, start="given", repeats=0, border=border)
    return Solver(images, problem, nnf, None).solve()[2]


class Images(NamedTuple):
    """One pyramid level's images [B, H, W, C], of 0 channels where there is no style or no guide."""

    source_style: np.ndarray
    target_style: np.ndarray | None  # None: painted
    source_guides: np.ndarray
    target_guides: np.ndarray
    modulation: np.ndarray | None = None  # as target_guides


@dataclass(frozen=True)
class Problem:
    """What is asked for: both kinds of call become one."""

    weights: list[float]  # of the style's channels, then of the guides'
    patches: list[int]  # of rounds of search (and vote), at every level ...
    levels: int  # 0: as many as there can be
    sweeps: int
    start: str
    repeats: int = 1  # ... so many times; the first patch votes and measures errors where there are no rounds
    radius: int = 0  # 0: the whole source
    seed: int = 0
    uniformity: float = 0.0
    threshold: int = 0
    weighted_vote: bool = False
    extra_pass: bool = False
    border: str = "repeat"


def pair(
    source_guide: np.ndarray, target_guide: np.ndarray, source_style: np.ndarray | None, target_style: np.ndarray | None
) -> Images:
    """Images of which there may be no styles at all, or none of the target: then it is painted."""
    if source_style is None or source_style.shape[3] == 0:
        source_style, target_style = source_guide[..., :0], target_guide[..., :0]
    return Images(source_style, target_style, source_guide, target_guide)


def even_weights(images: Images, style_weight: float, guide_weight: float) -> list[float]:
    """The weights of channels that share one for all styles and one for all guides."""
    styles, guides = images.source_style.shape[3], images.source_guides.shape[3]
    style, guide = (float(np.float32(weight)) for weight in (style_weight, guide_weight))
    return [style / styles for _ in range(styles)] + [guide / guides for _ in range(guides)]


@contextmanager
def threads_for(images: Images) -> Iterator[None]:
    """All threads, or one alone where there is little to do."""
    threads = get_num_threads()
    pixels = max(int(np.prod(image.shape[:3])) for image in (images.source_guides, images.target_guides))
    set_num_threads(threads if pixels >= FEW else 1)
    try:
        yield
    finally:
        set_num_threads(threads)


class Solver:
    """The method itself, from coarse to fine: search and vote in turn."""

    field: np.ndarray  # of the present level
    style: np.ndarray  # the target's, painted or given

    def __init__(self, images: Images, problem: Problem, nnf: np.ndarray | None, progress: Progress) -> None:
        self.images, self.problem, self.nnf, self.progress = images, problem, nnf, progress or (lambda fraction: None)
        self.patch = problem.patches[0]  # of the last round
        self.border = max(problem.patches) // 2
        side = min(*images.source_guides.shape[1:3], *images.target_guides.shape[1:3])
        self.levels = 1
        while side // 2 >= 2 * max(problem.patches) + 1 and self.levels != problem.levels:
            side, self.levels = side // 2, self.levels + 1
        # Weights are fixed-point numbers, so that errors are exact: scale * error. Modulation brings 255 more.
        total = 0.0
        for weight in problem.weights:  # in this order; sum() may correct for rounding, by the version of Python
            total += weight
        self.scale = 268435456.0 / total
        divisor = 1.0 if images.modulation is None else 255.0
        weights = np.array([int(weight * self.scale / divisor + 0.5) for weight in problem.weights], np.uint32)
        self.kept = np.flatnonzero(weights)  # channels that count
        self.weights = weights[self.kept]

    def solve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The target's style uint8 [B, H, W, S], the field int32 [B, H, W, 2] and its error float32 [B, H, W]."""
        p, (batch, height, width) = self.problem, self.images.target_guides.shape[:3]
        if not batch:
            empty = np.zeros((0, height, width, self.images.source_style.shape[3]), np.uint8)
            return empty, np.zeros((0, height, width, 2), np.int32), np.zeros((0, height, width), np.float32)
        rounds, done = p.patches * p.repeats, 0
        with _one_at_a_time:
            pyramid = [self.images]
            for _ in range(1, self.levels):
                fine = pyramid[-1]
                half = {name: halve(image) for name, image in fine._asdict().items() if image is not None}
                pyramid.append(fine._replace(**half))
            for level in reversed(range(self.levels)):
                with threads_for(pyramid[level]):
                    self.enter_level(level, pyramid[level])
                    for patch in rounds:
                        self.progress(done / (self.levels * len(rounds) + p.extra_pass))
                        self.round(patch, p.uniformity)
                        done += 1
            if p.extra_pass:
                self.active = np.ones((batch, height, width), np.bool_)
                self.round(3, 0.0)
            error = errors(self.field, self.look(self.patch))
            self.progress(1.0)
        return self.style, self.field.astype(np.int32), (error * (1.0 / self.scale)).astype(np.float32)

    def enter_level(self, level: int, images: Images) -> None:
        """The level's features, and its field: from the start, or from the level before."""
        (batch, *target), source = images.target_guides.shape[:3], images.source_guides.shape[1:3]
        self.level, self.images, self.sweep = level, images, 0
        self.key = mix_in(mix_in(self.problem.seed & MASK, self.problem.seed >> 32), level)
        if level < self.levels - 1:
            self.field = double_field(self.field, target, source)
        elif self.problem.start == "random":
            self.field = random_field(batch, target[0], target[1], source[0], source[1], self.key)
        elif self.nnf is not None and self.problem.start == "given":
            self.field = import_field(self.nnf, level, target, source)
        else:
            self.field = identity_field(batch, target, source)
        self.active = np.ones((batch, *target), np.bool_)
        self.source = self.features(images.source_style, images.source_guides)
        self.modulation = np.zeros((0, 0, 0), np.uint8)
        if images.modulation is not None:  # styles are not modulated: 255
            full = np.full((batch, *target, images.source_style.shape[3]), 255, np.uint8)
            self.modulation = self.features(full, images.modulation)
        if images.target_style is None:
            self.source_style = pad(images.source_style, self.border, self.problem.border)
            ones = np.ones((batch, *target), np.int64)
            self.paint(vote(self.source_style, self.field, ones, self.problem.patches[0], self.border))
        else:
            self.paint(images.target_style)

    def paint(self, style: np.ndarray) -> None:
        """Makes this the target's style."""
        self.style, self.target = style, self.features(style, self.images.target_guides)

    def features(self, style: np.ndarray, guides: np.ndarray) -> np.ndarray:
        """What patches are compared on: the channels that count, with a border, uint8 [B, H, W * channels]."""
        channels = np.concatenate([style, guides], axis=3)[..., self.kept]
        both = pad(channels, self.border, self.problem.border)
        return both.reshape(*both.shape[:2], -1)

    def round(self, patch: int, uniformity: float) -> None:
        """Searches with patches of this size, then votes."""
        _, height, width = self.images.source_guides.shape[:3]
        # Random candidates: at most so far from the best, then half as far each time; a quarter at the finest level.
        radius, shrink = min(self.problem.radius or MASK, max(height, width)), 2 if self.level else 4
        look = self.look(patch, uniformity)
        self.patch, error = patch, errors(self.field, look)
        for _ in range(self.problem.sweeps):
            key, forward, shift = mix_in(self.key, self.sweep), self.sweep % 2 == 0, self.sweep // 2 % 2 * (TILE // 2)
            for colour in range(COLOURS):
                if look.usage_cost:
                    covered = box_sum(count(self.field, height, width), patch, False)  # how many patches cover a pixel
                    look = look._replace(usage=box_sum(covered, patch, True))  # the sum of these over a patch
                sweep(self.field, error, self.active, look, radius, shrink, forward, shift, colour, key)
            self.sweep += 1
        if self.images.target_style is None:
            self.vote(patch, error)

    def look(self, patch: int, uniformity: float = 0.0) -> Look:
        """How patches of this size are compared; usage is not measured yet."""
        (batch, *source), target = self.images.source_guides.shape[:3], self.images.target_guides.shape[1:3]
        area = float(patch * patch)
        even = float(target[0] * target[1]) / float(source[0] * source[1]) * area
        cost = int(min(uniformity * self.scale / (area * even) + 0.5, 1073741824.0)) if uniformity > 0 else 0
        weights, usage = np.tile(self.weights, patch), np.zeros((batch, *source), np.int64)
        inset = self.border - patch // 2
        return Look(self.source, self.target, self.modulation, weights, usage, cost, patch, inset)

    def vote(self, patch: int, error: np.ndarray) -> None:
        """Paints the target's style and finds what is still to be searched."""
        weight = self.vote_weight(patch, error) if self.problem.weighted_vote else np.ones_like(error)
        style = vote(self.source_style, self.field, weight, patch, self.border)
        if self.problem.threshold > 0:
            moved = np.abs(style.astype(np.int16) - self.style).max(axis=3) >= self.problem.threshold
            self.active = box_sum(moved.astype(np.int64), patch, False) != 0
        self.paint(style)

    def vote_weight(self, patch: int, error: np.ndarray) -> np.ndarray:
        """How much the patch of each pixel counts, int64 [B, H, W]: 2^20 / (1 + error per value), at least 1."""
        unit, shift = self.scale * patch * patch * len(self.problem.weights), 0
        while unit > TWO_40 and shift < 62:  # so that what follows fits 64 bits
            unit, shift = unit / 2, shift + 1
        whole = max(1, int(min(unit, TWO_40)))
        return np.maximum(1, (whole << 20) // (whole + (error >> shift)))


def halve(image: np.ndarray) -> np.ndarray:
    """The mean of 2 x 2 pixels, rounded; an odd last row or column is left out."""
    _, height, width, _ = image.shape
    y, x, wide = np.arange(max(1, height // 2)) * 2, np.arange(max(1, width // 2)) * 2, image.astype(np.uint16)
    rows = wide[:, y] + wide[:, np.minimum(y + 1, height - 1)]
    return ((rows[:, :, x] + rows[:, :, np.minimum(x + 1, width - 1)] + 2) // 4).astype(np.uint8)


def identity_field(batch: int, target: Size, source: Size) -> np.ndarray:
    """Each pixel at its own place, scaled."""
    y, x = (np.arange(target[axis]) * source[axis] // target[axis] for axis in (0, 1))
    return np.tile(np.stack(np.meshgrid(y, x, indexing="ij"), axis=2), (batch, 1, 1, 1))


def import_field(nnf: np.ndarray, shift: int, target: Size, source: Size) -> np.ndarray:
    """The caller's field, 2^shift times as coarse, its entries clamped to the source."""
    y, x = (np.minimum(np.arange(target[axis]) << shift, nnf.shape[1 + axis] - 1) for axis in (0, 1))
    return in_order(np.clip(nnf[:, y[:, None], x].astype(np.int64) >> shift, 0, np.array(source) - 1))


def double_field(field: np.ndarray, target: Size, source: Size) -> np.ndarray:
    """A field from one twice as coarse."""
    y, x = (np.arange(target[axis]) for axis in (0, 1))
    fine = 2 * field[:, np.minimum(y // 2, field.shape[1] - 1)[:, None], np.minimum(x // 2, field.shape[2] - 1)]
    fine += np.stack(np.meshgrid(y & 1, x & 1, indexing="ij"), axis=2)
    return in_order(np.minimum(fine, np.array(source) - 1))


def pad(image: np.ndarray, width: int, border: str) -> np.ndarray:
    """Images with a border that repeats or is zero."""
    sides = ((0, 0), (width, width), (width, width), (0, 0))
    return in_order(np.pad(image, sides, mode="edge") if border == "repeat" else np.pad(image, sides))


def in_order(array: np.ndarray) -> np.ndarray:
    """The array, C-contiguous: numba would compile anew for any other layout, of which NumPy's indexing makes some."""
    return np.ascontiguousarray(array)


class Look(NamedTuple):
    """How patches are compared. Features have a border; a pixel's channels lie side by side."""

    source: np.ndarray  # uint8 [B, H, W * channels]
    target: np.ndarray
    modulation: np.ndarray  # as target; empty: none
    weights: np.ndarray  # of a row of a patch, uint32 [patch * channels]
    usage: np.ndarray  # of source pixels by the present field, int64 [B, H, W]
    usage_cost: int
    patch: int
    inset: int  # features before the patch of pixel (0, 0)


# What follows is compiled, integers being of 64 bits; the lower half of a product that overflows is right all the same.
# Indices of prange are unsigned: mixed with signed numbers they would make floats, hence np.int64.


@njit(cache=True, nogil=True)
def mix(h: int) -> int:
    """32 random bits from 32 others."""
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & MASK
    h = ((h ^ (h >> 15)) * 0x846CA68B) & MASK
    return h ^ (h >> 16)


@njit(cache=True, nogil=True)
def mix_in(a: int, b: int) -> int:
    """32 random bits from twice as many."""
    return mix((a + 0x9E3779B9 * (b + 1)) & MASK)


@njit(cache=True, nogil=True)
def pick(bits16: int, low: int, high: int) -> int:
    """One of low..high, from 16 random bits."""
    return low + ((bits16 * (high - low + 1)) >> 16)


@njit(cache=True, nogil=True)
def random_field(batch: int, height: int, width: int, source_height: int, source_width: int, key: int) -> np.ndarray:
    field = np.empty((batch * height * width, 2), np.int64)
    for i in range(len(field)):
        bits = mix_in(key, i)
        field[i, 0] = pick(bits >> 16, 0, source_height - 1)
        field[i, 1] = pick(bits & 0xFFFF, 0, source_width - 1)
    return field.reshape((batch, height, width, 2))


@njit(cache=True, nogil=True)
def count(field: np.ndarray, source_height: int, source_width: int) -> np.ndarray:
    """How often fields name each source pixel, int64 [B, H, W]."""
    used = np.zeros((len(field), source_height, source_width), np.int64)
    for item in range(len(field)):
        for entry in field[item].reshape((-1, 2)):
            used[item, entry[0], entry[1]] += 1
    return used


def box_sum(values: np.ndarray, patch: int, repeat: bool) -> np.ndarray:
    """Sums over patches, int64 [B, H, W]. Beyond the borders lies nothing, or (repeat) what lies at them."""
    return row_sums(row_sums(values, patch, repeat), patch, repeat)


@njit(cache=True, nogil=True, parallel=True)
def row_sums(values: np.ndarray, patch: int, repeat: bool) -> np.ndarray:
    """Sums over parts of rows, at most 2^32 - 1, int64 [B, W, H]: columns have become rows, whose sums are the next."""
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
def value_at(row: np.ndarray, x: int, repeat: bool) -> int:
    return row[min(max(x, 0), len(row) - 1)] if repeat or 0 <= x < len(row) else 0


@njit(cache=True, nogil=True, parallel=True)
def errors(field: np.ndarray, look: Look) -> np.ndarray:
    """Patch errors of fields, int64 [B, H, W]."""
    batch, height, width = field.shape[:3]
    out, limit = np.empty((batch, height, width), np.int64), np.iinfo(np.int64).max
    for line in prange(batch * height):
        item, y = np.int64(line) // height, np.int64(line) % height
        for x in range(width):
            out[item, y, x] = one_error(look, item, field[item, y, x, 0], field[item, y, x, 1], y, x, limit)
    return out


@njit(cache=True, nogil=True, parallel=True)
def sweep(
    field: np.ndarray, error: np.ndarray, active: np.ndarray, look: Look, radius: int, shrink: int, forward: bool,
    shift: int, colour: int, key: int,
) -> None:  # fmt: skip
    """PatchMatch over the tiles of one colour, which do not depend on each other. Changes field and error."""
    batch, height, width = error.shape
    down, across = (height + shift + TILE - 1) // TILE, (width + shift + TILE - 1) // TILE
    for tile in prange(batch * down * across):
        item, ty, tx = np.int64(tile) // (down * across), np.int64(tile) // across % down, np.int64(tile) % across
        if (ty & 1) * 2 + ((tx + ty) & 1) == colour:
            top, left = ty * TILE - shift, tx * TILE - shift
            sweep_tile(field, error, active, look, radius, shrink, forward, top, left, item, key)


@njit(cache=True, nogil=True)
def sweep_tile(
    field: np.ndarray, error: np.ndarray, active: np.ndarray, look: Look, radius: int, shrink: int, forward: bool,
    top: int, left: int, item: int, key: int,
) -> None:  # fmt: skip
    """Each pixel tries its neighbours' entries, moved along, then random ones ever nearer to the best of these."""
    (_, height, width), (_, source_height, source_width) = error.shape, look.usage.shape
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + TILE, height), min(left + TILE, width)
    step, first_y, first_x = (1, y0, x0) if forward else (-1, y1 - 1, x1 - 1)
    for y in range(first_y, y1 if forward else y0 - 1, step):
        for x in range(first_x, x1 if forward else x0 - 1, step):
            if not active[item, y, x]:
                continue
            at_y, at_x, found = field[item, y, x, 0], field[item, y, x, 1], error[item, y, x]
            best = (at_y, at_x, found, found + look.usage_cost * look.usage[item, at_y, at_x])
            if x != first_x:
                at_y, at_x = field[item, y, x - step, 0], field[item, y, x - step, 1] + step
                if 0 <= at_x < source_width:
                    best = better(best, look, item, at_y, at_x, y, x)
            if y != first_y:
                at_y, at_x = field[item, y - step, x, 0] + step, field[item, y - step, x, 1]
                if 0 <= at_y < source_height:
                    best = better(best, look, item, at_y, at_x, y, x)
            centre_y, centre_x, reach = best[0], best[1], radius
            bits = mix_in(key, (item * height + y) * width + x)
            while reach >= 1:
                bits = mix(bits)
                at_y = pick(bits >> 16, max(centre_y - reach, 0), min(centre_y + reach, source_height - 1))
                at_x = pick(bits & 0xFFFF, max(centre_x - reach, 0), min(centre_x + reach, source_width - 1))
                best = better(best, look, item, at_y, at_x, y, x)
                reach //= shrink
            field[item, y, x, 0], field[item, y, x, 1], error[item, y, x] = best[0], best[1], best[2]


@njit(cache=True, nogil=True)
def better(
    best: tuple[int, int, int, int], look: Look, item: int, at_y: int, at_x: int, y: int, x: int
) -> tuple[int, int, int, int]:
    """The cheaper of `best` (row, column, error, cost) and another source pixel for the target pixel (y, x)."""
    if at_y == best[0] and at_x == best[1]:
        return best
    extra = look.usage_cost * look.usage[item, at_y, at_x]
    limit = best[3] - extra
    found = one_error(look, item, at_y, at_x, y, x, limit) if limit > 0 else limit
    return (at_y, at_x, found, found + extra) if found < limit else best


@njit(cache=True, nogil=True)
def one_error(look: Look, item: int, source_y: int, source_x: int, y: int, x: int, limit: int) -> int:
    """The patch error where it is below `limit`, else anything that is not."""
    length, total = len(look.weights), 0
    channels = length // look.patch
    s0, t0 = (source_x + look.inset) * channels, (x + look.inset) * channels
    for k in range(look.inset, look.inset + look.patch):
        s, t = look.source[item, source_y + k, s0 : s0 + length], look.target[item, y + k, t0 : t0 + length]
        if look.modulation.size:
            m = look.modulation[item, y + k, t0 : t0 + length]
            for j in range(length):
                d = np.int32(t[j]) - np.int32(s[j])
                total += look.weights[j] * (d * d * m[j])
        else:
            for j in range(length):
                d = np.int32(t[j]) - np.int32(s[j])
                total += look.weights[j] * (d * d)
        if total >= limit:
            break
    return total


@njit(cache=True, nogil=True, parallel=True)
def vote(source: np.ndarray, field: np.ndarray, weight: np.ndarray, patch: int, border: int) -> np.ndarray:
    """The (weighted) mean of the patches that cover a pixel, ties up, uint8 [B, H, W, C]. The source has a border."""
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
