"""Render the frames with Stable Diffusion and ControlNet, guided by the control maps.

A step is one phase over all frames, from its array of latents to the next step's, so that every frame sees its
neighbours at the same timestep. A smoothed step is two phases: predict clean frames, then deflicker them and continue
from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from stages.base.cache import FrameCache
from stages.base.engine import Ahead, Footage, Options, Phase, Plan, Reporter, Run, Stage
from stages.base.errors import DiffSynthError, UsageError
from stages.base.json_types import Values
from stages.base.scenes import scene_without, split
from stages.diffusion.attention_backends import check_backend
from stages.diffusion.layout import check_model, guidance_is_input
from stages.diffusion.sampler import SAMPLERS
from stages.diffusion.settings import ModelNames, Settings
from stages.jobs.job import Job
from stages.jobs.maps import recorded_maps
from stages.jobs.models import networks, tensor_files
from stages.masks import Mask, check_mask
from stages.models.weights import check_device, check_tensor_file
from stages.render.noise import ENDS, ORIGINS, FollowMotionTask, LinkChunksTask
from stages.render.plan import MASK, REGION_MASKS, SOURCE_LATENTS, RenderPlan
from stages.render.schedule import Timing, schedule_of, unreached_warning
from stages.render.tasks import (
    ChooseBackendTask,
    DecodeLatentsTask,
    EncodeFramesTask,
    EncodeReferencesTask,
    LoadTask,
    MeasureTask,
    NoiseFramesTask,
    RenderTask,
    SmoothStepTask,
    StepTask,
)
from stages.scenes import recorded_cuts
from stages.selection import selection_of
from stages.smoothers import build, frames_on_device
from stages.tasks import ChunkSmoother, PaintTask, Picked

STEP = "step"  # how the names of phases of denoising steps begin


def running_nets(job: Job) -> list[int]:
    """The indexes of the ControlNets that are run."""
    return [index for index, runs in enumerate(job.networks_run) if runs]


def rendered_frames(run: Run[Job], count: int, cuts: Sequence[int]) -> tuple[int, ...]:
    """The numbers of the frames that are rendered, ascending, at least one of each scene. `count` are in the video."""
    job, scenes = run.job, split(count, cuts)
    if job.keyframes == "auto":
        run.reporter.begin("render", count)
        run.reporter.phase("choose keyframes")
        return run.engine.call(partial(_choose_keyframes, run.cache, scenes, job.device, run.reporter))
    if isinstance(job.keyframes, list):
        check_keyframes(job.keyframes, count, cuts)
        return tuple(sorted(set(job.keyframes)))
    return tuple(key for scene in scenes for key in (*scene[: -1 : job.keyframes], scene[-1]))


def _choose_keyframes(cache: FrameCache, scenes: Sequence[range], device: str, reporter: Reporter) -> tuple[int, ...]:
    from stages.smoothers.images.keyframes import choose

    guides = cache["frames"]
    chosen = [choose(frames_on_device(Picked(guides, scene), device), reporter.advance) for scene in scenes]
    return tuple(scene[key] for scene, keys in zip(scenes, chosen, strict=True) for key in keys)


def check_keyframes(listed: Sequence[int], count: float, cuts: Sequence[int]) -> None:
    """Raise UsageError if `listed` exceeds the indexes of `count` frames, or contains no frame of a scene."""
    if not listed or max(listed) >= count:
        raise UsageError(f"keyframes: the frames are numbered 0 to {int(count) - 1}", "list numbers in this range")
    if (start := scene_without(listed, cuts)) is not None:
        raise UsageError(
            f"keyframes: none is in the scene that begins at frame {start}",
            "list at least one frame of every scene, since scenes are not painted from each other",
        )


def check(run: Run[Job], footage: Footage) -> Ahead:
    job = run.job
    if isinstance(job.keyframes, list):
        check_keyframes(job.keyframes, footage.most, job.scenes if isinstance(job.scenes, list) else ())
    run.engine.call(partial(check_device, job.device))
    run.engine.call(partial(check_backend, job.attention_backend, job.device))
    for key, name, parts in networks(job):
        check_model(key, name, parts, job.allow_pickle)
    for key, path in tensor_files(job):
        check_tensor_file(key, Path(path))
    masks = {"mask": job.mask} if job.mask else {}
    masks |= {f"regions[{index}].mask": region.mask for index, region in enumerate(job.regions)}
    for key, mask in masks.items():
        check_mask(key, mask, selection_of(job), footage.least)
    if job.smoother is not None:
        build(job.smoother, job.smoother_config, [], [])
    count = footage.count or 0
    rendering = make_plan(
        job,
        run.options,
        (count, footage.height, footage.width),
        keys=_expected_keys(job, count),
        maps=(),
        multistep=SAMPLERS[job.scheduler].multistep,
    )
    return Ahead(rendering.most_at_once(), _phases(rendering))


def _expected_keys(job: Job, count: int) -> tuple[int, ...]:
    """The numbers of the frames that are rendered; all that may be, if they have yet to be chosen."""
    if isinstance(job.keyframes, list):
        return tuple(sorted(set(job.keyframes)))
    return tuple(range(0, count, 1 if job.keyframes == "auto" else job.keyframes))


def plan(run: Run[Job], resume: bool) -> Plan:
    job, cache = run.job, run.cache
    begun: Values = cache["rendered"].attrs if resume else {}
    if resume and "latents_other" in cache:
        raise _older(cache)
    run.reporter.begin("render", None)
    _warn_of_guidance(job, run.reporter)
    (count, height, width, _), cuts = cache["frames"].shape, recorded_cuts(job, cache)
    rendering = make_plan(
        job,
        _resumed(run.options, begun),
        (count, height, width),
        keys=tuple(begun["keys"]) if resume else rendered_frames(run, count, cuts),
        cuts=cuts,
        maps=tuple(recorded_maps(cache)),
        multistep=SAMPLERS[job.scheduler].multistep,
        timing=Timing.of(cache, job.frame_interval),
    )
    if warning := unreached_warning(job.prompt, rendering.schedule, count):
        run.reporter.warn(warning)
    phases = _phases(rendering)
    if resume and not _steps_begun(cache) <= {phase.name for phase in phases}:
        raise _older(cache)
    noted: Values = {
        "keys": list(rendering.keys),
        "compiled": rendering.settings.compiled,
        "attention_backend": rendering.backend,
    }
    if rendering.batch_size is not None:
        noted["batch_size"] = rendering.batch_size
    run.reporter.phase("load models")
    return Plan(
        frames=count,
        arrays=rendering.arrays(),
        phases=phases,
        begin=lambda cache: cache["rendered"].note(**noted),
        rereads=(*rendering.control_maps, *(["frames"] if rendering.smoother else [])),
        trial=LoadTask(rendering),
    )


def make_plan(
    job: Job,
    options: Options,
    shape: tuple[int, int, int],
    *,
    keys: tuple[int, ...],
    cuts: tuple[int, ...] = (),
    maps: tuple[tuple[str, str], ...],
    multistep: bool,
    timing: Timing | None = None,
) -> RenderPlan:
    """What rendering the frames `keys` of a video of this shape (count, height, width), cut at `cuts`, takes."""
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
        steps=int(job.num_inference_steps * job.img2img_strength),
        multistep=multistep,
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


def _steps_begun(cache: FrameCache) -> set[str]:
    """The phases of steps that have finished chunks."""
    return {phase for phase, _ in cache.record("render").done if phase.startswith(STEP)}


def _older(cache: FrameCache) -> DiffSynthError:
    return DiffSynthError(
        f"{cache.store}: this render was started by an earlier version, which stored its steps differently",
        f"{cache.command('render')} --restart redoes it",
    )


def _warn_of_guidance(job: Job, reporter: Reporter) -> None:
    most = SAMPLERS[job.scheduler].most_guidance
    if most is None or job.guidance_scale <= most or guidance_is_input(job.model_id, job.allow_pickle):
        return
    reporter.warn(
        f"guidance_scale {job.guidance_scale:g} is too high for {job.scheduler}; "
        f"use 1 to {most:g} to avoid oversaturated colours"
    )


def _resumed(options: Options, begun: Values) -> Options:
    """The options that a render is resumed with, since other ones would round differently."""
    return replace(
        options,
        batch_size=options.batch_size or begun.get("batch_size"),
        compiled=options.compiled or begun.get("compiled", False),
        backend=begun.get("attention_backend", "sdpa") if begun and options.backend == "auto" else options.backend,
    )


def _phases(plan: RenderPlan) -> list[Phase]:
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


def deliver(run: Run[Job], fingerprint: str) -> None:
    """Warn of frames whose content no keyframe shows."""
    if "unseen" not in run.cache:
        return
    from stages.smoothers.images.keyframes import unseen_warning

    if worst := unseen_warning(run.cache["unseen"][:].tolist()):
        run.reporter.warn(f'{worst}; "keyframes": "auto", or a list with these, renders them')


def needs(job: Job) -> tuple[str, ...]:
    """The arrays of maps and references and, if something else looks at them, the frames."""
    looks = job.smoother is not None or job.mask is not None or job.noise == "warped"
    reads_frames = looks or job.keyframes != 1 or job.img2img_strength < 1
    return ("control/*", "control_reference/*", "references", *(["frames"] if reads_frames else []))


STAGE = Stage(
    name="render",
    reads=(
        "model_id",
        "controlnet_model_id",
        "controlnet_scale",
        "controlnet_start",
        "controlnet_end",
        "guess_mode",
        "loras",
        "embeddings",
        "vae",
        "vae_tiling",
        "dtype",
        "smoother",
        "smoother_config",
        "ignore_smoother_steps",
        "smoother_interval",
        "prompt",
        "negative_prompt",
        "prompt_weighting",
        "clip_skip",
        "num_inference_steps",
        "scheduler",
        "guidance_scale",
        "guidance_start",
        "guidance_end",
        "seed_of_noise",
        "noise",
        "img2img_strength",
        "mask",
        "mask_grow",
        "mask_feather",
        "mask_invert",
        "regions",
        "combine_pattern",
        "keyframes",
        "attention",
        "keep_steps",
    ),
    after=("extract", "control"),
    arrays=(
        "step_latents/*",
        "step_clean/*",
        "step_predicted/*",
        "latents",
        "reference_latents",
        MASK,
        f"{REGION_MASKS}/*",
        SOURCE_LATENTS,
        ORIGINS,
        ENDS,
        "keyframes",
        "rendered",
        "unseen",
        # Left by earlier versions; removed when the stage is redone.
        "latents_other",
        "latents_steps",
        "clean",
        "clean_other",
        "predicted",
    ),
    needs=needs,
    plan=plan,
    deliver=deliver,
    check=check,
    shown=lambda cache: {"rendered": "rendered"},
)
