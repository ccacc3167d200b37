"""Python API for trying a job on a few frames, with several values of its keys, like `diffsynth preview`."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from diffsynth_cli import jobs
from diffsynth_cli.results import FilePath, JobSource, Overrides, PreviewCell, PreviewResult, SilentReporter, as_path
from stages.base.errors import UsageError
from stages.base.reporting import Reporter

if TYPE_CHECKING:
    from stages.jobs.job import Job

Grid: TypeAlias = Mapping[str, Sequence[object]]

FOLDER, SHEET = "preview", "preview.png"  # in the job's output folder, and in that one
SIDE = 768  # px of a frame in the contact sheet; larger ones are shrunk
SET_HERE = ("output_path", "cache", "keep", "frame_maximum_count", "start_time")


def preview(
    job: JobSource,
    output: FilePath | None = None,
    *,
    frames: int = 5,
    at: float = 0.0,
    grid: Grid | Sequence[str] = (),
    overrides: Overrides = (),
    force: bool = False,
    reporter: Reporter | None = None,
) -> PreviewResult:
    """Run a job on a few consecutive frames at full quality, and draw the results in a contact sheet.

    Each combination of the grid's values is a job of its own, in the folders `preview/1`, `preview/2` and so on of the
    output folder. It begins with the results of the one before and redoes only what its values change. Numbers of
    `keyframes` and `scenes` are left out, since they count the frames of the whole video.

    Args:
        job: As for `run`.
        output: The contact sheet, a PNG; by default `preview/preview.png` in the job's output folder.
        frames: Number of frames.
        at: Where they begin, in seconds after the beginning of what the job uses.
        grid: Job keys and the values to try of each, or `KEY=VALUE,VALUE` strings.
        overrides: Job keys that replace those of `job`.
        force: Overwrite existing files, but never an input.
        reporter: Receives progress and warnings.

    Raises:
        UsageError: The job or a value of the grid is wrong, or files are in the way.
        DiffSynthError: A stage failed.
    """
    from diffsynth_cli.contact_sheet import compared, write_contact_sheet
    from diffsynth_cli.outputs import check_sheet
    from stages.all_stages import all_stages

    reporter = reporter or SilentReporter()
    opened = jobs.open_job(job, overrides, reporter)
    folder = Path(opened.job.output_path) / FOLDER
    sheet = as_path(output) or folder / SHEET
    check_sheet(sheet, opened.job, opened.file, force=force)
    common, cells = _shortened(opened.job, frames, at), combinations(read_grid(grid))
    prompt = _later(opened.job, at)
    keys = [
        {"prompt": prompt, **cell, **common, "output_path": str(folder / str(number))}
        for number, cell in enumerate(cells, 1)
    ]
    trials = [jobs.open_job(opened.job, each, reporter, [*all_stages().values()]) for each in keys]
    caches = [trial.cache for trial in trials]
    results = []
    for cell, each, cache, before in zip(cells, keys, caches, [None, *caches], strict=False):
        reporter.begin(FOLDER, None)
        if cell:
            reporter.note(label(cell))
        if before is not None:
            _start_from(before.path, cache.path)
        done = jobs.run(opened.job, overrides=each, restart=True, force=force, reporter=reporter)
        results.append(PreviewCell(cell, done))
    write_contact_sheet(
        sheet, compared([*map(label, cells)], [(trial.job, trial.cache) for trial in trials]), frames, SIDE
    )
    return PreviewResult(sheet, tuple(results))


def read_grid(grid: Grid | Sequence[str]) -> dict[str, list[object]]:
    """Return the values to try of each key.

    Raises:
        UsageError: A text is not `KEY=VALUE,VALUE`, or a key cannot differ between previews.
    """
    pairs = grid.items() if isinstance(grid, Mapping) else map(_parsed, grid)
    read = {key: [*values] for key, values in pairs}
    for key in SET_HERE:
        if key in read:
            raise UsageError(f"--grid {key}: a preview sets {key} itself", "use --frames, --at or --output")
    return read


def _parsed(text: str) -> tuple[str, list[object]]:
    """Parse `KEY=VALUE,VALUE`, or `KEY=[VALUE, VALUE]` in JSON, for values that contain commas."""
    key, equals, listed = text.partition("=")
    if not (key and equals and listed):
        raise UsageError(f"--grid {text}: must be KEY=VALUE,VALUE", "for example --grid seed_of_noise=1,2,3")
    try:
        values = json.loads(listed)
    except ValueError:
        values = listed
    if isinstance(values, list):
        return key, values
    return key, [_value(value) for value in listed.split(",")]


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def combinations(grid: Grid) -> list[dict[str, object]]:
    """Return every combination of the grid's values. The last key changes fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def label(cell: Mapping[str, object]) -> str:
    """Name a combination of values."""
    return ", ".join(f"{key} = {value}" for key, value in cell.items())


def _shortened(job: Job, frames: int, at: float) -> dict[str, object]:
    """Return the keys that make a job one of a few frames."""
    return {
        "cache": None,
        "keep": None,
        "frame_maximum_count": min(frames, job.frame_maximum_count or frames),
        "start_time": (job.start_time or 0.0) + at,
        "keyframes": 1 if isinstance(job.keyframes, list) else job.keyframes,
        "scenes": None if isinstance(job.scenes, list) else job.scenes,
    }


def _later(job: Job, seconds: float) -> str | dict[str, str]:
    """Return the prompts of a job whose video begins later."""
    if isinstance(job.prompt, str) or not seconds:
        return job.prompt
    from stages.video import open_source

    frames = round(seconds * float(open_source(job.input_video).fps) / job.frame_interval)

    def moved(moment: str) -> str:
        return f"{float(moment[:-1]) - seconds:.6f}s" if moment.endswith("s") else str(int(moment) - frames)

    return {moved(moment): text for moment, text in job.prompt.items()}


def _start_from(before: Path, place: Path) -> None:
    """Give a preview that has no cache yet that of another one, whose stages it redoes where keys differ."""
    from stages.base.store import HOLDER, LOCK

    if place.exists():
        return
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(before, part, ignore=shutil.ignore_patterns(LOCK, HOLDER))
    part.rename(place)
