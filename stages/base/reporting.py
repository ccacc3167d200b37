"""How a stage says how far it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Frame = TypeVar("Frame")


class Reporter:
    """Receives progress and warnings, and ignores them. Subclass it and override what you want to show.

    A frame is counted once for every phase that it goes through.
    """

    def begin(self, stage: str, total: int | None, done: int = 0) -> None:
        """Start a stage: `done` of `total` frames are finished already; None if the total is unknown."""

    def phase(self, name: str) -> None:
        """Start the next phase of the stage."""

    def advance(self, frames: int) -> None:
        """Count this many more frames."""

    def end(self, stage: str, message: str) -> None:
        """Finish a stage."""

    def warn(self, message: str) -> None:
        """Show a warning."""

    def close(self) -> None:
        """Stop showing progress, whether the work succeeded or not."""


def told(frames: Iterable[Frame], reporter: Reporter) -> Iterator[Frame]:
    """Yield the same frames and count each once it has been used."""
    for frame in frames:
        yield frame
        reporter.advance(1)
