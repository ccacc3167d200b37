"""Prompts over time: which prompts a frame has."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from fractions import Fraction
from typing import TypeAlias

from stages.base.cache import FrameCache
from stages.base.errors import UsageError
from stages.base.json_types import Values
from stages.diffusion.settings import Mix

Schedule: TypeAlias = tuple[tuple[int, int], ...]
"""The frames from which prompts apply, ascending, each with the index of its prompt."""

TOLERANCE = 1e-3  # s


def frame_times(cache: FrameCache) -> list[float]:
    """Return the times of the extracted frames in seconds from the first one."""
    frames = cache["frames"]
    played: Values = frames.attrs.asdict()
    times = played["times"] or [index / float(Fraction(str(played["fps"]))) for index in range(len(frames))]
    return [time - times[0] for time in times]


def schedule_of(prompt: str | Mapping[str, str], times: list[float]) -> Schedule:
    """Return the schedule of a job's `prompt`.

    Args:
        prompt: A text, or texts by frame ("48") or time ("2.5s").
        times: The times of all frames in seconds from the first one, ascending.

    Raises:
        UsageError: Two prompts begin at the same frame, or one after the last frame.
    """
    if isinstance(prompt, str):
        return ()
    begins: dict[int, tuple[str, int]] = {}
    for index, moment in enumerate(prompt):
        frame = bisect_left(times, float(moment[:-1]) - TOLERANCE) if moment.endswith("s") else int(moment)
        if frame >= len(times):
            raise UsageError(
                f"prompt: {moment!r} is after the last frame",
                f"the frames are numbered 0 to {len(times) - 1}, the last one begins at {times[-1]:.2f} s",
            )
        if frame in begins:
            raise UsageError(f"prompt: {begins[frame][0]!r} and {moment!r} are the same frame", "remove one")
        begins[frame] = moment, index
    return tuple((frame, index) for frame, (_, index) in sorted(begins.items()))


def mix_at(schedule: Schedule, frame: int, scene: range) -> Mix:
    """Return the prompts of a frame.

    Between two prompts that begin in its scene, one turns into the other evenly. Before the first and after the last of
    these, and in a scene in which none begins, there is one prompt.

    Args:
        schedule: When prompts begin.
        frame: Number of the frame.
        scene: The frames of its scene.
    """
    begins = [begin for begin, _ in schedule]
    inside = range(bisect_left(begins, scene.start), bisect_left(begins, scene.stop))
    if not inside:
        index = schedule[max(inside.start - 1, 0)][1]
        return index, index, 0.0
    place = bisect_right(begins, frame) - 1
    before, after = (schedule[min(max(at, inside.start), inside.stop - 1)] for at in (place, place + 1))
    if before == after:
        return before[1], before[1], 0.0
    return before[1], after[1], (frame - before[0]) / (after[0] - before[0])
