"""What a job's cache holds that can be deleted, and deleting it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from diffsynth_cli.results import CleanResult, JobSource, Overrides, Removable, SilentReporter

if TYPE_CHECKING:
    from stages.base.cache import FrameCache
    from stages.base.engine import Stage
    from stages.jobs.job import Job


@dataclass(frozen=True)
class Candidate:
    """Something that can be deleted, and what deletes it."""

    shown: Removable
    delete: Callable[[], None]


Find: TypeAlias = Callable[[], Iterator[Candidate]]


def clean(
    job: JobSource,
    *,
    overrides: Overrides = (),
    confirm: Callable[[tuple[Removable, ...]], bool] = lambda found: True,
    dry_run: bool = False,
) -> CleanResult:
    """Delete what a job's cache holds and no unfinished stage needs. What the job's key `keep` names stays.

    Args:
        job: As for `run`. Or the output of an interrupted `smooth`, whose whole cache is deleted.
        overrides: Job keys that replace those of `job`.
        confirm: Gets what can be deleted, if there is anything, and returns whether to delete it.
        dry_run: Only return what can be deleted.

    Raises:
        UsageError: The job is wrong.
        DiffSynthError: Another process uses the cache.
    """
    cache, find = _of_smooth(job) or _of_job(job, overrides)
    if not cache.store.children(""):
        return CleanResult((), deleted=False)
    with nullcontext() if dry_run else cache.lock():
        found = [*find()]
        shown = tuple(candidate.shown for candidate in found)
        deleted = bool(found) and not dry_run and confirm(shown)
        for candidate in found if deleted else ():
            candidate.delete()
    return CleanResult(shown, deleted)


def _of_job(job: JobSource, overrides: Overrides) -> tuple[FrameCache, Find]:
    from diffsynth_cli.jobs import open_job

    opened = open_job(job, overrides, SilentReporter())
    return opened.cache, partial(_candidates, opened.job, opened.cache)


def _of_smooth(output: JobSource) -> tuple[FrameCache, Find] | None:
    """Return the cache beside the output of an interrupted `smooth`, which removes it when it is complete."""
    from stages.base.cache import FrameCache
    from stages.smooth.request import cache_path

    folder = cache_path(Path(output)) if isinstance(output, str | Path) else None
    if folder is None or not folder.is_dir():
        return None
    cache = FrameCache(folder)
    return cache, partial(_unfinished, cache)


def _unfinished(cache: FrameCache) -> Iterator[Candidate]:
    from stages.base.words import duration
    from stages.smooth.request import NAME

    record = cache.record(NAME)
    took = record.receipt["seconds"] if record.receipt else record.seconds
    size = sum(file.stat().st_size for file in cache.path.rglob("*") if file.is_file())
    reason = f"smooth was interrupted and resumes from it; it took {duration(took)}"
    yield Candidate(Removable(str(cache.path), size, reason), partial(shutil.rmtree, cache.path))


def tidy(job: Job, cache: FrameCache) -> None:
    """Remove the arrays of a complete job that its key `keep` does not name. The caller holds the cache's lock."""
    from stages.all_stages import stages_of
    from stages.base.progress import progress
    from stages.base.removal import remove_arrays
    from stages.jobs.keeping import removable

    stages = stages_of(job)
    if job.keep is None or any(progress(stage, stages, job, cache).state != "done" for stage in stages.values()):
        return
    made = {name: removable(cache.arrays(*stage.arrays), job.keep) for name, stage in stages.items()}
    left = {name: [array for array in arrays if cache.has_frames(array)] for name, arrays in made.items()}
    for name, arrays in left.items() if any(left.values()) else ():
        remove_arrays(cache, name, arrays)  # in order, so that make sees each receipt as newer than those before it


def _candidates(job: Job, cache: FrameCache) -> Iterator[Candidate]:
    """Find everything that can be deleted."""
    from stages.all_stages import all_stages, stages_of
    from stages.base.progress import progress

    stages = stages_of(job)
    states = {name: progress(stage, stages, job, cache).state for name, stage in stages.items()}
    needed = [pattern for name, stage in stages.items() if states[name] != "done" for pattern in stage.needs(job)]
    for name, stage in all_stages().items():
        if name not in stages and cache.record(name).inputs is not None:
            yield from _discarded(cache, stage, f"the job no longer has the key {name!r}")
    for name, stage in stages.items():
        if states[name] == "stale":
            yield from _discarded(cache, stage, f"stale: {stage.name} has to be redone")
        elif states[name] == "done":
            yield from _unneeded(job, cache, stage, needed)
    yield from _leftovers(job, cache, states["deflicker"])


def _discarded(cache: FrameCache, stage: Stage[Job], reason: str) -> Iterator[Candidate]:
    for name in cache.arrays(*stage.arrays):
        yield Candidate(Removable(name, cache.store.size(name), reason), partial(_discard, cache, stage.name, name))


def _discard(cache: FrameCache, stage: str, name: str) -> None:
    cache.record(stage).clear()
    cache.remove(name)


def _unneeded(job: Job, cache: FrameCache, stage: Stage[Job], needed: list[str]) -> Iterator[Candidate]:
    """Find arrays of a finished stage that no other stage is going to read."""
    from stages.base.removal import matching, remove_arrays
    from stages.base.words import duration
    from stages.jobs.keeping import removable

    record, names = cache.record(stage.name), cache.arrays(*stage.arrays)
    unneeded = set(removable(names, job.keep or ())) - set(matching(names, needed)) - record.removed
    for name in names:
        if name in unneeded:
            purpose = "export and report need it" if name == "deflickered" else "only redoing a later stage needs it"
            seconds = record.receipt["seconds"] if record.receipt else 0.0
            reason = f"{purpose}; {stage.name} took {duration(seconds)}"
            delete = partial(remove_arrays, cache, stage.name, [name])
            yield Candidate(Removable(name, cache.store.size(name), reason), delete)
        elif name in record.removed and cache.has_frames(name):
            reason = "left when its removal was interrupted"
            yield Candidate(Removable(name, cache.store.size(name), reason), partial(cache.empty, name))


def _leftovers(job: Job, cache: FrameCache, deflicker: str) -> Iterator[Candidate]:
    """Find what interrupted runs have left: parts of files, and segments of a video that is complete."""
    from stages.base.outputs import VIDEO
    from stages.deflicker import SEGMENTS

    reason = "left by an interrupted run"
    for name in cache.store.leftovers():
        yield Candidate(Removable(name, cache.store.size(name), reason), partial(cache.store.delete, name))
    if deflicker == "stale" and (size := cache.store.size(SEGMENTS)):
        yield Candidate(Removable(SEGMENTS, size, reason), partial(cache.store.delete_all, SEGMENTS))
    part = Path(job.output_path) / f".{VIDEO}.part"
    if part.is_file():
        yield Candidate(Removable(str(part), part.stat().st_size, reason), part.unlink)
