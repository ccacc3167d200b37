"""Everything derived from the declarations of stages: staleness, commands, the Makefile and the docs."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from diffsynth_cli.app import app
from stages.all_stages import NAMES, all_stages, summaries
from stages.jobs.job import Job
from stages.jobs.machine import MachineSettings

STAGES = list(all_stages().values())
ROOT = Path(__file__).parents[2]


CHANGE_NO_FRAME = {*MachineSettings.model_fields, "output_path", "fps", "keep_audio", "keep_frames", "keep"} - {"dtype"}


def test_every_job_key_is_read_by_a_stage_or_changes_no_frame() -> None:
    read = [key for stage in STAGES for key in stage.reads]
    assert {*read} | CHANGE_NO_FRAME == {*Job.model_fields}
    assert not {*read} & CHANGE_NO_FRAME


def test_stages_have_the_names_of_their_modules() -> None:
    assert tuple(stage.name for stage in STAGES) == NAMES


def test_stages_come_after_those_whose_results_they_read() -> None:
    for index, stage in enumerate(STAGES):
        assert set(stage.after) <= set(NAMES[:index])


def test_every_array_is_made_by_one_stage() -> None:
    arrays = [name.removesuffix("/*") for stage in STAGES for name in stage.arrays]
    assert len(arrays) == len(set(arrays)) and all(stage.arrays for stage in STAGES)


def test_each_stage_is_a_command_with_the_help_of_its_module() -> None:
    helps = {command.name: command.help for command in app.registered_commands}
    for stage in STAGES:
        module = sys.modules[f"stages.{stage.name}"]
        assert helps[stage.name] == summaries()[stage.name] == (module.__doc__ or "").partition("\n")[0]


def test_listing_stages_and_help_loads_no_heavy_library() -> None:
    program = (
        "import sys; import diffsynth_cli.app; print('numpy' in sys.modules, 'pydantic' in sys.modules); "
        "from stages.all_stages import all_stages; all_stages(); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "False False\nFalse\n"


def test_the_makefile_runs_the_stages_in_order() -> None:
    makefile = (resources.files("templates") / "Makefile").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\tdiffsynth (\w+) \$\(JOB\)", makefile, re.MULTILINE)) == NAMES
    rules = re.findall(
        r"^\$\(call receipt,\$\(1\),(\w+)\): (?:\$\(call receipt,\$\(1\),(\w+)\))?", makefile, re.MULTILINE
    )
    have_rules = [name for name in NAMES if name != "upscale"]  # which not every job has
    assert rules == list(zip(have_rules, ("", *have_rules), strict=False))
    assert f"all: $(call receipt,$(1),{NAMES[-1]})" in makefile


@pytest.mark.parametrize("page", ["README.md", "docs/cache.md"])
def test_pages_name_every_stage_and_array(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = [f"diffsynth {name} JOB.json" for name in NAMES]
    if page == "docs/cache.md":
        named = [f"`{name.replace('*', '<')}" for stage in STAGES for name in stage.arrays]
    assert [name for name in named if name not in text] == []
