"""`diffsynth models`: the models that a job or a task reads, and downloading them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from diffsynth_cli import model_files
from diffsynth_cli.console import literal, reporter
from diffsynth_cli.failures import FAILED
from diffsynth_cli.options import INPUT, Debug, Quiet, Set, one_of, with_options
from diffsynth_cli.results import ModelFiles, Place
from stages.base.words import counted, size
from templates import DOWNLOADS, LORAS, Task

SHOWN = 3  # names of missing files


@with_options()
def models(
    job: Annotated[
        Path | None,
        typer.Argument(metavar="[JOB.json]", help="Job file.", show_default="the models of all tasks"),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(parser=one_of(Task, "task"), help="Task of init, instead of a job.", rich_help_panel=INPUT),
    ] = None,
    overrides: Set = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download what is missing, after showing its size.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read all files, and compare them with their hashes.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask the hub. The exit code is 1 if anything is missing.")
    ] = False,
    quiet: Quiet = False,
    events: Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")] = False,
    debug: Debug = False,
) -> None:
    """List the models that a job or a task reads, check their files, and download what is missing."""

    def announce(missing: tuple[ModelFiles, ...]) -> bool:
        if not events:
            show_models(missing)
        return True

    found = model_files.models(
        job,
        task=task,
        overrides=overrides or (),
        check=check,
        fetch=fetch,
        offline=offline,
        confirm=announce,
        reporter=reporter(quiet or events, False),
    )
    ready = all(model.ready for model in found)
    if events:
        listed = [{**asdict(model), "ready": model.ready} for model in found]
        print(json.dumps({"ready": ready, "models": listed}, default=str))
    else:
        show_models(found)
    if (offline or check or fetch) and not ready:
        raise typer.Exit(FAILED)


def show_models(found: tuple[ModelFiles, ...]) -> None:
    """Print a table of models."""
    table = Table(Column("model", overflow="fold"), Column("size", justify="right", no_wrap=True), "state")
    for model in found:
        table.add_row("\n".join([literal(model.name), *_details(model)]), _size(model), _state(model))
    out = Console(highlight=False)
    out.print(table)
    out.print(_summary(found), soft_wrap=True)


def _details(model: ModelFiles) -> Iterator[str]:
    """Yield what else is known of a model, and what to do about what is missing, one line each."""
    licence = [f"licence {model.licence}"] if model.licence else []
    yield f"[dim]{literal(', '.join([*model.keys, *licence]))}[/]"
    if model.bytes and model.missing:
        more = len(model.missing) - SHOWN
        rest = f" and {counted(more, 'more file')}" if more > 0 else ""
        yield literal(f"lacks {', '.join(model.missing[:SHOWN])}{rest}")
    if model.damaged:
        yield literal(f"damaged: {', '.join(model.damaged)}")
        yield "[bold]→[/] delete it, and get it again" + (" with --fetch" if model.place is Place.CACHE else "")
    if model.missing and model.name in LORAS:
        yield f"[bold]→[/] {literal(LORAS[model.name])}"


def _size(model: ModelFiles) -> str:
    """Format the size of all files. It is estimated if the hub was not asked."""
    if model.place is Place.HUB and model.download is None:
        estimate = DOWNLOADS.get(model.name)
        return "" if estimate is None else f"about {estimate:g} GB"
    total = model.bytes + (model.download or 0)
    return size(total) if total else ""


def _state(model: ModelFiles) -> str:
    if model.damaged:
        return "[bold red]damaged[/]"
    if model.ready:
        return f"[green]{model.place}[/]{', checked' if model.damaged is not None else ''}"
    return "[yellow]to download[/]" if model.place is Place.HUB else "[bold red]missing[/]"


def _summary(found: tuple[ModelFiles, ...]) -> str:
    hub = [model for model in found if model.place is Place.HUB]
    known = [model.download for model in hub if model.download is not None]
    rest = f", {size(sum(known))}" if hub and len(known) == len(hub) else ""
    here = f"{counted(len(found), 'model')}, {size(sum(model.bytes for model in found))} on this machine"
    return f"{here}; {len(hub)} to download{rest}" if hub else here
