"""A port of libebsynth (src/) to numba, for machines without a compiler.

Every result equals the C library's bit for bit, on any number of threads. include/ebsynth.h defines the results. Only
binding.py calls this module, with arguments that it has checked: arrays are C-contiguous and values in range.

B is the batch, H x W the size of sources or targets, C the number of channels, S of the style and G of the guides.
Images are uint8 [B, H, W, C]. Fields are int64 [B, H, W, 2]: the row and column of each target pixel's match.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numba import get_num_threads, set_num_threads
from numpy.typing import NDArray

from native.numba_kernels import (
    COLOURS,
    MASK,
    TILE,
    Bytes,
    Comparison,
    Integers,
    box_sum,
    count,
    errors,
    mix_in,
    random_field,
    sweep,
    vote,
)

TWO_40 = 1099511627776
MIN_PARALLEL = 8192  # pixels; below this, starting threads costs more than it saves

Size = Sequence[int]  # height, width
Progress = Callable[[float], object] | None
T = TypeVar("T", bound=np.generic)

Floats = NDArray[np.float32]
Field = NDArray[np.int32]

# Without TBB and OpenMP, numba aborts the process when two threads run parallel loops at the same time.
_one_at_a_time = threading.RLock()


def synthesize(
    source_style: Bytes, source_guides: Bytes, target_guides: Bytes, modulation: Bytes | None,
    style_weights: Floats, guide_weights: Floats, *, uniformity: float, patch_size: int, pyramid_levels: int,
    search_vote_iterations: int, patch_match_iterations: int, stop_threshold: int, weighted_vote: bool,
    extra_pass_3x3: bool, seed: int, progress: Progress,
) -> tuple[Bytes, Field, Floats]:  # fmt: skip
    """Paint targets in the style of their sources.

    Returns:
        Images [B, H, W, S], fields int32 [B, H, W, 2] and errors float32 [B, H, W].
    """
    images = Images(source_style, None, source_guides, target_guides, modulation if len(guide_weights) else None)
    weights = [float(weight) for weight in (*style_weights, *guide_weights)]
    problem = Problem(
        weights, [patch_size], pyramid_levels, patch_match_iterations, start="random", seed=seed,
        repeats=search_vote_iterations, uniformity=float(np.float32(uniformity)), threshold=stop_threshold,
        weighted_vote=bool(weighted_vote), extra_pass=bool(extra_pass_3x3),
    )  # fmt: skip
    return Solver(images, problem, None, progress).solve()


def match(
    source_guide: Bytes, target_guide: Bytes, source_style: Bytes | None,
    target_style: Bytes | None, *, style_weight: float, guide_weight: float, patch_sizes: Sequence[int],
    pyramid_levels: int, patch_match_iterations: int, search_radius: int, start: str, nnf: Field | None,
    seed: int, border: str, progress: Progress,
) -> tuple[Field, Floats]:  # fmt: skip
    """Find fields between pairs of images. `nnf` is only used if `start` is "given".

    Returns:
        Fields int32 [B, H, W, 2] and errors float32 [B, H, W].
    """
    images = pair(source_guide, target_guide, source_style, target_style)
    patches = [int(patch) for patch in patch_sizes]
    problem = Problem(
        even_weights(images, style_weight, guide_weight), patches, pyramid_levels, patch_match_iterations,
        start=start, seed=seed, radius=search_radius, border=border,
    )  # fmt: skip
    return Solver(images, problem, nnf, progress).solve()[1:]


def remap(source: Bytes, nnf: Field, *, patch_size: int, border: str) -> Bytes:
    """Rebuild images [B, H, W, C] from the patches that fields point to; overlapping patches are averaged."""
    radius = patch_size // 2
    with _one_at_a_time:
        field = import_field(nnf, 0, nnf.shape[1:3], source.shape[1:3])
        return vote(pad(source, radius, border), field, np.ones(nnf.shape[:3], np.int64), patch_size, radius)


def patch_error(
    source_guide: Bytes, target_guide: Bytes, source_style: Bytes | None,
    target_style: Bytes | None, nnf: Field, *, style_weight: float, guide_weight: float, patch_size: int,
    border: str,
) -> Floats:  # fmt: skip
    """Return the patch error of fields, float32 [B, H, W]."""
    images = pair(source_guide, target_guide, source_style, target_style)
    weights = even_weights(images, style_weight, guide_weight)
    problem = Problem(weights, [patch_size], 1, 0, start="given", repeats=0, border=border)
    return Solver(images, problem, nnf, None).solve()[2]


class Images(NamedTuple):
    """The images [B, H, W, C] of one pyramid level. A missing style or guide has 0 channels."""

    source_style: Bytes
    target_style: Bytes | None  # None if it is to be painted
    source_guides: Bytes
    target_guides: Bytes
    modulation: Bytes | None = None  # like target_guides


@dataclass(frozen=True)
class Problem:
    """The settings of a call.

    Attributes:
        weights: One per channel, style before guides.
        patches: Patch size of each round of search (and vote) at every level. Without rounds, the first one is used to
            vote and to measure errors.
        levels: Pyramid levels (0 = as many as fit).
        sweeps: PatchMatch sweeps per search.
        start: "identity", "random" or "given".
        repeats: How often the rounds are repeated.
        radius: Of the random search in pixels (0 = the whole source).
        threshold: Stop updating pixels that changed by less than this (0 = never).
    """

    weights: list[float]
    patches: list[int]
    levels: int
    sweeps: int
    start: str
    repeats: int = 1
    radius: int = 0
    seed: int = 0
    uniformity: float = 0.0
    threshold: int = 0
    weighted_vote: bool = False
    extra_pass: bool = False
    border: str = "repeat"


def pair(source_guide: Bytes, target_guide: Bytes, source_style: Bytes | None, target_style: Bytes | None) -> Images:
    """Collect the images of a pair. Without a target style, it is painted; without styles, only guides count."""
    if source_style is None or source_style.shape[3] == 0:
        source_style, target_style = source_guide[..., :0], target_guide[..., :0]
    return Images(source_style, target_style, source_guide, target_guide)


def even_weights(images: Images, style_weight: float, guide_weight: float) -> list[float]:
    """Spread one weight over the style's channels and one over the guides'."""
    styles, guides = images.source_style.shape[3], images.source_guides.shape[3]
    style, guide = (float(np.float32(weight)) for weight in (style_weight, guide_weight))
    return [style / styles for _ in range(styles)] + [guide / guides for _ in range(guides)]


@contextmanager
def threads_for(images: Images) -> Iterator[None]:
    """Use all threads, or a single one for small images."""
    threads = get_num_threads()
    pixels = max(int(np.prod(image.shape[:3])) for image in (images.source_guides, images.target_guides))
    set_num_threads(threads if pixels >= MIN_PARALLEL else 1)
    try:
        yield
    finally:
        set_num_threads(threads)


class Solver:
    """Alternates search and vote, from coarse to fine."""

    field: Integers  # of the current level
    style: Bytes  # the target's

    def __init__(self, images: Images, problem: Problem, nnf: Field | None, progress: Progress) -> None:
        self.images, self.problem, self.nnf, self.progress = images, problem, nnf, progress or (lambda fraction: None)
        self.patch = problem.patches[0]  # of the last round
        self.border = max(problem.patches) // 2
        side = min(*images.source_guides.shape[1:3], *images.target_guides.shape[1:3])
        self.levels = 1
        while side // 2 >= 2 * max(problem.patches) + 1 and self.levels != problem.levels:
            side, self.levels = side // 2, self.levels + 1
        # Weights are fixed-point numbers, so that errors are exact integers. Modulation multiplies them by up to 255.
        total = 0.0
        for weight in problem.weights:  # not sum(), which newer versions of Python round differently
            total += weight
        self.scale = 268435456.0 / total
        divisor = 1.0 if images.modulation is None else 255.0
        weights = np.array([int(weight * self.scale / divisor + 0.5) for weight in problem.weights], np.uint32)
        self.used_channels = np.flatnonzero(weights)
        self.weights = weights[self.used_channels]

    def solve(self) -> tuple[Bytes, Field, Floats]:
        """Return the target's style [B, H, W, S], the field int32 [B, H, W, 2] and its error float32 [B, H, W]."""
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
            error = errors(self.field, self.comparison(self.patch))
            self.progress(1.0)
        return self.style, self.field.astype(np.int32), (error * (1.0 / self.scale)).astype(np.float32)

    def enter_level(self, level: int, images: Images) -> None:
        """Prepare the features of a level and its field, from the previous level if there is one."""
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
        if images.modulation is not None:  # styles are not modulated
            full = np.full((batch, *target, images.source_style.shape[3]), 255, np.uint8)
            self.modulation = self.features(full, images.modulation)
        if images.target_style is None:
            self.source_style = pad(images.source_style, self.border, self.problem.border)
            ones = np.ones((batch, *target), np.int64)
            self.paint(vote(self.source_style, self.field, ones, self.problem.patches[0], self.border))
        else:
            self.paint(images.target_style)

    def paint(self, style: Bytes) -> None:
        """Set the target's style."""
        self.style, self.target = style, self.features(style, self.images.target_guides)

    def features(self, style: Bytes, guides: Bytes) -> Bytes:
        """Return what patches are compared on: channels with a weight, with a border, [B, H, W * channels]."""
        channels = np.concatenate([style, guides], axis=3)[..., self.used_channels]
        both = pad(channels, self.border, self.problem.border)
        return both.reshape(*both.shape[:2], -1)

    def round(self, patch: int, uniformity: float) -> None:
        """Search with patches of this size, then vote."""
        _, height, width = self.images.source_guides.shape[:3]
        # The radius of the random search is halved at each step, or divided by 4 at the finest level.
        radius, shrink = min(self.problem.radius or MASK, max(height, width)), 2 if self.level else 4
        how = self.comparison(patch, uniformity)
        self.patch, error = patch, errors(self.field, how)
        for _ in range(self.problem.sweeps):
            key, forward, shift = mix_in(self.key, self.sweep), self.sweep % 2 == 0, self.sweep // 2 % 2 * (TILE // 2)
            for colour in range(COLOURS):
                if how.usage_cost:
                    covered = box_sum(count(self.field, height, width), patch, False)  # patches per pixel
                    how = how._replace(usage=box_sum(covered, patch, True))  # their sum over a patch
                sweep(self.field, error, self.active, how, radius, shrink, forward, shift, colour, key)
            self.sweep += 1
        if self.images.target_style is None:
            self.vote(patch, error)

    def comparison(self, patch: int, uniformity: float = 0.0) -> Comparison:
        """Describe how patches of this size are compared. Usage is not measured yet."""
        (batch, *source), target = self.images.source_guides.shape[:3], self.images.target_guides.shape[1:3]
        area = float(patch * patch)
        even = float(target[0] * target[1]) / float(source[0] * source[1]) * area
        cost = int(min(uniformity * self.scale / (area * even) + 0.5, 1073741824.0)) if uniformity > 0 else 0
        weights, usage = np.tile(self.weights, patch), np.zeros((batch, *source), np.int64)
        inset = self.border - patch // 2
        return Comparison(self.source, self.target, self.modulation, weights, usage, cost, patch, inset)

    def vote(self, patch: int, error: Integers) -> None:
        """Paint the target's style and find the pixels that still need a search."""
        weight = self.vote_weight(patch, error) if self.problem.weighted_vote else np.ones_like(error)
        style = vote(self.source_style, self.field, weight, patch, self.border)
        if self.problem.threshold > 0:
            moved = np.abs(style.astype(np.int16) - self.style).max(axis=3) >= self.problem.threshold
            self.active = box_sum(moved.astype(np.int64), patch, False) != 0
        self.paint(style)

    def vote_weight(self, patch: int, error: Integers) -> Integers:
        """Weigh the patch of each pixel, [B, H, W]: 2^20 / (1 + error per value), at least 1."""
        unit, shift = self.scale * patch * patch * len(self.problem.weights), 0
        while unit > TWO_40 and shift < 62:  # keeps the next line within 64 bits
            unit, shift = unit / 2, shift + 1
        whole = max(1, int(min(unit, TWO_40)))
        weights: Integers = np.maximum(1, (whole << 20) // (whole + (error >> shift)))
        return weights


def halve(image: Bytes) -> Bytes:
    """Average blocks of 2 x 2 pixels, rounded. An odd last row or column is dropped."""
    _, height, width, _ = image.shape
    y, x, wide = np.arange(max(1, height // 2)) * 2, np.arange(max(1, width // 2)) * 2, image.astype(np.uint16)
    rows = wide[:, y] + wide[:, np.minimum(y + 1, height - 1)]
    return ((rows[:, :, x] + rows[:, :, np.minimum(x + 1, width - 1)] + 2) // 4).astype(np.uint8)


def identity_field(batch: int, target: Size, source: Size) -> Integers:
    """Match each pixel to its own position, scaled."""
    y, x = (np.arange(target[axis]) * source[axis] // target[axis] for axis in (0, 1))
    return np.tile(np.stack(np.meshgrid(y, x, indexing="ij"), axis=2), (batch, 1, 1, 1))


def import_field(nnf: Field, shift: int, target: Size, source: Size) -> Integers:
    """Shrink the caller's field by 2^shift and clamp its entries to the source."""
    y, x = (np.minimum(np.arange(target[axis]) << shift, nnf.shape[1 + axis] - 1) for axis in (0, 1))
    return in_order(np.clip(nnf[:, y[:, None], x].astype(np.int64) >> shift, 0, np.array(source) - 1))


def double_field(field: Integers, target: Size, source: Size) -> Integers:
    """Enlarge a field to the next finer level."""
    y, x = (np.arange(target[axis]) for axis in (0, 1))
    fine = 2 * field[:, np.minimum(y // 2, field.shape[1] - 1)[:, None], np.minimum(x // 2, field.shape[2] - 1)]
    fine += np.stack(np.meshgrid(y & 1, x & 1, indexing="ij"), axis=2)
    return in_order(np.minimum(fine, np.array(source) - 1))


def pad(image: Bytes, width: int, border: str) -> Bytes:
    """Add a border that repeats the nearest pixel or is zero."""
    sides = ((0, 0), (width, width), (width, width), (0, 0))
    return in_order(np.pad(image, sides, mode="edge") if border == "repeat" else np.pad(image, sides))


def in_order(array: NDArray[T]) -> NDArray[T]:
    """Return the array C-contiguous. NumPy's indexing can produce other layouts, for which numba would recompile."""
    return np.ascontiguousarray(array)
