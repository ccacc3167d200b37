"""File names, prompts and terminals of any encoding, through the console script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import scene, write_images
from tests.typing import Cli, Keys, MakeJob

ENCODINGS = [
    {"LANG": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
]


def diffsynth(*arguments: str | Path, **environment: str) -> tuple[int, str]:
    """Run the program and return its exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", "diffsynth_cli", *map(os.fsencode, arguments)],
        env={**os.environ, **environment}, capture_output=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).decode(errors="surrogateescape")


@pytest.mark.parametrize("environment", ENCODINGS, ids=str)
def test_characters_that_a_terminal_cannot_show_are_no_failure(environment: Keys, make_job: MakeJob) -> None:
    job = make_job(prompt="Größe ✓ 雪")
    for arguments in (("extract", job), ("status", job), ("control", job, "--set", "frame_interval=2")):
        code, output = diffsynth(*arguments, **environment)
        assert code == (1 if "--set" in arguments else 0), output
        assert "UnicodeEncodeError" not in output


@pytest.mark.parametrize("environment", ENCODINGS, ids=str)
def test_a_prompt_of_the_command_line_is_read_or_refused(environment: Keys, make_job: MakeJob) -> None:
    understood = "PYTHONUTF8" not in environment
    code, output = diffsynth("extract", make_job(), "--set", "prompt=Größe ✓", **environment)
    assert code == (0 if understood else 2) and ("is not Unicode text" in output) == (not understood), output


def test_a_folder_that_the_locale_cannot_name_is_explained(make_job: MakeJob) -> None:
    code, output = diffsynth("extract", make_job(output_path="Größe"), **ENCODINGS[1])
    assert code == 1 and "The locale's encoding cannot represent" in output and "LC_ALL=C.UTF-8" in output, output


@pytest.mark.slow
def test_file_names_that_are_not_utf_8_are_used_or_refused(tmp_path: Path, make_job: MakeJob) -> None:
    images = write_images(tmp_path / "plain", [scene(index) for index in range(3)])
    name = images.rename(tmp_path / os.fsdecode(b"g\xfc"))  # OpenCV, which writes them, crashes on such names
    code, message = diffsynth("extract", make_job(), "--set", f"input_video={name}")
    assert code == 2 and "input_video: " in message and "rename the file" in message
    code, message = diffsynth("init", "text_guided", name, "-o", tmp_path / "project")
    assert code == 2 and "a job file cannot hold" in message and not (tmp_path / "project").exists()
    output = tmp_path / os.fsdecode(b"\xfc.mp4")
    for _ in range(2):  # the second has nothing to do
        code, message = diffsynth("smooth", name, "-o", output, "--window", "1")
        assert code == 0 and output.exists(), message
    assert diffsynth("metrics", name, name)[0] == 0
    painted = tmp_path / os.fsdecode(b"\xfc.png")
    style, *guide = (name / f"{index}.png" for index in range(3))
    assert diffsynth("ebsynth", "--style", style, "--guide", *guide, "-o", painted)[0] == 0


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), [scene(index) for index in range(3)])
    assert cli("smooth", "images", "-o", "a:b.mp4", "--window", 1, "-q")[0] == 0
    code, output = cli("smooth", "./a:b.mp4", "-o", "c:d.mp4", "--window", 1, "-q")
    assert code == 0 and Path("c:d.mp4").exists(), output
