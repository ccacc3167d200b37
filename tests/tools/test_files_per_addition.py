"""The table in docs/contributing.md, measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools.files_per_addition import BEFORE, EXAMPLES, ROOT, files_that_name, row


def git(folder: Path, *arguments: str) -> int:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False).returncode


@pytest.mark.skipif(git(ROOT, "cat-file", "-e", BEFORE) != 0, reason="needs the history")
@pytest.mark.parametrize("kind", EXAMPLES)
def test_table_is_current(kind: str) -> None:
    assert row(kind) in (ROOT / "docs/contributing.md").read_text(), "python -m tools.files_per_addition prints it"


def test_files_are_counted_in_a_revision_and_in_the_working_tree(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/a.py").write_text("sepia\n")
    (tmp_path / "README.md").write_text("sepia is no file of the program here\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    assert git(tmp_path, "init") == git(tmp_path, "add", ".") == git(tmp_path, *identity, "commit", "-m", "a") == 0
    (tmp_path / "stages/b.py").write_text("sepia\n")
    assert files_that_name(r"\bsepia\b", "HEAD", tmp_path) == ["stages/a.py"]
    assert files_that_name(r"\bsepia\b", None, tmp_path) == ["stages/a.py", "stages/b.py"]
    assert files_that_name("ochre", None, tmp_path) == []
    with pytest.raises(RuntimeError, match="unable to resolve revision"):
        files_that_name("sepia", "0123abc", tmp_path)
