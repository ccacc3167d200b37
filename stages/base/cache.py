"""The frame cache: a Zarr v3 group in which every frame of every stage is one chunk with a checksum.

It is kept in a folder or in an object store (see store.py). Each stage declares the arrays it makes; docs/cache.md
describes them. The cache also holds:

    marks/, receipts/    finished work (see record.py)
    lock, holder.json    the process that is using the cache
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np
import psutil

from stages.base.attributes import Attributes, are_intact, with_checksum, without_checksum
from stages.base.errors import DiffSynthError
from stages.base.fingerprint import Inputs
from stages.base.json_types import Json, Values
from stages.base.record import StageRecord
from stages.base.store import CHUNK, LOCK, FolderStore, MissingChunk, Store, open_store

if TYPE_CHECKING:  # imported where an array is used, which `status` does not do
    import zarr
    from zarr.types import AnyArray

ZSTD_LEVEL = 1  # on real footage, level 3 is 9 % smaller and takes twice as long, level 6 16 % and five times as long
RUN = 10  # frames that are read in one call; Zarr reads so many chunks of a call at once
MOST_KEPT = 2**30  # bytes: one ControlNet's maps of 700 frames of 512×960

METADATA = "zarr.json"  # of an array or a group
Part = TypeVar("Part")
Result = TypeVar("Result")

# What Zarr raises for metadata that is not JSON, is incomplete or has values of the wrong type.
DAMAGED_METADATA = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
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
        self.frames: dict[tuple[str, int], np.ndarray] = {}

    def __reduce__(self) -> tuple[type[KeptFrames], tuple[Collection[str], int]]:
        return KeptFrames, (self.names, self.room)  # another process reads its own

    def read(self, array: FrameArray, indices: tuple[int, ...]) -> np.ndarray:
        """Return frames of an array, from memory those that have been read before."""
        if array.name not in self.names or not indices:
            return array.read_stored(indices)
        keys = [(array.name, index) for index in indices]
        known = {key: frame for key in keys if (frame := self.frames.get(key)) is not None}
        if missing := [key for key in keys if key not in known]:
            new = dict(zip(missing, array.read_stored([index for _, index in missing]), strict=True))
            if sum(frame.nbytes for frame in [*self.frames.values(), *new.values()]) <= self.room:
                self.frames |= new
            known |= new
        return np.stack([known[key] for key in keys])


class FrameArray:
    """Frames by index, read from the cache on access.

    Args:
        array: The array in the cache.
        store: Where the cache is.
        name: Name of the array.
        mend: How to repair the array, as a hint in messages.
        kept: Frames that were read before.
    """

    def __init__(self, array: AnyArray, store: Store, name: str, mend: str, kept: KeptFrames):
        self.array, self.store, self.name, self.mend, self.kept = array, store, name, mend, kept
        self.shape: tuple[int, ...] = array.shape

    @property
    def attrs(self) -> Values:
        """Its attributes. `note` changes them. To ask for one that is missing raises LostArray."""
        lost = LostArray(f"{self.store}: the array '{self.name}' has damaged metadata", self.mend)
        return Attributes(without_checksum(self.array.attrs.asdict()), lost)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.between(0, len(self))

    def between(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield frames start..stop-1, only a few of which are in memory at once."""
        for first in range(start, stop, RUN):
            yield from self._map(self._frame, range(first, min(first + RUN, stop)))

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
        parts = [*self._map(self._run, _runs(unique))]
        frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return frames if list(indices) == unique else frames[np.searchsorted(unique, indices)]

    def damage(self, whole: bool) -> Iterator[str]:
        """Read all frames and report damaged ones, and missing ones if the array should be complete (`whole`)."""
        for start in range(0, len(self), RUN):
            indices = range(start, min(start + RUN, len(self)))
            yield from filter(None, self._map(partial(self._damage_of, whole=whole), indices))

    def _damage_of(self, index: int, whole: bool) -> str:
        try:
            self._frame(index)
        except MissingFrame as error:
            return error.message if whole else ""
        except DiffSynthError as error:
            return error.message
        return ""

    def write(self, start: int, frames: np.ndarray) -> None:
        """Write frames [K, ...] from index `start` on, and wait until they are stored durably."""
        self.array[start : start + len(frames)] = frames
        self.store.flush([self._chunk_name(start + offset) for offset in range(len(frames))])

    def note(self, **attributes: Json) -> None:
        """Set attributes, after the frames written so far are stored."""
        self.array.attrs.update(with_checksum({**self.attrs, **attributes}, self.shape, self.array.dtype))

    def _map(self, function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
        """Call a function that reads one part, for as many parts at once as is worthwhile."""
        if self.store.readers == 1:
            yield from map(function, parts)
            return
        with ThreadPoolExecutor(self.store.readers) as pool:
            yield from pool.map(function, parts)

    def _run(self, run: tuple[int, int]) -> np.ndarray:
        """Read the frames of a run in one call, which takes half the time for small ones."""
        first, stop = run
        with suppress(MissingChunk, *DAMAGED_DATA):
            return np.asarray(self.array[first:stop])
        return np.stack([self._frame(index) for index in range(first, stop)])  # names the frame that is damaged

    def _frame(self, index: int) -> np.ndarray:
        try:
            return np.asarray(self.array[index])
        except MissingChunk as error:
            raise MissingFrame(self._about(index, "is missing"), self.mend) from error
        except DAMAGED_DATA as error:
            raise DiffSynthError(self._about(index, "does not match its checksum"), self.mend) from error

    def _about(self, index: int, what: str) -> str:
        return f"{self.store}: frame {index} of the array '{self.name}' {what}"

    def _chunk_name(self, index: int) -> str:
        where = (index, *(0 for _ in self.shape[1:]))
        return f"{self.name}/{CHUNK}{'.'.join(map(str, where))}"


class MissingFrame(DiffSynthError):
    """A frame has not been written."""


class LostArray(DiffSynthError):
    """An array is missing, or its metadata is damaged. `stage` is the stage that makes it, if any does."""

    def __init__(self, message: str, hint: str = "", stage: str | None = None):
        super().__init__(message, hint)
        self.stage = stage


class FrameCache:
    """The cache of one job.

    Args:
        place: Its folder, its URL, or the store itself.
        arguments: The job file and its overrides, for commands in messages.
        arrays: The arrays that each stage makes, as in `Stage.arrays`.
        kept: Frames that were read before.
    """

    def __init__(
        self,
        place: str | Path | Store,
        arguments: str = "JOB.json",
        arrays: Mapping[str, Collection[str]] | None = None,
        kept: KeptFrames | None = None,
    ):
        self.store = open_store(place) if isinstance(place, str | Path) else place
        self.arguments = arguments
        self.made_by = arrays or {}
        self.kept = kept or KeptFrames()

    def __reduce__(self) -> tuple[type[FrameCache], tuple[Store, str, Mapping[str, Collection[str]], KeptFrames]]:
        return FrameCache, (self.store, self.arguments, self.made_by, self.kept)  # another process opens its own arrays

    @property
    def folder(self) -> Path | None:
        """The folder that holds it. None if it is in an object store."""
        return self.store.path if isinstance(self.store, FolderStore) else None

    @property
    def path(self) -> Path:
        """The folder that holds it. Only caches on a disk have one."""
        assert self.folder is not None
        return self.folder

    @cached_property
    def group(self) -> zarr.Group:
        """The Zarr group. Created if it does not exist."""
        return self._open("")

    def _open(self, name: str) -> zarr.Group:
        """Open a group of the cache. Damaged metadata is rewritten, since it says only that this is a group."""
        try:
            return self._open_group(name)
        except DAMAGED_METADATA as error:
            if not {"marks", "receipts"} & set(self.store.children("")):
                raise DiffSynthError(
                    f"{self.store} cannot be opened as a frame cache: {error}", "move it away, or choose another output"
                ) from error
        self.store.delete(f"{name}/{METADATA}".lstrip("/"))
        return self._open_group(name)

    def _open_group(self, name: str) -> zarr.Group:
        import zarr

        return zarr.open_group(self.store.arrays, path=name, mode="a", zarr_format=3)

    def keeping(self, names: Collection[str]) -> FrameCache:
        """Return this cache, with memory for frames of the arrays `names`, which nobody may write meanwhile."""
        room = min(MOST_KEPT, psutil.virtual_memory().available // 4)
        return FrameCache(self.store, self.arguments, self.made_by, KeptFrames(names, room))

    def is_cache(self) -> bool:
        """Whether there is a frame cache or an empty folder."""
        if self.folder is not None and not self.folder.is_dir():
            return False
        files = set(self.store.children("")) - set(self.store.leftovers())
        return not files or bool(files & {LOCK, "marks", "receipts", METADATA})

    def __contains__(self, name: str) -> bool:
        return self.store.get(f"{name}/{METADATA}") is not None

    def __getitem__(self, name: str) -> FrameArray:
        import zarr

        makers = (stage for stage, patterns in self.made_by.items() if any(fnmatch(name, part) for part in patterns))
        maker = next(makers, None)
        mend = f"rebuild it with {self.command(maker or 'run')} --restart"
        if name not in self:
            raise LostArray(f"{self.store}: the array '{name}' is missing", mend, maker)
        try:
            array = self.group[name]
        except DAMAGED_METADATA as error:
            raise LostArray(f"{self.store}: the array '{name}' has damaged metadata", mend, maker) from error
        if not isinstance(array, zarr.Array):
            raise LostArray(f"{self.store}: '{name}' is not an array", mend, maker)
        intact = are_intact(array.metadata.attributes, array.shape, array.dtype)
        if array.chunks != _chunk_shape(array.shape) or not intact:
            raise LostArray(f"{self.store}: the array '{name}' has damaged metadata", mend, maker)
        # By default Zarr does not write chunks of zeros, so black frames would be missing.
        return FrameArray(array.with_config({"write_empty_chunks": True}), self.store, name, mend, self.kept)

    def create(self, spec: ArraySpec) -> FrameArray:
        """Create an empty array, replacing one of the same name."""
        from zarr.codecs import Crc32cCodec, ZstdCodec

        parent, _, own_name = spec.name.rpartition("/")
        group = self._open(parent) if parent else self.group
        group.create_array(
            own_name,
            shape=spec.shape,
            chunks=_chunk_shape(spec.shape),
            dtype=spec.dtype,
            compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=["frame", *(None for _ in spec.shape[1:])],
            attributes=with_checksum(spec.attributes, spec.shape, np.dtype(spec.dtype)),
            overwrite=True,
        )
        return self[spec.name]

    def remove(self, name: str) -> None:
        """Remove an array, if it exists, and the group that it leaves empty."""
        self.store.delete_all(name)
        parent = name.rpartition("/")[0]
        if parent and not set(self.store.children(parent)) - {METADATA}:
            self.store.delete_all(parent)

    def empty(self, name: str) -> None:
        """Remove the frames of an array, if it exists. Its shape and attributes stay, except that it is `whole`."""
        if name in self:
            self[name].note(whole=False)
            self.store.delete_chunks(name)

    def has_frames(self, name: str) -> bool:
        """Whether any frame of an array is stored."""
        return any(child.startswith(CHUNK) for child in self.store.children(name))

    def remove_all(self, patterns: Iterable[str], keep: Iterable[str] = ()) -> None:
        """Remove the arrays that match `patterns`, except those in `keep`."""
        for name in self._matching(patterns):
            if name not in keep:
                self.remove(name)

    def arrays(self, *patterns: str) -> list[str]:
        """Return the names of arrays that match `patterns`; `control/*` matches all in the group `control`."""
        return [name for name in sorted(self._matching(patterns)) if name in self]

    def _matching(self, patterns: Iterable[str]) -> set[str]:
        """Return what matches `patterns`, whether it is an array or only remains of one."""
        split = [pattern.rpartition("/")[::2] for pattern in patterns]
        children = {parent: self.store.children(parent) for parent, _ in split}
        return {
            f"{parent}/{child}".lstrip("/")
            for parent, pattern in split
            for child in children[parent]
            if fnmatch(child, pattern) and child != METADATA
        }

    def damage(self, stage: str) -> Iterator[str]:
        """Read everything `stage` has written so far and report what is damaged or missing."""
        record = self.record(stage)
        if record.inputs is None:
            return
        made = self.arrays(*self.made_by.get(stage, ()))
        noted = record.receipt.get("arrays", []) if record.receipt else []
        for name in sorted({*made, *noted} - record.removed):
            try:
                array = self[name]
            except DiffSynthError as error:
                yield error.message
                continue
            yield from array.damage(record.complete)

    def sweep(self, names: Iterable[str]) -> None:
        """Remove partially written files that a killed process left in these arrays and in the groups around them."""
        for folder in {"", *(folder for name in names for folder in (name, name.rpartition("/")[0]))}:
            self.store.sweep(folder)

    def record(self, stage: str) -> StageRecord:
        """Read the marks and the receipt of a stage."""
        return StageRecord(self.store, stage)

    def recorded(self, stage: str) -> Inputs | None:
        """Return the inputs `stage` was started with. None if it was never started."""
        return self.record(stage).inputs

    def command(self, stage: str) -> str:
        """Return the command line that runs `stage` on this cache, for messages."""
        return f"diffsynth {stage} {self.arguments}"

    def holder(self) -> str | None:
        """Describe the process that is using the cache. None if there is none."""
        return self.store.holder()

    def lock(self, waiting: Callable[[str], object] = lambda message: None) -> AbstractContextManager[None]:
        """Lock the cache for this process.

        Args:
            waiting: Called with a message if it takes a while to see whether the last process is alive.

        Raises:
            DiffSynthError: Another process uses the cache.
        """
        return self.store.lock(waiting)


def _chunk_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a frame, which is one chunk."""
    return (1, *(max(1, size) for size in shape[1:]))


def _runs(ascending: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Split indices into runs of consecutive ones, each given by its first index and the one after its last."""
    for _, group in groupby(enumerate(ascending), lambda numbered: numbered[1] - numbered[0]):
        run = [index for _, index in group]
        for start in range(0, len(run), RUN):
            part = run[start : start + RUN]
            yield part[0], part[-1] + 1
