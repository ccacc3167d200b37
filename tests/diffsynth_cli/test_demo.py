"""`diffsynth demo`: offline, from a prompt to a video and a contact sheet."""

from __future__ import annotations

import json
from fractions import Fraction
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from diffsynth_cli.demo import write_demo
from stages.base.cache import FrameCache
from stages.video import Encoding, encode, open_source
from tests.conftest import scene
from tests.object_stores import Server
from tests.typing import Cli, MakeJob


def test_the_clip_is_small_and_moves() -> None:
    clip = Path(str(resources.files("templates") / "demo.mp4"))
    frames = [shot.image() for shot in open_source(clip).shots()]
    assert len(frames) == 24 and frames[0].shape == (160, 256, 3) and clip.stat().st_size < 300_000
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 5


def test_another_video_keeps_its_aspect_ratio(tmp_path: Path) -> None:
    video = tmp_path / "mine.mp4"
    encode(video, (scene(i, 240, 320) for i in range(30)), Encoding(fps=Fraction(25)))
    job = json.loads(write_demo(tmp_path / "demo", video, "sunset, oil").read_text())
    assert (job["frame_height"], job["frame_width"]) == (160, 224)
    assert job["prompt"] == "sunset, oil" and job["input_video"] == str(video) and job["frame_maximum_count"] == 24


@pytest.mark.slow
def test_from_prompt_to_contact_sheet(tmp_path: Path, cli: Cli, moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffsynth_cli.demo.FRAMES", 3)
    monkeypatch.setattr("diffsynth_cli.demo.AREA", 64 * 64)
    video, folder = tmp_path / "mine.mp4", tmp_path / "demo"
    encode(video, (scene(i, 64, 64) for i in range(5)), Encoding(fps=Fraction(25)))
    code, output = cli("demo", "--video", video, "-o", folder, "--prompt", "winter")
    assert code == 0 and "video.mp4" in output and "contact-sheet.png" in output and "diffsynth demo --video" in output
    assert len(list(open_source(folder / "output/video.mp4").shots())) == 3
    assert (folder / "contact-sheet.png").exists() and (folder / "report.html").exists()
    (shape,) = {shot.image().shape for shot in open_source(folder / "comparison.mp4").shots()}
    assert shape == (448 + 28, 3 * 452, 3)
    singly = FrameCache(folder / "frame-by-frame/cache.zarr")["deflickered"][:]
    winter = FrameCache(folder / "output/cache.zarr")["rendered"][:]
    code, output = cli("demo", "--video", video, "-o", folder, "--prompt", "winter")
    assert code == 0 and output.count("nothing to do") == 8
    sheet, url = (folder / "contact-sheet.png").read_bytes(), moto.new_url()
    assert cli("demo", "--video", video, "-o", folder, "--prompt", "winter", "-q", "--cache", url) == (0, "")
    assert (FrameCache(folder / "frame-by-frame/cache.zarr")["deflickered"][:] == singly).all()
    assert (FrameCache(url)["rendered"][:] == winter).all() and (folder / "contact-sheet.png").read_bytes() == sheet
    assert cli("demo", "--video", video, "-o", folder, "--prompt", "night")[0] == 0  # only what depends on the prompt
    assert not (FrameCache(folder / "output/cache.zarr")["rendered"][:] == winter).all()


def test_an_existing_job_is_not_overwritten(make_job: MakeJob, cli: Cli) -> None:
    job = make_job()
    before = job.read_text()
    code, output = cli("demo", "-o", job.parent)
    assert code == 2 and "job.json exists" in output and "choose another output" in output
    assert job.read_text() == before
