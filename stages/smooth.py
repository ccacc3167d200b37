"""A video and a stylised one → the stylised one without flicker. Needs no job: any tool may have stylised it.

What is half done lies in a cache beside the output and goes when the output is there.
"""

from __future__ import annotations

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
from PIL import Image

from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Phase, Plan, Reporter, Run, Stage, fill, told
from stages.base.errors import DiffSynthError, UsageError
from stages.base.fingerprint import identify
from stages.smoothing import CHUNKS, Smoother, bring, build
from stages.smoothing.changes import Changes
from stages.smoothing.keyframes import Interpolator, guessed
from stages.video import (
    Audio,
    Encoding,
    ImageFolder,
    Shot,
    Source,
    check_encoding,
    check_shape,
    describe,
    encode,
    fit,
    open_source,
)
from stages.weights import pick_gpu

SMOOTHER = "PatchBlendSmoother"
CHUNK = 8  # frames that are decoded at once
SPEED_TOLERANCE = 0.005  # by which two frame rates may differ and still be one rate
MISSING_FRAMES, MISSING_SHARE = 2, 0.02  # of the style, that may have no frame of the guide: editors lose some


@dataclass(frozen=True)
class Smoothing:
    """What is to be smoothed. `output`: a video by its suffix, else a folder of %05d.png; `config`: the smoother's.
    `interpolate`: `style` is a folder of keyframes, named by their numbers in the guide, and all others are painted.
    `device`: auto, cpu, cuda, cuda:1.
    """

    guide: Path
    style: Path
    output: Path
    config: dict[str, Any]
    interpolate: bool = False
    device: str = "auto"

    @property
    def makes_video(self) -> bool:
        return bool(self.output.suffix)

    @property
    def cache_path(self) -> Path:
        return self.output.with_name(f"{self.output.name}.cache.zarr")


def smooth(
    smoothing: Smoothing, arguments: str, reporter: Reporter, restart: bool = False, keep_places: bool = False
) -> Changes | None:
    """Writes `smoothing.output`; goes on where an earlier call with the same videos and options was stopped.

    `arguments` are those of the command, for messages. Raises UsageError for videos that do not belong together.
    Returns what smoothing changed, with crops of the places worth looking at if `keep_places`; None for interpolation.
    """
    cache = FrameCache(smoothing.cache_path, arguments)
    if cache.record(STAGE.name).complete:  # an earlier call had written all, and was killed before it cleared up
        shutil.rmtree(cache.path)
    _check_output(smoothing)
    pick_gpu(smoothing.device)  # refuses what is not there
    changes = None if smoothing.interpolate else Changes(keep_places)
    stage = replace(STAGE, deliver=partial(deliver, changes=changes))
    with cache.lock():
        known = cache.recorded(STAGE.name)
        try:
            inputs = _inputs(smoothing, known["keys"] if known else {})
            fill(stage, Run(smoothing, cache, reporter), inputs, resume=not restart and known == inputs)
        except DiffSynthError:
            if cache.recorded(STAGE.name) is None:  # refused: nothing has been begun
                shutil.rmtree(cache.path)
            raise
    shutil.rmtree(cache.path)
    if changes is not None:
        if warning := changes.warning():
            reporter.warn(f"{smoothing.output}: {warning}")
        reporter.end("changes", changes.summary())
    return changes


def _inputs(smoothing: Smoothing, known: dict[str, Any]) -> dict[str, Any]:
    """What the result depends on; `known` is what an earlier call found out about the videos."""
    keys = {
        "guide": identify(smoothing.guide, known.get("guide")),
        "style": identify(smoothing.style, known.get("style")),
        "smoother_config": smoothing.config,
        "interpolate": smoothing.interpolate,
    }
    return {"keys": keys, "after": {}}


def _check_output(smoothing: Smoothing) -> None:
    output = smoothing.output
    if smoothing.makes_video:
        check_encoding(output, "h264")
    elif output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UsageError(f"{output} exists and is not an empty folder", "give a new name, or one that ends in .mp4")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.absolute().parent}")


