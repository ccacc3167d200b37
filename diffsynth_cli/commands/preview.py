"""`diffsynth preview`: a job on a few frames, with several values of its keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffsynth_cli import jobs, previews
from diffsynth_cli.console import reporter
from diffsynth_cli.options import (
    INPUT,
    MACHINE_OPTIONS,
    Debug,
    Force,
    JobFile,
    Json,
    Quiet,
    Set,
    complete_key,
    output_option,
    with_options,
)


@with_options(*MACHINE_OPTIONS)
def preview(
    job: JobFile,
    overrides: Set = None,
    frames: Annotated[int, typer.Option(min=1, max=1000, help="Number of frames.", rich_help_panel=INPUT)] = 5,
    at: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Where the frames begin, after the beginning of what the job uses.",
            rich_help_panel=INPUT,
        ),
    ] = 0.0,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE",
            help="Job key and the values to compare, or a JSON list of them. Repeatable for all combinations.",
            autocompletion=complete_key,
            rich_help_panel=INPUT,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_option("FILE.png", "Contact sheet to write.", "preview/preview.png in the output folder"),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
    **machine: object,
) -> None:
    """Try a job on a few frames, and values of its keys side by side, in a contact sheet."""
    done = previews.preview(
        job,
        output,
        frames=frames,
        at=at,
        grid=grid or (),
        overrides=jobs.with_settings(overrides, machine),
        force=force,
        reporter=reporter(quiet, events),
    )
    if not (quiet or events):
        typer.echo(f"contact sheet  {done.sheet}")
        for cell in done.cells:
            named = f"  {previews.label(cell.values)}" if cell.values else ""
            typer.echo(f"video          {cell.result.video}{named}")
