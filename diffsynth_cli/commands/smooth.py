"""`diffsynth smooth`: reduce the flicker of a video stylised with any tool."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from diffsynth_cli import videos as videos_api
from diffsynth_cli.console import reporter
from diffsynth_cli.options import (
    INPUT,
    OUTPUT,
    SMOOTHING_OPTIONS,
    Debug,
    Force,
    Json,
    Quiet,
    one_of,
    options_of,
    with_options,
)
from diffsynth_cli.results import Mode
from stages.base.errors import UsageError
from stages.base.scenes import Scenes, check_scenes
from stages.jobs.masking import MaskSettings
from stages.smoothers import SmootherOptions
from stages.smoothers.patch_blend import PatchBlend

# Without the options that all smoothers share, which only jobs have.
SMOOTHER_OPTIONS = options_of(
    PatchBlend, "Smoothing", [name for name in PatchBlend.model_fields if name not in SmootherOptions.model_fields]
)
MASK_OPTIONS = options_of(MaskSettings, "Mask")


def frames(text: str) -> float | None:
    """Parse --offset: a number of frames, or None for auto."""
    if text == "auto":
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise typer.BadParameter(f"{text} is not a number of frames; give auto, or a number such as 3 or -1.5")
    return number


def cuts(text: str) -> Scenes:
    """Parse --scenes: auto, or frame numbers with commas between them."""
    try:
        return check_scenes("auto" if text == "auto" else [int(number) for number in text.split(",")])
    except ValueError:
        raise typer.BadParameter(
            f"{text} is neither auto nor the first frame of each scene after the first, ascending, such as 40,81"
        ) from None


VideosArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="[GUIDE] STYLE",
        help="STYLE: stylised video from any tool, or a folder of images. GUIDE: the video it was made from. "
        "Without GUIDE, STYLE is smoothed by its own motion.",
        show_default=False,
    ),
]
ModeOption = Annotated[
    Mode,
    typer.Option(
        parser=one_of(Mode, "mode"),
        help="blend: smooth all frames. interpolate: STYLE is a folder of keyframes; paint the frames between.",
        rich_help_panel=INPUT,
    ),
]
Offset = Annotated[
    float | None,
    typer.Option(
        parser=frames,
        metavar="auto|FRAMES",
        help="Frames by which STYLE is ahead of GUIDE; negative if it is behind. auto: detect it.",
        show_default="auto",
        rich_help_panel=INPUT,
    ),
]
ScenesOption = Annotated[
    Any,  # what `cuts` returns, since Typer knows no unions
    typer.Option(
        parser=cuts,
        metavar="auto|FRAMES",
        help="Smooth or paint every scene by itself. auto: find the cuts in GUIDE, or in STYLE if there is no GUIDE. "
        "FRAMES: the first frame of each scene after the first, such as 40,81.",
        show_default="one scene",
        rich_help_panel=INPUT,
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="Video to write (.mp4, .mov, .mkv or .webm). Any other name is a folder of images.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.html|FILE.png",
        help="Also write a page that compares the videos, or only a sheet of the places that changed most, lost "
        "structure or were left alone.",
        rich_help_panel=OUTPUT,
    ),
]
RestartOption = Annotated[bool, typer.Option("--restart", help="Redo everything, even if the output is complete.")]


@with_options(*SMOOTHER_OPTIONS, *MASK_OPTIONS, *SMOOTHING_OPTIONS)
def smooth(
    videos: VideosArgument,
    *,
    mode: ModeOption = Mode.BLEND,
    offset: Offset = None,
    scenes: ScenesOption = None,
    output: OutputOption,
    report: Report = None,
    restart: RestartOption = False,
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
    **options: Any,  # as SMOOTHER_OPTIONS declares them
) -> None:
    """Reduce the flicker of any stylised video, or paint the frames between keyframes. Resumes if interrupted."""
    if len(videos) > 2:
        raise UsageError(
            f"{len(videos)} videos given", "Give the original video, if there is one, and the stylised one."
        )
    videos_api.smooth(
        videos[0] if len(videos) == 2 else None,
        videos[-1],
        output,
        mode=mode,
        offset=offset,
        scenes=scenes,
        report=report,
        restart=restart,
        force=force,
        reporter=reporter(quiet, events),
        **options,
    )
