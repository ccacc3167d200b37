"""The output of `diffsynth smooth`: checks before it is written, and writing it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from stages.base.cache import FrameCache
from stages.base.engine import Run, with_progress
from stages.base.errors import UsageError
from stages.base.json_types import Values
from stages.base.outputs import SIGNATURE, check_inputs_kept, check_output
from stages.base.words import counted
from stages.smooth.request import Smoothing
from stages.smoothers.images.changes import Changes
from stages.smoothers.images.keyframes import unseen_warning
from stages.tasks import masked
from stages.video import (
    Audio,
    Encoding,
    ImageFolder,
    default_codec,
    encode,
    open_source,
    read_comment,
    save_png,
)
from stages.video.video_file import count_packets


def check_smoothing_output(smoothing: Smoothing, force: bool) -> None:
    """Raise UsageError if the output cannot be written. With `force`, an existing one may be replaced."""
    output = smoothing.output
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: the folder {output.absolute().parent} does not exist", "create it first")
    cache = smoothing.cache_path
    if os.path.lexists(cache) and not FrameCache(cache).is_cache():
        raise UsageError(f"{cache} exists, but is needed for unfinished work", "move it away, or choose another output")
    if smoothing.makes_video:
        check_output(output, smoothing.inputs, force=force)
        return
    check_inputs_kept(output, smoothing.inputs)
    if os.path.lexists(output) and not output.is_dir():
        raise UsageError(f"{output} is a file", "give the name of a folder, or of a .mp4, .mov, .mkv or .webm file")
    files = sorted(output.iterdir()) if output.is_dir() else []
    if files and not force:
        raise UsageError(f"{output} is not empty", "replace its images with --force, or choose another folder")
    if others := [file.name for file in files if not re.fullmatch(r"\d{5,}\.png", file.name)]:
        raise UsageError(f"{output} contains {others[0]}, which this program did not write", "choose another folder")


def finished_from(smoothing: Smoothing) -> str | None:
    """Return the fingerprint of what a complete output was made from. None if it is missing, incomplete or not ours."""
    output = smoothing.output
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    kind, _, rest = (read_comment(files[0]) if files else "").rpartition(" smooth ")
    made_from, _, count = rest.partition(" ")
    if kind != SIGNATURE:
        return None
    return made_from if count == str(len(files) if output.is_dir() else count_packets(output)) else None


def _comment(made_from: str, count: int) -> str:
    """Format the comment in the output's metadata that `finished_from` reads."""
    return f"{SIGNATURE} smooth {made_from} {count}"


def deliver(run: Run[Smoothing], made_from: str, changes: Changes | None = None) -> None:
    """Write the output atomically, and measure `changes` on the way."""
    smoothing, reporter, frames = run.job, run.reporter, run.cache["smoothed"]
    if smoothing.interpolate and (worst := unseen_warning(run.cache["unseen"][:].tolist())):
        reporter.warn(f"{worst}; keyframes there would help")
    reporter.begin(smoothing.output.name, len(frames))
    reporter.phase("write")
    results = frames if changes is None else changes.watch(_shown_styles(run.cache), frames, len(frames))
    comment = _comment(made_from, len(frames))
    if smoothing.makes_video:
        encode(smoothing.output, with_progress(results, reporter), _encoding(smoothing, frames.attrs, comment))
    else:
        _write_images(smoothing.output, with_progress(results, reporter), comment)
    reporter.end("written", f"{smoothing.output}: {counted(len(frames), 'frame')}")


def _shown_styles(cache: FrameCache) -> Iterator[np.ndarray]:
    """Yield the stylised frames as far as the mask shows them, over the guide."""
    guides = "guides" if "guides" in cache else "styles"
    mask = "mask" if "mask" in cache else None
    for index in range(len(cache["styles"])):
        yield masked(cache, cache["styles"].read([index]), guides, mask, [index])[0]


def _encoding(smoothing: Smoothing, played: Values, comment: str) -> Encoding:
    """Return how to encode the output, from what `plan` recorded."""
    constant = played["times"] is None
    return Encoding(
        Fraction(str(played["fps"])) if constant else None,
        np.array(played["times"] or []),
        codec=default_codec(smoothing.output),
        audio=_audio(smoothing, played),
        comment=comment,
    )


def _audio(smoothing: Smoothing, played: Values) -> Audio | None:
    """Return the audio of the style or, if it has none, of the guide at the offset."""
    style = open_source(smoothing.style)
    if style.has_audio:
        return Audio(style.path, played["start"], played["stop"])
    if smoothing.guide is None or not played["guided"] or not (guide := open_source(smoothing.guide)).has_audio:
        return None
    if smoothing.interpolate or isinstance(style, ImageFolder):  # time stamps are the guide's
        return Audio(guide.path, played["start"], played["stop"])
    start = next(guide.shots()).time + played["offset"] / float(style.fps)
    return Audio(guide.path, start, start + played["stop"] - played["start"])


def _write_images(folder: Path, frames: Iterator[np.ndarray], comment: str) -> None:
    """Write %05d.png files into a new folder, then replace `folder` with it."""
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
