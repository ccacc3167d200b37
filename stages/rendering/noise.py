"""Which noise each rendered frame gets: the job's `noise`.

Noise that follows the motion of the video needs to know where each subpixel comes from. That is found in two phases, so
that the first one, which estimates motion, can run its chunks in any order:

- For each frame, the place of every subpixel in the frame before its chunk, or that it is fresh ("noise_origins").
- For the last frame of each chunk, the index of every subpixel ("noise_ends").

Subpixels of a scene are indexed frame by frame and row by row, by the frame and place at which they appeared.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.base.arrays import Field, Floats, Flow
from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Task
from stages.base.overlap import Reads
from stages.base.scenes import scene_of, split
from stages.diffusion import LATENT_FACTOR, SUBPIXELS
from stages.tasks import Picked

if TYPE_CHECKING:
    import torch

    from stages.rendering.plan import RenderPlan

ORIGINS, ENDS = "noise_origins", "noise_ends"
FOLLOWED = 16  # frames per chunk. Between chunks, fractions of a subpixel are forgotten
ROUNDS = 2  # of asking for a place; those that do not get the nearest one ask for another
FARTHEST = 1.0  # subpixels between a subpixel and where it should be
SUBPIXEL = LATENT_FACTOR // SUBPIXELS  # px


def noise_arrays(count: int, cuts: Sequence[int], size: tuple[int, int]) -> list[ArraySpec]:
    """Return the arrays that noise which follows motion needs for `count` rendered frames of this size."""
    grid = tuple(side // SUBPIXEL for side in size)
    ends = (len(chunk_starts(count, cuts)), *grid)
    return [ArraySpec(ORIGINS, (count, *grid), "int32"), ArraySpec(ENDS, ends, "int64")]


def chunk_starts(count: int, cuts: Sequence[int]) -> list[int]:
    """Return the first frame of each chunk."""
    return [start for scene in split(count, cuts) for start in scene[::FOLLOWED]]


# --- following the motion -------------------------------------------------------------------------------


@dataclass
class FollowMotionTask(Task):
    """Find where the subpixels of frames come from."""

    plan: RenderPlan

    @property
    def chunk(self) -> int:
        return FOLLOWED

    @property
    def kind(self) -> str:
        return "follow the motion"

    def reads(self, start: int, stop: int) -> Reads:
        first = max(start - 1, self.plan.scene(start).start)
        return [("frames", (number,)) for number in self.plan.keys[first:stop]]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        frames, begins = Picked(cache["frames"], self.plan.keys), start == self.plan.scene(start).start
        motions = self._motions(frames, range(start + begins, stop))
        rows, columns = (side // SUBPIXEL for side in self.plan.size)
        cache[ORIGINS].write(start, np.stack([*follow(motions, rows, columns, fresh_first=begins)]))

    @staticmethod
    def _motions(frames: Sequence[np.ndarray], followed: range) -> Iterator[Flow]:
        """Yield the flow from each of the frames `followed` to the one before."""
        from stages.smoothers.images.pixels import flow

        for index in followed:
            yield flow(frames[index], frames[index - 1])


def follow(motions: Iterator[Flow], rows: int, columns: int, *, fresh_first: bool) -> Iterator[Field]:
    """Yield where the subpixels of successive frames come from, int32 [rows, columns] each.

    Args:
        motions: The flow from each frame to the one before, float32 [H, W, 2] in px.
        rows: Rows of subpixels.
        columns: Columns of subpixels.
        fresh_first: Whether to begin with a frame whose subpixels are all fresh.

    Yields:
        Places (row × columns + column) in the frame before the first flow, or -1 - n for the n-th fresh one, counted
        over places of all frames that are yielded.
    """
    places = np.arange(rows * columns).reshape(rows, columns)
    origins = -1 - places if fresh_first else places
    shifts = np.zeros((rows, columns, 2), np.float32)
    if fresh_first:
        yield origins.astype(np.int32)
    for number, motion in enumerate(motions, int(fresh_first)):
        sources, shifts = _sources(_on_subpixels(motion), shifts)
        fresh = -1 - (number * places.size + places)
        origins = np.where(sources < 0, fresh, origins.ravel()[sources])
        yield origins.astype(np.int32)


def _on_subpixels(motion: Flow) -> Floats:
    """Average a flow over subpixels, float32 [rows, columns, 2] in subpixels, row then column."""
    rows, columns = (side // SUBPIXEL for side in motion.shape[:2])
    means = motion.reshape(rows, SUBPIXEL, columns, SUBPIXEL, 2).mean((1, 3))[..., ::-1]
    return np.asarray(means / SUBPIXEL, np.float32)


def _sources(motion: Floats, shifts: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the place that each subpixel comes from in the frame before, -1 if it is fresh, and its shift.

    A shift [rows, columns, 2] is how far a subpixel really is from its place. It keeps slow motion from being rounded
    away. Each place is used at most once, and so the noise stays white.
    """
    sources, moved = np.full(motion.shape[:2], -1), np.zeros_like(shifts)
    used = np.zeros(sources.size, bool)
    candidates, distances = _nearby(motion, shifts)
    for _ in range(ROUNDS):
        squares = np.where(used[candidates] | (candidates < 0), np.inf, np.square(distances).sum(axis=-1))
        best = np.argmin(squares, axis=0)[None]
        asked, square = (np.take_along_axis(values, best, 0)[0] for values in (candidates, squares))
        asks = (sources < 0) & (square <= FARTHEST**2)
        gets = asks & _nearest_of_each(np.where(asks, asked, -1), square)
        sources = np.where(gets, asked, sources)
        moved = np.where(gets[..., None], np.take_along_axis(distances, best[..., None], 0)[0], moved)
        used[sources[gets]] = True
    return sources, moved


