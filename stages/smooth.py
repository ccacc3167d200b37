"""Take the flicker out of a stylised video. Needs no job: any tool may have stylised it.

Unfinished work is kept in a cache beside the output, which is removed when the output is complete.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Phase, Plan, Reporter, Run, Stage, fill, told
from stages.base.errors import DiffSynthError, UsageError
from stages.base.fingerprint import fingerprint, identify
from stages.base.outputs import SIGNATURE, check_inputs_kept, check_output
from stages.base.words import counted
from stages.pairing import GuideShots, align, pairs, unused_frames
from stages.smoothing import CHUNKS, Smoother, bring, build
from stages.smoothing.changes import Changes
from stages.smoothing.keyframes import Interpolator, guessed
from stages.video import (
    Audio,
    Encoding,
    ImageFolder,
    Shot,
    Source,
    check_shape,
    default_codec,
    describe,
    encode,
    fit,
    is_video_name,
    open_source,
    padded_size,
    read_comment,
    save_png,
)
from stages.weights import pick_gpu

SMOOTHER = "PatchBlendSmoother"
CHUNK = 8  # frames that are decoded at once
LONGER_FRAMES, LONGER_SHARE = 2, 0.02  # of the style; a guide that is longer by no more is not worth a word


@dataclass(frozen=True)
class Smoothing:
    """What to smooth.

    `guide`: the video that `style` was made from; None if `style` is to be its own guide.
    `output`: a video, or a folder of %05d.png, by its suffix. `config`: the smoother's options.
    `interpolate`: `style` is a folder of keyframes, named by their numbers in the guide; all other frames are painted.
    `device`: auto, cpu, cuda, cuda:1.
    `offset`: frames by which the style runs ahead of the guide; None to find out.
    """

    guide: Path | None
    style: Path
    output: Path
    config: dict[str, Any]
    interpolate: bool = False
    device: str = "auto"
    offset: float | None = None

    @property
    def makes_video(self) -> bool:
        return is_video_name(self.output)

    @property
    def inputs(self) -> list[Path]:
        return [path for path in (self.guide, self.style) if path is not None]

    @property
    def cache_path(self) -> Path:
        return self.output.with_name(f"{self.output.name}.cache.zarr")


def smooth(
    smoothing: Smoothing,
    arguments: str,
    reporter: Reporter,
    restart: bool = False,
    force: bool = False,
    keep_places: bool = False,
) -> Changes | None:
    """Write `smoothing.output`, resuming an earlier call with the same videos and options.

    If the output is there and was made from the same videos and options, nothing is done.

    Args:
        smoothing: What to do.
        arguments: The command's arguments, for messages.
        reporter: Where progress is shown.
        restart: Redo everything, even if the output is complete.
        force: Overwrite an existing output that was made from something else.
        keep_places: Keep crops of the places worth looking at, for a report.

    Returns:
        What smoothing changed; None for interpolation, and if there was nothing to do.

    Raises:
        UsageError: The output must not be written, or the videos do not belong together.
    """
    cache = FrameCache(smoothing.cache_path, arguments)
    finished = _finished(smoothing)
    _check_output(smoothing, force or bool(finished))
    pick_gpu(smoothing.device)  # raises if there is no such device
    begun = cache.recorded(STAGE.name)
    smoothing, inputs = _identified(smoothing, begun["keys"] if begun else {})
    if finished and not force:
        if finished != fingerprint(inputs):
            raise UsageError(
                f"{smoothing.output} exists and was made from other videos or with other options",
                "--force overwrites it; or choose another output",
            )
        if not restart:
            _remove_cache(cache)
            reporter.end(STAGE.name, f"nothing to do: {smoothing.output} is complete (--restart redoes it)")
            return None
    if cache.record(STAGE.name).complete:  # complete, but its output is gone or not wanted
        _remove_cache(cache)
    changes = None if smoothing.interpolate else Changes(keep_places)
    stage = replace(STAGE, deliver=partial(deliver, changes=changes))
    with cache.lock():
        begun = cache.recorded(STAGE.name)
        try:
            fill(stage, Run(smoothing, cache, reporter), inputs, resume=not restart and begun == inputs)
        except DiffSynthError:
            if cache.recorded(STAGE.name) is None:  # refused before anything was begun
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


def _identified(smoothing: Smoothing, known: dict[str, Any]) -> tuple[Smoothing, dict[str, Any]]:
    """The same without a guide that is a copy of the style, and what the result depends on.

    `known` is what an earlier call found out about the videos, so that they need not be read again.
    """
    style = identify(smoothing.style, known.get("style"))
    guide = None
    if smoothing.guide is not None:
        guide = identify(smoothing.guide, style if smoothing.guide == smoothing.style else known.get("guide"))
    if guide is not None and guide["sha256"] == style["sha256"] and not smoothing.interpolate:
        smoothing, guide = replace(smoothing, guide=None), None
    keys = {
        "guide": guide,
        "style": style,
        "smoother_config": smoothing.config,
        "interpolate": smoothing.interpolate,
        "offset": smoothing.offset if guide is not None else None,
    }
    return smoothing, {"keys": keys, "after": {}}


# --- the output -----------------------------------------------------------------------------------------


def _check_output(smoothing: Smoothing, force: bool) -> None:
    """Raises UsageError if the output must not be written. `force`: an existing one may be replaced."""
    output = smoothing.output
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.absolute().parent}", "create it first")
    cache = smoothing.cache_path
    if os.path.lexists(cache) and not FrameCache(cache).is_cache():
        raise UsageError(f"{cache} is in the way of unfinished work", "move it away, or choose another output")
    if smoothing.makes_video:
        check_output(output, smoothing.inputs, force=force)
        return
    check_inputs_kept(output, smoothing.inputs)
    if os.path.lexists(output) and not output.is_dir():
        raise UsageError(f"{output} is a file", "give the name of a folder, or of a .mp4, .mov, .mkv or .webm file")
    files = sorted(output.iterdir()) if output.is_dir() else []
    if files and not force:
        raise UsageError(f"{output} is not empty", "--force replaces the images in it; or choose another folder")
    if others := [file.name for file in files if not re.fullmatch(r"\d{5,}\.png", file.name)]:
        raise UsageError(
            f"{output} contains {others[0]}, which is not an image of this program's", "choose another folder"
        )


def _finished(smoothing: Smoothing) -> str | None:
    """The fingerprint of what a complete output was made from; None if it is not there or made by something else."""
    output = smoothing.output
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    kind, _, rest = (read_comment(files[0]) if files else "").rpartition(" smooth ")
    made_from, _, count = rest.partition(" ")
    whole = not output.is_dir() or count == str(len(files))
    return made_from if kind == SIGNATURE and whole else None


def _comment(made_from: str, count: int) -> str:
    """What is written into the output's metadata, from where `_finished` reads it."""
    return f"{SIGNATURE} smooth {made_from} {count}"


