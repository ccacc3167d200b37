"""A video and a stylised one → the stylised one without flicker. Needs no job: any tool may have stylised it.

What is half done lies in a cache beside the output and goes when the output is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.base.cache import ArraySpec, FrameArray, FrameCache
from stages.base.engine import Phase, Plan, Reporter, Run, Stage, fill
from stages.base.errors import UsageError
from stages.base.fingerprint import identify
from stages.smoothing import CHUNKS, Smoother, build
from stages.video import (
    Audio,
    Encoding,
    ImageFolder,
    Shot,
    Source,
    check_encoding,
    describe,
    encode,
    fit,
    open_source,
)

SMOOTHER = "PatchBlendSmoother"
CHUNK = 8  # frames that are decoded at once
SHAPE_TOLERANCE = 0.03  # by which two aspect ratios may differ and still be one shape
SPEED_TOLERANCE = 0.005  # by which two frame rates may differ and still be one rate
MISSING_FRAMES, MISSING_SHARE = 2, 0.02  # of the style, that may have no frame of the guide: editors lose some


@dataclass(frozen=True)
class Smoothing:
    """What is to be smoothed. `output`: a video by its suffix, else a folder of %05d.png; `config`: the smoother's."""

    guide: Path
    style: Path
    output: Path
    config: dict[str, Any]

    @property
    def makes_video(self) -> bool:
        return bool(self.output.suffix)

    @property
    def cache_path(self) -> Path:
        return self.output.with_name(f"{self.output.name}.cache.zarr")


def smooth(smoothing: Smoothing, arguments: str, reporter: Reporter, restart: bool = False) -> None:
    """Writes `smoothing.output`; goes on where an earlier call with the same videos and options was stopped.

    `arguments` are those of the command, for messages. Raises UsageError for videos that do not belong together.
    """
    _check_output(smoothing)
    cache = FrameCache(smoothing.cache_path, arguments)
    with cache.lock():
        known = cache.recorded(STAGE.name)
        keys = known["keys"] if known else {}
        inputs = {
            "keys": {
                "guide": identify(smoothing.guide, keys.get("guide")),
                "style": identify(smoothing.style, keys.get("style")),
                "smoother_config": smoothing.config,
            },
            "after": {},
        }
        fill(STAGE, Run(smoothing, cache, reporter), inputs, resume=not restart and known == inputs)
    shutil.rmtree(smoothing.cache_path)


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
    if abs(guide.width / guide.height / (style.width / style.height) - 1) > SHAPE_TOLERANCE:
        raise UsageError(
            f"{guide.path} is {guide.width}×{guide.height}, {style.path} is {style.width}×{style.height}: "
            "not the same shape",
            "crop one of them first",
        )
    if resume:
        count, attributes = len(cache["styles"]), {}
    else:
        times = _read_times(guide, style, run.reporter)
        count, attributes = len(times), describe(style, times)
    shape = (count, style.height, style.width, 3)
    return Plan(
        frames=count,
        arrays=[ArraySpec(name, shape, "uint8") for name in ("guides", "styles", "smoothed")],
        phases=[
            Phase("decode", count, CHUNK, DecodeTask(guide.path, style.path)),
            Phase("smooth", count, CHUNKS[SMOOTHER], SmoothTask(smoothing.config)),
        ],
        begin=lambda cache: cache["styles"].attrs.update(attributes),
    )


def _read_times(guide: Source, style: Source, reporter: Reporter) -> np.ndarray:
    """When each frame of the style that has one of the guide is shown. Decodes everything once: only that finds out."""
    reporter.begin(STAGE.name, style.estimate)
    reporter.phase("read through")
    times, shots = [], style.shots()
    for _, shot in pairs(guide, style, shots):
        times.append(shot.time)
        reporter.advance(1)
    missing = sum(1 for _ in shots)
    for source in (guide, style):
        if source.damage:
            reporter.warn(f"{source.path}: {source.damage[0]}")
    if missing > max(MISSING_FRAMES, MISSING_SHARE * len(times)):
        raise UsageError(
            f"{guide.path} ends where {missing} of the {len(times) + missing} frames of {style.path} are still to come",
            "give the video that the stylised one was made from",
        )
    if missing:
        reporter.warn(f"{guide.path} has no frames for the last {missing} of {style.path}: left out")
    return np.array(times)


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


@dataclass
class DecodeTask:
    """Decodes a chunk of both videos, the guide at the style's size. Chunks in order decode each frame once."""

    guide: Path
    style: Path
    _pairs: Iterator[tuple[Shot, Shot]] = field(default=iter(()), init=False, repr=False)
    _next: int = field(default=-1, init=False, repr=False)

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        height, width = cache["styles"].shape[1:3]
        if self._next != start:
            guide, style = open_source(self.guide), open_source(self.style)
            self._pairs = islice(pairs(guide, style, style.shots()), start, None)
        guides, styles = zip(*islice(self._pairs, stop - start), strict=True)
        cache["guides"].write(start, np.stack([fit(shot.image(), height, width) for shot in guides]))
        cache["styles"].write(start, np.stack([shot.image() for shot in styles]))
        self._next = stop


@dataclass
class SmoothTask:
    """Deflickers a chunk."""

    config: dict[str, Any]
    made: Smoother | None = field(default=None, init=False)  # for all chunks: it keeps what the next one needs, too

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        if self.made is None:
            self.made = build(SMOOTHER, self.config, cache["guides"], cache["styles"])
        cache["smoothed"].write(start, self.made.smooth(start, stop))


def deliver(run: Run[Smoothing], fingerprint: str) -> None:
    """Writes the output, in one moment: a kill leaves none of it, or all."""
    smoothing, reporter, frames = run.job, run.reporter, run.cache["smoothed"]
    reporter.begin(smoothing.output.name, len(frames))
    reporter.phase("write")
    if smoothing.makes_video:
        played = run.cache["styles"].attrs.asdict()
        constant = played["times"] is None
        encoding = Encoding(
            Fraction(str(played["fps"])) if constant else None,
            np.array(played["times"] or []),
            audio=_audio(smoothing, played),
        )
        encode(smoothing.output, _told(frames, reporter), encoding)
    else:
        _write_images(smoothing.output, _told(frames, reporter))
    reporter.end(smoothing.output.name, f"{smoothing.output}: {len(frames)} frames")


def _audio(smoothing: Smoothing, played: dict[str, Any]) -> Audio | None:
    """The style's sound, or if it has none the guide's; both begin together."""
    if played["audio"]:
        return Audio(smoothing.style, played["start"], played["stop"])
    guide = open_source(smoothing.guide)
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


def _told(frames: FrameArray, reporter: Reporter) -> Iterator[np.ndarray]:
    for frame in frames:
        yield frame
        reporter.advance(1)


STAGE = Stage("smooth", plan, deliver)
