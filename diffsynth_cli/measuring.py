"""Measure stylised videos for `diffsynth metrics`, and plot the measures over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from diffsynth_cli.results import MetricsResult, VideoMetrics
from stages.base.arrays import Image
from stages.base.errors import UsageError
from stages.base.outputs import check_output
from stages.base.reporting import Reporter
from stages.smoothers.images.comparison import lost_structure
from stages.smoothers.images.metrics import Curves, measure
from stages.smoothers.images.synthesis import check_writable
from stages.video import Source, check_shape, fit, open_source


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


def draw(path: Path, curves: dict[str, Curves], style: Curves | None = None) -> None:
    """Draw curves over time as a PNG, one panel per measure. The style's curves are dashed."""
    from matplotlib.figure import Figure

    first = next(iter(curves.values()))
    panels: dict[str, Callable[[Curves], list[float]]] = {
        "warp1 (×1000)": lambda c: c.warp[1],
        "luminance (levels)": lambda c: c.luminance,
        "sharpness": lambda c: c.sharpness,
    }
    if style is not None:
        panels |= {
            "structure": lambda c: c.structure,
            "invented (levels)": lambda c: c.invented,
            "own_warp (×1000)": lambda c: c.own_warp,
        }
    if first.error:
        panels["squared error"] = lambda c: c.error
    figure = Figure(figsize=(9, 2.4 * len(panels)), layout="constrained")
    for axes, (label, numbers) in zip(figure.subplots(len(panels), sharex=True), panels.items()):
        for name, curve in curves.items():
            axes.plot(numbers(curve), label=name, linewidth=1)
        if style is not None and label != "squared error":
            axes.plot(numbers(style), "k--", label="style", linewidth=0.8)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[-1].set_xlabel("frame")
    figure.axes[0].legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=110)
