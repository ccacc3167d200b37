"""The models that a job or a task reads: where they are, whether they are complete, and downloading them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffsynth_cli.results import JobSource, ModelFiles, Overrides, Place, SilentReporter, member
from stages.base.errors import DiffSynthError, UsageError
from stages.base.reporting import Reporter

if TYPE_CHECKING:
    from stages.jobs.models import Needed
    from templates import Task

ANSWER = 3.0  # s that the hub has to answer


def models(
    job: JobSource | None = None,
    *,
    task: Task | str | None = None,
    overrides: Overrides = (),
    check: bool = False,
    fetch: bool = False,
    offline: bool = False,
    confirm: Callable[[tuple[ModelFiles, ...]], bool] = lambda missing: True,
    reporter: Reporter | None = None,
) -> tuple[ModelFiles, ...]:
    """Return the models that a job, a task or, by default, any task reads.

    Args:
        job: As for `run`.
        task: A task of `diffsynth init`, instead of a job.
        overrides: Job keys that replace those of `job`.
        check: Read all files, and compare those of the hub's cache with their hashes.
        fetch: Download what is missing.
        offline: Ask the hub for nothing, not even for sizes.
        confirm: Gets the models to download, if there are any, and returns whether to download them.
        reporter: Receives progress.

    Raises:
        UsageError: The job is wrong, there is no such task, or arguments contradict each other.
        DiffSynthError: A model cannot be downloaded.
    """
    from stages.models.hub import without_network

    if offline and fetch:
        raise UsageError("what is missing cannot be downloaded offline", "leave out --offline or --fetch")
    reporter = reporter or SilentReporter()
    with closing(reporter):
        reporter.begin("models", None)
        found = [_Model(keys, needed) for keys, needed in _needed(job, task, overrides)]
        lacking = [model for model in found if model.state.place is Place.HUB]
        online = bool(lacking) and not offline and _hub_answers(reporter, fetch)
        with nullcontext() if online else without_network():
            for model in lacking if online else ():
                model.ask_for_size()
            if fetch and lacking and confirm(tuple(model.state for model in lacking)):
                for model in lacking:
                    model.fetch(reporter)
        for model in found if check else ():
            model.check(reporter)
    return tuple(model.state for model in found)


def _hub_answers(reporter: Reporter, required: bool) -> bool:
    """Whether the hub can be asked. If it is `required` and does not answer, raise DiffSynthError."""
    from stages.models.hub import hub_settings, why_unreachable

    reporter.phase("ask the hub")
    settings = hub_settings()
    problem = "downloads are disabled by HF_HUB_OFFLINE" if settings.offline else why_unreachable(ANSWER)
    if problem and required:
        raise DiffSynthError(f"{settings.endpoint} cannot be asked for models: {problem}", "check the network")
    return not problem


# --- what is needed -------------------------------------------------------------------------------------


def _needed(job: JobSource | None, task: Task | str | None, overrides: Overrides) -> Iterator[tuple[list[str], Needed]]:
    """Yield each model that is needed once, after the job's keys, or the tasks, that need it."""
    from templates import Task

    if job is not None and task is not None:
        raise UsageError("a job and a task were given", "give one of them")
    if job is None and overrides:
        raise UsageError("options of a job need a job", "give JOB.json")
    if job is not None:
        pairs = [(needed.key, needed) for needed in _of_job(job, overrides)]
    else:
        tasks = [*Task] if task is None else [member(Task, task, "task")]
        pairs = [(str(each), needed) for each in tasks for needed in _of_task(each)]
    unique = {replace(needed, key=""): needed for _, needed in pairs}
    for same, needed in unique.items():
        yield list(dict.fromkeys(label for label, other in pairs if replace(other, key="") == same)), needed


def _of_job(job: JobSource, overrides: Overrides) -> list[Needed]:
    from diffsynth_cli.jobs import open_job
    from stages.jobs.models import needed_models

    return needed_models(open_job(job, overrides, SilentReporter()).job)


def _of_task(task: Task) -> list[Needed]:
    from diffsynth_cli.project import template
    from stages.jobs.job_file import check
    from stages.jobs.models import needed_models

    job, _ = check(template(task))
    assert job is not None, "templates are valid"
    return needed_models(job)


# --- one model ------------------------------------------------------------------------------------------


class _Model:
    """A model that is needed, and what is known of it.

    Args:
        keys: What needs it.
        needed: Its name and files.
    """

    def __init__(self, keys: list[str], needed: Needed):
        self.keys, self.needed, self.download = tuple(keys), needed, None
        self.state = self._look()

    def _look(self) -> ModelFiles:
        """Look for the files on this machine."""
        from stages.models.hub import licence
        from stages.models.weights import missing_files

        needed, (place, folder) = self.needed, self._place()
        exists = folder is not None and folder.exists()
        missing = missing_files(folder or Path(), needed.files) if exists else [*map(_preferred, needed.files)]
        if not needed.files and not exists:
            missing = [needed.name]
        if place is Place.CACHE and missing:
            place = Place.HUB
        size = sum(file.stat().st_size for file in self._files(folder))
        named = licence(folder) if folder is not None else ""
        return ModelFiles(self.keys, needed.name, place, folder, size, tuple(missing), None, named, None)

    def _place(self) -> tuple[Place, Path | None]:
        from stages.models import embedded
        from stages.models.weights import cached_folder

        if (folder := embedded(self.needed.name)) is not None:
            return Place.EMBEDDED, folder
        if not self.needed.files or Path(self.needed.name).is_absolute():
            return Place.LOCAL, Path(self.needed.name)
        return Place.CACHE, cached_folder(self.needed.key, self.needed.name, self.needed.files)

    def _files(self, folder: Path | None) -> list[Path]:
        """Return the files on this machine that are read."""
        from stages.models.weights import first_existing

        if folder is None or not folder.exists():
            return []
        if folder.is_file():
            return [folder]
        found = [folder / name for names in self.needed.files if (name := first_existing(folder, names)) is not None]
        return list(dict.fromkeys([*found, *(file for pattern in self.needed.also for file in folder.glob(pattern))]))

    def ask_for_size(self) -> None:
        """Ask the hub how large the missing files are."""
        from stages.models.hub import to_download

        sizes = to_download(self.needed.key, self.needed.name, self.needed.files, self.needed.also)
        self.state = replace(self.state, download=sum(sizes.values()))

    def fetch(self, reporter: Reporter) -> None:
        """Download the missing files."""
        from stages.models.hub import MODEL_CARD
        from stages.models.weights import download

        reporter.phase(f"download {self.needed.name}")
        needed = self.needed
        download(needed.key, needed.name, needed.files, (*needed.also, MODEL_CARD))  # which names the licence
        self.state = self._look()

    def check(self, reporter: Reporter) -> None:
        """Read all files, and note which ones are damaged."""
        reporter.phase(f"check {self.needed.name}")
        damaged = [str(file) for file in self._files(self.state.folder) if _is_damaged(file)]
        self.state = replace(self.state, damaged=tuple(damaged))


def _is_damaged(file: Path) -> bool:
    """Whether a file differs from its hash in the hub's cache. Of other files, only headers can be checked."""
    from stages.models.hub import differs
    from stages.models.weights import check_tensor_file

    different = differs(file)
    if different is not None:
        return different
    try:
        check_tensor_file("", file)
    except DiffSynthError:
        return True
    return False


def _preferred(names: str | tuple[str, ...]) -> str:
    return names if isinstance(names, str) else names[0]
