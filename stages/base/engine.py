"""Stages and how they run: start or resume, run tasks on chunks of frames, mark chunks as done, write a receipt.

A stage is a list of phases. A phase maps one task over chunks of frames. Where chunks begin depends only on the
number of frames and the scenes, never on where a run was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from stages.base.cache import ArraySpec, FrameCache
from stages.base.errors import DiffSynthError
from stages.base.fingerprint import Inputs, changes, fingerprint
from stages.base.ledger import Ledger
from stages.base.overlap import OverlappedCache, Reads
from stages.base.removal import refuse_removed
from stages.base.reporting import Reporter as Reporter
from stages.base.reporting import with_progress as with_progress
from stages.base.scenes import split
from stages.base.words import counted

CHUNK = 8  # frames; at 4K that is 200 MB


class Task(Protocol):
    """Work on chunks of frames: a small picklable object that loads what it needs once per process.

    Chunks may run in any order, in any process and more than once. The results are the same bytes.
    """

    @property
    def chunk(self) -> int:
        """How many frames are done at once. At most two chunks are redone after a kill."""
        return CHUNK

    @property
    def warm_up(self) -> int:
        """What the first chunk costs in addition to any other, as a number of chunks."""
        return 0

    @property
    def kind(self) -> str:
        """What it has in common with tasks that take the same time per frame. Empty if there are none."""
        return ""

    def reads(self, start: int, stop: int) -> Reads:
        """Return what `run` is going to read, so that it can be read ahead. What is left out is read when needed."""
        return ()

    def work(self, frames: int) -> dict[str, float]:
        """Return how much of what takes time there is in this many frames, such as pairs to match, for plans."""
        return {}

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        """Write the results of frames start..stop-1 to the cache.

        They may be written later, so they must not be changed afterwards, and cannot be read in the same phase.
        """

    def close(self) -> None:
        """Release what is kept between chunks. The task may run again afterwards."""
        return


@dataclass(frozen=True)
class Phase:
    """One task over all frames.

    Args:
        name: What progress calls it. Unique within the stage.
        frames: Number of frames.
        task: What is done to each chunk.
        completes: The array that is complete when the phase ends and may outlive the run. Gets the attribute `whole`.
        drops: Arrays that no later phase reads. They are removed when the phase ends.
        note: Returns what the reporter shows once the phase has ended, such as what a measurement found.
        cuts: The first frame of each scene after the first. No chunk contains frames of two scenes.
    """

    name: str
    frames: int
    task: Task
    completes: str | None = None
    drops: tuple[str, ...] = ()
    note: Callable[[FrameCache], str] = lambda cache: ""
    cuts: Sequence[int] = ()

    def chunks(self) -> list[Chunk]:
        """All chunks, in order."""
        size = self.task.chunk
        scenes = split(self.frames, self.cuts)
        return [(start, min(start + size, scene.stop)) for scene in scenes for start in scene[::size]]


@dataclass(frozen=True)
class Plan:
    """The work of a stage: the arrays it makes and the phases that fill them.

    Args:
        frames: Number of frames in the result.
        arrays: The arrays to create.
        phases: What fills them, in order.
        begin: Called once after the arrays have been created, to write what is already known.
        kept: Arrays of an earlier run that are used as they are.
        rereads: Arrays of earlier stages that several phases read. They stay in memory as far as there is room.
        trial: Runs before an earlier run's results are removed. It raises DiffSynthError for problems that only show
            when models are loaded.
    """

    frames: int
    arrays: list[ArraySpec]
    phases: list[Phase]
    begin: Callable[[FrameCache], None] = lambda cache: None
    kept: tuple[str, ...] = ()
    rereads: tuple[str, ...] = ()
    trial: Task | None = None

    @property
    def results(self) -> list[str]:
        """The arrays that exist when all phases have ended."""
        dropped = {name for phase in self.phases for name in phase.drops}
        return [name for name in (*(spec.name for spec in self.arrays), *self.kept) if name not in dropped]


@dataclass(frozen=True)
class Options:
    """How networks run in one process. Results differ at most by rounding.

    Args:
        batch_size: Groups of frames per pass. None for as many as fit in memory.
        low_vram: Offload idle networks to CPU memory.
        compiled: Compile networks before the first pass, and smoothing on a GPU.
        backend: The attention backend. auto: the fastest, which is measured.
    """

    batch_size: int | None = None
    low_vram: bool = False
    compiled: bool = False
    backend: str = "auto"


Result = TypeVar("Result")
Chunk = tuple[int, int]
"""The first frame of a chunk, and the first one after it."""

PhaseChunks = tuple[Phase, list[Chunk]]
"""A phase with those of its chunks that have to run."""


class Engine(Protocol):
    """Where chunks run."""

    def map(self, task: Task, cache: FrameCache, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        """Run `task` on every chunk, then close it, even after an error.

        Yields:
            Each chunk once its data is on the disk, in any order.
        """

    def run(self, work: Sequence[PhaseChunks], cache: FrameCache, ledger: Ledger) -> None:
        """Run phases one after the other, and record what is finished. A chunk reads what earlier phases wrote."""
        for phase, chunks in work:
            ledger.begin(phase)
            with closing(self.map(phase.task, cache, chunks)) as finished:
                for chunk in finished:
                    ledger.mark(phase, chunk)
                    ledger.report()
            ledger.end(phase)
        ledger.report()

    def call(self, function: Callable[[], Result]) -> Result:
        """Return the result of a function that asks about the machine where chunks run. The function pickles."""
        return function()


class LocalEngine(Engine):
    """Run chunks one after the other in this process.

    While a chunk is computed, one thread reads the frames of the next chunk, and another writes and marks the last one.
    Both continue into the next phase, which begins before the last chunk of a phase is on the disk.
    """

    def map(self, task: Task, cache: FrameCache, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        with closing(task), OverlappedCache(cache) as overlapped:
            for chunk in overlapped.reading_ahead([*chunks], task.reads, ()):
                task.run(overlapped, *chunk)
                overlapped.finish()
                yield chunk

    def run(self, work: Sequence[PhaseChunks], cache: FrameCache, ledger: Ledger) -> None:
        openings = [list(phase.task.reads(*chunks[0])) for phase, chunks in work]
        with OverlappedCache(cache) as overlapped:
            for (phase, chunks), opening in zip(work, [*openings[1:], []], strict=False):
                ledger.begin(phase)
                with closing(phase.task):
                    for chunk in overlapped.reading_ahead(chunks, phase.task.reads, opening):
                        phase.task.run(overlapped, *chunk)
                        overlapped.end_chunk(ledger.mark, phase, chunk)
                        ledger.report()
                overlapped.then(ledger.end, phase)
            overlapped.finish()
        ledger.report()


class HasInputs(Protocol):
    """What the engine needs to know about a job."""

    def inputs(self, keys: Collection[str], known: object) -> dict[str, object]:
        """Return the values of `keys` as fingerprints store them.

        Args:
            keys: Job keys.
            known: What an earlier fingerprint stores for them. Files that look unchanged are not read again.
        """


Work = TypeVar("Work")
JobType = TypeVar("JobType", bound=HasInputs)


@dataclass(frozen=True)
class Run(Generic[Work]):
    """One attempt at a job.

    Args:
        job: What to do.
        cache: Where results are stored.
        reporter: Receives progress and warnings.
        options: How networks run.
        engine: Where chunks run.
        rebuild: Trust no earlier result, not even one that a plan would keep.
        stages: All stages of the job by name.
        inputs: What the running stage depends on.
    """

    job: Work
    cache: FrameCache
    reporter: Reporter
    options: Options = Options()
    engine: Engine = field(default_factory=LocalEngine)
    rebuild: bool = False
    stages: Mapping[str, Stage[Work]] = field(default_factory=dict)
    inputs: Inputs = field(default_factory=lambda: Inputs(keys={}, after={}))


@dataclass(frozen=True)
class Footage:
    """The frames that a job uses, before or after extraction.

    Args:
        count: Number of frames according to the source's header. None if it does not say.
        height: Height in pixels.
        width: Width in pixels.
        fps: Frame rate of the used frames.
        least: Lower limit of the number of frames, since headers can be wrong.
        most: Upper limit of the number of frames.
    """

    count: int | None
    height: int
    width: int
    fps: Fraction
    least: float = 1
    most: float = math.inf


@dataclass(frozen=True)
class Ahead:
    """What is known of a stage before the stages that it reads have run.

    Args:
        arrays: The arrays that are on the disk at the same time, at the peak.
        phases: Its phases, with about as many frames as they are going to have.
    """

    arrays: list[ArraySpec]
    phases: list[Phase]


@dataclass(frozen=True)
class Stage(Generic[Work]):
    """The declaration of a stage: its name, what it depends on and what it makes.

    Each stage is declared in its own module and listed in all_stages.py.

    Args:
        name: Name of the command and of the module.
        plan: `plan(run, resume)` returns the plan after checking everything that can be checked before the first frame
            is processed. `resume` means that an earlier run continues.
        reads: The job keys that the results depend on. A change of one makes them stale.
        after: The stages whose results this one reads, if they run for the job.
        arrays: Names of the arrays it makes in the cache. `control/*` stands for all arrays of a group.
        needs: `needs(job)` returns the arrays of earlier stages whose frames it reads, named likewise.
        deliver: `deliver(run, fingerprint)` writes results other than arrays, unless those that exist were made from
            frames with this fingerprint.
        check: `check(run, footage)` runs before the first of several stages. It raises DiffSynthError for missing
            files, wrong options and missing devices, reads only headers, and returns what is known ahead.
        footage: `footage(run, ahead)` describes the job's frames, by the source if `ahead`, else by the cache. Only
            the stage that makes the frames has it.
        outputs: The names of the files and folders of images that it writes into the output folder of a job.
        changed_outputs: `changed_outputs(job, cache)` finds outputs that are missing or differ from what was written.
        shown: The arrays that contact sheets show, by label.
        streams: Whether it reads input files until its end, rather than at its beginning.
        runs: Whether a job has this stage.
    """

    name: str
    plan: Callable[[Run[Work], bool], Plan]
    reads: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    needs: Callable[[Work], tuple[str, ...]] = lambda job: ()
    deliver: Callable[[Run[Work], str], None] | None = None
    check: Callable[[Run[Work], Footage], Ahead] = lambda run, footage: Ahead([], [])
    footage: Callable[[Run[Work], bool], Footage] | None = None
    outputs: Callable[[Work], tuple[str, ...]] = lambda job: ()
    changed_outputs: Callable[[Work, FrameCache], Iterable[Path]] = lambda job, cache: ()
    shown: Callable[[FrameCache], dict[str, str]] = lambda cache: {}
    streams: bool = False
    runs: Callable[[Work], bool] = lambda job: True

    def before(self, stages: Mapping[str, Stage[Work]]) -> list[str]:
        """Return the names of those of a job's stages whose results this one reads."""
        return [name for name in self.after if name in stages]


