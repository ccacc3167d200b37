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
from typing import TYPE_CHECKING

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
    folder = Path(name) if Path(name).is_absolute() else _snapshot(key, name, files, also)
    missing = _missing(folder, files)
    if missing:
        raise DiffSynthError(f"{key}: {name} lacks {', '.join(missing)}", hint)
    return folder


def first_there(folder: Path, names: Names) -> str | None:
    """The first of these files that is in the folder, if any is."""
    return next((name for name in _each(names) if (folder / name).exists()), None)


@dataclass(frozen=True)
class Weights:
    """The files of the model `name` that something named by the job's `key` reads."""

    key: str
    name: str
    files: tuple[str, ...]

    def folder(self) -> Path:
        """Where they lie. Raises DiffSynthError if they do not."""
        return find_files(self.key, self.name, self.files, hint="are these the weights of this annotator?")


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


def _snapshot(key: str, name: str, files: Sequence[Names], also: tuple[str, ...]) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    missing = [_each(names)[0] for names in files]
    with no_logs():
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
            missing = _missing(folder, files)
            if not missing:
                return folder
        except LocalEntryNotFoundError:
            pass  # not downloaded yet
        except HFValidationError:
            raise UsageError(f"{key}: {name} is neither a folder nor a hub id (owner/model)") from None
        try:
            there = HfApi().list_repo_files(name)
            wanted = [next((file for file in _each(names) if file in there), _each(names)[0]) for names in files]
            return Path(snapshot_download(name, allow_patterns=[*wanted, *also]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            where = f"https://huggingface.co/{name}/resolve/main/"
            raise DiffSynthError(
                f"{key}: {name} is no local folder, and {', '.join(missing)} of the hub model of this name can "
                f"neither be found in {constants.HF_HUB_CACHE} nor be fetched: {reason}",
                f"check the name and the network; or download what is missing ({where}...) into a folder, by the same "
                "names, and give that folder instead",
            ) from None
