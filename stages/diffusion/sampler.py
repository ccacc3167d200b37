"""Samplers of one shape, in terms of predicted clean latents.

Clean latents are what gets deflickered, so a step is cut in two: from a noise prediction to the clean latents,
and from clean latents to the next, less noisy ones. Latents are as the U-Net sees them,
sqrt(alpha) * clean + sqrt(1 - alpha) * noise, float32 [K, 4, h, w]; sigma = sqrt((1 - alpha) / alpha).
Samplers are stateless; callers pass the previous step's result.

Each sampler is registered with what must be known about it without torch, which is imported when one is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stages.base.registry import Registry

if TYPE_CHECKING:
    import torch

TRAIN_STEPS = 1000


@dataclass(frozen=True)
class Sampler(ABC):
    """`alphas` float32 [1000], the cumulative products of 1 - beta; `steps` in all, of which the last
    int(steps * strength) are walked; `seed` of what noise is added on the way."""

    alphas: torch.Tensor
    steps: int
    strength: float = 1.0
    seed: int = 0

    name: ClassVar[str]
    """What jobs call the sampler (`scheduler`)."""
    description: ClassVar[str]
    """What it is and what it is for, in a sentence."""
    most_steps: ClassVar[int] = TRAIN_STEPS
    """Steps that it can take, at most."""
    most_guidance: ClassVar[float | None] = None
    """Guidance above which it oversaturates colours, unless guidance is an input of the model. None: any will do."""
    multistep: ClassVar[bool] = False
    """Does `step` look back at the clean latents of the step before?"""

    @abstractmethod
    def schedule(self) -> list[float]:
        """The timesteps of all steps, from 999 downwards."""

    @property
    def timesteps(self) -> list[float]:
        """Those that are walked: with strength < 1 only the last part."""
        return self.schedule()[self.steps - int(self.steps * self.strength) :]

    def alpha(self, timestep: float) -> torch.Tensor:
        """The share of the clean latents in the variance, float32 []."""
        return self.alphas[int(timestep)]

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timestep: float) -> torch.Tensor:
        """Latents of `timestep` whose clean part and noise are these."""
        alpha = self.alpha(timestep)
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def clean(self, latents: torch.Tensor, noise: torch.Tensor, timestep: float) -> torch.Tensor:
        """The clean latents that a noise prediction stands for (arXiv 2010.02502, equation 9)."""
        alpha = self.alpha(timestep)
        return (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()

    def noise_of_v(self, latents: torch.Tensor, v: torch.Tensor, timestep: float) -> torch.Tensor:
        """The noise that a prediction of v stands for (arXiv 2202.00512, appendix D)."""
        alpha = self.alpha(timestep)
        return (1 - alpha).sqrt() * latents + alpha.sqrt() * v

    def noise(self, latents: torch.Tensor, clean: torch.Tensor, timestep: float) -> torch.Tensor:
        """The noise in `latents` whose clean part is `clean`."""
        alpha = self.alpha(timestep)
        return (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    def after(self, timestep: float) -> float | None:
        """The timestep that the step from this one leads to; None: to clean latents."""
        return next((later for later in self.timesteps if later < timestep), None)

    def step(
        self, latents: torch.Tensor, clean: torch.Tensor, timestep: float, before: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Latents of the next timestep, with the same noise (arXiv 2010.02502, equation 12 with sigma = 0).

        `before` are the clean latents that the step before was made with, for multistep samplers; None: there was none.
        """
        after = self.after(timestep)
        return clean if after is None else self.add_noise(clean, self.noise(latents, clean, timestep), after)


SAMPLERS: Registry[Sampler] = Registry("scheduler", Sampler, lambda sampler: sampler.name)


@SAMPLERS.register
class DDIM(Sampler):
    """Deterministic DDIM (arXiv 2010.02502, section 4, eta = 0), from 999 downwards in strides of 1000 // steps."""

    name = "ddim"
    description = "As published, in even steps."

    def schedule(self) -> list[float]:
        return [TRAIN_STEPS - 1 - i * self.stride for i in range(self.steps)]

    @property
    def stride(self) -> int:
        return TRAIN_STEPS // self.steps

    def after(self, timestep: float) -> float | None:
        """A stride on, beyond the last timestep, too, where 1000 is not a multiple of the stride."""
        return timestep - self.stride if timestep >= self.stride else None


