"""What rendering a job takes: its plan, and the phases and arrays of that plan."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from stages.base.cache import FrameCache
from stages.base.engine import Footage, Options, Phase, Plan, Run
from stages.base.json_types import JsonObject, Values
from stages.diffusion.attention_backends import check_backend
from stages.diffusion.layout import check_model
from stages.diffusion.sampler import SAMPLERS
from stages.diffusion.settings import ModelNames, Settings
from stages.jobs.job import Job
from stages.jobs.models import networks, tensor_files
from stages.masks import Mask, check_mask
from stages.models.weights import check_device, check_tensor_file
from stages.rendering.noise import FollowMotionTask, LinkChunksTask
from stages.rendering.plan import MASK, RenderPlan
from stages.rendering.preparation import (
    ChooseBackendTask,
    EncodeFramesTask,
    EncodeReferencesTask,
    LoadTask,
    MeasureTask,
    NoiseFramesTask,
)
from stages.rendering.schedule import Timing, schedule_of
from stages.rendering.tasks import DecodeLatentsTask, RenderTask, SmoothStepTask, StepTask
from stages.selection import selection_of
from stages.tasks import ChunkSmoother, PaintTask

STEP = "step"  # how the names of phases of denoising steps begin


def check_rendering(run: Run[Job]) -> None:
    """Raise DiffSynthError if a model of the job, or its device, is missing or unusable, by headers alone."""
    job = run.job
    run.engine.call(partial(check_device, job.device))
    run.engine.call(partial(check_backend, job.attention_backend, job.device))
    for key, name, parts in networks(job):
        check_model(key, name, parts, job.allow_pickle)
    for key, path in tensor_files(job):
        check_tensor_file(key, Path(path))


def check_masks(job: Job, footage: Footage) -> None:
    """Raise UsageError if a mask of the job cannot be read, or is certainly too short."""
    masks = {"mask": job.mask} if job.mask else {}
    masks |= {f"regions[{index}].mask": region.mask for index, region in enumerate(job.regions)}
    for key, mask in masks.items():
        check_mask(key, mask, selection_of(job), footage.least)


# --- the plan -------------------------------------------------------------------------------------------


def make_plan(
    job: Job,
    options: Options,
    shape: tuple[int, int, int],
    *,
    keys: tuple[int, ...],
    cuts: tuple[int, ...] = (),
    maps: tuple[tuple[str, str], ...],
    timing: Timing | None = None,
    start: str = "frames",
    tile: int | None = None,
    given: tuple[str, ...] = (),
) -> RenderPlan:
    """Return the plan of rendering the frames `keys` of a video.

    Args:
        job: The job.
        options: How networks run.
        shape: (count, height, width) of the video.
        keys: Numbers of the frames that are rendered.
        cuts: The first frame of each scene after the first.
        maps: As for `RenderPlan`.
        timing: When frames are shown. None before the video has been decoded.
        start: As for `RenderPlan`.
        tile: As for `RenderPlan`.
        given: As for `RenderPlan`.
    """
    count, height, width = shape
    return RenderPlan(
        settings=denoiser_settings(job, options),
        pattern=tuple(job.combine_pattern),
        joint=job.attention == "joint",
        size=(height, width),
        frames=count,
        cuts=cuts,
        keys=keys,
        references=len(job.frames_reference),
        maps=maps,
        start=start,
        given=given,
        tile=tile,
        steps=int(job.num_inference_steps * job.img2img_strength),
        multistep=SAMPLERS[job.scheduler].multistep,
        noise=job.noise,
        schedule=schedule_of(job.prompt, timing) if timing else (),
        used=(selection_of(job), timing.source_fps if timing else None),
        mask=mask_of(job),
        regions=tuple((Mask(region.mask), region.scale) for region in job.regions),
        smoother=None if job.smoother is None else (job.smoother, job.smoother_config),
        smoother_interval=job.smoother_interval,
        unsmoothed=job.ignore_smoother_steps,
        keep_steps=job.keep_steps,
        batch_size=options.batch_size,
        backend=options.backend,
    )


def expected_keys(job: Job, count: int) -> tuple[int, ...]:
    """The numbers of the frames that are rendered; all that may be, if they have yet to be chosen."""
    if isinstance(job.keyframes, list):
        return tuple(sorted(set(job.keyframes)))
    return tuple(range(0, count, 1 if job.keyframes == "auto" else job.keyframes))


def mask_of(job: Job) -> Mask | None:
    """The mask of a job."""
    return Mask(job.mask, job.mask_grow, job.mask_feather, job.mask_invert) if job.mask else None


def denoiser_settings(job: Job, options: Options) -> Settings:
    """Return the settings of a job's denoiser."""
    nets = running_nets(job)
    models = ModelNames(
        model_id=job.model_id,
        controlnets=tuple(job.controlnet_model_id[index] for index in nets),
        device=job.device,
        dtype=job.dtype,
        vae=job.vae,
        loras=tuple((lora.path, lora.scale) for lora in job.loras),
        embeddings=tuple((item.path, item.word) for item in job.embeddings),
        allow_pickle=job.allow_pickle,
    )
    return Settings(
        models=models,
        scales=tuple(job.controlnet_scale[index] for index in nets),
        spans=tuple(job.spans[index] for index in nets),
        guess=job.guess_mode,
        prompts=job.prompts,
        weighted=job.prompt_weighting is not None,
        clip_skip=job.clip_skip,
        regions=tuple(region.prompt for region in job.regions),
        negative_prompt=job.negative_prompt,
        guidance=job.guidance_scale,
        guided=(job.guidance_start, job.guidance_end),
        steps=job.num_inference_steps,
        strength=job.img2img_strength,
        seed=job.seed_of_noise,
        scheduler=job.scheduler,
        tiled=job.vae_tiling,
        low_vram=options.low_vram,
        compiled=options.compiled,
    )


