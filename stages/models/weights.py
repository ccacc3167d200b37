"""Find the weights of networks in local folders or on the Hugging Face Hub, and pick the device they run on.

Libraries that take seconds to import are imported when they are needed.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from stages.base.errors import DiffSynthError, UsageError

if TYPE_CHECKING:
    import torch


Names: TypeAlias = str | tuple[str, ...]
"""The name of a file, or alternatives, the preferred one first."""


def find_files(key: str, name: str, files: Sequence[Names], also: tuple[str, ...] = (), hint: str = "") -> Path:
    """Return the folder that holds the files of a model, downloading those that are not in the hub's cache.

    Args:
        key: The job key that names the model.
        name: An absolute path or a hub id, `owner/model` or `owner/model@revision`.
        files: The files that are needed.
        also: Patterns of files to download as well.
        hint: What to suggest if files are missing.

    Raises:
        DiffSynthError: Files are missing: which, where they were looked for and how to provide them.
    """
    if Path(name).is_absolute():
        return _check_complete(key, name, Path(name), files, hint)
    folder = cached_folder(key, name, files)
    if folder is None or missing_files(folder, files):
        folder = download(key, name, files, also)
    return _check_complete(key, name, folder, files, hint)


def check_files(key: str, name: str, files: Sequence[Names], hint: str = "") -> Path | None:
    """Check that `find_files` can provide these files, without downloading them.

    Returns:
        The folder, or None if files have to be downloaded. The hub has confirmed that it has them.

    Raises:
        DiffSynthError: As `find_files`.
    """
    if Path(name).is_absolute():
        return _check_complete(key, name, Path(name), files, hint)
    folder = cached_folder(key, name, files)
    if folder is not None and not missing_files(folder, files):
        return folder
    available = _list_remote(key, name, files)
    missing = [names[0] for names in map(_each, files) if not available.intersection(names)]
    if missing:
        raise UsageError(f"{key}: {name} lacks {', '.join(missing)}", hint)
    return None


def check_tensor_file(key: str, path: Path) -> None:
    """Raise DiffSynthError if a `.safetensors` file is damaged or truncated. Only the header is read."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="np"):
            pass
    except Exception as error:  # safetensors has an exception of its own for every kind of damage
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DiffSynthError(f"{key}: {path} cannot be read: {reason}", "is the download complete?") from error


def first_existing(folder: Path, names: Names) -> str | None:
    """Return the first of these files that exists in the folder."""
    return next((name for name in _each(names) if (folder / name).exists()), None)


@dataclass(frozen=True)
class Weights:
    """The files of the model `name`, which the job sets by `key`, and the weights of `others` that it works with."""

    key: str
    name: str
    files: tuple[str, ...]
    others: tuple[Weights, ...] = ()
    _HINT: ClassVar[str] = "are these the weights of this annotator?"

    def folder(self) -> Path:
        """Return the folder that holds the files, once those of others exist, too. Raises DiffSynthError if not."""
        for other in self.others:
            other.folder()
        return find_files(self.key, self.name, self.files, hint=self._HINT)

    def check(self) -> None:
        """Raise DiffSynthError unless the files exist or can be downloaded. Downloads nothing."""
        for other in self.others:
            other.check()
        folder = check_files(self.key, self.name, self.files, self._HINT)
        if folder is not None:
            for file in self.files:
                check_tensor_file(self.key, folder / file)


def pick_device(name: str) -> torch.device:
    """Return the device of this name. `auto` is the first GPU, or the CPU if there is none."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device: unknown device {name!r}", "choose auto, cpu, cuda, cuda:N or mps") from error
    available = {
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, True):
        raise UsageError(f"device: {name} is not available", "PyTorch does not see this device; choose cpu or auto")
    return device


def check_device(name: str) -> None:
    """Raise UsageError for a device that this machine cannot have, without importing torch."""
    impossible = {"cuda": not _has_driver(), "mps": sys.platform != "darwin"}
    if impossible.get(name.partition(":")[0], False):
        raise UsageError(f"device: {name} is not available", "this machine has no such device; choose cpu or auto")


def pick_gpu(name: str) -> torch.device | None:
    """Return the NVIDIA GPU of this name, None for other devices. `auto` imports torch only if there is a driver."""
    if name == "auto" and not _has_driver():
        return None
    device = None if name in ("cpu", "mps") else pick_device(name)
    return device if device is not None and device.type == "cuda" else None


def driver_cuda() -> tuple[int, int] | None:
    """Return the latest version of CUDA that NVIDIA's driver supports. None if there is no driver."""
    driver, version = _driver(), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _has_driver() -> bool:
    return _driver() is not None


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


