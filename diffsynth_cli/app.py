"""The commands. Each parses, calls a stage and shows the result; what is heavy is imported when it is needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffsynth_cli import __version__
from diffsynth_cli.console import reporter as make_reporter
from diffsynth_cli.console import show_warning
from stages.base.errors import DiffSynthError, UsageError

if TYPE_CHECKING:
    from stages.base.cache import FrameCache
    from stages.base.job import Job

STAGES = ("extract", "control", "render", "deflicker")

app = typer.Typer(
    help="Restyle videos with Stable Diffusion and ControlNet, without flicker, stage by stage, in bounded memory.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobFile = Annotated[Path, typer.Argument(metavar="JOB.json", help="The job file.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any job key; the value as JSON, or else as text. Repeatable."),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps. Short for --set device=…")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, float16, bfloat16. Short for --set dtype=…")]
BatchSize = Annotated[int, typer.Option(min=1, help="Frames that go through the networks at once.")]
Restart = Annotated[bool, typer.Option("--restart", help="Do the stage anew, from the start.")]
RestartStale = Annotated[bool, typer.Option("--restart", help="Do stages whose keys changed anew.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks.")]


@dataclass(frozen=True)
class Request:
    """What the common options of a command say."""

    job_file: Path
    overrides: Sequence[str]
    restart: bool = False
    stale_only: bool = False
    quiet: bool = False
    as_json: bool = False
    batch_size: int = 1


@app.command()
def extract(
    job: JobFile,
    overrides: Set = None,
    restart: Restart = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
) -> None:
    """Video → frames."""
    _run_stages(["extract"], Request(job, overrides or [], restart, quiet=quiet, as_json=events))


@app.command()
def control(
    job: JobFile,
    overrides: Set = None,
    restart: Restart = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
) -> None:
    """Frames → control maps."""
    _run_stages(["control"], Request(job, overrides or [], restart, quiet=quiet, as_json=events))


@app.command()
def render(
    job: JobFile,
    overrides: Set = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 1,
    restart: Restart = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
) -> None:
    """Frames and control maps → rendered frames."""
    _run_stages(
        ["render"],
        Request(job, _overrides(overrides, device, dtype), restart, quiet=quiet, as_json=events, batch_size=batch_size),
    )


@app.command()
def deflicker(
    job: JobFile,
    overrides: Set = None,
    restart: Restart = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
) -> None:
    """Rendered frames → smooth frames → video.mp4."""
    _run_stages(["deflicker"], Request(job, overrides or [], restart, quiet=quiet, as_json=events))


@app.command()
def run(
    job: JobFile,
    overrides: Set = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 1,
    restart: RestartStale = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
) -> None:
    """All stages that are not finished."""
    _run_stages(STAGES, Request(job, _overrides(overrides, device, dtype), restart, True, quiet, events, batch_size))


@app.command()
def status(job: JobFile, overrides: Set = None, events: Json = False, debug: Debug = False) -> None:
    """What is done, a line a stage, and the command that goes on."""
    from diffsynth_cli.status import show_status

    loaded, cache = _open(Request(job, overrides or []))
    show_status(loaded, cache, events)


@app.command()
def export(
    job: JobFile,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A .mp4, .mov, .mkv or .webm file.")] = None,
    codec: Annotated[str, typer.Option(help="h264, hevc, vp9, prores or ffv1.")] = "h264",
    crf: Annotated[int | None, typer.Option(min=0, max=63, help="Quality: lower is better and larger.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.1, max=1000, help="Frame rate.")] = None,
    overrides: Set = None,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
) -> None:
    """The video again, with another codec, quality or frame rate."""
    from stages.deflicker import write_video
    from stages.video import ENCODERS, check_encoding

    if codec not in ENCODERS:
        raise UsageError(f"--codec: unknown codec {codec!r}", f"known: {', '.join(ENCODERS)}")
    speed = [] if fps is None else [f"fps={fps}"]
    loaded, cache = _open(Request(job, [*(overrides or []), *speed]))
    path = output or Path(loaded.output_path) / f"video-{codec}{_SUFFIX[codec]}"
    check_encoding(path, codec)
    if not cache.record("deflicker").complete:
        raise DiffSynthError("export needs deflicker, which is not finished", f"{cache.command('run')} finishes it")
    write_video(path, loaded, cache, make_reporter(quiet, events), codec, crf)


_SUFFIX = {"h264": ".mp4", "hevc": ".mp4", "vp9": ".webm", "prores": ".mov", "ffv1": ".mkv"}


@app.command()
def init(
    task: Annotated[str, typer.Argument(help="text_guided, fashion, image_guided, restoring or rendering_3d.")],
    video: Annotated[Path, typer.Argument(help="The video to be restyled, or a folder of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for job.json and Makefile.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    debug: Debug = False,
) -> None:
    """A job file for one of the five tasks, and a Makefile for a folder of videos."""
    from diffsynth_cli.project import write_project

    for path in write_project(task, video, output, force):
        typer.echo(path)
    typer.echo("Fill in the prompt, and the images that style_image and frames_reference name, if they are there.")


@app.command()
def schema() -> None:
    """The JSON Schema of job files, for editors."""
    from stages.base.job import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"diffsynth-cli {__version__}")
        raise typer.Exit()


# --- what the commands share ----------------------------------------------------------------------------


def _run_stages(names: Sequence[str], request: Request) -> None:
    from stages.base.engine import Options, Run, progress, run_stage
    from stages.base.job_file import refuse_later_work
    from stages.base.record import write_json

    job, cache = _open(request, names)
    refuse_later_work(job, names)
    run = Run(job, cache, make_reporter(request.quiet, request.as_json), Options(request.batch_size))
    with cache.lock(), closing(run.reporter):
        for name in names:
            restart = request.restart and (not request.stale_only or progress(name, job, cache).state == "stale")
            run_stage(import_module(f"stages.{name}").STAGE, run, restart)
            write_json(Path(job.output_path) / "config.json", job.model_dump())


def _open(request: Request, stages: Sequence[str] = ()) -> tuple[Job, FrameCache]:
    """The job and its cache. The files that `stages` read must exist, unless the stage is done."""
    from stages.base.cache import FrameCache
    from stages.base.job_file import read_job
    from stages.base.record import CACHE_NAME

    job, warnings = read_job(request.job_file, request.overrides, stages)
    for warning in warnings:
        show_warning(warning)
    return job, FrameCache(Path(job.output_path) / CACHE_NAME, str(request.job_file))


def _overrides(overrides: list[str] | None, device: str | None, dtype: str | None) -> list[str]:
    given = {"device": device, "dtype": dtype}
    return [*(overrides or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
