"""Checks of output paths, before any work is done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.all_stages import all_stages
from stages.base.cache import FrameCache
from stages.base.engine import Stage
from stages.base.errors import UsageError
from stages.base.outputs import FRAMES, SIGNATURE, check_inputs_kept, check_output
from stages.codecs import Codec
from stages.jobs.job import Job
from stages.jobs.job_file import input_paths
from stages.smoothers.images.synthesis import check_writable
from stages.video import (
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
    for name in (name for stage in all_stages().values() for name in stage.outputs(job)):
        check_inputs_kept(folder / name, inputs)  # even if another stage runs first
    for path in _written(job, stages, preview):
        if path.name == FRAMES:
            _check_frames(path, inputs, force)
        elif path.name == CONFIG and job_file is not None and is_same_file(path, job_file):
            continue  # which is then not written
        else:
            check_output(path, inputs, force=force, own=is_own(path, job))


def check_sheet(path: Path, job: Job, job_file: Path | None, *, force: bool) -> None:
    """Raise UsageError if a contact sheet at `path` would overwrite an input of a job, or a file of the user's."""
    check_output(path, _inputs(job, job_file), force=force, own=is_own(path, job))


def choose_export(
    output: Path | None, codec: Codec | None, job: Job, job_file: Path | None, force: bool
) -> tuple[Path, str | None]:
    """Return the path and the codec of an export, deriving one from the other. For a folder of images, no codec.

    Raises:
        UsageError: The codec does not fit the path, or files are in the way.
    """
    folder, inputs = Path(job.output_path), _inputs(job, job_file)
    if codec == Codec.PNG or (codec is None and output is not None and not is_video_name(output)):
        path = output or folder / FRAMES
        if is_video_name(path):
            raise UsageError(f"{path}: {Codec.PNG} writes a folder of images", "Give the name of a folder.")
        _check_frames(path, inputs, force)
        return path, None
    name = codec or (Codec.H264 if output is None else default_codec(output))
    path = output or folder / f"video-{name}{ENCODERS[name].suffix}"
    check_encoding(path, name)
    check_output(path, inputs, force=force, own=output is None and is_own(path, job))
    return path, name


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


def _check_frames(folder: Path, inputs: Sequence[Path], force: bool) -> None:
    """Raise UsageError if images cannot be written to `folder`, or would replace images of another program."""
    check_inputs_kept(folder, inputs)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, but a folder of images is to be written there", "Move it away.")
    for file in frame_files(folder):
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
