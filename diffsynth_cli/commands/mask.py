"""`diffsynth mask`: cut the people out of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffsynth_cli import masks
from diffsynth_cli.console import reporter
from diffsynth_cli.options import DEVICE_OPTION, INPUT, OUTPUT, Debug, Force, Json, Quiet, with_options


@with_options(*DEVICE_OPTION)
def mask(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="Video or folder of images.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Video to write (.mkv is lossless). Any other name is a folder of images.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="SAM 2 model: hub id or folder.",
            show_default="facebook/sam2.1-hiera-small",
            rich_help_panel=INPUT,
        ),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Detector of people: hub id or folder.",
            show_default="PekingU/rtdetr_v2_r18vd",
            rich_help_panel=INPUT,
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Min. confidence of a person.", rich_help_panel=INPUT)
    ] = 0.5,
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
    **machine: str,
) -> None:
    """Write the masks of the people in a video, white on black."""
    masks.mask(
        video,
        output,
        model=model,
        detector=detector,
        threshold=threshold,
        force=force,
        reporter=reporter(quiet, events),
        **machine,
    )
