"""Which worker runs which chunk of a phase. Knows nothing about processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from stages.base.engine import CHUNK, Chunk

MOST_CALLS = 2  # per worker: one that runs, and one so that the worker need not wait for the driver


def hand(frames: int) -> int:
    """Return how many chunks of this many frames are dealt at once. Many small ones would keep the driver busy."""
    return max(CHUNK // frames, 1)


class Dealer:
    """Deals the chunks of a phase to workers.

    Each worker goes through a contiguous part in order, because tasks keep what the next chunk needs. A worker that has
    no chunks left takes a part that has no worker. If there is none, it takes the back half of the longest part.

    Args:
        chunks: The chunks that are to run, in order.
        workers: Number of parts to begin with. Worker k starts with part k unless another one has taken it.
        warm_up: What the first chunk of a part costs in addition, as a number of chunks. A worker leaves the end of a
            part to its owner if the owner is faster.
        hand: How many chunks are dealt at once. There are fewer towards the end of a part, for others to take some.
    """

    def __init__(self, chunks: Sequence[Chunk], workers: int, warm_up: int = 0, hand: int = 1):
        borders = [len(chunks) * k // workers for k in range(workers + 1)]
        self.parts = {k: deque(chunks[borders[k] : borders[k + 1]]) for k in range(workers)}
        self.working: set[int] = set()
        self.warm_up, self.hand = warm_up, hand

    def next(self, worker: int, busy: bool = False) -> list[Chunk]:
        """Return the chunks that `worker` runs next, in order. Empty if there is nothing to do at the moment.

        Args:
            worker: Its number.
            busy: Whether it still runs the chunks before. It is then given no chunks of other parts, nor the last one
                of its own, which an idle worker may take.
        """
        self.working.add(worker)
        if not busy and not self.parts.get(worker):
            self.parts[worker] = self._take()
        part = self.parts[worker]
        if busy and len(part) < 2:
            return []
        return [part.popleft() for _ in range(min(self.hand, (len(part) + 1) // 2))]

    def following(self, worker: int) -> Chunk | None:
        """Return the chunk that `worker` is going to run after its current ones, unless another worker takes it."""
        part = self.parts.get(worker)
        return part[0] if part else None

    def give_back(self, worker: int, chunks: Sequence[Chunk]) -> None:
        """Take these unfinished chunks and the rest of its part from a worker that no longer works."""
        self.parts.setdefault(worker, deque()).extendleft(reversed(chunks))
        self.working.discard(worker)

    def _take(self) -> deque[Chunk]:
        """Remove and return chunks for a worker that has none."""
        abandoned = [worker for worker in self.parts if worker not in self.working]
        if longest := max((self.parts[worker] for worker in abandoned), key=len, default=None):
            return self._back(longest, len(longest))
        longest = max(self.parts.values(), key=len)
        return self._back(longest, (len(longest) - self.warm_up + 1) // 2)

    @staticmethod
    def _back(part: deque[Chunk], count: int) -> deque[Chunk]:
        """Remove and return the last `count` chunks of a part. None of them if `count` is negative."""
        taken = deque(part.pop() for _ in range(count))
        taken.reverse()
        return taken
