"""Which frames of its video a job uses."""

from __future__ import annotations

from stages.jobs.job import Job
from stages.video import Selection


def selection_of(job: Job) -> Selection:
    """Return the part of the video that a job uses."""
    return Selection(job.start_time or 0.0, job.end_time, job.frame_interval, job.frame_maximum_count)
