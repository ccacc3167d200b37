"""Reading what the next chunk needs and writing what the last ones made, while a chunk is computed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, TypeAlias

import numpy as np

from stages.base.cache import FrameArray, FrameCache
from stages.base.errors import DiffSynthError
from stages.base.json_types import Json

if TYPE_CHECKING:  # the engine imports this module
    from stages.base.engine import Chunk

Reads: TypeAlias = Iterable[tuple[str, Sequence[int]]]
"""Arguments of `FrameArray.read`, each with the array's name."""

Key: TypeAlias = tuple[str, int]
"""The name of an array and the index of one of its frames."""

Started: TypeAlias = "Sequence[tuple[tuple[int, ...], Future[np.ndarray]]]"
"""Reads of one array: the indices, and the frames once they have been read."""

NONE: Mapping[int, np.ndarray] = {}

P = ParamSpec("P")


class OverlappedCache(FrameCache):
    """A cache from which one thread reads ahead, and to which another writes.

    Everything that changes the disk is done by the writing thread, in the order in which it was asked for. A kill
    therefore leaves what it would leave without threads. A frame can be read as soon as `write` has returned: it is
    held in memory until it is on the disk.

    A read that was not announced is done when it is asked for. Leaving the context ends both threads, after the last
    write.

    Args:
        cache: Where frames are read and written.
    """

    def __init__(self, cache: FrameCache):
        super().__init__(cache.store, cache.arguments, cache.made_by)
        self.plain = cache
        self.opened: dict[str, FrameArray] = {}
        self.ahead: dict[tuple[str, tuple[int, ...]], Future[np.ndarray]] = {}
        self.held: dict[Key, np.ndarray] = {}
        self.expected: set[Key] = set()
        self.ended: Future[None] | None = None
        self.failure: BaseException | None = None
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

    # --- reading ----------------------------------------------------------------------------------------

    def reading_ahead(
        self, chunks: Sequence[Chunk], reads: Callable[[int, int], Reads], opening: Reads
    ) -> Iterator[Chunk]:
        """Yield the chunks of a phase. While one is computed, the next one is read.

        Args:
            chunks: The chunks.
            reads: Returns what a chunk reads.
            opening: What the first chunk of the next phase reads.
        """
        unchanging = [(name, indices) for name, indices in opening if name in self.plain.kept.names]
        announced = chain((list(reads(*chunk)) for chunk in chunks), [unchanging])
        following = next(announced)
        for chunk in chunks:
            needed, following = following, next(announced)
            self.read_ahead(needed, following)
            if chunk == chunks[0]:
                self.expect(opening)  # not before, since the chunk reads what is held
            yield chunk

    def read_ahead(self, *chunks: Reads) -> None:
        """Start the reads of these chunks that have not been started, and forget all others.

        Frames that a read shares with an earlier one, as those of smoothers' windows, are not read from the disk again.
        """
        before, self.ahead = self.ahead, {}
        for name, indices in ((name, tuple(indices)) for reads in chunks for name, indices in reads):
            started = [(read, future) for (other, read), future in (before | self.ahead).items() if other == name]
            self.ahead[name, indices] = dict(started).get(indices) or self.reader.submit(
                self._read_rest, name, indices, started
            )

    def _read_rest(self, name: str, indices: tuple[int, ...], started: Started) -> np.ndarray:
        """Return frames of an array, those that earlier reads have returned from memory."""
        finished = [(read, future.result()) for read, future in started if future.exception() is None]
        return self.read(name, indices, {k: frame for read, frames in finished for k, frame in zip(read, frames)})

    def read(self, name: str, indices: tuple[int, ...], known: Mapping[int, np.ndarray] = NONE) -> np.ndarray:
        """Return frames of an array, those that are held or known from memory and the others from the disk."""
        array = self._open_once(name)
        held = {k: frame for k in indices if (frame := self.held.get((name, k), known.get(k))) is not None}
        if not held:
            return array.read(indices)
        stored = [index for index in indices if index not in held]
        frames = held | dict(zip(stored, array.read(stored), strict=True))
        return np.stack([frames[index] for index in indices])

    def expect(self, reads: Reads) -> None:
        """Announce what the next phase reads first. What is written of it from now on is held until the next call."""
        past, self.expected = self.expected, {(name, index) for name, indices in reads for index in indices}
        self.writer.submit(self._prepare, past - self.expected, {name for name, _ in self.expected})

    def _prepare(self, released: Collection[Key], names: Collection[str]) -> None:
        """Release frames, all of which have been written by now, and open arrays that are going to be used."""
        for key in released:
            self.held.pop(key, None)
        for name in names:
            with suppress(DiffSynthError):  # raised again where the array is used
                self._open_once(name)

    # --- writing ----------------------------------------------------------------------------------------

    def then(self, operation: Callable[P, object], *arguments: P.args, **options: P.kwargs) -> Future[None]:
        """Call `operation` on the writing thread after everything that was asked for before, unless that failed."""
        return self.writer.submit(self._unless_failed, partial(operation, *arguments, **options))

    def _unless_failed(self, operation: Callable[[], object]) -> None:
        if self.failure is not None:
            raise self.failure
        try:
            operation()
        except BaseException as error:
            self.failure = error
            raise

    def end_chunk(self, operation: Callable[P, object], *arguments: P.args, **options: P.kwargs) -> None:
        """Call `operation` once this chunk has been written, and wait until that was done for the chunk before."""
        before, self.ended = self.ended, self.then(operation, *arguments, **options)
        if before is not None:
            before.result()

    def finish(self) -> None:
        """Wait until everything has been written."""
        self.then(lambda: None).result()

    def write(self, name: str, start: int, frames: np.ndarray) -> None:
        """Hold frames [K, ...] and write them later, from index `start` on."""
        array = self._open_once(name)
        frames = np.asarray(frames, array.array.dtype)  # what reading them from the disk would return
        keys = [(name, start + offset) for offset in range(len(frames))]
        # A frame that is held for longer must not hold its whole chunk.
        self.held |= {k: frame.copy() if k in self.expected else frame for k, frame in zip(keys, frames, strict=True)}
        self.then(self._write, array, start, frames)

    def _write(self, array: FrameArray, start: int, frames: np.ndarray) -> None:
        array.write(start, frames)
        for key in {(array.name, start + offset) for offset in range(len(frames))} - self.expected:
            self.held.pop(key, None)


class OverlappedArray(FrameArray):
    """An array of an `OverlappedCache`."""

    def __init__(self, plain: FrameArray, cache: OverlappedCache):
        super().__init__(plain.array, plain.store, plain.name, plain.mend, plain.kept)
        self.plain, self.cache = plain, cache

    def read(self, indices: Iterable[int]) -> np.ndarray:
        indices = tuple(indices)
        ahead = self.cache.ahead.get((self.name, indices))
        held = all((self.name, index) in self.cache.held for index in indices)
        return self.cache.read(self.name, indices) if ahead is None or held else ahead.result()

    def write(self, start: int, frames: np.ndarray) -> None:
        self.cache.write(self.name, start, frames)

    def note(self, **attributes: Json) -> None:
        self.cache.then(self.plain.note, **attributes).result()

    def _frame(self, index: int) -> np.ndarray:
        frame: np.ndarray = self.read((index,))[0]
        return frame
