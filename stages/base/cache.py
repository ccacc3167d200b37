"""The frame cache: a Zarr v3 group in which every frame of every stage is one chunk with a checksum.

Each stage declares the arrays it makes; docs/cache.md describes them. The cache's folder also holds:

    marks/, receipts/    finished work (see record.py)
    lock, holder.json    the process that is using the cache
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import psutil
from filelock import FileLock, Timeout

from stages.base.errors import DiffSynthError
from stages.base.fingerprint import Inputs
from stages.base.json_types import Json
from stages.base.record import StageRecord, write_json

if TYPE_CHECKING:  # imported where an array is used, which `status` does not do
    import zarr
    from zarr.types import AnyArray

HOLDER = "holder.json"
ZSTD_LEVEL = 1  # on real footage, level 3 is 9 % smaller and takes twice as long, level 6 16 % and five times as long
DISK_THREADS = 8
MOST_KEPT = 2**30  # bytes: one ControlNet's maps of 700 frames of 512×960

# What Zarr raises for metadata that is not JSON, is incomplete or has values of the wrong type.
DAMAGED_METADATA = (ValueError, KeyError, TypeError, AttributeError)
# What it raises for frames that do not match their checksum or cannot be read.
DAMAGED_DATA = (ValueError, RuntimeError, OSError)


@dataclass(frozen=True)
class ArraySpec:
    """An array to be created, with one chunk per frame.

    Args:
        name: Its name in the cache, `group/name` if it is part of a group.
        shape: [N, ...], with N the number of frames.
        dtype: NumPy's name of the element type.
        attributes: Attributes it is created with.
        compressed: Its size on the disk as a share of its size in memory, at least and usually, if that is known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    attributes: Mapping[str, Json] = field(default_factory=dict)
    compressed: tuple[float, float] | None = None


class KeptFrames:
    """Frames that stay in memory once they have been read, as long as there is room.

    Args:
        names: The arrays whose frames stay.
        room: The most bytes that they may take.
    """

    def __init__(self, names: Collection[str] = (), room: int = 0):
        self.names, self.room = names, room
        self.frames: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    def __reduce__(self) -> tuple[type[KeptFrames], tuple[Collection[str], int]]:
        return KeptFrames, (self.names, self.room)  # another process reads its own

    def read(self, array: FrameArray, indices: tuple[int, ...]) -> np.ndarray:
        """Return frames of an array, from memory if the same ones have been read before."""
        if array.name not in self.names:
            return array.read_stored(indices)
        key = array.name, indices
        if key not in self.frames:
            frames = array.read_stored(indices)
            if sum(kept.nbytes for kept in list(self.frames.values())) + frames.nbytes > self.room:
                return frames
            self.frames[key] = frames
        return self.frames[key]


