"""Landmarks: frames of a video that a seek finds again, so that not every frame before them has to be decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import chain, dropwhile
from zlib import crc32

from stages.base.json_types import Json
from stages.video.sources import Shot, Source

LANDMARK_DISTANCE = 250  # frames of the video from one landmark to the next


@dataclass(frozen=True)
class Landmark:
    """A frame of a video, with what proves that a seek has found it.

    Args:
        frame: Its number among the frames that are used.
        time: Its time in seconds, exactly as decoded.
        check: CRC-32 of its pixels. A decoder that lacks frames before a keyframe may show others without an error.
    """

    frame: int
    time: float
    check: int

    @classmethod
    def of(cls, frame: int, shot: Shot) -> Landmark:
        """Return the landmark at a decoded frame."""
        return cls(frame, shot.time, crc32(shot.image().data))

    def shots(self, source: Source) -> Iterator[Shot] | None:
        """Yield the frames of `source` from this one on. None if a seek does not lead to the same frame."""
        shots = dropwhile(lambda shot: shot.time < self.time, source.shots(self.time))
        found = next(shots, None)
        if found is None or Landmark.of(self.frame, found) != self:
            return None
        return chain([found], shots)

    def as_json(self) -> list[Json]:
        return [*astuple(self)]


def last_landmark(landmarks: Sequence[Landmark], frame: int) -> Landmark | None:
    """Return the last landmark at or before a frame. None if there is none."""
    return max((mark for mark in landmarks if mark.frame <= frame), key=lambda mark: mark.frame, default=None)
