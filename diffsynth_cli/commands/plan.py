"""`diffsynth plan`: how much work a job is, how long it takes and what it costs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from diffsynth_cli import jobs, planning
from diffsynth_cli.console import literal, reporter
from diffsynth_cli.options import INPUT, MACHINE_OPTIONS, Debug, JobFile, Quiet, Set, with_options
from diffsynth_cli.results import JobPlan
from stages.base.errors import UsageError
from stages.base.words import counted, duration, size

PRICES = "Prices"  # panel of the command's help


def numbers(text: str) -> list[int]:
    """Parse `1,8,64`."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"--workers {text}: give numbers separated by commas, such as 1,8,64") from None


@with_options(*MACHINE_OPTIONS)
def plan(
    job: JobFile,
    overrides: Set = None,
    workers: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of workers to compare, separated by commas.")
    ] = "1",
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Measurements, perhaps from another machine. Written if the file does not exist.",
            show_default="calibration.json in the output folder, if that exists",
            rich_help_panel=INPUT,
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="MB/S",
            help="Rate at which all workers together can read and write the cache.",
            show_default="grows with the number of workers",
        ),
    ] = None,
    worker_price: Annotated[
        float | None, typer.Option(min=0, help="Price of a worker for an hour.", rich_help_panel=PRICES)
    ] = None,
    put_price: Annotated[
        float | None, typer.Option(min=0, help="Price of 1,000 PUT requests.", rich_help_panel=PRICES)
    ] = None,
    get_price: Annotated[
        float | None, typer.Option(min=0, help="Price of 1,000 GET requests.", rich_help_panel=PRICES)
    ] = None,
    quiet: Quiet = False,
    events: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object to stdout.")] = False,
    debug: Debug = False,
    **machine: object,
) -> None:
    """Measure a few frames, and show how much work a job is, how long it takes and what it costs."""
    found = planning.plan(
        job,
        workers=numbers(workers),
        calibration=calibration,
        bandwidth=bandwidth,
        worker_price=worker_price,
        put_price=put_price,
        get_price=get_price,
        overrides=jobs.with_settings(overrides, machine),
        reporter=reporter(quiet or events, False),
    )
    if events:
        print(json.dumps({**asdict(found), "seconds": found.seconds, "costs": found.costs}))
    else:
        show_plan(found)


def show_plan(found: JobPlan) -> None:
    """Print the work of a job and, for each number of workers, how long each kind takes and what limits it."""
    out = Console(highlight=False)
    counts = (f"{count:,.0f} {name}" for name, count in found.counts.items())
    out.print(
        ", ".join([f"{found.frames:,} frames", *counts, f"about {size(found.disk)} in the cache"]), soft_wrap=True
    )
    times = (Column(counted(count, "worker"), justify="right") for count in found.workers)
    traffic = (Column(name, justify="right") for name in ("read", "written"))
    table = Table(Column("work", overflow="fold"), *times, *traffic, "limited by")
    for each in found.work:
        repeated = f"{each.phases} × " if each.phases > 1 else ""
        moved = (size(number) if number else "" for number in (each.bytes_read, each.bytes_written))
        limits = ", then ".join(dict.fromkeys(each.bound))
        table.add_row(literal(f"{repeated}{each.kind}"), *map(duration, each.seconds), *moved, limits)
    table.add_section()
    sums = (sum(column) for column in zip(*((each.bytes_read, each.bytes_written) for each in found.work), strict=True))
    table.add_row("all", *map(duration, found.seconds), *map(size, sums), "")
    if found.costs is not None:
        table.add_row("cost", *(f"{cost:,.2f}" for cost in found.costs), "", "", "")
    out.print(table)
    gets, puts = (sum(column) for column in zip(*((each.gets, each.puts) for each in found.work), strict=True))
    out.print(f"{puts:,} frames written and {gets:,} read, each by one request if the cache is in an object store")
    out.print(f"measured on {literal(found.measured_on)}")
