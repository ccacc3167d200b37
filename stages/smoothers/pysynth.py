"""PySynth, DiffSynth's published smoother (arXiv 2308.03463): each frame is averaged with its window.

The window's frames are first warped onto the frame by guided patch matching. `slowest` warps every one of them.
`fastest` uses the blending tables of FastBlend (arXiv 2311.09265, section 3.2), with O(log window) warps per frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from native import binding
from stages.base.arrays import Image, Images
from stages.base.numbers import Count
from stages.smoothers import CACHED_FRAMES, OBSOLETE_KEYS, SMOOTHERS, Frames, MatchingOptions, SmootherOptions
from stages.smoothers.images.library import batched, library_errors, library_options, pairs_at_once
from stages.smoothers.images.tables import WHOLE_VIDEO_REACH, per_frame_beyond

CACHE_BYTES = 128 * 2**20  # of blended frames per side ...
MIN_CACHED = 32  # ... but at least this many, since each level of the tables needs one
WINDOW_PER_FRAME = 6  # frames of the window whose tables take as long as smoothing one frame; measured at 63

Read = Callable[[int], Image]
"""Reads a frame by its index."""

Warp = Callable[[Iterable[tuple[Image, int]], int], Iterable[Image]]
"""warp([(image, i), ...], j) warps images that belong to frames i onto frame j."""


@SMOOTHERS.register
class PySynth(SmootherOptions):
    """Average each frame with its window, warped onto it by patch matching. DiffSynth's published smoother."""

    name = "PySynthSmoother"
    obsolete = tuple(key for key in OBSOLETE_KEYS if key not in MatchingOptions.model_fields)
    speed: Literal["fastest", "slowest"] = "fastest"
    window_size: Count | None = None
    """Frames to each side (null = the whole video)."""
    ebsynth_config: MatchingOptions = MatchingOptions()
    """Options of patch matching."""

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, data: object) -> object:
        """Accept the options of `ebsynth_config` next to the others, as in older job files."""
        if not isinstance(data, dict):
            return data
        moved = {key: data[key] for key in MatchingOptions.model_fields if key in data}
        rest = {key: value for key, value in data.items() if key not in moved}
        return {**rest, "ebsynth_config": {**moved, **rest.get("ebsynth_config", {})}} if moved else data

    @property
    def warm_up(self) -> int:
        reach = WHOLE_VIDEO_REACH if self.window_size is None else min(self.window_size, WHOLE_VIDEO_REACH)
        return reach // WINDOW_PER_FRAME if self.speed == "fastest" else 0

    def pairs(self, frames: int) -> float:
        reach = frames if self.window_size is None else min(self.window_size, frames)
        if self.speed == "slowest":
            return float(sum(min(index, reach) + min(frames - 1 - index, reach) for index in range(frames)))
        return per_frame_beyond(lambda count: table_pairs(count, reach), frames, reach)

    def build(self, guides: Frames, styles: Frames, device: str) -> PySynthSmoother:
        return PySynthSmoother(
            guides,
            styles,
            speed=self.speed,
            window_size=self.window_size,
            device=device,
            **self.ebsynth_config.model_dump(),
        )


