"""Recording what a running stage has finished, for resuming it and for its reporter."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from stages.base.cache import FrameCache
from stages.base.record import StageRecord
from stages.base.reporting import Reporter

if TYPE_CHECKING:  # the engine imports this module
    from stages.base.engine import Chunk, Phase


class Ledger:
    """Record the chunks and phases of one stage as an engine finishes them.

    An engine may call `mark` and `end` on another thread, in the order of the phases. It calls `begin` and `report` on
    the thread that called the engine, which is the only one that the reporter knows.

    Args:
        record: Where chunks are marked.
        cache: Where phases end.
        reporter: Receives progress.
    """

    def __init__(self, record: StageRecord, cache: FrameCache, reporter: Reporter):
        self.record, self.cache, self.reporter = record, cache, reporter
        self.marked = time.monotonic()
        self.news: deque[Callable[[], None]] = deque()

    def begin(self, phase: Phase) -> None:
        """The first chunk of a phase is about to run."""
        self.report()
        self.reporter.phase(phase.name)

    def mark(self, phase: Phase, chunk: Chunk) -> None:
        """Mark a chunk whose data is on the disk, as is that of all earlier phases."""
        start, stop = chunk
        before, self.marked = self.marked, time.monotonic()
        self.record.mark(phase.name, start, self.marked - before)
        self.news.append(partial(self.reporter.advance, stop - start))

    def end(self, phase: Phase) -> None:
        """End a phase, all chunks of which have been marked."""
        if found := phase.note(self.cache):
            self.news.append(partial(self.reporter.note, found))
        self.tidy(phase)

    def tidy(self, phase: Phase) -> None:
        """Mark the array that a finished phase completes, and remove those that no later phase reads."""
        self.record.commit()
        if phase.completes:
            self.cache[phase.completes].note(whole=True)
        for name in phase.drops:
            self.cache.remove(name)

    def report(self) -> None:
        """Tell the reporter what has been finished since the last call."""
        while self.news:
            self.news.popleft()()
