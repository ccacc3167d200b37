"""The commands. Each parses, calls a stage and shows the result; what is heavy is imported when it is needed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffsynth_cli import __version__
from diffsynth_cli.console import reporter as make_reporter
from diffsynth_cli.console import show_warning
from diffsynth_cli.ebsynth import InOrder, ebsynth
from diffsynth_cli.options import (
    AllowPickle,
    BatchSize,
    Compile,
    Debug,
    Device,
    Dtype,
    Force,
    JobFile,
    Json,
    LowVram,
    Preview,
    Quiet,
    Restart,
    Set,
    as_argument,
)  # fmt: skip
from diffsynth_cli.smooth import TwoVideos, smooth
from stages.all_stages import all_stages, arrays, summaries
from stages.base.errors import DiffSynthError, UsageError
from templates import TASKS

if TYPE_CHECKING:
    from stages.base.cache import FrameCache
    from stages.base.engine import Options, Reporter, Stage
    from stages.jobs.job import Job

app = typer.Typer(
    help="Restyle videos with Stable Diffusion and ControlNet, without flicker, stage by stage, in bounded memory.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUN = "run"
STAGE_COMMANDS = {**summaries(), RUN: "All stages that are not finished."}


def _stage_command(name: str) -> Callable[..., None]:
    """The command that runs one stage, or all of them. They share their options, so that a Makefile can too."""

    def command(
        job: JobFile,
        overrides: Set = None,
        device: Device = None,
        dtype: Dtype = None,
        allow_pickle: AllowPickle = False,
        batch_size: BatchSize = None,
        low_vram: LowVram = False,
        compiled: Compile = False,
        restart: Restart = False,
        preview: Preview = False,
        force: Force = False,
        quiet: Quiet = False,
        events: Json = False,
        debug: Debug = False,
    ) -> None:
        from diffsynth_cli.outputs import check_job_outputs
        from stages.base.engine import Options

        short = {"device": device, "dtype": dtype, "allow_pickle": "true" if allow_pickle else None}
        overrides = [*(overrides or []), *(f"{key}={value}" for key, value in short.items() if value is not None)]
        stages = [stage for stage in all_stages().values() if name in (RUN, stage.name)]
        loaded, cache = _open(job, overrides, stages)
        check_job_outputs(loaded, job, stages, preview, force)
        options = Options(batch_size, low_vram, compiled)
        reporter = make_reporter(quiet, events)
        _run_stages(stages, loaded, job, cache, reporter, options, restart, stale_only=name == RUN)
        if preview:
            from diffsynth_cli.contact_sheet import states, write_contact_sheet

            write_contact_sheet(Path(loaded.output_path) / "preview.png", states(cache))

    return command


for _name, _about in STAGE_COMMANDS.items():
    app.command(_name, help=_about)(_stage_command(_name))


@app.command()
def status(job: JobFile, overrides: Set = None, events: Json = False, debug: Debug = False) -> None:
    """What is done, a line a stage, and the command that goes on."""
    from diffsynth_cli.status import show_status

    loaded, cache = _open(job, overrides)
    show_status(loaded, cache, events)


@app.command()
def verify(
    job: JobFile, overrides: Set = None, quiet: Quiet = False, events: Json = False, debug: Debug = False
) -> None:
    """Read everything that the job has made, and say what is damaged and must be redone."""
    from diffsynth_cli.verify import verify_job

    loaded, cache = _open(job, overrides)
    verify_job(loaded, cache, make_reporter(quiet, events))


@app.command()
def export(
    job: JobFile,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A .mp4, .mov, .mkv or .webm file; any other name is a folder of images.",
            show_default="video-CODEC, or for png the folder frames, in the job's output folder",
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="h264, hevc (or h265), vp9, av1, prores, ffv1; png: a folder of images.",
            show_default="by the suffix of --output; h264",
        ),
    ] = None,
    crf: Annotated[int | None, typer.Option(min=0, max=63, help="Quality: lower is better and larger.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.01, max=1000, help="Frame rate.")] = None,
    overrides: Set = None,
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
) -> None:
    """The video again, with another codec, quality or frame rate, or as images."""
    from diffsynth_cli.outputs import choose_export, find_codec
    from stages.deflicker import write_images, write_video

    codec = find_codec(codec)
    speed = [] if fps is None else [f"fps={fps}"]
    loaded, cache = _open(job, [*(overrides or []), *speed])
    path, encoder = choose_export(output, codec, loaded, job, force)
    if encoder is None and (crf is not None or fps is not None):
        raise UsageError("--crf and --fps are for videos, not for images")
    if not cache.record("deflicker").complete:
        raise DiffSynthError("export needs deflicker, which is not finished", f"{cache.command('run')} finishes it")
    if encoder is None:
        write_images(path, cache, make_reporter(quiet, events))
    else:
        write_video(path, loaded, cache, make_reporter(quiet, events), encoder, crf)


@app.command()
def init(
    task: Annotated[
        str,
        typer.Argument(
            help="; ".join(f"{name}: {about}" for name, about in TASKS.items()) + ".",
            metavar="TASK",
            show_default=False,
        ),
    ],
    video: Annotated[Path, typer.Argument(help="The video to be restyled, or a folder of images.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for job.json and Makefile.")] = Path(),
    published: Annotated[
        bool, typer.Option("--published", help="The values of DiffSynth's own config file, not those we recommend.")
    ] = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """A job file for one of the tasks, and a Makefile for a folder of videos."""
    from diffsynth_cli.project import write_project

    paths, steps = write_project(task, video, output, force, published)
    for path in paths:
        typer.echo(path)
    typer.echo("\nNext:")
    for number, step in enumerate(steps, 1):
        typer.echo(f"{number}. {step}")


@app.command()
def demo(
    prompt: Annotated[str, typer.Option(help="What the video is to look like.")] = "winter, snow, night",
    video: Annotated[Path | None, typer.Option(help="One of your own, its first two dozen frames.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything.")] = Path("diffsynth-demo"),
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
) -> None:
    """Restyle a small clip with the embedded model, offline, in a minute or two."""
    from diffsynth_cli.demo import write_demo, write_sheet
    from diffsynth_cli.outputs import check_job_outputs
    from stages.base.engine import Options

    path = write_demo(output, video, prompt, force)
    stages = list(all_stages().values())
    job, cache = _open(path, [], stages)
    check_job_outputs(job, path, stages, preview=False, force=force)
    _run_stages(stages, job, path, cache, make_reporter(quiet, events), Options(), restart=True, stale_only=True)
    sheet = write_sheet(output, cache)
    if not (quiet or events):
        typer.echo(f"video          {Path(job.output_path) / 'video.mp4'}")
        typer.echo(f"contact sheet  {sheet}")
        typer.echo(f"one of yours   diffsynth demo --video VIDEO --output FOLDER --prompt {shlex.quote(prompt)}")


app.command(cls=InOrder)(ebsynth)
app.command(cls=TwoVideos)(smooth)


@app.command()
def metrics(
    guide: Annotated[Path, typer.Argument(help="The original video, or a folder of images.")],
    videos: Annotated[list[Path], typer.Argument(help="Stylised videos of the same frames.")],
    style: Annotated[
        Path | None,
        typer.Option(help="The video before smoothing: adds invented detail, structure kept and its own warp error."),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="The truth, if known: adds PSNR and SSIM.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write curves over time to a .png.")] = None,
    force: Force = False,
    quiet: Quiet = False,
    events: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Measure flicker and sharpness of stylised videos, and what smoothing invented or lost."""
    from diffsynth_cli.metrics import compare
    from stages.base.outputs import check_output

    if plot is not None:
        inputs = [guide, *videos, *(path for path in (style, reference) if path is not None)]
        check_output(plot, inputs, force=force)
    compare(guide, videos, style, reference, plot, events, make_reporter(quiet or events, False))


