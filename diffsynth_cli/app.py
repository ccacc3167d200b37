"""The program's commands. Those about jobs are here; each parses, calls the Python API and shows the result."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from diffsynth_cli import __version__, jobs
from diffsynth_cli.command import add_command
from diffsynth_cli.commands.ebsynth import InOrder, ebsynth
from diffsynth_cli.commands.metrics import metrics
from diffsynth_cli.commands.smooth import smooth
from diffsynth_cli.console import reporter as make_reporter
from diffsynth_cli.options import (
    INPUT,
    MACHINE_OPTIONS,
    OUTPUT,
    Debug,
    Force,
    JobFile,
    Json,
    Preview,
    Quiet,
    Restart,
    Set,
    one_of,
    with_options,
)
from stages.codecs import Codec
from templates import Task

app = typer.Typer(
    help="Restyle videos with Stable Diffusion and ControlNet, without flicker, stage by stage, in bounded memory.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

STAGE_COMMANDS = {
    "extract": "Extract the frames of the job's video.",
    "control": "Make control maps from the frames.",
    "render": "Render the frames with Stable Diffusion and ControlNet.",
    "deflicker": "Smooth the rendered frames and write video.mp4.",
    "run": "Run all stages that are not finished, from video to video.mp4.",
}
ON_JOBS, ON_VIDEOS = "Commands on jobs", "Commands on any video or image"  # panels of the program's help


def _stage_command(name: str) -> Callable[..., None]:
    """Return the command that runs one stage, or all of them. They share their options, so that a Makefile can too."""

    @with_options(*MACHINE_OPTIONS)
    def command(
        job: JobFile,
        overrides: Set = None,
        preview: Preview = False,
        force: Force = False,
        restart: Restart = False,
        quiet: Quiet = False,
        events: Json = False,
        debug: Debug = False,
        **machine: Any,
    ) -> None:
        given = [jobs.as_override(key, value) for key, value in machine.items() if value is not None]
        jobs.run(
            job,
            None if name == "run" else [name],
            overrides=[*(overrides or []), *given],
            restart=restart,
            preview=preview,
            force=force,
            reporter=make_reporter(quiet, events),
        )

    return command


for _name, _about in STAGE_COMMANDS.items():
    add_command(
        app,
        _name,
        f"diffsynth {_name} job.json",
        f"diffsynth {_name} job.json --set frame_maximum_count=8 --set output_path=trial",
        f"diffsynth {_name} job.json --restart --device cuda:1 --low-vram",
        about=_about,
        panel=ON_JOBS,
    )(_stage_command(_name))


@add_command(app, "status", "diffsynth status job.json", "diffsynth status job.json --json", panel=ON_JOBS)
def status(job: JobFile, overrides: Set = None, events: Json = False, debug: Debug = False) -> None:
    """Show which stages are done, and the command that resumes the job."""
    from diffsynth_cli.commands.status import show_status

    show_status(jobs.status(job, overrides=overrides or ()), events)


@add_command(app, "verify", "diffsynth verify job.json", panel=ON_JOBS)
def verify(
    job: JobFile, overrides: Set = None, quiet: Quiet = False, events: Json = False, debug: Debug = False
) -> None:
    """Check all results of a job for damage, and show how to repair them."""
    jobs.verify(job, overrides=overrides or (), reporter=make_reporter(quiet, events))


@add_command(
    app,
    "export",
    "diffsynth export job.json --codec prores",
    "diffsynth export job.json -o small.webm --crf 40",
    "diffsynth export job.json -o frames/ --codec png",
    panel=ON_JOBS,
)
def export(
    job: JobFile,
    overrides: Set = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Video to write (.mp4, .mov, .mkv or .webm). Any other name is a folder of images.",
            show_default="video-CODEC, or frames for png, in the output folder",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    codec: Annotated[
        Codec | None,
        typer.Option(
            parser=one_of([*Codec, "h265"], "codec"),
            help="Video codec (h265 is hevc), or png for a folder of images.",
            show_default="by the suffix of --output, or h264",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    crf: Annotated[
        int | None, typer.Option(min=0, max=63, help="Quality. Lower is better and larger.", rich_help_panel=OUTPUT)
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(min=0.01, max=1000, help="Frame rate, in frames per second.", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
) -> None:
    """Write the finished video again, with another codec, quality or frame rate, or as images."""
    jobs.export(
        job,
        output,
        codec=codec,
        crf=crf,
        fps=fps,
        overrides=overrides or (),
        force=force,
        reporter=make_reporter(quiet, events),
    )


@add_command(
    app,
    "init",
    "diffsynth init text_guided holiday.mp4 -o holiday",
    "diffsynth init restoring old.mp4 -o old --published",
    panel=ON_JOBS,
)
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


@add_command(
    app,
    "demo",
    "diffsynth demo",
    'diffsynth demo --video holiday.mp4 -o trial --prompt "autumn, golden leaves"',
    panel=ON_JOBS,
)
def demo(
    prompt: Annotated[
        str, typer.Option(help="What the video should look like.", rich_help_panel=INPUT)
    ] = "winter, snow, night",
    video: Annotated[
        Path | None,
        typer.Option(
            metavar="VIDEO",
            help="Your own video, of which the first 24 frames are used.",
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
) -> None:
    """Restyle a small clip with the embedded model, offline, in a minute or two."""
    from diffsynth_cli.demo import write_demo, write_sheet

    path = write_demo(output, video, prompt, force)
    result = jobs.run(path, restart=True, force=force, reporter=make_reporter(quiet, events))
    sheet = write_sheet(output, result.output_path)
    if not (quiet or events):
        typer.echo(f"video          {result.video}")
        typer.echo(f"contact sheet  {sheet}")
        typer.echo(f"one of yours   diffsynth demo --video VIDEO --output FOLDER --prompt {shlex.quote(prompt)}")


add_command(
    app,
    "ebsynth",
    "diffsynth ebsynth --style painted.png --guide photo.png frame.png -o result.png",
    "diffsynth ebsynth --style s.png --weight 2 --guide a.png b.png --weight 1 --guide c.png d.png -o o.png",
    panel=ON_VIDEOS,
    cls=InOrder,
)(ebsynth)
add_command(
    app,
    "smooth",
    "diffsynth smooth original.mp4 stylised.mp4 -o smooth.mp4",
    "diffsynth smooth stylised.mp4 -o smooth.mp4 --report changes.png",
    "diffsynth smooth original.mp4 keyframes/ -o painted.mp4 --mode interpolate",
    panel=ON_VIDEOS,
)(smooth)
add_command(
    app,
    "metrics",
    "diffsynth metrics original.mp4 smooth.mp4 --style stylised.mp4",
    "diffsynth metrics original.mp4 a.mp4 b.mp4 --plot curves.png --json",
    panel=ON_VIDEOS,
)(metrics)


@add_command(app, "schema", "diffsynth schema > job.schema.json", panel=ON_JOBS)
def schema() -> None:
    """Print the JSON Schema of job files, for editors."""
    from stages.jobs.job import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"diffsynth-cli {__version__}")
        raise typer.Exit()
