"""`diffsynth metrics`: flicker, sharpness and damage of stylised videos, as a table or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from diffsynth_cli import videos as videos_api
from diffsynth_cli.console import literal
from diffsynth_cli.console import reporter as make_reporter
from diffsynth_cli.options import INPUT, OUTPUT, Debug, Force, Quiet
from diffsynth_cli.results import MetricsResult


def metrics(
    guide: Annotated[
        Path, typer.Argument(metavar="GUIDE", help="Original video, or a folder of images.", show_default=False)
    ],
    videos: Annotated[
        list[Path],
        typer.Argument(metavar="VIDEO...", help="Stylised videos with the same frames.", show_default=False),
    ],
    style: Annotated[
        Path | None,
        typer.Option(
            metavar="VIDEO",
            help="Video before smoothing: adds invented detail, structure kept and its own warp error.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="VIDEO", help="Ground truth: adds PSNR and SSIM.", rich_help_panel=INPUT),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Plot the measures over time.", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    events: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object to stdout.")] = False,
    debug: Debug = False,
) -> None:
    """Measure flicker and sharpness of stylised videos, and what smoothing invented or lost."""
    result = videos_api.metrics(
        guide, videos, style=style, reference=reference, plot=plot, force=force,
        reporter=make_reporter(quiet or events, False),
    )  # fmt: skip
    show_metrics(result, events)


def show_metrics(result: MetricsResult, as_json: bool) -> None:
    """Print the numbers of each video, and a warning about frames that lost structure."""
    from diffsynth_cli.measuring import MEANINGS, cell, measured

    if as_json:
        videos = {str(video.path): video.numbers for video in result.videos}
        print(json.dumps({"frames": result.frames, "videos": videos}))
        return
    names = measured(video.numbers for video in result.videos)
    out = Console()
    table = Table(Column("video", overflow="fold"), *names)
    for video in result.videos:
        table.add_row(literal(str(video.path)), *(cell(name, video.numbers) for name in names))
    out.print(table)
    for name in names:
        out.print(f"[bold]{name}[/] {MEANINGS[name]}", highlight=False)
    for video in result.videos:
        if video.warning:
            out.print(f"[bold red]{literal(str(video.path))}: {video.warning}[/]", highlight=False, soft_wrap=True)
