"""Types that the Python API takes and returns. Imports neither torch nor NumPy."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from stages.base.errors import UsageError
from stages.base.reporting import Reporter

if TYPE_CHECKING:
    from stages.base.progress import Progress
    from stages.jobs.job import Job
    from stages.smoothers.images.changes import Changes

Member = TypeVar("Member", bound=StrEnum)

FilePath = str | os.PathLike[str]
JobSource: TypeAlias = "FilePath | Mapping[str, object] | Job"
Overrides = Mapping[str, object] | Sequence[str]
"""Job keys and values, or `KEY=VALUE` strings as for `--set`."""


class Mode(StrEnum):
    """What `smooth` does."""

    BLEND = "blend"
    INTERPOLATE = "interpolate"


class DiffSynthWarning(UserWarning):
    """Something the user should know that does not stop the work."""


class SilentReporter(Reporter):
    """Ignores progress and issues warnings through Python's `warnings`."""

    def warn(self, message: str) -> None:
        """Issue a DiffSynthWarning."""
        warnings.warn(message, DiffSynthWarning, stacklevel=2)


@dataclass(frozen=True)
class RunResult:
    """Result of `run`.

    Attributes:
        output_path: The job's output folder.
        video: The finished video; None while deflicker is not complete.
        preview: The contact sheet, if requested.
        stages: Progress of each stage that was to run.
    """

    output_path: Path
    video: Path | None
    preview: Path | None
    stages: tuple[Progress, ...]


@dataclass(frozen=True)
class PreviewCell:
    """One of the jobs of a preview.

    Attributes:
        values: The job keys that distinguish it from the others.
        result: Its result.
    """

    values: dict[str, object]
    result: RunResult


@dataclass(frozen=True)
class PreviewResult:
    """Result of `preview`.

    Attributes:
        sheet: The contact sheet.
        cells: A job for each combination of the grid's values.
    """

    sheet: Path
    cells: tuple[PreviewCell, ...]


@dataclass(frozen=True)
class JobStatus:
    """Progress of a job.

    Attributes:
        stages: Progress of each stage.
        video: The finished video, if it exists.
        next_command: The command line that resumes the job; None if nothing is left to do.
        holder: The process that is working on the job, if any.
        scenes: The frames of each scene; empty without `scenes`, and before `control` has found them.
    """

    stages: tuple[Progress, ...]
    video: Path | None
    next_command: str | None
    holder: str | None
    scenes: tuple[range, ...]


class Place(StrEnum):
    """Where a model is."""

    EMBEDDED = "embedded"
    LOCAL = "local"
    CACHE = "hub cache"
    HUB = "hub"


@dataclass(frozen=True)
class ModelFiles:
    """A model that a job or a task reads.

    Attributes:
        keys: The job's keys that name it, or the tasks that read it.
        name: An embedded model, an absolute path or a hub id.
        place: Where its files are; hub if some have to be downloaded.
        folder: The folder or file on this machine, if there is one.
        bytes: Size on this machine of the files that are read.
        missing: Files that are missing.
        download: Their size in bytes; None if it is not known.
        licence: Named by the model card on this machine. Empty if there is none.
        damaged: Files that were checked and are damaged. None if no file was checked.
    """

    keys: tuple[str, ...]
    name: str
    place: Place
    folder: Path | None
    bytes: int
    missing: tuple[str, ...]
    download: int | None
    licence: str
    damaged: tuple[str, ...] | None

    @property
    def ready(self) -> bool:
        """Whether all files are on this machine, and none is known to be damaged."""
        return not self.missing and not self.damaged


@dataclass(frozen=True)
class Removable:
    """Something that `clean` can delete.

    Attributes:
        name: Name of an array or a file in the cache, or path of a file in the output folder.
        bytes: Its size.
        reason: Why it is not needed.
    """

    name: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class CleanResult:
    """Result of `clean`.

    Attributes:
        found: What can be deleted, or has been.
        deleted: Whether it has been deleted.
    """

    found: tuple[Removable, ...]
    deleted: bool

    @property
    def bytes(self) -> int:
        """Size of everything found."""
        return sum(item.bytes for item in self.found)


