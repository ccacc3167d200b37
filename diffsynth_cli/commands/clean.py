"""`diffsynth clean`: delete what a job's cache no longer needs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from diffsynth_cli import cleaning, jobs
from diffsynth_cli.console import literal
from diffsynth_cli.options import CACHE_OPTION, Debug, Set, with_options
from diffsynth_cli.results import Removable
from stages.base.errors import UsageError
from stages.base.words import size


@with_options(*CACHE_OPTION)
def clean(
    job: Annotated[
        Path,
        typer.Argument(metavar="JOB.json", help="Job file, or the output of an unfinished smooth.", show_default=False),
    ],
    overrides: Set = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what can be deleted.")] = False,
    events: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to stdout. Deletes only with --yes.")
    ] = False,
    debug: Debug = False,
    **machine: object,
) -> None:
    """Show what a job's cache no longer needs, with sizes, and delete it after asking."""
    only_shown = dry_run or (events and not yes)
    done = cleaning.clean(
        job,
        overrides=jobs.with_settings(overrides, machine),
        confirm=lambda found: yes or _confirmed(found),
        dry_run=only_shown,
    )
    if events:
        found = [asdict(item) for item in done.found]
        print(json.dumps({"found": found, "bytes": done.bytes, "deleted": done.deleted}))
    elif not done.found:
        typer.echo("Nothing can be deleted.")
    elif done.deleted or only_shown:
        if yes or only_shown:
            show_removable(done.found)
        typer.echo("Nothing was deleted." if only_shown else f"Deleted {size(done.bytes)}.")


def _confirmed(found: tuple[Removable, ...]) -> bool:
    show_removable(found)
    if not sys.stdin.isatty():
        raise UsageError("clean asks before it deletes, but its input is no terminal", "give --yes or --dry-run")
    return typer.confirm("Delete these?")


def show_removable(found: tuple[Removable, ...]) -> None:
    """Print a table of what can be deleted."""
    table = Table(Column("name", overflow="fold"), Column("size", justify="right", no_wrap=True), "why")
    for item in found:
        table.add_row(literal(item.name), size(item.bytes), item.reason)
    table.add_section()
    table.add_row("all", size(sum(item.bytes for item in found)), "")
    Console(highlight=False).print(table)
