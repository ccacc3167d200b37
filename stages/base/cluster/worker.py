"""What a worker does in its process, whatever starts that process and calls it."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from stages.base.cache import FrameCache
from stages.base.engine import Chunk, Task
from stages.base.errors import DiffSynthError
from stages.base.overlap import OverlappedCache


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
        self.computed: list[tuple[Chunk, Future[None]]] = []

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

    def run(self, begun: None, chunk: Chunk, following: Chunk | None) -> list[Chunk]:
        """Compute a chunk, and return the chunk before it, whose data is on the disk.

        Args:
            begun: The result of `begin`. Passing it on makes this call fail if that one failed.
            chunk: What to compute.
            following: The chunk that is likely to be next. Its frames are read meanwhile.
        """
        self.cache.read_ahead(*(self.task.reads(*each) for each in (chunk, following) if each is not None))
        self.task.run(self.cache, *chunk)
        written = self.finish()
        self.computed.append((chunk, self.cache.then(lambda: None)))  # which waits for the writes
        return written

    def finish(self) -> list[Chunk]:
        """Wait until the data of all computed chunks is on the disk. Return those that no call has returned yet."""
        for _, written in self.computed:
            written.result()
        finished = [chunk for chunk, _ in self.computed]
        self.computed.clear()
        return finished

    def end(self) -> None:
        """End the phase: close the task."""
        self.phase.close()

    def call(self, function: bytes) -> object:
        """Return the result of a pickled function without arguments."""
        wanted: Callable[[], object] = pickle.loads(function)
        return wanted()


def _require(folder: Path | None) -> None:
    if folder is not None and not folder.is_dir():
        raise DiffSynthError(
            f"{folder} does not exist on {socket.gethostname()}, which is one of the workers",
            "use a folder on a file system that all workers share, or --cache with a URL",
        )
