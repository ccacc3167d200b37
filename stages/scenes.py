"""The cuts of a video: listed, found or recorded, for the stages that process each scene by itself."""

from __future__ import annotations

from collections.abc import Iterable

from stages.base.arrays import Image
from stages.base.cache import FrameCache
from stages.base.engine import Reporter, with_progress
from stages.base.scenes import Scenes, check_cuts, described, split
from stages.jobs.job import Job
from stages.video import find_cuts


def choose_cuts(
    scenes: Scenes, frames: Iterable[Image], *, count: int, stage: str, reporter: Reporter
) -> tuple[int, ...]:
    """Return the first frame of each scene after the first.

    Args:
        scenes: What was asked for. Only for "auto", `frames` are read.
        frames: The frames of the video, uint8 RGB [H, W, 3].
        count: Their number.
        stage: The stage that asks.
        reporter: Receives progress and what was found.

    Raises:
        UsageError: A scene is listed that begins after the last frame.
    """
    if scenes != "auto":
        check_cuts(scenes or (), count)
        return tuple(scenes or ())
    reporter.begin(stage, count)
    reporter.phase("find scenes")
    found = find_cuts(with_progress(frames, reporter))
    reporter.note(f"found {described(split(count, found))}")
    return tuple(found)


def recorded_cuts(job: Job, cache: FrameCache) -> tuple[int, ...]:
    """Return the first frame of each scene after the first, as recorded before the networks ran."""
    return () if job.scenes is None else tuple(cache["scenes"][1:].tolist())
