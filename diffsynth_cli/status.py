"""`diffsynth status`: a line a stage, and the command that goes on."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from stages.all_stages import all_stages
from stages.base.cache import FrameCache
from stages.base.engine import Progress, progress
from stages.base.words import counted
from stages.jobs.job import Job

COLOURS = {"done": "green", "partly": "yellow", "stale": "red", "to do": "dim"}


def show_status(job: Job, cache: FrameCache, as_json: bool) -> None:
    """Prints how far every stage of a job is."""
    known = all_stages()
    stages = [progress(stage, known, job, cache) for stage in known.values()]
    video, holder, command = Path(job.output_path) / "video.mp4", cache.holder(), _next_command(stages, cache)
    if as_json:
        lines = [
            {"stage": p.stage, "state": p.state, "share": round(p.share, 4), "changes": p.changes} for p in stages
        ]  # fmt: skip
        print(json.dumps({"stages": lines, "video": str(video) if video.exists() else None, "next": command,
                          "holder": holder}))  # fmt: skip
        return
    out = Console(highlight=False, soft_wrap=True)
    for stage in stages:
        out.print(f"{stage.stage:10}[{COLOURS[stage.state]}]{stage.state:7}[/] {escape(_detail(stage))}")
    if video.exists():
        out.print(f"{'video':10}{escape(str(video))}")
    if holder:
        out.print(f"in use by {escape(holder)}")
    elif command:
        out.print(f"→ {escape(command)}")


def _detail(stage: Progress) -> str:
    if stage.state == "done" and stage.receipt:
        frames = counted(stage.receipt["frames"], "frame")
        return f"{frames} in {stage.receipt['seconds']:.1f} s, {stage.receipt['finished']}"
    if stage.state == "partly":
        return f"{stage.share:.0%}"
    return "; ".join(stage.changes)


def _next_command(stages: list[Progress], cache: FrameCache) -> str | None:
    if any(stage.state == "stale" for stage in stages):
        return cache.command("run") + " --restart"
    return cache.command("run") if any(stage.state != "done" for stage in stages) else None
