"""What `diffsynth doctor` examines: checks of this machine and of a job, each of which ends in one finding."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from diffsynth_cli.results import DoctorResult, Finding, Health, JobSource, Overrides, SilentReporter
from stages.base.errors import DiffSynthError, UsageError
from stages.base.reporting import Reporter

if TYPE_CHECKING:
    from diffsynth_cli.jobs import Opened

PATIENCE = 60.0  # s that a check has


class Warnings(SilentReporter):
    """Collects warnings."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def warn(self, message: str) -> None:
        self.messages.append(message)


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Args:
        source: The job, if one was given.
        overrides: Job keys that replace those of the job.
        warnings: What reading the job and checking it warns of.
    """

    source: JobSource | None = None
    overrides: Overrides = ()
    warnings: Warnings = field(default_factory=Warnings)

    @cached_property
    def opened(self) -> Opened | None:
        """The job and its cache. None if no job was given. Raises UsageError if the job has mistakes."""
        from diffsynth_cli.jobs import open_job
        from stages.all_stages import all_stages

        if self.source is None:
            return None
        return open_job(self.source, self.overrides, self.warnings, [*all_stages().values()])

    @property
    def folder(self) -> Path:
        """The folder that holds, or will hold, results: the job's output folder, or the current one."""
        try:
            folder = Path() if self.opened is None else Path(self.opened.job.output_path)
        except DiffSynthError:
            return Path.cwd()  # the check of the job says what is wrong
        return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())

    @cached_property
    def hub_problem(self) -> str:
        """Why the hub does not answer. Empty if it does."""
        from stages.models.hub import why_unreachable

        return why_unreachable(seconds=3)


Outcome: TypeAlias = tuple[Health, str, str]
"""What `good`, `warning` or `failed` return."""
Check: TypeAlias = Callable[[Subject], Outcome | None]
"""Returns what it found, None if it does not apply."""

CHECKS: dict[str, Check] = {}
"""All checks by name, in order."""


def check(name: str) -> Callable[[Check], Check]:
    """Return a decorator that registers a check under this name."""

    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def good(detail: str) -> Outcome:
    """Nothing is wrong."""
    return Health.OK, detail, ""


def warning(detail: str, advice: str) -> Outcome:
    """Something is missing that not every job needs."""
    return Health.WARNING, detail, advice


def failed(detail: str, advice: str) -> Outcome:
    """No job can run, or not the one that is examined."""
    return Health.FAILED, detail, advice


def doctor(
    job: JobSource | None = None, *, overrides: Overrides = (), reporter: Reporter | None = None
) -> DoctorResult:
    """Check whether this machine can run jobs, or a certain one. Downloads nothing and never waits long.

    Args:
        job: As for `run`. By default, only the machine is checked.
        overrides: Job keys that replace those of `job`.
        reporter: Hears the name of each check, as a phase, before it begins.

    Raises:
        UsageError: There are `overrides`, but no job.
    """
    from diffsynth_cli import checks  # registers them

    assert checks
    if job is None and overrides:
        raise UsageError("options of a job need a job", "give JOB.json")
    reporter, subject = reporter or SilentReporter(), Subject(job, overrides)
    with closing(reporter):
        reporter.begin("doctor", None)
        return DoctorResult(tuple(_findings(subject, reporter)))


def _findings(subject: Subject, reporter: Reporter) -> Iterator[Finding]:
    for name in CHECKS:
        reporter.phase(name)
        outcome = examined(CHECKS[name], subject)
        if outcome is not None:
            yield Finding(name, *outcome)


def examined(examine: Check, subject: Subject, patience: float = PATIENCE) -> Outcome | None:
    """Return what a check finds. One that raises an exception or takes longer than `patience` seconds has failed."""
    found: list[Outcome | None] = []

    def work() -> None:
        try:
            found.append(examine(subject))
        except DiffSynthError as error:
            found.append(failed(error.message, error.hint))
        except Exception as error:  # whatever a broken installation does
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            found.append(failed(f"{type(error).__name__}: {reason}", "reinstall diffsynth-cli in a new environment"))

    thread = threading.Thread(target=work, daemon=True)  # which the program's end does not wait for
    thread.start()
    thread.join(patience)
    return found[0] if found else failed(f"no answer within {patience:g} s", "see what this machine is waiting for")
