"""Reading what the next chunk needs and writing what the last one made, while a chunk is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeAlias

import numpy as np

from stages.base.cache import FrameArray, FrameCache
from stages.base.json_types import Json

Reads: TypeAlias = Iterable[tuple[str, Sequence[int]]]
"""Arguments of `FrameArray.read`, each with the array's name."""


class OverlappedCache(FrameCache):
    """A cache from which one thread reads ahead, and to which another writes.

    A read that was not announced is done when it is asked for. Leaving the context ends both threads.

    Args:
        cache: Where frames are read and written.
    """

    def __init__(self, cache: FrameCache):
        super().__init__(cache.store, cache.arguments, cache.made_by)
        self.plain = cache
        self.opened: dict[str, FrameArray] = {}
        self.ahead: dict[tuple[str, tuple[int, ...]], Future[np.ndarray]] = {}
        self.writes: list[Future[None]] = []
        self.reader, self.writer = ThreadPoolExecutor(1, "read ahead"), ThreadPoolExecutor(1, "write behind")

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

    def read_ahead(self, *chunks: Reads) -> None:
        """Start the reads of these chunks that have not been started, and forget all others."""
        wanted = dict.fromkeys((name, tuple(indices)) for reads in chunks for name, indices in reads)
        self.ahead = {key: self.ahead.get(key) or self.reader.submit(self._read, *key) for key in wanted}

    def _read(self, name: str, indices: tuple[int, ...]) -> np.ndarray:
        return self._open_once(name).read(indices)

    def take_writes(self) -> list[Future[None]]:
        """Return the writes since the last call, whether they have ended or not."""
        writes, self.writes = self.writes, []
        return writes


class OverlappedArray(FrameArray):
    """An array of an `OverlappedCache`."""

    def __init__(self, plain: FrameArray, cache: OverlappedCache):
        super().__init__(plain.array, plain.store, plain.name, plain.mend, plain.kept)
        self.plain, self.cache = plain, cache

    def read(self, indices: Iterable[int]) -> np.ndarray:
        indices = tuple(indices)
        ahead = self.cache.ahead.get((self.name, indices))
        return self.plain.read(indices) if ahead is None else ahead.result()

    def write(self, start: int, frames: np.ndarray) -> None:
        self.cache.writes.append(self.cache.writer.submit(self.plain.write, start, frames))

    def note(self, **attributes: Json) -> None:
        self.cache.writes.append(self.cache.writer.submit(self.plain.note, **attributes))
