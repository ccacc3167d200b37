"""Remove flicker from a stylised video, made by any tool.

Unfinished work is kept in a cache next to the output, which is removed when the output is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path

from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Phase, Plan, Reporter, Run, Stage, fill
from stages.base.errors import DiffSynthError, UsageError
from stages.base.fingerprint import Inputs, fingerprint, identify
from stages.base.json_types import JsonObject, Values
from stages.base.scenes import scene_without
from stages.masks import check_mask
from stages.models.weights import pick_gpu
from stages.pairing import GuideShots
from stages.scenes import choose_cuts
from stages.smooth.guidance import Guidance, find_guidance, frame_times, recorded_guidance
from stages.smooth.keys import keys_inside
from stages.smooth.output import check_smoothing_output, deliver, finished_from
from stages.smooth.request import NAME, Smoothing
from stages.smoothers.images.changes import Changes
from stages.smoothers.patch_blend import PatchBlend
from stages.tasks import ChunkSmoother, DecodeTask, PaintTask, SmoothTask
from stages.video import Selection, Shot, Source, check_shape, default_codec, describe, open_source, padded_size

SMOOTHER, MASK = PatchBlend.name, "mask"
Work = tuple[str, int, DecodeTask | SmoothTask | PaintTask]
"""The name of a phase, its number of frames, and its task."""


def smooth(
    smoothing: Smoothing,
    arguments: str,
    reporter: Reporter,
    restart: bool = False,
    force: bool = False,
    report: Callable[[FrameCache, Changes], None] | None = None,
) -> Changes | None:
    """Write `smoothing.output`, resuming an earlier call with the same videos and options.

    Nothing is done if the output exists and was made from the same videos and options.

    Args:
        smoothing: What to do.
        arguments: The command's arguments, for messages.
        reporter: Where progress is shown.
        restart: Redo everything, even if the output is complete.
        force: Overwrite an existing output that was made from something else.
        report: Called once the output is written and before its cache is removed, with what smoothing changed and crops
            of the places worth looking at.

    Returns:
        What smoothing changed. None for interpolation, and if there was nothing to do.

    Raises:
        UsageError: The output cannot be written, or the videos do not match.
    """
    cache = FrameCache(smoothing.cache_path, arguments, {STAGE.name: STAGE.arrays})
    finished = finished_from(smoothing)
    check_smoothing_output(smoothing, force or bool(finished))
    pick_gpu(smoothing.device)  # raises if there is no such device
    begun = cache.recorded(STAGE.name)
    smoothing, inputs = _identified(smoothing, begun["keys"] if begun else {})
    if finished and not force:
        if finished != fingerprint(inputs):
            raise UsageError(
                f"{smoothing.output} exists and was made from other videos or with other options",
                "overwrite it with --force, or choose another output",
            )
        if not restart:
            _remove_cache(cache)
            reporter.end(STAGE.name, f"nothing to do: {smoothing.output} is complete (--restart redoes it)")
            return None
    if cache.record(STAGE.name).complete:  # its output no longer exists or is to be redone
        _remove_cache(cache)
    changes = None if smoothing.interpolate else Changes(keep_places=report is not None)
    stage = replace(STAGE, deliver=partial(deliver, changes=changes))
    with cache.lock():
        begun = cache.recorded(STAGE.name)
        try:
            fill(stage, Run(smoothing, cache, reporter, inputs=inputs), resume=not restart and begun == inputs)
        except DiffSynthError:
            if cache.recorded(STAGE.name) is None:  # failed before anything was started
                shutil.rmtree(cache.path)
            raise
        if report is not None and changes is not None:
            report(cache, changes)
    shutil.rmtree(cache.path)
    if changes is not None:
        if warning := changes.warning():
            reporter.warn(f"{smoothing.output}: {warning}")
        reporter.end("changes", changes.summary())
    return changes


def _remove_cache(cache: FrameCache) -> None:
    if cache.path.exists():
        with cache.lock():
            pass  # raises if another process works on it
        shutil.rmtree(cache.path)


def _identified(smoothing: Smoothing, known: dict[str, object]) -> tuple[Smoothing, Inputs]:
    """Return the request without a guide that equals the style, and what the result depends on.

    `known` is what an earlier call recorded. Videos that look unchanged are not read again.
    """
    style = identify(smoothing.style, known.get("style"))
    guide = None
    if smoothing.guide is not None:
        guide = identify(smoothing.guide, style if smoothing.guide == smoothing.style else known.get("guide"))
    if guide is not None and guide["sha256"] == style["sha256"] and not smoothing.interpolate:
        smoothing, guide = replace(smoothing, guide=None), None
    keys: dict[str, object] = {
        "guide": guide,
        "style": style,
        "smoother_config": smoothing.config,
        "interpolate": smoothing.interpolate,
        "offset": smoothing.offset if guide is not None else None,
    }
    if smoothing.scenes is not None:  # outputs of earlier versions, which knew no scenes, remain complete
        keys["scenes"] = smoothing.scenes
    if smoothing.mask is not None:  # nor masks
        keys["mask"] = {**asdict(smoothing.mask), "path": identify(smoothing.mask.path)}
    return smoothing, {"keys": keys, "after": {}}


# --- the stage ------------------------------------------------------------------------------------------


def plan(run: Run[Smoothing], resume: bool) -> Plan:
    """Plan to smooth all frames or, for interpolation, to paint those between keyframes."""
    smoothing, cache = run.job, run.cache
    style = open_source(smoothing.style)
    if smoothing.guide is not None:
        check_shape(open_source(smoothing.guide), style.height, style.width)
    notes: JsonObject = {}
    if resume:
        noted: Values = cache["smoothed"].attrs
        count, guidance = len(cache["smoothed"]), recorded_guidance(run)
        cuts = tuple(noted.get("cuts", ()))
        compiled = smoothing.compiled or bool(noted.get("compiled"))  # it rounds as it did
        run = replace(run, job=replace(smoothing, compiled=compiled))
    else:
        guidance = find_guidance(run)
        times, clock = frame_times(guidance, run)
        _warn_of_padding(smoothing, style, run.reporter)
        count = len(times)
        guides = _guide_shots(smoothing, guidance) or partial(_shots, smoothing.style)
        images = (shot.image() for shot in guides(0))
        cuts = choose_cuts(smoothing.scenes, images, count=count, stage=NAME, reporter=run.reporter)
        chosen: JsonObject = {"compiled": smoothing.compiled, "cuts": [*cuts]}
        notes = {**describe(clock, times), **asdict(guidance), **chosen}
    work = (_painting if smoothing.interpolate else _smoothing)(run, guidance, count, cuts)
    arrays = [ArraySpec(task.target, (frames, style.height, style.width, 3), "uint8") for _, frames, task in work]
    if smoothing.mask is not None:
        check_mask("mask", smoothing.mask.path, Selection(), count)
        work = [("read the mask", count, smoothing.mask.decode(MASK, Selection())), *work]
        arrays.append(ArraySpec(MASK, (count, style.height, style.width), "uint8"))
    shares = [ArraySpec("unseen", (count,), "float32")] if smoothing.interpolate else []
    return Plan(
        frames=count,
        arrays=arrays + shares,
        phases=[
            Phase(name, frames, task, cuts=() if isinstance(task, DecodeTask) else cuts) for name, frames, task in work
        ],
        begin=lambda cache: cache["smoothed"].note(**notes),
    )


def _guide_shots(smoothing: Smoothing, guidance: Guidance) -> Callable[[int], Iterator[Shot]] | None:
    """Return what opens the guide at a frame of the output, one for each of these. None if the style has no guide."""
    if smoothing.guide is None or not guidance.guided:
        return None
    if smoothing.interpolate:
        return partial(_shots, smoothing.guide)
    return GuideShots(smoothing.guide, smoothing.style, guidance.offset)


def _smoothing(run: Run[Smoothing], guidance: Guidance, count: int, cuts: tuple[int, ...]) -> list[Work]:
    smoothing = run.job
    work: list[Work] = []
    if (shots := _guide_shots(smoothing, guidance)) is not None:
        work.append(("decode the guide", count, DecodeTask(str(smoothing.guide), shots, "guides")))
    style = DecodeTask(str(smoothing.style), partial(_shots, smoothing.style), "styles")
    smoother = ChunkSmoother(SMOOTHER, smoothing.config, smoothing.device, smoothing.compiled)
    mask = MASK if smoothing.mask else None
    task = SmoothTask(smoother, "guides" if work else "styles", "styles", "smoothed", cuts, mask)
    return [*work, ("decode the style", count, style), ("smooth", count, task)]


def _painting(run: Run[Smoothing], guidance: Guidance, count: int, cuts: tuple[int, ...]) -> list[Work]:
    smoothing, shots = run.job, _guide_shots(run.job, guidance)
    assert shots is not None
    first, keys = keys_inside(int(guidance.offset), count, smoothing, run.reporter)
    if (start := scene_without(keys, cuts)) is not None:
        raise UsageError(
            f"{smoothing.style}: no keyframe is in the scene that begins at frame {start}",
            "add one, since scenes are not painted from each other",
        )
    guide = DecodeTask(str(smoothing.guide), shots, "guides")
    style = DecodeTask(str(smoothing.style), partial(_shots, smoothing.style, skipped=first), "styles")
    patch_size = smoothing.config["patch_size"]
    mask = MASK if smoothing.mask else None
    task = PaintTask("guides", "styles", keys, "smoothed", "unseen", smoothing.device, patch_size, cuts, mask)
    return [("decode the guide", count, guide), ("decode the style", len(keys), style), ("paint frames", count, task)]


def _warn_of_padding(smoothing: Smoothing, style: Source, reporter: Reporter) -> None:
    if not smoothing.makes_video:
        return
    codec, size = default_codec(smoothing.output), (style.height, style.width)
    if (padded := padded_size(codec, *size)) != size:
        reporter.warn(
            f"{smoothing.output} will be {padded[1]}×{padded[0]} instead of {size[1]}×{size[0]}: {codec} needs even "
            "sizes, so the last row or column is repeated; a folder of images keeps the size"
        )


def _shots(path: Path, first: int, skipped: int = 0) -> Iterator[Shot]:
    return islice(open_source(path).shots(), skipped + first, None)


STAGE = Stage(NAME, plan, arrays=("guides", "styles", MASK, "smoothed", "unseen"), deliver=deliver)
