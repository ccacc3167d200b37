"""Python API for planning: how much work a job is, how long it takes and what it costs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from diffsynth_cli.jobs import open_job, options_of
from diffsynth_cli.results import FilePath, JobPlan, JobSource, Overrides, PlannedWork, SilentReporter, as_path
from stages.base.errors import DiffSynthError, UsageError
from stages.base.reporting import Reporter
from stages.base.words import counted, duration, size

if TYPE_CHECKING:
    from stages.base.cache import FrameCache
    from stages.base.calibration import Calibration
    from stages.base.engine import Ahead, Footage
    from stages.base.forecast import Expectation
    from stages.base.json_types import JsonObject
    from stages.jobs.job import Job, Upscale

CALIBRATION = "calibration.json"  # in the output folder
FRAMES = 16  # that are measured
# Job keys besides the networks and the size of frames that decide what a unit of work costs.
DECISIVE = (
    "dtype", "low_vram", "compile", "vae_tiling", "attention", "attention_backend", "guidance_scale", "smoother",
    "smoother_config", "post_smoother", "post_smoother_config", "extra_deflickering_range", "upscale",
)  # fmt: skip


def plan(
    job: JobSource,
    *,
    workers: Sequence[int] = (1,),
    calibration: FilePath | None = None,
    bandwidth: float | None = None,
    worker_price: float | None = None,
    put_price: float | None = None,
    get_price: float | None = None,
    overrides: Overrides = (),
    reporter: Reporter | None = None,
) -> JobPlan:
    """Return how much work a job is, how long it is expected to take and what it costs.

    Unless a calibration is at hand, 16 frames are taken through all stages, with few steps, to measure what they take
    on this machine. That is written nowhere but to the calibration.

    Args:
        job: As for `run`.
        workers: Numbers of workers to compare.
        calibration: A file with what was measured, perhaps on another machine. If it does not exist, it is written. By
            default, `calibration.json` in the job's output folder, if there is such a folder.
        bandwidth: MB/s that the cache can read and write for all workers together. None if that grows with their
            number, as in an object store.
        worker_price: Price of a worker for an hour.
        put_price: Price of 1,000 PUT requests to an object store.
        get_price: Price of 1,000 GET requests.
        overrides: Job keys that replace those of `job`.
        reporter: Receives progress and warnings.

    Raises:
        UsageError: The job is wrong, or the calibration is of another kind of job.
        DiffSynthError: The number of frames is unknown, or a stage failed.
    """
    if not workers or min(workers) < 1:
        raise UsageError("workers: give numbers of workers from 1 on")
    reporter = reporter or SilentReporter()
    found = open_job(job, overrides, reporter)
    place = as_path(calibration)
    ahead, footage = look_ahead(found.job, found.cache, reporter)
    if not footage.count:
        raise DiffSynthError(
            f"{found.job.input_video} does not say how many frames it has",
            f"count them with {found.cache.command('extract')}, then plan",
        )
    with closing(reporter):
        measured = (_given if place else _kept)(found.job, footage, place or default_calibration(found.job))
        if measured is None:
            measured = calibrate(found.job, footage, reporter)
            _keep(measured, place or default_calibration(found.job), make_folder=place is not None)
    prices = worker_price, put_price, get_price
    return planned(ahead, footage.count, measured, workers, bandwidth=bandwidth, prices=prices)


def planned(
    ahead: Mapping[str, Ahead],
    frames: int,
    measured: Calibration,
    workers: Sequence[int],
    *,
    bandwidth: float | None,
    prices: tuple[float | None, float | None, float | None],
) -> JobPlan:
    """Return the plan of stages that have so many frames. The other arguments are as in `plan`."""
    from stages.base.forecast import counts_of, expect, work_of

    expected = expect(work_of(ahead), frames, measured, workers, None if bandwidth is None else bandwidth * 1e6)
    return JobPlan(
        frames=frames,
        counts=counts_of(phase for each in ahead.values() for phase in each.phases),
        disk=_disk(ahead),
        measured_on=str(measured.of["processor"]),
        workers=tuple(workers),
        work=tuple(_planned_work(each) for each in expected),
        prices=prices,
    )


def _disk(ahead: Mapping[str, Ahead]) -> float:
    """Return how many bytes the arrays of stages usually take at the peak."""
    from stages.base.preflight import room

    return sum(room(spec)[1] for each in ahead.values() for spec in each.arrays)


def _planned_work(expected: Expectation) -> PlannedWork:
    traffic = expected.traffic
    return PlannedWork(
        kind=expected.work.kind,
        phases=expected.work.phases,
        frames=expected.work.frames,
        seconds=expected.seconds,
        bound=expected.bound,
        gets=traffic.gets,
        puts=traffic.puts,
        bytes_read=traffic.bytes_read,
        bytes_written=traffic.bytes_written,
    )


def look_ahead(job: Job, cache: FrameCache, reporter: Reporter) -> tuple[dict[str, Ahead], Footage]:
    """Check all stages of a job, and return what is known of them and of its frames."""
    from stages.all_stages import stages_of
    from stages.base.engine import Run
    from stages.base.preflight import footage_of
    from stages.base.progress import progress

    run = Run(job, cache, reporter, options_of(job), stages=stages_of(job))
    todo = [stage for stage in run.stages.values() if progress(stage, run.stages, job, cache).state != "done"]
    footage = footage_of(run, todo)
    return {name: stage.check(run, footage) for name, stage in run.stages.items()}, footage


def outline(job: Job, ahead: Mapping[str, Ahead], footage: Footage, workers: int) -> str:
    """Describe in a line what stages are going to do, and how long it takes if that has been measured."""
    from stages.base.forecast import counts_of

    counts = counts_of(phase for each in ahead.values() for phase in each.phases)
    seconds = _expected_seconds(job, ahead, footage, workers)
    parts = [
        counted(footage.count or 0, "frame"),
        *(f"{count:,.0f} {name}" for name, count in counts.items()),
        f"about {size(_disk(ahead))} in the cache",
        *([] if seconds is None else [f"about {duration(seconds)}"]),
    ]
    return ", ".join(parts)


def _expected_seconds(job: Job, ahead: Mapping[str, Ahead], footage: Footage, workers: int) -> float | None:
    """Return how long stages take by the calibration in the job's output folder. None if there is none that fits."""
    from stages.base.forecast import expect, work_of

    measured = _kept(job, footage, default_calibration(job))
    if measured is None or not footage.count:
        return None
    return sum(each.seconds[0] for each in expect(work_of(ahead), footage.count, measured, [workers]))