def _nearby(motion: Floats, shifts: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the places around where each subpixel was, and how far from there the subpixels at these really are.

    Returns:
        Places in the frame before, int64 [9, rows, columns], -1 outside of it.
        Distances, float32 [9, rows, columns, 2].
    """
    size, grid = np.array(motion.shape[:2]), np.moveaxis(np.indices(motion.shape[:2]), 0, 2)
    exact = grid + motion
    # Half is rounded up, so that neighbours that move alike are rounded alike. np.rint rounds half to even.
    middle = np.floor(exact + 0.5).astype(np.int64)
    near = middle + np.array([[[(row, column)]] for row in (0, -1, 1) for column in (0, -1, 1)])
    inside = ((near >= 0) & (near < size)).all(axis=-1)
    rows, columns = np.moveaxis(np.clip(near, 0, size - 1), -1, 0)
    distances = near + shifts[rows, columns] - exact
    return np.where(inside, rows * size[1] + columns, -1), distances.astype(np.float32)


def _nearest_of_each(asked: NDArray[np.int64], distances: Floats) -> NDArray[np.bool_]:
    """Mark the nearest subpixel of those that ask for the same place; of equally near ones, the first."""
    order = np.argsort(distances, axis=None, kind="stable")
    _, first = np.unique(asked.ravel()[order], return_index=True)
    marked = np.zeros(asked.size, bool)
    marked[order[first]] = True
    return marked.reshape(asked.shape)


@dataclass
class LinkChunksTask(Task):
    """Find the indexes of the subpixels of the last frame of each chunk."""

    plan: RenderPlan

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        count, cuts = len(self.plan.keys), self.plan.key_cuts
        starts = chunk_starts(count, cuts)
        before: NDArray[np.int64] | None = None
        for chunk, (first, end) in enumerate(zip(starts, [*starts[1:], count], strict=True)):
            scene = scene_of(first, count, cuts)
            before = _indexes(cache[ORIGINS].read([end - 1])[0], first - scene.start, before)
            cache[ENDS].write(chunk, before[None])


def _indexes(origins: Field, first: int, before: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the indexes of subpixels, int64 [rows, columns].

    Args:
        origins: Where they come from.
        first: The first frame of their chunk, counted from that of the scene.
        before: The indexes of the frame before it. Not used for the first chunk of a scene.
    """
    fresh = origins.astype(np.int64) + 1  # 0, -1, -2, ...
    if first == 0 or before is None:
        return -fresh
    return np.where(origins < 0, first * origins.size - fresh, before.ravel()[np.maximum(origins, 0)])


# --- drawing --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameNoise:
    """The noise of the rendered frames of a plan."""

    plan: RenderPlan

    def draw(self, cache: FrameCache, frames: Sequence[int], number: int) -> torch.Tensor:
        """Return a draw of rendered frames, by their places, float32 [len(frames), 4, h, w]. See diffusion.noise."""
        import torch

        from stages.diffusion.noise import draw, draw_for_frame, draw_for_indexes

        plan, seed = self.plan, self.plan.settings.seed
        if plan.noise == "same" or not frames:
            return draw(seed, number, *plan.size).repeat(len(frames), 1, 1, 1)
        if plan.noise == "frame":
            numbers = [self._number(frame) for frame in frames]
            return torch.cat([draw_for_frame(seed, frame, number, *plan.size) for frame in numbers])
        return torch.cat([draw_for_indexes(seed, number, self._indexes(cache, frame)[None]) for frame in frames])

    def reads(self, frames: Sequence[int]) -> Reads:
        """What `draw` reads."""
        if self.plan.noise != "warped":
            return []
        ends = {chunk - 1 for frame in frames if (chunk := self._chunk(frame)[0]) is not None}
        return [*((ORIGINS, (frame,)) for frame in frames), *((ENDS, (end,)) for end in sorted(ends))]

    def _number(self, frame: int) -> int:
        """The number of a rendered frame in the video, counted from the first frame of its scene."""
        number = self.plan.keys[frame]
        return number - scene_of(number, self.plan.frames, self.plan.cuts).start

    def _chunk(self, frame: int) -> tuple[int | None, int]:
        """The number of a frame's chunk, None if it is the first of its scene, and its first frame in the scene."""
        starts, scene = chunk_starts(len(self.plan.keys), self.plan.key_cuts), self.plan.scene(frame)
        chunk = bisect_right(starts, frame) - 1
        return (None if starts[chunk] == scene.start else chunk), starts[chunk] - scene.start

    def _indexes(self, cache: FrameCache, frame: int) -> NDArray[np.int64]:
        chunk, first = self._chunk(frame)
        before = None if chunk is None else cache[ENDS].read((chunk - 1,))[0]
        return _indexes(cache[ORIGINS].read((frame,))[0], first, before)
