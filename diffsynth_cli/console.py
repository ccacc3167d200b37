"""Show progress and messages: a bar on a terminal, lines in a log file, or JSON events for programs."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from diffsynth_cli.events import Advance, Event
from stages.base.reporting import Reporter
from stages.base.words import per_second, printable, size

LOG_INTERVAL = 10.0  # s between progress lines where there is no terminal
LOG_PATIENCE = 2.0  # s before work that cannot be counted is named there; LOG_INTERVAL if it can be

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def literal(text: str) -> str:
    """Return markup for Rich that shows `text` as it is. For whatever comes from a job, a file or its name."""
    return escape(printable(text))


def show_error(message: str, hint: str = "") -> None:
    """Show what went wrong and where, then what to do."""
    stderr.print(f"[bold red]error:[/] {literal(message)}")
    if hint:
        show_next(hint)


def show_next(hint: str) -> None:
    """Show what to do next."""
    stderr.print(f"[bold]→[/] {literal(hint)}")


def show_warning(message: str) -> None:
    """Show a warning."""
    stderr.print(f"[yellow]warning:[/] {literal(message)}")


def show_event(event: Event) -> None:
    """Print one JSON object on a line of stdout."""
    print(json.dumps(event), flush=True)


def now() -> float:
    """Return the time of an event."""
    return round(time.time(), 3)


def gpu_memory() -> int | None:
    """Return how many bytes of the GPU's memory this process has reserved. None if it has not used one."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", bool)  # neither exists while another thread imports torch
    return cuda.memory_reserved() if cuda is not None and is_initialized() else None


def reporter(quiet: bool, as_json: bool) -> Reporter:
    """Return the reporter for these options and this terminal."""
    if as_json:
        return JsonReporter()
    if quiet:
        return QuietReporter()
    return TerminalReporter() if stderr.is_terminal else LogReporter()


@contextmanager
def percentage(name: str, quiet: bool) -> Iterator[Callable[[float], None]]:
    """Show a bar for work that has no frames. Call what it yields with the share that is done, 0 to 1."""
    columns = (TextColumn(f"[bold]{name:9}[/]"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=quiet or not stderr.is_terminal) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda share: progress.update(task, completed=share)


class QuietReporter(Reporter):
    """Shows only warnings."""

    def warn(self, message: str) -> None:
        show_warning(message)


class JsonReporter(Reporter):
    """Prints every event as a line of JSON."""

    def __init__(self) -> None:
        self.done, self.name = 0, ""

    def begin(self, stage: str, total: int | None, done: int = 0) -> None:
        self.done = done
        show_event({"event": "begin", "time": now(), "stage": stage, "total": total, "done": done})

    def phase(self, name: str) -> None:
        self.name = name
        show_event({"event": "phase", "time": now(), "name": name})

    def advance(self, frames: int) -> None:
        self.done += frames
        event: Advance = {"event": "advance", "time": now(), "phase": self.name, "done": self.done}
        if (memory := gpu_memory()) is not None:
            event["gpu_memory"] = memory
        show_event(event)

    def end(self, stage: str, message: str) -> None:
        show_event({"event": "end", "time": now(), "stage": stage, "message": message})

    def note(self, message: str) -> None:
        show_event({"event": "note", "time": now(), "message": message})

    def warn(self, message: str) -> None:
        show_event({"event": "warning", "time": now(), "message": message})


class LogReporter(QuietReporter):
    """Prints a line from time to time, for log files."""

    def __init__(self) -> None:
        self.stage, self.name, self.done, self.first = "", "", 0, 0
        self.total: int | None = None
        self.waiting: threading.Timer | None = None
        self.started = self.reported = 0.0

    def begin(self, stage: str, total: int | None, done: int = 0) -> None:
        self.close()
        self.stage, self.total, self.done, self.first = stage, total, done, done
        self.started = self.reported = time.monotonic()
        if done:
            self._say(f"{stage}: resumes at {done} of {total}")

    def phase(self, name: str) -> None:
        self.name = name
        self.close()
        # While models are loaded, there is nothing to count; while they are compiled, the first chunk takes long.
        patience = LOG_PATIENCE if self.total is None else LOG_INTERVAL
        self.waiting = threading.Timer(patience, self._say, [f"{self.stage}: {name} ..."])
        self.waiting.daemon = True
        self.waiting.start()

    def advance(self, frames: int) -> None:
        self.close()
        self.done += frames
        now = time.monotonic()
        if now - self.reported < LOG_INTERVAL:
            return
        self.reported = now
        speed = (self.done - self.first) / (now - self.started)
        left = f", {_clock((self.total - self.done) / speed)} left" if self.total and speed else ""
        memory = f", {shown}" if (shown := _gpu()) else ""
        self._say(f"{self.stage}: {self.name}: {self.done} of {self.total or '?'}, {per_second(speed)}{left}{memory}")

    def end(self, stage: str, message: str) -> None:
        self.close()
        self._say(f"{stage}: {message}")

    def note(self, message: str) -> None:
        self._say(f"{self.stage}: {message}")

    def close(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None

    def _say(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)


class TerminalReporter(QuietReporter):
    """Shows a progress bar per stage, with frames per second and time left."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.stage = ""

    def begin(self, stage: str, total: int | None, done: int = 0) -> None:
        self.close()
        self.stage = stage
        self.progress = Progress(
            TextColumn("[bold]{task.fields[stage]:9}[/] {task.description:18}"),
            BarColumn(),
            _CountColumn(),
            _SpeedColumn(),
            _TimeColumn(elapsed_when_finished=True),
            _MemoryColumn(),
            console=stderr,
            transient=True,
            speed_estimate_period=60,
        )
        self.task = self.progress.add_task("", total=total, completed=done, stage=stage)
        self.progress.start()

    def phase(self, name: str) -> None:
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, description=literal(name))

    def advance(self, frames: int) -> None:
        if self.progress is not None and self.task is not None:
            self.progress.advance(self.task, frames)

    def end(self, stage: str, message: str) -> None:
        self.close()
        stderr.print(f"[green]✓[/] [bold]{stage:9}[/] {literal(message)}")

    def note(self, message: str) -> None:
        line = Table.grid(padding=(0, 1))  # wraps a long message beside the stage
        line.add_column(min_width=1)
        line.add_column(style="bold", min_width=9)
        line.add_row("", self.stage, literal(message))
        stderr.print(line, soft_wrap=False)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


class _CountColumn(MofNCompleteColumn):
    """Shows how many frames are done; nothing while there is nothing to count."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None and not task.completed else super().render(task)


class _TimeColumn(TimeRemainingColumn):
    """Shows the time left or, while it is unknown, the time elapsed."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(_clock(task.elapsed or 0), style="progress.elapsed")
        return super().render(task)


class _SpeedColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(per_second(task.speed) if task.speed else "", style="progress.data.speed")


class _MemoryColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_gpu(), style="dim")


def _gpu() -> str:
    """Describe the memory of the GPU that is in use. Empty without one."""
    memory = gpu_memory()
    return "" if memory is None else f"GPU {size(memory)}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
