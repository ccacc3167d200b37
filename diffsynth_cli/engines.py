"""Where the chunks of a job run: in this process, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from stages.base.errors import UsageError
from stages.base.reporting import Reporter

if TYPE_CHECKING:
    from stages.base.cluster import ClusterOptions
    from stages.base.engine import Engine


WITHOUT_GPU = ("cpu", "mps")  # devices that need no GPU of a cluster


class EngineName(StrEnum):
    """Where chunks run."""

    LOCAL = "local"
    RAY = "ray"


@contextmanager
def open_engine(name: EngineName, options: ClusterOptions, device: str, reporter: Reporter) -> Iterator[Engine]:
    """Yield the engine with this name, which is closed on exit.

    Args:
        name: Which engine.
        options: For the engine `ray`.
        device: Device of the job. Workers that do not use GPUs do not get any unless `options` says so.
        reporter: Receives progress and warnings of the engine.

    Raises:
        UsageError: An option is not for this engine, or Ray is not installed.
        DiffSynthError: There is no such cluster, or it has no room for a worker.
    """
    from stages.base.cluster import ClusterOptions, connected
    from stages.base.engine import LocalEngine

    if name is EngineName.LOCAL:
        if options != ClusterOptions():
            raise UsageError("--ray-address, --workers and --gpus-per-worker are for a Ray cluster", "add --engine ray")
        yield LocalEngine()
        return
    if options.gpus_per_worker is None and device in WITHOUT_GPU:
        options = replace(options, gpus_per_worker=0)
    with connected(options.address):
        from stages.base.cluster.engine import ray_engine
        from stages.identity import identify, program_versions

        with ray_engine(options, identify, program_versions(), reporter) as engine:
            yield engine
