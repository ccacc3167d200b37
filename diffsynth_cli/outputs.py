"""What a job writes into its output folder, checked before any work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.base.job import Job
from stages.base.job_file import input_paths
from stages.base.outputs import SIGNATURE, check_inputs_kept, check_output
from stages.base.record import CACHE_NAME
from stages.video import read_comment

VIDEO, PREVIEW, CONFIG = "video.mp4", "preview.png", "config.json"


def check_job_outputs(job: Job, job_file: Path, stages: Sequence[str], preview: bool, force: bool) -> None:
    """Refuse a job that would overwrite one of its inputs, or files in its output folder that are not its own.

    Args:
        job: The job.
        job_file: Where it was read from.
        stages: The stages that are going to run.
        preview: Whether the preview is written, too.
        force: Files that are not the job's own may be overwritten, but no input.

    Raises:
        UsageError: What is in the way, and what to do.
    """
    folder, inputs = Path(job.output_path), [*input_paths(job), job_file]
    check_inputs_kept(folder / CACHE_NAME, inputs)
    check_inputs_kept(folder / VIDEO, inputs)  # whatever stage runs first: deflicker writes it in the end
    for path in _written(folder, stages, preview):
        if path.name == CONFIG and is_same_file(path, job_file):
            continue  # it is not written then
        check_output(path, inputs, force=force, own=is_own(path, job))


def _written(folder: Path, stages: Sequence[str], preview: bool) -> Iterator[Path]:
    if "deflicker" in stages:
        yield folder / VIDEO
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
