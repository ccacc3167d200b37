"""The commands. Each parses, calls a stage and shows the result; what is heavy is imported when it is needed."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from diffsynth_cli import __version__
from diffsynth_cli.console import percentage, show_warning
from diffsynth_cli.console import reporter as make_reporter
from stages.base.errors import DiffSynthError, UsageError
from templates import TASKS

if TYPE_CHECKING:
    from stages.base.cache import FrameCache
    from stages.base.engine import Options, Reporter
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
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Groups of frames that go through the networks at once; else as many as fit.")
]
LowVram = Annotated[bool, typer.Option("--low-vram", help="What is not needed at the moment leaves the GPU's memory.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the networks first: minutes, once, for faster steps on a GPU.")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Also read models in pickles, which can run code. allow_pickle=true.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Do the stage anew; run: those stages whose keys changed.")]
Preview = Annotated[
    bool, typer.Option("--preview", help="Also write OUTPUT/preview.png: some frames over their maps and results.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files, but never an input.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks.")]


STAGE_COMMANDS = {
    "extract": "Video → frames.",
    "control": "Frames → control maps.",
    "render": "Frames and control maps → rendered frames.",
    "deflicker": "Rendered frames → smooth frames → video.mp4.",
    "run": "All stages that are not finished.",
}


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
        stages = list(STAGES) if name == "run" else [name]
        loaded, cache = _open(job, overrides, stages)
        check_job_outputs(loaded, job, stages, preview, force)
        options = Options(batch_size, low_vram, compiled)
        reporter = make_reporter(quiet, events)
        _run_stages(stages, loaded, job, cache, reporter, options, restart, stale_only=name == "run")
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
def export(
    job: JobFile,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A .mp4, .mov, .mkv or .webm file.",
            show_default="video-CODEC in the job's output folder",
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(help="h264, hevc, vp9, prores or ffv1.", show_default="by the suffix of --output; h264"),
    ] = None,
    crf: Annotated[int | None, typer.Option(min=0, max=63, help="Quality: lower is better and larger.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.1, max=1000, help="Frame rate.")] = None,
    overrides: Set = None,
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
) -> None:
    """The video again, with another codec, quality or frame rate."""
    from diffsynth_cli.outputs import is_own
    from stages.base.job_file import input_paths
    from stages.base.outputs import check_output
    from stages.deflicker import write_video
    from stages.video import CONTAINERS, ENCODERS, check_encoding, default_codec

    if codec is not None and codec not in ENCODERS:
        raise UsageError(f"--codec: unknown codec {codec!r}", f"known: {', '.join(ENCODERS)}")
    speed = [] if fps is None else [f"fps={fps}"]
    loaded, cache = _open(job, [*(overrides or []), *speed])
    if codec is None:
        codec = default_codec(output) if output and output.suffix.lower() in CONTAINERS else "h264"
    path = output or Path(loaded.output_path) / f"video-{codec}{_SUFFIX[codec]}"
    check_encoding(path, codec)
    own = output is None and is_own(path, loaded)
    check_output(path, [*input_paths(loaded), job], force=force, own=own)
    if not cache.record("deflicker").complete:
        raise DiffSynthError("export needs deflicker, which is not finished", f"{cache.command('run')} finishes it")
    write_video(path, loaded, cache, make_reporter(quiet, events), codec, crf)


_SUFFIX = {"h264": ".mp4", "hevc": ".mp4", "vp9": ".webm", "prores": ".mov", "ffv1": ".mkv"}


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
    job, cache = _open(path, [], STAGES)
    check_job_outputs(job, path, STAGES, preview=False, force=force)
    _run_stages(STAGES, job, path, cache, make_reporter(quiet, events), Options(), restart=True, stale_only=True)
    sheet = write_sheet(output, cache)
    if not (quiet or events):
        typer.echo(f"video          {Path(job.output_path) / 'video.mp4'}")
        typer.echo(f"contact sheet  {sheet}")
        typer.echo(f"one of yours   diffsynth demo --video VIDEO --output FOLDER --prompt {shlex.quote(prompt)}")


class _InOrder(TyperCommand):
    """Takes `--guide SOURCE TARGET`, which Typer's types cannot say, as two times --guide, and remembers the order
    of the command line, in which a --weight belongs to the --style or --guide before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["arguments"] = list(args)
        left, given = iter(args), []
        for argument in left:
            given.append(argument)
            if argument == "--guide":
                pair = [next(left, "--"), next(left, "--")]
                if any(value.startswith("--") for value in pair):
                    raise UsageError("--guide takes two images: --guide SOURCE TARGET")
                given += [pair[0], argument, pair[1]]
        return super().parse_args(ctx, given)


