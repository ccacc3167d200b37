"""Samplers with a common interface, in terms of predicted clean latents.

Smoothing works on clean latents, so a step has two halves: from a noise prediction to the clean latents, and from clean
latents to the next, less noisy ones. Latents are as the U-Net sees them,
sqrt(alpha) * clean + sqrt(1 - alpha) * noise, float32 [K, 4, h, w]; sigma = sqrt((1 - alpha) / alpha).
Samplers are stateless; callers pass the previous step's result.

Samplers are registered with properties that can be read without importing torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from stages.base.registry import Registry

if TYPE_CHECKING:
    import torch

TRAIN_STEPS = 1000


@dataclass(frozen=True)
class Sampler(ABC):
    """A sampler for a number of steps.

    Args:
        alphas: The cumulative products of 1 - beta, float32 [1000].
        steps: The number of steps of a full schedule.
        strength: The share of them, at the end of the schedule, that is executed.
    """

    alphas: torch.Tensor
    steps: int
    strength: float = 1.0

    name: ClassVar[str]
    """Its name in jobs (`scheduler`)."""
    description: ClassVar[str]
    """What it is and what it is for, in one sentence."""
    most_steps: ClassVar[int] = TRAIN_STEPS
    """The largest number of steps."""
    most_guidance: ClassVar[float | None] = None
    """The guidance above which it oversaturates colours, unless guidance is an input of the model. None: no limit."""
    multistep: ClassVar[bool] = False
    """Whether `step` uses the clean latents of the previous step."""
    adds_noise: ClassVar[bool] = False
    """Whether `step` needs fresh noise."""

    @abstractmethod
    def schedule(self) -> list[float]:
        """Return the timesteps of all steps, from 999 downwards."""

    @property
    def timesteps(self) -> list[float]:
        """The timesteps that are executed."""
        return self.schedule()[self.steps - int(self.steps * self.strength) :]

    def alpha(self, timestep: float) -> torch.Tensor:
        """Return the share of the clean latents in the variance, float32 []."""
        return self.alphas[int(timestep)]

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timestep: float) -> torch.Tensor:
        """Return latents of `timestep` with this clean part and noise."""
        alpha = self.alpha(timestep)
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def clean(self, latents: torch.Tensor, noise: torch.Tensor, timestep: float) -> torch.Tensor:
        """Return the clean latents according to a noise prediction (arXiv 2010.02502, equation 9)."""
        alpha = self.alpha(timestep)
        return (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()

    def noise_of_v(self, latents: torch.Tensor, v: torch.Tensor, timestep: float) -> torch.Tensor:
        """Return the noise according to a prediction of v (arXiv 2202.00512, appendix D)."""
        alpha = self.alpha(timestep)
        return (1 - alpha).sqrt() * latents + alpha.sqrt() * v

    def noise(self, latents: torch.Tensor, clean: torch.Tensor, timestep: float) -> torch.Tensor:
        """Return the noise in `latents` whose clean part is `clean`."""
        alpha = self.alpha(timestep)
        return (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    def after(self, timestep: float) -> float | None:
        """Return the timestep after this one, None after the last."""
        return next((later for later in self.timesteps if later < timestep), None)

    def step(
        self,
        latents: torch.Tensor,
        clean: torch.Tensor,
        timestep: float,
        before: torch.Tensor | None = None,
        fresh: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the latents of the next timestep (arXiv 2010.02502, equation 12): with the same noise, or fresh noise.

        Args:
            latents: The latents of this timestep.
            clean: Their clean part.
            timestep: One of `timesteps`.
            before: The clean latents of the previous step, None in the first one. Only multistep samplers use them.
            fresh: Noise to use instead of that of `latents`, for samplers that add noise.
        """
        after = self.after(timestep)
        if after is None:
            return clean
        return self.add_noise(clean, self.noise(latents, clean, timestep) if fresh is None else fresh, after)


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
        """Return the timestep one stride later, even after the last step if 1000 is not a multiple of the stride."""
        return timestep - self.stride if timestep >= self.stride else None


