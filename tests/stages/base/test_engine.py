"""Tasks are closed whatever happens, finished chunks are complete, and dropped arrays are not results."""

from __future__ import annotations

import pytest

from stages.base.cache import FrameCache
from stages.base.engine import Chunk, LocalEngine, Phase, Plan, Task


class Counting(Task):
    """A task that records its calls and fails at one chunk."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.seen: list[Chunk | str] = []

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        if start == self.fails_at:
            raise ValueError("no more")
        self.seen.append((start, stop))

    def close(self) -> None:
        self.seen.append("closed")


CHUNKS = [(0, 8), (8, 12)]
UNUSED = FrameCache("nowhere")


def test_a_task_is_closed_after_its_last_chunk() -> None:
    task = Counting()
    assert list(LocalEngine().map(task, UNUSED, CHUNKS)) == CHUNKS
    assert task.seen == [*CHUNKS, "closed"]


def test_a_task_is_closed_when_a_chunk_fails() -> None:
    task = Counting(fails_at=8)
    with pytest.raises(ValueError, match="no more"):
        list(LocalEngine().map(task, UNUSED, CHUNKS))
    assert task.seen == [(0, 8), "closed"]


def test_the_chunk_before_a_failed_one_is_complete() -> None:
    chunks = LocalEngine().map(Counting(fails_at=8), UNUSED, CHUNKS)
    assert next(chunks) == (0, 8)
    with pytest.raises(ValueError, match="no more"):
        next(chunks)


def test_a_task_is_closed_when_the_caller_stops_early() -> None:
    task = Counting()
    chunks = LocalEngine().map(task, UNUSED, [*CHUNKS, (12, 16)])
    next(chunks)
    chunks.close()
    assert task.seen == [*CHUNKS, "closed"]  # one more chunk was computed while the first was written


def test_dropped_arrays_are_not_results() -> None:
    phases = [Phase("one", 1, Counting(), drops=("a/1",)), Phase("two", 1, Counting())]
    plan = Plan(1, [], phases, kept=("a/1", "a/2"))
    assert plan.results == ["a/2"]


def test_no_chunk_contains_frames_of_two_scenes() -> None:
    assert Phase("one", 12, Counting()).chunks() == CHUNKS
    assert Phase("one", 12, Counting(), cuts=(1, 10)).chunks() == [(0, 1), (1, 9), (9, 10), (10, 12)]
