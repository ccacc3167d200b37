"""`diffsynth doctor`: whether this machine can run jobs, and what to do if it cannot."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from diffsynth_cli import health, jobs
from diffsynth_cli.console import literal, reporter
from diffsynth_cli.failures import FAILED
from diffsynth_cli.options import MACHINE_OPTIONS, Debug, Quiet, Set, with_options
from diffsynth_cli.results import DoctorResult, Finding, Health

COLOURS = {Health.OK: "green", Health.WARNING: "yellow", Health.FAILED: "bold red"}


@with_options(*MACHINE_OPTIONS)
def doctor(
    job: Annotated[
        Path | None, typer.Argument(metavar="[JOB.json]", help="Job to check, too.", show_default=False)
    ] = None,
    overrides: Set = None,
    quiet: Quiet = False,
    events: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object to stdout.")] = False,
    debug: Debug = False,
    **machine: object,
) -> None:
    """Check whether this machine, or a job, can run, and show what to do about what is missing."""
    found = health.doctor(
        job, overrides=jobs.with_settings(overrides, machine), reporter=reporter(quiet or events, False)
    )
    if events:
        print(json.dumps({"can_run": found.can_run, "findings": [asdict(finding) for finding in found.findings]}))
    else:
        show_findings(found, "The job" if job else "Jobs")
    if not found.can_run:
        raise typer.Exit(FAILED)


def show_findings(found: DoctorResult, what: str) -> None:
    """Print a table of what was found and, below each lack, what to do about it."""
    out = Console(highlight=False)
    table = Table(Column("check", no_wrap=True), Column("state", no_wrap=True), Column("found", overflow="fold"))
    for finding in found.findings:
        table.add_row(finding.check, f"[{COLOURS[finding.health]}]{finding.health}[/]", _described(finding))
    out.print(table)
    out.print(f"{what} can run here." if found.can_run else f"[bold red]{what} cannot run here.[/]", soft_wrap=True)


def _described(finding: Finding) -> str:
    advice = f"\n[bold]→[/] {literal(finding.advice)}" if finding.advice else ""
    return f"{literal(finding.detail)}{advice}"
