"""File names, prompts and terminals of any encoding, through the entry point of the console script."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
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


PROGRAM = """
import sys
from diffsynth_cli.__main__ import entry
words = sys.argv[1:]
while words:
    end = words.index(";")
    sys.argv[1:], words = words[:end], words[end + 1:]
    try:
        entry()
    except SystemExit as exit:
        sys.stderr.flush()
        print(chr(0), exit.code, chr(0), flush=True)
"""


def diffsynth(*commands: Sequence[str | Path], **environment: str) -> list[tuple[int, str]]:
    """Run command lines, one after the other in a new process, and return the exit code and output of each."""
    words = [os.fsencode(word) for command in commands for word in (*command, ";")]
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True,
        cwd=Path(__file__).parents[2],
    ).stdout.decode(errors="surrogateescape").split("\0")  # fmt: skip
    return [(int(code), output) for output, code in zip(printed[:-1:2], printed[1::2], strict=True)]


@pytest.mark.parametrize("environment", ENCODINGS, ids=str)
def test_characters_that_a_terminal_or_locale_cannot_show_are_no_failure(environment: Keys, make_job: MakeJob) -> None:
    elsewhere = make_job(output_path="Größe")
    elsewhere = elsewhere.rename(elsewhere.with_name("elsewhere.json"))
    job = make_job(prompt="Größe ✓ 雪")
    *done, stale, prompt, folder = diffsynth(
        ("extract", job),
        ("status", job),
        ("control", job, "--set", "frame_interval=2"),
        ("extract", job, "--set", "prompt=Größe ✓"),
        ("extract", elsewhere),
        **environment,
    )
    assert [code for code, _ in done] == [0, 0] and stale[0] == 1, (done, stale)
    assert not any("UnicodeEncodeError" in output for _, output in (*done, stale))
    if "PYTHONUTF8" in environment:
        assert prompt[0] == 2 and "is not Unicode text" in prompt[1]
        assert folder[0] == 1 and "The locale's encoding cannot represent" in folder[1] and "C.UTF-8" in folder[1]
    else:
        assert prompt[0] == folder[0] == 0, (prompt, folder)


def test_file_names_that_are_not_utf_8_are_used_or_refused(tmp_path: Path, make_job: MakeJob) -> None:
    images = write_images(tmp_path / "plain", [scene(index) for index in range(3)])
    name = images.rename(tmp_path / os.fsdecode(b"g\xfc"))  # OpenCV, which writes them, crashes on such names
    output, painted = (tmp_path / os.fsdecode(name) for name in (b"\xfc.mp4", b"\xfc.png"))
    style, *guide = (name / f"{index}.png" for index in range(3))
    extract, init, *others = diffsynth(
        ("extract", make_job(), "--set", f"input_video={name}"),
        ("init", "text_guided", name, "-o", tmp_path / "project"),
        ("smooth", name, "-o", output, "--window", "1"),
        ("smooth", name, "-o", output, "--window", "1"),  # has nothing to do
        ("metrics", name, name),
        ("ebsynth", "--style", style, "--guide", *guide, "-o", painted),
    )
    assert extract[0] == 2 and "input_video: " in extract[1] and "rename the file" in extract[1]
    assert init[0] == 2 and "a job file cannot hold" in init[1] and not (tmp_path / "project").exists()
    assert [code for code, _ in others] == [0, 0, 0, 0], others
    assert output.exists() and painted.exists()


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), [scene(index) for index in range(3)])
    assert cli("smooth", "images", "-o", "a:b.mp4", "--window", 1, "-q")[0] == 0
    code, output = cli("smooth", "./a:b.mp4", "-o", "c:d.mp4", "--window", 1, "-q")
    assert code == 0 and Path("c:d.mp4").exists(), output
