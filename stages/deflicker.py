"""Smooth the rendered frames and write video.mp4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np

from stages.base.cache import RUN, ArraySpec, FrameCache
from stages.base.engine import Ahead, Chunk, Footage, Phase, Plan, Reporter, Run, Stage, Task, with_progress
from stages.base.errors import DiffSynthError
from stages.base.json_types import Values
from stages.base.outputs import FRAMES, SIGNATURE, VIDEO
from stages.base.overlap import Reads
from stages.base.record import receipt_name, versions
from stages.base.removal import refuse_removed
from stages.base.store import as_json, from_json
from stages.base.words import counted, per_second
from stages.codecs import Codec
from stages.frame_rate import Raised, raised_times
from stages.jobs.job import Job
from stages.jobs.second_pass import enlarged, final
from stages.masks import check_mask, mask_shots, with_alpha
from stages.models.weights import check_device, pick_gpu
from stages.scenes import recorded_cuts
from stages.selection import selection_of
from stages.smoothers import SMOOTHERS, build
from stages.smoothers.ebsynth import Ebsynth
from stages.tasks import ChunkSmoother, SmoothTask
from stages.video import (
    Audio,
    Encoding,
    Segment,
    Shot,
    check_encoder,
    encode,
    encode_segment,
    frame_files,
    join,
    read_segment,
    write_frames,
)

SEGMENT = 250  # frames, the distance of x264's keyframes. The bytes of the video depend on it
SEGMENTS = "segments"  # folder in the cache's store
# Size of video.mp4, and of its segments, as a share of the frames' size in memory, at least and usually. Measured with
# black frames, and with the demo's clip and noise of standard deviation 5. Without noise, the clip needs 0.008.
VIDEO_SIZE = (0.0003, 0.035)
PAINTED = " painted"  # in the comment of an image that was painted between two frames
SAME_SPEED = 1e-3  # audio is kept when the speed changes by less than this part


@dataclass(frozen=True)
class Export:
    """How to write the deflickered frames.

    Args:
        codec: The video codec, or the format of images.
        crf: Quality, lower is better. None for the codec's default.
        factor: Frames to write for each frame, most of which are painted.
        alpha: Masks that become the alpha channel: a video or a folder with one for each frame of the job's video, or
            one image.
    """

    codec: Codec = Codec.PNG
    crf: int | None = None
    factor: int = 1
    alpha: Path | None = None


PNG_IMAGES = Export()


@dataclass
class PassTask(Task):
    """Copy the frames of the array `source` as they are."""

    source: str

    def reads(self, start: int, stop: int) -> Reads:
        return [(self.source, range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        cache["deflickered"].write(start, cache[self.source].read(range(start, stop)))


@dataclass
class EncodeTask(Task):
    """Encode a segment of the deflickered frames, and store it under the number of its first frame.

    Args:
        video: The video that the segments belong to.
        folder: The folder of the cache's store.
        how: Codec and times of the video.
    """

    video: Path
    folder: str
    how: Encoding

    @property
    def chunk(self) -> int:
        return SEGMENT

    @property
    def kind(self) -> str:
        return "encode the video"

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        frames = cache["deflickered"]
        parts = (range(first, min(first + RUN, stop)) for first in range(start, stop, RUN))  # few in memory at once
        images = chain.from_iterable(frames.read(part) for part in parts)
        cache.store.put(self.name(start), encode_segment(self.video, images, self.how, start))

    def name(self, start: int) -> str:
        """Return the name in the store of the segment that begins with this frame."""
        return f"{self.folder}/{start}"

    def missing(self, cache: FrameCache, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Return the chunks whose segments are not stored, or are damaged."""
        stored = set(cache.store.children(self.folder))
        return [chunk for chunk in chunks if str(chunk[0]) not in stored or self._read(cache, chunk[0]) is None]

    def segment(self, cache: FrameCache, start: int) -> Segment:
        """Read a segment. Raise DiffSynthError if it has been damaged since it was written."""
        segment = self._read(cache, start)
        if segment is None:
            raise DiffSynthError(
                f"{cache.store}: the segment '{self.name(start)}' is damaged",
                f"encode it again with {cache.command(STAGE.name)}",
            )
        return segment

    def _read(self, cache: FrameCache, start: int) -> Segment | None:
        return read_segment(cache.store.get(self.name(start)) or b"")


