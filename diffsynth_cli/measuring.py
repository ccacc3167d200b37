"""Measure stylised videos for `diffsynth metrics`, and plot the measures over time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from diffsynth_cli.results import MetricsResult, VideoMetrics
from stages.base.arrays import Image
from stages.base.errors import UsageError
from stages.base.outputs import check_output
from stages.base.reporting import Reporter
from stages.smoothers.images.comparison import STRUCTURE_LOST, lost_structure
from stages.smoothers.images.metrics import Curves, measure
from stages.smoothers.images.synthesis import check_writable
from stages.video import Source, check_shape, fit, open_source

MEANINGS = {
    "warp1": "difference between neighbouring frames along the guide's motion, ×1000; lower is smoother",
    "warp5": "the same, five frames apart",
    "flicker": "flicker of brightness, in levels; lower is steadier",
    "sharpness": "variance of the Laplacian: detail, and grain or sharpening if there is any",
    "sharp": "detail, as a share of the style's",
    "invented": "detail that the style's frame does not have within 3 px, in levels; 0 is best",
    "structure": f"structure kept in the worst places, mean/worst frame; 1 is all, below {STRUCTURE_LOST} is damage",
    "own_warp": "warp1 along the style's own motion, style→video; a wrong guide cannot lower it",
    "sharp_reference": "detail, as a share of the reference's",
    "psnr": "similarity to the reference, dB",
    "ssim": "similarity to the reference, 0 to 1",
}
CELLS: dict[str, Callable[[Mapping[str, float]], str]] = {  # columns with two numbers
    "structure": lambda found: f"{found['structure']:.2f}/{found['structure_min']:.2f}",
    "own_warp": lambda found: "→".join(
        f"{found[name]:.2f}" for name in ("own_warp_style", "own_warp") if name in found
    ),
}


def compare(
    guide: Path,
    videos: Sequence[Path],
    style: Path | None,
    reference: Path | None,
    plot: Path | None,
    force: bool,
    reporter: Reporter,
) -> MetricsResult:
    """Measure all videos in one pass, and draw a plot if `plot` is given. See `diffsynth_cli.metrics`."""
    extra = [path for path in (style, reference) if path is not None]
    if plot is not None:
        check_output(plot, [guide, *videos, *extra], force=force)
        check_writable(plot, (".png",))
    sources = [open_source(path) for path in (guide, *videos, *extra)]
    size = (sources[1].height, sources[1].width)
    frames = [_Frames(source, size) for source in sources]
    reporter.begin("metrics", min((source.estimate for source in sources if source.estimate), default=None))
    of_videos, rest = frames[1 : 1 + len(videos)], frames[1 + len(videos) :]
    curves = measure(
        frames[0],
        of_videos,
        rest[-1] if reference else None,
        reporter.advance,
        style=rest[0] if style else None,
    )
    count = len(curves[0].luminance)
    reporter.close()  # so that warnings do not disturb the bar
    _check_lengths(frames, count, reporter)
    of_style = curves[len(videos)] if style else None
    of_reference = curves[-1] if reference else None
    if plot is not None:
        draw(plot, {str(path): curve for path, curve in zip(videos, curves)}, of_style)
    return MetricsResult(
        count,
        tuple(
            VideoMetrics(path, curve.summary(of_style, of_reference), lost_structure(curve.structure))
            for path, curve in zip(videos, curves)
        ),
    )


class _Frames:
    """The frames of a source at (height, width) `size`, read once."""

    def __init__(self, source: Source, size: tuple[int, int]):
        check_shape(source, *size)
        self.source, self.size, self.count = source, size, 0
        self.shots = source.shots()

    def __iter__(self) -> Iterator[Image]:
        for shot in self.shots:
            self.count += 1
            yield fit(shot.image(), *self.size)

    def has_more_than(self, count: int) -> bool:
        return self.count > count or next(iter(self.shots), None) is not None


def _check_lengths(videos: Sequence[_Frames], count: int, reporter: Reporter) -> None:
    for video in videos:
        if video.source.damage:
            reporter.warn(f"{video.source.path}: {video.source.damage[0]}")
    if count == 0:
        raise UsageError("one of the videos has no frames")
    if longer := [str(video.source.path) for video in videos if video.has_more_than(count)]:
        reporter.warn(f"compared the first {count} frames; longer: {', '.join(longer)}")


def measured(videos: Iterable[Mapping[str, float]]) -> list[str]:
    """Return the measures that were taken of these videos, apart from what another one shows better."""
    found = list(videos)
    names = [name for name in MEANINGS if any(name in numbers for numbers in found)]
    if "sharp" in names:  # the same relative to the style, which is easier to read
        names.remove("sharpness")
    return names


def cell(name: str, numbers: Mapping[str, float]) -> str:
    """Format a measure of a video; empty if it was not taken."""
    if name not in numbers:
        return ""
    return CELLS[name](numbers) if name in CELLS else f"{numbers[name]:.3f}"


def panels(curves: Curves, compared: bool) -> dict[str, Callable[[Curves], list[float]]]:
    """Return the curves to plot, one measure per panel.

    Args:
        curves: Curves of one of the videos.
        compared: Whether the video was compared with a style.
    """
    found: dict[str, Callable[[Curves], list[float]]] = {
        "warp1 (×1000)": lambda c: c.warp[1],
        "flicker (levels)": lambda c: c.flicker,
        "luminance (levels)": lambda c: c.luminance,
        "sharpness": lambda c: c.sharpness,
    }
    if compared:
        found |= {
            "structure": lambda c: c.structure,
            "invented (levels)": lambda c: c.invented,
            "own_warp (×1000)": lambda c: c.own_warp,
        }
    if curves.error:
        found["squared error"] = lambda c: c.error
    return found


def draw(path: Path, curves: dict[str, Curves], style: Curves | None = None) -> None:
    """Draw curves over time as a PNG, one panel per measure. The style's curves are dashed."""
    from matplotlib.figure import Figure

    shown = panels(next(iter(curves.values())), style is not None)
    figure = Figure(figsize=(9, 2.4 * len(shown)), layout="constrained")
    for axes, (label, numbers) in zip(figure.subplots(len(shown), sharex=True), shown.items()):
        for name, curve in curves.items():
            axes.plot(numbers(curve), label=name, linewidth=1)
        if style is not None and label != "squared error":
            axes.plot(numbers(style), "k--", label="style", linewidth=0.8)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[-1].set_xlabel("frame")
    figure.axes[0].legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=110)
