"""Progress is shown by one process."""

from __future__ import annotations

import pickle

from diffsynth_cli.console import LogReporter
from stages.base.reporting import Reporter


def test_in_another_process_a_reporter_shows_nothing() -> None:
    assert type(pickle.loads(pickle.dumps(LogReporter()))) is Reporter
