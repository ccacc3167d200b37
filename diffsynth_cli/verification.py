"""`diffsynth verify`: check all results of a job for damage."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from stages.all_stages import stages_of
from stages.base.cache import FrameCache
from stages.base.engine import Reporter
from stages.base.errors import DiffSynthError
from stages.jobs.job import Job

SHOWN = 20  # lines about damage per stage


def verify_job(job: Job, cache: FrameCache, reporter: Reporter) -> None:
    """Read every frame of every stage, and check the output files.

    Raises:
        DiffSynthError: Something is damaged; the hint is the command that repairs it.
    """
    lines: list[str] = []
    redo: list[str] = []
    outputs: list[Path] = []
    with closing(reporter):
        for name, stage in stages_of(job).items():
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
            found += [f"{path} {'has been changed' if path.exists() else 'is missing'}" for path in changed]
            lines += found[:SHOWN] + [f"{name}: {len(found) - SHOWN} more"] * (len(found) > SHOWN)
            reporter.end(name, "damaged" if found else "intact" if record.complete else "intact so far")
    if lines:
        raise DiffSynthError("damaged:\n" + "\n".join(f"  {line}" for line in lines), _repair(cache, redo, outputs))


def _repair(cache: FrameCache, redo: list[str], outputs: list[Path]) -> str:
    """Return how to redo these stages and write these outputs again."""
    in_the_way = [str(path) for path in outputs if path.exists()]
    delete = f"Delete {' and '.join(in_the_way)}. " if in_the_way else ""
    if redo:
        return f"{delete}Redo {' and '.join(redo)} with: {cache.command('run')} --restart"
    return f"{delete}Write {'it' if len(outputs) == 1 else 'them'} again with: {cache.command('run')}"
