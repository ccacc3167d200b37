"""`diffsynth init`: write a job file for a video from a task's template, and a Makefile for many videos."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from stages.annotators import Weighted
from stages.base.errors import UsageError
from stages.base.json_types import Values
from stages.base.outputs import check_output
from stages.base.record import write_text
from stages.jobs.job import Job
from stages.jobs.job_file import check
from stages.video import Source, open_source
from templates import DOWNLOADS, LORAS, NOTES, PUBLISHED, Task

SIZE_STEP = 64  # px; what Stable Diffusion was trained on
SAME_SHAPE = 0.05  # relative difference below which aspect ratios count as equal
TRIAL = 8  # frames
# Seconds of one CPU core per step and frame at 256×256 pixels, measured with networks of Stable Diffusion 1.5's size,
# one ControlNet, shared attention and both passes of guidance (docs/tasks.md).
CPU_SECONDS, CPU_PIXELS = 9.4, 256 * 256


def write_project(
    task: Task, video: Path, folder: Path, force: bool, published: bool = False
) -> tuple[list[Path], list[str]]:
    """Write job.json and Makefile into `folder`.

    Args:
        task: The task.
        video: A video or a folder of images.
        folder: Created if it does not exist.
        force: Overwrite existing files, but never the video.
        published: Write the values of DiffSynth's own config file instead of the recommended ones.

    Returns:
        The paths of the files, and what to do next, one step per line.

    Raises:
        UsageError: DiffSynth published no such task, the video cannot be read, or files are in the way.
    """
    job, source = template(task, published), open_source(video)
    if not published:
        area = job["frame_height"] * job["frame_width"]
        job["frame_height"], job["frame_width"] = fitting_size(area, source.height, source.width)
    job["input_video"] = _from(folder, video)
    try:
        job["input_video"].encode()
    except UnicodeEncodeError:
        raise UsageError(f"{video}: the name is not UTF-8, which a job file cannot hold", "Rename it.") from None
    texts = {
        "job.json": json.dumps(job, indent=2, ensure_ascii=False) + "\n",
        "Makefile": (resources.files("templates") / "Makefile").read_text(encoding="utf-8"),
    }
    for name in texts:
        check_output(folder / name, [video], force=force)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts], list(_next_steps(task, job, source, folder))


def template(task: Task, published: bool = False) -> Values:
    """Return the keys of a task's job."""
    if published and task not in PUBLISHED:
        raise UsageError(f"--published: DiffSynth published no {task}", f"It published {', '.join(PUBLISHED)}.")
    folder = resources.files("templates")
    return dict(json.loads(((folder / "published" if published else folder) / f"{task}.json").read_text()))


def fitting_size(area: int, height: int, width: int, step: int = SIZE_STEP) -> tuple[int, int]:
    """Return (height, width) of about `area` pixels with the aspect ratio of the arguments, in multiples of `step`."""
    ideal = (area * height / width) ** 0.5, (area * width / height) ** 0.5
    rounded = [max(1, round(side / step)) * step for side in ideal]
    return rounded[0], rounded[1]


def _from(folder: Path, path: Path) -> str:
    """Return `path` relative to `folder` if it is inside it, else absolute."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


# --- what to do next ------------------------------------------------------------------------------------


def _next_steps(task: Task, template: Values, source: Source, folder: Path) -> Iterator[str]:
    job, _ = check(template)
    assert job is not None, "templates are valid"
    yield f'Replace the example prompt: "{job.prompt}"'
    if job.style_image:
        yield f"Put your style image here: {folder / job.style_image} (style_image)"
    for name in job.frames_reference:
        yield f"Put your reference image here: {folder / name} (frames_reference)"
    for lora in job.loras:
        yield f"Download the LoRA into {folder.resolve()}: {LORAS[lora.path]}"
    if task in NOTES:
        yield NOTES[task]
    yield from _shape(job, source)
    yield _downloads(job)
    minutes = f"{_cpu_minutes(job):.0f} CPU-core minutes per frame"
    yield f"Expect at least {minutes} without a GPU, which is for trials only (not measured on a GPU)"
    path = shlex.quote(str(folder / "job.json"))
    if job.frame_maximum_count is None:
        trial = f"--set frame_maximum_count={TRIAL} --set {shlex.quote(f'output_path={folder}/trial')}"
        yield f"Try it on {TRIAL} frames: diffsynth run {path} {trial}"
    yield f"Run it: diffsynth run {path}"


def _shape(job: Job, source: Source) -> Iterator[str]:
    """Say what is cut off frames of another shape and off a long video."""
    assert job.frame_height is not None and job.frame_width is not None
    if abs(job.frame_width * source.height / (job.frame_height * source.width) - 1) > SAME_SHAPE:
        yield (
            f"Frames of {source.width}×{source.height} are cropped to the aspect ratio of {job.frame_width}×"
            f"{job.frame_height}. Change frame_width and frame_height to keep more"
        )
    if job.frame_maximum_count is not None:
        yield f"Only the first {job.frame_maximum_count} frames are used. Remove frame_maximum_count to use all"


def _cpu_minutes(job: Job) -> float:
    """Return the least CPU-core minutes per frame. More ControlNets and joint attention take longer."""
    pixels = (job.frame_height or 0) * (job.frame_width or 0)
    steps = int(job.num_inference_steps * job.img2img_strength)
    passes = 1.0 if job.guidance_scale > 1 else 0.5
    return CPU_SECONDS * pixels / CPU_PIXELS * steps * passes / 60


def _downloads(job: Job) -> str:
    """List the hub models that the job reads, with sizes. ControlNets of scale 0 are not read."""
    sizes: dict[str, float] = {}
    models = [job.model_id, *(net for net, run in zip(job.controlnet_model_id, job.networks_run) if run)]
    for model in models:
        sizes[model] = DOWNLOADS[model]
    for annotator, run in zip(job.controlnet_processor, job.networks_run):
        if run and isinstance(annotator, Weighted):
            model = annotator.model
            sizes[model] = DOWNLOADS.get(model) or sum(DOWNLOADS[f"{model}/{file}"] for file in annotator.files)
    listed = ", ".join(f"{model} ({size:g} GB)" for model, size in sizes.items())
    return f"The first run downloads missing models, about {sum(sizes.values()):.1f} GB in all: {listed}"
