"""Peak memory does not grow with the video, measured in processes with 24 and 240 frames."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import annotators
from benchmarks.stages import make_clip, run, write_job
from stages.base.json_types import JsonObject
from tests.stages.annotators.random_weights import write_dpt

ALLOWED = 50  # MB


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["extract", "render"])
def test_peak_memory_is_the_same_for_ten_times_the_frames(stage: str, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 240, 64, 64)
    peaks = []
    for count in (24, 240):
        job = write_job(tmp_path, clip, count, Namespace(size=(64, 64), steps=1))
        for before in ("extract", "control") if stage == "render" else ():
            run([before, str(job), "-q"])
        peaks.append(run([stage, str(job), "-q"])[1])
    print(f"{stage}: {peaks[0]:.0f} MB at 24 frames, {peaks[1]:.0f} MB at 240")
    assert abs(peaks[1] - peaks[0]) < ALLOWED


@pytest.mark.slow
def test_annotating_the_whole_video_uses_bounded_memory(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 240, 64, 64)
    settings: JsonObject = {"name": "depth_video", "model": str(write_dpt(tmp_path / "dpt"))}
    peaks = []
    for count in (24, 240):
        job = annotators.write_job(tmp_path, clip, settings, count, (64, 64))
        run(["extract", str(job), "-q"])
        peaks.append(run(["control", str(job), "-q"])[1])
    print(f"depth_video: {peaks[0]:.0f} MB at 24 frames, {peaks[1]:.0f} MB at 240")
    assert abs(peaks[1] - peaks[0]) < ALLOWED