@SAMPLERS.register
class Euler(Sampler):
    """Euler's method on d latents / d sigma with Karras' spacing (arXiv 2206.00364, algorithm 1 without churn and
    second order).

    In these latents Euler's step from one sigma to another is DDIM's: what differs from DDIM is where the steps lie,
    closer together the less noise there is. Timesteps lie between whole numbers, sigma being interpolated on a
    logarithmic scale.
    """

    name = "euler"
    description = "DDIM's step with Karras' spacing."
    RHO: ClassVar[float] = 7.0

    def schedule(self) -> list[float]:
        """From the model's largest sigma to its smallest (equation 5)."""
        highest, lowest = np.exp(self._log_sigmas[[-1, 0]] / self.RHO)
        sigmas = np.linspace(highest, lowest, self.steps) ** self.RHO
        return [float(step) for step in np.interp(np.log(sigmas), self._log_sigmas, np.arange(TRAIN_STEPS))]

    def alpha(self, timestep: float) -> torch.Tensor:
        import torch

        return torch.tensor(1 / (1 + np.exp(2 * self.log_sigma(timestep))), dtype=torch.float32)

    def log_sigma(self, timestep: float) -> float:
        return float(np.interp(timestep, np.arange(TRAIN_STEPS), self._log_sigmas))

    @property
    def _log_sigmas(self) -> np.ndarray:
        """Of whole timesteps, float64 [1000]."""
        alphas = self.alphas.double().numpy()
        return np.log((1 - alphas) / alphas) / 2


@SAMPLERS.register
class DPM2M(Euler):
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): second order from the clean latents of two steps."""

    name = "dpm++2m"
    description = "DPM-Solver++ 2M with Karras' spacing, for fewer steps."
    multistep = True

    def step(
        self, latents: torch.Tensor, clean: torch.Tensor, timestep: float, before: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The first-order step from clean latents that go on as they did since the step before, by half of this step
        on the scale of log sigma. The first and the last step are of first order."""
        after = self.after(timestep)
        if before is None or after is None:
            return super().step(latents, clean, timestep)
        earlier = min(other for other in self.timesteps if other > timestep)
        passed, now, ahead = (self.log_sigma(other) for other in (earlier, timestep, after))
        ratio = (now - passed) / (ahead - now)
        return super().step(latents, clean + (clean - before) / (2 * ratio), timestep)


@SAMPLERS.register
class LCM(Sampler):
    """Multistep sampling of latent consistency models (arXiv 2310.04378): clean latents in one go, noised anew.

    The noise is the same for all frames, so that no flicker comes from it, and another one at each step.
    """

    name = "lcm"
    description = "For LCM models, or for an LCM LoRA in `loras`, in 4 to 8 steps."
    most_steps = 50  # the timesteps that such models are distilled at
    most_guidance = 2.0
    SCALING: ClassVar[float] = 10.0
    SIGMA_DATA: ClassVar[float] = 0.5

    def schedule(self) -> list[float]:
        """`steps` of the 50 timesteps 999, 979, ... 19, evenly skipping."""
        stride = TRAIN_STEPS // self.most_steps
        return [TRAIN_STEPS - 1 - stride * (i * self.most_steps // self.steps) for i in range(self.steps)]

    def clean(self, latents: torch.Tensor, noise: torch.Tensor, timestep: float) -> torch.Tensor:
        """The consistency function: it is the identity at timestep 0 (c_skip and c_out of arXiv 2303.01469, appendix C,
        as the authors of LCM scale them)."""
        scaled, data = self.SCALING * timestep, self.SIGMA_DATA
        skip = data**2 / (scaled**2 + data**2)
        out = scaled / (scaled**2 + data**2) ** 0.5
        return out * super().clean(latents, noise, timestep) + skip * latents

    def step(
        self, latents: torch.Tensor, clean: torch.Tensor, timestep: float, before: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The clean latents with the next timestep's noise; of `latents` nothing is left."""
        after = self.after(timestep)
        return clean if after is None else self.add_noise(clean, self.fresh_noise(latents.shape[1:], timestep), after)

    def fresh_noise(self, shape: torch.Size, timestep: float) -> torch.Tensor:
        """What the step from `timestep` adds, float32 [1, *shape]: by the seed and the step's number alone."""
        import torch

        entropy = np.random.SeedSequence((self.seed, self.timesteps.index(timestep)))
        generator = torch.Generator("cpu").manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        return torch.randn((1, *shape), generator=generator)
