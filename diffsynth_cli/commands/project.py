"""Commands that write a job: `init` for a task and a video, and `demo`."""

from __future__ import annotations

import shlex
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from diffsynth_cli import jobs
from diffsynth_cli.console import reporter
from diffsynth_cli.options import INPUT, MACHINE_OPTIONS, OUTPUT, Debug, Force, Json, Quiet, one_of, with_options
from templates import Task


def init(
    task: Annotated[
        Task,
        typer.Argument(
            metavar="TASK",
            parser=one_of(Task, "task"),
            help="; ".join(f"{task}: {task.about}" for task in Task) + ".",
            show_default=False,
        ),
    ],
    video: Annotated[
        Path, typer.Argument(metavar="VIDEO", help="Video to restyle, or a folder of images.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder for job.json and Makefile.", rich_help_panel=OUTPUT
        ),
    ] = Path(),
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="Use DiffSynth's own settings instead of the recommended ones.", rich_help_panel=INPUT
        ),
    ] = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write a job file for a task, and a Makefile that runs it on a folder of videos."""
    from diffsynth_cli.project import write_project

    paths, steps = write_project(task, video, output, force, published)
    for path in paths:
        typer.echo(path)
    typer.echo("\nNext:")
    for number, step in enumerate(steps, 1):
        typer.echo(f"{number}. {step}")


@with_options(*MACHINE_OPTIONS)
def demo(
    prompt: Annotated[
        str, typer.Option(help="What the video should look like.", rich_help_panel=INPUT)
    ] = "winter, snow, night",
    video: Annotated[
        Path | None,
        typer.Option(
            metavar="VIDEO",
            help="Your own video; its first 24 frames are used.",
            show_default="an embedded clip",
            rich_help_panel=INPUT,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder for all results.", rich_help_panel=OUTPUT),
    ] = Path("diffsynth-demo"),
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
    **machine: object,
) -> None:
    """Restyle a small clip with the embedded model, offline, in a minute or two.

    It is rendered twice: as a video, and frame by frame as if the frames were unrelated images, for comparison.
    """
    from diffsynth_cli.demo import REPORT, singly, write_demo, write_demo_comparison, write_sheet

    path = write_demo(output, video, prompt, force)
    overrides, shown = jobs.with_settings(None, machine), partial(reporter, quiet, events)
    results = []
    for title, more in (("Frame by frame, for comparison:", singly(path)), ("As a video:", [])):
        if not (quiet or events):
            typer.echo(title, err=True)
        keys = [*overrides, *more]
        results.append(jobs.run(path, overrides=keys, restart=True, force=force, reporter=shown()))
    sheet = write_sheet(path, overrides)
    with closing(shown()) as watcher:
        comparison = write_demo_comparison(path, overrides, watcher)
    page = jobs.report(path, path.with_name(REPORT), overrides=overrides, force=force, reporter=shown())
    if not (quiet or events):
        typer.echo(f"video          {results[-1].video}")
        typer.echo(f"side by side   {comparison}")
        typer.echo(f"report         {page}")
        typer.echo(f"contact sheet  {sheet}")
        typer.echo(f"your own video diffsynth demo --video VIDEO --output FOLDER --prompt {shlex.quote(prompt)}")
