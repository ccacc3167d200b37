"""The docs agree with the program's keys and commands."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from pydantic import BaseModel

import diffsynth_cli as ds
from diffsynth_cli.app import COMMANDS
from diffsynth_cli.events import Event
from stages.annotators import ANNOTATORS
from stages.base.registry import Registry
from stages.diffusion.sampler import SAMPLERS
from stages.jobs.job import Job
from stages.smoothers import SMOOTHERS
from tests.typing import Keys
from tools.job_keys import PAGE, page

ROOT = Path(__file__).parent.parent


def test_job_keys_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run python -m tools.job_keys"


@pytest.mark.parametrize(
    ("registry", "name"), [(SMOOTHERS, "smoothers"), (ANNOTATORS, "annotators"), (SAMPLERS, "design")]
)
def test_every_registered_name_is_documented(registry: Registry[BaseModel], name: str) -> None:
    text = (ROOT / f"docs/{name}.md").read_text()
    assert [choice for choice in registry.built_in if f"`{choice}`" not in text] == []


def test_code_in_the_extending_page_is_in_the_example_package() -> None:
    text = (ROOT / "docs/extending.md").read_text()
    example = "".join(
        file.read_text() for file in (ROOT / "docs/examples/diffsynth-extras").iterdir() if file.is_file()
    )
    blocks = re.findall(r"```(?:toml|python)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2 and all(block in example for block in blocks)


def test_readme_lists_every_command_and_no_other() -> None:
    text = (ROOT / "README.md").read_text()
    listed = set(re.findall(r"^\| `diffsynth (\w+)", text, re.MULTILINE))
    assert listed == set(COMMANDS)


def test_the_page_of_events_lists_their_keys() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "docs/events.md").read_text(), re.MULTILINE)
    documented = {name: {"event", "time", *re.findall(r"`(\w+)`", keys)} for name, keys in rows}
    assert documented == {
        get_args(get_type_hints(kind)["event"])[0]: set(get_type_hints(kind)) for kind in get_args(Event)
    }


def test_the_speed_that_the_readme_claims_was_measured() -> None:
    claimed = re.search(r"gave (\d\.\d) times as many frames a second", (ROOT / "README.md").read_text())
    table = (ROOT / "docs/rendering.md").read_text().partition("half of SD 1.5's width")[2]
    speeds = [float(re.findall(rf"\| {name} \| ([\d.]+) \|", table)[0]) for name in ("joint", "shared")]
    assert claimed and float(claimed[1]) == round(speeds[1] / speeds[0], 1)


def test_benchmarks_repeat_what_their_pages_say() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    rows = re.findall(
        r"^\| [^|]+ \| ([^|]*\d[^|]*) \| ([^|]+) \| ([^|]+) \|[^|]*\| \[.*\]\(([\w-]+\.md)", page, re.MULTILINE
    )
    assert len(rows) == len(re.findall(r"^\|.*\.md", page, re.MULTILINE)) > 15
    for result, machine, date, source in rows:
        told = (ROOT / "docs" / source).read_text()
        missing = [number for number in re.findall(r"\d[\d.:]*\d|\d", result) if number not in told]
        assert missing == [], (source, missing)
        assert date == "not noted" or date in " ".join(told.split()), (source, date)
        assert machine == "not noted" or re.search(r"\bcores?\b|EPYC", told), (source, machine)


def test_patch_matching_example_runs() -> None:
    page = (ROOT / "docs/patch-matching.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 1
    names: Keys = {}
    exec(examples[0], names)
    assert names["painted"].shape == names["rebuilt"].shape == names["target"].shape


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda path: path.name,
)
def test_links_resolve_and_json_examples_are_valid(path: Path) -> None:
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("http") or (path.parent / link).exists(), link
    for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL):
        keys = json.loads(block)
        assert set(keys) <= set(Job.model_fields)


def test_python_examples_call_existing_functions() -> None:
    page = (ROOT / "docs/python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block))]
    assert {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ds"} <= set(
        ds.__all__
    )
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("ds."):
            signature = inspect.signature(getattr(ds, ast.unparse(node.func)[3:]))
            signature.bind(*node.args, **{keyword.arg: keyword.value for keyword in node.keywords if keyword.arg})
    for name, listed in re.findall(r"^\| `(\w+)\((.*?)\)` \|", page, re.MULTILINE):
        names = re.findall(r"\b[a-z]\w*\b", re.sub("=None", "", listed))
        assert names == [name for name in inspect.signature(getattr(ds, name)).parameters if name in names]
