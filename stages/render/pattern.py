"""Which frames go through the networks together, by the job's `combine_pattern`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Item = int | str
"""A frame by its number, or an offset to it, or reference_k."""


def attended_frames(pattern: Sequence[Item], frames: Sequence[int], count: int) -> list[list[Item]]:
    """For each of `frames`, what the pattern names: offsets clamped to 0..count-1, references as they are."""
    return [
        [item if isinstance(item, str) else min(max(frame + item, 0), count - 1) for item in pattern]
        for frame in frames
    ]


def shared_window(
    pattern: Sequence[Item], chunk: Sequence[int], count: int
) -> tuple[list[int], list[Item], list[list[int]]]:
    """What goes through the networks together for the frames of `chunk`, where attention is shared.

    Returns:
        The frames of the chunk and those that they see; anchors, which all frames of the video see; and for each of the
        frames whom it sees, as indexes into both, one after another. Frames at the rim, which are only there to be
        seen, see the nearest frame of the window in place of those outside.
    """
    anchored = [isinstance(item, str) or (item != 0 and abs(item) >= count - 1) for item in pattern]
    near = [item for item, far in zip(pattern, anchored, strict=True) if not far]
    frames = ordered(item for group in attended_frames(near, chunk, count) for item in group)
    groups = attended_frames(pattern, frames, count)
    anchors = ordered(item for group in groups for item, far in zip(group, anchored, strict=True) if far)

    def place(item: Item, far: bool) -> int:
        if far or isinstance(item, str):
            return len(frames) + anchors.index(item)
        return min(range(len(frames)), key=lambda index: abs(frames[index] - item))

    return frames, anchors, [[place(*pair) for pair in zip(group, anchored, strict=True)] for group in groups]


def ordered(items: Iterable[Item]) -> list[Any]:
    """Each item once: frames in order, then references in order."""
    return sorted(set(items), key=lambda item: (isinstance(item, str), reference_number(str(item))))


def split(items: Iterable[Item]) -> tuple[list[int], list[int]]:
    """The frames among the items, and the numbers of the references."""
    items = list(items)
    return (
        [item for item in items if isinstance(item, int)],
        [reference_number(item) for item in items if isinstance(item, str)],
    )


def reference_number(item: str) -> int:
    """k of reference_k."""
    return int(item.removeprefix("reference_"))
