"""Tiny models in real formats, where the templates look for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import GOLDEN, MODEL, scene, write_images
from tests.stages.annotators.random_weights import MAKERS, write_depth_model, write_dpt
from tests.typing import Keys

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_v"
LORA = {f"{LAYER}.lora_down.weight": torch.ones(4, 32), f"{LAYER}.lora_up.weight": torch.ones(32, 4) / 100}


Tiny: TypeAlias = Callable[[Keys, Path], Keys]


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache that holds random weights of the annotators that the templates name."""
    cache = tmp_path_factory.mktemp("hub")
    write_dpt(snapshot(cache, "Intel/dpt-large"))
    write_depth_model(snapshot(cache, "depth-anything/Depth-Anything-V2-Small-hf"))
    annotators = snapshot(cache, "lllyasviel/Annotators")
    for file, content in MAKERS["hed"]().items():  # openpose's scale is 0 where it is named: it is not run
        torch.save(content, annotators / file)
    return cache


def snapshot(cache: Path, name: str) -> Path:
    """The folder of a hub model's files in a cache."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("0" * 40)
    folder = model / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def tiny(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Make a template's job small enough to run in a second, and write the images and LoRA files that it names."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))

    def replace(job: Keys, folder: Path) -> Keys:
        for name in (*job.get("frames_reference", ()), *([job["style_image"]] if "style_image" in job else ())):
            write_images(folder / "one", [scene(50, 96, 96)])
            (folder / "one/0.png").rename(folder / name)
            (folder / "one").rmdir()
        for name in job.get("loras", ()):
            (folder / name).parent.mkdir()
            save_file(LORA, folder / name)
        height, width = (64, 96) if job["frame_height"] < job["frame_width"] else (96, 64)
        return job | {
            "model_id": str(MODEL),
            "controlnet_model_id": [str(GOLDEN / f"models/control{i}") for i in range(len(job["controlnet_model_id"]))],
            "frame_height": height, "frame_width": width, "num_inference_steps": 4,
        }  # fmt: skip

    return replace
