"""What is checked before the first of several stages runs, so that none fails after another has worked for hours."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.base.cache import ArraySpec
from stages.base.engine import Footage, Progress, Run, Stage, check_before, progress, refuse_stale, stage_inputs
from stages.base.errors import DiffSynthError, UsageError

# What an array needs on the disk, as a share of its bytes in memory: at least, and as a rule. Measured with the cache's
# compression: photographs and video at 512x960 need 0.33 to 0.93, latents 0.92.
PICTURES, NUMBERS = (0.2, 0.75), (0.7, 0.95)
GB = 1e9


def check_ahead(stages: Sequence[Stage], run: Run[Any], restart: Collection[str] = ()) -> None:
    """Check all `stages` that are going to run, each for what would stop it, and the disk for their results.

    Downloads nothing, loads no model, and does not decode the video.

    Args:
        stages: Stages in the order in which they run.
        run: What they run on.
        restart: Names of the stages that are redone.

    Raises:
        DiffSynthError: A stage could not run, or its results cannot fit on the disk.
    """
    job, cache = run.job, run.cache
    check_before(stages[0], run)
    states = {stage.name: progress(stage, run.stages, job, cache) for stage in stages}
    for stage in stages:
        if stage.name not in restart and states[stage.name].state == "stale":
            refuse_stale(stage.name, stage_inputs(stage, run.stages, job, cache.recorded), cache)
    todo = [stage for stage in stages if stage.name in restart or states[stage.name].state != "done"]
    if not todo:
        return
    folder = _writable_folder(cache.path)
    footage = _footage(todo, run)
    needed = [
        _room(spec, _left(states[stage.name], stage.name in restart))
        for stage in todo
        for spec in stage.check(run, footage)
    ]
    _check_disk(folder, run, sum(least for least, _ in needed), sum(likely for _, likely in needed))


def _footage(todo: Sequence[Stage], run: Run[Any]) -> Footage:
    """By the frames in the cache; if they are still to be made, by their source."""
    for stage in run.stages.values():
        if stage.footage is not None:
            return stage.footage(run, stage in todo)
    raise AssertionError("no stage makes frames")


def _left(state: Progress, redone: bool) -> float:
    """The share of a stage's arrays that is still to be written. A stage that is redone first drops its old ones."""
    if state.state == "to do":
        return 1.0
    return 0.0 if redone else 1 - state.share


def _room(spec: ArraySpec, left: float) -> tuple[float, float]:
    """The bytes that what is left of an array needs on the disk: at least, and as a rule."""
    dtype = np.dtype(spec.dtype)
    size = math.prod(spec.shape) * dtype.itemsize * left
    least, likely = spec.compressed or (PICTURES if dtype == np.uint8 else NUMBERS)
    return least * size, likely * size


def _writable_folder(cache: Path) -> Path:
    """The folder of a cache, or where it is going to be made. Raises UsageError if nothing can be written there."""
    folder = next(path for path in (cache, *cache.parents) if path.exists())
    if not folder.is_dir():
        raise UsageError(f"output_path: {folder} is a file", "move it away, or choose another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"output_path: you may not write in {folder}", "choose another folder")
    return folder


def _check_disk(folder: Path, run: Run[Any], least: float, likely: float) -> None:
    free = shutil.disk_usage(folder).free
    if free >= likely:
        return
    room = f"{folder} has {free / GB:.3g} GB free"
    if free < least:
        raise DiffSynthError(
            f"output_path: {room}, but the results need about {likely / GB:.3g} GB, {least / GB:.3g} GB at the least",
            "make room, choose another output_path, or use fewer or smaller frames",
        )
    run.reporter.warn(f"{room}; the results need about {likely / GB:.3g} GB")
