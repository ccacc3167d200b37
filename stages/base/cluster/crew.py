"""The workers of a run: processes on the machines of a Ray cluster, hired, replaced and dismissed by the driver."""

from __future__ import annotations

import os
import pickle
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

import ray
from ray.exceptions import RayError, RayTaskError

from stages.base.cluster import ClusterOptions, Share, share
from stages.base.cluster.worker import Identity, Worker
from stages.base.errors import DiffSynthError
from stages.base.reporting import Reporter
from stages.base.store import store_settings

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

    from stages.base.engine import Chunk

    Call: TypeAlias = ObjectRef[list[Chunk]]
    Introduction: TypeAlias = ObjectRef[tuple[str, Identity]]

POLL = 1.0  # s that the driver waits for workers before it looks at the cluster again
WARN_AFTER, PATIENCE = 20.0, 300.0  # s without any worker; machines may be about to start
MOST_FAILED_STARTS = 3  # in a row


class Actor(Worker):
    """A worker in a process that Ray starts."""

    def __init__(self, gpus: int) -> None:
        super().__init__()
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # others may have been given the GPUs of this machine

    def introduce(self, identify: bytes, settings: Mapping[str, str]) -> tuple[str, Identity]:
        """Return Ray's id of the machine, and the result of a pickled function that describes it.

        Args:
            identify: The pickled function.
            settings: Environment variables of the driver, with which this process opens object stores.
        """
        os.environ.update(settings)
        identity: Callable[[], Identity] = pickle.loads(identify)
        return ray.get_runtime_context().get_node_id(), identity()


@dataclass(frozen=True)
class Hired:
    """A worker that is ready: its handle and where it runs."""

    handle: ActorHandle[Actor]
    identity: Identity


class Crew:
    """The workers of a run, by number. A lost one is replaced by another of the same number.

    A worker is refused if its machine would compute other bytes: if it has other versions than the driver, or another
    processor than the first worker.

    Args:
        options: How many workers.
        identify: Describes the machine on which it is called.
        versions: The versions that all machines must have.
        reporter: Receives warnings.
    """

    def __init__(
        self,
        options: ClusterOptions,
        identify: Callable[[], Identity],
        versions: Mapping[str, str],
        reporter: Reporter,
    ):
        self.options, self.versions, self.reporter = options, versions, reporter
        self.identify = pickle.dumps(identify)
        self.hired: dict[int, Hired] = {}
        self.arriving: dict[Introduction, tuple[int, ActorHandle[Actor]]] = {}
        self.refused: dict[str, str] = {}
        """Why machines are not used, by Ray's ids of them."""
        self.processor: str | None = None
        self.failed_starts: list[str] = []
        self.alone_since, self.warned = time.monotonic(), False

    @property
    def size(self) -> int:
        """Number of workers, including those that may still come."""
        return self.options.workers or max(self._share().places, 1)

    def hire(self) -> None:
        """Ask for workers that are missing.

        Raises:
            DiffSynthError: There is none, and none can be expected.
        """
        places = self._share()
        if len(self.failed_starts) < MOST_FAILED_STARTS:
            taken = {*self.hired, *(number for number, _ in self.arriving.values())}
            for number in range(self.options.workers or places.places):
                if number not in taken:
                    self._ask(number, places)
        if self.hired:
            self.alone_since, self.warned = time.monotonic(), False
        else:
            self._wait_on(places)

    def wait(self, calls: Iterable[Call]) -> list[Call]:
        """Wait a moment for the end of one of these calls or for a worker that arrives. Return the calls that ended."""
        awaited = [*calls, *self.arriving]
        if not awaited:
            time.sleep(POLL)
            return []
        ready, _ = ray.wait(awaited, timeout=POLL)
        for introduction in self.arriving.keys() & ready:
            self._welcome(introduction)
        return [call for call in calls if call in ready]

    def dismiss(self, number: int) -> None:
        """End a worker, whether it still runs or not."""
        ray.kill(self.hired.pop(number).handle)

    def dismiss_all(self) -> None:
        """End all workers, also those that have not arrived."""
        for number in [*self.hired]:
            self.dismiss(number)
        for _, handle in self.arriving.values():
            ray.kill(handle)
        self.arriving.clear()

    def _share(self) -> Share:
        machines = [
            machine["Resources"]
            for machine in ray.nodes()
            if machine["Alive"] and machine["NodeID"] not in self.refused
        ]
        return share(machines, self.options.workers, self.options.gpus_per_worker)

    def _ask(self, number: int, part: Share) -> None:
        """Ask Ray for a process. It starts as soon as a machine has room for it."""
        others = {"ray.io/node-id": f"!in({','.join(self.refused)})"} if self.refused else {}
        kind = ray.remote(Actor).options(
            num_gpus=part.gpus,
            num_cpus=part.cpus,
            max_restarts=0,
            max_task_retries=0,
            label_selector=others,
            scheduling_strategy="SPREAD",
        )
        handle = cast("ActorHandle[Actor]", kind.remote(part.gpus))
        # Ray would write credentials to its logs if they were part of its runtime environment.
        self.arriving[handle.introduce.remote(self.identify, store_settings())] = number, handle

    def _welcome(self, introduction: Introduction) -> None:
        """Hire or refuse a worker that has started."""
        number, handle = self.arriving.pop(introduction)
        try:
            machine, identity = ray.get(introduction)
        except RayError as error:
            self._not_started(reason(error))
            return
        self.failed_starts.clear()
        differences = identity.differences(self.versions, self.processor or identity.processor)
        if not differences:
            self.processor = identity.processor
            self.hired[number] = Hired(handle, identity)
            return
        ray.kill(handle)
        if machine not in self.refused:
            self.refused[machine] = f"{identity.host} has {differences}"
            self.reporter.warn(f"{self.refused[machine]}; it is not used, because frames could differ")

    def _not_started(self, why: str) -> None:
        self.failed_starts.append(why)
        if len(self.failed_starts) == MOST_FAILED_STARTS and self.hired:
            self.reporter.warn(f"workers cannot be started any more ({why}); the others continue")

    def _wait_on(self, places: Share) -> None:
        """Raise DiffSynthError if there will not be a worker, or if there has been none for too long."""
        waited = time.monotonic() - self.alone_since
        if len(self.failed_starts) >= MOST_FAILED_STARTS:
            raise DiffSynthError(
                f"workers cannot be started: {self.failed_starts[-1]}",
                "install diffsynth-cli on all machines of the cluster",
            )
        if self.refused and not places.places:
            raise DiffSynthError(
                f"no machine of the Ray cluster can be used: {'; '.join(self.refused.values())}",
                "install the versions that this machine has on all machines of the cluster",
            )
        if not places.places and self.options.workers is None:
            raise DiffSynthError(f"no machine of the Ray cluster has {places} for a worker", _LESS)
        if waited > PATIENCE:
            raise DiffSynthError(f"no worker could be started in {waited:.0f} s: none got {places}", _LESS)
        if waited > WARN_AFTER and not self.warned:
            self.warned = True
            self.reporter.warn(f"waiting for a machine with {places} that is free for a worker")


_LESS = "free or add machines, or change --workers or --gpus-per-worker"


def reason(error: RayError) -> str:
    """Describe in a few words why a call to a worker failed."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return f"{type(cause).__name__}: {cause}".strip().splitlines()[0]
    found = re.search(r"because (.+?)[.\n]", str(error))
    return found[1] if found else type(error).__name__
