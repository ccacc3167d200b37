"""Smooth the rendered frames and write video.mp4."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Ahead, Footage, Phase, Plan, Reporter, Run, Stage, Task, with_progress
from stages.base.json_types import Values
from stages.base.outputs import FRAMES, SIGNATURE, VIDEO
from stages.base.overlap import Reads
from stages.base.record import receipt_name
from stages.base.store import as_json, from_json
from stages.base.words import counted, per_second
from stages.jobs.job import Job
from stages.models.weights import check_device, pick_gpu
from stages.scenes import recorded_cuts
from stages.smoothers import SMOOTHERS, build
from stages.smoothers.ebsynth import Ebsynth
from stages.tasks import ChunkSmoother, SmoothTask
from stages.video import Audio, Encoding, check_encoder, encode, frame_files, write_frames

SAME_SPEED = 1e-3  # audio is kept when the speed changes by less than this part


@dataclass
class PassTask(Task):
    """Copy rendered frames as they are."""

    def reads(self, start: int, stop: int) -> Reads:
        return [("rendered", range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        cache["deflickered"].write(start, cache["rendered"].read(range(start, stop)))


def check(run: Run[Job], footage: Footage) -> Ahead:
    job, task = run.job, _task(run.job, footage.count or 1, compiled=run.options.compiled)
    run.engine.call(partial(check_device, job.device))
    if isinstance(task, SmoothTask):
        build(task.smoother.name, dict(task.smoother.config), [], [])
    rate = footage.fps if job.fps is None else _rate(job.fps)
    check_encoder(Path(job.output_path) / VIDEO, "h264", footage.height, footage.width, rate)
    shape = (footage.count or 0, footage.height, footage.width, 3)
    names = ("deflickered", *([FRAMES] if job.keep_frames else []))  # images need about what an array does
    return Ahead([ArraySpec(name, shape, "uint8") for name in names], [_phase(shape[0], task)])


def plan(run: Run[Job], resume: bool) -> Plan:
    shape, cuts = run.cache["rendered"].shape, recorded_cuts(run.job, run.cache)
    begun: Values = run.cache["deflickered"].attrs.asdict() if resume else {}
    compiled = run.options.compiled or begun.get("compiled", False)  # what is resumed rounds as it did
    task = _task(run.job, shape[0], compiled=compiled, cuts=cuts)
    if isinstance(task, SmoothTask) and SMOOTHERS[task.smoother.name].on_gpu:
        run.engine.call(partial(_try_gpu, run.job.device))
    return Plan(
        frames=shape[0],
        arrays=[ArraySpec("deflickered", shape, "uint8")],
        phases=[_phase(shape[0], task, cuts)],
        begin=partial(_begin, compiled=compiled),
    )


def _phase(frames: int, task: SmoothTask | PassTask, cuts: Sequence[int] = ()) -> Phase:
    return Phase("smooth", frames, task, cuts=cuts)


def _try_gpu(device: str) -> None:
    """Raise DiffSynthError if an NVIDIA GPU of this name is missing, before any work starts."""
    pick_gpu(device)


def _task(job: Job, frames: int, *, compiled: bool, cuts: Sequence[int] = ()) -> SmoothTask | PassTask:
    if job.post_smoother is not None:
        return _smoothed(ChunkSmoother(job.post_smoother, job.post_smoother_config, job.device, compiled), cuts)
    if job.extra_deflickering_range:  # Ebsynth's, as published, whatever the job's smoother is
        reach = min(job.extra_deflickering_range, frames - 1)
        return _smoothed(ChunkSmoother(Ebsynth.name, {"smooth_index": [*range(-reach, reach + 1)]}, job.device), cuts)
    return PassTask()


def _smoothed(smoother: ChunkSmoother, cuts: Sequence[int]) -> SmoothTask:
    return SmoothTask(smoother, "frames", "rendered", "deflickered", cuts)


def deliver(run: Run[Job], fingerprint: str) -> None:
    """Write video.mp4 and, with `keep_frames`, the folder of frames, unless they are there and made of these frames."""
    job, cache, folder = run.job, run.cache, Path(run.job.output_path)
    if job.keep_frames:
        made_of: Values = {"frames": fingerprint}
        if not _is_written(folder / FRAMES, cache, made_of):
            write_images(folder / FRAMES, cache, run.reporter)
            _note(folder / FRAMES, cache, made_of)
    made_of = {"frames": fingerprint, "fps": job.fps, "keep_audio": job.keep_audio}
    if not _is_written(folder / VIDEO, cache, made_of):
        write_video(folder / VIDEO, job, cache, run.reporter)
        _note(folder / VIDEO, cache, made_of)


def _is_written(output: Path, cache: FrameCache, made_of: Values) -> bool:
    """Whether `output` was made from `made_of` and still has its recorded size."""
    note = {key: value for key, value in _read_note(output, cache).items() if key != "sha256"}
    return output.exists() and note == {**made_of, "bytes": _bytes(output)}


def _note(output: Path, cache: FrameCache, made_of: Values) -> None:
    note = {**made_of, "bytes": _bytes(output), "sha256": _sha256(output)}
    cache.store.put(receipt_name(output.stem), as_json(note))


def _outputs(job: Job) -> tuple[str, ...]:
    return (VIDEO, FRAMES) if job.keep_frames else (VIDEO,)


def changed_outputs(job: Job, cache: FrameCache) -> Iterator[Path]:
    """Yield the outputs that are missing or differ from what was written."""
    for name in _outputs(job):
        output = Path(job.output_path) / name
        if not output.exists() or _read_note(output, cache).get("sha256") != _sha256(output):
            yield output


def _read_note(output: Path, cache: FrameCache) -> Values:
    note = from_json(cache.store.get(receipt_name(output.stem)))
    return note if isinstance(note, dict) else {}


def _bytes(output: Path) -> int:
    return sum(file.stat().st_size for file in _files(output))


def _sha256(output: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(output):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _files(output: Path) -> list[Path]:
    """List the frames of a folder, or a file itself."""
    return frame_files(output) if output.is_dir() else [output]


def _begin(cache: FrameCache, compiled: bool) -> None:
    """Note how the frames are smoothed, and forget the outputs of an earlier run."""
    cache["deflickered"].attrs["compiled"] = compiled
    for output in (VIDEO, FRAMES):
        cache.store.delete(receipt_name(Path(output).stem))


def write_images(folder: Path, cache: FrameCache, reporter: Reporter) -> None:
    """Write the deflickered frames as PNG files. Those that are there already are kept."""
    frames = cache["deflickered"]
    reporter.begin(folder.name, len(frames))
    reporter.phase("write png")
    write_frames(folder, with_progress(frames, reporter), f"{SIGNATURE} frame")
    reporter.end("written", f"{folder}: {counted(len(frames), 'image')}")


def write_video(
    path: Path, job: Job, cache: FrameCache, reporter: Reporter, codec: str = "h264", crf: int | None = None
) -> None:
    """Encode the deflickered frames, at the job's or the source's frame rate and with the source's sound."""
    frames, source = cache["deflickered"], cache["frames"].attrs.asdict()
    reporter.begin(path.name, len(frames))
    reporter.phase(f"write {codec}")
    rate, times = Fraction(str(source["fps"])), source["times"]
    if job.fps is not None:
        rate, times = _rate(job.fps), None
    audio = _audio(job, source, len(frames), rate, reporter)
    fps = rate if times is None else None
    comment = f"{SIGNATURE} deflicker"
    encode(path, with_progress(frames, reporter), Encoding(fps, np.array(times or []), codec, crf, audio, comment))
    sound = ", with sound" if audio else ""
    reporter.end("written", f"{path}: {counted(len(frames), 'frame')}, {per_second(float(rate))}{sound}")


def _rate(fps: float) -> Fraction:
    """The frame rate that this number stands for: 29.97 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def _audio(job: Job, source: Values, frames: int, rate: Fraction, reporter: Reporter) -> Audio | None:
    if not (job.keep_audio and source["audio"]):
        return None
    length = source["stop"] - source["start"]
    if job.fps is not None and abs(frames / float(rate) / length - 1) > SAME_SPEED:
        reporter.warn(f"written without sound: at fps {job.fps:g} the video does not run at the source's speed")
        return None
    if not Path(job.input_video).exists():
        reporter.warn(f"written without sound: {job.input_video} no longer exists")
        return None
    return Audio(Path(job.input_video), source["start"], source["stop"])


STAGE = Stage(
    name="deflicker",
    reads=("extra_deflickering_range", "post_smoother", "post_smoother_config"),
    after=("extract", "render"),
    arrays=("deflickered",),
    plan=plan,
    deliver=deliver,
    check=check,
    outputs=_outputs,
    changed_outputs=changed_outputs,
    shown=lambda cache: {"deflickered": "deflickered"},
)
