"""Small tasks for workers, which import them from here."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

from stages.base.cache import FrameCache
from stages.base.engine import Task
from stages.base.errors import DiffSynthError

SIDE = 4  # px


@dataclass
class Numbering(Task):
    """Writes the number of each frame into all of its pixels, taking so many seconds per frame."""

    seconds: float = 0.0

    @property
    def chunk(self) -> int:
        return 2

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        time.sleep(self.seconds * (stop - start))
        numbers = np.arange(start, stop, dtype=np.uint8)[:, None, None, None]
        cache["numbers"].write(start, np.broadcast_to(numbers, (stop - start, SIDE, SIDE, 3)))


@dataclass
class Failing(Numbering):
    """Fails at frame 4: with an error for users, with another error, or by ending the process, always or once."""

    how: str = ""

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        if start == 4:
            died = cache.path / "died"
            if self.how == "death" or (self.how == "once" and not died.exists()):
                died.touch()
                os._exit(1)
            if self.how == "user":
                raise DiffSynthError("frame 4 is not good", "use another")
            if self.how == "error":
                raise ValueError("no 4")
        super().run(cache, start, stop)


@dataclass
class Waiting(Numbering):
    """Writes a file for each process that runs it, and waits for the file `go`."""

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        (cache.path / f"run-{os.getpid()}").touch()
        while not (cache.path / "go").exists():
            time.sleep(0.05)
        super().run(cache, start, stop)


@dataclass
class Asking(Numbering):
    """Writes a file for each process that runs it, and another once that process has closed it."""

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        self.place = cache.path
        (cache.path / f"run-{os.getpid()}").touch()
        super().run(cache, start, stop)

    def close(self) -> None:
        (self.place / f"closed-{os.getpid()}").touch()
