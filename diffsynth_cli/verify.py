"""`diffsynth verify`: read everything that a job has made, and say what is damaged."""

from __future__ import annotations

from contextlib import closing

from stages.base.cache import FrameCache
from stages.base.engine import Reporter
from stages.base.errors import DiffSynthError
from stages.base.job import STAGES, Job
from stages.deflicker import changed_outputs

SHOWN = 20  # lines about damage, a stage


def verify_job(job: Job, cache: FrameCache, reporter: Reporter) -> None:
    """Read every frame of every stage, and the video.

    Raises:
        DiffSynthError: Something is damaged: what, and the command that redoes it.
    """
    lines, redo = [], []
    with closing(reporter):
        for stage in STAGES:
            record = cache.record(stage)
            if record.inputs is None:
                continue
            reporter.begin(stage, None)
            reporter.phase("read all frames")
            found = list(cache.damage(stage))
            if found:
                redo.append(stage)
            if stage == "deflicker" and record.complete:
                found += changed_outputs(job, cache)
            lines += found[:SHOWN] + [f"{stage}: {len(found) - SHOWN} more"] * (len(found) > SHOWN)
            reporter.end(stage, "damaged" if found else "intact" if record.complete else "intact so far")
    if lines:
        what = " and ".join(redo) or "the output"
        raise DiffSynthError(
            "damaged:\n" + "\n".join(f"  {line}" for line in lines), f"{cache.command('run')} --restart redoes {what}"
        )
