"""Rendering keyframes alone and painting all other frames from them."""

from __future__ import annotations

from pathlib import Path
from typing import Never

import numpy as np
import pytest

from diffsynth_cli.failures import Interrupted
from stages import tasks
from stages.base.cache import FrameCache
from stages.base.engine import Task
from stages.smoothers.images import keyframes
from stages.smoothers.images.keyframes import Interpolator
from tests.conftest import scene, write_images
from tests.typing import Cli, MakeJob, Render

KEYFRAMES = {"combine_pattern": [-1, 0, 1], "num_inference_steps": 2}


def test_only_keyframes_are_rendered_and_the_others_painted(render: Render, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "keys", [scene(i) for i in (0, 4, 8, 10)])
    write_images(tmp_path / "all", [scene(i) for i in range(11)])
    keys = render("few", input_video="all", keyframes=4, **KEYFRAMES)
    alone = render("alone", input_video=str(folder), **KEYFRAMES)
    np.testing.assert_array_equal(keys["latents"][:], alone["latents"][:])  # they attend to each other, not to the rest
    rendered = keys["rendered"]
    assert rendered.shape == (11, 64, 64, 3) and "keyframes" not in keys
    np.testing.assert_array_equal(rendered.read([0, 4, 8, 10]), alone["rendered"][:])
    painter = Interpolator(keys["frames"], alone["rendered"], [0, 4, 8, 10])
    for index, (frame, unseen) in zip((1, 6, 9), painter.paint((1, 6, 9)), strict=True):
        np.testing.assert_array_equal(rendered[index], frame)
        assert keys["unseen"][index] == np.float32(unseen)


def test_keyframes_are_chosen_once(make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"keyframes": "auto", "num_inference_steps": 1}
    real = tasks.PaintTask.run
    images = [scene(0)] * 3 + [255 - scene(0).transpose(1, 0, 2)] * 3
    job = make_job(**keys, input_video="cut")
    write_images(job.parent / "cut", images)

    def interrupted(task: Task, cache: FrameCache, start: int, stop: int) -> Never:
        raise Interrupted

    monkeypatch.setattr(tasks.PaintTask, "run", interrupted)
    assert cli("run", job, "-q")[0] == 130
    monkeypatch.setattr(tasks.PaintTask, "run", real)
    monkeypatch.setattr(keyframes, "choose", None)  # a second choice would fail
    assert cli("run", job, "-q") == (0, "")
    assert FrameCache(job.parent / "out/cache.zarr")["rendered"].attrs["keys"] == [0, 3]


def test_keyframes_that_are_all_frames_change_nothing(render: Render) -> None:
    np.testing.assert_array_equal(
        render("all", frames=3, keyframes=1)["rendered"][:], render("listed", keyframes=[2, 1, 0])["rendered"][:]
    )


def test_a_frame_that_no_keyframe_shows_is_named(make_job: MakeJob, cli: Cli, tmp_path: Path) -> None:
    cut = [scene(i) for i in range(4)] + [255 - scene(i).transpose(1, 0, 2) for i in range(4)]
    write_images(tmp_path / "cut", cut)
    job = make_job(input_video="cut", keyframes=[0, 3], num_inference_steps=1)
    code, output = cli("run", job)
    assert code == 0 and "4 of 8 frames contain areas that no keyframe shows" in output and "6 (" in output
    job = make_job(input_video="cut", keyframes="auto", num_inference_steps=1, output_path="auto")
    code, output = cli("run", job)
    assert code == 0 and "no keyframe" not in output
    job = make_job(input_video="cut", keyframes=[8], num_inference_steps=1, output_path="wrong")
    code, output = cli("run", job)
    assert code == 2 and "keyframes: the frames are numbered 0 to 7" in output
