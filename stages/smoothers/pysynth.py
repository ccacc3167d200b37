"""PySynth, DiffSynth's published smoother (arXiv 2308.03463): each frame is the mean of its window, carried onto it.

Frames are carried by guided patch matching. `slowest` carries every frame of the window directly. `fastest` uses the
blending tables of FastBlend (arXiv 2311.09265, section 3.2), which need O(log window) carries per frame.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import model_validator

from native import binding
from stages.base.errors import DiffSynthError
from stages.base.numbers import Count
from stages.smoothers import KEPT, OBSOLETE_KEYS, SMOOTHERS, Frames, MatchingOptions, SmootherOptions

KEPT_BYTES = 128 * 2**20  # blended frames that each side keeps for later frames ...
KEPT_LEAST = 32  # ... or this many frames, if these are more: each level of the tables needs one

Image = np.ndarray
"""uint8 RGB [H, W, 3]."""

Read = Callable[[int], Image]
"""A frame by its index."""

Carry = Callable[[Image, int, int], Image]
"""carry(image, i, j): an image that belongs to frame i, carried onto frame j."""


@SMOOTHERS.register
class PySynth(SmootherOptions):
    """Remap and blend: every pair in the window (slowest) or blending tables (fastest)."""

    name = "PySynthSmoother"
    obsolete = tuple(key for key in OBSOLETE_KEYS if key not in MatchingOptions.model_fields)
    speed: Literal["fastest", "slowest"] = "fastest"
    window_size: Count | None = None
    """Frames to each side, any number; null: the whole video."""
    ebsynth_config: MatchingOptions = MatchingOptions()
    """How frames are carried onto each other."""

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, data: Any) -> Any:
        """Older files give the options of `ebsynth_config` beside the others."""
        if not isinstance(data, dict):
            return data
        moved = {key: data[key] for key in MatchingOptions.model_fields if key in data}
        rest = {key: value for key, value in data.items() if key not in moved}
        return {**rest, "ebsynth_config": {**moved, **rest.get("ebsynth_config", {})}} if moved else data

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
    """Mean of each frame and of all frames within `window_size` of it, carried onto it, truncated to bytes.

    The window is cut at the ends of the video. All results are functions of the video and the options alone.

    Args:
        guides: Frames of the original video.
        styles: Frames of the stylised video.
        speed: "slowest" carries each frame of a window directly, "fastest" carries blends of 1, 2, 4, ... frames.
        window_size: Frames to each side; None is the whole video. Any size works in bounded memory.
        patch_size: Side of the patches in pixels, odd, 3..31.
        num_iter: Rounds of search and vote at each size of the picture, 1..64.
        guide_weight: Weight of the guide's differences; those of the style have weight 1.
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
        self.carry = carry = PatchMatching(guides, patch_size, num_iter, guide_weight, device)
        last = self.count - 1
        self.left = BlendingTables(style, self.count, carry, self.reach, ascending=True)
        # The right side is the left side of the reversed video, whose frames are asked for in descending order.
        self.right = BlendingTables(
            lambda i: style(last - i), self.count, lambda image, i, j: carry(image, last - i, last - j), self.reach,
            ascending=False,
        )  # fmt: skip

    def smooth(self, start: int, stop: int) -> np.ndarray:
        mean = self._mean_of_pairs if self.speed == "slowest" else self._mean_of_blends
        smoothed = np.stack([mean(index) for index in range(start, stop)])
        if stop == self.count:
            self.left.kept.clear()
            self.right.kept.clear()
        return smoothed

    def _mean_of_pairs(self, index: int) -> Image:
        window = range(max(index - self.reach, 0), min(index + self.reach + 1, self.count))
        total = np.zeros(self.style(index).shape, np.int32)
        for other in window:
            image = self.style(other)
            total += image if other == index else self.carry(image, other, index)
        return (total // len(window)).astype(np.uint8)

    def _mean_of_blends(self, index: int) -> Image:
        left, frames_left = self.left.total(index)
        right, frames_right = self.right.total(self.count - 1 - index)
        total = left + right - self.style(index)  # which both sides hold
        return np.clip(total // (frames_left + frames_right - 1), 0, 255).astype(np.uint8)


class PatchMatching:
    """Carries images by guided patch matching, as published: in error and vote, there is black outside the picture."""

    def __init__(self, guides: Frames, patch_size: int, num_iter: int, guide_weight: float, device: str):
        self.guide = recent(guides)
        self.patch_size, self.num_iter, self.guide_weight, self.device = patch_size, num_iter, guide_weight, device

    def __call__(self, image: Image, source: int, target: int) -> Image:
        """`image`, which belongs to frame `source`, carried onto frame `target`."""
        where = library_options(self.device)
        try:
            found = binding.match(
                self.guide(source)[None],
                self.guide(target)[None],
                image[None],
                guide_weight=self.guide_weight,
                patch_sizes=[self.patch_size] * self.num_iter,
                patch_match_iterations=1,
                border="zero",
                **where,
            )
            return binding.remap(image[None], found.nnf, patch_size=self.patch_size, border="zero", **where)[0]
        except binding.EbsynthError as error:
            raise DiffSynthError(str(error)) from error


def library_options(device: str) -> dict[str, Any]:
    """Back end and device of the patch-matching library for the `device` of a job."""
    if device in ("cpu", "mps"):
        return {"backend": "cpu" if binding.library_path().exists() else "numba"}
    return {"backend": "auto", "device": int(device.partition(":")[2] or 0)}


def recent(frames: Frames) -> Read:
    """Reads frames as arrays that the library takes, and keeps the last few."""
    return lru_cache(KEPT)(lambda index: np.ascontiguousarray(frames[index]))


class Run(NamedTuple):
    """The 2^level frames up to and including `end`, where 2^level divides end + 1."""

    end: int
    level: int

    @property
    def start(self) -> int:
        return self.end + 1 - (1 << self.level)

    @property
    def halves(self) -> tuple[Run, Run]:
        """The first and the second half."""
        return Run(self.end - (1 << self.level - 1), self.level - 1), Run(self.end, self.level - 1)

    def needed(self, reach: int) -> range:
        """The frames whose windows, `reach` frames back, are made of this run or of one that it is the first half of.

        Windows are made of the longest runs that fit, so a first half is used until the run that it belongs to is
        complete, and a second half once the window no longer holds the first.
        """
        length = 1 << self.level
        if self.end + 1 >> self.level & 1:
            return range(self.end, min(self.end + length, self.start + reach) + 1)
        return range(max(self.end, self.start - length + reach + 1), self.start + reach + 1)


def runs(first: int, last: int) -> list[Run]:
    """The longest runs that frames first..last are made of, the one that ends last first."""
    found = []
    while last >= first:
        level = 0
        while last >> level & 1 and last + 1 - (2 << level) >= first:
            level += 1
        found.append(Run(last, level))
        last -= 1 << level
    return found


class BlendingTables:
    """Means of runs of frames, each carried onto the last frame of its run.

    A run's mean is that of its second half and of its first half, carried. It depends on the video alone and is
    computed wherever it is needed. Those that later frames need are kept as far as KEPT_BYTES allows. Short runs, which
    are quick to compute again, make way for long ones.

    Args:
        read: Reads the frames to be blended.
        count: Number of frames.
        carry: Carries an image from one of these frames to another.
        reach: Frames of a window before its last.
        ascending: Whether totals are asked for in ascending order; others cost time, not correctness.
    """

    def __init__(self, read: Read, count: int, carry: Carry, reach: int, ascending: bool):
        self.read, self.count, self.carry, self.reach, self.ascending = read, count, carry, reach, ascending
        self.kept: dict[Run, Image] = {}

    def total(self, index: int) -> tuple[np.ndarray, int]:
        """The sum, int32 [H, W, 3], of frame `index` and the `reach` before it, carried onto it; how many these are."""
        first = max(index - self.reach, 0)
        total = np.zeros(self.read(index).shape, np.int32)
        for run in runs(first, index):
            image = self.blend(run, index)
            total += (image if run.end == index else self.carry(image, run.end, index)).astype(np.int32) << run.level
        self.kept = {run: image for run, image in self.kept.items() if self._needed_after(run, index)}
        return total, index + 1 - first

    def blend(self, run: Run, index: int) -> Image:
        """The mean of a run, which is needed for frame `index`."""
        if run.level == 0:
            return self.read(run.end)
        if run not in self.kept:
            first, second = run.halves
            carried = self.carry(self.blend(first, index), first.end, run.end)
            mean = np.rint((carried.astype(np.float32) + self.blend(second, index)) / 2).astype(np.uint8)
            if not self._needed_after(run, index):
                return mean
            self.kept[run] = mean
            if len(self.kept) > max(KEPT_BYTES // mean.nbytes, KEPT_LEAST):
                del self.kept[min(self.kept, key=lambda kept: kept.level)]
            return mean
        return self.kept[run]

    def _needed_after(self, run: Run, index: int) -> bool:
        """Whether any frame after `index` in the order of work needs a run."""
        needed = run.needed(self.reach)
        last = min(needed.stop, self.count) - 1
        return needed.start <= last and (last > index if self.ascending else needed.start < index)
