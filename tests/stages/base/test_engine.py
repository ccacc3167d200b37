"""How chunks run: a task is closed whatever happens, and arrays go when nothing reads them."""

from __future__ import annotations

import pytest

from stages.base.engine import LocalEngine, Phase, Plan, Task


class Counting(Task):
    """Notes what it is asked, and fails at one chunk."""

    def __init__(self, fails_at=None):
        self.fails_at, self.seen = fails_at, []

    def run(self, cache, start, stop):
        if start == self.fails_at:
            raise ValueError("no more")
        self.seen.append((start, stop))

    def close(self):
        self.seen.append("closed")


CHUNKS = [(0, 8), (8, 12)]


def test_a_task_is_closed_after_its_last_chunk():
    task = Counting()
    assert list(LocalEngine().map(task, None, CHUNKS)) == CHUNKS
    assert task.seen == [*CHUNKS, "closed"]


def test_a_task_is_closed_when_a_chunk_fails():
    task = Counting(fails_at=8)
    with pytest.raises(ValueError, match="no more"):
        list(LocalEngine().map(task, None, CHUNKS))
    assert task.seen == [(0, 8), "closed"]


def test_a_task_is_closed_when_nobody_asks_for_more():
    task = Counting()
    chunks = LocalEngine().map(task, None, CHUNKS)
    next(chunks)
    chunks.close()
    assert task.seen == [(0, 8), "closed"]


def test_what_phases_drop_is_no_result():
    phases = [Phase("one", 1, 1, Counting(), drops=("a/1",)), Phase("two", 1, 1, Counting())]
    plan = Plan(1, [], phases, kept=("a/1", "a/2"))
    assert plan.results == ["a/2"]
