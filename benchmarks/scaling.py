"""How rendering scales with the number of workers: simulated for many, measured for two.

    python -m benchmarks.scaling [--chunks 1000] [--frames 48] [--size 256 256] [--steps 4]

The simulation deals the chunks of a phase as the Ray engine does, and shows which share of the workers' time is spent
on chunks. `as they come` is for comparison: each worker takes the next chunk of the video, whoever had the one before.
The seconds of a chunk are about those on an H100; they vary by a tenth.

The measurement renders and smooths a generated clip with the embedded model, once networks are loaded: in this process,
and on one and two workers of a Ray cluster on this machine, with one thread each.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.lengths import DECODE, ENCODE, JOINT, SMOOTH
from benchmarks.stages import make_clip
from stages.all_stages import all_stages, arrays
from stages.base.cache import FrameCache
from stages.base.cluster import ClusterOptions, connected
from stages.base.cluster.dealer import Dealer
from stages.base.engine import CHUNK, Chunk, Engine, LocalEngine, Options, Run, run_stage
from stages.base.record import CACHE_NAME
from stages.base.reporting import Reporter
from stages.base.words import counted
from stages.identity import identify, program_versions
from stages.jobs.job import Job
from stages.jobs.job_file import read_job

STAGES = ("render", "deflicker")  # that are measured
OVERHEAD = 0.02  # s per call for calls and marks, measured with tiny networks on two busy cores
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
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=4)
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

    def next(self, worker: int) -> list[Chunk]:
        return super().next(0)


def efficiency(
    work: Work, chunks: int, workers: int, kind: Callable[[list[Chunk], int, int, int], Dealer] = Dealer
) -> float:
    """Return which share of the workers' time is spent on chunks, without warming up, until the last one has ended."""
    chance, spent, end = random.Random(0), 0.0, 0.0
    dealer = kind([(k, k + 1) for k in range(chunks)], workers, math.ceil(work.warm_up), work.hand)
    free, following = [(0.0, worker) for worker in range(workers)], dict[int, int]()
    while free:
        now, worker = heapq.heappop(free)
        dealt = dealer.next(worker)
        if not dealt:
            continue
        cold = 0.0 if following.get(worker) == dealt[0][0] else work.warm_up * work.seconds
        seconds = sum(work.seconds * chance.uniform(1 - VARIATION, 1 + VARIATION) for _ in dealt)
        following[worker], spent = dealt[-1][1], spent + seconds
        end = max(end, now + OVERHEAD + seconds + cold)
        heapq.heappush(free, (now + OVERHEAD + seconds + cold, worker))
    return spent / (workers * end)


# --- measurement ----------------------------------------------------------------------------------------


def show_measurement(given: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before anything loads OpenMP; workers inherit it
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 -- Ray's spelling. Its workers would yield to other programs
    title = f"{given.frames} frames of {given.size[1]}×{given.size[0]}, {given.steps} steps, speed-up over one worker"
    table = Table(title=title)
    for heading in ("", *STAGES, "speed-up"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        measured = dict(measure(write_job(Path(folder), given)))
    base = sum(measured["1 worker"].values())
    for where, seconds in measured.items():
        cells = (f"{seconds[stage]:.1f} s" for stage in STAGES)
        table.add_row(where, *cells, f"{base / sum(seconds.values()):.2f}")
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


def measure(job: Job) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the seconds of each stage: in this process, on one worker, on two."""
    run_stages(job, LocalEngine(), ("extract", "control"))
    yield "this process", timed(job, LocalEngine())
    with connected("local"):
        from stages.base.cluster.engine import ray_engine

        for workers in (1, 2):
            options = ClusterOptions("local", workers, gpus_per_worker=0)
            with ray_engine(options, identify, program_versions(), Reporter()) as engine:
                yield counted(workers, "worker"), timed(job, engine)


def timed(job: Job, engine: Engine) -> dict[str, float]:
    """Return the seconds of each of STAGES, after a run in which networks are loaded."""
    run_stages(job, engine, STAGES)
    return run_stages(job, engine, STAGES)


def run_stages(job: Job, engine: Engine, names: Sequence[str]) -> dict[str, float]:
    """Redo these stages and return the seconds that each takes."""
    cache, stages = FrameCache(Path(job.output_path) / CACHE_NAME, arrays=arrays()), all_stages()
    seconds = {}
    for name in names:
        started = time.perf_counter()
        run_stage(stages[name], Run(job, cache, Reporter(), Options(job.batch_size), engine, stages=stages), True)
        seconds[name] = time.perf_counter() - started
    return seconds


if __name__ == "__main__":
    main()
