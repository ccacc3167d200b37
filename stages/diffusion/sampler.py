"""Deterministic DDIM (arXiv 2010.02502, section 4, eta = 0), in terms of predicted clean latents.

Clean latents are what gets deflickered, so the step is cut in two: from a noise prediction to the clean latents,
and from clean latents to the next, less noisy ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TRAIN_STEPS = 1000


@dataclass(frozen=True)
class Sampler:
    """`alphas` float32 [1000], the cumulative products of 1 - beta; `steps` in all, of which the last
    int(steps * strength) are walked."""

    alphas: torch.Tensor
    steps: int
    strength: float = 1.0

    @property
    def timesteps(self) -> list[int]:
        """From 999 downwards in strides of 1000 // steps; with strength < 1 only the last part."""
        every = [TRAIN_STEPS - 1 - i * self.stride for i in range(self.steps)]
        return every[self.steps - int(self.steps * self.strength) :]

    @property
    def stride(self) -> int:
        return TRAIN_STEPS // self.steps

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timestep: int) -> torch.Tensor:
        """Latents of `timestep` whose clean part and noise are these."""
        alpha = self.alphas[timestep]
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def clean(self, latents: torch.Tensor, noise: torch.Tensor, timestep: int) -> torch.Tensor:
        """The clean latents that a noise prediction stands for (equation 9)."""
        alpha = self.alphas[timestep]
        return (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()

    def noise_of_v(self, latents: torch.Tensor, v: torch.Tensor, timestep: int) -> torch.Tensor:
        """The noise that a prediction of v stands for (arXiv 2202.00512, appendix D)."""
        alpha = self.alphas[timestep]
        return (1 - alpha).sqrt() * latents + alpha.sqrt() * v

    def noise(self, latents: torch.Tensor, clean: torch.Tensor, timestep: int) -> torch.Tensor:
        """The noise that leads from `latents` to `clean`: the inverse of `clean`."""
        alpha = self.alphas[timestep]
        return (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    def step(self, latents: torch.Tensor, clean: torch.Tensor, timestep: int) -> torch.Tensor:
        """Latents of the next timestep (equation 12 with sigma = 0). The step after the last is clean."""
        noise = self.noise(latents, clean, timestep)
        after = timestep - self.stride
        return self.add_noise(clean, noise, after) if after >= 0 else clean
