"""Peak memory does not grow with the video, measured in processes with 12 and 120 frames."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import annotators
from benchmarks.stages import make_clip, write_job
from stages.base.json_types import JsonObject
from tests.processes import Program
from tests.stages.annotators.random_weights import write_dpt
from tests.typing import Cli

LENGTHS = (12, 120)
ALLOWED = 50  # MB


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["extract", "render"])
def test_peak_memory_is_the_same_for_ten_times_the_frames(stage: str, tmp_path: Path, cli: Cli) -> None:
    clip = make_clip(tmp_path / "clip.mp4", LENGTHS[1], 64, 64)
    peaks = []
    for count in LENGTHS:
        job = write_job(tmp_path, clip, count, Namespace(size=(64, 64), steps=1))
        for before in ("extract", "control") if stage == "render" else ():
            assert cli(before, job, "-q") == (0, "")
        peaks.append(Program(stage, job, "-q").peak())
    print(f"{stage}: {peaks} MB at {LENGTHS} frames")
    assert abs(peaks[1] - peaks[0]) < ALLOWED


@pytest.mark.slow
def test_annotating_the_whole_video_uses_bounded_memory(tmp_path: Path, cli: Cli) -> None:
    clip = make_clip(tmp_path / "clip.mp4", LENGTHS[1], 64, 64)
    settings: JsonObject = {"name": "depth_video", "model": str(write_dpt(tmp_path / "dpt"))}
    peaks = []
    for count in LENGTHS:
        job = annotators.write_job(tmp_path, clip, settings, count, (64, 64))
        assert cli("extract", job, "-q") == (0, "")
        peaks.append(Program("control", job, "-q").peak())
    print(f"depth_video: {peaks} MB at {LENGTHS} frames")
    assert abs(peaks[1] - peaks[0]) < ALLOWED