# --- the stage ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guidance:
    """What leads the smoother: the guide at an offset, or nothing but the style itself."""

    guided: bool
    offset: float = 0.0


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
        _tell_offset(guidance, run)
    else:
        guidance = _find_guidance(run)
        times, clock = _times(guidance, run)
        _tell_size(smoothing, style, run.reporter)
        count, notes = len(times), {**describe(clock, times), "guided": guidance.guided, "offset": guidance.offset}
    shape = (count, style.height, style.width, 3)
    decode_style = Phase("decode the style", count, CHUNK, DecodeTask("styles", partial(_alone, smoothing.style)))
    arrays = [ArraySpec("styles", shape, "uint8"), ArraySpec("smoothed", shape, "uint8")]
    phases = [decode_style]
    if guidance.guided:
        assert smoothing.guide is not None
        shots = GuideShots(smoothing.guide, smoothing.style, guidance.offset)
        arrays.insert(0, ArraySpec("guides", shape, "uint8"))
        phases.insert(0, Phase("decode the guide", count, CHUNK, DecodeTask("guides", shots)))
    task = SmoothTask(smoothing.config, smoothing.device, "guides" if guidance.guided else "styles")
    return Plan(
        frames=count,
        arrays=arrays,
        phases=[*phases, Phase("smooth", count, CHUNKS[SMOOTHER], task)],
        begin=lambda cache: cache["smoothed"].attrs.update(notes),
    )


