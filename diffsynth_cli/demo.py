"""`diffsynth demo`: restyle the embedded clip, or the user's video, with the embedded model, offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from diffsynth_cli.comparison import write_comparison
from diffsynth_cli.contact_sheet import states, write_contact_sheet
from diffsynth_cli.project import fitting_size
from stages.base.cache import FrameArray, FrameCache
from stages.base.outputs import SIGNATURE, VIDEO, check_inputs_kept, check_output
from stages.base.record import write_json
from stages.base.reporting import Reporter
from stages.deflicker import frame_rate
from stages.jobs.job_file import read_job
from stages.video import open_source, read_comment

FRAMES = 24  # used of the user's video
AREA = 160 * 256  # px; about what the embedded model was trained on
SIZE_STEP = 32  # px; the coarsest level of the embedded U-Net
COLUMNS = 4
SHEET, COMPARISON, REPORT = "contact-sheet.png", "comparison.mp4", "report.html"
OURS, SINGLY = "diffsynth", "frame by frame"
SINGLY_FOLDER = "frame-by-frame"
# Each frame as an image of its own: other noise, no attention to other frames, no smoothing.
SINGLY_KEYS = {"noise": "frame", "combine_pattern": [0], "smoother": None, "post_smoother": None, "cache": None}


def write_demo(folder: Path, video: Path | None, prompt: str, force: bool = False) -> Path:
    """Write the job and, if no video is given, the embedded clip into `folder`.

    Returns:
        The path of the job file.

    Raises:
        UsageError: The video cannot be read, or files that the demo did not write are in the way.
    """
    templates, path = resources.files("templates"), folder / "job.json"
    job = json.loads((templates / "demo.json").read_text(encoding="utf-8"))
    inputs = [] if video is None else [video]
    own = path.exists() and f'"{job["model_id"]}"' in path.read_text(encoding="utf-8", errors="replace")
    check_output(path, inputs, force=force, own=own)
    for output in (folder / SHEET, folder / COMPARISON):
        check_output(output, inputs, force=force, own=read_comment(output).startswith(SIGNATURE))
    check_inputs_kept(folder / job["output_path"] / VIDEO, inputs)
    job["prompt"] = prompt
    clip = folder / "clip.mp4"
    if video is not None:
        source = open_source(video)
        job["frame_height"], job["frame_width"] = fitting_size(AREA, source.height, source.width, SIZE_STEP)
        job["frame_maximum_count"] = FRAMES
    folder.mkdir(parents=True, exist_ok=True)
    if video is None and not clip.exists():
        clip.write_bytes((templates / "demo.mp4").read_bytes())
    job["input_video"] = str((video or clip).resolve())
    write_json(path, job)
    return path


def write_sheet(path: Path, overrides: Sequence[str]) -> Path:
    """Write the contact sheet of a finished demo and return its path.

    Args:
        path: The job file.
        overrides: The overrides that it was run with.
    """
    job, _ = read_job(path, overrides)
    sheet = path.with_name(SHEET)
    write_contact_sheet(sheet, states(job, FrameCache(job.cache_place)), COLUMNS)
    return sheet


def singly(path: Path) -> list[str]:
    """Return overrides with which a demo renders each frame as an image of its own."""
    keys = {**SINGLY_KEYS, "output_path": str(path.with_name(SINGLY_FOLDER))}
    return [f"{key}={json.dumps(value)}" for key, value in keys.items()]


def write_demo_comparison(path: Path, overrides: Sequence[str], reporter: Reporter) -> Path:
    """Write the video that compares a finished demo with frames that were rendered singly, and return its path."""
    comparison, (job, _) = path.with_name(COMPARISON), read_job(path, overrides)
    rate = frame_rate(job, FrameCache(job.cache_place))
    write_comparison(comparison, compared_videos(path, overrides), rate, reporter)
    return comparison


def compared_videos(path: Path, overrides: Sequence[str] = ()) -> dict[str, FrameArray]:
    """Return the videos of a demo that was rendered both ways, by label."""
    jobs = [read_job(path, more)[0] for more in (overrides, [*overrides, *singly(path)])]
    ours, alone = (FrameCache(job.cache_place) for job in jobs)
    return {"input": ours["frames"], SINGLY: alone["deflickered"], OURS: ours["deflickered"]}
