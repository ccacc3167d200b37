"""Where a frame cache keeps its bytes: a folder, or an object store (object_store.py)."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil
from filelock import FileLock, Timeout

from stages.base.errors import DiffSynthError, UsageError
from stages.base.json_types import Json, Values

if TYPE_CHECKING:  # imported where an array is used, which `status` does not do
    from stages.base.chunks import Chunks

LOCK, HOLDER = "lock", "holder.json"
CHUNK = "c."  # the start of the names of chunks
DISK_THREADS = 8
SETTINGS = ("AWS_", "AZURE_", "GOOGLE_")  # the beginnings of the environment variables that object stores read


class Store(Protocol):
    """Named bytes. Names are relative paths with slashes. `str` returns the address, for messages."""

    readers: int
    """How many reads at once are worthwhile."""

    @property
    def arrays(self) -> Chunks:
        """The same bytes, as Zarr wants them. Reading a missing chunk raises MissingChunk."""

    def get(self, name: str) -> bytes | None:
        """Return what is stored under a name. None if there is nothing."""

    def put(self, name: str, data: bytes) -> None:
        """Store `data` atomically and durably."""

    def delete(self, name: str) -> None:
        """Remove what is stored under a name, if anything is."""

    def delete_all(self, folder: str) -> None:
        """Remove everything in a folder, if it exists."""

    def delete_chunks(self, array: str) -> None:
        """Remove the frames of an array, but not its metadata."""

    def size(self, name: str) -> int:
        """Return the bytes of a file, or of everything in a folder. 0 if it does not exist."""

    def children(self, folder: str) -> list[str]:
        """Return the names of files and folders directly in a folder, the outermost one if `folder` is empty."""

    def flush(self, names: Sequence[str]) -> None:
        """Wait until what Zarr has written under these names is durable."""

    def sweep(self, folder: str) -> None:
        """Remove what a killed process left half written in a folder."""

    def leftovers(self) -> list[str]:
        """Return the names of files that killed processes have left and nothing reads."""

    def journal(self, name: str) -> Journal:
        """Return the journal of this name."""

    def lock(self, waiting: Callable[[str], object]) -> AbstractContextManager[None]:
        """Keep other processes out, on all machines that share the store.

        Args:
            waiting: Called with a message if it takes a while to see whether the last holder is alive.

        Raises:
            DiffSynthError: Another process holds the lock.
        """

    def holder(self) -> str | None:
        """Describe the process that holds the lock. None if there is none."""


class Journal(Protocol):
    """Lines that are appended one by one by a single writer."""

    def read(self) -> str:
        """Return all whole lines, and drop an incomplete one at the end."""

    def start(self, line: str) -> None:
        """Replace the journal with one line, durably."""

    def append(self, line: str) -> None:
        """Add a line. It is durable at once, or after the next `commit`, whichever suits the store."""

    def commit(self) -> None:
        """Make all lines durable."""

    def remove(self) -> None:
        """Remove the journal, if it exists."""


class MissingChunk(Exception):
    """A chunk does not exist."""


def open_store(place: str | Path) -> Store:
    """Return the store at a folder or URL.

    Raises:
        UsageError: The URL is of an unknown kind, or the package that it needs is missing.
    """
    url = str(place)
    if "://" not in url:
        return FolderStore(Path(place))
    if url.startswith("file://"):
        return FolderStore(Path(url2pathname(urlsplit(url).path)))
    try:
        from stages.base.object_store import ObjectStore
    except ImportError:
        raise UsageError(
            f"{url}: object stores need the package obstore", "install it with: pip install 'diffsynth-cli[cloud]'"
        ) from None
    return ObjectStore(url)


def store_settings() -> dict[str, str]:
    """Return the environment variables that object stores read: credentials, endpoint, region and so on."""
    return {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}


# --- a folder -------------------------------------------------------------------------------------------


class FolderStore:
    """Files in a folder, which hosts may share if its file system locks files across them.

    Args:
        path: The folder. Created when something is stored.
    """

    readers = 1  # Zarr reads several chunks of one request at once

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def arrays(self) -> Chunks:
        from zarr.storage import LocalStore

        from stages.base.chunks import Chunks

        return Chunks(LocalStore(self.path))

    def get(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def put(self, name: str, data: bytes) -> None:
        write_bytes(self.path / name, data)

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def delete_chunks(self, array: str) -> None:
        with ThreadPoolExecutor(DISK_THREADS) as pool:  # where freed blocks are discarded, each file takes milliseconds
            list(pool.map(_remove_file, (self.path / array).glob(f"{CHUNK}*")))

    def size(self, name: str) -> int:
        path = self.path / name
        return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())

    def delete_all(self, folder: str) -> None:
        self.delete_chunks(folder)
        shutil.rmtree(self.path / folder, ignore_errors=True)

    def children(self, folder: str) -> list[str]:
        try:
            return [path.name for path in (self.path / folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def flush(self, names: Sequence[str]) -> None:
        paths = [self.path / name for name in names]
        with ThreadPoolExecutor(DISK_THREADS) as pool:  # parallel syncs are merged into fewer disk operations
            list(pool.map(_sync, paths))
            if os.name == "posix":  # elsewhere folders cannot be opened
                list(pool.map(_sync, {path.parent for path in paths}))

    def sweep(self, folder: str) -> None:
        for leftover in (self.path / folder).glob("*.partial"):
            leftover.unlink(missing_ok=True)

    def leftovers(self) -> list[str]:
        found = (path for pattern in ("*.partial", "*.part") for path in self.path.rglob(pattern))
        return sorted(path.relative_to(self.path).as_posix() for path in found if path.is_file())

    def journal(self, name: str) -> Journal:
        return FileJournal(self.path / name)

    @contextmanager
    def lock(self, waiting: Callable[[str], object]) -> Iterator[None]:
        """Lock the folder. The kernel releases the lock when the process ends, however it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise in_use(str(self), self.holder()) from None
        try:
            self.put(HOLDER, as_json(this_process()))
            yield
        finally:
            self.delete(HOLDER)
            lock.release()

    def holder(self) -> str | None:
        return describe_process(from_json(self.get(HOLDER)))


