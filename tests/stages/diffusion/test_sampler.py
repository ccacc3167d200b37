"""DDIM in terms of clean latents."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from stages.diffusion.sampler import Sampler

SCHEDULER = DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
    timestep_spacing="leading", steps_offset=0,
)  # fmt: skip


def sampler(steps: int, strength: float = 1.0) -> Sampler:
    return Sampler(SCHEDULER.alphas_cumprod, steps, strength)


@pytest.mark.parametrize(
    ("steps", "strength", "expected"),
    [
        (4, 1.0, [999, 749, 499, 249]),
        (8, 1.0, [999, 874, 749, 624, 499, 374, 249, 124]),
        (10, 0.3, [299, 199, 99]),
        (3, 1.0, [999, 666, 333]),
        (1, 1.0, [999]),
    ],
)
def test_timesteps(steps, strength, expected):
    assert sampler(steps, strength).timesteps == expected


def test_a_step_is_diffusers_ddim_step():
    ours, latents, noise = sampler(10), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    SCHEDULER.set_timesteps(10)
    for timestep in ours.timesteps:
        clean = ours.clean(latents, noise, timestep)
        expected = SCHEDULER.step(noise, timestep, latents).prev_sample
        torch.testing.assert_close(ours.step(latents, clean, timestep), expected, atol=1e-5, rtol=1e-5)


def test_noise_is_the_inverse_of_clean():
    ours, latents, noise = sampler(10), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(ours.noise(latents, ours.clean(latents, noise, 499), 499), noise, atol=1e-4, rtol=1e-4)


def test_the_last_step_ends_in_the_clean_latents():
    ours, clean = sampler(4), torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(ours.step(torch.randn(1, 4, 8, 8), clean, 249), clean)


def test_v_stands_for_the_noise_that_was_added():
    ours, clean, noise = sampler(10), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for timestep in (999, 500, 99, 0):
        alpha = SCHEDULER.alphas_cumprod[timestep]
        v = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        found = ours.noise_of_v(ours.add_noise(clean, noise, timestep), v, timestep)
        torch.testing.assert_close(found, noise)