@contextmanager
def explained(key: str, name: str, hint: str = "is the download complete?") -> Iterator[None]:
    """Turn any error of a loader into a DiffSynthError about the model `name`."""
    import torch

    try:
        yield
    except DiffSynthError:
        raise
    except torch.OutOfMemoryError as error:
        raise DiffSynthError(
            f"{key}: out of memory while loading {name}", "use a smaller dtype or another device"
        ) from error
    except Exception as error:  # the loaders raise whatever their parsers do
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DiffSynthError(f"{key}: {name} cannot be loaded: {reason[0]}", hint) from error


@contextmanager
def no_logs() -> Iterator[None]:
    """Suppress log messages and warnings of libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def _each(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def missing_files(folder: Path, files: Sequence[Names]) -> list[str]:
    """Return the files that a folder lacks. Of alternatives that are all missing, the preferred one."""
    return [_each(names)[0] for names in files if first_existing(folder, names) is None]


def _check_complete(key: str, name: str, folder: Path, files: Sequence[Names], hint: str) -> Path:
    if not folder.is_dir():
        raise UsageError(f"{key}: no such folder: {name}")
    if missing := missing_files(folder, files):
        raise UsageError(f"{key}: {name} lacks {', '.join(missing)}", hint)
    return folder


def cached_folder(key: str, name: str, files: Sequence[Names]) -> Path | None:
    """Return the folder in the hub's cache that holds some of these files of a hub model, or all. None if none does.

    `snapshot_download` finds only folders that have every file of the hub's model, also those that nobody reads.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, revision = split_revision(name)
    try:
        for file in (file for names in files for file in _each(names)):
            found = try_to_load_from_cache(repository, file, revision=revision)
            if isinstance(found, str):
                return Path(found).parents[len(Path(file).parts) - 1]
    except HFValidationError:
        raise UsageError(
            f"{key}: {name} is neither a folder nor a hub id (owner/model or owner/model@revision)"
        ) from None
    return None


def split_revision(name: str) -> tuple[str, str | None]:
    """Return the repository and the revision of a hub id. Without a revision, it is the hub's newest, None."""
    repository, mark, revision = name.partition("@")
    if mark and not revision:
        return name, None  # which is no hub id
    return repository, revision or None


def _list_remote(key: str, name: str, files: Sequence[Names]) -> set[str]:
    """List the files that the hub has of a model."""
    from huggingface_hub import HfApi

    repository, revision = split_revision(name)
    with no_logs(), fetching(key, name, files):
        return set(HfApi().list_repo_files(repository, revision=revision))


def download(key: str, name: str, files: Sequence[Names], also: tuple[str, ...] = ()) -> Path:
    """Download files of a hub model into the hub's cache, and return their folder. The arguments are `find_files`'."""
    from huggingface_hub import snapshot_download

    wanted, (repository, revision) = wanted_files(key, name, files, also), split_revision(name)
    with no_logs(), fetching(key, name, files):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))


def wanted_files(key: str, name: str, files: Sequence[Names], also: tuple[str, ...] = ()) -> list[str]:
    """Return the files to download of a hub model: of alternatives, the first that the hub has."""
    available = _list_remote(key, name, files)
    return [*(next((file for file in _each(names) if file in available), _each(names)[0]) for names in files), *also]


@contextmanager
def fetching(key: str, name: str, files: Sequence[Names]) -> Iterator[None]:
    """Turn network errors into a DiffSynthError that says how to provide the files by hand."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except Exception as error:  # the hub's client passes on the errors of its HTTP library
        folder = cached_folder(key, name, files)
        missing = [_each(names)[0] for names in files] if folder is None else missing_files(folder, files)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, OfflineModeIsEnabled):  # whose own message is about an environment variable
            reason = "downloads are disabled"
        repository, revision = split_revision(name)
        where = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/"
        raise DiffSynthError(
            f"{key}: {name} is not a local folder, and {', '.join(missing)} of the hub model of this name is neither "
            f"in {constants.HF_HUB_CACHE} nor can it be downloaded: {reason}",
            f"check the name and the network; or download the missing files ({where}...) into a folder, with the same "
            "names, and use that folder",
        ) from None