class PySynthSmoother:
    """Averages each frame with all frames within `window_size` of it, warped onto it, truncated to bytes.

    Windows are cut off at the ends of the video. Results depend on the video and the options only.

    Args:
        guides: Frames of the original video.
        styles: Frames of the stylised video.
        speed: "slowest" warps each frame of a window, "fastest" warps blends of 1, 2, 4, ... frames.
        window_size: Frames to each side (None = the whole video). Memory is bounded for any size.
        patch_size: Side of the patches in pixels, odd, 3..31.
        num_iter: Rounds of search and vote per pyramid level, 1..64.
        guide_weight: Weight of the guide in matching; the style has weight 1.
        device: Device of the job: auto, cpu, mps, cuda or cuda:N.
    """

    def __init__(
        self,
        guides: Frames,
        styles: Frames,
        *,
        speed: str,
        window_size: int | None,
        patch_size: int,
        num_iter: int,
        guide_weight: float,
        device: str,
    ):
        self.speed, self.count = speed, len(styles)
        self.reach = self.count if window_size is None else window_size
        self.style = style = recent(styles)
        self.warp = warp = PatchMatching(guides, patch_size, num_iter, guide_weight, device)
        last = self.count - 1
        self.left = BlendingTables(style, self.count, warp, self.reach, ascending=True)
        # The right side is the left side of the reversed video, which is processed in descending order.
        self.right = BlendingTables(
            lambda i: style(last - i), self.count,
            lambda images, j: warp(((image, last - i) for image, i in images), last - j), self.reach, ascending=False,
        )  # fmt: skip

    def smooth(self, start: int, stop: int) -> Images:
        mean = self._mean_of_pairs if self.speed == "slowest" else self._mean_of_blends
        smoothed = np.stack([mean(index) for index in range(start, stop)])
        if stop == self.count:
            self.left.cache.clear()
            self.right.cache.clear()
        return smoothed

    def _mean_of_pairs(self, index: int) -> Image:
        window = range(max(index - self.reach, 0), min(index + self.reach + 1, self.count))
        total = self.style(index).astype(np.int32)
        for warped in self.warp(((self.style(other), other) for other in window if other != index), index):
            total += warped
        return (total // len(window)).astype(np.uint8)

    def _mean_of_blends(self, index: int) -> Image:
        left, frames_left = self.left.total(index)
        right, frames_right = self.right.total(self.count - 1 - index)
        total = left + right - self.style(index)  # which is part of both sides
        mean: Image = np.clip(total // (frames_left + frames_right - 1), 0, 255).astype(np.uint8)
        return mean


class PatchMatching:
    """Warps images by guided patch matching, as published: outside of images, error and vote see black."""

    def __init__(self, guides: Frames, patch_size: int, num_iter: int, guide_weight: float, device: str):
        self.guide = recent(guides)
        self.patch_size, self.num_iter, self.guide_weight, self.device = patch_size, num_iter, guide_weight, device

    def __call__(self, images: Iterable[tuple[Image, int]], target: int) -> Iterator[Image]:
        """Warp images onto frame `target`. With each image comes the frame it belongs to."""
        for group in batched(images, pairs_at_once(self.device, self.guide(target))):
            yield from self._warped(group, target)

    def _warped(self, images: Sequence[tuple[Image, int]], target: int) -> Images:
        where, styles = library_options(self.device), np.stack([image for image, _ in images])
        with library_errors():
            found = binding.match(
                np.stack([self.guide(source) for _, source in images]),
                np.stack([self.guide(target)] * len(images)),
                styles,
                guide_weight=self.guide_weight,
                patch_sizes=[self.patch_size] * self.num_iter,
                patch_match_iterations=1,
                border="zero",
                **where,
            )
            warped: Images = binding.remap(styles, found.nnf, patch_size=self.patch_size, border="zero", **where)
        return warped


def table_pairs(count: int, reach: int) -> int:
    """Return how many pairs are matched with blending tables for both sides of each of `count` frames."""
    if reach >= count:  # each frame has a table entry for every 1 in the binary form of its place, and makes about one
        return sum(2 * place.bit_count() for place in range(1, count))
    pairs = 0

    def warp(images: Iterable[tuple[Image, int]], target: int) -> list[Image]:
        nonlocal pairs
        warped = [image for image, _ in images]
        pairs += len(warped)
        return warped

    blank = np.zeros((1, 1, 3), np.uint8)
    left, right = (BlendingTables(lambda index: blank, count, warp, reach, ascending) for ascending in (True, False))
    for index in range(count):
        left.total(index)
        right.total(count - 1 - index)
    return pairs


def recent(frames: Frames) -> Read:
    """Make a reader of C-contiguous frames that caches the last few."""
    return lru_cache(CACHED_FRAMES)(lambda index: np.ascontiguousarray(frames[index]))


class Run(NamedTuple):
    """A run of 2^level frames ending with `end`, where end + 1 is a multiple of 2^level."""

    end: int
    level: int

    @property
    def start(self) -> int:
        return self.end + 1 - (1 << self.level)

    @property
    def halves(self) -> tuple[Run, Run]:
        """The run's first and second half."""
        return Run(self.end - (1 << self.level - 1), self.level - 1), Run(self.end, self.level - 1)

    def needed(self, reach: int) -> range:
        """Return the frames whose windows of `reach` earlier frames use this run, directly or as a first half.

        Windows are split into the longest runs that fit. So a first half is used until its parent run is complete, and
        a second half as soon as the window no longer includes the first.
        """
        length = 1 << self.level
        if self.end + 1 >> self.level & 1:
            return range(self.end, min(self.end + length, self.start + reach) + 1)
        return range(max(self.end, self.start - length + reach + 1), self.start + reach + 1)


def runs(first: int, last: int) -> list[Run]:
    """Split frames first..last into the longest runs possible, latest run first."""
    found = []
    while last >= first:
        level = 0
        while last >> level & 1 and last + 1 - (2 << level) >= first:
            level += 1
        found.append(Run(last, level))
        last -= 1 << level
    return found


class BlendingTables:
    """Means of runs of frames, each warped onto the last frame of its run.

    A run's mean averages its second half with its warped first half. It depends on the video only and is computed when
    needed. Means that later frames need are cached as far as CACHE_BYTES allows. Short runs are dropped first, since
    they are quick to recompute.

    Args:
        read: Reads the frames to blend.
        count: Number of frames.
        warp: Warps images, each given with its frame, onto another frame.
        reach: Number of earlier frames in a window.
        ascending: Order in which totals are requested. A different order is slower, but correct.
    """

    def __init__(self, read: Read, count: int, warp: Warp, reach: int, ascending: bool):
        self.read, self.count, self.warp, self.reach, self.ascending = read, count, warp, reach, ascending
        self.cache: dict[Run, Image] = {}

    def total(self, index: int) -> tuple[NDArray[np.int32], int]:
        """Sum frame `index` and the `reach` frames before it, warped onto it.

        Returns:
            The sum, int32 [H, W, 3], and how many frames it contains.
        """
        first = max(index - self.reach, 0)
        total = np.zeros(self.read(index).shape, np.int32)
        whole = runs(first, index)
        blends = ((self.blend(run, index), run.end) for run in whole[1:])
        for run, image in zip(whole, chain([self.blend(whole[0], index)], self.warp(blends, index)), strict=True):
            total += image.astype(np.int32) << run.level
        self.cache = {run: image for run, image in self.cache.items() if self._needed_after(run, index)}
        return total, index + 1 - first

    def blend(self, run: Run, index: int) -> Image:
        """Return the mean of a run that frame `index` needs."""
        if run.level == 0:
            return self.read(run.end)
        if run not in self.cache:
            first, second = run.halves
            (warped,) = self.warp([(self.blend(first, index), first.end)], run.end)
            mean = np.rint((warped.astype(np.float32) + self.blend(second, index)) / 2).astype(np.uint8)
            if not self._needed_after(run, index):
                return mean
            self.cache[run] = mean
            if len(self.cache) > max(CACHE_BYTES // mean.nbytes, MIN_CACHED):
                del self.cache[min(self.cache, key=lambda kept: kept.level)]
            return mean
        return self.cache[run]

    def _needed_after(self, run: Run, index: int) -> bool:
        """Whether a frame processed after `index` needs a run."""
        needed = run.needed(self.reach)
        last = min(needed.stop, self.count) - 1
        return needed.start <= last and (last > index if self.ascending else needed.start < index)
