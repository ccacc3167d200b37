"""Known vulnerabilities stop `make lint`; a service that cannot be reached does not."""

from __future__ import annotations

import json
import subprocess
from urllib.error import URLError

import pytest

from tools import audit

FINE: audit.Package = {"name": "good", "version": "1.0", "vulns": []}
HOLED: audit.Package = {"name": "bad", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN: audit.Package = {"name": "new", "skip_reason": "not on PyPI"}


def answer(monkeypatch: pytest.MonkeyPatch, printed: str) -> None:
    """Have the service be there, and pip-audit print this."""
    done = subprocess.CompletedProcess([], 1, printed, "pip-audit: broken")
    monkeypatch.setattr(audit, "answers", lambda address: True)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)


@pytest.mark.parametrize(
    ("packages", "code", "expected"),
    [
        ([FINE, UNKNOWN], 0, "audit: 1 packages, 0 known vulnerabilities, 1 not looked up"),
        ([FINE, HOLED], 1, "audit: bad 2.0: PYSEC-1, fixed in 2.1"),
    ],
)
def test_what_is_known_is_listed(
    packages: list[audit.Package],
    code: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer(monkeypatch, json.dumps({"dependencies": packages}))
    assert audit.main() == code and expected in capsys.readouterr().out


def test_without_an_answer_it_is_skipped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(audit, "urlopen", fail)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip-audit was called"))
    assert audit.main() == 0 and "audit: skipped, since https://pypi.org" in capsys.readouterr().out


def test_a_failure_of_pip_audit_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer(monkeypatch, "")
    assert audit.main() == 0 and "audit: skipped, since pip-audit: broken" in capsys.readouterr().out