def check(run: Run[Job], footage: Footage) -> Ahead:
    job, task = run.job, _task(run.job, footage.count or 1, compiled=run.options.compiled)
    run.engine.call(partial(check_device, job.device))
    if isinstance(task, SmoothTask):
        build(task.smoother.name, dict(task.smoother.config), [], [])
    rate = footage.fps if job.fps is None else _rate(job.fps)
    height, width = enlarged(footage.height, footage.width, job.upscale)
    check_encoder(Path(job.output_path) / VIDEO, "h264", height, width, rate)
    shape = (footage.count or 0, height, width, 3)
    names = ("deflickered", *([FRAMES] if job.keep_frames else []))  # images need about what an array does
    videos = [ArraySpec(name, shape, "uint8", compressed=VIDEO_SIZE) for name in (SEGMENTS, VIDEO)]
    encode = EncodeTask(Path(job.output_path) / VIDEO, SEGMENTS, Encoding(rate))
    phases = [_phase(shape[0], task), Phase("encode", shape[0], encode)]
    return Ahead([*(ArraySpec(name, shape, "uint8") for name in names), *videos], phases)


def needs(job: Job) -> tuple[str, ...]:
    if isinstance(_task(job, 1, compiled=False), PassTask):
        return (final(job, "rendered"),)
    return tuple(final(job, name) for name in ("rendered", "frames", *(["mask"] if job.mask else [])))


def plan(run: Run[Job], resume: bool) -> Plan:
    shape, cuts = run.cache[final(run.job, "rendered")].shape, recorded_cuts(run.job, run.cache)
    begun: Values = run.cache["deflickered"].attrs if resume else {}
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
        return _smoothed(job, ChunkSmoother(job.post_smoother, job.post_smoother_config, job.device, compiled), cuts)
    if job.extra_deflickering_range:  # Ebsynth's, as published, whatever the job's smoother is
        reach = min(job.extra_deflickering_range, frames - 1)
        config = {"smooth_index": [*range(-reach, reach + 1)]}
        return _smoothed(job, ChunkSmoother(Ebsynth.name, config, job.device), cuts)
    return PassTask(final(job, "rendered"))


def _smoothed(job: Job, smoother: ChunkSmoother, cuts: Sequence[int]) -> SmoothTask:
    guides, styles, mask = (final(job, name) for name in ("frames", "rendered", "mask"))
    return SmoothTask(smoother, guides, styles, "deflickered", cuts, mask if job.mask else None)


def deliver(run: Run[Job], fingerprint: str) -> None:
    """Write video.mp4 and, with `keep_frames`, the folder of frames, unless they are there and made of these frames.

    Segments are removed once they are no longer needed, also those that a killed run has left.
    """
    job, cache, folder = run.job, run.cache, Path(run.job.output_path)
    if job.keep_frames:
        made_of: Values = {"frames": fingerprint}
        if not _is_written(folder / FRAMES, cache, made_of):
            refuse_removed(FRAMES, STAGE.arrays, [STAGE.name], run.stages, job, cache)
            write_images(folder / FRAMES, job, cache, run.reporter)
            _note(folder / FRAMES, cache, made_of)
    made_of = {"frames": fingerprint, "fps": job.fps, "keep_audio": job.keep_audio}
    if not _is_written(folder / VIDEO, cache, made_of):
        refuse_removed(VIDEO, STAGE.arrays, [STAGE.name], run.stages, job, cache)
        _write_in_segments(folder / VIDEO, run, fingerprint)
        _note(folder / VIDEO, cache, made_of)
    cache.store.delete_all(SEGMENTS)


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
    digest = sha256()
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
    cache["deflickered"].note(compiled=compiled)
    cache.store.delete_all(SEGMENTS)
    for output in (VIDEO, FRAMES):
        cache.store.delete(receipt_name(Path(output).stem))


def raised(job: Job, cache: FrameCache, factor: int) -> Raised:
    """Return the deflickered frames and those painted between them. `factor` 1 adds none."""
    name, maker = final(job, "frames"), "upscale" if job.upscale else "extract"
    guides = None if name in cache.record(maker).removed else cache[name]
    return Raised(cache["deflickered"], guides, factor, recorded_cuts(job, cache))


def write_images(folder: Path, job: Job, cache: FrameCache, reporter: Reporter, export: Export = PNG_IMAGES) -> None:
    """Write the deflickered frames as images. Those that are there already are kept."""
    frames, masks = raised(job, cache, export.factor), _masks(export, job, cache)
    reporter.begin(folder.name, len(frames))
    reporter.phase(f"write {export.codec}")
    notes = (PAINTED if frames.is_painted(index) else "" for index in range(len(frames)))
    pictures = with_progress(frames if masks is None else with_alpha(frames, masks), reporter)
    write_frames(folder, pictures, f"{SIGNATURE} frame", notes, f".{export.codec}")
    reporter.end("written", f"{folder}: {counted(len(frames), 'image')}{_painted(frames)}")