def running_nets(job: Job) -> list[int]:
    """The indexes of the ControlNets that are run."""
    return [index for index, runs in enumerate(job.networks_run) if runs]


def resumed(options: Options, begun: Values) -> Options:
    """The options that rendering is resumed with, since other ones would round differently."""
    return replace(
        options,
        batch_size=options.batch_size or begun.get("batch_size"),
        compiled=options.compiled or begun.get("compiled", False),
        backend=begun.get("attention_backend", "sdpa") if begun and options.backend == "auto" else options.backend,
    )


def noted(plan: RenderPlan) -> JsonObject:
    """Return what is noted about a plan when it begins, and read when it is resumed."""
    values: JsonObject = {
        "keys": list(plan.keys),
        "compiled": plan.settings.compiled,
        "attention_backend": plan.backend,
    }
    return values if plan.batch_size is None else {**values, "batch_size": plan.batch_size}


def stage_plan(plan: RenderPlan) -> Plan:
    """Return the work of a stage that does this plan and nothing else."""
    return Plan(
        frames=plan.frames,
        arrays=plan.arrays(),
        phases=phases_of(plan),
        begin=lambda cache: cache["rendered"].note(**noted(plan)),
        rereads=(*plan.control_maps, *(["frames"] if plan.smoother else [])),
        trial=LoadTask(plan),
    )


# --- phases ---------------------------------------------------------------------------------------------


def phases_of(plan: RenderPlan) -> list[Phase]:
    """Return the phases of a plan, in order."""
    phases: list[Phase] = []
    if plan.backend == "auto":
        phases.append(Phase("choose attention", 1, ChooseBackendTask(plan), note=_chosen_backend))
    if plan.batch_size is None:
        phases.append(Phase("measure memory", 1, MeasureTask(plan)))
    if plan.references:
        phases.append(Phase("encode references", plan.references, EncodeReferencesTask(plan)))
    if plan.noise == "warped":
        phases.append(Phase("follow the motion", len(plan.keys), FollowMotionTask(plan), cuts=plan.key_cuts))
        phases.append(Phase("link the motion", 1, LinkChunksTask(plan)))
    if plan.mask is not None:
        phases.append(Phase("read the mask", plan.frames, plan.mask.decode(MASK, *plan.used)))
        phases.append(_key_phase("encode the frames", EncodeFramesTask(plan)))
    for index, (mask, _) in enumerate(plan.regions):
        phases.append(
            Phase(f"read the mask of region {index}", plan.frames, mask.decode(plan.region_mask(index), *plan.used))
        )
    if plan.img2img:
        phases.append(_key_phase("noise the frames", NoiseFramesTask(plan)))
    for step in range(plan.steps):
        phases += _step_phases(plan, step)
    phases.append(_key_phase("decode", DecodeLatentsTask(plan)))
    if plan.decoded == "keyframes":
        phases.append(_paint_phase(plan))
    return phases


def _chosen_backend(cache: FrameCache) -> str:
    """Describe how the attention backend was chosen. Empty if none was measured."""
    noted: Values = cache["rendered"].attrs
    listed = ", ".join(f"{name} {1000 * seconds:.3g} ms" for name, seconds in noted["attention_seconds"].items())
    return listed and f"attention_backend: {noted['attention_backend']} is the fastest ({listed})"


def _step_phases(plan: RenderPlan, step: int) -> list[Phase]:
    name = f"{STEP} {step + 1}/{plan.steps}"
    phases = [_key_phase(name, StepTask(plan, step))]
    if plan.smoother is not None and plan.is_smoothed(step):
        smoother = ChunkSmoother(*plan.smoother, plan.settings.models.device, plan.settings.compiled)
        phases.append(_key_phase(f"{name}: smooth", SmoothStepTask(plan, step, smoother)))
    return [*phases[:-1], replace(phases[-1], drops=plan.drops(step))]


def _key_phase(name: str, task: RenderTask) -> Phase:
    """A phase over the rendered frames."""
    return Phase(name, len(task.plan.keys), task, cuts=task.plan.key_cuts)


def _paint_phase(plan: RenderPlan) -> Phase:
    from stages.smoothers.images.matching import PATCH

    device = plan.settings.models.device
    mask = MASK if plan.mask else None
    task = PaintTask("frames", "keyframes", plan.keys, "rendered", "unseen", device, PATCH, plan.cuts, mask)
    return Phase("paint frames between keyframes", plan.frames, task, drops=("keyframes",), cuts=plan.cuts)
