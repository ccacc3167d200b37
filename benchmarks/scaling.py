"""How rendering scales with the number of workers: simulated for many, measured for two.

    python -m benchmarks.scaling [--chunks 1000] [--frames 64] [--size 128 128] [--steps 2] [--all-cores]

The simulation deals the chunks of a phase as the Ray engine does, and shows which share of the workers' time is spent
on chunks. `as they come` is for comparison: each worker takes the next chunk of the video, whoever had the one before.
The seconds of a chunk are about those on an H100; they vary by a tenth.

The measurement renders and smooths a generated clip with the embedded model, once networks are loaded: in this process,
and on one and two workers of a Ray cluster on this machine. Workers have one thread, and the whole cluster with its
driver runs on as many cores as it has workers, because encoding, reading and writing would use another core otherwise.
`--all-cores` lets them.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.lengths import DECODE, ENCODE, JOINT, SMOOTH
from benchmarks.stages import make_clip
from stages.all_stages import arrays, stages_of
from stages.base.cache import FrameCache
from stages.base.cluster import ClusterOptions, connected
from stages.base.cluster.dealer import MOST_CALLS, Dealer
from stages.base.engine import CHUNK, Chunk, Engine, LocalEngine, Options, Run, run_stage
from stages.base.record import CACHE_NAME
from stages.base.reporting import Reporter
from stages.base.words import counted
from stages.identity import identify, program_versions
from stages.jobs.job import Job
from stages.jobs.job_file import read_job

STAGES = ("render", "deflicker")  # that are measured
LATENCY = 0.01  # s that a message to or from a worker takes
CALL, MARK = 0.0012, 0.0003  # s that the driver spends per call and per chunk, measured with tasks that do nothing
VARIATION = 0.1  # of the seconds of a chunk
WORKERS = (1, 2, 8, 64)


@dataclass(frozen=True)
class Work:
    """The chunks of a phase.

    Args:
        name: What it is.
        seconds: Seconds that a chunk takes.
        warm_up: How many chunks more the first one takes, and any that does not follow the worker's last one.
        hand: How many chunks a worker is given at once.
    """

    name: str
    seconds: float
    warm_up: float = 0
    hand: int = 1


PHASES = (
    Work("step, joint attention", JOINT * CHUNK),
    Work("smooth a step", (SMOOTH + ENCODE) * CHUNK, warm_up=3 / CHUNK),
    Work("decode", DECODE * CHUNK),
    Work("deflicker, chunks of one frame", SMOOTH, warm_up=3, hand=CHUNK),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--all-cores", action="store_true")
    given = parser.parse_args()
    show_simulation(given.chunks)
    show_measurement(given)


# --- simulation -----------------------------------------------------------------------------------------


def show_simulation(chunks: int) -> None:
    table = Table(title=f"{chunks} chunks per phase, share of the workers' time that is spent on chunks")
    for heading in ("phase", *map(str, WORKERS), f"{WORKERS[-1]}, as they come"):
        table.add_column(heading, justify="right")
    for work in PHASES:
        dealt = [efficiency(work, chunks, workers) for workers in WORKERS]
        queued = efficiency(work, chunks, WORKERS[-1], Queue)
        table.add_row(work.name, *(f"{100 * share:.0f} %" for share in (*dealt, queued)))
    Console().print(table)


class Queue(Dealer):
    """Deals the chunks of a phase as they come."""

    def next(self, worker: int, busy: bool = False) -> list[Chunk]:
        return super().next(0, busy)


def efficiency(
    work: Work, chunks: int, workers: int, kind: Callable[[list[Chunk], int, int, int], Dealer] = Dealer
) -> float:
    """Return which share of the workers' time is spent on chunks, without warming up, until the last one has ended."""
    phase = SimulatedPhase(work, kind([(k, k + 1) for k in range(chunks)], workers, math.ceil(work.warm_up), work.hand))
    return phase.run(workers) / (workers * phase.end)


