"""`diffsynth status`: a line per stage, and the command that resumes the job."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from diffsynth_cli.results import JobStatus
from stages.base.words import counted

if TYPE_CHECKING:
    from stages.base.engine import Progress

COLOURS = {"done": "green", "partly": "yellow", "stale": "red", "to do": "dim"}


def show_status(status: JobStatus, as_json: bool) -> None:
    """Print how far every stage of a job is."""
    if as_json:
        stages = [
            {"stage": stage.stage, "state": stage.state, "share": round(stage.share, 4), "changes": stage.changes}
            for stage in status.stages
        ]
        video = str(status.video) if status.video else None
        print(json.dumps({"stages": stages, "video": video, "next": status.next_command, "holder": status.holder}))
        return
    out = Console(highlight=False, soft_wrap=True)
    for stage in status.stages:
        out.print(f"{stage.stage:10}[{COLOURS[stage.state]}]{stage.state:7}[/] {escape(_detail(stage))}")
    if status.video:
        out.print(f"{'video':10}{escape(str(status.video))}")
    if status.holder:
        out.print(f"in use by {escape(status.holder)}")
    elif status.next_command:
        out.print(f"→ {escape(status.next_command)}")


def _detail(stage: Progress) -> str:
    if stage.state == "done" and stage.receipt:
        frames = counted(stage.receipt["frames"], "frame")
        return f"{frames} in {stage.receipt['seconds']:.1f} s, {stage.receipt['finished']}"
    if stage.state == "partly":
        return f"{stage.share:.0%}"
    return "; ".join(stage.changes)
