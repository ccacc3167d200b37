"""Render the frames with Stable Diffusion and ControlNet, guided by the control maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from stages.base.cache import FrameCache
from stages.base.engine import Ahead, Footage, Plan, Reporter, Run, Stage
from stages.base.errors import DiffSynthError, UsageError
from stages.base.json_types import Values
from stages.base.scenes import scene_without, split
from stages.diffusion.layout import guidance_is_input
from stages.diffusion.sampler import SAMPLERS
from stages.jobs.job import Job
from stages.jobs.maps import recorded_maps
from stages.rendering.plan import ARRAYS
from stages.rendering.schedule import Timing, unreached_warning
from stages.rendering.work import (
    STEP,
    check_masks,
    check_rendering,
    expected_keys,
    make_plan,
    phases_of,
    resumed,
    stage_plan,
)
from stages.scenes import recorded_cuts
from stages.smoothers import build, frames_on_device
from stages.tasks import Picked


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
    check_rendering(run)
    check_masks(job, footage)
    if job.smoother is not None:
        build(job.smoother, job.smoother_config, [], [])
    count = footage.count or 0
    rendering = make_plan(
        job,
        run.options,
        (count, footage.height, footage.width),
        keys=expected_keys(job, count),
        maps=(),
    )
    return Ahead(rendering.most_at_once(), phases_of(rendering))


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
        resumed(run.options, begun),
        (count, height, width),
        keys=tuple(begun["keys"]) if resume else rendered_frames(run, count, cuts),
        cuts=cuts,
        maps=tuple(recorded_maps(cache)),
        timing=Timing.of(cache, job.frame_interval),
    )
    if warning := unreached_warning(job.prompt, rendering.schedule, count):
        run.reporter.warn(warning)
    if resume and not _steps_begun(cache) <= {phase.name for phase in phases_of(rendering)}:
        raise _older(cache)
    run.reporter.phase("load models")
    return stage_plan(rendering)


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
    # The last ones were left by earlier versions. They are removed when the stage is redone.
    arrays=(*ARRAYS, "latents_other", "latents_steps", "clean", "clean_other", "predicted"),
    needs=needs,
    plan=plan,
    deliver=deliver,
    check=check,
    shown=lambda cache: {"rendered": "rendered"},
)
