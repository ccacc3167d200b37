"""Predictions of the U-Net become noise, in batches that fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.diffusion.denoise import Denoiser, Frames
from stages.diffusion.loading import load_networks
from stages.diffusion.settings import Batches, ModelNames, Settings
from tests.conftest import CONTROLNET, MODEL, scene


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_v_is_turned_into_the_noise_of_each_groups_own_frame(guidance: float) -> None:
    names = ModelNames(model_id=str(MODEL), controlnets=(str(CONTROLNET),), device="cpu")
    networks = load_networks(names)
    settings = Settings(models=names, scales=(1.0,), prompts=("winter",), guidance=guidance, steps=4)
    latents = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    maps, groups, own, timestep = [np.stack([scene(k) for k in range(3)])], [[0, 1], [1, 2], [0, 2]], 1, 749

    def noise(prediction: str) -> torch.Tensor:
        denoiser = Denoiser(replace(networks, prediction=prediction), settings)
        return denoiser.predict_noise(Frames(latents, maps), groups, own, timestep, Batches())

    predicted, alpha = noise("epsilon"), networks.alphas[timestep]  # the same network's output, read as noise and as v
    expected = (1 - alpha).sqrt() * latents[[1, 2, 2]] + alpha.sqrt() * predicted
    torch.testing.assert_close(noise("v_prediction"), expected)


def test_small_frames_go_together_and_large_ones_alone() -> None:
    names = ModelNames(model_id=str(MODEL), device="cpu")
    denoiser = Denoiser(load_networks(names), Settings(models=names, guidance=7.5, steps=4))
    assert [denoiser.fitting_batch(*size, group=4) for size in ((64, 64), (128, 128), (512, 960))] == [8, 2, 1]
