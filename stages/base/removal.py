"""Arrays that were removed to save disk space, and what a stage that needs them asks to redo."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from stages.base.errors import DiffSynthError

if TYPE_CHECKING:  # the engine imports this module
    from stages.base.cache import FrameCache
    from stages.base.engine import JobType, Stage


def matching(names: Iterable[str], patterns: Collection[str]) -> list[str]:
    """Return the names of arrays that match one of `patterns`, as in `Stage.arrays`."""
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def to_redo(
    needed: Collection[str],
    makers: Iterable[str],
    stages: Mapping[str, Stage[JobType]],
    job: JobType,
    cache: FrameCache,
) -> list[str]:
    """Return the stages that have to be redone before arrays can be read, in order.

    Args:
        needed: The arrays, as in `Stage.needs`.
        makers: The stages that make them, in order.
        stages: All stages by name.
        job: The job.
        cache: Its cache.
    """
    found: list[str] = []
    for name in makers:
        if matching(cache.record(name).removed, needed):
            found += [*to_redo(stages[name].needs(job), stages[name].before(stages), stages, job, cache), name]
    return list(dict.fromkeys(found))


def refuse_removed(
    what: str,
    needed: Collection[str],
    makers: Iterable[str],
    stages: Mapping[str, Stage[JobType]],
    job: JobType,
    cache: FrameCache,
) -> None:
    """Raise DiffSynthError if `what` needs arrays that were removed. The other arguments are those of `to_redo`."""
    makers = list(makers)
    redo = to_redo(needed, makers, stages, job, cache)
    if redo:
        lost = [name for maker in makers for name in matching(cache.record(maker).removed, needed)]
        commands = " && ".join(f"{cache.command(name)} --restart" for name in redo)
        was, it = ("was", "it") if len(lost) == 1 else ("were", "them")
        raise DiffSynthError(
            f"{what} needs {', '.join(lost)}, which {was} removed to save space", f"make {it} again with: {commands}"
        )


def remove_arrays(cache: FrameCache, stage: str, names: Collection[str]) -> None:
    """Remove the frames of arrays of a finished stage, which remains finished. The caller holds the cache's lock.

    Their shapes and attributes stay, since later stages and `export` read them. If this is interrupted, the frames that
    are left are known to be superfluous.
    """
    cache.record(stage).note_removed(names)
    for name in names:
        cache.empty(name)
