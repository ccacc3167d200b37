"""How far the stages of a job are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stages.base.cache import FrameCache
from stages.base.engine import JobType, Stage, stage_inputs
from stages.base.fingerprint import changes
from stages.base.record import Receipt


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Args:
        stage: Name of the stage.
        state: done, partly, stale or to do.
        share: Share of its chunks that are done, 0 to 1.
        changes: What made it stale, one line per key.
        receipt: Its receipt, if it was complete.
    """

    stage: str
    state: str
    share: float = 0.0
    changes: tuple[str, ...] = ()
    receipt: Receipt | None = None


def progress(stage: Stage[JobType], stages: Mapping[str, Stage[JobType]], job: JobType, cache: FrameCache) -> Progress:
    """Return how far `stage`, one of `stages`, is."""
    record = cache.record(stage.name)
    if record.inputs is None:
        return Progress(stage.name, "to do")
    found = changes(stage.name, record.inputs, stage_inputs(stage, stages, job, cache.recorded))
    if found:
        return Progress(stage.name, "stale", changes=tuple(map(str, found)), receipt=record.receipt)
    if record.complete:
        return Progress(stage.name, "done", 1.0, receipt=record.receipt)
    return Progress(stage.name, "partly", len(record.done) / max(1, record.chunks))