@app.command()
def schema() -> None:
    """The JSON Schema of job files, for editors."""
    from stages.jobs.job import json_schema

    keys, problems = json_schema()
    for problem in problems:
        show_warning(problem)
    typer.echo(json.dumps(keys, indent=2))


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"diffsynth-cli {__version__}")
        raise typer.Exit()


# --- what the commands share ----------------------------------------------------------------------------


def _open(path: Path, overrides: Sequence[str] | None, stages: Sequence[Stage] = ()) -> tuple[Job, FrameCache]:
    """The job and its cache. The files that `stages` read must exist, unless the stage is done."""
    from stages.base.cache import FrameCache
    from stages.base.record import CACHE_NAME
    from stages.jobs.job_file import read_job

    job, warnings = read_job(path, overrides or [], stages)
    for warning in warnings:
        show_warning(warning)
    arguments = shlex.join([as_argument(path), *(f"--set={override}" for override in overrides or [])])
    return job, FrameCache(Path(job.output_path) / CACHE_NAME, arguments, arrays())


def _run_stages(
    stages: Sequence[Stage],
    job: Job,
    job_file: Path,
    cache: FrameCache,
    reporter: Reporter,
    options: Options,
    restart: bool,
    stale_only: bool,
) -> None:
    """Run stages one after the other. `restart` redoes them; with `stale_only`, only stale and damaged ones."""
    from diffsynth_cli.outputs import CONFIG, is_same_file
    from stages.base.engine import Run, progress, run_stage
    from stages.base.preflight import check_ahead
    from stages.base.record import write_json

    run = Run(job, cache, reporter, options, stages=all_stages())
    redone = [
        stage.name
        for stage in stages
        if restart and (not stale_only or progress(stage, run.stages, job, cache).state == "stale")
    ]
    check_ahead(stages, run, redone)
    with cache.lock(), closing(reporter):
        for stage in stages:
            anew = restart
            if restart and stale_only and stage.name not in redone:
                reporter.begin(stage.name, None)
                reporter.phase("look for damage")
                anew = any(cache.damage(stage.name))
            run_stage(stage, run, anew)
            config = Path(job.output_path) / CONFIG
            if not is_same_file(config, job_file):
                write_json(config, job.model_dump())
