"""`diffsynth metrics`: flicker, sharpness and damage of stylised videos, as a table, as JSON, as curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from diffsynth_cli.console import show_warning
from stages.base.engine import Reporter
from stages.base.errors import UsageError
from stages.smoothers.images.comparison import STRUCTURE_LOST, lost_structure
from stages.smoothers.images.metrics import Curves, measure
from stages.smoothers.images.synthesis import check_writable
from stages.video import Source, check_shape, fit, open_source

MEANINGS = {
    "warp1": "difference between neighbouring frames along the guide's motion, ×1000; less is smoother",
    "warp5": "the same five frames apart",
    "flicker": "unsteadiness of brightness, in levels",
    "sharpness": "variance of the Laplacian: detail, and grain or sharpening if there is any",
    "sharp": "detail, as a share of the style's",
    "invented": "detail that the style's frame does not have within 3 px, in levels; 0 is best",
    "structure": f"structure kept in the worst places, mean/worst frame; 1 is all, below {STRUCTURE_LOST} is damage",
    "own_warp": "warp1 along the style's own motion, style→video; a wrong guide cannot lower it",
    "sharp_reference": "detail, as a share of the reference's",
    "psnr": "similarity to the reference, dB",
    "ssim": "similarity to the reference, 0 to 1",
}
CELLS: dict[str, Callable[[dict[str, float]], str]] = {  # columns that show more than one number
    "structure": lambda found: f"{found['structure']:.2f}/{found['structure_min']:.2f}",
    "own_warp": lambda found: f"{found['own_warp_style']:.2f}→{found['own_warp']:.2f}",
}


def compare(
    guide: Path, videos: Sequence[Path], style: Path | None, reference: Path | None, plot: Path | None, as_json: bool,
    reporter: Reporter,
) -> None:  # fmt: skip
    """Measure all videos in one pass and print the numbers."""
    if plot is not None:
        check_writable(plot, (".png",))
    extra = [path for path in (style, reference) if path is not None]
    sources = [open_source(path) for path in (guide, *videos, *extra)]
    size = (sources[1].height, sources[1].width)
    frames = [_Frames(source, size) for source in sources]
    with closing(reporter):
        reporter.begin("metrics", min((source.estimate for source in sources if source.estimate), default=None))
        of_videos, rest = frames[1 : 1 + len(videos)], frames[1 + len(videos) :]
        curves = measure(
            frames[0],
            of_videos,
            rest[-1] if reference else None,
            reporter.advance,
            style=rest[0] if style else None,
        )
    _check_lengths(frames, len(curves[0].luminance))
    of_style = curves[len(videos)] if style else None
    of_reference = curves[-1] if reference else None
    found = {str(path): curve.summary(of_style, of_reference) for path, curve in zip(videos, curves)}
    if plot is not None:
        draw(plot, {str(path): curve for path, curve in zip(videos, curves)}, of_style)
    notes = {str(path): lost_structure(curve.structure) for path, curve in zip(videos, curves)}
    print_found(found, as_json, len(curves[0].luminance), notes)


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


def print_found(found: dict[str, dict[str, float]], as_json: bool, count: int, notes: dict[str, str]) -> None:
    """Print the numbers of each video, and in words what `notes` say of it unless that is empty."""
    if as_json:
        print(json.dumps({"frames": count, "videos": found}))
        return
    names = [name for name in MEANINGS if any(name in numbers for numbers in found.values())]
    if "sharp" in names:  # says the same, in a number that is easier to read
        names.remove("sharpness")
    out = Console()
    table = Table(Column("video", overflow="fold"), *names)
    for path, numbers in found.items():
        table.add_row(path, *(_cell(name, numbers) for name in names))
    out.print(table)
    for name in names:
        out.print(f"[bold]{name}[/] {MEANINGS[name]}", highlight=False)
    for path, note in notes.items():
        if note:
            out.print(f"[bold red]{escape(path)}: {note}[/]", highlight=False, soft_wrap=True)


def _cell(name: str, numbers: dict[str, float]) -> str:
    if name not in numbers:
        return ""
    return CELLS[name](numbers) if name in CELLS else f"{numbers[name]:.3f}"


def draw(path: Path, curves: dict[str, Curves], style: Curves | None = None) -> None:
    """Draw curves over time as a PNG, one panel per measure; those of `style` dashed where it has any."""
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
