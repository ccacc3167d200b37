"""`diffsynth mask`: cut people, or any object, out of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from diffsynth_cli import masks
from diffsynth_cli.console import reporter
from diffsynth_cli.options import DEVICE_OPTION, INPUT, OUTPUT, Debug, Force, Json, Quiet, with_options


class Point(NamedTuple):
    """The value of --point and --exclude, in pixels."""

    x: float
    y: float


def point(text: str) -> Point:
    """Parse `X,Y`."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no point; give X,Y in pixels, for example 320,180") from None
    return Point(x, y)


def point_option(name: str, description: str) -> Any:
    """Declare an option that takes points."""
    return typer.Option(name, metavar="X,Y", parser=point, help=description, show_default=False, rich_help_panel=INPUT)


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
    points: Annotated[
        list[Point] | None,
        point_option("--point", "Point of an object to follow, in pixels, instead of finding people. Repeatable."),
    ] = None,
    others: Annotated[
        list[Point] | None, point_option("--exclude", "Point that does not belong to it. Repeatable.")
    ] = None,
    first: Annotated[
        int,
        typer.Option(
            min=0,
            help="Frame that the points are in, counted from 0. Masks of earlier frames are black.",
            rich_help_panel=INPUT,
        ),
    ] = 0,
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
        float | None,
        typer.Option(min=0, max=1, help="Min. confidence of a person.", show_default="0.5", rich_help_panel=INPUT),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    events: Json = False,
    debug: Debug = False,
    **machine: Any,
) -> None:
    """Write masks, white on black, of the people in a video or of an object that is followed through it."""
    masks.mask(
        video,
        output,
        points=points or (),
        others=others or (),
        first=first,
        model=model,
        detector=detector,
        threshold=threshold,
        force=force,
        reporter=reporter(quiet, events),
        **machine,
    )