class FileJournal:
    """A journal in a file, to which each line is appended and flushed."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> str:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""
        whole = whole_lines(text)
        if whole != text:  # remove the incomplete line, or the next one would be appended to it
            write_bytes(self.path, whole.encode())
        return whole

    def start(self, line: str) -> None:
        write_bytes(self.path, f"{line}\n".encode())

    def append(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def commit(self) -> None:
        return

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def whole_lines(text: str) -> str:
    """Return `text` without an incomplete line at its end."""
    return text[: text.rfind("\n") + 1]


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file's content atomically: the file holds the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _remove_file(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- JSON -----------------------------------------------------------------------------------------------


def as_json(value: object) -> bytes:
    """Return a value as the JSON of a file."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    if any("\ud800" <= character <= "\udfff" for character in text):  # from a file name that is not UTF-8
        text = json.dumps(value, indent=1)
    return f"{text}\n".encode()


def from_json(data: bytes | None) -> Json:
    """Return the value of a JSON file. None if it does not exist or is damaged."""
    try:
        value: Json = json.loads(data or b"")
        return value
    except ValueError:
        return None


# --- who holds a lock -----------------------------------------------------------------------------------


def this_process() -> Values:
    """Return what `describe_process` needs to know about this process."""
    return {
        "pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }  # fmt: skip


def describe_process(who: object) -> str | None:
    """Describe the process that has written its `this_process`. None if it is known to have ended, or unknown."""
    if not isinstance(who, dict) or not {"pid", "host", "since", "command"} <= set(who):
        return None
    if who["host"] == socket.gethostname() and not psutil.pid_exists(who["pid"]):
        return None  # it was killed
    return f"process {who['pid']} on {who['host']} since {who['since']} ({who['command']})"


def in_use(address: str, holder: str | None) -> DiffSynthError:
    """Return the error that says that another process holds the lock."""
    return DiffSynthError(f"{address} is in use by {holder or 'another process'}", "wait for it, or stop it")
