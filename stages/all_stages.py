"""The one list of stages. To add a stage, write its module, with a STAGE, and add its name here."""

from __future__ import annotations

import pydoc
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # showing the command line's help imports neither this nor any stage
    from stages.base.engine import Stage
    from stages.jobs.job import Job

NAMES = ("extract", "control", "render", "deflicker")
"""Modules of this package, in the order in which they run."""


@cache
def all_stages() -> dict[str, Stage[Job]]:
    """All stages by name, in the order in which they run."""
    return {name: import_module(f"stages.{name}").STAGE for name in NAMES}


def arrays() -> dict[str, tuple[str, ...]]:
    """The arrays that each stage makes."""
    return {name: stage.arrays for name, stage in all_stages().items()}


def summaries() -> dict[str, str]:
    """What each stage does: the first line of its module, which is not imported for it."""
    files = {name: find_spec(f"stages.{name}") for name in NAMES}
    return {name: pydoc.synopsis(spec.origin, {}) or "" for name, spec in files.items() if spec and spec.origin}
