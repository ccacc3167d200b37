"""Running chunks on the machines of a Ray cluster. Ray is imported when it is needed: it is an optional package.

`Dealer` decides which worker runs which chunk, `Worker` is what runs in their processes, `Crew` hires and dismisses
them, and `RayEngine` brings these together.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from stages.base.errors import DiffSynthError, UsageError
from stages.base.words import counted

CPUS_PER_WORKER = 4  # without GPUs; each worker loads the networks, which take gigabytes
REACHABLE = 5.0  # s that the head of a cluster has to accept a connection
HOW_TO_START = "start one with `ray start --head`, give its address, or use --ray-address local"

Resources: TypeAlias = Mapping[str, float]
"""What a machine offers, by Ray's names of resources."""


@dataclass(frozen=True)
class ClusterOptions:
    """Which cluster computes, and how many workers.

    Args:
        address: HOST:PORT of the head of a Ray cluster; auto: the one in RAY_ADDRESS or on this machine; local: start
            one on this machine for the time of the run.
        workers: Number of workers. None for as many as the machines can hold.
        gpus_per_worker: GPUs that each worker gets, 0 for none. None for one if the cluster has GPUs.
    """

    address: str = "auto"
    workers: int | None = None
    gpus_per_worker: int | None = None


# --- shares of machines ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """What a worker gets of a machine.

    Args:
        gpus: Number of GPUs.
        cpus: Number of CPU cores.
        places: How many workers the machines can hold.
    """

    gpus: int
    cpus: int
    places: int

    def __str__(self) -> str:
        return counted(self.gpus, "GPU") if self.gpus else counted(self.cpus, "CPU core")


def share(machines: Sequence[Resources], workers: int | None, gpus: int | None) -> Share:
    """Divide machines among `workers` workers, or as many as they can hold, each with so many GPUs.

    With GPUs, a worker also gets its part of the CPU cores. Without, it gets CPUS_PER_WORKER cores, or as many as the
    number of workers allows.
    """
    if gpus is None:
        gpus = int(any(machine.get("GPU", 0) >= 1 for machine in machines))
    if not gpus:
        cores = [int(machine.get("CPU", 0)) for machine in machines]
        cpus = _cores_each(cores, workers)
        return Share(0, cpus, sum(count // cpus for count in cores))
    able = [machine for machine in machines if machine.get("GPU", 0) >= gpus]
    cpus = min((int(machine.get("CPU", 0) * gpus / machine["GPU"]) for machine in able), default=0)
    return Share(gpus, cpus, sum(int(machine["GPU"]) // gpus for machine in able))


def _cores_each(cores: Sequence[int], workers: int | None) -> int:
    """Return how many cores each worker gets on machines with so many, at least one."""
    most = max(cores, default=0)
    if workers is None:
        return max(min(CPUS_PER_WORKER, most), 1)
    fitting = (each for each in range(most, 1, -1) if sum(count // each for count in cores) >= workers)
    return next(fitting, 1)


# --- connection -----------------------------------------------------------------------------------------


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process to a Ray cluster. A connection that it has already is used and stays.

    Args:
        address: As in `ClusterOptions`.

    Raises:
        UsageError: Ray is not installed, or `address` is not an address.
        DiffSynthError: There is no cluster at this address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError("--engine ray needs Ray, which is not installed", "pip install 'diffsynth-cli[ray]'") from None
    if ray.is_initialized():
        yield
        return
    address = _find(address)
    with _kept_handler():
        _connect(address)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    import ray
    from ray._private import ray_constants, worker

    worker._worker_logs_enabled = False  # Ray prints its daemons' messages to stdout, even without `log_to_driver`
    if is_loopback(address):  # as RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, which would have to be set before the import
        ray_constants.ENABLE_RAY_CLUSTER = False  # otherwise, Ray replaces the address by another of this machine
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1" if is_loopback(address) else None,
        )
    except ConnectionError as error:
        raise _no_cluster(address) from error


def is_loopback(address: str) -> bool:
    """Whether a cluster of this address is on this machine, and only this machine can reach it."""
    return address == "local" or address.rpartition(":")[0] in ("127.0.0.1", "localhost")


def _find(address: str) -> str:
    """Return HOST:PORT, or `local`. Ray itself would try for minutes to reach a cluster that is not there."""
    if address == "local":
        return address
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address  # what `ray.init` does with `auto`

        found = canonicalize_bootstrap_address("auto")
        if found is None:
            raise DiffSynthError("no Ray cluster runs on this machine", HOW_TO_START)
        address = found
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise UsageError(f"--ray-address: {address!r} is not HOST:PORT", "give the address that `ray start` printed")
    try:
        socket.create_connection((host, int(port)), REACHABLE).close()
    except (OSError, OverflowError):
        raise _no_cluster(address) from None
    return address


def _no_cluster(address: str) -> DiffSynthError:
    return DiffSynthError(f"no Ray cluster answers at {address}", HOW_TO_START)


@contextmanager
def _kept_handler() -> Iterator[None]:
    """Restore what this process does on SIGTERM, which Ray replaces."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