def write_video(path: Path, job: Job, cache: FrameCache, reporter: Reporter, export: Export) -> None:
    """Encode the deflickered frames, at the job's or the source's frame rate and with the source's sound."""
    frames, masks = raised(job, cache, export.factor), _masks(export, job, cache)
    reporter.begin(path.name, len(frames))
    reporter.phase(f"write {export.codec}")
    how = _raised_encoding(_encoding(job, cache, reporter, export.codec, export.crf), frames)
    rate = frame_rate(job, cache) * export.factor
    _, height, width, _ = cache["deflickered"].shape
    check_encoder(path, export.codec, height, width, rate)
    encode(path, with_progress(frames if masks is None else with_alpha(frames, masks), reporter), how)
    _report(path, len(frames), rate, reporter, how, _painted(frames))


def _masks(export: Export, job: Job, cache: FrameCache) -> Iterator[Shot] | None:
    """Return the mask of each frame. None without an alpha channel."""
    if export.alpha is None:
        return None
    path, used = str(export.alpha), selection_of(job)
    check_mask("alpha", path, used, len(cache["deflickered"]))
    return mask_shots(path, used, source_rate(job, cache), 0)


def _painted(frames: Raised) -> str:
    """Say how many frames were painted. Empty if none was."""
    return f", {frames.painted} of them painted" if frames.painted else ""


def _raised_encoding(how: Encoding, frames: Raised) -> Encoding:
    """Return how to encode more frames in the same time, with a comment that says how many of them were painted."""
    if frames.factor == 1:
        return how
    fps = None if how.fps is None else how.fps * frames.factor
    times = np.array(raised_times(how.times.tolist(), frames.factor)) if how.fps is None else how.times
    return replace(how, fps=fps, times=times, comment=f"{how.comment}{_painted(frames)}")


def _write_in_segments(path: Path, run: Run[Job], fingerprint: str) -> None:
    """Write the video from segments, which may be encoded on several machines and are kept if the run is killed."""
    job, cache, reporter = run.job, run.cache, run.reporter
    frames, how = cache["deflickered"], _encoding(job, cache, reporter)
    made_of: Values = {"frames": fingerprint, "fps": job.fps, "length": SEGMENT, "versions": versions()}
    task = EncodeTask(path, f"{SEGMENTS}/{sha256(as_json(made_of)).hexdigest()[:16]}", how)
    chunks = Phase("write h264", len(frames), task).chunks()
    missing = task.missing(cache, chunks)
    reporter.begin(path.name, len(frames), len(frames) - sum(stop - start for start, stop in missing))
    reporter.phase("write h264")
    with closing(run.engine.map(task, cache, missing)) as finished:
        for start, stop in finished:
            reporter.advance(stop - start)
    join(path, (task.segment(cache, start) for start, _ in chunks), frames.shape[1:], how)
    _report(path, len(frames), frame_rate(job, cache), reporter, how)


def _encoding(job: Job, cache: FrameCache, reporter: Reporter, codec: str = "h264", crf: int | None = None) -> Encoding:
    """Return how to encode the deflickered frames. Warn if their sound is lost."""
    source: Values = cache["frames"].attrs
    rate, times = frame_rate(job, cache), source["times"] if job.fps is None else None
    audio = _audio(job, source, len(cache["deflickered"]), rate, reporter)
    fps = rate if times is None else None
    return Encoding(fps, np.array(times or []), codec, crf, audio, f"{SIGNATURE} deflicker")


def frame_rate(job: Job, cache: FrameCache) -> Fraction:
    """Return the job's frame rate or the source's, which is an average if it varies."""
    return Fraction(str(cache["frames"].attrs["fps"])) if job.fps is None else _rate(job.fps)


def source_rate(job: Job, cache: FrameCache) -> Fraction:
    """Return the frame rate of the source, which is an average if it varies."""
    return Fraction(str(cache["frames"].attrs["fps"])) * job.frame_interval


def _report(path: Path, count: int, rate: Fraction, reporter: Reporter, how: Encoding, painted: str = "") -> None:
    """Tell the reporter what has been written."""
    shown = f"{counted(count, 'frame')}{painted}, {per_second(float(rate))}"
    reporter.end("written", f"{path}: {shown}{', with sound' if how.audio else ''}")


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
    reads=("extra_deflickering_range", "post_smoother", "post_smoother_config", "upscale"),
    after=("extract", "render", "upscale"),
    arrays=("deflickered",),
    needs=needs,
    plan=plan,
    deliver=deliver,
    check=check,
    outputs=_outputs,
    changed_outputs=changed_outputs,
    shown=lambda cache: {"deflickered": "deflickered"},
)
