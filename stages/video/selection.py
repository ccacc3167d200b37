"""The part of a video that is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from stages.video.sources import TIME_TOLERANCE, Shot, Source


@dataclass(frozen=True)
class Selection:
    """Which frames of a video are used.

    Args:
        start: The first one is at or after this time in seconds.
        end: They are before this time. None: no limit.
        interval: Only every k-th is used.
        most: At most so many are used. None: no limit.
    """

    start: float = 0.0
    end: float | None = None
    interval: int = 1
    most: int | None = None

    def shots(self, source: Source) -> Iterator[Shot]:
        """Yield the used frames of a source."""
        until = float("inf") if self.end is None else self.end
        limit = None if self.most is None else self.most * self.interval
        for index, shot in enumerate(islice(source.shots(self.start), limit)):
            if shot.time >= until - TIME_TOLERANCE:
                return
            if index % self.interval == 0:
                yield shot