def plan(run: Run[Smoothing], resume: bool) -> Plan:
    smoothing, cache = run.job, run.cache
    guide, style = open_source(smoothing.guide), open_source(smoothing.style)
    check_shape(guide, style.height, style.width)
    keys = key_numbers(style) if smoothing.interpolate else ()
    if resume:
        count, played = len(cache["smoothed"]), {}
    else:
        times = _times(guide.shots(), guide, run.reporter) if keys else _paired_times(guide, style, run.reporter)
        count, played = len(times), describe(_clock(guide, style), times)
    if keys and keys[-1] >= count:
        raise UsageError(f"{style.path} has a keyframe {keys[-1]}, but {guide.path} only {count} frames, from 0 on")
    size = (style.height, style.width, 3)
    guides = partial(_alone, guide.path) if keys else partial(_paired, guide.path, style.path, 0)
    styles = partial(_alone, style.path) if keys else partial(_paired, guide.path, style.path, 1)
    styled = len(keys) or count
    device = smoothing.device
    task = PaintTask(keys, smoothing.config["patch_size"], device) if keys else SmoothTask(smoothing.config, device)
    return Plan(
        frames=count,
        arrays=[
            ArraySpec("guides", (count, *size), "uint8"),
            ArraySpec("styles", (styled, *size), "uint8"),
            ArraySpec("smoothed", (count, *size), "uint8"),
            *([ArraySpec("guessed", (count,), "float32")] if keys else []),
        ],
        phases=[
            Phase("decode the guide", count, CHUNK, DecodeTask("guides", guides)),
            Phase("decode the style", styled, CHUNK, DecodeTask("styles", styles)),
            Phase("paint" if keys else "smooth", count, CHUNKS[SMOOTHER], task),
        ],
        begin=lambda cache: cache["smoothed"].attrs.update(played),
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


def _times(shots: Iterator[Shot], source: Source, reporter: Reporter) -> np.ndarray:
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


def _paired_times(guide: Source, style: Source, reporter: Reporter) -> np.ndarray:
    """The same for the frames of the style that have one of the guide."""
    shots = style.shots()
    paired = pairs(guide, style, shots)
    clock = (guide, style).index(_clock(guide, style))
    times = _times((pair[clock] for pair in paired), style, reporter)
    missing = sum(1 for _ in shots)
    if guide.damage:
        reporter.warn(f"{guide.path}: {guide.damage[0]}")
    if missing > max(MISSING_FRAMES, MISSING_SHARE * len(times)):
        raise UsageError(
            f"{guide.path} ends where {missing} of the {len(times) + missing} frames of {style.path} are still to come",
            "give the video that the stylised one was made from",
        )
    if missing:
        reporter.warn(f"{guide.path} has no frames for the last {missing} of {style.path}: left out")
    return times


def _clock(guide: Source, style: Source) -> Source:
    """Which of the two says when frames are shown: images carry no times."""
    return guide if isinstance(style, ImageFolder) else style


def pairs(guide: Source, style: Source, shots: Iterator[Shot]) -> Iterator[tuple[Shot, Shot]]:
    """For each of `shots`, the style's, the frame of the guide that was shown then: frame by frame where both run at
    one rate or one of them is a folder of images, else the nearest in time. Ends where the guide does."""
    guides = guide.shots()
    folders = isinstance(guide, ImageFolder) or isinstance(style, ImageFolder)
    if folders or abs(float(guide.fps / style.fps) - 1) < SPEED_TOLERANCE:
        yield from zip(guides, shots, strict=False)
        return
    now, later = next(guides, None), next(guides, None)
    if now is None:
        return
    start, offset = now.time, None
    for shot in shots:
        offset = shot.time if offset is None else offset
        since = shot.time - offset
        while later is not None and abs(later.time - start - since) <= abs(now.time - start - since):
            now, later = later, next(guides, None)
        if later is None and since - (now.time - start) > 1 / guide.fps:
            return
        yield now, shot


def _alone(path: Path) -> Iterator[Shot]:
    return open_source(path).shots()


def _paired(guide: Path, style: Path, which: int) -> Iterator[Shot]:
    sources = open_source(guide), open_source(style)
    return (pair[which] for pair in pairs(*sources, sources[1].shots()))


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
    """Deflickers a chunk."""

    config: dict[str, Any]
    device: str
    made: Smoother | None = field(default=None, init=False)  # for all chunks: it keeps what the next one needs, too

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        if self.made is None:
            self.made = build(SMOOTHER, self.config, cache["guides"], cache["styles"], device=self.device)
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


def deliver(run: Run[Smoothing], fingerprint: str, changes: Changes | None = None) -> None:
    """Writes the output, in one moment: a kill leaves none of it, or all."""
    smoothing, reporter, frames = run.job, run.reporter, run.cache["smoothed"]
    if smoothing.interpolate and (worst := guessed(run.cache["guessed"][:])):
        reporter.warn(f"{worst}; keyframes there would help")
    reporter.begin(smoothing.output.name, len(frames))
    reporter.phase("write")
    results = frames if changes is None else changes.watch(run.cache["styles"], frames, len(frames))
    if smoothing.makes_video:
        played = frames.attrs.asdict()
        constant = played["times"] is None
        encoding = Encoding(
            Fraction(str(played["fps"])) if constant else None,
            np.array(played["times"] or []),
            audio=_audio(smoothing, played),
        )
        encode(smoothing.output, told(results, reporter), encoding)
    else:
        _write_images(smoothing.output, told(results, reporter))
    reporter.end(smoothing.output.name, f"{smoothing.output}: {len(frames)} frames")


def _audio(smoothing: Smoothing, played: dict[str, Any]) -> Audio | None:
    """The sound of the video that says when frames are shown, or if it has none the guide's; both begin together."""
    guide, style = open_source(smoothing.guide), open_source(smoothing.style)
    if played["audio"]:
        return Audio(_clock(guide, style).path, played["start"], played["stop"])
    if not guide.has_audio:
        return None
    start = next(guide.shots()).time
    return Audio(smoothing.guide, start, start + played["stop"] - played["start"])


def _write_images(folder: Path, frames: Iterator[np.ndarray]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(part / f"{index:05d}.png")
    part.replace(folder)


STAGE = Stage("smooth", plan, deliver)
