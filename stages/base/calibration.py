"""Measuring what each kind of work costs here, by running a few frames of a job."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise

from stages.base.cache import FrameCache
from stages.base.chunks import Traffic
from stages.base.engine import Chunk, Engine, Phase, PhaseChunks, Task
from stages.base.json_types import Values
from stages.base.ledger import Ledger
from stages.base.overlap import OverlappedCache
from stages.base.reporting import Reporter

ONE_PROCESS = "one process"  # what bounds work that is not divided into chunks


@dataclass
class Cost:
    """What some work of one kind took.

    Args:
        amount: How much work it was: what tasks count, or frames.
        frames: Number of frames.
        computing: Seconds of computing.
        reading: Seconds of reading what the tasks announce.
        writing: Seconds of writing.
        traffic: What was read and written.
        divided: Whether it was divided into chunks.
    """

    amount: float = 0.0
    frames: int = 0
    computing: float = 0.0
    reading: float = 0.0
    writing: float = 0.0
    traffic: Traffic = field(default_factory=Traffic)
    divided: bool = True

    @property
    def seconds(self) -> float:
        """Seconds of the slowest part. Frames are read and written while others are computed."""
        return max(self.computing, self.reading, self.writing)

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = (self.computing, "computing"), (self.reading, "reading"), (self.writing, "writing")
        return max(parts)[1] if self.divided else ONE_PROCESS

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.amount + other.amount,
            self.frames + other.frames,
            self.computing + other.computing,
            self.reading + other.reading,
            self.writing + other.writing,
            self.traffic + other.traffic,
            self.divided,
        )


@dataclass(frozen=True)
class Calibration:
    """What the kinds of work of a job cost on one machine.

    Args:
        of: What was measured: the processor, the size of frames and the job keys that matter. Costs of others differ.
        frames: Number of frames that went through all stages.
        loading: Seconds of loading networks.
        costs: By kind of work.
    """

    of: Values
    frames: int
    loading: float
    costs: dict[str, Cost]


def kind_of(phase: Phase, stage: str) -> str:
    """Return the kind of work that a phase of a stage is."""
    return phase.task.kind or f"{stage}: {phase.name}"


def amount_of(task: Task, frames: int) -> float:
    """Return how much work there is for a task in this many frames."""
    return sum(task.work(frames).values()) or float(frames)


class Meter(Reporter, Engine):
    """Runs chunks one by one in this process and measures them, and work between phases that counts frames.

    A chunk is read, computed and written one after the other, so that each part can be measured. The first chunk of a
    phase counts only if it is alone, since it warms up.

    Args:
        shown: Called with what is being measured.
    """

    def __init__(self, shown: Callable[[str], object]):
        self.shown = shown
        self.costs: dict[str, Cost] = {}
        self.loading = 0.0
        self.stage, self.step = "", ""
        self.counted, self.since = 0, time.perf_counter()

    # --- chunks -----------------------------------------------------------------------------------------

    def run(self, work: Sequence[PhaseChunks], cache: FrameCache, ledger: Ledger) -> None:
        self.phase("")
        plain = FrameCache(cache.store, cache.arguments, cache.made_by)  # which keeps nothing in memory
        for phase, chunks in work:
            self.shown(f"{self.stage}: {phase.name}")
            with closing(phase.task):
                measured = [self._chunk(phase.task, plain, chunk) for chunk in chunks]
            for chunk in chunks:
                ledger.mark(phase, chunk)
            ledger.end(phase)
            self._add(phase, measured[1:] or measured)
        self.phase("")

    def _chunk(self, task: Task, cache: FrameCache, chunk: Chunk) -> Cost:
        before, times = cache.store.arrays.traffic, [time.perf_counter()]
        with OverlappedCache(cache) as overlapped:
            overlapped.read_ahead(task.reads(*chunk))
            for read in overlapped.ahead.values():
                read.result()
            times.append(time.perf_counter())
            task.run(overlapped, *chunk)
            times.append(time.perf_counter())
            overlapped.finish()
        times.append(time.perf_counter())
        reading, computing, writing = (after - start for start, after in pairwise(times))
        traffic = cache.store.arrays.traffic - before
        return Cost(0.0, chunk[1] - chunk[0], computing, reading, writing, traffic)

    def map(self, task: Task, cache: FrameCache, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        """Run a task that is no phase, such as encoding or, with no frames, loading networks."""
        with closing(task):
            for start, stop in chunks:
                cost = self._chunk(task, cache, (start, stop))
                if stop > start:
                    cost.amount = amount_of(task, cost.frames)
                    self._count(task.kind, cost)
                else:
                    self.loading += cost.computing
                yield start, stop
        self._restart("")

    def _add(self, phase: Phase, measured: list[Cost]) -> None:
        total = sum(measured[1:], measured[0])
        total.amount = amount_of(phase.task, phase.frames) * total.frames / phase.frames
        self._count(kind_of(phase, self.stage), total)

    # --- work between phases ----------------------------------------------------------------------------

    def begin(self, stage: str, total: int | None, done: int = 0) -> None:
        self.phase("")
        if total is None:  # else it is part of the current stage, such as writing the video
            self.stage = stage

    def phase(self, name: str) -> None:
        if self.counted:
            seconds = time.perf_counter() - self.since
            cost = Cost(float(self.counted), self.counted, seconds, divided=False)
            self._count(f"{self.stage}: {self.step}", cost)
        self._restart(name)
        if name:
            self.shown(f"{self.stage}: {name}")

    def _restart(self, name: str) -> None:
        """Measure from now on what is called `name`."""
        self.step, self.counted, self.since = name, 0, time.perf_counter()

    def advance(self, frames: int) -> None:
        self.counted += frames

    def end(self, stage: str, message: str) -> None:
        self.phase("")

    def _count(self, kind: str, cost: Cost) -> None:
        self.costs[kind] = self.costs[kind] + cost if kind in self.costs else cost
