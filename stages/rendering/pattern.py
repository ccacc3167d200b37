"""Which frames each frame attends to, by the job's `combine_pattern`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Item = int | str
"""A frame number, an offset to a frame, or "reference_k"."""


def attended_frames(pattern: Sequence[Item], frames: Sequence[int], scene: range) -> list[list[Item]]:
    """Return what each of `frames` attends to: frame numbers, clamped to those of their scene, and references."""
    return [
        [item if isinstance(item, str) else min(max(frame + item, scene.start), scene.stop - 1) for item in pattern]
        for frame in frames
    ]


def shared_window(
    pattern: Sequence[Item], chunk: Sequence[int], scene: range
) -> tuple[list[int], list[Item], list[list[int]]]:
    """Return the window of frames that go through the networks together for `chunk`, with shared attention.

    Returns:
        - The frames of the window: those of the chunk and the neighbours that they attend to.
        - The anchors, which all frames of the scene attend to.
        - What each frame of the window attends to, as indexes into the frames followed by the anchors. A neighbour that
          would attend to a frame outside the window attends to the nearest frame of the window instead.
    """
    anchored = [isinstance(item, str) or (item != 0 and abs(item) >= len(scene) - 1) for item in pattern]
    near = [item for item, far in zip(pattern, anchored, strict=True) if not far]
    frames = ordered(item for group in attended_frames(near, chunk, scene) for item in group)
    groups = attended_frames(pattern, frames, scene)
    anchors = ordered(item for group in groups for item, far in zip(group, anchored, strict=True) if far)
    indexes = {frame: index for index, frame in enumerate(frames)}

    def place(item: Item, far: bool) -> int:
        if far or isinstance(item, str):
            return len(frames) + anchors.index(item)
        return indexes[item] if item in indexes else min(indexes.values(), key=lambda index: abs(frames[index] - item))

    return frames, anchors, [[place(*pair) for pair in zip(group, anchored, strict=True)] for group in groups]


def ordered(items: Iterable[Item]) -> list[Any]:
    """Return each item once: frames in order, then references in order."""
    return sorted(set(items), key=lambda item: (isinstance(item, str), reference_number(str(item))))


def split(items: Iterable[Item]) -> tuple[list[int], list[int]]:
    """The frames among the items, and the numbers of the references."""
    items = list(items)
    return (
        [item for item in items if isinstance(item, int)],
        [reference_number(item) for item in items if isinstance(item, str)],
    )


def reference_number(item: str) -> int:
    """Return k of "reference_k"."""
    return int(item.removeprefix("reference_"))
