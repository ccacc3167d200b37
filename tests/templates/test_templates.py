"""The tasks as `diffsynth init` writes them, on tiny models in the real formats."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffsynth_cli.project import TASKS
from stages.base.cache import FrameCache
from stages.base.job_file import read_job
from tests.conftest import GOLDEN, MODEL, scene, write_images
from tests.stages.annotators.random_weights import write_dpt, write_weights

FRAMES = 3
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_v"
LORA = {f"{LAYER}.lora_down.weight": torch.ones(4, 32), f"{LAYER}.lora_up.weight": torch.ones(32, 4) / 100}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {
        "depth": write_dpt(folder / "dpt"),
        "hed": write_weights("hed", folder),
        "openpose_video": write_weights("openpose", folder),
    }


@pytest.mark.parametrize("task", TASKS)
def test_a_task_runs_from_a_video_to_rendered_frames(task, weights, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", [scene(3 * i, 96, 96) for i in range(FRAMES)])
    assert cli("init", task, "images")[0] == 0
    path = tmp_path / "job.json"
    job = json.loads(path.read_text())
    names = [item.name for item in read_job(path)[0].controlnet_processor]
    for image in (*job.get("frames_reference", ()), *([job["style_image"]] if "style_image" in job else ())):
        write_images(tmp_path / f"of {image}", [scene(50, 96, 96)])
        (tmp_path / f"of {image}/0.png").rename(tmp_path / image)
    for path_of_lora in job.get("loras", ()):
        (tmp_path / path_of_lora).parent.mkdir()
        save_file(LORA, tmp_path / path_of_lora)
    job |= {
        "model_id": str(MODEL),
        "controlnet_model_id": [str(GOLDEN / f"models/control{i}") for i in range(len(names))],
        "controlnet_processor": [
            {"name": name, "model": str(weights[name])} if name in weights else name for name in names
        ],
        "controlnet_scale": [max(scale, 0.5) for scale in job["controlnet_scale"]],  # all of them, here
        "frame_height": 64, "frame_width": 64, "num_inference_steps": 4,
    }  # fmt: skip
    path.write_text(json.dumps(job))
    for stage in ("extract", "control", "render"):
        code, said = cli(stage, path, *(["--preview"] if stage == "render" else []))
        assert code == 0, said
    cache = FrameCache(tmp_path / job["output_path"] / "cache.zarr")
    rendered = cache["rendered"][:]
    assert rendered.shape == (FRAMES, 64, 64, 3) and rendered.std() > 1
    assert len({np.ascontiguousarray(frame).tobytes() for frame in rendered}) == FRAMES
    assert len(cache.arrays("control")) == len(names)
    assert (tmp_path / job["output_path"] / "preview.png").stat().st_size > 1000
