"""Which frames of its video a job uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from stages.base.cache import FrameCache
from stages.base.json_types import Values
from stages.jobs.job import Job
from stages.video import Landmark, Selection, Shot, last_landmark, open_source


def selection_of(job: Job) -> Selection:
    """Return the part of the video that a job uses."""
    return Selection(job.start_time or 0.0, job.end_time, job.frame_interval, job.frame_maximum_count)


@dataclass(frozen=True)
class UsedShots:
    """Opens the source of a job at one of the frames that the job uses.

    Args:
        job: The job.
        landmarks: Where decoding can begin. Elsewhere it begins at the first frame.
    """

    job: Job
    landmarks: Sequence[Landmark]

    def __call__(self, first: int) -> Iterator[Shot]:
        source = open_source(self.job.input_video)
        landmark = last_landmark(self.landmarks, first)
        if landmark is not None and (shots := landmark.shots(source)) is not None:
            interval = self.job.frame_interval
            return islice(shots, (first - landmark.frame) * interval, None, interval)
        return islice(selection_of(self.job).shots(source), first, None)


def noted_landmarks(cache: FrameCache) -> list[Landmark]:
    """Return where decoding can begin, as noted by extraction. Empty if an earlier version did it."""
    noted: Values = cache["frames"].attrs
    return [Landmark(*values) for values in noted.get("landmarks", [])]
