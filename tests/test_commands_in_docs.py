"""Command lines in README.md, CONTRIBUTING.md and docs/: they parse, and run unless the page says what they need.

A comment in the page, `<!-- needs: hub -->`, is about the block of commands after it.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
from PIL import Image as PillowImage

from diffsynth_cli import demo
from diffsynth_cli.app import load
from stages.base.record import write_json
from stages.video import Encoding, encode
from tests.conftest import scene, write_images, write_job
from tests.typing import Cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("diffsynth", "make", "python", ".venv/bin/python", "pip", "pipx", "git", "ray", "srun", "export")
NEEDS = {"gpu", "hub", "network", "cluster", "bucket", "time"}
INPUTS = (
    "alpha",
    "mask",
    "job",
    "video",
    "videos",
    "guide",
    "style",
    "reference",
)  # parameters for files that must exist
ALONE = ("extract", "run", "plan", "status")  # other commands on jobs need results
FPS, SIDE = Fraction(1), 32  # px
MARKER, FENCE = re.compile(r"<!-- needs: (\w+) -->"), re.compile(r"```(\w*)")


class Agreement(io.StringIO):
    """What somebody types who is asked whether to go on."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Line:
    """A command line of a page.

    Attributes:
        needs: What the page says that it needs; empty if nothing.
        inline: Whether it is in a sentence or table, where it may be incomplete.
    """

    page: str
    text: str
    needs: str = ""
    inline: bool = False

    @property
    def words(self) -> list[str]:
        """The words, without a comment or another program at the end. In a sentence, brackets show what is optional."""
        words = shlex.split(self.text, comments=True)
        return [word.strip("[]" * self.inline) for word in takewhile(lambda word: word != "|", words)]

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def lines_of(page: Path) -> Iterator[Line]:
    """Yield the command lines of a page: in blocks that are indented or `bash`, and between backticks."""
    needs, language = "", ""
    for line in page.read_text().splitlines():
        if marker := MARKER.fullmatch(line):
            needs = marker[1]
        elif fence := FENCE.match(line):
            language = fence[1]
        elif line.startswith("    ") or language == "bash":
            if line.split()[:1] and line.split()[0] in PROGRAMS:
                yield Line(page.name, line.strip().removesuffix("\\"), needs)
        elif line.strip() and not language:
            needs = ""
            for text in re.findall(r"`((?:diffsynth|make|python -m) [^`]+)`", line):
                yield Line(page.name, text, inline=True)


LINES = list(dict.fromkeys(line for page in PAGES for line in lines_of(page)))
BLOCKS = [line for line in LINES if not line.inline]
RUN = [line for line in BLOCKS if not line.needs]


def test_markers_name_what_is_missing_on_a_small_machine() -> None:
    markers = [needs for page in PAGES for needs in MARKER.findall(page.read_text())]
    assert set(markers) <= NEEDS and len(markers) >= 10
    assert len(BLOCKS) > 60 and len(LINES) > 120


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0] == "diffsynth"], ids=str)
def test_options_exist(line: Line) -> None:
    name, *arguments = line.words[1:]
    if name.startswith("--"):
        return
    command = load(name)
    if line.inline:
        known = {option for parameter in command.params for option in parameter.opts}
        assert [word for word in arguments if word.startswith("-") and word not in known] == []
    else:
        command.make_context(name, arguments)


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0] == "make"], ids=str)
def test_make_knows_its_targets(line: Line) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    variables = set(re.findall(r"^(\w+) *\?=", (ROOT / "templates/Makefile").read_text(), re.MULTILINE))
    unknown = [word for word in line.words[1:] if word not in targets and word.partition("=")[0] not in variables]
    assert [word for word in unknown if not re.fullmatch(r"-j\d|output/\w+\.done", word)] == []


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0].endswith("python")], ids=str)
def test_modules_and_their_options_exist(line: Line) -> None:
    module = line.words[2]
    found = importlib.util.find_spec(module) or pytest.fail(f"no module {module}")
    if found.submodule_search_locations:
        found = importlib.util.find_spec(f"{module}.__main__") or pytest.fail(f"{module} cannot be run")
    known = Path(str(found.origin)).read_text() + '"--help" "-m"'
    assert [word for word in line.words[3:] if word.startswith("-") and f'"{word}"' not in known] == []
    assert [word for word in line.words[3:] if "/" in word and not (ROOT / word).exists()] == []


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0] in ("pip", "pipx")], ids=str)
def test_extras_exist(line: Line) -> None:
    extras = re.findall(r"diffsynth-cli\[(\w+)", line.text)
    assert [extra for extra in extras if f"\n{extra} = [" not in (ROOT / "pyproject.toml").read_text()] == []


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in RUN if line.words[0] == "python"], ids=str)
def test_modules_show_their_help(line: Line) -> None:
    assert line.words[-1] == "--help", "mark what it needs, for example time"
    subprocess.run([sys.executable, *line.words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("line", [line for line in RUN if not line.words[0].endswith("python")], ids=str)
def test_what_needs_nothing_special_runs(line: Line, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = line.words
    if program == "make":  # their recipes run these tests, or take minutes
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    else:
        assert program == "diffsynth", "mark what it needs, for example network"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "stdin", Agreement("y\n"))  # for those that ask
        make_demos_small(monkeypatch)
        for path in inputs_of(arguments):
            make_input(path, last_frame(arguments))
            if path.suffix == ".json" and arguments[0] not in ALONE:
                assert cli("run", path, "-q") == (0, "")
        code, output = cli(*arguments)
        assert code == 0, output


def inputs_of(arguments: list[str]) -> set[Path]:
    """Return the files that a command line reads."""
    name, *rest = arguments
    given = load(name).make_context(name, rest).params
    return {path for key in INPUTS for path in flat(given.get(key))}


def flat(value: object) -> Iterator[Path]:
    if isinstance(value, Path | str):
        yield Path(value)
    elif isinstance(value, Iterable):
        for item in value:
            yield from flat(item)


def last_frame(arguments: list[str]) -> int:
    """Return the last frame that a command line names, by its number or its time."""
    numbers = [int(number) for word in arguments for number in re.findall(r"^\d+,(\d+)$", word)]
    times = [round(float(value) * FPS) for option, value in pairwise(arguments) if option == "--at"]
    return max([7, *numbers, *times])


def make_input(path: Path, last: int) -> None:
    """Make a small file of the kind that a name stands for. A name in capital letters is a video."""
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".json":
        write_job(path.parent, input_video="video.mp4", frame_height=64, frame_width=64).rename(path)
        make_input(path.parent / "video.mp4", last)
    elif path.suffix == ".png":
        PillowImage.fromarray(scene(3, 48, 48)).save(path)
    elif path.suffix or path.name.isupper():
        encode(path.with_suffix(".mp4"), (scene(i, SIDE, SIDE) for i in range(last + 4)), Encoding(fps=FPS))
        path.with_suffix(".mp4").rename(path)
    else:
        write_images(path, [scene(0, SIDE, SIDE), scene(6, SIDE, SIDE)])
        (path / "1.png").rename(path / "6.png")


def make_demos_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `diffsynth demo` restyle two frames in two steps."""
    whole = demo.write_demo

    def write_demo(folder: Path, video: Path | None, prompt: str, force: bool = False) -> Path:
        return shortened(whole(folder, video, prompt, force))

    monkeypatch.setattr(demo, "write_demo", write_demo)


def shortened(path: Path) -> Path:
    few = {"frame_maximum_count": 2, "num_inference_steps": 4, "frame_height": 64, "frame_width": 64}
    write_json(path, json.loads(path.read_text()) | few)
    return path
