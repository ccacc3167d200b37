"""Progress and warnings of a stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Frame = TypeVar("Frame")


class Reporter:
    """Receive progress and warnings. This class ignores them; subclass it and override what you want to show.

    A frame counts once in each phase. In another process, a copy shows nothing.
    """

    def __reduce__(self) -> tuple[type[Reporter], tuple[()]]:
        return Reporter, ()

    def begin(self, stage: str, total: int | None, done: int = 0) -> None:
        """Start a stage. `total` is its number of frames, None if unknown; `done` of them are finished."""

    def phase(self, name: str) -> None:
        """Start the next phase of the stage."""

    def advance(self, frames: int) -> None:
        """Count this many more frames."""

    def end(self, stage: str, message: str) -> None:
        """Finish a stage."""

    def note(self, message: str) -> None:
        """Show information that is not a warning."""

    def warn(self, message: str) -> None:
        """Show a warning."""

    def close(self) -> None:
        """Stop showing progress. Called on success and on failure."""


def with_progress(frames: Iterable[Frame], reporter: Reporter) -> Iterator[Frame]:
    """Yield the same frames, and report each once the caller asks for the next."""
    for frame in frames:
        yield frame
        reporter.advance(1)