@app.command(cls=_InOrder)
def ebsynth(
    context: typer.Context,
    style: Annotated[Path, typer.Option("--style", help="The image whose style is taken.", show_default=False)],
    guide: Annotated[
        list[Path],
        typer.Option(
            "--guide",
            metavar="SOURCE TARGET",
            help="What the style was painted on, and what is to be painted. Repeatable.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The image to write.", show_default=False)],
    weight: Annotated[
        list[float] | None,
        typer.Option(
            "--weight", min=0, max=1e6, help="Of the --style or --guide before it. Default: style 1, guides 1 together."
        ),
    ] = None,
    uniformity: Annotated[float, typer.Option(min=0, max=1e6, help="How evenly the style's parts are used.")] = 3500.0,
    patchsize: Annotated[int, typer.Option(min=3, max=31, help="Pixels a side, odd.")] = 5,
    pyramidlevels: Annotated[int, typer.Option(min=0, max=16, help="0: as many as the size allows.")] = 0,
    searchvoteiters: Annotated[int, typer.Option(min=0, max=1000, help="Rounds of search and vote a level.")] = 6,
    patchmatchiters: Annotated[int, typer.Option(min=0, max=1000, help="Sweeps a search.")] = 4,
    stopthreshold: Annotated[int, typer.Option(min=0, max=255, help="Pixels that changed less are done.")] = 5,
    extrapass3x3: Annotated[bool, typer.Option("--extrapass3x3", help="A last pass with 3×3 patches.")] = False,
    vote: Annotated[str, typer.Option(help="plain, or weighted by how well patches match.")] = "plain",
    backend: Annotated[str, typer.Option(help="auto, cpu, cuda or numba. All give the same image.")] = "auto",
    nnf: Annotated[
        Path | None, typer.Option(help="Write the field too: .npy, int32 [H, W, 2], row and column.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Of the CPU; 0: all.")] = 0,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Paint an image in the style of another, led by pairs of guides (the options of the ebsynth program)."""
    from native.binding import BACKENDS
    from stages.base.outputs import check_output
    from stages.smoothing.synthesis import Guide, Painting, paint

    if vote not in ("plain", "weighted"):
        raise UsageError(f"--vote: unknown vote {vote!r}", "known: plain, weighted")
    if backend not in BACKENDS:
        raise UsageError(f"--backend: unknown back end {backend!r}", f"known: {', '.join(BACKENDS)}")
    if patchsize % 2 == 0:
        raise UsageError(f"--patchsize {patchsize}: must be odd")
    for path in (output, nnf):
        if path is not None:
            check_output(path, [style, *guide], force=force)
    style_weight, guide_weights = _weights_in_order(context.meta["arguments"], weight or [], len(guide) // 2)
    options = {
        "uniformity": uniformity,
        "patch_size": patchsize,
        "pyramid_levels": pyramidlevels,
        "search_vote_iterations": searchvoteiters,
        "patch_match_iterations": patchmatchiters,
        "stop_threshold": stopthreshold,
        "extra_pass_3x3": extrapass3x3,
        "weighted_vote": vote == "weighted",
        "backend": backend,
        "seed": seed,
        "threads": threads,
    }
    pairs = zip(guide[::2], guide[1::2], guide_weights, strict=True)
    with percentage("ebsynth", quiet) as progress:
        paint(Painting(style, [Guide(*pair) for pair in pairs], style_weight, options), output, nnf, progress)
    if not quiet:
        typer.echo(output)


def _weights_in_order(
    arguments: Sequence[str], weights: Sequence[float], guides: int
) -> tuple[float, list[float | None]]:
    """The style's weight and the guides', from which option each --weight follows."""
    style_weight: float = 1.0
    guide_weights: list[float | None] = [None] * guides
    last, seen, left = "", 0, iter(weights)
    for argument in arguments:
        option = argument.split("=", 1)[0]
        if option in ("--style", "--guide"):
            last, seen = option, seen + (option == "--guide")
        elif option == "--weight" and last == "--style":
            style_weight = next(left)
        elif option == "--weight" and last == "--guide":
            guide_weights[seen - 1] = next(left)
        elif option == "--weight":
            raise UsageError("--weight must follow the --style or --guide that it is for")
    return style_weight, guide_weights


class _TwoVideos(TyperCommand):
    """Shows in the usage line that the first of two paths may be left out, which Typer's types cannot say."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", "[GUIDE]", "STYLE"]


@app.command(cls=_TwoVideos)
def smooth(
    videos: Annotated[
        list[Path],
        typer.Argument(
            metavar="[GUIDE] STYLE",
            help="STYLE: the stylised video, from any tool, or a folder of images. GUIDE: the video it was made from; "
            "without it, STYLE is smoothed by its own motion.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="A .mp4, .mov, .mkv or .webm file; any other name is a folder of images.",
            show_default=False,
        ),
    ],
    mode: Annotated[
        str,
        typer.Option(help="blend: smooth all frames; interpolate: STYLE is a folder of keyframes, paint the others."),
    ] = "blend",
    offset: Annotated[
        str,
        typer.Option(
            metavar="auto|FRAMES",
            help="Frames by which STYLE is ahead of GUIDE; negative if it is behind. auto: find out.",
        ),
    ] = "auto",
    window: Annotated[int, typer.Option(min=0, max=1000, help="Frames to each side that light is averaged over.")] = 15,
    strength: Annotated[float, typer.Option(min=0, max=1, help="0: as it was; 1: all flicker out.")] = 1.0,
    detail: Annotated[
        float, typer.Option(min=0, max=1, help="0: only what neighbours agree on; 1: all of each frame's own.")
    ] = 0.5,
    patch_size: Annotated[int, typer.Option(min=3, max=31, help="Pixels a side of matched patches, odd.")] = 5,
    guide_weight: Annotated[
        float,
        typer.Option(min=0, max=100, help="How much it counts that GUIDE differs where matched; less if it is grainy."),
    ] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1. auto: a GPU, if there is one.")] = "auto",
    restart: Annotated[
        bool, typer.Option("--restart", help="Redo everything, even if the output is complete.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a .png sheet of the places that changed most, lost structure or were left alone."),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
) -> None:
    """Take the flicker out of any stylised video, or paint the frames between keyframes. Resumes where it stopped."""
    from diffsynth_cli.change_report import check_report, write_report
    from stages.smooth import Smoothing
    from stages.smooth import smooth as run_smooth

    if len(videos) > 2:
        raise UsageError(
            f"{len(videos)} videos given",
            "give the original video, if there is one, and the stylised one",
        )
    if patch_size % 2 == 0:
        raise UsageError(f"--patch-size {patch_size}: must be odd")
    if mode not in ("blend", "interpolate"):
        raise UsageError(f"--mode: unknown mode {mode!r}", "known: blend, interpolate")
    if mode == "interpolate" and len(videos) == 1:
        raise UsageError("--mode interpolate needs two paths: GUIDE, and STYLE as a folder of keyframes")
    if mode == "interpolate" and offset != "auto":
        raise UsageError(
            "--offset cannot be used with --mode interpolate", "the names of keyframes say where they belong"
        )
    config = {
        "window": window,
        "strength": strength,
        "detail": detail,
        "patch_size": patch_size,
        "guide_weight": guide_weight,
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in config.items()]
    options += [f"--device={device}"] * (device != "auto") + [f"--offset={offset}"] * (offset != "auto")
    options += ["--force"] * force
    arguments = shlex.join([*map(str, videos), "-o", str(output), f"--mode={mode}", *options])
    smoothing = Smoothing(
        guide=videos[0] if len(videos) == 2 else None,
        style=videos[-1],
        output=output,
        config=config,
        interpolate=mode == "interpolate",
        device=device,
        offset=_frames(offset),
    )
    if report is not None:
        check_report(report, mode, [*smoothing.inputs, output], force)
    with closing(make_reporter(quiet, events)) as reporter:
        changes = run_smooth(smoothing, arguments, reporter, restart, force, keep_places=report is not None)
    if report is not None and changes is not None:
        write_report(report, changes)


def _frames(offset: str) -> float | None:
    """The value of --offset; None for auto."""
    if offset == "auto":
        return None
    try:
        frames = float(offset)
    except ValueError:
        frames = math.nan
    if not math.isfinite(frames):
        raise UsageError(f"--offset {offset}: not a number of frames", "give auto, or a number such as 3 or -1.5")
    return frames


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
    from stages.base.job import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"diffsynth-cli {__version__}")
        raise typer.Exit()


# --- what the commands share ----------------------------------------------------------------------------


def _open(path: Path, overrides: Sequence[str] | None, stages: Sequence[str] = ()) -> tuple[Job, FrameCache]:
    """The job and its cache. The files that `stages` read must exist, unless the stage is done."""
    from stages.base.cache import FrameCache
    from stages.base.job_file import read_job
    from stages.base.record import CACHE_NAME

    job, warnings = read_job(path, overrides or [], stages)
    for warning in warnings:
        show_warning(warning)
    arguments = shlex.join([str(path), *(f"--set={override}" for override in overrides or [])])
    return job, FrameCache(Path(job.output_path) / CACHE_NAME, arguments)


def _run_stages(
    names: Sequence[str],
    job: Job,
    job_file: Path,
    cache: FrameCache,
    reporter: Reporter,
    options: Options,
    restart: bool,
    stale_only: bool,
) -> None:
    """Runs stages one after the other. `restart` redoes them, with `stale_only` just those whose keys changed."""
    from diffsynth_cli.outputs import CONFIG, is_same_file
    from stages.base.engine import Run, progress, run_stage
    from stages.base.preflight import check_ahead
    from stages.base.record import write_json

    run = Run(job, cache, reporter, options)
    stages = [import_module(f"stages.{name}").STAGE for name in names]
    redone = [name for name in names if restart and (not stale_only or progress(name, job, cache).state == "stale")]
    check_ahead(stages, run, redone)
    with cache.lock(), closing(reporter):
        for stage in stages:
            run_stage(stage, run, stage.name in redone)
            config = Path(job.output_path) / CONFIG
            if not is_same_file(config, job_file):
                write_json(config, job.model_dump())
