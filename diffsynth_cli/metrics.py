"""`diffsynth metrics`: flicker and sharpness of stylised videos, as a table, as JSON, as curves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from diffsynth_cli.console import show_warning
from stages.base.engine import Reporter
from stages.base.errors import UsageError
from stages.smoothing.metrics import Curves, measure
from stages.smoothing.synthesis import check_writable
from stages.video import Source, check_shape, fit, open_source

MEANINGS = {
    "warp1": "difference between neighbouring frames along the motion, ×1000; less is smoother",
    "warp5": "the same five frames apart",
    "flicker": "unsteadiness of brightness, in levels",
    "sharp": "detail, as a share of the style's",
    "sharp_reference": "detail, as a share of the reference's",
    "psnr": "likeness to the reference, dB",
    "ssim": "likeness to the reference, 0 to 1",
}


def compare(
    guide: Path, videos: Sequence[Path], style: Path | None, reference: Path | None, plot: Path | None, as_json: bool,
    reporter: Reporter,
) -> None:  # fmt: skip
    """Measures all videos in one pass and prints what was found."""
    if plot is not None:
        check_writable(plot, (".png",))
    paths = [*videos, *([style] if style else [])]
    sources = [open_source(path) for path in (guide, *paths, *([reference] if reference else []))]
    size = (sources[1].height, sources[1].width)
    frames = [_Frames(source, size) for source in sources]
    with closing(reporter):
        reporter.begin("metrics", min((source.estimate for source in sources if source.estimate), default=None))
        curves = measure(frames[0], frames[1 : 1 + len(paths)], frames[-1] if reference else None, reporter.advance)
    _check_lengths(frames, len(curves[0].luminance))
    of_style = curves[len(videos)] if style else None
    of_reference = curves[-1] if reference else None
    found = {str(path): curve.summary(of_style, of_reference) for path, curve in zip(videos, curves)}
    if plot is not None:
        draw(plot, {str(path): curve for path, curve in zip(videos, curves)})
    print_found(found, as_json, len(curves[0].luminance))


class _Frames:
    """The frames of a source at (height, width) `size`, read once."""

    def __init__(self, source: Source, size: tuple[int, int]):
        check_shape(source, *size)
        self.source, self.size, self.count = source, size, 0
        self.shots = source.shots()

    def __iter__(self) -> Iterator[np.ndarray]:
        for shot in self.shots:
            self.count += 1
            yield fit(shot.image(), *self.size)

    def has_more_than(self, count: int) -> bool:
        return self.count > count or next(iter(self.shots), None) is not None


def _check_lengths(videos: Sequence[_Frames], count: int) -> None:
    for video in videos:
        if video.source.damage:
            show_warning(f"{video.source.path}: {video.source.damage[0]}")
    if count == 0:
        raise UsageError("one of the videos has no frames")
    if longer := [str(video.source.path) for video in videos if video.has_more_than(count)]:
        show_warning(f"compared the first {count} frames; longer: {', '.join(longer)}")


def print_found(found: dict[str, dict[str, float]], as_json: bool, count: int) -> None:
    if as_json:
        print(json.dumps({"frames": count, "videos": found}))
        return
    names = [name for name in MEANINGS if any(name in numbers for numbers in found.values())]
    out = Console()
    table = Table(Column("video", overflow="fold"), *names)
    for path, numbers in found.items():
        table.add_row(path, *(f"{numbers[name]:.3f}" if name in numbers else "" for name in names))
    out.print(table)
    for name in names:
        out.print(f"[bold]{name}[/] {MEANINGS[name]}", highlight=False)


def draw(path: Path, curves: dict[str, Curves]) -> None:
    """Curves over time, one panel a measure, as a PNG."""
    from matplotlib.figure import Figure

    first = next(iter(curves.values()))
    panels = {
        "warp1 (×1000)": lambda c: c.warp[1],
        "luminance (levels)": lambda c: c.luminance,
        "sharpness": lambda c: c.sharpness,
    }
    if first.error:
        panels["squared error"] = lambda c: c.error
    figure = Figure(figsize=(9, 2.4 * len(panels)), layout="constrained")
    for axes, (label, numbers) in zip(figure.subplots(len(panels), sharex=True), panels.items()):
        for name, curve in curves.items():
            axes.plot(numbers(curve), label=name, linewidth=1)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[-1].set_xlabel("frame")
    figure.axes[0].legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=110)
