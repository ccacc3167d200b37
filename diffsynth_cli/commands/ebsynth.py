"""`diffsynth ebsynth`: guided synthesis of one image, with the options of the ebsynth program."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from diffsynth_cli import videos
from diffsynth_cli.command import ORDER, Pair
from diffsynth_cli.console import percentage
from diffsynth_cli.options import (
    ADVANCED,
    DEVICE_OPTION,
    INPUT,
    MACHINE,
    OUTPUT,
    Debug,
    Force,
    Quiet,
    odd,
    one_of,
    with_options,
)
from native import Backend
from stages.base.errors import UsageError


class Vote(StrEnum):
    """How overlapping patches become one pixel."""

    PLAIN = "plain"
    WEIGHTED = "weighted"


def pair(images: Sequence[str]) -> Pair:
    """Parse the two values of --guide."""
    if any(image.startswith("-") for image in images):  # the next option was taken for an image
        raise typer.BadParameter("give two images: --guide SOURCE TARGET")
    return Pair(*map(Path, images))


StyleOption = Annotated[
    Path,
    typer.Option("--style", metavar="IMAGE", help="Style image.", show_default=False, rich_help_panel=INPUT),
]
GuideOption = Annotated[
    list[Pair],
    typer.Option(
        "--guide",
        metavar="SOURCE TARGET",
        parser=pair,
        help="Guide for the style, and the same guide for the image to paint. Repeatable.",
        rich_help_panel=INPUT,
    ),
]
WeightOption = Annotated[
    list[float] | None,
    typer.Option(
        "--weight",
        metavar="WEIGHT",
        min=0,
        max=1e6,
        help="Weight of the --style or --guide before it. Default: 1 for the style, 1 for all guides together.",
        rich_help_panel=INPUT,
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="IMAGE", help="Image to write.", show_default=False, rich_help_panel=OUTPUT),
]
NnfOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.npy",
        help="Also write the nearest-neighbour field: int32 [H, W, 2], row and column.",
        rich_help_panel=OUTPUT,
    ),
]
Uniformity = Annotated[
    float,
    typer.Option(min=0, max=1e6, help="How evenly parts of the style are used.", rich_help_panel=ADVANCED),
]
Patchsize = Annotated[
    int, typer.Option(min=3, max=31, callback=odd, help="Patch side in pixels, odd.", rich_help_panel=ADVANCED)
]
Pyramidlevels = Annotated[
    int,
    typer.Option(min=0, max=16, help="Pyramid levels (0 = as many as the size allows).", rich_help_panel=ADVANCED),
]
Searchvoteiters = Annotated[
    int,
    typer.Option(min=0, max=1000, help="Search and vote steps per pyramid level.", rich_help_panel=ADVANCED),
]
Patchmatchiters = Annotated[
    int, typer.Option(min=0, max=1000, help="PatchMatch sweeps per search.", rich_help_panel=ADVANCED)
]
Stopthreshold = Annotated[
    int,
    typer.Option(min=0, max=255, help="Stop updating pixels that changed by less than this.", rich_help_panel=ADVANCED),
]
Extrapass3x3 = Annotated[
    bool, typer.Option("--extrapass3x3", help="Finish with 3×3 patches.", rich_help_panel=ADVANCED)
]
VoteOption = Annotated[
    Vote,
    typer.Option(
        parser=one_of(Vote, "vote"),
        help="plain: average overlapping patches. weighted: favour patches that match well.",
        rich_help_panel=ADVANCED,
    ),
]
BackendOption = Annotated[
    Backend,
    typer.Option(
        parser=one_of(Backend, "back end"),
        help="Patch-matching back end. All paint the same image.",
        rich_help_panel=MACHINE,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.", rich_help_panel=ADVANCED)]
Threads = Annotated[int, typer.Option(min=0, max=1024, help="CPU threads (0 = all).", rich_help_panel=MACHINE)]


@with_options(*DEVICE_OPTION)
def ebsynth(
    context: typer.Context,
    *,
    style: StyleOption,
    guide: GuideOption,
    weight: WeightOption = None,
    output: OutputOption,
    nnf: NnfOption = None,
    uniformity: Uniformity = 3500.0,
    patchsize: Patchsize = 5,
    pyramidlevels: Pyramidlevels = 0,
    searchvoteiters: Searchvoteiters = 6,
    patchmatchiters: Patchmatchiters = 4,
    stopthreshold: Stopthreshold = 5,
    extrapass3x3: Extrapass3x3 = False,
    vote: VoteOption = Vote.PLAIN,
    backend: BackendOption = Backend.AUTO,
    seed: Seed = 0,
    threads: Threads = 0,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **machine: str,
) -> None:
    """Paint an image in the style of another, guided by pairs of images. Takes the options of the ebsynth program."""
    style_weight, *guide_weights = weights_in_order(context.meta[ORDER], weight or [])
    with percentage("ebsynth", quiet) as progress:
        path = videos.ebsynth(
            style,
            [(*images, weighs) for images, weighs in zip(guide, guide_weights, strict=True)],
            output,
            style_weight=1.0 if style_weight is None else style_weight,
            uniformity=uniformity,
            patch_size=patchsize,
            pyramid_levels=pyramidlevels,
            search_vote_iterations=searchvoteiters,
            patch_match_iterations=patchmatchiters,
            stop_threshold=stopthreshold,
            extra_pass_3x3=extrapass3x3,
            weighted_vote=vote is Vote.WEIGHTED,
            backend=backend,
            seed=seed,
            threads=threads,
            nnf=nnf,
            force=force,
            progress=progress,
            **machine,
        )
    if not quiet:
        typer.echo(path)


def weights_in_order(order: Sequence[str], weights: Sequence[float]) -> list[float | None]:
    """Return the weights of the style and of each guide; None for those without one.

    Args:
        order: Names of the options in the order of the command line.
        weights: The values of --weight in the same order.
    """
    found: dict[int, float | None] = {0: None}  # 0 is the style's, guides count from 1
    last, left = None, iter(weights)
    for name in order:
        if name == "style":
            last = 0
        elif name == "guide":
            last = len(found)
            found[last] = None
        elif name == "weight":
            if last is None:
                raise UsageError("--weight must follow the --style or --guide that it is for")
            found[last] = next(left)
    return [found[index] for index in range(len(found))]
