"""Samplers give the latents that the schedulers of diffusers give."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler

from stages.diffusion.sampler import DDIM, DPM2M, LCM, SAMPLERS, Euler, Sampler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading", steps_offset=0)
PREDICTIONS = ("epsilon", "v_prediction")

Kind = TypeVar("Kind", bound=Sampler)


def make(kind: type[Kind], steps: int, strength: float = 1.0) -> Kind:
    return kind(SCHEDULER.alphas_cumprod, steps, strength)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


def model(latents: torch.Tensor, timestep: float, prediction: str) -> torch.Tensor:
    """A stand-in for a network: a nonlinear function of latents and timestep."""
    alpha = make(Euler, 1).alpha(timestep)
    clean = torch.tanh(latents + latents.flip(3) * timestep / 1000)
    noise = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    return noise if prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def walk(
    sampler: Sampler, prediction: str, latents: torch.Tensor, fresh: Sequence[torch.Tensor] = ()
) -> list[torch.Tensor]:
    """The latents after every step. `fresh`: the noise that steps add."""
    results, before = [], None
    for timestep, added in zip_longest(sampler.timesteps, fresh):
        predicted = model(latents, timestep, prediction)
        if prediction == "v_prediction":
            predicted = sampler.noise_of_v(latents, predicted, timestep)
        clean = sampler.clean(latents, predicted, timestep)
        latents = sampler.step(latents, clean, timestep, before, added)
        results.append(latents)
        before = clean
    return results


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
def test_ddim_takes_the_published_timesteps(steps: int, strength: float, expected: list[int]) -> None:
    assert make(DDIM, steps, strength).timesteps == expected


@pytest.mark.parametrize("steps", [3, 10])  # with three, the last step leads to timestep 0
def test_ddim_is_that_of_diffusers(steps: int) -> None:
    ours, latents, predicted = make(DDIM, steps), noise(), noise(1)
    SCHEDULER.set_timesteps(steps)
    for timestep in ours.timesteps:
        clean = ours.clean(latents, predicted, timestep)
        expected = SCHEDULER.step(predicted, timestep, latents).prev_sample
        torch.testing.assert_close(ours.step(latents, clean, timestep), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [2, 4, 10, 30])  # of a single one, diffusers makes timestep 0
def test_euler_is_that_of_diffusers(steps: int, prediction: str) -> None:
    theirs = EulerDiscreteScheduler(
        **BETAS, use_karras_sigmas=True, prediction_type=prediction, timestep_spacing="linspace"
    )
    theirs.set_timesteps(steps)
    ours, latents = make(Euler, steps), noise()
    torch.testing.assert_close(torch.tensor(ours.timesteps), theirs.timesteps, atol=1e-2, rtol=0)
    scaled = latents * (theirs.sigmas[0] ** 2 + 1).sqrt()
    for index, found in enumerate(walk(ours, prediction, latents)):
        seen = theirs.scale_model_input(scaled, theirs.timesteps[index])
        scaled = theirs.step(
            model(seen, ours.timesteps[index], prediction), theirs.timesteps[index], scaled
        ).prev_sample
        expected = scaled / (theirs.sigmas[index + 1] ** 2 + 1).sqrt()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 30])
def test_dpm_2m_is_that_of_diffusers(steps: int, prediction: str) -> None:
    theirs = DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True, prediction_type=prediction)
    theirs.set_timesteps(steps)
    ours, latents = make(DPM2M, steps), noise()
    torch.testing.assert_close(torch.tensor(ours.timesteps).round().long(), theirs.timesteps)
    expected = latents
    for index, found in enumerate(walk(ours, prediction, latents)):
        predicted = model(expected, ours.timesteps[index], prediction)
        expected = theirs.step(predicted, theirs.timesteps[index], expected).prev_sample
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm_is_that_of_diffusers(steps: int, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = LCMScheduler(**BETAS, prediction_type=prediction, clip_sample=False)
    theirs.set_timesteps(steps)
    ours, latents = make(LCM, steps), noise()
    fresh = [noise(10 + step) for step in range(steps)]
    drawn = iter(fresh)
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *args, **more: next(drawn))
    expected = latents
    for index, found in enumerate(walk(ours, prediction, latents, fresh)):
        timestep = theirs.timesteps[index]
        expected = theirs.step(model(expected, float(timestep), prediction), timestep, expected).prev_sample
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_lcm_walks_some_of_the_timesteps_that_such_models_are_distilled_at() -> None:
    theirs = LCMScheduler(**BETAS)
    for steps in range(1, LCM.most_steps + 1):
        theirs.set_timesteps(steps)
        assert make(LCM, steps).timesteps == theirs.timesteps.tolist()
    assert make(LCM, 4, 0.5).timesteps == [499, 259]


@pytest.mark.parametrize("kind", SAMPLERS.values())
def test_timesteps_descend_and_the_last_step_ends_in_the_clean_latents(kind: type[Sampler]) -> None:
    for steps in (1, 4, 50):
        whole, part = make(kind, steps).timesteps, make(kind, steps, 0.5).timesteps
        assert whole[0] == 999 and whole == sorted(set(whole), reverse=True) and len(whole) == steps
        assert part == whole[steps - steps // 2 :]
    ours, clean = make(kind, 4), noise(1)
    torch.testing.assert_close(ours.step(noise(), clean, ours.timesteps[-1], noise(2)), clean, atol=0, rtol=0)


@pytest.mark.parametrize("kind", SAMPLERS.values())
def test_noise_leads_to_clean_latents_and_back(kind: type[Sampler]) -> None:
    ours, clean, added = make(kind, 10), noise(), noise(1)
    for timestep in ours.timesteps:
        latents, alpha = ours.add_noise(clean, added, timestep), ours.alpha(timestep)
        torch.testing.assert_close(ours.noise(latents, clean, timestep), added, atol=1e-3, rtol=1e-3)
        v = alpha.sqrt() * added - (1 - alpha).sqrt() * clean
        torch.testing.assert_close(ours.noise_of_v(latents, v, timestep), added)
        skip = 1e-4 if kind is LCM else 0  # the consistency function lets that much of the latents pass
        torch.testing.assert_close(ours.clean(latents, added, timestep), clean, atol=1e-3 + skip, rtol=1e-3)


def test_noise_levels_between_timesteps_go_through_those_of_timesteps() -> None:
    ddim, euler = make(DDIM, 10), make(Euler, 10)
    for timestep in ddim.timesteps:
        torch.testing.assert_close(euler.alpha(timestep), ddim.alpha(timestep))
