"""`diffsynth verify`: read everything that a job has made, and say what is damaged."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from stages.base.cache import FrameCache
from stages.base.engine import Reporter
from stages.base.errors import DiffSynthError
from stages.deflicker import changed_outputs
from stages.jobs.job import STAGES, Job

SHOWN = 20  # lines about damage, a stage


def verify_job(job: Job, cache: FrameCache, reporter: Reporter) -> None:
    """Read every frame of every stage, and the video.

    Raises:
        DiffSynthError: Something is damaged: what, and the command that redoes it.
    """
    lines, redo, outputs = [], [], []
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
                outputs = list(changed_outputs(job, cache))
                found += [
                    f"{path} is {'not what was written there' if path.exists() else 'missing'}" for path in outputs
                ]
            lines += found[:SHOWN] + [f"{stage}: {len(found) - SHOWN} more"] * (len(found) > SHOWN)
            reporter.end(stage, "damaged" if found else "intact" if record.complete else "intact so far")
    if lines:
        raise DiffSynthError("damaged:\n" + "\n".join(f"  {line}" for line in lines), _repair(cache, redo, outputs))


def _repair(cache: FrameCache, redo: list[str], outputs: list[Path]) -> str:
    """How to redo these stages and to have these outputs written again."""
    in_the_way = [str(path) for path in outputs if path.exists()]
    delete = f"delete {' and '.join(in_the_way)}; then " if in_the_way else ""
    if redo:
        return f"{delete}{cache.command('run')} --restart redoes {' and '.join(redo)}"
    return f"{delete}{cache.command('run')} writes {'it' if len(outputs) == 1 else 'them'} again"
