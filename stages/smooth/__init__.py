"""Remove flicker from a stylised video, made by any tool.

Unfinished work is kept in a cache next to the output, which is removed when the output is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Phase, Plan, Reporter, Run, Stage, fill
from stages.base.errors import DiffSynthError, UsageError
from stages.base.fingerprint import Inputs, fingerprint, identify
from stages.models.weights import pick_gpu
from stages.pairing import GuideShots
from stages.smooth.guidance import Guidance, find_guidance, find_key_offset, frame_times, read_through, report_offset
from stages.smooth.keys import key_numbers, keys_inside
from stages.smooth.output import check_smoothing_output, deliver, finished_from
from stages.smooth.request import NAME, Smoothing
from stages.smoothers import SMOOTHERS
from stages.smoothers.images.changes import Changes
from stages.smoothers.patch_blend import PatchBlend
from stages.tasks import ChunkSmoother, DecodeTask, PaintTask, SmoothTask
from stages.video import Shot, Source, check_shape, default_codec, describe, open_source, padded_size

SMOOTHER = PatchBlend.name
CHUNK = 8  # frames that are decoded at once
PAINT_CHUNK = 1  # frames that are painted at once


def smooth(
    smoothing: Smoothing,
    arguments: str,
    reporter: Reporter,
    restart: bool = False,
    force: bool = False,
    keep_places: bool = False,
) -> Changes | None:
    """Write `smoothing.output`, resuming an earlier call with the same videos and options.

    Nothing is done if the output exists and was made from the same videos and options.

    Args:
        smoothing: What to do.
        arguments: The command's arguments, for messages.
        reporter: Where progress is shown.
        restart: Redo everything, even if the output is complete.
        force: Overwrite an existing output that was made from something else.
        keep_places: Keep crops of the places worth looking at, for a report.

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
    changes = None if smoothing.interpolate else Changes(keep_places)
    stage = replace(STAGE, deliver=partial(deliver, changes=changes))
    with cache.lock():
        begun = cache.recorded(STAGE.name)
        try:
            fill(stage, Run(smoothing, cache, reporter, inputs=inputs), resume=not restart and begun == inputs)
        except DiffSynthError:
            if cache.recorded(STAGE.name) is None:  # failed before anything was started
                shutil.rmtree(cache.path)
            raise
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
    return smoothing, {"keys": keys, "after": {}}


# --- the stage ------------------------------------------------------------------------------------------


def plan(run: Run[Smoothing], resume: bool) -> Plan:
    if run.job.interpolate:
        return _plan_painting(run, resume)
    smoothing, cache = run.job, run.cache
    style = open_source(smoothing.style)
    if smoothing.guide is not None:
        check_shape(open_source(smoothing.guide), style.height, style.width)
    if resume:
        noted: dict[str, Any] = cache["smoothed"].attrs.asdict()
        count, notes, guidance = len(cache["smoothed"]), {}, Guidance(noted["guided"], noted["offset"])
        report_offset(guidance, run)
    else:
        guidance = find_guidance(run)
        times, clock = frame_times(guidance, run)
        _warn_of_padding(smoothing, style, run.reporter)
        count, notes = len(times), {**describe(clock, times), "guided": guidance.guided, "offset": guidance.offset}
    shape = (count, style.height, style.width, 3)
    decode = DecodeTask(str(smoothing.style), partial(_shots, smoothing.style), "styles")
    arrays = [ArraySpec("styles", shape, "uint8"), ArraySpec("smoothed", shape, "uint8")]
    phases = [Phase("decode the style", count, CHUNK, decode)]
    if guidance.guided:
        assert smoothing.guide is not None
        shots = GuideShots(smoothing.guide, smoothing.style, guidance.offset)
        arrays.insert(0, ArraySpec("guides", shape, "uint8"))
        decode = DecodeTask(str(smoothing.guide), shots, "guides")
        phases.insert(0, Phase("decode the guide", count, CHUNK, decode))
    smoother = ChunkSmoother(SMOOTHER, smoothing.config, smoothing.device)
    task = SmoothTask(smoother, "guides" if guidance.guided else "styles", "styles", "smoothed")
    return Plan(
        frames=count,
        arrays=arrays,
        phases=[*phases, Phase("smooth", count, SMOOTHERS[SMOOTHER].chunk, task)],
        begin=lambda cache: cache["smoothed"].attrs.update(notes),
    )


def _plan_painting(run: Run[Smoothing], resume: bool) -> Plan:
    """Plan to paint all frames between keyframes."""
    smoothing, cache = run.job, run.cache
    if smoothing.guide is None:
        raise UsageError("--mode interpolate needs a video and keyframes", "use diffsynth smooth GUIDE STYLE -o OUT")
    guide, style = open_source(smoothing.guide), open_source(smoothing.style)
    check_shape(guide, style.height, style.width)
    numbers = key_numbers(style)
    if resume:
        noted: dict[str, Any] = cache["smoothed"].attrs.asdict()
        count, notes, offset = len(cache["smoothed"]), {}, noted["key_offset"]
    else:
        offset = find_key_offset(run, numbers)
        times = read_through(guide.shots(), guide, run.reporter)
        _warn_of_padding(smoothing, style, run.reporter)
        count, notes = len(times), {**describe(guide, times), "guided": True, "offset": 0.0, "key_offset": offset}
    first, keys = keys_inside(numbers, offset, count, style, guide, run.reporter)
    size = (style.height, style.width, 3)
    decode_guide = DecodeTask(str(guide.path), partial(_shots, guide.path), "guides")
    decode_style = DecodeTask(str(style.path), partial(_shots, style.path, first), "styles")
    paint = PaintTask("guides", "styles", keys, "smoothed", "guessed", smoothing.device, smoothing.config["patch_size"])
    return Plan(
        frames=count,
        arrays=[
            ArraySpec("guides", (count, *size), "uint8"),
            ArraySpec("styles", (len(keys), *size), "uint8"),
            ArraySpec("smoothed", (count, *size), "uint8"),
            ArraySpec("guessed", (count,), "float32"),
        ],
        phases=[
            Phase("decode the guide", count, CHUNK, decode_guide),
            Phase("decode the style", len(keys), CHUNK, decode_style),
            Phase("paint", count, PAINT_CHUNK, paint),
        ],
        begin=lambda cache: cache["smoothed"].attrs.update(notes),
    )


def _warn_of_padding(smoothing: Smoothing, style: Source, reporter: Reporter) -> None:
    if not smoothing.makes_video:
        return
    codec, size = default_codec(smoothing.output), (style.height, style.width)
    if (padded := padded_size(codec, *size)) != size:
        reporter.warn(
            f"{smoothing.output} will be {padded[1]}×{padded[0]} instead of {size[1]}×{size[0]}: {codec} needs even "
            "sizes, so the last row or column is repeated; a folder of images keeps the size"
        )


def _shots(path: Path, first: int = 0) -> Iterator[Shot]:
    return islice(open_source(path).shots(), first, None)


STAGE = Stage(NAME, plan, arrays=("guides", "styles", "smoothed", "guessed"), deliver=deliver)
