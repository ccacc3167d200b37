"""What the docs say of keys and commands is what the program does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from diffsynth_cli.app import app
from stages.jobs.job import Job
from tools.job_keys import PAGE, page

ROOT = Path(__file__).parent.parent


def test_job_keys_page_is_current():
    assert PAGE.read_text() == page(), "python -m tools.job_keys writes it anew"


def test_readme_lists_every_command_and_no_other():
    text = (ROOT / "README.md").read_text()
    listed = set(re.findall(r"^\| `diffsynth (\w+)", text, re.MULTILINE))
    assert listed == {command.name or command.callback.__name__ for command in app.registered_commands}


def test_the_speed_that_the_readme_claims_was_measured():
    claimed = re.search(r"gave (\d\.\d) times as many frames a second", (ROOT / "README.md").read_text())
    table = (ROOT / "docs/rendering.md").read_text().partition("half of SD 1.5's width")[2]
    speeds = [float(re.search(rf"\| {name} \| ([\d.]+) \|", table)[1]) for name in ("joint", "shared")]
    assert float(claimed[1]) == round(speeds[1] / speeds[0], 1)


def test_patch_matching_example_runs():
    page = (ROOT / "docs/patch-matching.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 1
    names: dict[str, Any] = {}
    exec(examples[0], names)
    assert names["painted"].shape == names["rebuilt"].shape == names["target"].shape


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda path: path.name,
)
def test_links_lead_somewhere_and_json_is_json(path):
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("http") or (path.parent / link).exists(), link
    for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL):
        keys = json.loads(block)
        assert set(keys) <= set(Job.model_fields)