def _plan_painting(run: Run[Smoothing], resume: bool) -> Plan:
    """The plan of painting all frames between keyframes."""
    smoothing, cache = run.job, run.cache
    if smoothing.guide is None:
        raise UsageError("--mode interpolate needs the video and the keyframes", "diffsynth smooth GUIDE STYLE -o OUT")
    guide, style = open_source(smoothing.guide), open_source(smoothing.style)
    check_shape(guide, style.height, style.width)
    keys = key_numbers(style)
    if resume:
        count, notes = len(cache["smoothed"]), {}
    else:
        times = _read_through(guide.shots(), guide, run.reporter)
        _tell_size(smoothing, style, run.reporter)
        count, notes = len(times), {**describe(guide, times), "guided": True, "offset": 0.0}
    if keys[-1] >= count:
        raise UsageError(f"{style.path} has a keyframe {keys[-1]}, but the last frame of {guide.path} is {count - 1}")
    size = (style.height, style.width, 3)
    return Plan(
        frames=count,
        arrays=[
            ArraySpec("guides", (count, *size), "uint8"),
            ArraySpec("styles", (len(keys), *size), "uint8"),
            ArraySpec("smoothed", (count, *size), "uint8"),
            ArraySpec("guessed", (count,), "float32"),
        ],
        phases=[
            Phase("decode the guide", count, CHUNK, DecodeTask("guides", partial(_alone, guide.path))),
            Phase("decode the style", len(keys), CHUNK, DecodeTask("styles", partial(_alone, style.path))),
            Phase("paint", count, CHUNKS[SMOOTHER], PaintTask(keys, smoothing.config["patch_size"], smoothing.device)),
        ],
        begin=lambda cache: cache["smoothed"].attrs.update(notes),
    )


def _find_guidance(run: Run[Smoothing]) -> Guidance:
    """Whether the guide belongs to the style, and at which offset. Tells the user what was found."""
    smoothing, reporter = run.job, run.reporter
    if smoothing.guide is None:
        return Guidance(False)
    if smoothing.offset is not None:
        guidance = Guidance(True, smoothing.offset)
        _tell_offset(guidance, run)
        return guidance
    reporter.begin("offset", None)
    reporter.phase("compare outlines")
    found = align(open_source(smoothing.guide), open_source(smoothing.style), reporter.advance)
    guidance = Guidance(found.fits, found.offset)
    found_how = f" (correlation of motion {found.motion:.2f}, without the offset {found.motion_at_zero:.2f})"
    _tell_offset(guidance, run, found_how)
    return guidance


def _tell_offset(guidance: Guidance, run: Run[Smoothing], found_how: str = "") -> None:
    """Say which offset is used; `found_how` is only shown if there is one."""
    guide, style, offset = run.job.guide, run.job.style, guidance.offset
    if guide is None:
        return
    if not guidance.guided:
        run.reporter.warn(
            f"{guide} does not seem to belong to {style}, so {style.name} is smoothed by itself; "
            "to use the guide anyway, give --offset FRAMES"
        )
    elif offset:
        how = "is ahead of" if offset > 0 else "is behind"
        frames = "1 frame" if abs(offset) == 1 else f"{abs(offset):g} frames"
        run.reporter.end("offset", f"{style.name} {how} {guide.name} by {frames}{found_how}")
    else:
        run.reporter.end("offset", f"{style.name} is in step with {guide.name}")


def _tell_size(smoothing: Smoothing, style: Source, reporter: Reporter) -> None:
    if not smoothing.makes_video:
        return
    codec, size = default_codec(smoothing.output), (style.height, style.width)
    if (padded := padded_size(codec, *size)) != size:
        reporter.warn(
            f"{smoothing.output} will be {padded[1]}×{padded[0]} instead of {size[1]}×{size[0]}: {codec} needs even "
            "sizes, so the last row or column is repeated; a folder of images keeps the size"
        )