class FrameArray:
    """Frames by index, read from the cache on access.

    Args:
        array: The array in the cache.
        folder: The cache's folder.
        name: Name of the array.
        mend: How to repair the array, as a hint in messages.
        kept: Frames that were read before.
    """

    def __init__(self, array: AnyArray, folder: Path, name: str, mend: str, kept: KeptFrames):
        self.array, self.folder, self.name, self.mend, self.kept = array, folder, name, mend, kept
        self.shape: tuple[int, ...] = array.shape
        self.attrs = array.attrs

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self._frame, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> np.ndarray: ...

    def __getitem__(self, index: int | slice) -> np.ndarray:
        if isinstance(index, slice):
            return self.read(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._frame(index % len(self))

    def read(self, indices: Iterable[int]) -> np.ndarray:
        """Return frames [len(indices), ...] in the given order. They may stay in memory and must not be changed."""
        return self.kept.read(self, tuple(indices))

    def read_stored(self, indices: Sequence[int]) -> np.ndarray:
        """Return frames [len(indices), ...] in the given order, reading each once from the disk."""
        unique = sorted(set(indices))
        if not unique:
            return np.empty((0, *self.shape[1:]), self.array.dtype)
        parts = [self._run(first, stop) for first, stop in _runs(unique)]
        frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return frames if list(indices) == unique else frames[np.searchsorted(unique, indices)]

    def damage(self, whole: bool) -> Iterator[str]:
        """Read all frames and report damaged ones, and missing ones if the array should be complete (`whole`)."""
        for index in range(len(self)):
            if whole or self._chunk_path(index).exists():
                try:
                    self._frame(index)
                except DiffSynthError as error:
                    yield error.message

    def write(self, start: int, frames: np.ndarray) -> None:
        """Write frames [K, ...] from index `start` on, and wait until they are on the disk."""
        self.array[start : start + len(frames)] = frames
        _flush([self._chunk_path(start + offset) for offset in range(len(frames))])

    def note(self, **attributes: Json) -> None:
        """Set attributes, after the frames written so far are on the disk."""
        self.attrs.update(attributes)

    def _run(self, first: int, stop: int) -> np.ndarray:
        """Read frames first..stop-1 in one call, which takes half the time for small ones."""
        if all(self._chunk_path(index).exists() for index in range(first, stop)):
            with suppress(*DAMAGED_DATA):
                return np.asarray(self.array[first:stop])
        return np.stack([self._frame(index) for index in range(first, stop)])  # names the frame that is damaged

    def _frame(self, index: int) -> np.ndarray:
        # Zarr reads a missing chunk as zeros, which would pass for a black frame.
        if not self._chunk_path(index).exists():
            raise self._damaged(index, "is missing")
        try:
            return np.asarray(self.array[index])
        except DAMAGED_DATA as error:
            raise self._damaged(index, "does not match its checksum") from error

    def _damaged(self, index: int, how: str) -> DiffSynthError:
        return DiffSynthError(f"{self.folder}: frame {index} of the array '{self.name}' {how}", self.mend)

    def _chunk_path(self, index: int) -> Path:
        where = (index, *(0 for _ in self.shape[1:]))
        return self.folder / self.name / f"c.{'.'.join(map(str, where))}"


class FrameCache:
    """The cache of one job.

    Args:
        path: Its folder.
        arguments: The job file and its overrides, for commands in messages.
        arrays: The arrays that each stage makes, as in `Stage.arrays`.
        kept: Frames that were read before.
    """

    def __init__(
        self,
        path: str | Path,
        arguments: str = "JOB.json",
        arrays: Mapping[str, Collection[str]] | None = None,
        kept: KeptFrames | None = None,
    ):
        self.path = Path(path)
        self.arguments = arguments
        self.made_by = arrays or {}
        self.kept = kept or KeptFrames()

    @cached_property
    def group(self) -> zarr.Group:
        """The Zarr group. Created if it does not exist."""
        return self._open(self.path)

    def _open(self, folder: Path) -> zarr.Group:
        """Open a group of the cache. Damaged metadata is rewritten, since it says only that this is a group."""
        import zarr

        try:
            return zarr.open_group(str(folder), mode="a", zarr_format=3)
        except DAMAGED_METADATA as error:
            if not (self.path / "receipts").is_dir():
                raise DiffSynthError(
                    f"{folder} cannot be opened as a frame cache: {error}", "move it away, or choose another output"
                ) from error
        (folder / "zarr.json").unlink()
        return zarr.open_group(str(folder), mode="a", zarr_format=3)

    def keeping(self, names: Collection[str]) -> FrameCache:
        """Return this cache, with memory for frames of the arrays `names`, which nobody may write meanwhile."""
        room = min(MOST_KEPT, psutil.virtual_memory().available // 4)
        return FrameCache(self.path, self.arguments, self.made_by, KeptFrames(names, room))

    def is_cache(self) -> bool:
        """Whether `path` is a frame cache or an empty folder."""
        if not self.path.is_dir():
            return False
        files = {file.name for file in self.path.iterdir()}
        return not files or bool(files & {"lock", "marks", "receipts", "zarr.json"})

    def __contains__(self, name: str) -> bool:
        return (self.path / name / "zarr.json").exists()

    def __getitem__(self, name: str) -> FrameArray:
        import zarr

        makers = (stage for stage, patterns in self.made_by.items() if any(fnmatch(name, part) for part in patterns))
        mend = f"rebuild it with {self.command(next(makers, 'run'))} --restart"
        if name not in self:
            raise DiffSynthError(f"{self.path}: the array '{name}' is missing", mend)
        try:
            array = self.group[name]
        except DAMAGED_METADATA as error:
            raise DiffSynthError(f"{self.path}: the array '{name}' has damaged metadata", mend) from error
        if not isinstance(array, zarr.Array):
            raise DiffSynthError(f"{self.path}: '{name}' is not an array", mend)
        # By default Zarr does not write chunks of zeros, so black frames would be missing.
        return FrameArray(array.with_config({"write_empty_chunks": True}), self.path, name, mend, self.kept)

    def create(self, spec: ArraySpec) -> FrameArray:
        """Create an empty array, replacing one of the same name."""
        from zarr.codecs import Crc32cCodec, ZstdCodec

        place = self.path / spec.name
        group = self.group if place.parent == self.path else self._open(place.parent)
        group.create_array(
            place.name,
            shape=spec.shape,
            chunks=(1, *(max(1, size) for size in spec.shape[1:])),
            dtype=spec.dtype,
            compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=["frame", *(None for _ in spec.shape[1:])],
            attributes=dict(spec.attributes),
            overwrite=True,
        )
        return self[spec.name]

    def remove(self, name: str) -> None:
        """Remove an array, if it exists, and the group that it leaves empty."""
        folder = self.path / name
        with ThreadPoolExecutor(DISK_THREADS) as pool:  # where freed blocks are discarded, each file takes milliseconds
            list(pool.map(_remove_file, folder.glob("c.*")))
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent != self.path and not any(folder.parent.glob("*/")):
            shutil.rmtree(folder.parent, ignore_errors=True)

    def remove_all(self, patterns: Iterable[str], keep: Iterable[str] = ()) -> None:
        """Remove the arrays that match `patterns`, except those in `keep`."""
        for folder in [folder for pattern in patterns for folder in self.path.glob(pattern)]:
            name = folder.relative_to(self.path).as_posix()
            if folder.is_dir() and name not in keep:
                self.remove(name)

    def arrays(self, *patterns: str) -> list[str]:
        """Return the names of arrays that match `patterns`; `control/*` matches all in the group `control`."""
        files = {file for pattern in patterns for file in self.path.glob(f"{pattern}/zarr.json")}
        return sorted(file.parent.relative_to(self.path).as_posix() for file in files)

    def damage(self, stage: str) -> Iterator[str]:
        """Read everything `stage` has written so far and report what is damaged or missing."""
        record = self.record(stage)
        if record.inputs is None:
            return
        made = self.arrays(*self.made_by.get(stage, ()))
        noted = record.receipt.get("arrays", []) if record.receipt else []
        for name in sorted({*made, *noted}):
            try:
                array = self[name]
            except DiffSynthError as error:
                yield error.message
                continue
            yield from array.damage(record.complete)

    def sweep(self, names: Iterable[str]) -> None:
        """Remove partially written files that a killed process left in these arrays."""
        for name in names:
            for leftover in (self.path / name).glob("*.partial"):
                leftover.unlink(missing_ok=True)

    def record(self, stage: str) -> StageRecord:
        """Read the marks and the receipt of a stage."""
        return StageRecord(self.path, stage)

    def recorded(self, stage: str) -> Inputs | None:
        """Return the inputs `stage` was started with. None if it was never started."""
        return self.record(stage).inputs

    def command(self, stage: str) -> str:
        """Return the command line that runs `stage` on this cache, for messages."""
        return f"diffsynth {stage} {self.arguments}"

    def holder(self) -> str | None:
        """Describe the process that is using the cache. None if there is none."""
        try:
            who = json.loads((self.path / HOLDER).read_text(encoding="utf-8"))
            if who["host"] == socket.gethostname() and not psutil.pid_exists(who["pid"]):
                return None  # it was killed
            return f"process {who['pid']} on {who['host']} since {who['since']} ({who['command']})"
        except (OSError, ValueError, KeyError):
            return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the cache for this process. The kernel releases the lock when the process ends, however it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock, holder = FileLock(self.path / "lock"), self.path / HOLDER
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = self.holder() or "another process"
            raise DiffSynthError(f"{self.path} is in use by {who}", "wait for it, or stop it") from None
        try:
            write_json(holder, {
                "pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            })  # fmt: skip
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def _runs(ascending: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Split indices into runs of consecutive ones, each given by its first index and the one after its last."""
    for _, group in groupby(enumerate(ascending), lambda numbered: numbered[1] - numbered[0]):
        run = [index for _, index in group]
        yield run[0], run[-1] + 1


def _remove_file(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _flush(paths: Sequence[Path]) -> None:
    """Wait until the files and their folder entries are on the disk."""

    def sync(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(DISK_THREADS) as pool:  # parallel syncs are merged into fewer disk operations
        list(pool.map(sync, paths))
        if os.name == "posix":  # elsewhere folders cannot be opened
            list(pool.map(sync, {path.parent for path in paths}))