# --- calibration ----------------------------------------------------------------------------------------


def default_calibration(job: Job) -> Path:
    """Where the calibration of a job is kept."""
    return Path(job.output_path) / CALIBRATION


def _given(job: Job, footage: Footage, path: Path) -> Calibration | None:
    """Return the calibration at `path`, None if it does not exist. Raise UsageError if it is of another kind of job."""
    if not path.exists():
        return None
    found = _read(path)
    if found is None:
        raise UsageError(f"{path} is not a calibration", "give a file that does not exist to write one")
    if differences := _differences(found, job, footage):
        raise UsageError(
            f"{path} was measured with other values of {', '.join(differences)}",
            "give a file that does not exist to measure this job",
        )
    return found


def _kept(job: Job, footage: Footage, path: Path) -> Calibration | None:
    """Return the calibration at `path`, None unless it exists and is of the same kind of job."""
    found = _read(path)
    return None if found is None or _differences(found, job, footage) else found


def _read(path: Path) -> Calibration | None:
    from pydantic import TypeAdapter, ValidationError

    from stages.base.calibration import Calibration

    try:
        return TypeAdapter(Calibration).validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _differences(found: Calibration, job: Job, footage: Footage) -> list[str]:
    """Return in what a job differs from the one that was measured."""
    return [key for key, value in described(job, footage).items() if found.of.get(key) != value]


def _keep(measured: Calibration, path: Path, *, make_folder: bool) -> None:
    """Write a calibration, if there is a folder for it, but never over a file of another kind."""
    from pydantic import TypeAdapter

    from stages.base.calibration import Calibration
    from stages.base.store import write_bytes

    if (make_folder or path.parent.is_dir()) and (_read(path) is not None or not path.exists()):
        write_bytes(path, TypeAdapter(Calibration).dump_json(measured, indent=2))