def stage_inputs(
    stage: Stage[JobType],
    stages: Mapping[str, Stage[JobType]],
    job: JobType,
    recorded: Callable[[str], Inputs | None],
) -> Inputs:
    """Return what a stage of a job depends on.

    Args:
        stage: One of `stages`.
        stages: All stages of the job by name.
        job: The job.
        recorded: Returns the inputs a stage was started with, by the stage's name. They save reading unchanged files
            again and stand in for files that no longer exist.
    """
    known = recorded(stage.name)
    keys = job.inputs(stage.reads, known["keys"] if known else {})
    return {
        "keys": keys,
        "after": {name: stage_inputs(stages[name], stages, job, recorded) for name in stage.before(stages)},
    }


def run_stage(stage: Stage[JobType], run: Run[JobType], restart: bool = False) -> None:
    """Complete `stage`: start it, resume it, or do nothing if it is done. The caller holds the cache's lock.

    Args:
        stage: The stage.
        run: What it runs on.
        restart: Redo the stage from its first frame.

    Raises:
        DiffSynthError: An earlier stage is not finished, or the stage is stale and `restart` is off.
    """
    record = run.cache.record(stage.name)
    run.reporter.begin(stage.name, None)
    run.reporter.phase("check inputs")
    check_before(stage, run)
    inputs = stage_inputs(stage, run.stages, run.job, run.cache.recorded)
    run = replace(run, inputs=inputs)
    if not restart:
        refuse_stale(stage.name, inputs, run.cache)
    elif record.inputs is not None and not changes(stage.name, record.inputs, inputs):
        run = replace(run, rebuild=True)  # no key changed, so the user suspects damage
    if restart or not record.complete:
        refuse_removed(stage.name, stage.needs(run.job), stage.before(run.stages), run.stages, run.job, run.cache)
        fill(stage, run, resume=not restart and record.inputs is not None)
        if stage.streams:
            discard_if_changed(stage, run)
        return
    if stage.deliver is not None:
        stage.deliver(run, fingerprint(inputs))
    record.touch()
    run.reporter.end(stage.name, "nothing to do")


