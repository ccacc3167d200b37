"""The settings of a denoiser: names of models, prompts, numbers. Imports neither torch nor diffusers."""

from __future__ import annotations

from dataclasses import dataclass

from stages.diffusion.attention_backends import BACKENDS, Kernel


@dataclass(frozen=True, kw_only=True)
class ModelNames:
    """What to load, and onto which device.

    `vae`: a VAE to use in place of the model's own. `loras`: files and scales. `embeddings`: files and the words for
    them.
    """

    model_id: str
    controlnets: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    vae: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    embeddings: tuple[tuple[str, str], ...] = ()
    allow_pickle: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a denoising step depends on besides the frames. `scales`: one per ControlNet that is loaded."""

    models: ModelNames
    scales: tuple[float, ...] = ()
    prompt: str = ""
    negative_prompt: str = ""
    guidance: float = 1.0
    steps: int = 1
    strength: float = 1.0
    seed: int = 0
    scheduler: str = "ddim"
    tiled: bool = False
    low_vram: bool = False
    compiled: bool = False

    @property
    def passes(self) -> int:
        """How often a frame goes through the networks for guidance, unless a model takes guidance as an input."""
        return 1 if self.guidance == 1 else 2


@dataclass
class Batches:
    """How much goes through the networks at once, and how. The denoiser reduces it when the device runs out of memory.

    `size`: groups of frames, or images. `passes_apart`: run the passes of guidance one after the other. `backend`: the
    attention backend.
    """

    size: int = 1
    passes_apart: bool = False
    backend: str = "auto"

    @property
    def kernel(self) -> Kernel:
        """The implementation of attention."""
        return BACKENDS[self.backend]().attend

    def reduce(self, items: int, passes: int) -> bool:
        """Halve a batch of `items` that was too large, or separate `passes` of guidance; False if neither is left."""
        if items > 1:
            self.size = items // 2
        elif passes > 1 and not self.passes_apart:
            self.passes_apart = True
        else:
            return False
        return True
