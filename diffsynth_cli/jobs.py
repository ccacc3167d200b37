"""Python API for jobs: run, status, verify, export and report, like the commands of the same names."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffsynth_cli.engines import EngineName, open_engine
from diffsynth_cli.results import (
    FilePath,
    JobSource,
    JobStatus,
    Overrides,
    RunResult,
    SilentReporter,
    as_argument,
    as_path,
    member,
)
from stages.base.errors import DiffSynthError, UsageError
from stages.base.json_types import Values
from stages.base.reporting import Reporter
from stages.base.words import counted
from stages.codecs import IMAGES, Codec

if TYPE_CHECKING:
    from stages.base.cache import FrameCache
    from stages.base.engine import Options, Run, Stage
    from stages.jobs.job import Job


@dataclass(frozen=True)
class Opened:
    """A job, its cache, and the file it was read from, if any."""

    job: Job
    file: Path | None
    cache: FrameCache


def run(
    job: JobSource,
    stages: Sequence[str] | None = None,
    *,
    overrides: Overrides = (),
    restart: bool = False,
    preview: bool = False,
    force: bool = False,
    engine: EngineName | str = EngineName.LOCAL,
    ray_address: str = "auto",
    workers: int | None = None,
    gpus_per_worker: int | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Run a job, resuming an earlier run of it.

    Args:
        job: The path of a job file, its keys, or a `Job`. Relative paths in a job file are relative to the file, others
            to the current folder.
        stages: The stages to run; by default all that are not complete.
        overrides: Job keys that replace those of `job`.
        restart: Redo `stages`; if no stages are given, redo those that are stale or damaged.
        preview: Also write a contact sheet.
        force: Overwrite existing files, but never an input.
        engine: local: run in this process. ray: run on the machines of a Ray cluster.
        ray_address: HOST:PORT of the cluster; auto: the one in RAY_ADDRESS or on this machine; local: start one.
        workers: Number of workers on the cluster; None for as many as it can hold.
        gpus_per_worker: GPUs for each worker; None for 1 if the cluster has GPUs and the device is not cpu, else 0.
        reporter: Receives progress and warnings.

    Raises:
        UsageError: The job is wrong, or files are in the way.
        DiffSynthError: A stage failed or is stale, or the cluster cannot be used.
    """
    from diffsynth_cli.outputs import PREVIEW, check_job_outputs
    from stages.all_stages import stages_of
    from stages.base.cluster import ClusterOptions
    from stages.base.engine import Run

    reporter = reporter or SilentReporter()
    opened = open_job(job, overrides, reporter, _stages(stages))
    chosen = _stages_of(opened.job, stages, reporter)
    check_job_outputs(opened.job, opened.cache, opened.file, chosen, preview=preview, force=force)
    cluster, device = ClusterOptions(ray_address, workers, gpus_per_worker), opened.job.device
    with closing(reporter), open_engine(member(EngineName, engine, "engine"), cluster, device, reporter) as runner:
        started = Run(opened.job, opened.cache, reporter, options_of(opened.job), runner, stages=stages_of(opened.job))
        every = stages is None
        work = partial(
            _run_stages, chosen, started, opened.file, restart=restart, stale_only=every, workers=workers or 1
        )
        _repair(opened.cache, work) if restart and every else work()
    folder = Path(opened.job.output_path)
    if preview:
        from diffsynth_cli.contact_sheet import states, write_contact_sheet

        write_contact_sheet(folder / PREVIEW, states(opened.job, opened.cache))
    if opened.job.keep is not None:
        from diffsynth_cli.cleaning import tidy

        with opened.cache.lock(reporter.warn):
            tidy(opened.job, opened.cache)
    done = _status(opened, chosen)
    return RunResult(folder, done.video, folder / PREVIEW if preview else None, done.stages)


def status(job: JobSource, *, overrides: Overrides = ()) -> JobStatus:
    """Return how far a job is.

    Raises:
        UsageError: The job is wrong.
    """
    return _status(open_job(job, overrides, SilentReporter()))


