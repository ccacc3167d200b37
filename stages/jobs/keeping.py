"""Which arrays of a complete job stay in its cache (`keep`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypeAlias

from stages.base.removal import matching

ArrayGroup: TypeAlias = Literal["frames", "control", "latents", "rendered", "deflickered"]

LARGE = "large_"
"""What the names of the arrays of a second pass begin with."""


def _of_both_passes(*names: str) -> tuple[str, ...]:
    return (*names, *(LARGE + name for name in names))


GROUPS: dict[ArrayGroup, tuple[str, ...]] = {
    "frames": _of_both_passes("frames"),
    "control": ("control/*", "control_reference/*", "references", "measures/*"),
    "latents": _of_both_passes("latents", "step_latents/*"),
    "rendered": _of_both_passes("rendered", "mask"),
    "deflickered": ("deflickered",),
}
"""The arrays that can be removed, by what jobs call them. Others are small and always stay."""


def removable(names: Collection[str], keep: Collection[ArrayGroup]) -> list[str]:
    """Return those of the arrays `names` that can be removed and are not to be kept."""
    return matching(names, [pattern for group, patterns in GROUPS.items() if group not in keep for pattern in patterns])
