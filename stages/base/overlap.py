"""Reading the frames of the next chunk and writing those of the last one while a chunk is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeAlias

import numpy as np

from stages.base.cache import FrameArray, FrameCache
from stages.base.json_types import Json

Wanted: TypeAlias = Mapping[str, Iterable[int]]
"""The frames that a chunk reads, by array."""


class OverlappedCache(FrameCache):
    """A cache whose frames are read ahead by one thread and written by another.

    Frames that were not announced are read when they are needed. What has been written can be read once `flush` has
    returned. Leaving the context ends both threads.

    Args:
        cache: Where frames are read and written.
    """

    def __init__(self, cache: FrameCache):
        super().__init__(cache.path, cache.arguments, cache.made_by)
        self.plain = cache
        self.reader, self.writer = ThreadPoolExecutor(1, "read ahead"), ThreadPoolExecutor(1, "write behind")
        self.opened: dict[str, FrameArray] = {}
        self.ahead: dict[tuple[str, int], Future[np.ndarray]] = {}
        self.writes: list[Future[None]] = []

    def __enter__(self) -> OverlappedCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.shutdown(cancel_futures=True)
        self.writer.shutdown()

    def __getitem__(self, name: str) -> FrameArray:
        return OverlappedArray(self._open_once(name), self)

    def _open_once(self, name: str) -> FrameArray:
        return self.opened.get(name) or self.opened.setdefault(name, self.plain[name])

    def read_ahead(self, *chunks: Wanted) -> None:
        """Start to read the frames of these chunks, and forget those of all others."""
        wanted = [(name, index) for chunk in chunks for name, indexes in chunk.items() for index in indexes]
        self.ahead = {
            place: self.ahead.get(place) or self.reader.submit(self._read, *place) for place in dict.fromkeys(wanted)
        }

    def _read(self, name: str, index: int) -> np.ndarray:
        return self._open_once(name)[index]

    def pending_writes(self) -> list[Future[None]]:
        """Return the writes since the last call, finished or not."""
        writes, self.writes = self.writes, []
        return writes


class OverlappedArray(FrameArray):
    """An array of an `OverlappedCache`. Frames that are being written must not be changed."""

    def __init__(self, plain: FrameArray, cache: OverlappedCache):
        super().__init__(plain.array, plain.folder, plain.name, plain.mend)
        self.plain, self.cache = plain, cache

    def write(self, start: int, frames: np.ndarray) -> None:
        self.cache.writes.append(self.cache.writer.submit(self.plain.write, start, frames))

    def note(self, **attributes: Json) -> None:
        self.cache.writes.append(self.cache.writer.submit(self.plain.note, **attributes))

    def _frame(self, index: int) -> np.ndarray:
        ahead = self.cache.ahead.get((self.name, index))
        return self.plain[index] if ahead is None else ahead.result()
