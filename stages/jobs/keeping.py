"""Which arrays of a complete job stay in its cache (`keep`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypeAlias

from stages.base.removal import matching

ArrayGroup: TypeAlias = Literal["frames", "control", "latents", "rendered", "deflickered"]

GROUPS: dict[ArrayGroup, tuple[str, ...]] = {
    "frames": ("frames", "large_frames"),
    "control": ("control/*", "control_reference/*", "references", "measures/*"),
    "latents": ("latents", "step_latents/*", "large_latents", "large_step_latents/*"),
    "rendered": ("rendered", "mask", "large_rendered", "large_mask"),
    "deflickered": ("deflickered",),
}
"""The arrays that can be removed, by what jobs call them. Others are small and always stay."""


def removable(names: Collection[str], keep: Collection[ArrayGroup]) -> list[str]:
    """Return those of the arrays `names` that can be removed and are not to be kept."""
    return matching(names, [pattern for group, patterns in GROUPS.items() if group not in keep for pattern in patterns])
