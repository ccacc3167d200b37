"""Wrong jobs, damaged files and odd names each end in success or an explained refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.fuzz.outcome import BAD, Outcome, checked, contents, run
from tools.fuzz.tally import BadOutcome, run_all

COUNTS = {"jobs": 110, "videos": 90, "caches": 140, "names": 6}


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("cases", COUNTS)
def test_every_case_ends_in_success_or_an_explained_refusal(cases: str, tmp_path: Path) -> None:
    tally = run_all(tmp_path, {cases: COUNTS[cases]})
    assert tally.count("success") > 0
    assert tally.count("success") + tally.count("refusal") >= COUNTS[cases]


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
    assert set(BAD) == {"unexplained", "traceback", "hang", "stray"}


def test_files_outside_of_the_output_are_detected(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").write_bytes(b"mine")
    before, fine = contents(tmp_path), Outcome("success", 0, "", 0.0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/video.mp4").write_bytes(b"made")
    assert checked(fine, tmp_path, before, ["out"]) == fine
    assert checked(fine, tmp_path, before, ["winter"]).kind == "stray"
    (tmp_path / "images/0.png").write_bytes(b"changed")
    assert "changed: images/0.png" in checked(fine, tmp_path, before, ["out", "images"]).output


@pytest.mark.slow
def test_a_bad_case_is_reduced_to_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.fuzz.outcome.main", lambda arguments: 1)
    with pytest.raises(BadOutcome, match=r"unexplained, code 1.*\n  diffsynth run job.json -q"):
        run_all(tmp_path, {"jobs": 5})
