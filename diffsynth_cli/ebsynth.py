"""`diffsynth ebsynth`: guided synthesis of one image, with the options of the ebsynth program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from diffsynth_cli.console import percentage
from diffsynth_cli.options import Debug, Force, Quiet
from stages.base.errors import UsageError


class InOrder(TyperCommand):
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
    from stages.smoothers.images.synthesis import Guide, Painting, paint

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
