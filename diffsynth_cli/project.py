"""`diffsynth init`: a job file made for one video from a task's template, and a Makefile for many."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from stages.base.errors import UsageError
from stages.base.mistakes import unknown
from stages.base.outputs import check_output
from stages.base.record import write_text
from stages.video import open_source

TASKS = ("text_guided", "fashion", "image_guided", "restoring", "rendering_3d", "text_guided_lcm")
TO_DOWNLOAD = {  # beside job.json
    "text_guided_lcm": "hf download latent-consistency/lcm-lora-sdv1-5 pytorch_lora_weights.safetensors "
    "--local-dir lcm-lora-sdv1-5",
}
SIZE_STEP = 64  # px; what the networks were trained on and what annotators keep


def write_project(task: str, video: Path, folder: Path, force: bool) -> list[Path]:
    """Write job.json and Makefile into `folder` and return their paths. `force` overwrites existing files."""
    if task not in TASKS:
        raise UsageError(unknown("task", task, TASKS))
    source = open_source(video)
    template = resources.files("templates")
    job = json.loads((template / f"{task}.json").read_text(encoding="utf-8"))
    job["frame_height"], job["frame_width"] = fitting_size(
        job["frame_height"] * job["frame_width"], source.height, source.width
    )
    job["input_video"] = _from(folder, video)
    try:
        job["input_video"].encode()
    except UnicodeEncodeError:
        raise UsageError(f"{video}: a job file cannot hold a name that is not UTF-8", "rename it") from None
    texts = {
        "job.json": json.dumps(job, indent=2, ensure_ascii=False) + "\n",
        "Makefile": (template / "Makefile").read_text(encoding="utf-8"),
    }
    for name in texts:
        check_output(folder / name, [video], force=force)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def fitting_size(area: int, height: int, width: int, step: int = SIZE_STEP) -> tuple[int, int]:
    """(height, width) of about `area` pixels with the aspect ratio height:width, in multiples of `step` pixels."""
    ideal = (area * height / width) ** 0.5, (area * width / height) ** 0.5
    rounded = [max(1, round(side / step)) * step for side in ideal]
    return rounded[0], rounded[1]


def _from(folder: Path, path: Path) -> str:
    """`path` as seen from `folder`, if it lies below it, else absolute."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
