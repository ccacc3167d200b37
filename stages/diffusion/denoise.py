"""The noise of every frame, predicted with its neighbours in view: DiffSynth's loop, one step at a time.

DiffSynth, arXiv 2308.03463, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from stages.diffusion import LATENT_CHANNELS, LATENT_FACTOR
from stages.diffusion.loading import ModelNames, Networks, load_networks
from stages.diffusion.sampler import Sampler


@dataclass(frozen=True)
class Settings:
    """All that a denoising step depends on besides the frames. `scales`: one for each of the ControlNets loaded."""

    models: ModelNames
    scales: tuple[float, ...]
    prompt: str
    negative_prompt: str
    guidance: float
    steps: int
    strength: float
    seed: int
    batch_size: int


@lru_cache(maxsize=1)
def denoiser(settings: Settings) -> Denoiser:
    """The denoiser of these settings, loaded once a process."""
    return Denoiser(load_networks(settings.models), settings)


class Denoiser:
    """Loaded networks and encoded prompts; turns images into latents, latents into noise predictions and back."""

    def __init__(self, networks: Networks, settings: Settings):
        self.networks, self.settings = networks, settings
        self.sampler = Sampler(networks.alphas, settings.steps, settings.strength)
        self.guided = settings.guidance != 1
        with torch.inference_mode():
            self.text = encode_prompts(networks, settings.prompt, settings.negative_prompt if self.guided else None)

    def initial_noise(self, height: int, width: int) -> torch.Tensor:
        """The noise that all frames start from, float32 [1, 4, height/8, width/8]."""
        shape = (1, LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR)
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(self.settings.seed))

    def encode(self, images: np.ndarray) -> torch.Tensor:
        """The clean latents of images: the VAE's mean, scaled."""
        vae = self.networks.vae

        def one(batch: np.ndarray) -> torch.Tensor:
            return vae.encode(self._pixels(batch) * 2 - 1).latent_dist.mean * vae.config["scaling_factor"]

        return torch.cat([latents.float().cpu() for latents in self._batched(one, images)])

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """The images of clean latents."""
        vae = self.networks.vae

        def one(batch: torch.Tensor) -> torch.Tensor:
            return vae.decode(self._to_device(batch) / vae.config["scaling_factor"]).sample

        images = [self._bytes(batch) for batch in self._batched(one, latents)]
        return np.concatenate(images)

    def predict_noise(
        self,
        latents: torch.Tensor,
        maps: Sequence[np.ndarray],
        groups: Sequence[Sequence[int]],
        own: int,
        timestep: int,
    ) -> torch.Tensor:
        """The noise in every group's own frame, float32 [len(groups), 4, h, w].

        `latents` float32 [F, 4, h, w] and `maps` (one array uint8 [F, H, W, 3] a ControlNet) are of all frames that the
        groups name; each group lists, as indexes into them, the frames that attend to each other, and its member at
        `own` is the frame that is asked for.
        """

        def one(batch: Sequence[Sequence[int]]) -> torch.Tensor:
            members = [frame for group in batch for frame in group]
            return self._guided_noise(latents[members], [net_maps[members] for net_maps in maps], own, timestep)

        return torch.cat([noise.float().cpu() for noise in self._batched(one, groups)])

    def _guided_noise(self, latents: torch.Tensor, maps: list[np.ndarray], own: int, timestep: int) -> torch.Tensor:
        """Both passes of classifier-free guidance (arXiv 2207.12598, eq. 6) in one batch, the negative one first."""
        passes = 2 if self.guided else 1
        frames = len(latents)
        batch = self._to_device(latents).repeat(passes, 1, 1, 1)
        text = self.text.repeat_interleave(frames, dim=0)
        residuals = self._control_residuals(batch, text, maps, timestep)
        predicted = self.networks.unet(
            batch,
            timestep,
            text,
            down_block_additional_residuals=residuals[:-1] or None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
            return_dict=False,
        )[0].float()
        group = self.settings.models.group
        asked = predicted.reshape(passes, frames // group, group, *predicted.shape[1:])[:, :, own]
        if self.guided:
            negative, positive = asked
            guided = negative + self.settings.guidance * (positive - negative)
        else:
            guided = asked[0]
        if self.networks.prediction == "epsilon":
            return guided
        own_latents = batch[:frames].reshape(frames // group, group, *batch.shape[1:])[:, own].float()
        return self.sampler.noise_of_v(own_latents, guided, timestep).to(guided.dtype)

    def _control_residuals(
        self, latents: torch.Tensor, text: torch.Tensor, maps: list[np.ndarray], timestep: int
    ) -> list[torch.Tensor]:
        """What the ControlNets add to the U-Net's skip connections and, last, to its middle."""
        total: list[torch.Tensor] = []
        for controlnet, scale, net_maps in zip(self.networks.controlnets, self.settings.scales, maps, strict=True):
            pixels = self._pixels(net_maps)
            frames = len(pixels)
            # A net that pools over space (shuffle) says nothing of layout: the negative pass gets zeros from it.
            pooled = bool(controlnet.config["global_pool_conditions"]) and self.guided
            run = slice(frames, None) if pooled else slice(None)
            down, middle = controlnet(
                latents[run],
                timestep,
                text[run],
                pixels.repeat(len(latents[run]) // frames, 1, 1, 1),
                conditioning_scale=scale,
                return_dict=False,
            )
            residuals = [*down, middle]
            if pooled:
                residuals = [torch.cat([torch.zeros_like(residual), residual]) for residual in residuals]
            total = [a + b for a, b in zip(total, residuals, strict=True)] if total else residuals
        return total

    def _batched(self, function: Callable, items: Any) -> list[torch.Tensor]:
        size = self.settings.batch_size
        with torch.inference_mode():
            return [function(items[start : start + size]) for start in range(0, len(items), size)]

    def _to_device(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.to(self.networks.device, self.networks.dtype)

    def _pixels(self, images: np.ndarray) -> torch.Tensor:
        """[K, 3, H, W] in 0..1 on the device."""
        pixels = torch.from_numpy(images).to(self.networks.device).permute(0, 3, 1, 2)
        return (pixels.float() / 255).to(self.networks.dtype)

    @staticmethod
    def _bytes(pixels: torch.Tensor) -> np.ndarray:
        """uint8 [K, H, W, 3] of pixels in -1..1, rounded to the nearest."""
        levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round()
        return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def encode_prompts(networks: Networks, prompt: str, negative: str | None) -> torch.Tensor:
    """Embeddings [passes, tokens, channels], the negative prompt's first, if there is one.

    A prompt longer than the encoder's window is cut into windows, each encoded alone. The shorter of the two repeats
    its windows until it is as long as the other: keys that are all repeated equally often do not change attention.
    """
    texts = [text for text in (negative, prompt) if text is not None]
    encoded = [_encode_windows(networks, text) for text in texts]
    longest = math.lcm(*(tokens.shape[1] for tokens in encoded))
    return torch.cat([tokens.repeat(1, longest // tokens.shape[1], 1) for tokens in encoded])


def _encode_windows(networks: Networks, text: str) -> torch.Tensor:
    window = networks.text_encoder.config.max_position_embeddings
    words = networks.tokenizer(text, truncation=False).input_ids
    ids = [vector for word in words for vector in networks.inverted.get(word, (word,))]
    ids += [networks.tokenizer.pad_token_id] * (-len(ids) % window)
    windows = networks.text_encoder(torch.tensor(ids, device=networks.device).reshape(-1, window))[0]
    return windows.reshape(1, len(ids), -1)
