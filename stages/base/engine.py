"""How a stage runs: begin or resume, chunks of frames through tasks, marks, receipt.

A stage is a list of phases; a phase maps one task over chunks of frames. Where a chunk begins depends on the
number of frames alone, never on where a run was interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from stages.base.cache import ArraySpec, FrameCache
from stages.base.errors import DiffSynthError
from stages.base.fingerprint import Inputs, changes, fingerprint
from stages.base.reporting import Reporter as Reporter
from stages.base.reporting import told as told
from stages.base.words import counted


class Task(Protocol):
    """Work on chunks of frames: a small picklable object that loads what it needs once per process.

    Chunks may run in any order and in any process, more than once, and give the same bytes.
    """

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        """Write the results of frames start..stop-1 to the cache."""

    def close(self) -> None:
        """Drop what is kept between chunks. The task may be run again afterwards."""
        return


@dataclass(frozen=True)
class Phase:
    """One task over all frames, `chunk` at a time.

    `completes`: the array that is whole when it has ended, if it may outlive the run (attribute `whole`).
    `drops`: arrays that no later phase reads, removed when it has ended.
    """

    name: str
    frames: int
    chunk: int
    task: Task
    completes: str | None = None
    drops: tuple[str, ...] = ()

    def chunks(self) -> list[tuple[int, int]]:
        return [(start, min(start + self.chunk, self.frames)) for start in range(0, self.frames, self.chunk)]


@dataclass(frozen=True)
class Plan:
    """What a stage is going to do: the arrays it makes and the phases that fill them.

    `begin` fills what is known from the start once the arrays have been made. Of an earlier run's arrays, those in
    `kept` stay. `trial` runs before an earlier run's results are removed: it raises if the work cannot be done, where
    only a process that loads the models can tell.
    """

    frames: int
    arrays: list[ArraySpec]
    phases: list[Phase]
    begin: Callable[[FrameCache], None] = lambda cache: None
    kept: tuple[str, ...] = ()
    trial: Task | None = None

    @property
    def results(self) -> list[str]:
        """The arrays that are there when all phases have ended."""
        dropped = {name for phase in self.phases for name in phase.drops}
        return [name for name in (*(spec.name for spec in self.arrays), *self.kept) if name not in dropped]


@dataclass(frozen=True)
class Options:
    """How networks run in one process. Results differ by rounding at most.

    Attributes:
        batch_size: Groups of frames per pass; None for as many as fit.
        low_vram: Offload idle networks to CPU memory.
        compiled: Compile the networks first.
    """

    batch_size: int | None = None
    low_vram: bool = False
    compiled: bool = False


Chunk = tuple[int, int]
"""The first frame of a chunk, and the first behind it."""


class Engine(Protocol):
    """Where chunks run."""

    def map(self, task: Task, cache: FrameCache, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        """Run `task` on every chunk and close it, whatever happens; yield each chunk, in any order, when its data is
        on the disk."""


class LocalEngine:
    """Chunks one after the other in this process."""

    def map(self, task: Task, cache: FrameCache, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        with closing(task):
            for start, stop in chunks:
                task.run(cache, start, stop)
                yield start, stop


class Job(Protocol):
    """What the engine must know of a job."""

    def inputs(self, keys: Collection[str], known: object) -> dict[str, object]:
        """The values of `keys` as fingerprints hold them. `known` is what an earlier one holds."""


Work = TypeVar("Work")


@dataclass(frozen=True)
class Run(Generic[Work]):
    """One go at a job: what to do, where results live, who is told, where chunks run. `anew`: nothing is kept.
    `stages`: all that there are, by name. `inputs`: what the stage that runs depends on."""

    job: Work
    cache: FrameCache
    reporter: Reporter
    options: Options = Options()
    engine: Engine = field(default_factory=LocalEngine)
    anew: bool = False
    stages: Mapping[str, Stage] = field(default_factory=dict)
    inputs: Inputs = field(default_factory=lambda: Inputs(keys={}, after={}))


@dataclass(frozen=True)
class Footage:
    """The frames that a job has or will have. `count`: by the word of the source, None if it does not say; `fps`: of
    the frames that are used; `least` and `most`: how many there are for certain, which a header does not know."""

    count: int | None
    height: int
    width: int
    fps: Fraction
    least: float = 1
    most: float = math.inf


@dataclass(frozen=True)
class Stage:
    """What a stage is called, depends on and makes. Each is declared in its own module and listed in all_stages.py.

    Attributes:
        name: Its command, and the name of its module.
        plan: `plan(run, resume)` checks everything that can be checked before the first frame is touched; `resume`
            says that it continues an earlier run.
        reads: The job keys that it depends on. Results become stale when one of them changes.
        after: The stages whose results it reads.
        arrays: The arrays that it makes in the cache, by name; `control/*` stands for all arrays of a group.
        deliver: `deliver(run, fingerprint)` makes what the stage hands out besides arrays, unless what exists was made
            of frames with this fingerprint.
        check: Looks for what would stop the stage, before the first of several stages runs: files, options, devices.
            It raises DiffSynthError, reads no more than headers, and returns the arrays that the stage is going to
            make.
        footage: `footage(run, ahead)` is what is known about the frames of a job: `ahead`, by their source, or else by
            what is in the cache. Of the stage that makes them.
        outputs: The files that it writes into the job's output folder.
        changed_outputs: Finds those outputs that are not what the stage wrote.
        shown: The arrays that contact sheets show, by label.
    """

    name: str
    plan: Callable[[Run[Any], bool], Plan]
    reads: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    deliver: Callable[[Run[Any], str], None] | None = None
    check: Callable[[Run[Any], Footage], list[ArraySpec]] = lambda run, footage: []
    footage: Callable[[Run[Any], bool], Footage] | None = None
    outputs: tuple[str, ...] = ()
    changed_outputs: Callable[[Any, FrameCache], Iterable[Path]] = lambda job, cache: ()
    shown: Callable[[FrameCache], dict[str, str]] = lambda cache: {}


def stage_inputs(
    stage: Stage, stages: Mapping[str, Stage], job: Job, recorded: Callable[[str], Inputs | None]
) -> Inputs:
    """What `stage`, one of `stages`, of `job` depends on.

    `recorded` gives the inputs that a stage was begun with: they save reading unchanged files again, and stand in for
    files that are gone.
    """
    known = recorded(stage.name)
    keys = job.inputs(stage.reads, known["keys"] if known else {})
    return {"keys": keys, "after": {name: stage_inputs(stages[name], stages, job, recorded) for name in stage.after}}


def run_stage(stage: Stage, run: Run[Any], restart: bool = False) -> None:
    """Brings `stage` to its end: from the start, from where it stopped, or not at all if it is done.

    `restart` does it anew. Raises DiffSynthError if an earlier stage is not finished, or if the stage was begun with
    other keys and is not to be done anew. Must be called under the cache's lock.
    """
    record = run.cache.record(stage.name)
    run.reporter.begin(stage.name, None)
    run.reporter.phase("look at inputs")
    check_before(stage, run)
    inputs = stage_inputs(stage, run.stages, run.job, run.cache.recorded)
    run = replace(run, inputs=inputs)
    if not restart:
        refuse_stale(stage.name, inputs, run.cache)
    elif record.inputs is not None and not changes(stage.name, record.inputs, inputs):
        run = replace(run, anew=True)  # not for other keys' sake: what there is may be damaged
    if restart or not record.complete:
        fill(stage, run, resume=not restart and record.inputs is not None)
        return
    if stage.deliver is not None:
        stage.deliver(run, fingerprint(inputs))
    record.touch()
    run.reporter.end(stage.name, "nothing to do")


def fill(stage: Stage, run: Run[Any], resume: bool) -> None:
    """Does the work of `stage`: all of it, or with `resume` what is left of it. `run.inputs` is noted as what it was
    begun with."""
    cache, reporter, inputs = run.cache, run.reporter, run.inputs
    record = cache.record(stage.name)
    plan = stage.plan(run, resume)
    if plan.trial is not None:
        list(run.engine.map(plan.trial, cache, [(0, 0)]))
    cache.sweep(spec.name for spec in plan.arrays)
    if not resume:  # all that can be wrong has been checked: only now may old results go
        record.clear()
        cache.remove_all(stage.arrays, keep=plan.kept)
        for spec in plan.arrays:
            cache.create(spec)
        plan.begin(cache)
        record.begin(inputs, sum(len(phase.chunks()) for phase in plan.phases))
    todo = [
        (phase, [chunk for chunk in phase.chunks() if (phase.name, chunk[0]) not in record.done])
        for phase in plan.phases
    ]
    total = sum(phase.frames for phase in plan.phases)
    left = sum(stop - start for _, chunks in todo for start, stop in chunks)
    reporter.begin(stage.name, total, total - left)
    for phase, chunks in todo:
        if chunks:
            reporter.phase(phase.name)
        started = time.monotonic()
        with closing(run.engine.map(phase.task, cache, chunks)) as finished:
            for start, stop in finished:
                record.mark(phase.name, start, time.monotonic() - started)
                reporter.advance(stop - start)
                started = time.monotonic()
        if phase.completes:
            cache[phase.completes].attrs["whole"] = True
        for name in phase.drops:
            cache.remove(name)
    for name in (name for phase in plan.phases for name in phase.drops):
        cache.remove(name)  # again: a worker that was thought dead may have written to it since
    if stage.deliver is not None:  # before the receipt, which make takes for the whole
        stage.deliver(run, fingerprint(inputs))
    record.finish(fingerprint(inputs), plan.frames, plan.results)
    reporter.end(stage.name, f"{counted(plan.frames, 'frame')} in {record.seconds:.1f} s")


def check_before(stage: Stage, run: Run[Any]) -> None:
    """Raises DiffSynthError unless all stages before `stage` are finished and up to date."""
    for name in stage.after:
        if not run.cache.record(name).complete:
            raise DiffSynthError(
                f"{stage.name} needs {name}, which is not finished", f"{run.cache.command(name)} comes first"
            )
        refuse_stale(name, stage_inputs(run.stages[name], run.stages, run.job, run.cache.recorded), run.cache)


def refuse_stale(stage: str, new: Inputs, cache: FrameCache) -> None:
    """Raises DiffSynthError if `stage` was begun with other inputs than `new`."""
    old = cache.recorded(stage)
    found = changes(stage, old, new) if old is not None else []
    if found:
        listed = "\n".join(f"  {change}" for change in found)
        raise DiffSynthError(
            f"{stage} is stale: since it was begun, these keys changed:\n{listed}",
            f"{cache.command(found[0].stage)} --restart does it anew, {cache.command('run')} --restart all that is "
            "stale; or put the old values back",
        )


@dataclass(frozen=True)
class Progress:
    """How far a stage is. `state`: done, partly, stale or to do; `share` of its chunks that are done, 0..1."""

    stage: str
    state: str
    share: float = 0.0
    changes: tuple[str, ...] = ()
    receipt: dict[str, Any] | None = None


def progress(stage: Stage, stages: Mapping[str, Stage], job: Job, cache: FrameCache) -> Progress:
    """How far `stage`, one of `stages`, is."""
    record = cache.record(stage.name)
    if record.inputs is None:
        return Progress(stage.name, "to do")
    found = changes(stage.name, record.inputs, stage_inputs(stage, stages, job, cache.recorded))
    if found:
        return Progress(stage.name, "stale", changes=tuple(map(str, found)), receipt=record.receipt)
    if record.complete:
        return Progress(stage.name, "done", 1.0, receipt=record.receipt)
    return Progress(stage.name, "partly", len(record.done) / max(1, record.chunks))
