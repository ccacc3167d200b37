"""`diffsynth verify`: read everything that a job has made, and say what is damaged."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from stages.all_stages import all_stages
from stages.base.cache import FrameCache
from stages.base.engine import Reporter
from stages.base.errors import DiffSynthError
from stages.jobs.job import Job

SHOWN = 20  # lines about damage, a stage


def verify_job(job: Job, cache: FrameCache, reporter: Reporter) -> None:
    """Read every frame of every stage, and the video.

    Raises:
        DiffSynthError: Something is damaged: what, and the command that redoes it.
    """
    lines: list[str] = []
    redo: list[str] = []
    outputs: list[Path] = []
    with closing(reporter):
        for name, stage in all_stages().items():
            record = cache.record(name)
            if record.inputs is None:
                continue
            reporter.begin(name, None)
            reporter.phase("read all frames")
            found = list(cache.damage(name))
            if found:
                redo.append(name)
            changed = list(stage.changed_outputs(job, cache)) if record.complete else []
            outputs += changed
            found += [f"{path} is {'not what was written there' if path.exists() else 'missing'}" for path in changed]
            lines += found[:SHOWN] + [f"{name}: {len(found) - SHOWN} more"] * (len(found) > SHOWN)
            reporter.end(name, "damaged" if found else "intact" if record.complete else "intact so far")
    if lines:
        raise DiffSynthError("damaged:\n" + "\n".join(f"  {line}" for line in lines), _repair(cache, redo, outputs))


def _repair(cache: FrameCache, redo: list[str], outputs: list[Path]) -> str:
    """How to redo these stages and to have these outputs written again."""
    in_the_way = [str(path) for path in outputs if path.exists()]
    delete = f"delete {' and '.join(in_the_way)}; then " if in_the_way else ""
    if redo:
        return f"{delete}{cache.command('run')} --restart redoes {' and '.join(redo)}"
    return f"{delete}{cache.command('run')} writes {'it' if len(outputs) == 1 else 'them'} again"
