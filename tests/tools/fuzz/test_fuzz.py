"""Wrong jobs, damaged files and odd names each end in success or an explained refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.fuzz.outcome import BAD, run
from tools.fuzz.tally import run_all

COUNTS = {"jobs": 90, "videos": 70, "caches": 30, "names": 4}


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("cases", COUNTS)
def test_every_case_ends_in_success_or_an_explained_refusal(cases: str, tmp_path: Path) -> None:
    tally = run_all(tmp_path, {cases: COUNTS[cases]})
    assert tally.count("success") > 0
    assert not tally.bad(), tally.report()
    assert tally.count("success") + tally.count("refusal") == COUNTS[cases]


def test_bad_outcomes_are_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: type[BaseException]) -> str:
        def broken(arguments: list[str]) -> int:
            raise error

        monkeypatch.setattr("tools.fuzz.outcome.main", broken)
        return run(["status", "job.json"], tmp_path).kind

    assert fail(ZeroDivisionError) == "traceback"
    monkeypatch.setattr("tools.fuzz.outcome.main", lambda arguments: 1)
    assert run(["status"], tmp_path).kind == "unexplained"
    monkeypatch.setattr("tools.fuzz.outcome.TIMEOUT", 0.1)
    monkeypatch.setattr("tools.fuzz.outcome.main", lambda arguments: [None for _ in iter(int, 1)])
    assert run(["status"], tmp_path).kind == "hang"
    assert set(BAD) == {"unexplained", "traceback", "hang"}
