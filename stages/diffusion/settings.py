"""The settings of a denoiser: names of models, prompts, numbers. Imports neither torch nor diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

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


Mix: TypeAlias = tuple[int, int, float]
"""The prompts of a frame: the indexes of two of them, and the share of the second in their embeddings."""

Span: TypeAlias = tuple[float, float]
"""A part of the steps, as shares of them: 0 is their beginning, 1 their end."""

ALL: Span = (0.0, 1.0)


def is_within(span: Span, step: int, steps: int) -> bool:
    """Whether a step lies within a span, from its beginning to its end."""
    return step / steps >= span[0] and (step + 1) / steps <= span[1]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a denoising step depends on besides the frames.

    Args:
        models: What to load.
        scales: The scale of each ControlNet that is loaded.
        spans: The steps in which each ControlNet runs. By default, all.
        guess: Whether ControlNets run in the positive pass alone, and weaker in outer layers.
        prompts: The prompts that frames can have.
        regions: Prompts of parts of frames.
        negative_prompt: The negative prompt.
        weighted: Whether prompts give weights to their parts.
        clip_skip: The layer of the text encoder, counted from the last, which is 1.
        guidance: Scale of classifier-free guidance.
        guided: The steps with guidance.
        steps: Number of steps of the whole schedule.
        strength: The share of them, at the end, that is executed.
        seed: Random seed.
        scheduler: Name of the sampler.
        tiled: Whether the VAE works in tiles.
        low_vram: Whether idle networks are offloaded to CPU memory.
        compiled: Whether networks are compiled.
    """

    models: ModelNames
    scales: tuple[float, ...] = ()
    spans: tuple[Span, ...] = ()
    guess: bool = False
    prompts: tuple[str, ...] = ("",)
    regions: tuple[str, ...] = ()
    negative_prompt: str = ""
    weighted: bool = False
    clip_skip: int = 1
    guidance: float = 1.0
    guided: Span = ALL
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

    def is_guided(self, step: int) -> bool:
        """Whether an executed step, counted from 0, has a negative pass."""
        return self.passes == 2 and is_within(self.guided, step, self.executed)

    def runs(self, net: int, step: int) -> bool:
        """Whether a ControlNet runs in an executed step."""
        return not self.spans or is_within(self.spans[net], step, self.executed)

    @property
    def executed(self) -> int:
        """Number of executed steps."""
        return int(self.steps * self.strength)


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
