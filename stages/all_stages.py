"""The list of stages. To add a stage, write a module that defines STAGE and add its name here."""

from __future__ import annotations

import pydoc
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help imports no stage
    from stages.base.engine import Stage
    from stages.jobs.job import Job

NAMES = ("extract", "control", "render", "upscale", "deflicker")
"""Modules of the stages, in the order in which they run."""


@cache
def all_stages() -> dict[str, Stage[Job]]:
    """Return all stages by name, in the order in which they run."""
    return {name: import_module(f"stages.{name}").STAGE for name in NAMES}


def stages_of(job: Job) -> dict[str, Stage[Job]]:
    """Return the stages of a job by name, in the order in which they run."""
    return {name: stage for name, stage in all_stages().items() if stage.runs(job)}


def arrays() -> dict[str, tuple[str, ...]]:
    """Return the names of the arrays that each stage makes."""
    return {name: stage.arrays for name, stage in all_stages().items()}


def summaries() -> dict[str, str]:
    """Return the first line of each stage's docstring, without importing the stage."""
    files = {name: find_spec(f"stages.{name}") for name in NAMES}
    return {name: pydoc.synopsis(spec.origin, {}) or "" for name, spec in files.items() if spec and spec.origin}
