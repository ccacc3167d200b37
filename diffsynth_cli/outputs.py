"""Checks of output paths, before any work is done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.all_stages import stages_of
from stages.base.cache import FrameCache
from stages.base.engine import Stage
from stages.base.errors import UsageError
from stages.base.outputs import FRAMES, SIGNATURE, check_inputs_kept, check_output
from stages.codecs import IMAGES, TRANSPARENT, Codec
from stages.frame_rate import FACTORS
from stages.jobs.job import Job
from stages.jobs.job_file import input_paths
from stages.smoothers.images.synthesis import check_writable
from stages.video import (
    CONTAINER_CODECS,
    ENCODERS,
    check_encoding,
    default_codec,
    frame_files,
    is_video_name,
    read_comment,
)  # fmt: skip

PREVIEW, CONFIG, REPORT = "preview.png", "config.json", "report.html"
HTML = ".html"
GENERATOR = f"{SIGNATURE} report"  # says in a page what wrote it
HEAD = 1024  # bytes of a page that say so


def check_job_outputs(
    job: Job, cache: FrameCache, job_file: Path | None, stages: Sequence[Stage[Job]], *, preview: bool, force: bool
) -> None:
    """Check that a job overwrites none of its inputs and no file that it did not write.

    Args:
        job: The job.
        cache: Its cache.
        job_file: The file it was read from, if any.
        stages: The stages that will run.
        preview: Whether a preview will be written.
        force: Allow overwriting files that the job did not write, but no input.

    Raises:
        UsageError: A file is in the way.
    """
    folder, inputs = Path(job.output_path), _inputs(job, job_file)
    if cache.folder is not None:
        check_inputs_kept(cache.folder, inputs)
    for name in (name for stage in stages_of(job).values() for name in stage.outputs(job)):
        check_inputs_kept(folder / name, inputs)  # even if another stage runs first
    for path in _written(job, stages, preview):
        if path.name == FRAMES:
            check_frames(path, inputs, force)
        elif path.name == CONFIG and job_file is not None and is_same_file(path, job_file):
            continue  # which is then not written
        else:
            check_output(path, inputs, force=force, own=is_own(path, job))


def check_sheet(path: Path, job: Job, job_file: Path | None, *, force: bool) -> None:
    """Raise UsageError if a contact sheet at `path` would overwrite an input of a job, or a file of the user's."""
    check_output(path, _inputs(job, job_file), force=force, own=is_own(path, job))


def choose_export(
    output: Path | None,
    codec: Codec | None,
    job: Job,
    job_file: Path | None,
    *,
    force: bool,
    alpha: Path | None = None,
) -> tuple[Path, Codec]:
    """Return the path and the codec of an export, deriving one from the other.

    Raises:
        UsageError: The codec does not fit the path, or files are in the way.
    """
    folder, inputs = Path(job.output_path), [*_inputs(job, job_file), *([] if alpha is None else [alpha])]
    name = codec or _default_codec(output, alpha)
    if name in IMAGES:
        path = output or folder / (FRAMES if name == Codec.PNG and alpha is None else f"{FRAMES}-{name}")
        if is_video_name(path):
            raise UsageError(f"{path}: {name} writes a folder of images", "Give the name of a folder.")
        check_frames(path, inputs, force, f".{name}")
        return path, name
    path = output or folder / f"video-{name}{ENCODERS[name].suffix}"
    check_encoding(path, name)
    check_output(path, inputs, force=force, own=output is None and is_own(path, job))
    return path, name


def _default_codec(output: Path | None, alpha: Path | None) -> Codec:
    """Return the usual codec for a path. Where a mask becomes the alpha channel, it is one that can hold it."""
    if output is not None and not is_video_name(output):
        return Codec.PNG
    if output is None:
        return Codec.H264 if alpha is None else Codec.PRORES
    usual = Codec(default_codec(output))
    fitting = [name for name in TRANSPARENT if name in CONTAINER_CODECS[output.suffix.lower()]]
    return fitting[0] if fitting and alpha is not None else usual


def check_alpha(alpha: Path | None, codec: Codec, factor: int) -> None:
    """Raise UsageError for an alpha channel that cannot be written."""
    if alpha is None:
        return
    if codec not in TRANSPARENT:
        raise UsageError(f"--alpha: {codec} has no alpha channel", f"choose one of the codecs {', '.join(TRANSPARENT)}")
    if factor > 1:
        raise UsageError(
            f"--alpha cannot be combined with --fps {factor}x", "there are no masks for the frames in between"
        )


def parse_fps(fps: float | str | None) -> tuple[float | None, int]:
    """Split the frame rate of an export into frames per second, if given, and the factor of frames to paint.

    Raises:
        UsageError: It is neither a number nor one of the factors.
    """
    factors = {f"{factor}x": factor for factor in FACTORS}
    if isinstance(fps, str) and fps.lower() in factors:
        return None, factors[fps.lower()]
    try:
        return None if fps is None else float(fps), 1
    except ValueError:
        raise UsageError(f"fps: {fps!r} is not a frame rate", f"give a number, or {', '.join(factors)}") from None


def choose_page(output: Path | None, job: Job, job_file: Path | None, force: bool) -> Path:
    """Return the path of a job's report.

    Raises:
        UsageError: Files are in the way.
    """
    path = output or Path(job.output_path) / REPORT
    check_writable(path, (HTML,))
    check_output(path, _inputs(job, job_file), force=force, own=is_page(path))
    return path


def is_page(path: Path) -> bool:
    """Whether a file is a page that this program wrote."""
    try:
        with path.open("rb") as file:
            return f'content="{GENERATOR}"'.encode() in file.read(HEAD)
    except OSError:
        return False


def _inputs(job: Job, job_file: Path | None) -> list[Path]:
    """Return all files and folders that must not be overwritten."""
    return [*input_paths(job), *([] if job_file is None else [job_file])]


def check_frames(folder: Path, inputs: Sequence[Path], force: bool, suffix: str = ".png") -> None:
    """Raise UsageError if images cannot be written to `folder`, or would replace images of another program."""
    check_inputs_kept(folder, inputs)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, but a folder of images is to be written there", "Move it away.")
    for file in frame_files(folder, suffix):
        check_output(file, inputs, force=force, own=read_comment(file).startswith(SIGNATURE))


def _written(job: Job, stages: Sequence[Stage[Job]], preview: bool) -> Iterator[Path]:
    folder = Path(job.output_path)
    yield from (folder / name for stage in stages for name in stage.outputs(job))
    if preview:
        yield folder / PREVIEW
    yield folder / CONFIG


def is_own(path: Path, job: Job) -> bool:
    """Whether the program wrote this file into the output folder of this job."""
    if path.suffix == ".json":
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(written, dict) and written.get("output_path") == job.output_path
    return read_comment(path).startswith(SIGNATURE)


def is_same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)