class SimulatedPhase:
    """The chunks of a phase on imaginary workers. The driver hears of the end of a call and then deals the next one."""

    def __init__(self, work: Work, dealer: Dealer):
        self.work, self.dealer, self.chance = work, dealer, random.Random(0)
        self.calls: list[tuple[float, int, int]] = []  # when the driver hears of its end, worker, chunks
        self.busy: Counter[int] = Counter()  # calls of each worker
        self.free: defaultdict[int, float] = defaultdict(float)  # when each worker has run its calls
        self.following: dict[int, int] = {}

    @property
    def end(self) -> float:
        return max(self.free.values())

    def run(self, workers: int) -> float:
        """Run all chunks, and return the seconds that are spent on them."""
        now, spent = 0.0, sum(self._keep_busy(worker, 0.0) for worker in range(workers))
        while self.calls:
            ended, worker, chunks = heapq.heappop(self.calls)
            now = max(now, ended) + CALL + MARK * chunks
            self.busy[worker] -= 1
            spent += sum(self._keep_busy(each, now) for each in range(workers) if each == worker or not self.busy[each])
        return spent

    def _keep_busy(self, worker: int, now: float) -> float:
        """Deal chunks to a worker until it has MOST_CALLS calls. Return the seconds that they take."""
        spent = 0.0
        while self.busy[worker] < MOST_CALLS and (chunks := self.dealer.next(worker, busy=self.busy[worker] > 0)):
            cold = 0.0 if self.following.get(worker) == chunks[0][0] else self.work.warm_up * self.work.seconds
            seconds = sum(self.work.seconds * self.chance.uniform(1 - VARIATION, 1 + VARIATION) for _ in chunks)
            self.free[worker] = max(self.free[worker], now + LATENCY) + cold + seconds
            heapq.heappush(self.calls, (self.free[worker] + LATENCY, worker, len(chunks)))
            self.busy[worker] += 1
            self.following[worker], spent = chunks[-1][1], spent + seconds
        return spent


# --- measurement ----------------------------------------------------------------------------------------


def show_measurement(given: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before anything loads OpenMP; workers inherit it
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 -- Ray's spelling. Its workers would yield to other programs
    title = f"{given.frames} frames of {given.size[1]}×{given.size[0]}, {given.steps} steps, speed-up over one worker"
    table = Table(title=title)
    for heading in ("", *STAGES, "speed-up"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        measured = dict(measure(write_job(Path(folder), given), given.all_cores))
    base = sum(measured["1 worker"])
    for where, seconds in measured.items():
        table.add_row(where, *(f"{each:.1f} s" for each in seconds), f"{base / sum(seconds):.2f}")
    Console().print(table)


def write_job(folder: Path, given: argparse.Namespace) -> Job:
    """Write a job that smooths the rendered frames and those of the first step."""
    height, width = given.size
    path = folder / "job.json"
    path.write_text(json.dumps({
        "model_id": "mini", "controlnet_model_id": ["mini/canny"], "controlnet_processor": ["canny"],
        "input_video": str(make_clip(folder / "clip.mp4", given.frames, height, width)), "output_path": "out",
        "prompt": "winter", "num_inference_steps": given.steps, "combine_pattern": [-10000, -1, 0, 1],
        "smoother": "PatchBlendSmoother", "smoother_interval": given.steps, "post_smoother": "PatchBlendSmoother",
        "device": "cpu", "batch_size": 2,
    }))  # fmt: skip
    return read_job(path)[0]


def measure(job: Job, all_cores: bool) -> Iterator[tuple[str, list[float]]]:
    """Yield the seconds of each of STAGES in this process, on one worker, on two."""
    run_stages(job, LocalEngine(), ("extract", "control"))
    with cores(None if all_cores else 1):
        yield "this process", timed(job, LocalEngine())
    for workers in (1, 2):
        with cores(None if all_cores else workers), connected("local"):
            from stages.base.cluster.engine import ray_engine

            options = ClusterOptions("local", workers, gpus_per_worker=0)
            with ray_engine(options, identify, program_versions(), Reporter()) as engine:
                yield counted(workers, "worker"), timed(job, engine)


@contextmanager
def cores(count: int | None) -> Iterator[None]:
    """Run this process, and those that it starts meanwhile, on so many cores. None: on all of them."""
    process = psutil.Process()
    usual = process.cpu_affinity()
    process.cpu_affinity(usual[:count])
    try:
        yield
    finally:
        process.cpu_affinity(usual)


def timed(job: Job, engine: Engine) -> list[float]:
    """Return the seconds of each of STAGES, after a run in which networks are loaded."""
    run_stages(job, engine, STAGES)
    return run_stages(job, engine, STAGES)


def run_stages(job: Job, engine: Engine, names: Sequence[str]) -> list[float]:
    """Redo these stages and return the seconds that each takes."""
    cache, stages = FrameCache(Path(job.output_path) / CACHE_NAME, arrays=arrays()), stages_of(job)
    seconds = []
    for name in names:
        started = time.perf_counter()
        run_stage(stages[name], Run(job, cache, Reporter(), Options(job.batch_size), engine, stages=stages), True)
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
