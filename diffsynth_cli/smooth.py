"""`diffsynth smooth`: take the flicker out of a video that any tool has stylised."""

from __future__ import annotations

import math
import shlex
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from diffsynth_cli.console import reporter
from diffsynth_cli.options import Debug, Force, Json, Quiet, as_argument
from stages.base.errors import UsageError


class TwoVideos(TyperCommand):
    """Shows in the usage line that the first of two paths may be left out, which Typer's types cannot say."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", "[GUIDE]", "STYLE"]


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
    frames = _frames(offset)
    if mode == "interpolate" and frames is not None and frames % 1:
        raise UsageError(f"--offset {offset}: keyframes can only be moved by whole frames")
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
    arguments = shlex.join([*map(as_argument, videos), "-o", as_argument(output), f"--mode={mode}", *options])
    smoothing = Smoothing(
        guide=videos[0] if len(videos) == 2 else None,
        style=videos[-1],
        output=output,
        config=config,
        interpolate=mode == "interpolate",
        device=device,
        offset=frames,
    )
    if report is not None:
        check_report(report, mode, [*smoothing.inputs, output], force)
    with closing(reporter(quiet, events)) as shown:
        changes = run_smooth(smoothing, arguments, shown, restart, force, keep_places=report is not None)
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
