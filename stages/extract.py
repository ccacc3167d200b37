"""Extract the frames of the video: decode, crop and resize them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from stages.base.arrays import Times
from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Ahead, Footage, Phase, Plan, Reporter, Run, Stage
from stages.base.errors import UsageError
from stages.base.json_types import JsonObject
from stages.base.words import counted
from stages.jobs.job import SIZE_GRID, Job
from stages.selection import UsedShots, noted_landmarks, selection_of
from stages.tasks import DecodeTask
from stages.video import (
    LANDMARK_DISTANCE,
    Landmark,
    Source,
    certain_length,
    check_length,
    describe,
    open_source,
    stated_length,
)


def frame_size(job: Job, source: Source) -> tuple[int, int]:
    """Return (height, width) of the frames: the job's, completed by the aspect ratio of the source, or the source's.

    Raises:
        UsageError: They are not multiples of SIZE_GRID.
    """
    height, width = job.frame_height, job.frame_width
    if height and not width:
        width = max(1, round(height * source.width / source.height / SIZE_GRID)) * SIZE_GRID
    if width and not height:
        height = max(1, round(width * source.height / source.width / SIZE_GRID)) * SIZE_GRID
    height, width = height or source.height, width or source.width
    if height % SIZE_GRID or width % SIZE_GRID:
        even = [max(1, size // SIZE_GRID) * SIZE_GRID for size in (height, width)]
        raise UsageError(
            f"frames of {source.path} are {width}×{height}; both must be multiples of {SIZE_GRID}",
            f'set "frame_height": {even[0]}, "frame_width": {even[1]} to crop them slightly',
        )
    return height, width


def footage(run: Run[Job], ahead: bool) -> Footage:
    """Describe the extracted frames or, `ahead` of extraction, those that the header of the source promises."""
    return _expected(run.job) if ahead else _extracted(run.cache)


def _extracted(cache: FrameCache) -> Footage:
    frames = cache["frames"]
    count, height, width, _ = frames.shape
    return Footage(count, height, width, Fraction(str(frames.attrs["fps"])), least=count, most=count)


def _expected(job: Job) -> Footage:
    source = open_source(job.input_video)
    height, width = frame_size(job, source)
    count = _expected_count(job, source)
    fps = source.fps if count in (None, 1) else source.fps / job.frame_interval
    return Footage(count, height, width, fps, *_certain_count(job, source))


def _expected_count(job: Job, source: Source) -> int | None:
    """Return how many frames `job` uses, None if its source does not say how many it has."""
    length = stated_length(source)
    if length is None:
        return job.frame_maximum_count
    stop = length if job.end_time is None else min(length, math.ceil(job.end_time * source.fps))
    used = max(0, stop - math.ceil((job.start_time or 0) * source.fps))
    count = math.ceil(used / job.frame_interval)
    return count if job.frame_maximum_count is None else min(count, job.frame_maximum_count)


def _certain_count(job: Job, source: Source) -> tuple[float, float]:
    """Return the minimum and maximum number of frames that `job` uses."""
    least, most = certain_length(source)
    if least == most:  # images, all shown for the same time
        count = _expected_count(job, source) or 0
        return count, count
    limit = math.inf if job.frame_maximum_count is None else job.frame_maximum_count
    return 1, limit if most == math.inf else min(limit, math.ceil(most / job.frame_interval))


def check(run: Run[Job], footage: Footage) -> Ahead:
    if footage.most == 0:
        raise _no_frames(run.job)
    count = footage.count or 0
    check_length(Path(run.job.input_video), count)
    return Ahead([_frames_array(count, footage.height, footage.width)], [_phase(run.job, count)])


def _frames_array(count: int, height: int, width: int) -> ArraySpec:
    return ArraySpec("frames", (count, height, width, 3), "uint8")


def _phase(job: Job, count: int, landmarks: Sequence[Landmark] = (), shown: tuple[int, int] | None = None) -> Phase:
    task = DecodeTask(job.input_video, UsedShots(job, landmarks), "frames", shown=shown)
    return Phase("decode and fit", count, task)


def plan(run: Run[Job], resume: bool) -> Plan:
    job, cache, reporter = run.job, run.cache, run.reporter
    source = open_source(job.input_video)
    height, width = frame_size(job, source)
    attributes: JsonObject = {}
    if resume:
        count, landmarks = len(cache["frames"]), noted_landmarks(cache)
    else:
        times, landmarks = _scan(source, job, reporter)
        count, attributes = len(times), describe(source, times, job.frame_interval)
        attributes["landmarks"] = [landmark.as_json() for landmark in landmarks]

    def begin(cache: FrameCache) -> None:
        cache["frames"].note(**attributes)

    return Plan(
        frames=count,
        arrays=[_frames_array(count, height, width)],
        phases=[_phase(job, count, landmarks, (source.height, source.width))],
        begin=begin,
    )


def _scan(source: Source, job: Job, reporter: Reporter) -> tuple[Times, list[Landmark]]:
    """Return the time of each used frame in seconds [N], and the landmarks.

    Decodes everything, which is the only way to count frames. There are no landmarks if a frame is damaged or has a
    broken time stamp, since decoding from elsewhere could show other pixels or count other frames.
    """
    reporter.begin("extract", source.estimate)
    reporter.phase("scan")
    times, landmarks = [], []
    distance = max(1, LANDMARK_DISTANCE // job.frame_interval)
    for index, shot in enumerate(selection_of(job).shots(source)):
        times.append(shot.time)
        if source.seekable and index and index % distance == 0:
            landmarks.append(Landmark.of(index, shot))
        reporter.advance(job.frame_interval)
    if not times:
        raise _no_frames(job)
    if source.damage:
        more = f" and {counted(len(source.damage) - 1, 'more place')}" if len(source.damage) > 1 else ""
        used = f"using {counted(len(times), 'frame')}, up to {times[-1]:.2f} s"
        reporter.warn(f"{source.path}: {source.damage[0]}{more}; {used}")
    return np.array(times), landmarks if source.seekable and not source.damage else []


def _no_frames(job: Job) -> UsageError:
    span = f"between {job.start_time or 0:g} s and {'its end' if job.end_time is None else f'{job.end_time:g} s'}"
    return UsageError(f"{job.input_video} has no frames {span}", "check start_time and end_time")


STAGE = Stage(
    name="extract",
    reads=(
        "input_video",
        "frame_height",
        "frame_width",
        "frame_interval",
        "frame_maximum_count",
        "start_time",
        "end_time",
    ),
    arrays=("frames",),
    plan=plan,
    check=check,
    footage=footage,
    shown=lambda cache: {"frames": "frames"},
    streams=True,
)
