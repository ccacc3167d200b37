"""Python API for masks: mask, like the command of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from diffsynth_cli.results import FilePath, SilentReporter
from stages.base.errors import UsageError
from stages.base.outputs import SIGNATURE
from stages.base.reporting import Reporter, with_progress
from stages.base.words import counted

if TYPE_CHECKING:
    from stages.annotators.people import PersonMask
    from stages.base.arrays import Image
    from stages.video import Encoding, Source

LOSSLESS = ".mkv"


def mask(
    video: FilePath,
    output: FilePath,
    *,
    model: str | None = None,
    detector: str | None = None,
    threshold: float = 0.5,
    device: str = "auto",
    force: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Write the masks of the people in a video, white on black.

    Args:
        video: A video, or a folder of images.
        output: A video file, lossless if its suffix is .mkv, or with any other suffix a folder of images.
        model: A SAM 2 model, hub id or local folder; by default that of the annotator `person_mask`.
        detector: A detector of people, likewise.
        threshold: Min. confidence of a person, 0 to 1.
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
    painter = _painter(model, detector, threshold, device)
    with closing(reporter or SilentReporter()) as shown:
        shown.begin(output.name, source.estimate)
        shown.phase("scan")
        times = [shot.time for shot in with_progress(source.shots(), shown)]
        shown.begin(output.name, len(times))
        shown.phase("find people")
        masks = with_progress(_masks(source, painter), shown)
        if is_video:
            _write_video(output, masks, source, times)
        else:
            from stages.video import write_frames

            write_frames(output, masks, f"{SIGNATURE} mask")
        shown.end("written", f"{output}: {counted(len(times), 'mask')}")
    return output


def _painter(model: str | None, detector: str | None, threshold: float, device: str) -> PersonMask:
    """Return what draws the masks. Raise UsageError for wrong options, and DiffSynthError for missing weights."""
    from stages.annotators.people import PersonMaskOptions
    from stages.base.mistakes import checked
    from stages.base.paths import replace_paths

    given = {"name": "person_mask", "model": model, "detector": detector, "threshold": threshold}
    try:
        options = checked(PersonMaskOptions, {name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise UsageError(str(error)) from None
    options = replace_paths(options, lambda place: place.kind.resolve(place.name, Path.cwd()))
    weights = options.weights("model")
    weights.check()
    return options.build(None, weights, device)


def _masks(source: Source, painter: PersonMask) -> Iterator[Image]:
    for shot in source.shots():
        yield painter.maps(shot.image()[None])[0]


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