def key_numbers(style: Source) -> tuple[int, ...]:
    """The numbers of keyframes, by the names of the images: the last number in each (00012.png, frame-12.png)."""
    if not isinstance(style, ImageFolder):
        raise UsageError(f"{style.path} is not a folder of images", "--mode interpolate needs one")
    numbers = [re.findall(r"\d+", file.stem) for file in style.files]
    if unnamed := [file.name for file, found in zip(style.files, numbers, strict=True) if not found]:
        raise UsageError(f"{style.path}: {unnamed[0]} has no frame number in its name", "such as 00012.png")
    keys = tuple(int(found[-1]) for found in numbers)
    if list(keys) != sorted(set(keys)):
        raise UsageError(f"{style.path}: frame numbers do not ascend: {', '.join(map(str, keys[:12]))}")
    return keys


def _times(guidance: Guidance, run: Run[Smoothing]) -> tuple[np.ndarray, Source]:
    """When each frame of the style is shown, and by which video's clock, in seconds since the beginning of its file."""
    smoothing, reporter = run.job, run.reporter
    style = open_source(smoothing.style)
    if smoothing.guide is None or not guidance.guided:
        return _read_through(style.shots(), style, reporter), style
    guide = open_source(smoothing.guide)
    of_guide: list[float | None] = []

    def read() -> Iterator[Shot]:
        for partner, shot in pairs(guide, style, guidance.offset):
            of_guide.append(None if partner is None else partner.time)
            yield shot

    times = _read_through(read(), style, reporter)
    if guide.damage:
        reporter.warn(f"{guide.path}: {guide.damage[0]}")
    _tell_lengths(guide, style, of_guide, unused_frames(guide, style, guidance.offset, len(times)), reporter)
    if isinstance(style, ImageFolder) and not isinstance(guide, ImageFolder) and any(t is not None for t in of_guide):
        return _filled(of_guide, float(1 / guide.fps)), guide  # images carry no times
    return times, style


def _read_through(shots: Iterator[Shot], source: Source, reporter: Reporter) -> np.ndarray:
    """When each frame is shown. Decodes everything once: only that finds out how many frames there really are."""
    reporter.begin(STAGE.name, source.estimate)
    reporter.phase("read through")
    times = []
    for shot in shots:
        times.append(shot.time)
        reporter.advance(1)
    if source.damage:
        reporter.warn(f"{source.path}: {source.damage[0]}")
    if not times:
        raise UsageError(f"{source.path} has no frames")
    return np.array(times)


def _tell_lengths(guide: Source, style: Source, times: list[float | None], unused: int, reporter: Reporter) -> None:
    """Warn if the guide is shorter or longer than the style. `times`: None for frames without a frame of the guide."""
    if missing := sum(time is None for time in times):
        reporter.warn(
            f"{guide.path} has no frames for {missing} of the {len(times)} frames of {style.path}; "
            "for these the style is its own guide"
        )
    if unused > max(LONGER_FRAMES, LONGER_SHARE * len(times)):
        reporter.warn(f"{guide.path} goes on for {unused} frames after the end of {style.path}; these are not used")


def _filled(times: list[float | None], length: float) -> np.ndarray:
    """Times of all frames, those before and after the known ones at distances of `length`, in seconds."""
    known = [index for index, time in enumerate(times) if time is not None]
    places = np.arange(len(times))
    filled = np.interp(places, known, [time for time in times if time is not None])
    return filled + length * (np.minimum(places - known[0], 0) + np.maximum(places - known[-1], 0))


def _alone(path: Path) -> Iterator[Shot]:
    return open_source(path).shots()


