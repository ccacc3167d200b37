"""What a job takes: how much work, how long on so many workers, and what it costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.base.calibration import ONE_PROCESS, Calibration, Cost, amount_of, kind_of
from stages.base.chunks import Traffic
from stages.base.cluster.dealer import hand
from stages.base.engine import Ahead, Phase

OVERHEAD = 0.02  # s that a worker of a cluster waits for its next chunks; measured on busy cores
TOO_FEW = "too few chunks"  # what bounds a phase if workers have nothing to do
BANDWIDTH = "bandwidth"


@dataclass
class Work:
    """The phases of a job that are of one kind. They are alike.

    Args:
        kind: The kind.
        frames: Number of frames of each phase.
        chunks: Number of chunks of each phase.
        warm_up: What the first chunk of a worker costs in addition, as a number of chunks.
        amount: How much work each phase is, in the units of `Cost.amount`.
        phases: Number of phases.
    """

    kind: str
    frames: int
    chunks: int
    warm_up: int
    amount: float
    phases: int = 1


@dataclass(frozen=True)
class Expectation:
    """What the work of one kind is expected to take.

    Args:
        work: The work.
        seconds: For each number of workers, in the order in which they were asked for.
        bound: For each number of workers, what more of would help: a part of Cost, too few chunks, or one process.
        traffic: What is read and written.
    """

    work: Work
    seconds: tuple[float, ...]
    bound: tuple[str, ...]
    traffic: Traffic


def work_of(stages: Mapping[str, Ahead]) -> list[Work]:
    """Return the work of stages by name, in the order in which its kinds begin."""
    found: dict[str, Work] = {}
    for stage, ahead in stages.items():
        for phase in ahead.phases:
            kind = kind_of(phase, stage)
            if kind in found and found[kind].frames == phase.frames:
                found[kind].phases += 1
            elif phase.frames:
                name = kind if kind not in found else f"{kind} ({phase.name})"
                found[name] = Work(
                    kind, phase.frames, len(phase.chunks()), phase.task.warm_up, amount_of(phase.task, phase.frames)
                )
    return [*found.values()]


def counts_of(phases: Iterable[Phase]) -> dict[str, float]:
    """Return how much of what takes time there is in phases, by name."""
    counts: Counter[str] = Counter()
    known: dict[tuple[str, int], dict[str, float]] = {}
    for phase in phases:  # counting takes a while, and steps are alike
        key = phase.task.kind or phase.name, phase.frames
        if key not in known:
            known[key] = phase.task.work(phase.frames)
        counts.update(known[key])
    return {name: count for name, count in counts.items() if count}


def expect(
    work: Sequence[Work], frames: int, calibration: Calibration, workers: Sequence[int], bandwidth: float | None = None
) -> list[Expectation]:
    """Return what a job with so many frames is expected to take.

    Args:
        work: Its work.
        frames: Number of frames.
        calibration: What the kinds of work cost.
        workers: Numbers of workers.
        bandwidth: Bytes per second that the cache can read and write for all workers together. None if that grows with
            the number of workers.
    """
    divided = [_expectation(each, calibration.costs[each.kind], workers, bandwidth) for each in work]
    kinds = {each.kind for each in work}
    alone = [
        _alone(kind, frames, cost.seconds * frames / calibration.frames, len(workers))
        for kind, cost in calibration.costs.items()
        if not cost.divided and kind not in kinds
    ]
    loading = _alone("load networks", 0, calibration.loading, len(workers))
    return [loading, *divided, *alone]


def _alone(kind: str, frames: int, seconds: float, times: int) -> Expectation:
    work = Work(kind, frames, 1, 0, float(frames))
    return Expectation(work, (seconds,) * times, (ONE_PROCESS,) * times, Traffic())


def _expectation(work: Work, cost: Cost, workers: Sequence[int], bandwidth: float | None) -> Expectation:
    share = work.amount / cost.amount  # of what was measured, in each phase
    traffic = Traffic().plus(cost.traffic, share * work.phases)
    least = (traffic.bytes_read + traffic.bytes_written) / bandwidth if bandwidth else 0.0
    seconds, bounds = [], []
    for count in workers:
        wait = OVERHEAD / hand(work.frames // work.chunks) if count > 1 else 0.0
        chunk = cost.seconds * share / work.chunks + wait
        needed = work.phases * chunk * (math.ceil(work.chunks / count) + work.warm_up)
        seconds.append(max(needed, least))
        few = work.chunks < count * (1 + work.warm_up)
        bounds.append(BANDWIDTH if needed < least else TOO_FEW if few else cost.bound)
    return Expectation(work, tuple(seconds), tuple(bounds), traffic)
