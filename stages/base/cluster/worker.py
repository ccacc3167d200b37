"""What a worker does in its process, whatever starts that process and calls it."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from stages.base.cache import FrameCache
from stages.base.engine import Chunk, Task
from stages.base.errors import DiffSynthError
from stages.base.overlap import OverlappedCache

Computed: TypeAlias = tuple[Chunk, Future[None]]
"""A chunk, and when its data will be on the disk."""


@dataclass(frozen=True)
class Identity:
    """A machine, and what decides which bytes it computes.

    Args:
        host: The machine's name.
        versions: Versions by name of the program.
        processor: The GPU or CPU that computes.
    """

    host: str
    versions: Mapping[str, str]
    processor: str

    def differences(self, versions: Mapping[str, str], processor: str) -> str:
        """Describe how this machine differs from one with these versions and this processor. Empty if it does not."""
        names = sorted({*versions, *self.versions})
        pairs = [(name, self.versions.get(name, "none"), versions.get(name, "none")) for name in names]
        pairs.append(("a processor of the kind", self.processor, processor))
        return ", ".join(f"{name} {theirs} instead of {ours}" for name, theirs, ours in pairs if theirs != ours)


class Worker:
    """Runs the chunks that it is given, of one phase after another.

    As with LocalEngine, the frames of the next chunk are read and those of the last one are written while a chunk is
    computed. Networks that tasks keep per process are kept between phases.
    """

    def __init__(self) -> None:
        self.phase = ExitStack()
        self.task: Task
        self.cache: OverlappedCache
        self.sent: tuple[bytes, FrameCache] | None = None  # the cache, pickled and not
        self.computed: list[Computed] = []

    def begin(self, task: bytes, cache: bytes) -> None:
        """Begin a phase.

        Args:
            task: The pickled task.
            cache: The pickled cache. Frames that it keeps in memory stay there if the next phase sends the same one.

        Raises:
            DiffSynthError: This machine does not have the cache's folder.
        """
        if self.sent is None or self.sent[0] != cache:
            self.sent = cache, pickle.loads(cache)
        _require(self.sent[1].folder)
        self.task = self.phase.enter_context(closing(pickle.loads(task)))
        self.cache = self.phase.enter_context(OverlappedCache(self.sent[1]))

    def run(self, begun: None, chunks: Sequence[Chunk], following: Chunk | None) -> list[Chunk]:
        """Compute chunks, and return those of the call before, whose data is on the disk.

        Args:
            begun: The result of `begin`. Passing it on makes this call fail if that one failed.
            chunks: What to compute, in order.
            following: The chunk that is likely to be next. Its frames are read meanwhile.
        """
        before, self.computed = self.computed, []
        for chunk, after in zip(chunks, [*chunks[1:], following], strict=True):
            self.cache.read_ahead(*(self.task.reads(*each) for each in (chunk, after) if each is not None))
            self.task.run(self.cache, *chunk)
            self.computed.append((chunk, self.cache.then(lambda: None)))  # which waits for the writes
        return waited_for(before)

    def finish(self) -> list[Chunk]:
        """Wait until the data of all computed chunks is on the disk. Return those that no call has returned yet."""
        computed, self.computed = self.computed, []
        return waited_for(computed)

    def end(self) -> None:
        """End the phase: close the task."""
        self.phase.close()

    def call(self, function: bytes) -> object:
        """Return the result of a pickled function without arguments."""
        wanted: Callable[[], object] = pickle.loads(function)
        return wanted()


def waited_for(computed: Sequence[Computed]) -> list[Chunk]:
    """Wait until the data of chunks is on the disk, and return them."""
    for _, written in computed:
        written.result()
    return [chunk for chunk, _ in computed]


def _require(folder: Path | None) -> None:
    if folder is not None and not folder.is_dir():
        raise DiffSynthError(
            f"{folder} does not exist on {socket.gethostname()}, which is one of the workers",
            "use a folder on a file system that all workers share, or --cache with a URL",
        )
