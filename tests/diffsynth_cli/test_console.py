"""What is shown while nothing can be counted yet."""

from __future__ import annotations

import time

import pytest
from rich.console import Console

from diffsynth_cli import console
from diffsynth_cli.console import LogReporter, TerminalReporter


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
