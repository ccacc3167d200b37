"""What is shown while nothing can be counted yet."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import TypeAdapter
from rich.console import Console

from diffsynth_cli import console
from diffsynth_cli.console import JsonReporter, LogReporter, TerminalReporter
from diffsynth_cli.events import Event
from tests.typing import Cli, MakeJob


def test_a_bar_without_a_total_shows_the_elapsed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(record=True, force_terminal=True, width=120)
    monkeypatch.setattr(console, "stderr", screen)
    reporter = TerminalReporter()
    reporter.begin("render", None)
    reporter.phase("load models")
    assert reporter.progress is not None
    reporter.progress.refresh()
    first = screen.export_text()
    reporter.begin("render", 8)
    reporter.phase("step 1/2")
    reporter.advance(2)
    reporter.note("use [2] of 8")
    reporter.progress.refresh()
    reporter.close()
    assert "load models" in first and "0:00:00" in first and "0/?" not in first
    shown = screen.export_text()
    assert "2/8" in shown and "render    use [2] of 8" in shown


def test_a_log_names_what_takes_long_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LOG_PATIENCE", 0.05)
    reporter = LogReporter()
    reporter.begin("render", None)
    reporter.phase("look at inputs")
    reporter.phase("load models")
    time.sleep(0.5)
    reporter.begin("render", 8)
    reporter.phase("step 1/2")
    reporter.close()
    assert capfd.readouterr().err == "render: load models ...\n"


class Timer(threading.Timer):
    """A timer whose time never comes, unless a test says so."""

    def start(self) -> None:
        waiting.append(self)

    def cancel(self) -> None:
        waiting.remove(self)


waiting: list[Timer] = []


def test_a_log_names_a_phase_whose_first_chunk_takes_long(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "Timer", Timer)
    reporter = LogReporter()
    reporter.begin("render", 8)
    reporter.phase("step 1/2")
    (timer,) = waiting
    assert timer.interval == console.LOG_INTERVAL
    timer.function(*timer.args)
    assert capfd.readouterr().err == "render: step 1/2 ...\n"
    reporter.advance(4)
    assert waiting == []
    reporter.phase("step 2/2")
    assert len(waiting) == 1
    reporter.close()
    assert waiting == []


def test_events_of_a_run_and_of_its_failure_are_as_described(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job, kinds = make_job(4), set()
    for overrides in (["guidance_scale=7.5", "scheduler=lcm"], ["prompt=other"]):
        _, output = cli("run", job, "--json", "--batch-size", 2, *(f"--set={each}" for each in overrides))
        for line in (line for line in output.splitlines() if line.startswith("{")):
            adapter: TypeAdapter[Event] = TypeAdapter(Event)
            kinds.add(adapter.validate_python(json.loads(line), strict=True, extra="forbid")["event"])
    assert kinds == {"begin", "phase", "advance", "note", "warning", "end", "error"}


def test_progress_shows_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    gpu = SimpleNamespace(is_initialized=lambda: True, memory_reserved=lambda: 11_200_000_000)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=gpu))
    monkeypatch.setattr(console, "LOG_INTERVAL", 0.0)
    for reporter in (JsonReporter(), LogReporter()):
        reporter.begin("render", 8)
        reporter.advance(2)
        reporter.close()
    captured = capfd.readouterr()
    assert '"gpu_memory": 11200000000' in captured.out and captured.err.endswith(", GPU 11 GB\n")


@pytest.mark.parametrize("begun", [SimpleNamespace(), SimpleNamespace(cuda=SimpleNamespace())])
def test_progress_is_shown_while_torch_is_being_imported(begun: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", begun)
    screen = Console(record=True, force_terminal=True, width=120)
    monkeypatch.setattr(console, "stderr", screen)
    reporter = TerminalReporter()
    reporter.begin("render", 8)
    assert reporter.progress is not None
    reporter.progress.refresh()
    reporter.close()
    assert "render" in screen.export_text()


def test_a_long_note_is_wrapped_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(record=True, force_terminal=True, width=40, soft_wrap=True)
    monkeypatch.setattr(console, "stderr", screen)
    reporter = TerminalReporter()
    reporter.begin("plan", None)
    reporter.note("24 frames, 672 frames through the networks")
    reporter.close()
    assert re.search(r"  plan      24 frames, 672 frames +\n {12}through the networks", screen.export_text())
