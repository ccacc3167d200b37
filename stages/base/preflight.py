"""Checks before the first of several stages runs, so that none fails after another has worked for hours."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from stages.base.cache import ArraySpec
from stages.base.engine import (
    Ahead,
    Footage,
    JobType,
    Run,
    Stage,
    Work,
    check_before,
    refuse_stale,
    stage_inputs,
)
from stages.base.errors import DiffSynthError, UsageError
from stages.base.progress import Progress, progress
from stages.base.removal import refuse_removed

# Size of an array on the disk as a share of its size in memory, at least and usually. Measured with the cache's
# compression: 0.33 to 0.93 for photographs and video at 512x960, 0.92 for latents.
PICTURES, NUMBERS = (0.2, 0.75), (0.7, 0.95)
GB = 1e9


def check_ahead(
    stages: Sequence[Stage[JobType]], run: Run[JobType], outputs: Path, restart: Collection[str] = ()
) -> tuple[dict[str, Ahead], Footage | None]:
    """Check that all `stages` can run and that the disk has room for their results.

    Downloads nothing, loads no model and does not decode the video.

    Args:
        stages: The stages to run, in order.
        run: What they run on.
        outputs: The job's output folder, which need not exist.
        restart: Names of the stages to redo.

    Returns:
        What is known of the stages that are not done, by name, and of the frames. None if all are done.

    Raises:
        DiffSynthError: A stage cannot run, or the disk is too small for its results.
    """
    job, cache = run.job, run.cache
    check_before(stages[0], run)
    states = {stage.name: progress(stage, run.stages, job, cache) for stage in stages}
    for stage in stages:
        if stage.name not in restart and states[stage.name].state == "stale":
            refuse_stale(stage.name, stage_inputs(stage, run.stages, job, cache.recorded), cache)
    todo = [stage for stage in stages if stage.name in restart or states[stage.name].state != "done"]
    if not todo:
        return {}, None
    _check_inputs(todo, run, restart)
    folder = store = writable_folder("output_path", outputs)
    if cache.folder is not None:
        store = writable_folder("output_path" if outputs in cache.folder.parents else "cache", cache.folder)
    footage = footage_of(run, todo)
    ahead = {stage.name: stage.check(run, footage) for stage in todo}
    needed = [
        (folder if is_output else store, room(spec, _left(states[stage.name], stage.name in restart)))
        for stage in todo
        for spec in ahead[stage.name].arrays
        if (is_output := spec.name in stage.outputs(job)) or cache.folder is not None
    ]
    _check_disks(needed, run)
    return ahead, footage


def footage_of(run: Run[Work], todo: Sequence[Stage[Work]]) -> Footage:
    """Describe the job's frames, by the source if `todo` contains the stage that makes them."""
    for stage in run.stages.values():
        if stage.footage is not None:
            return stage.footage(run, stage in todo)
    raise AssertionError("no stage makes frames")


def _check_inputs(todo: Sequence[Stage[JobType]], run: Run[JobType], restart: Collection[str]) -> None:
    """Raise DiffSynthError if a stage needs arrays that were removed, unless they are going to be made again."""
    for stage in todo:
        makers = [name for name in stage.before(run.stages) if name not in restart]
        refuse_removed(stage.name, stage.needs(run.job), makers, run.stages, run.job, run.cache)


def _left(state: Progress, redone: bool) -> float:
    """Return the share of a stage's arrays that has yet to be written. A stage to be redone first removes its own."""
    if state.state == "to do":
        return 1.0
    return 0.0 if redone else 1 - state.share


def room(spec: ArraySpec, left: float = 1.0) -> tuple[float, float]:
    """Return the bytes that the remaining share of an array needs on the disk, at least and usually."""
    dtype = np.dtype(spec.dtype)
    size = math.prod(spec.shape) * dtype.itemsize * left
    least, likely = spec.compressed or (PICTURES if dtype == np.uint8 else NUMBERS)
    return least * size, likely * size


def writable_folder(key: str, path: Path) -> Path:
    """Return the folder that is or will hold `path`. Raise UsageError, which names the key, if it is not writable."""
    folder = next(path for path in (path, *path.parents) if path.exists())
    if not folder.is_dir():
        raise UsageError(f"{key}: {folder} is a file", "move it away, or choose another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{key}: no permission to write in {folder}", "choose another folder")
    return folder


def _check_disks(needed: Sequence[tuple[Path, tuple[float, float]]], run: Run[Work]) -> None:
    """Compare what is going to be written into each folder, at least and usually, with what its disk has free."""
    disks: dict[int, list[tuple[Path, tuple[float, float]]]] = {}
    for folder, sizes in needed:
        disks.setdefault(folder.stat().st_dev, []).append((folder, sizes))
    for on_disk in disks.values():
        least, likely = (sum(sizes) for sizes in zip(*(sizes for _, sizes in on_disk), strict=True))
        _check_disk(on_disk[0][0], run, least, likely)


def _check_disk(folder: Path, run: Run[Work], least: float, likely: float) -> None:
    free = shutil.disk_usage(folder).free
    if free >= likely:
        return
    room = f"{folder} has {free / GB:.3g} GB free"
    if free < least:
        raise DiffSynthError(
            f"output_path: {room}, but the results need about {likely / GB:.3g} GB, at least {least / GB:.3g} GB",
            "free some space, choose another output_path, or use fewer or smaller frames",
        )
    run.reporter.warn(f"{room}; the results need about {likely / GB:.3g} GB")