@SAMPLERS.register
class Euler(Sampler):
    """Euler's method on d latents / d sigma with Karras' spacing (arXiv 2206.00364, algorithm 1 without churn and
    second order).

    In these latents Euler's step is the same as DDIM's. Only the spacing differs: steps are closer together where there
    is less noise. Timesteps are not whole numbers; sigma is interpolated on a logarithmic scale.
    """

    name = "euler"
    description = "DDIM's step with Karras' spacing."
    RHO: ClassVar[float] = 7.0

    def schedule(self) -> list[float]:
        """Return timesteps from the model's largest sigma to its smallest (equation 5)."""
        highest, lowest = np.exp(self._log_sigmas[[-1, 0]] / self.RHO)
        sigmas = np.linspace(highest, lowest, self.steps) ** self.RHO
        return [float(step) for step in np.interp(np.log(sigmas), self._log_sigmas, np.arange(TRAIN_STEPS))]

    def alpha(self, timestep: float) -> torch.Tensor:
        import torch

        return torch.tensor(1 / (1 + np.exp(2 * self.log_sigma(timestep))), dtype=torch.float32)

    def log_sigma(self, timestep: float) -> float:
        return float(np.interp(timestep, np.arange(TRAIN_STEPS), self._log_sigmas))

    @property
    def _log_sigmas(self) -> NDArray[np.float64]:
        """log sigma of whole timesteps, [1000]."""
        alphas = self.alphas.double().numpy()
        log_sigmas: NDArray[np.float64] = np.log((1 - alphas) / alphas) / 2
        return log_sigmas


@SAMPLERS.register
class DPM2M(Euler):
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): second order from the clean latents of two steps."""

    name = "dpm++2m"
    description = "DPM-Solver++ 2M with Karras' spacing, for fewer steps."
    multistep = True

    def step(
        self,
        latents: torch.Tensor,
        clean: torch.Tensor,
        timestep: float,
        before: torch.Tensor | None = None,
        fresh: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Take the first-order step from clean latents extrapolated by half a step of log sigma.

        The first and the last step are of first order.
        """
        after = self.after(timestep)
        if before is None or after is None:
            return super().step(latents, clean, timestep)
        earlier = min(other for other in self.timesteps if other > timestep)
        passed, now, ahead = (self.log_sigma(other) for other in (earlier, timestep, after))
        ratio = (now - passed) / (ahead - now)
        return super().step(latents, clean + (clean - before) / (2 * ratio), timestep)


@SAMPLERS.register
class LCM(Sampler):
    """Multistep sampling of latent consistency models (arXiv 2310.04378): clean latents with fresh noise."""

    name = "lcm"
    description = "For LCM models, or for an LCM LoRA in `loras`, in 4 to 8 steps."
    most_steps = 50  # the timesteps that LCMs are distilled at
    most_guidance = 2.0
    adds_noise = True
    SCALING: ClassVar[float] = 10.0
    SIGMA_DATA: ClassVar[float] = 0.5

    def schedule(self) -> list[float]:
        """Return `steps` evenly spaced ones of the 50 timesteps 999, 979, ... 19."""
        stride = TRAIN_STEPS // self.most_steps
        return [TRAIN_STEPS - 1 - stride * (i * self.most_steps // self.steps) for i in range(self.steps)]

    def clean(self, latents: torch.Tensor, noise: torch.Tensor, timestep: float) -> torch.Tensor:
        """Apply the consistency function, which is the identity at timestep 0.

        c_skip and c_out are those of arXiv 2303.01469, appendix C, as the authors of LCM scale them.
        """
        scaled, data = self.SCALING * timestep, self.SIGMA_DATA
        skip = data**2 / (scaled**2 + data**2)
        out = scaled / (scaled**2 + data**2) ** 0.5
        clean: torch.Tensor = out * super().clean(latents, noise, timestep) + skip * latents
        return clean