def fill(stage: Stage[Work], run: Run[Work], resume: bool) -> None:
    """Do the work of `stage`: all of it, or with `resume` what is left of it.

    `run.inputs` is recorded as what the stage was started with.
    """
    cache, reporter, inputs = run.cache, run.reporter, run.inputs
    record = cache.record(stage.name)
    plan = stage.plan(run, resume)
    working = cache.keeping(plan.rereads)
    if plan.trial is not None:
        list(run.engine.map(plan.trial, working, [(0, 0)]))
    cache.sweep(spec.name for spec in plan.arrays)
    if not resume:  # old results are removed only after every check has passed
        record.clear()
        cache.remove_all(stage.arrays, keep=plan.kept)
        for spec in plan.arrays:
            cache.create(spec)
        plan.begin(cache)
        record.begin(inputs, sum(len(phase.chunks()) for phase in plan.phases))
    ledger, done = Ledger(record, cache, reporter), record.done
    todo = [(phase, [chunk for chunk in phase.chunks() if (phase.name, chunk[0]) not in done]) for phase in plan.phases]
    total = sum(phase.frames for phase in plan.phases)
    left = sum(stop - start for _, chunks in todo for start, stop in chunks)
    reporter.begin(stage.name, total, total - left)
    with record.committing():
        for phase in (phase for phase, chunks in todo if not chunks):
            ledger.tidy(phase)  # the run may have been killed in between
        run.engine.run([work for work in todo if work[1]], working, ledger)
    for name in (name for phase in plan.phases for name in phase.drops):
        cache.remove(name)  # again, since a worker that was taken for dead may have written to it
    if stage.deliver is not None:  # before the receipt, which tells make that the stage is complete
        stage.deliver(run, fingerprint(inputs))
    record.finish(fingerprint(inputs), plan.frames, plan.results)
    reporter.end(stage.name, f"{counted(plan.frames, 'frame')} in {record.seconds:.1f} s")