@dataclass
class DecodeTask:
    """Decodes a chunk into an array, at that array's size. Chunks in order decode each frame once."""

    array: str
    shots: Callable[[], Iterator[Shot]]
    _left: Iterator[Shot] = field(default=iter(()), init=False, repr=False)
    _next: int = field(default=-1, init=False, repr=False)

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        array = cache[self.array]
        if self._next != start:
            self._left = islice(self.shots(), start, None)
        height, width = array.shape[1:3]
        array.write(start, np.stack([fit(shot.image(), height, width) for shot in islice(self._left, stop - start)]))
        self._next = stop


@dataclass
class SmoothTask:
    """Deflickers a chunk. `guides` is the name of the array that leads; it may be that of the styles."""

    config: dict[str, Any]
    device: str
    guides: str
    made: Smoother | None = field(default=None, init=False)  # for all chunks: it keeps what the next one needs, too

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        if self.made is None:
            styles = cache["styles"]
            guides = styles if self.guides == "styles" else cache[self.guides]
            self.made = build(SMOOTHER, self.config, guides, styles, device=self.device)
        cache["smoothed"].write(start, self.made.smooth(start, stop))


@dataclass
class PaintTask:
    """Paints a chunk from keyframes."""

    keys: tuple[int, ...]
    patch_size: int
    device: str

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        guides, styles = (bring(cache[name], self.device) for name in ("guides", "styles"))
        painter = Interpolator(guides, styles, self.keys, self.patch_size)
        frames, unseen = zip(*(painter.paint(index) for index in range(start, stop)), strict=True)
        cache["smoothed"].write(start, np.stack(frames))
        cache["guessed"].write(start, np.array(unseen, np.float32))


def deliver(run: Run[Smoothing], made_from: str, changes: Changes | None = None) -> None:
    """Write the output atomically: a kill leaves none of it, or all. `changes` are measured on the way."""
    smoothing, reporter, frames = run.job, run.reporter, run.cache["smoothed"]
    if smoothing.interpolate and (worst := guessed(run.cache["guessed"][:])):
        reporter.warn(f"{worst}; keyframes there would help")
    reporter.begin(smoothing.output.name, len(frames))
    reporter.phase("write")
    results = frames if changes is None else changes.watch(run.cache["styles"], frames, len(frames))
    comment = _comment(made_from, len(frames))
    if smoothing.makes_video:
        encode(smoothing.output, told(results, reporter), _encoding(smoothing, frames.attrs.asdict(), comment))
    else:
        _write_images(smoothing.output, told(results, reporter), comment)
    reporter.end("written", f"{smoothing.output}: {counted(len(frames), 'frame')}")


def _encoding(smoothing: Smoothing, played: dict[str, Any], comment: str) -> Encoding:
    """How the output is played, by what `plan` noted."""
    constant = played["times"] is None
    return Encoding(
        Fraction(str(played["fps"])) if constant else None,
        np.array(played["times"] or []),
        codec=default_codec(smoothing.output),
        audio=_audio(smoothing, played),
        comment=comment,
    )


def _audio(smoothing: Smoothing, played: dict[str, Any]) -> Audio | None:
    """The sound of the style, or if it has none the guide's at the offset."""
    style = open_source(smoothing.style)
    if style.has_audio:
        return Audio(style.path, played["start"], played["stop"])
    if smoothing.guide is None or not played["guided"] or not (guide := open_source(smoothing.guide)).has_audio:
        return None
    if smoothing.interpolate or isinstance(style, ImageFolder):  # the guide's clock says when frames are shown
        return Audio(guide.path, played["start"], played["stop"])
    start = next(guide.shots()).time + played["offset"] / float(style.fps)
    return Audio(guide.path, start, start + played["stop"] - played["start"])


def _write_images(folder: Path, frames: Iterator[np.ndarray], comment: str) -> None:
    """Write %05d.png files into a new folder, then put it in the place of `folder`."""
    part, old = (folder.with_name(f".{folder.name}.{name}") for name in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for index, frame in enumerate(frames):
        save_png(part / f"{index:05d}.png", frame, comment)
    shutil.rmtree(old, ignore_errors=True)
    if folder.is_dir():  # full folders cannot be replaced in one step
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


STAGE = Stage("smooth", plan, deliver)
