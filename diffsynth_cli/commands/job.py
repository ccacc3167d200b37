"""Commands on the results of a job, and the schema of job files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from diffsynth_cli import jobs
from diffsynth_cli.console import literal, reporter, show_warning
from diffsynth_cli.events import schema as event_schema
from diffsynth_cli.options import (
    CACHE_OPTION,
    OUTPUT,
    Debug,
    Force,
    JobFile,
    Json,
    Quiet,
    Set,
    one_of,
    output_option,
    with_options,
)
from diffsynth_cli.results import JobStatus
from stages.base.scenes import described
from stages.base.words import counted
from stages.codecs import Codec

if TYPE_CHECKING:
    from stages.base.progress import Progress

COLOURS = {"done": "green", "partly": "yellow", "stale": "red", "to do": "dim"}


@with_options(*CACHE_OPTION)
def status(job: JobFile, overrides: Set = None, events: Json = False, debug: Debug = False, **machine: object) -> None:
    """Show which stages are done, and the command that resumes the job."""
    show_status(jobs.status(job, overrides=jobs.with_settings(overrides, machine)), events)


@with_options(*CACHE_OPTION)
def verify(
    job: JobFile,
    overrides: Set = None,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
    **machine: object,
) -> None:
    """Check all results of a job for damage, and show how to repair them."""
    jobs.verify(job, overrides=jobs.with_settings(overrides, machine), reporter=reporter(quiet, events))


@with_options(*CACHE_OPTION)
def export(
    job: JobFile,
    overrides: Set = None,
    output: Annotated[
        Path | None,
        output_option(
            "PATH",
            "Video to write (.mp4, .mov, .mkv or .webm). Any other name is a folder of images.",
            "video-CODEC, frames or frames-CODEC in the output folder",
        ),
    ] = None,
    codec: Annotated[
        Codec | None,
        typer.Option(
            parser=one_of([*Codec, "h265"], "codec"),
            help="Video codec (h265 is hevc), or png or exr for a folder of images.",
            show_default="by the suffix of --output, or h264",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    crf: Annotated[
        int | None, typer.Option(min=0, max=63, help="Quality. Lower is better and larger.", rich_help_panel=OUTPUT)
    ] = None,
    fps: Annotated[
        str | None,
        typer.Option(
            metavar="FPS|2x|3x|4x",
            help="Frame rate, in frames per second; 2x, 3x or 4x paints the frames in between.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    alpha: Annotated[
        Path | None,
        typer.Option(
            metavar="MASK",
            help="Alpha channel, white is opaque: a video or folder with a mask per frame, or one image.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
    **machine: object,
) -> None:
    """Write the finished video again, with another codec, quality or frame rate, or as images."""
    jobs.export(
        job,
        output,
        codec=codec,
        crf=crf,
        fps=fps,
        alpha=alpha,
        overrides=jobs.with_settings(overrides, machine),
        force=force,
        reporter=reporter(quiet, events),
    )


@with_options(*CACHE_OPTION)
def report(
    job: JobFile,
    overrides: Set = None,
    output: Annotated[
        Path | None,
        output_option("FILE.html", "Page to write.", "report.html in the output folder"),
    ] = None,
    first: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="FRAME",
            help="First frame of the page's clip.",
            show_default="0, or in long videos such that the worst frame is in the middle",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
    **machine: object,
) -> None:
    """Write a page that shows the videos side by side, what was measured and how long it took, as one HTML file."""
    jobs.report(
        job,
        output,
        first=first,
        overrides=jobs.with_settings(overrides, machine),
        force=force,
        reporter=reporter(quiet, events),
    )


def schema(
    events: Annotated[bool, typer.Option("--events", help="Describe the events that --json prints instead.")] = False,
) -> None:
    """Print the JSON Schema of job files, for editors."""
    from stages.jobs.job import json_schema

    if events:
        typer.echo(json.dumps(event_schema(), indent=2))
        return
    description, problems = json_schema()
    for problem in problems:
        show_warning(problem)
    typer.echo(json.dumps(description, indent=2))


def show_status(status: JobStatus, as_json: bool) -> None:
    """Print the progress of each stage."""
    if as_json:
        stages = [
            {"stage": stage.stage, "state": stage.state, "share": round(stage.share, 4), "changes": stage.changes}
            for stage in status.stages
        ]
        video = str(status.video) if status.video else None
        scenes = [[scene[0], scene[-1]] for scene in status.scenes]
        shown = {"stages": stages, "scenes": scenes, "video": video, "next": status.next_command}
        print(json.dumps({**shown, "holder": status.holder}))
        return
    out = Console(highlight=False, soft_wrap=True)
    for stage in status.stages:
        out.print(f"{stage.stage:10}[{COLOURS[stage.state]}]{stage.state:7}[/] {literal(_detail(stage))}")
    if status.scenes:
        out.print(described(status.scenes))
    if status.video:
        out.print(f"{'video':10}{literal(str(status.video))}")
    if status.holder:
        out.print(f"in use by {literal(status.holder)}")
    elif status.next_command:
        out.print(f"→ {literal(status.next_command)}")


def _detail(stage: Progress) -> str:
    if stage.state == "done" and stage.receipt:
        frames = counted(stage.receipt["frames"], "frame")
        removed = stage.receipt.get("removed", [])
        lost = f", without {', '.join(removed)}" if removed else ""
        return f"{frames} in {stage.receipt['seconds']:.1f} s, {stage.receipt['finished']}{lost}"
    if stage.state == "partly":
        return f"{stage.share:.0%}"
    return "; ".join(stage.changes)
