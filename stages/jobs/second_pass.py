"""The second pass of a job with `upscale`, which renders the frames again at a larger size."""

from __future__ import annotations

from stages.base.errors import UsageError
from stages.jobs.job import LARGEST_SIDE, SIZE_GRID, Job, Upscale, expand_annotator
from stages.jobs.keeping import LARGE


def final(job: Job, name: str) -> str:
    """Return the array of the job's last pass that stands for the first pass's array `name`."""
    return f"{LARGE}{name}" if job.upscale else name


def enlarged(height: int, width: int, upscale: Upscale | None) -> tuple[int, int]:
    """Return the size (height, width) of the frames of a job's last pass.

    Raises:
        UsageError: They are too large.
    """
    factor = 1 if upscale is None else upscale.factor
    larger = tuple(round(side * factor / SIZE_GRID) * SIZE_GRID for side in (height, width))
    if max(larger) > max(LARGEST_SIDE, height, width):
        raise UsageError(
            f"upscale.factor: {factor:g} × {width}×{height} is {larger[1]}×{larger[0]}",
            f"choose a smaller factor; frames can have at most {LARGEST_SIDE} pixels on each side",
        )
    return larger[0], larger[1]


def second_pass(job: Job) -> Job:
    """Return the second pass as a job of its own: img2img with a tile ControlNet, or with none."""
    upscale = job.upscale
    assert upscale is not None, "only jobs with `upscale` have a second pass"
    nets = [] if upscale.model is None else [upscale.model]
    update = {
        "controlnet_model_id": nets,
        "controlnet_processor": [expand_annotator("tile") for _ in nets],
        "controlnet_scale": [1.0 for _ in nets],
        "controlnet_start": [],
        "controlnet_end": [],
        "guess_mode": False,
        "num_inference_steps": upscale.steps or job.num_inference_steps,
        "img2img_strength": upscale.strength,
        "mask_grow": round(job.mask_grow * upscale.factor),
        "mask_feather": round(job.mask_feather * upscale.factor),
        "vae_tiling": job.vae_tiling or upscale.tile is not None,
        "upscale": None,
    }
    return job.model_copy(update=update)
