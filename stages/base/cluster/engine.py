"""Runs chunks on the workers of a Ray cluster."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, cast

import ray
from ray.exceptions import RayError, RayTaskError

from stages.base.cache import FrameCache
from stages.base.cluster import ClusterOptions
from stages.base.cluster.crew import Crew, Hired, reason
from stages.base.cluster.dealer import MOST_CALLS, Dealer, hand
from stages.base.cluster.worker import Identity
from stages.base.engine import Chunk, Engine, Task
from stages.base.errors import DiffSynthError
from stages.base.reporting import Reporter
from stages.base.words import counted

if TYPE_CHECKING:
    from stages.base.cluster.crew import Call

T = TypeVar("T")

MOST_FAILURES = 3  # of one chunk


class RayEngine(Engine):
    """Runs chunks on workers, which keep networks loaded between chunks and phases.

    The chunks of a lost worker run again on another one. An error of a chunk that the user can act on ends the run at
    once, any other one when the chunk has failed MOST_FAILURES times.

    Args:
        crew: The workers.
    """

    def __init__(self, crew: Crew):
        self.crew = crew

    def start(self) -> None:
        """Wait for the first worker. Others may arrive later."""
        reporter = self.crew.reporter
        reporter.begin("ray", None)
        reporter.phase("start workers")
        first = self._any()
        reporter.end("ray", f"up to {counted(self.crew.size, 'worker')}, {first.identity.processor}")

    def call(self, function: Callable[[], T]) -> T:
        """Return the result of a function that pickles, called by a worker.

        Raises:
            Exception: What the function raises.
        """
        try:
            return cast(T, ray.get(self._any().handle.call.remote(pickle.dumps(function))))
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise DiffSynthError(f"a worker was lost: {reason(error)}", "run the same command to resume") from error

    def map(self, task: Task, cache: FrameCache, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        """Run `task` on every chunk, then close it on all workers. If that fails or stops early, end the workers.

        Yields:
            Each chunk once its data is on the disk, in any order.
        """
        in_order = [*chunks]
        if not in_order:
            return
        try:
            yield from PhaseRun(self.crew, task, cache, in_order).run()
        except BaseException:  # also when the caller closes the generator
            self.crew.dismiss_all()
            raise

    def _any(self) -> Hired:
        """Return a worker, after waiting for one if necessary."""
        self.crew.hire()
        while not self.crew.hired:
            self.crew.wait(())
            self.crew.hire()
        return next(iter(self.crew.hired.values()))


class PhaseRun:
    """The chunks of one phase while workers run them."""

    def __init__(self, crew: Crew, task: Task, cache: FrameCache, chunks: list[Chunk]):
        self.crew, self.left = crew, len(chunks)
        self.task, self.cache = pickle.dumps(task), pickle.dumps(cache)
        self.dealer = Dealer(chunks, crew.size, task.warm_up, hand=hand(task.chunk))
        self.begun: dict[int, ray.ObjectRef[None]] = {}
        self.calls: dict[Call, tuple[int, list[Chunk]]] = {}
        """Calls that have not ended, each with its worker and the chunks that it computes."""
        self.held: dict[int, list[Chunk]] = {}
        """Chunks that workers have been given and whose data is not known to be on the disk."""
        self.failures: Counter[Chunk] = Counter()

    def run(self) -> Iterator[Chunk]:
        """Yield each chunk once its data is on the disk."""
        written: list[Chunk] = []
        while self.left:
            self.crew.hire()
            for number in self.crew.hired:
                self._keep_busy(number)
            yield from written  # while the workers work
            written = [chunk for call in self.crew.wait(self.calls) for chunk in self._result(call)]
            self.left -= len(written)
        yield from written
        self._end()

    def _keep_busy(self, number: int) -> None:
        """Give a worker chunks until it has MOST_CALLS calls. Without any, have it finish what it has computed."""
        calls = sum(worker == number for worker, _ in self.calls.values())
        while calls < MOST_CALLS and (chunks := self.dealer.next(number, busy=calls > 0)):
            self._call(number, chunks)
            calls += 1
        if not calls and self.held.get(number):
            self.calls[self.crew.hired[number].handle.finish.remote()] = number, []

    def _call(self, number: int, chunks: list[Chunk]) -> None:
        """Have a worker compute chunks."""
        handle = self.crew.hired[number].handle
        if number not in self.begun:
            self.begun[number] = handle.begin.remote(self.task, self.cache)
        self.held.setdefault(number, []).extend(chunks)
        call: Call = handle.run.remote(self.begun[number], chunks, self.dealer.following(number))
        self.calls[call] = number, chunks

    def _result(self, ended: Call) -> list[Chunk]:
        """Return the chunks that a worker has finished, one of whose calls has ended. If it failed, replace the worker.

        Ray may report a call before an earlier one of the same worker, which has ended, too, and is what failed first.
        """
        if ended not in self.calls:  # forgotten, since its worker was lost
            return []
        number, _ = self.calls[ended]
        call = next(call for call, (worker, _) in self.calls.items() if worker == number)
        del self.calls[call]
        try:
            written = ray.get(call)
        except RayError as error:
            self._failed(number, error)
            return []
        for chunk in written:
            self.held[number].remove(chunk)
        return written

    def _failed(self, number: int, error: RayError) -> None:
        """Have another worker do what this one has not finished.

        A worker that raised an unexpected error is replaced, too: its GPU may be in a state that it cannot leave.
        """
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, DiffSynthError):
            raise cause from error
        held, waiting = self.held.pop(number), self._cancel(number)
        chunks = [chunk for chunk in held if chunk not in waiting]
        self.failures.update(chunks)
        where = f"frames {chunks[0][0]} to {chunks[-1][1] - 1}"
        if any(self.failures[chunk] >= MOST_FAILURES for chunk in chunks):
            raise cause or DiffSynthError(
                f"{where} failed {MOST_FAILURES} times, the last time because {reason(error)}",
                "the logs of Ray, in /tmp/ray/session_latest/logs on each machine, may say more",
            ) from error
        host = self.crew.hired[number].identity.host
        self.crew.reporter.warn(f"a worker on {host} was lost ({reason(error)}); {where} are done again by another one")
        self.crew.dismiss(number)
        self.dealer.give_back(number, held)
        self.begun.pop(number, None)

    def _cancel(self, number: int) -> list[Chunk]:
        """Forget the calls of a worker that have not ended. Return their chunks."""
        cancelled = [call for call, (worker, _) in self.calls.items() if worker == number]
        return [chunk for call in cancelled for chunk in self.calls.pop(call)[1]]

    def _end(self) -> None:
        """End the phase on all workers that took part in it."""
        ends: dict[int, ray.ObjectRef[None]] = {
            number: self.crew.hired[number].handle.end.remote() for number in self.begun
        }
        for number, end in ends.items():
            try:
                ray.get(end)
            except RayError:  # nothing is lost, and the next phase hires another one
                self.crew.dismiss(number)


@contextmanager
def ray_engine(
    options: ClusterOptions, identify: Callable[[], Identity], versions: Mapping[str, str], reporter: Reporter
) -> Iterator[RayEngine]:
    """Yield an engine with at least one worker on the cluster that this process is connected to.

    The arguments are those of `Crew`. On exit, the workers end.
    """
    engine = RayEngine(Crew(options, identify, versions, reporter))
    try:
        engine.start()
        yield engine
    finally:
        engine.crew.dismiss_all()
