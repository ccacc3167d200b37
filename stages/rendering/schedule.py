"""Prompts over time: which prompts a frame has."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from stages.base.cache import FrameCache
from stages.base.errors import UsageError
from stages.base.json_types import Values
from stages.base.words import counted
from stages.diffusion.settings import Mix

Schedule: TypeAlias = tuple[tuple[int, int], ...]
"""The frames from which prompts apply, ascending, each with the index of its prompt. Frames may not exist."""

TOLERANCE = 1e-3  # s


@dataclass(frozen=True)
class Timing:
    """When the extracted frames are shown.

    Args:
        fps: Their frame rate, which is an average if `times` are given.
        interval: They are every k-th frame of the source.
        times: Their times in seconds from the first one. Empty if the frame rate is constant.
    """

    fps: Fraction
    interval: int = 1
    times: tuple[float, ...] = ()

    @classmethod
    def of(cls, cache: FrameCache, interval: int) -> Timing:
        """Return the timing of the frames in a cache."""
        played: Values = cache["frames"].attrs
        return cls(Fraction(str(played["fps"])), interval, tuple(played["times"] or ()))

    @property
    def source_fps(self) -> Fraction:
        """The frame rate of the source."""
        return self.fps * self.interval

    def frame_at(self, seconds: float) -> int:
        """Return the number of the first frame at or after a time, which may be before the first or after the last."""
        if self.times and 0 <= seconds <= self.times[-1]:
            return bisect_left(self.times, seconds - TOLERANCE)
        passed, last = (len(self.times) - 1, self.times[-1]) if self.times and seconds > 0 else (0, 0.0)
        return passed + math.ceil((seconds - last - TOLERANCE) * self.fps)


def schedule_of(prompt: str | Mapping[str, str], timing: Timing) -> Schedule:
    """Return the schedule of a job's `prompt`, a text or texts by frame ("48") or time ("2.5s").

    Raises:
        UsageError: Two prompts begin at the same frame.
    """
    if isinstance(prompt, str):
        return ()
    begins: dict[int, tuple[str, int]] = {}
    for index, moment in enumerate(prompt):
        frame = timing.frame_at(float(moment[:-1])) if moment.endswith("s") else int(moment)
        if frame in begins:
            raise UsageError(f"prompt: {begins[frame][0]!r} and {moment!r} are the same frame", "remove one")
        begins[frame] = moment, index
    return tuple((frame, index) for frame, (_, index) in sorted(begins.items()))


def unreached_warning(prompt: str | Mapping[str, str], schedule: Schedule, count: int) -> str:
    """Describe prompts that begin after the last of `count` frames. Empty if there are none."""
    late = [index for frame, index in schedule if frame >= count]
    if not late:
        return ""
    moments = ", ".join(list(prompt)[index] for index in late)
    return f"prompt: there are {counted(count, 'frame')}, so these begin after the last one: {moments}"


def mix_at(schedule: Schedule, frame: int, scene: range, count: int) -> Mix:
    """Return the prompts of a frame.

    Between two prompts that begin in its scene, one turns into the other evenly. Before the first and after the last of
    these, and in a scene in which none begins, there is one prompt.

    Args:
        schedule: When prompts begin. The first and the last scene also have what begins before and after the video.
        frame: Number of the frame.
        scene: The frames of its scene.
        count: Number of frames of the video.
    """
    begins = [begin for begin, _ in schedule]
    first = bisect_left(begins, scene.start) if scene.start > 0 else 0
    stop = bisect_left(begins, scene.stop) if scene.stop < count else len(begins)
    if first == stop:
        index = schedule[max(first - 1, 0)][1]
        return index, index, 0.0
    place = bisect_right(begins, frame) - 1
    before, after = (schedule[min(max(at, first), stop - 1)] for at in (place, place + 1))
    if before == after:
        return before[1], before[1], 0.0
    return before[1], after[1], (frame - before[0]) / (after[0] - before[0])
