"""Scenes, the parts of a video between its cuts. Each is processed as if it were a video of its own.

Cuts are frame numbers: the first frame of each scene after the first, ascending.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, cast

from stages.base.errors import UsageError
from stages.base.words import counted

MAX_LISTED = 20  # scenes in a message

Scenes: TypeAlias = Literal["auto"] | list[int] | None
"""What a user asks for: cuts to be found, a list of cuts, or the whole video as one scene."""


def check_scenes(value: object) -> Scenes:
    """Return `value` if it is valid for a video of any length, else raise ValueError."""
    if value is None or value == "auto" or _ascends(value):
        return cast("Scenes", value)
    from stages.base.mistakes import shown  # imports pydantic, which takes long

    raise ValueError(
        f'give "auto", or the first frame of each scene after the first, ascending from 1, not {shown(value)}'
    )


def _ascends(value: object) -> bool:
    """Whether `value` is a list of whole numbers from 1 on, each greater than the one before."""
    numbers = isinstance(value, list) and all(type(item) is int for item in value)
    return numbers and all(before < item for before, item in pairwise([0, *cast("list[int]", value)]))


def check_cuts(cuts: Sequence[int], count: float) -> None:
    """Raise UsageError if a scene begins after the last of `count` frames."""
    if cuts and cuts[-1] >= count:
        raise UsageError(
            f"scenes: the frames are numbered 0 to {int(count) - 1}, so no scene begins at {cuts[-1]}",
            "list numbers in this range",
        )


def split(count: int, cuts: Sequence[int]) -> list[range]:
    """Return the frames of each scene of a video of `count` frames."""
    return [range(start, stop) for start, stop in pairwise((0, *cuts, count))]


def scene_of(index: int, count: int, cuts: Sequence[int]) -> range:
    """Return the frames of the scene that contains frame `index`."""
    return split(count, cuts)[bisect_right(cuts, index)]


def scene_without(keys: Iterable[int], cuts: Sequence[int]) -> int | None:
    """Return the first frame of a scene that contains none of the frames `keys`. None if there is no such scene."""
    used = {bisect_right(cuts, key) for key in keys}
    return next((start for place, start in enumerate((0, *cuts)) if place not in used), None)


def described(scenes: Sequence[range]) -> str:
    """Describe scenes by their first and last frames: "2 scenes: 0–39, 40–99"."""
    spans = [f"{scene[0]}–{scene[-1]}" for scene in scenes[:MAX_LISTED]]
    more = ", …" if len(scenes) > MAX_LISTED else ""
    return f"{counted(len(scenes), 'scene')}: {', '.join(spans)}{more}"