def verify(job: JobSource, *, overrides: Overrides = (), reporter: Reporter | None = None) -> None:
    """Check all results of a job for damage.

    Raises:
        UsageError: The job is wrong.
        DiffSynthError: Something is damaged; the message lists it, the hint says how to repair it.
    """
    from diffsynth_cli.verification import verify_job

    reporter = reporter or SilentReporter()
    opened = open_job(job, overrides, reporter)
    verify_job(opened.job, opened.cache, reporter)


def export(
    job: JobSource,
    output: FilePath | None = None,
    *,
    codec: Codec | str | None = None,
    crf: int | None = None,
    fps: float | str | None = None,
    alpha: FilePath | None = None,
    overrides: Overrides = (),
    force: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Write the video of a finished job again, with another codec, quality or frame rate, or as images.

    Args:
        job: As for `run`.
        output: A video file or, with any other suffix, a folder of images; by default in the job's output folder.
        codec: By default, what suits `output`.
        crf: Quality, 0 to 63; lower is better and larger.
        fps: Frame rate, in frames per second; or "2x", "3x" or "4x" to paint frames between those of the job.
        alpha: Masks that become the alpha channel (white = opaque): a video or folder with one for each frame of the
            job's video, or one image.
        overrides: Job keys that replace those of `job`.
        force: Overwrite existing files, but never an input.
        reporter: Receives progress and warnings.

    Returns:
        The path of what was written.

    Raises:
        UsageError: The codec does not fit the output, or files are in the way.
        DiffSynthError: The job is not finished.
    """
    from diffsynth_cli.outputs import check_alpha, choose_export, parse_fps
    from stages.all_stages import stages_of
    from stages.base.removal import refuse_removed
    from stages.deflicker import Export, write_images, write_video

    reporter = reporter or SilentReporter()
    rate, factor = parse_fps(fps)
    opened = open_job(job, [*_texts(overrides), *([] if rate is None else [f"fps={rate}"])], reporter)
    chosen = None if codec is None else member(Codec, codec, "codec")
    masks = as_path(alpha)
    path, codec = choose_export(as_path(output), chosen, opened.job, opened.file, force=force, alpha=masks)
    check_alpha(masks, codec, factor)
    is_video = codec not in IMAGES
    if not is_video and (crf is not None or rate is not None):
        raise UsageError("--crf and --fps are for videos, not for images", "for images, --fps can only be 2x, 3x or 4x")
    if not opened.cache.record("deflicker").complete:
        raise DiffSynthError(
            "export needs deflicker, which is not finished", f"Finish it with: {opened.cache.command('run')}"
        )
    refuse_removed("export", ("deflickered",), ["deflicker"], stages_of(opened.job), opened.job, opened.cache)
    with closing(reporter):
        if output is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        write = write_video if is_video else write_images
        write(path, opened.job, opened.cache, reporter, Export(codec, crf, factor, masks))
    return path


def report(
    job: JobSource,
    output: FilePath | None = None,
    *,
    first: int | None = None,
    overrides: Overrides = (),
    force: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Write a page that shows what the finished stages of a job have made, as one HTML file.

    Args:
        job: As for `run`.
        output: The .html file; by default report.html in the job's output folder.
        first: First frame of the page's clip; by default 0 or, if the video is too long to be shown whole, the one with
            which the worst frame is in the middle.
        overrides: Job keys that replace those of `job`.
        force: Overwrite an existing file, but never an input.
        reporter: Receives progress and warnings.

    Returns:
        The path of what was written.

    Raises:
        UsageError: The job is wrong, there is no such frame, or files are in the way.
        DiffSynthError: No frames have been extracted yet, or a frame is damaged.
    """
    from diffsynth_cli.exhibits import of_job
    from diffsynth_cli.outputs import choose_page
    from diffsynth_cli.page import write_page

    with closing(reporter or SilentReporter()) as shown:
        opened = open_job(job, overrides, shown)
        stages = _status(opened).stages
        exhibit = of_job(opened.job, opened.cache, stages)
        path = choose_page(as_path(output), opened.job, opened.file, force)
        if first is not None and first not in range(exhibit.frames):
            raise UsageError(f"--first {first}: the video has {counted(exhibit.frames, 'frame')}, counted from 0")
        for stage in stages:
            if stage.state == "stale":
                shown.warn(f"{stage.stage} is stale: {'; '.join(stage.changes)}")
        write_page(path, exhibit, shown, first)
    return path


# --- shared ---------------------------------------------------------------------------------------------


def _stages(names: Sequence[str] | None) -> list[Stage[Job]]:
    """Return the stages with these names, or all."""
    from stages.all_stages import all_stages
    from stages.base.mistakes import unknown

    known = all_stages()
    for name in names or ():
        if name not in known:
            raise UsageError(unknown("stage", name, known))
    return list(known.values()) if names is None else [known[name] for name in names]


def _stages_of(job: Job, names: Sequence[str] | None, reporter: Reporter) -> list[Stage[Job]]:
    """Return the stages of a job with these names, or all. Tell the reporter of those that it does not have."""
    from stages.all_stages import stages_of

    own = stages_of(job)
    for name in names or ():
        if name not in own:
            reporter.end(name, f"nothing to do, since the job has no key {name!r}")
    return [stage for name, stage in own.items() if names is None or name in names]


def open_job(job: JobSource, overrides: Overrides, reporter: Reporter, stages: Sequence[Stage[Job]] = ()) -> Opened:
    """Read a job. The files that `stages` read must exist, unless the stage is done.

    Raises:
        UsageError: The job is wrong, or `cache` names something that is not a frame cache.
        DiffSynthError: The object store that holds the cache cannot be reached.
    """
    from diffsynth_cli.outputs import CONFIG
    from stages.all_stages import arrays
    from stages.base.cache import FrameCache
    from stages.jobs.job import Job
    from stages.jobs.job_file import make_job, read_job

    texts, file = _texts(overrides), None
    if isinstance(job, Job | Mapping):
        keys: Values = job.model_dump() if isinstance(job, Job) else copy.deepcopy(dict(job))  # not checked yet
        loaded, notes = make_job(keys, Path.cwd(), "job", texts, stages)
        words = arguments(Path(loaded.output_path) / CONFIG)  # written with the first results
    else:
        file = Path(job)
        loaded, notes = read_job(file, texts, stages)
        words = arguments(file, texts)
    for note in notes:
        reporter.warn(note)
    cache = FrameCache(loaded.cache_place, words, arrays())
    exists = cache.folder is None or cache.folder.exists()
    if loaded.cache is not None and exists and not cache.is_cache():
        raise UsageError(f"cache: {cache.store} is not a frame cache", "give an empty or new folder or prefix")
    return Opened(loaded, file, cache)


def arguments(file: Path, overrides: Sequence[str] = ()) -> str:
    """Return the arguments of a command on this job file with these overrides."""
    return shlex.join([as_argument(file), *(f"--set={text}" for text in overrides)])


def _texts(overrides: Overrides) -> list[str]:
    """Return overrides as `KEY=VALUE` strings."""
    if isinstance(overrides, Mapping):
        return [as_override(key, value) for key, value in overrides.items()]
    return list(overrides)


def as_override(key: str, value: object) -> str:
    """Return a job key and its value as `KEY=VALUE`, quoting text that could be read as JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return f"{key}={value}"
    return f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"


def with_settings(overrides: Sequence[str] | None, settings: Mapping[str, object]) -> list[str]:
    """Return overrides, followed by those settings of the machine that were given."""
    return [*(overrides or ()), *(as_override(key, value) for key, value in settings.items() if value is not None)]


def _status(opened: Opened, stages: Sequence[Stage[Job]] | None = None) -> JobStatus:
    """Return how far `stages` are, by default all of them. Files that other stages read may be missing."""
    from stages.all_stages import stages_of
    from stages.base.outputs import VIDEO
    from stages.base.progress import progress

    job, cache, known = opened.job, opened.cache, stages_of(opened.job)
    states = tuple(progress(stage, known, job, cache) for stage in (known.values() if stages is None else stages))
    video = Path(job.output_path) / VIDEO
    command = None
    if any(stage.state != "done" for stage in states):
        command = cache.command("run") + (" --restart" if any(stage.state == "stale" for stage in states) else "")
    return JobStatus(states, video if video.exists() else None, command, cache.holder(), _scenes(opened))


def _scenes(opened: Opened) -> tuple[range, ...]:
    """Return the frames of each scene. Empty if the job has no scenes, or if they are not known or stale."""
    from stages.all_stages import stages_of
    from stages.base.progress import progress
    from stages.base.scenes import split
    from stages.scenes import recorded_cuts

    job, cache, known = opened.job, opened.cache, stages_of(opened.job)
    if job.scenes is None or progress(known["control"], known, job, cache).state in ("to do", "stale"):
        return ()
    return tuple(split(len(cache["frames"]), recorded_cuts(job, cache)))


def options_of(job: Job) -> Options:
    """Return how networks run."""
    from stages.base.engine import Options

    return Options(job.batch_size, job.low_vram, job.compile, job.attention_backend)


def _repair(cache: FrameCache, work: Callable[[], None]) -> None:
    """Do `work`. Each time that an array turns out to be lost, have the stage that makes it redone, and begin again."""
    from stages.base.cache import LostArray

    redone: set[str | None] = {None}
    while True:
        try:
            return work()
        except LostArray as error:
            if error.stage in redone:
                raise
            redone.add(error.stage)
            with cache.lock():
                cache.record(str(error.stage)).clear()


def _run_stages(
    stages: Sequence[Stage[Job]],
    run: Run[Job],
    file: Path | None,
    *,
    restart: bool,
    stale_only: bool,
    workers: int,
) -> None:
    """Run stages one after the other.

    Args:
        stages: The stages.
        run: What they run on.
        file: The job file, if there is one.
        restart: Redo the stages.
        stale_only: Redo only those that are stale or damaged.
        workers: For how many workers the expected time is shown, if all stages run.
    """
    from diffsynth_cli.outputs import CONFIG, is_same_file
    from stages.base.engine import run_stage
    from stages.base.preflight import check_ahead
    from stages.base.record import write_json

    if not stages:
        return
    job, cache = run.job, run.cache
    redone = (_stale(stages, run) if stale_only else [stage.name for stage in stages]) if restart else []
    ahead, footage = check_ahead(stages, run, Path(job.output_path), redone)
    begun = any(cache.record(name).done for name in ahead)  # if so, the line would count work that is done
    if stale_only and footage is not None and footage.count and not begun:
        from diffsynth_cli.planning import outline

        run.reporter.begin("plan", None)
        run.reporter.note(outline(job, ahead, footage, workers))
    with cache.lock(run.reporter.warn):
        Path(job.output_path).mkdir(parents=True, exist_ok=True)
        for stage in stages:
            redo = restart
            if restart and stale_only and stage.name not in redone:
                run.reporter.begin(stage.name, None)
                run.reporter.phase("look for damage")
                redo = any(cache.damage(stage.name))
            run_stage(stage, run, redo)
            config = Path(job.output_path) / CONFIG
            if file is None or not is_same_file(config, file):
                write_json(config, job.model_dump())


def _stale(stages: Sequence[Stage[Job]], run: Run[Job]) -> list[str]:
    """Return the stages that are stale, and those whose arrays were removed but are needed to redo or finish others."""
    from stages.base.progress import progress
    from stages.base.removal import to_redo

    states = {stage.name: progress(stage, run.stages, run.job, run.cache).state for stage in stages}
    todo = [stage for stage in stages if states[stage.name] != "done"]
    lost = [to_redo(stage.needs(run.job), stage.before(run.stages), run.stages, run.job, run.cache) for stage in todo]
    return [name for name, state in states.items() if state == "stale" or any(name in names for names in lost)]
