"""Models that take the guidance scale as an input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel

from stages.diffusion.denoise import Frames, denoiser
from stages.diffusion.layout import guidance_is_input
from stages.diffusion.settings import Batches, ModelNames, Settings
from tests.conftest import MODEL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The tiny model with a guidance input."""
    folder = tmp_path / "lcm"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "unet/config.json").read_text()) | {"time_cond_proj_dim": 16}
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return folder


def test_guidance_that_is_an_input_is_what_diffusers_makes_of_it(model: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(model / "unet").eval()
    settings = Settings(
        models=ModelNames(model_id=str(model), device="cpu"),
        prompts=("winter",),
        negative_prompt="blurry",
        guidance=8.0,
        steps=4,
        scheduler="lcm",
    )
    ours = denoiser(settings)
    latents = ours.initial_noise(64, 64)
    pipeline = LatentConsistencyModelPipeline.__new__(LatentConsistencyModelPipeline)
    embedding = pipeline.get_guidance_scale_embedding(torch.tensor([7.0]), 16)
    with torch.inference_mode():
        expected = unet(latents, 999, ours.prompts.alone.rows, timestep_cond=embedding).sample
    found = ours.predict_noise(Frames(latents, []), [[0]], 0, 999, Batches())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert guidance_is_input(str(model)) and not guidance_is_input(str(MODEL))
    other = denoiser(replace(settings, guidance=1.0)).predict_noise(Frames(latents, []), [[0]], 0, 999, Batches())
    assert (other - found).abs().max() > 1e-3