def discard_if_changed(stage: Stage[JobType], run: Run[JobType]) -> None:
    """Raise DiffSynthError if files that `stage` reads have changed since it started, and have its results redone.

    Some frames may be those of the old files and others those of the new ones. Nothing would tell, later, if the old
    files came back. Files of earlier stages are not read any more and may change.
    """
    keys = run.inputs["keys"]
    before: Inputs = {"keys": keys, "after": {}}
    now: Inputs = {"keys": run.job.inputs(stage.reads, keys), "after": {}}
    if found := changes(stage.name, before, now):
        run.cache.record(stage.name).clear()
        raise DiffSynthError(
            "\n".join([f"input changed while {stage.name} was reading it:", *(f"  {change}" for change in found)]),
            f"run it again, from its first frame: {run.cache.command(stage.name)}",
        )


def check_before(stage: Stage[JobType], run: Run[JobType]) -> None:
    """Raise DiffSynthError unless all stages before `stage` are finished and up to date."""
    for name in stage.before(run.stages):
        if not run.cache.record(name).complete:
            raise DiffSynthError(f"{stage.name} needs {name}, which is not finished", f"run {run.cache.command(name)}")
        refuse_stale(name, stage_inputs(run.stages[name], run.stages, run.job, run.cache.recorded), run.cache)


def refuse_stale(stage: str, new: Inputs, cache: FrameCache) -> None:
    """Raise DiffSynthError if `stage` was started with inputs other than `new`."""
    old = cache.recorded(stage)
    found = changes(stage, old, new) if old is not None else []
    if found:
        listed = "\n".join(f"  {change}" for change in found)
        raise DiffSynthError(
            f"{stage} is stale: these keys have changed since it was started:\n{listed}",
            f"redo it with {cache.command(found[0].stage)} --restart, redo all stale stages with "
            f"{cache.command('run')} --restart, or restore the old values",
        )
