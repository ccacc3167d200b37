"""Rendered frames → smooth frames → video.mp4."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Footage, Phase, Plan, Reporter, Run, Stage, told
from stages.base.job import Job
from stages.base.outputs import SIGNATURE
from stages.base.record import write_json
from stages.smoothing import CHUNKS, ON_GPU, Smoother, build
from stages.video import Audio, Encoding, check_encoder, encode
from stages.weights import check_device, pick_gpu

CHUNK = 8  # frames that are handed through at once
SAME_SPEED = 1e-3  # audio is kept when the speed changes by less than this part


@dataclass
class SmoothTask:
    """Deflickers a chunk of rendered frames."""

    smoother: str
    config: dict[str, Any]
    device: str
    made: Smoother | None = field(default=None, init=False)  # for all chunks: it keeps what the next one needs, too

    @property
    def chunk(self) -> int:
        return CHUNKS[self.smoother]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        if self.made is None:
            self.made = build(self.smoother, self.config, cache["frames"], cache["rendered"], self.device)
        cache["deflickered"].write(start, self.made.smooth(start, stop))


@dataclass
class PassTask:
    """Hands rendered frames through as they are."""

    chunk = CHUNK

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        cache["deflickered"].write(start, cache["rendered"].read(range(start, stop)))


def check(run: Run[Job], footage: Footage) -> list[ArraySpec]:
    job, task = run.job, _task(run.job, footage.count or 1)
    check_device(job.device)
    if isinstance(task, SmoothTask):
        build(task.smoother, task.config, [], [])
    rate = footage.fps if job.fps is None else _rate(job.fps)
    check_encoder(_video_path(job), "h264", footage.height, footage.width, rate)
    return [ArraySpec("deflickered", (footage.count or 0, footage.height, footage.width, 3), "uint8")]


def plan(run: Run[Job], resume: bool) -> Plan:
    shape = run.cache["rendered"].shape
    task = _task(run.job, shape[0])
    if isinstance(task, SmoothTask) and task.smoother in ON_GPU:
        pick_gpu(task.device)  # refuses what is not there, before anything is begun
    return Plan(
        frames=shape[0],
        arrays=[ArraySpec("deflickered", shape, "uint8")],
        phases=[Phase("smooth", shape[0], task.chunk, task)],
        begin=lambda cache: _video_note(cache).unlink(missing_ok=True),
    )


def _task(job: Job, frames: int) -> SmoothTask | PassTask:
    if job.post_smoother is not None:
        return SmoothTask(job.post_smoother, job.post_smoother_config, job.device)
    if job.extra_deflickering_range:  # which is EbsynthSmoother's, as published, whatever the job's smoother is
        reach = min(job.extra_deflickering_range, frames - 1)
        return SmoothTask("EbsynthSmoother", {"smooth_index": [*range(-reach, reach + 1)]}, job.device)
    return PassTask()


def deliver(run: Run[Job], fingerprint: str) -> None:
    """Writes video.mp4, unless the one that is there was made of the same frames in the same way."""
    job, cache = run.job, run.cache
    path, note = _video_path(job), _video_note(cache)
    made_of = {"frames": fingerprint, "fps": job.fps, "keep_audio": job.keep_audio}
    if path.exists() and note.exists() and json.loads(note.read_text()) == made_of:
        return
    write_video(path, job, cache, run.reporter)
    write_json(note, made_of)


def _video_path(job: Job) -> Path:
    return Path(job.output_path) / "video.mp4"


def _video_note(cache: FrameCache) -> Path:
    """What video.mp4 was made of."""
    return cache.path / "receipts" / "video.json"


def write_video(
    path: Path, job: Job, cache: FrameCache, reporter: Reporter, codec: str = "h264", crf: int | None = None
) -> None:
    """Encodes the deflickered frames, at the job's or the source's frame rate and with the source's sound."""
    frames, source = cache["deflickered"], cache["frames"].attrs.asdict()
    reporter.begin(path.name, len(frames))
    reporter.phase(f"write {codec}")
    rate, times = Fraction(str(source["fps"])), source["times"]
    if job.fps is not None:
        rate, times = _rate(job.fps), None
    audio = _audio(job, source, len(frames), rate, reporter)
    fps = rate if times is None else None
    comment = f"{SIGNATURE} deflicker"
    encode(path, told(frames, reporter), Encoding(fps, np.array(times or []), codec, crf, audio, comment))
    reporter.end(
        path.name, f"{path}: {len(frames)} frames, {float(rate):.3g} frames/s{', with sound' if audio else ''}"
    )


def _rate(fps: float) -> Fraction:
    """The frame rate that this number stands for: 29.97 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def _audio(job: Job, source: dict[str, Any], frames: int, rate: Fraction, reporter: Reporter) -> Audio | None:
    if not (job.keep_audio and source["audio"]):
        return None
    length = source["stop"] - source["start"]
    if job.fps is not None and abs(frames / float(rate) / length - 1) > SAME_SPEED:
        reporter.warn(f"no sound: at fps {job.fps:g} the video does not run at the source's speed")
        return None
    if not Path(job.input_video).exists():
        reporter.warn(f"no sound: {job.input_video} is gone")
        return None
    return Audio(Path(job.input_video), source["start"], source["stop"])


STAGE = Stage("deflicker", plan, deliver, check)