def described(job: Job, footage: Footage) -> JsonObject:
    """Return what decides the cost of a job's work, apart from the machine."""
    keys = job.model_dump(mode="json")
    nets = [processor["name"] for processor, runs in zip(keys["controlnet_processor"], job.networks_run) if runs]
    return {"size": [footage.height, footage.width], "networks": nets, **{key: keys[key] for key in DECISIVE}}


def calibrate(job: Job, footage: Footage, reporter: Reporter) -> Calibration:
    """Measure what the kinds of work of a job cost here, by running a few frames and steps of it."""
    from stages.all_stages import arrays, stages_of
    from stages.base.cache import FrameCache
    from stages.base.calibration import Calibration, Meter
    from stages.base.engine import Run, run_stage
    from stages.identity import processor

    stages, meter = stages_of(job), Meter(reporter.phase)
    reporter.begin("plan", None)
    with _scratch(job) as (folder, place):
        short = shortened(job, footage, reporter).model_copy(update={"output_path": str(folder), "cache": place})
        cache = FrameCache(short.cache_place, arrays=arrays())
        run = Run(short, cache, meter, options_of(short), meter, stages=stages)
        with cache.lock():
            for stage in stages.values():
                run_stage(stage, run)
        frames = len(cache["frames"])
    reporter.end("plan", f"measured {counted(frames, 'frame')}")
    of = {"processor": processor(job.device), **described(job, footage)}
    return Calibration(of, frames, meter.loading, meter.costs)


@contextmanager
def _scratch(job: Job) -> Iterator[tuple[Path, str | None]]:
    """Yield a temporary output folder and cache address, where the job has its own. Both are removed afterwards."""
    from stages.base.preflight import writable_folder
    from stages.base.store import open_store

    at_url = job.cache is not None and "://" in job.cache
    near = writable_folder("output_path", Path(job.output_path if at_url or job.cache is None else job.cache))
    with tempfile.TemporaryDirectory(prefix=".diffsynth-plan-", dir=near) as folder:
        if not at_url:
            yield Path(folder), None
            return
        place = f"{str(job.cache).rstrip('/')}-plan-{uuid4().hex[:8]}"
        try:
            yield Path(folder), place
        finally:
            open_store(place).delete_all("")


def shortened(job: Job, footage: Footage, reporter: Reporter) -> Job:
    """Return the job with few frames and steps, in which all kinds of its work occur."""
    from stages.jobs.job import expand_annotator

    count = footage.count or FRAMES
    every = job.keyframes if not isinstance(job.keyframes, list) else max(1, round(count / len(job.keyframes)))
    tile = expand_annotator("tile")  # which stands for maps that are read, of which there is one for each frame
    update = {
        "frame_maximum_count": min(FRAMES, count),
        "keyframes": every,
        "scenes": None,
        "controlnet_processor": [tile if item.name == "file" else item for item in job.controlnet_processor],
    }
    short = job.model_copy(update=update)
    wanted = _kinds(short, footage, reporter)
    for steps in range(1, job.num_inference_steps):
        fewer = short.model_copy(update={"num_inference_steps": steps})
        if int(steps * job.img2img_strength) and _kinds(fewer, footage, reporter) == wanted:
            return fewer.model_copy(update={"upscale": _with_few_steps(job.upscale, int(steps * job.img2img_strength))})
    return short


def _with_few_steps(upscale: Upscale | None, steps: int) -> Upscale | None:
    """Return a second pass with about as many steps as the first one takes."""
    if upscale is None:
        return None
    return upscale.model_copy(update={"steps": math.ceil(steps / upscale.strength)})


def _kinds(job: Job, footage: Footage, reporter: Reporter) -> set[str]:
    """Return the kinds of work of rendering."""
    from stages.all_stages import stages_of
    from stages.base.cache import FrameCache
    from stages.base.calibration import kind_of
    from stages.base.engine import Run

    stages = stages_of(job)
    cache = FrameCache(job.cache_place)
    run = Run(job, cache, reporter, options_of(job), stages=stages)
    return {kind_of(phase, "render") for phase in stages["render"].check(run, footage).phases}