class Health(StrEnum):
    """How good a finding of `doctor` is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """What a check of `doctor` found.

    Attributes:
        check: Name of the check.
        health: ok; warning: something is missing that not every job needs; failed: jobs cannot run.
        detail: What was found.
        advice: What to do. Empty if nothing is wrong.
    """

    check: str
    health: Health
    detail: str
    advice: str


@dataclass(frozen=True)
class DoctorResult:
    """Result of `doctor`.

    Attributes:
        findings: One for each check, in order.
    """

    findings: tuple[Finding, ...]

    @property
    def can_run(self) -> bool:
        """Whether the job, or any job if none was given, can run here."""
        return all(finding.health is not Health.FAILED for finding in self.findings)


@dataclass(frozen=True)
class PlannedWork:
    """The work of one kind in a job.

    Attributes:
        kind: What it is.
        phases: How often all frames go through it.
        frames: How many frames go through it each time.
        seconds: Expected seconds, for each number of workers.
        bound: What limits it, for each number of workers: computing, reading, writing, bandwidth, too few chunks, or
            one process.
        gets: Frames read from the cache.
        puts: Frames written to the cache.
        bytes_read: Compressed bytes read.
        bytes_written: Compressed bytes written.
    """

    kind: str
    phases: int
    frames: int
    seconds: tuple[float, ...]
    bound: tuple[str, ...]
    gets: int
    puts: int
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True)
class JobPlan:
    """Result of `plan`.

    Attributes:
        frames: Number of frames.
        counts: How much of what takes time there is, such as pairs to match, by name.
        disk: Bytes that the cache needs at the peak, about.
        measured_on: The processor that was measured.
        workers: The numbers of workers that are compared.
        work: By kind, in order.
        prices: Of a worker for an hour, of 1,000 PUT and of 1,000 GET requests; None if not given.
    """

    frames: int
    counts: dict[str, float]
    disk: float
    measured_on: str
    workers: tuple[int, ...]
    work: tuple[PlannedWork, ...]
    prices: tuple[float | None, float | None, float | None]

    @property
    def seconds(self) -> tuple[float, ...]:
        """Expected seconds of the whole job, for each number of workers."""
        return tuple(map(sum, zip(*(each.seconds for each in self.work), strict=True)))

    @property
    def costs(self) -> tuple[float, ...] | None:
        """Cost of the whole job, for each number of workers. None if no price was given."""
        if all(price is None for price in self.prices):
            return None
        worker, put, get = (price or 0.0 for price in self.prices)
        requests = sum(put * each.puts + get * each.gets for each in self.work) / 1000
        return tuple(
            requests + worker * count * seconds / 3600
            for count, seconds in zip(self.workers, self.seconds, strict=True)
        )


@dataclass(frozen=True)
class SmoothResult:
    """Result of `smooth`.

    Attributes:
        output: The video or folder of images.
        changes: What changed in each frame; None for interpolated videos, and if the output was complete already.
    """

    output: Path
    changes: Changes | None


@dataclass(frozen=True)
class VideoMetrics:
    """Measurements of one video.

    Attributes:
        path: The video.
        numbers: By name of the measure, as in docs/metrics.md. Measures that cannot be taken are left out.
        warning: Which frames lost structure; empty if none did.
    """

    path: Path
    numbers: dict[str, float]
    warning: str


@dataclass(frozen=True)
class MetricsResult:
    """Result of `metrics`.

    Attributes:
        frames: The number of frames compared.
        videos: In the order given.
    """

    frames: int
    videos: tuple[VideoMetrics, ...]


def member(kind: type[Member], name: str, noun: str) -> Member:
    """Return the member of `kind` with this name, or raise UsageError with the nearest name."""
    from stages.base.mistakes import unknown

    try:
        return kind(name)
    except ValueError:
        raise UsageError(unknown(noun, name, map(str, kind))) from None


def as_path(path: FilePath | None) -> Path | None:
    """Return a path as a Path, if there is one."""
    return None if path is None else Path(path)


def as_argument(path: Path) -> str:
    """Return a path as a command-line argument. A leading dash would make it an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)
