"""What the denoiser makes of a U-Net's prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.diffusion.denoise import Denoiser, Frames, ModelNames, Settings
from stages.diffusion.loading import load_networks
from tests.conftest import CONTROLNET, MODEL, scene


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_v_is_turned_into_the_noise_of_each_groups_own_frame(guidance):
    names = ModelNames(str(MODEL), (str(CONTROLNET),), "cpu", "float32", group=2)
    networks = load_networks(names)
    settings = Settings(names, (1.0,), "winter", "", guidance, 4, 1.0, 0)
    latents = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    maps, groups, own, timestep = [np.stack([scene(k) for k in range(3)])], [[0, 1], [1, 2], [0, 2]], 1, 749

    def noise(prediction: str) -> torch.Tensor:
        denoiser = Denoiser(replace(networks, prediction=prediction), settings)
        return denoiser.predict_noise(Frames(latents, maps), groups, own, timestep)

    predicted, alpha = noise("epsilon"), networks.alphas[timestep]  # the same network's output, read as noise and as v
    expected = (1 - alpha).sqrt() * latents[[1, 2, 2]] + alpha.sqrt() * predicted
    torch.testing.assert_close(noise("v_prediction"), expected)


def test_small_frames_go_together_and_large_ones_alone():
    names = ModelNames(str(MODEL), (), "cpu", "float32", group=4)
    denoiser = Denoiser(load_networks(names), Settings(names, (), "winter", "", 7.5, 4, 1.0, 0))
    assert [denoiser.fitting_batch(*size) for size in ((64, 64), (128, 128), (512, 960))] == [8, 2, 1]
