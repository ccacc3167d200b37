"""Whether the guide matches the style, at which offset, and the time stamps of the output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stages.base.engine import Reporter, Run
from stages.base.errors import UsageError
from stages.pairing import align, pairs, unused_frames
from stages.smooth.keys import key_numbers
from stages.smooth.request import NAME, Smoothing
from stages.video import ImageFolder, Shot, Source, open_source

SURE = 0.8  # correlation of motion from which a found offset overrides the numbers in keyframes' names
LONGER_FRAMES, LONGER_SHARE = 2, 0.02  # of the style; no warning if the guide is longer by less


@dataclass(frozen=True)
class Guidance:
    """What guides the smoother: the guide at an offset in frames, or the style itself."""

    guided: bool
    offset: float = 0.0


def find_guidance(run: Run[Smoothing]) -> Guidance:
    """Find whether the guide matches the style, and at which offset, and report it."""
    smoothing, reporter = run.job, run.reporter
    if smoothing.interpolate:
        return Guidance(True, _find_key_offset(run))
    if smoothing.guide is None:
        return Guidance(False)
    if smoothing.offset is not None:
        guidance = Guidance(True, smoothing.offset)
        report_offset(guidance, run)
        return guidance
    reporter.begin("offset", None)
    reporter.phase("compare outlines")
    found = align(open_source(smoothing.guide), open_source(smoothing.style), reporter.advance)
    guidance = Guidance(found.fits, found.offset)
    found_how = f" (correlation of motion {found.motion:.2f}, without the offset {found.motion_at_zero:.2f})"
    report_offset(guidance, run, found_how)
    return guidance


def recorded_guidance(run: Run[Smoothing]) -> Guidance:
    """Return, and report, what the run that is resumed found."""
    noted = run.cache["smoothed"].attrs
    guidance = Guidance(bool(noted["guided"]), float(str(noted["offset"])))
    if guidance.offset or not run.job.interpolate:
        report_offset(guidance, run)
    return guidance


def report_offset(guidance: Guidance, run: Run[Smoothing], found_how: str = "") -> None:
    """Report the offset. `found_how` is shown only if it is not 0."""
    guide, style, offset = run.job.guide, run.job.style, guidance.offset
    if guide is None:
        return
    if not guidance.guided:
        run.reporter.warn(
            f"{guide} does not seem to match {style}, so {style.name} is smoothed without it; "
            "to use it anyway, give --offset FRAMES"
        )
    elif offset:
        how = "is ahead of" if offset > 0 else "is behind"
        frames = "1 frame" if abs(offset) == 1 else f"{abs(offset):g} frames"
        run.reporter.end("offset", f"{style.name} {how} {guide.name} by {frames}{found_how}")
    else:
        run.reporter.end("offset", f"{style.name} is in step with {guide.name}")


def _find_key_offset(run: Run[Smoothing]) -> int:
    """Find by how many frames the keyframes are ahead of the guide. 0 unless motion clearly contradicts their names."""
    smoothing, reporter = run.job, run.reporter
    if smoothing.guide is None:
        raise UsageError("--mode interpolate needs a video and keyframes", "use diffsynth smooth GUIDE STYLE -o OUT")
    keys = key_numbers(open_source(smoothing.style))
    if smoothing.offset is not None:
        report_offset(Guidance(True, smoothing.offset), run)
        return int(smoothing.offset)
    reporter.begin("offset", None)
    reporter.phase("compare outlines")
    found = align(open_source(smoothing.guide), open_source(smoothing.style), reporter.advance, keys)
    offset = round(found.offset) if found.motion >= SURE else 0
    if offset:
        report_offset(Guidance(True, offset), run, f" (correlation of motion {found.motion:.2f})")
    return offset


def frame_times(guidance: Guidance, run: Run[Smoothing]) -> tuple[np.ndarray, Source]:
    """Return the time of each frame in seconds, and the video whose time stamps these are."""
    smoothing, reporter = run.job, run.reporter
    style = open_source(smoothing.style)
    if smoothing.guide is None or not guidance.guided:
        return read_through(style.shots(), style, reporter), style
    guide = open_source(smoothing.guide)
    if smoothing.interpolate:
        return read_through(guide.shots(), guide, reporter), guide
    of_guide: list[float | None] = []

    def read() -> Iterator[Shot]:
        for partner, shot in pairs(guide, style, guidance.offset):
            of_guide.append(None if partner is None else partner.time)
            yield shot

    times = read_through(read(), style, reporter)
    if guide.damage:
        reporter.warn(f"{guide.path}: {guide.damage[0]}")
    _warn_of_lengths(guide, style, of_guide, unused_frames(guide, style, guidance.offset, len(times)), reporter)
    if isinstance(style, ImageFolder) and not isinstance(guide, ImageFolder) and any(t is not None for t in of_guide):
        return _filled(of_guide, float(1 / guide.fps)), guide  # images carry no times
    return times, style


def read_through(shots: Iterator[Shot], source: Source, reporter: Reporter) -> np.ndarray:
    """Return the time of each frame in seconds. Decodes the whole video, since headers may misstate its length."""
    reporter.begin(NAME, source.estimate)
    reporter.phase("scan")
    times = []
    for shot in shots:
        times.append(shot.time)
        reporter.advance(1)
    if source.damage:
        reporter.warn(f"{source.path}: {source.damage[0]}")
    if not times:
        raise UsageError(f"{source.path} has no frames")
    return np.array(times)


def _warn_of_lengths(guide: Source, style: Source, times: list[float | None], unused: int, reporter: Reporter) -> None:
    """Warn if the guide is shorter or longer than the style. `times` is None for frames that the guide lacks."""
    if missing := sum(time is None for time in times):
        reporter.warn(
            f"{guide.path} has no frames for {missing} of the {len(times)} frames of {style.path}; "
            "these are smoothed without a guide"
        )
    if unused > max(LONGER_FRAMES, LONGER_SHARE * len(times)):
        reporter.warn(f"{guide.path} continues for {unused} frames after the end of {style.path}; these are ignored")


def _filled(times: list[float | None], length: float) -> np.ndarray:
    """Fill in unknown times. Frames before and after the known ones are `length` seconds apart."""
    known = [index for index, time in enumerate(times) if time is not None]
    places = np.arange(len(times))
    filled = np.interp(places, known, [time for time in times if time is not None])
    return filled + length * (np.minimum(places - known[0], 0) + np.maximum(places - known[-1], 0))
