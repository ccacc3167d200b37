"""Python API for masks: mask, like the command of the same name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from diffsynth_cli.results import FilePath, SilentReporter
from stages.base.errors import UsageError
from stages.base.json_types import Values
from stages.base.outputs import SIGNATURE
from stages.base.reporting import Reporter, with_progress
from stages.base.words import counted

if TYPE_CHECKING:
    from stages.annotators.people import PersonMask, PersonMaskOptions
    from stages.annotators.tracking import Tracker
    from stages.base.arrays import Image
    from stages.video import Encoding, Source

LOSSLESS = ".mkv"
Paint: TypeAlias = "Callable[[Iterable[Image]], Iterator[Image]]"
"""Returns the mask of each frame."""


def mask(
    video: FilePath,
    output: FilePath,
    *,
    points: Sequence[tuple[float, float]] = (),
    others: Sequence[tuple[float, float]] = (),
    first: int = 0,
    model: str | None = None,
    detector: str | None = None,
    threshold: float | None = None,
    device: str = "auto",
    force: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Write masks, white on black, of the people in a video or of an object that is followed through it.

    Args:
        video: A video, or a folder of images.
        output: A video file, lossless if its suffix is .mkv, or with any other suffix a folder of images.
        points: Points of the object, x and y in pixels. Without points, people are found.
        others: Points that do not belong to it.
        first: The frame that the points are in, counted from 0. Masks of earlier frames are black.
        model: A SAM 2 model, hub id or local folder; by default that of the annotator `person_mask`.
        detector: A detector of people, likewise.
        threshold: Min. confidence of a person, 0 to 1; by default 0.5.
        device: auto, cpu, mps, cuda or cuda:N.
        force: Overwrite existing files, but never an input.
        reporter: Receives progress and warnings.

    Returns:
        The path of what was written.

    Raises:
        UsageError: The video cannot be read, an option is wrong, or files are in the way.
        DiffSynthError: A model cannot be loaded.
    """
    from diffsynth_cli.outputs import check_frames
    from stages.base.outputs import check_output
    from stages.video import is_video_name, open_source

    video, output = Path(video), Path(output)
    source, is_video = open_source(video), is_video_name(output)
    if is_video:
        check_output(output, [video], force=force)
    else:
        check_frames(output, [video], force)
    given = {"model": model, "detector": detector, "threshold": threshold}
    if points:
        paint = _following(source, points, others, first, given, device)
    else:
        paint = _finding(others, first, given, device)
    with closing(reporter or SilentReporter()) as shown:
        shown.begin(output.name, source.estimate)
        shown.phase("scan")
        times = [shot.time for shot in with_progress(source.shots(), shown)]
        shown.begin(output.name, len(times))
        if first >= len(times):
            raise UsageError(f"--first {first}: {video} has {counted(len(times), 'frame')}, counted from 0")
        shown.phase("follow the object" if points else "find people")
        masks = with_progress(paint(shot.image() for shot in source.shots()), shown)
        if is_video:
            _write_video(output, masks, source, times)
        else:
            from stages.video import write_frames

            write_frames(output, masks, f"{SIGNATURE} mask")
        shown.end("written", f"{output}: {counted(len(times), 'mask')}")
    return output


def _finding(others: Sequence[tuple[float, float]], first: int, given: Values, device: str) -> Paint:
    """Return what draws people. Raise UsageError for wrong options, and DiffSynthError for missing weights."""
    if others or first:
        raise UsageError("--exclude and --first are for an object that is followed", "give points of it: --point X,Y")
    options = _options(given)
    weights = options.weights("model")
    weights.check()
    painter: PersonMask = options.build(None, weights, device)
    return lambda frames: (painter.maps(frame[None])[0] for frame in frames)


def _following(
    source: Source,
    points: Sequence[tuple[float, float]],
    others: Sequence[tuple[float, float]],
    first: int,
    given: Values,
    device: str,
) -> Paint:
    """Return what draws the object with these points. Raises what `_finding` raises."""
    from stages.annotators.tracking import Tracker

    if given["detector"] is not None or given["threshold"] is not None:
        raise UsageError("--detector and --threshold are for finding people", "leave them out, or the points")
    for x, y in (*points, *others):
        if not (0 <= x < source.width and 0 <= y < source.height):
            raise UsageError(
                f"the point {x:g},{y:g} is not in the frames of {source.path}",
                f"x is from 0 to {source.width - 1}, y from 0 to {source.height - 1}",
            )
    weights = replace(_options(given).weights("model"), others=())
    weights.check()
    return partial(_followed, Tracker(weights, points, others, device), first)


def _followed(tracker: Tracker, first: int, frames: Iterable[Image]) -> Iterator[Image]:
    """Yield black masks for the frames before the one with the points, and the tracker's masks from there on."""
    following = iter(frames)
    for frame in islice(following, first):
        yield frame * 0
    yield from tracker.masks(following)


def _options(given: Values) -> PersonMaskOptions:
    """Return the options of the annotator. Raise UsageError for wrong ones."""
    from stages.annotators.people import PersonMaskOptions
    from stages.base.mistakes import checked
    from stages.base.paths import replace_paths

    named = {name: value for name, value in given.items() if value is not None}
    try:
        options = checked(PersonMaskOptions, {"name": "person_mask", **named})
    except ValueError as error:
        raise UsageError(str(error)) from None
    return replace_paths(options, lambda place: place.kind.resolve(place.name, Path.cwd()))


def _write_video(path: Path, masks: Iterator[Image], source: Source, times: list[float]) -> None:
    from stages.video import encode

    encode(path, masks, _encoding(path, source, times))


def _encoding(path: Path, source: Source, times: list[float]) -> Encoding:
    """Return how to encode masks that are shown when the frames of the source are."""
    import numpy as np

    from stages.codecs import Codec
    from stages.video import Encoding, default_codec
    from stages.video.sources import describe

    shown = describe(source, np.array(times))
    constant = shown["times"] is None
    since = np.array(times) - times[0]
    codec = Codec.FFV1 if path.suffix.lower() == LOSSLESS else default_codec(path)
    fps = Fraction(str(shown["fps"])) if constant else None
    return Encoding(fps, since if not constant else np.empty(0), codec, comment=f"{SIGNATURE} mask")
