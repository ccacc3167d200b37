"""The tasks as `diffsynth init` writes them, on tiny models in the real formats."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from stages.base.cache import FrameCache
from stages.jobs.job_file import read_job
from stages.video import open_source
from templates import PUBLISHED, Task
from tests.conftest import scene, write_images
from tests.templates.conftest import Tiny
from tests.typing import Cli

ROOT = Path(__file__).parents[2]
FRAMES = 3


@pytest.mark.parametrize("task", Task)
def test_a_task_runs_from_a_video_to_a_video(
    task: Task, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", [scene(3 * i, 96, 144) for i in range(FRAMES)])
    assert cli("init", task, "images")[0] == 0
    path = tmp_path / "job.json"
    job = tiny(json.loads(path.read_text()), tmp_path)
    path.write_text(json.dumps(job))
    code, output = cli("run", path, "--preview")
    assert code == 0, output
    cache = FrameCache(tmp_path / job["output_path"] / "cache.zarr")
    rendered, smooth = cache["rendered"][:], cache["deflickered"][:]
    assert rendered.shape == (FRAMES, 64, 96, 3) and rendered.std() > 1
    assert len({np.ascontiguousarray(frame).tobytes() for frame in rendered}) == FRAMES
    assert not np.array_equal(rendered, smooth)
    assert len(cache.arrays("control/*")) == len(job["controlnet_model_id"])
    assert len(list(open_source(tmp_path / job["output_path"] / "video.mp4").shots())) == FRAMES
    assert (tmp_path / job["output_path"] / "preview.png").stat().st_size > 1000


@pytest.mark.parametrize("task", Task)
def test_a_task_has_the_settings_that_are_recommended(task: Task) -> None:
    job, warnings = read_job(ROOT / f"templates/{task}.json")
    assert warnings == [] and all(job.networks_run)
    assert job.attention == "shared"
    assert job.smoother == job.post_smoother == "PatchBlendSmoother"
    run = int(job.num_inference_steps * job.img2img_strength)
    assert run <= 12 and job.ignore_smoother_steps < run


def test_every_task_has_a_section_of_its_own() -> None:
    headings = re.findall(r"^## `(\w+)`", (ROOT / "docs/tasks.md").read_text(), re.MULTILINE)
    assert headings == list(Task)


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_values_are_written_key_by_key(task: str, tmp_path: Path, cli: Cli) -> None:
    video = write_images(tmp_path / "clip", [scene(0, 90, 160)])
    code, output = cli("init", task, video, "-o", tmp_path / "project", "--published")
    assert code == 0, output
    written = json.loads((tmp_path / "project/job.json").read_text())
    published = json.loads((ROOT / f"templates/published/{task}.json").read_text())
    assert written == published | {"input_video": str(video)}
    assert list(written) == list(published)


def test_nothing_is_published_of_a_task_of_our_own(tmp_path: Path, cli: Cli) -> None:
    video = write_images(tmp_path / "clip", [scene(0, 90, 160)])
    code, output = cli("init", "text_guided_lcm", video, "-o", tmp_path / "project", "--published")
    assert code == 2 and "DiffSynth published no text_guided_lcm" in output
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize("published", [False, True], ids=["recommended", "published"])
@pytest.mark.parametrize("task", Task)
def test_init_says_what_to_do_next(task: Task, published: bool, tmp_path: Path, cli: Cli) -> None:
    if published and task not in PUBLISHED:
        return
    video = write_images(tmp_path / "clip", [scene(0, 90, 160)])
    code, output = cli("init", task, video, "-o", tmp_path / "my project", *(["--published"] if published else []))
    assert code == 0
    job = json.loads((tmp_path / "my project/job.json").read_text())
    steps = re.findall(r"^\d+\. (.*)", output, re.MULTILINE)
    assert steps[0] == f'Replace the example prompt: "{job["prompt"]}"'
    assert steps[-1] == f"Run it: diffsynth run '{tmp_path}/my project/job.json'"
    images = [*job.get("frames_reference", ()), *([job["style_image"]] if "style_image" in job else ())]
    assert [f"{tmp_path}/my project/{name}" in output for name in images] == [True] * len(images)
    assert ("hf download" in output) == ("loras" in job)
    assert ("Remove frame_maximum_count" in output) == published
    assert any(re.fullmatch(r"Expect at least \d+ CPU-core minutes per frame .*", step) for step in steps)
    (models,) = (step for step in steps if step.startswith("The first run downloads"))
    total, *sizes = (float(size) for size in re.findall(r"([\d.]+) GB", models))
    assert total == pytest.approx(sum(sizes), abs=0.051) and total > 4
    for name, scale in zip(job["controlnet_model_id"], job.get("controlnet_scale", [1.0] * 9)):
        assert (f"{name} (1.4 GB)" in models) == (scale > 0)  # those of scale 0 are not read
