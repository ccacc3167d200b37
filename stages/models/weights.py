"""Where networks come from and where they run: local folders, the hub and its cache, devices.

The libraries behind it take seconds to import, so they are imported when they are needed.
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
from typing import TYPE_CHECKING, ClassVar

from stages.base.errors import DiffSynthError, UsageError

if TYPE_CHECKING:
    import torch


# A file's name; or several, of which the first that is there is wanted.
Names = str | tuple[str, ...]


def find_files(key: str, name: str, files: Sequence[Names], also: tuple[str, ...] = (), hint: str = "") -> Path:
    """The folder of the model `name`, an absolute path or a hub id, in which `files` lie.

    A hub model is downloaded if it is not in the hub's cache, with what matches the patterns `also`. `key` is the
    job's. Raises DiffSynthError, naming what is missing, where it was looked for and how to place it.
    """
    if Path(name).is_absolute():
        return _complete(key, name, Path(name), files, hint)
    folder = _cached(key, name)
    if folder is None or _missing(folder, files):
        folder = _download(key, name, files, also)
    return _complete(key, name, folder, files, hint)


def check_files(key: str, name: str, files: Sequence[Names], hint: str = "") -> Path | None:
    """As `find_files`, but downloads nothing: the hub is only asked whether it has what is missing here.

    Gives the folder, or None if the files are still to be downloaded.
    """
    if Path(name).is_absolute():
        return _complete(key, name, Path(name), files, hint)
    folder = _cached(key, name)
    if folder is not None and not _missing(folder, files):
        return folder
    offered = _offered(key, name, files)
    missing = [names[0] for names in map(_each, files) if not offered.intersection(names)]
    if missing:
        raise UsageError(f"{key}: {name} lacks {', '.join(missing)}", hint)
    return None


def check_tensor_file(key: str, path: Path) -> None:
    """Raises DiffSynthError if a `.safetensors` file is damaged or cut off. Reads its header alone."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="np"):
            pass
    except Exception as error:  # safetensors has an exception of its own for every kind of damage
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DiffSynthError(f"{key}: {path} cannot be read: {reason}", "is the download complete?") from error


def first_there(folder: Path, names: Names) -> str | None:
    """The first of these files that is in the folder, if any is."""
    return next((name for name in _each(names) if (folder / name).exists()), None)


@dataclass(frozen=True)
class Weights:
    """The files of the model `name` that something named by the job's `key` reads."""

    key: str
    name: str
    files: tuple[str, ...]
    _HINT: ClassVar[str] = "are these the weights of this annotator?"

    def folder(self) -> Path:
        """Where they lie. Raises DiffSynthError if they do not."""
        return find_files(self.key, self.name, self.files, hint=self._HINT)

    def check(self) -> None:
        """Raises DiffSynthError unless they are there, or the hub offers them. Downloads nothing."""
        folder = check_files(self.key, self.name, self.files, self._HINT)
        if folder is not None:
            for file in self.files:
                check_tensor_file(self.key, folder / file)


def pick_device(name: str) -> torch.device:
    """The device of this name; auto: the first GPU, else the CPU."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device: there is none of the name {name}", "auto, cpu, mps, cuda or cuda:1") from error
    there = {
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, True):
        raise UsageError(f"device: {name} is not there", "torch sees no such device; try cpu, or leave it out")
    return device


def check_device(name: str) -> None:
    """Raises UsageError for a device that this machine cannot have. Does not import torch, unlike `pick_device`."""
    impossible = {"cuda": not _has_driver(), "mps": sys.platform != "darwin"}
    if impossible.get(name.partition(":")[0], False):
        raise UsageError(f"device: {name} is not there", "this machine has no such device; try cpu, or leave it out")


def pick_gpu(name: str) -> torch.device | None:
    """The NVIDIA GPU that the device `name` means, None for all other devices. torch is imported only where there
    is a driver: without one it would be seconds for nothing."""
    if name == "auto" and not _has_driver():
        return None
    device = None if name in ("cpu", "mps") else pick_device(name)
    return device if device is not None and device.type == "cuda" else None


def _has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


@contextmanager
def explained(key: str, name: str, hint: str = "is the download complete?") -> Iterator[None]:
    """Whatever a loader raises, as one DiffSynthError about the model `name`."""
    import torch

    try:
        yield
    except DiffSynthError:
        raise
    except torch.OutOfMemoryError as error:
        raise DiffSynthError(f"{key}: no memory left for {name}", "a smaller dtype, or another device") from error
    except Exception as error:  # the loaders raise whatever their parsers do
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DiffSynthError(f"{key}: {name} cannot be loaded: {reason[0]}", hint) from error


@contextmanager
def no_logs() -> Iterator[None]:
    """Libraries talk about their own affairs while they load; users need not know."""
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


def _missing(folder: Path, files: Sequence[Names]) -> list[str]:
    return [_each(names)[0] for names in files if first_there(folder, names) is None]


def _complete(key: str, name: str, folder: Path, files: Sequence[Names], hint: str) -> Path:
    if not folder.is_dir():
        raise UsageError(f"{key}: no such folder: {name}")
    if missing := _missing(folder, files):
        raise UsageError(f"{key}: {name} lacks {', '.join(missing)}", hint)
    return folder


def _cached(key: str, name: str) -> Path | None:
    """The folder of a hub model in the hub's cache, which may hold a part of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        with no_logs():
            return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None  # not downloaded yet
    except HFValidationError:
        raise UsageError(f"{key}: {name} is neither a folder nor a hub id (owner/model)") from None


def _offered(key: str, name: str, files: Sequence[Names]) -> set[str]:
    """The files of a hub model on the hub."""
    from huggingface_hub import HfApi

    with no_logs(), _fetching(key, name, files):
        return set(HfApi().list_repo_files(name))


def _download(key: str, name: str, files: Sequence[Names], also: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    offered = _offered(key, name, files)
    wanted = [next((file for file in _each(names) if file in offered), _each(names)[0]) for names in files]
    with no_logs(), _fetching(key, name, files):
        return Path(snapshot_download(name, allow_patterns=[*wanted, *also]))


@contextmanager
def _fetching(key: str, name: str, files: Sequence[Names]) -> Iterator[None]:
    """What goes wrong between here and the hub, as one DiffSynthError that says how to do without it."""
    from huggingface_hub import constants

    try:
        yield
    except Exception as error:  # without a network, whatever the HTTP library under the hub's client raises
        folder = _cached(key, name)
        missing = [_each(names)[0] for names in files] if folder is None else _missing(folder, files)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = f"https://huggingface.co/{name}/resolve/main/"
        raise DiffSynthError(
            f"{key}: {name} is no local folder, and {', '.join(missing)} of the hub model of this name can "
            f"neither be found in {constants.HF_HUB_CACHE} nor be fetched: {reason}",
            f"check the name and the network; or download what is missing ({where}...) into a folder, by the same "
            "names, and give that folder instead",
        ) from None
