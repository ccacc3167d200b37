"""The noise of every frame, predicted with its neighbours in view: DiffSynth's loop, one step at a time.

DiffSynth, arXiv 2308.03463, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from stages.base.errors import DiffSynthError
from stages.diffusion import LATENT_CHANNELS, LATENT_FACTOR
from stages.diffusion.attention import Joint, Shared
from stages.diffusion.compilation import compile_blocks
from stages.diffusion.guidance import embed_guidance, takes_guidance
from stages.diffusion.loading import ModelNames, Networks, load_networks
from stages.diffusion.sampler import SAMPLERS

FILL = 0.8  # of a GPU's free memory is used
MOST_AT_ONCE = 16  # groups; more are no faster
WORTH_WHILE = 4096  # latents: matrices of so many rows use a processor well


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
    scheduler: str = "ddim"
    tiled: bool = False
    low_vram: bool = False
    compiled: bool = False


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames as networks take them: `latents` float32 [F, 4, h, w], `maps` one uint8 [F, H, W, 3] a ControlNet."""

    latents: torch.Tensor
    maps: Sequence[np.ndarray]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Frames)
            and torch.equal(self.latents, other.latents)
            and all(np.array_equal(a, b) for a, b in zip(self.maps, other.maps, strict=True))
        )


@lru_cache(maxsize=1)
def denoiser(settings: Settings) -> Denoiser:
    """The denoiser of these settings, loaded once a process."""
    networks = load_networks(settings.models)
    if takes_guidance(networks.unet):
        embed_guidance(networks.unet, settings.guidance)
        settings = replace(settings, guidance=1.0)  # no second pass
    return Denoiser(networks, settings)


class Denoiser:
    """Loaded networks and encoded prompts; turns images into latents, latents into noise predictions and back."""

    def __init__(self, networks: Networks, settings: Settings):
        self.networks, self.settings = networks, settings
        sampler = SAMPLERS[settings.scheduler]
        self.sampler = sampler(networks.alphas, settings.steps, settings.strength, settings.seed)
        self.passes = 1 if settings.guidance == 1 else 2
        for network in [networks.text_encoder] if settings.low_vram else networks.all():
            network.to(networks.device)
        with torch.inference_mode():
            negative = settings.negative_prompt if self.passes == 2 else None
            self.text = encode_prompts(networks, settings.prompt, negative)
        self.texts = (self.text,)  # those that go through the networks in one batch; apart when memory runs out
        self.positive = self.text[-1:]
        self.batch_size = self.asked_batch_size = 1  # groups or images at once; halved when memory runs out
        if settings.tiled:
            networks.vae.enable_tiling()
        if settings.compiled:
            compile_blocks(networks.unet, *networks.controlnets)
        self.anchors: tuple[Any, ...] | None = None  # whose keys and values the networks keep, and of when

    def use_batches(self, size: int, passes_apart: bool = False) -> None:
        """So many groups or images go through the networks at once, or as many of these as there is memory for.
        `passes_apart`: those with and without the prompt go through one after the other."""
        if size != self.asked_batch_size:
            self.batch_size = self.asked_batch_size = size
        if passes_apart and len(self.texts) < self.passes:
            self.texts = self.text.split(1)

    @property
    def reduced(self) -> dict[str, Any] | None:
        """What is used in place of the batches asked for since memory ran out; None if it has not."""
        passes_apart = len(self.texts) > 1
        if self.batch_size == self.asked_batch_size and not passes_apart:
            return None
        return {"batch_size": self.batch_size, "passes_apart": passes_apart}

    def fitting_batch(self, height: int, width: int) -> int:
        """How many groups, or images, of this size to take at once: on a GPU as many as it has room for, by what one
        takes; elsewhere as many as make a batch worth while."""
        device, group = self.networks.device, self.settings.models.group
        if device.type != "cuda":
            latents_a_group = self.passes * group * height * width // LATENT_FACTOR**2
            return min(max(WORTH_WHILE // latents_a_group, 1), MOST_AT_ONCE)
        latents = self.initial_noise(height, width).repeat(group, 1, 1, 1)
        maps = [np.zeros((group, height, width, 3), np.uint8)] * len(self.networks.controlnets)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        if isinstance(self.networks.view, Joint):
            self.predict_noise(Frames(latents, maps), [range(group)], 0, self.sampler.timesteps[0])
        self.decode(latents[:1])
        taken = torch.cuda.max_memory_allocated(device) - before
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return min(max(int(FILL * free / taken), 1), MOST_AT_ONCE)

    def initial_noise(self, height: int, width: int) -> torch.Tensor:
        """The noise that all frames start from, float32 [1, 4, height/8, width/8]."""
        shape = (1, LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR)
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(self.settings.seed))

    def encode(self, images: np.ndarray, predicted: bool = False) -> torch.Tensor:
        """The clean latents of images: the VAE's mean, scaled. `predicted`: of images of a step that is not the last,
        for which a tiny autoencoder does, if there is one."""
        tiny = self.networks.tiny_vae if predicted else None

        def one(batch: np.ndarray) -> torch.Tensor:
            pixels = self._pixels(batch) * 2 - 1
            if tiny is not None:
                return tiny.encode(pixels).latents * tiny.config["scaling_factor"]
            return vae.encode(pixels).latent_dist.mean * vae.config["scaling_factor"]

        vae = self.networks.vae
        self._bring(tiny or vae)
        return torch.cat([latents.float().cpu() for latents in self._batched(one, images)])

    def decode(self, latents: torch.Tensor, predicted: bool = False) -> np.ndarray:
        """The images of clean latents."""
        vae = (self.networks.tiny_vae if predicted else None) or self.networks.vae

        def one(batch: torch.Tensor) -> torch.Tensor:
            return vae.decode(self._to_device(batch) / vae.config["scaling_factor"]).sample

        self._bring(vae)
        images = [self._bytes(batch) for batch in self._batched(one, latents)]
        return np.concatenate(images)

    def predict_noise(self, frames: Frames, groups: Sequence[Sequence[int]], own: int, timestep: float) -> torch.Tensor:
        """The noise in every group's own frame (`attention`: joint), float32 [len(groups), 4, h, w].

        Each group lists, as indexes into `frames`, those that attend to each other; its member at `own` is the one that
        is asked for.
        """
        self._bring_denoisers()
        view = self.networks.view
        if not isinstance(view, Joint):
            raise DiffSynthError("these networks were loaded for shared attention")
        view.own = own
        latents, embedded = frames.latents, self._embed(frames.maps)

        def one(batch: Sequence[Sequence[int]]) -> torch.Tensor:
            members = [frame for group in batch for frame in group]
            inputs = latents[members], [part[members] for part in embedded]
            predicted = torch.cat([self._predict(*inputs, timestep, text) for text in self.texts])
            asked = predicted.unflatten(1, (len(batch), -1))[:, :, own]
            return self._guided_noise(asked, latents[[group[own] for group in batch]], timestep)

        return torch.cat([noise.float().cpu() for noise in self._batched(one, groups)])

    def predict_shared_noise(
        self, frames: Frames, sources: Sequence[Sequence[int]], anchors: Frames, timestep: float
    ) -> torch.Tensor:
        """The noise in every frame of a window (`attention`: shared), float32 [F, 4, h, w].

        `sources` lists for each frame those that it sees, as indexes into `frames` and, from F on, into `anchors`:
        frames that are the same for all windows, and see each other. They go through the networks once a timestep.
        """
        self._bring_denoisers()
        view = self.networks.view
        if not isinstance(view, Shared):
            raise DiffSynthError("these networks were loaded for joint attention")
        device, embedded = self.networks.device, self._embed(frames.maps)

        def one(batch: Sequence[Frames]) -> torch.Tensor:
            predicted = []
            for text in self.texts:
                self._keep_anchors(anchors, timestep, text)
                view.sources, view.keeping = torch.tensor(sources, device=device), False
                view.anchored = len(anchors.latents) > 0
                predicted.append(self._predict(batch[0].latents, embedded, timestep, text))
            return self._guided_noise(torch.cat(predicted), batch[0].latents, timestep)

        return self._batched(one, [frames])[0].float().cpu()

    def _keep_anchors(self, anchors: Frames, timestep: float, text: torch.Tensor) -> None:
        """Lets the networks keep the keys and values of these frames, which see each other."""
        view = self.networks.view
        if not isinstance(view, Shared) or not len(anchors.latents) or self.anchors == (anchors, timestep, id(text)):
            return
        everyone = torch.arange(len(anchors.latents), device=self.networks.device)
        view.sources, view.keeping = everyone.expand(len(everyone), -1), True
        self._predict(anchors.latents, self._embed(anchors.maps), timestep, text)
        self.anchors = anchors, timestep, id(text)

    def _embed(self, maps: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """What the ControlNets' first layers make of control maps: [F, channels, h, w] each, on the device."""
        return [
            torch.cat(self._batched(lambda batch, embed=embed: embed(self._pixels(batch)), net_maps))
            for embed, net_maps in zip(self.networks.map_embeddings, maps, strict=True)
        ]

    def _predict(
        self, latents: torch.Tensor, embedded: list[torch.Tensor], timestep: float, text: torch.Tensor
    ) -> torch.Tensor:
        """What the U-Net gives for each pass of `text`, float32 [passes, F, 4, h, w]."""
        batch = self._to_device(latents).repeat(len(text), 1, 1, 1)
        residuals = self._control_residuals(batch, embedded, timestep, text)
        predicted = self.networks.unet(
            batch,
            timestep,
            text,
            down_block_additional_residuals=residuals[:-1] or None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
            return_dict=False,
        )[0]
        return predicted.float().unflatten(0, (len(text), -1))

    def _control_residuals(
        self, latents: torch.Tensor, embedded: list[torch.Tensor], timestep: float, text: torch.Tensor
    ) -> list[torch.Tensor]:
        """What the ControlNets add to the U-Net's skip connections and, last, to its middle."""
        total: list[torch.Tensor] = []
        for controlnet, scale, maps in zip(self.networks.controlnets, self.settings.scales, embedded, strict=True):
            frames = len(maps)
            # A net that pools over space (shuffle) says nothing of layout: the negative pass gets zeros from it.
            pooled = bool(controlnet.config["global_pool_conditions"]) and self.passes == 2
            if pooled and len(self.texts) == 2 and text is self.texts[0]:
                continue
            run = latents[-frames:] if pooled else latents
            down, middle = controlnet(
                run,
                timestep,
                self.positive if pooled else text,
                maps.repeat(len(run) // frames, 1, 1, 1),
                conditioning_scale=scale,
                return_dict=False,
            )
            residuals = [*down, middle]
            if pooled and len(text) == 2:
                residuals = [torch.cat([torch.zeros_like(residual), residual]) for residual in residuals]
            total = [a + b for a, b in zip(total, residuals, strict=True)] if total else residuals
        return total

    def _guided_noise(self, predicted: torch.Tensor, latents: torch.Tensor, timestep: float) -> torch.Tensor:
        """Classifier-free guidance (arXiv 2207.12598, eq. 6) on predictions [passes, F, 4, h, w] for `latents`."""
        if self.passes == 2:
            negative, positive = predicted
            guided = negative + self.settings.guidance * (positive - negative)
        else:
            guided = predicted[0]
        if self.networks.prediction == "epsilon":
            return guided
        return self.sampler.noise_of_v(self._to_device(latents).float(), guided, timestep)

    def _batched(self, function: Callable, items: Any) -> list[torch.Tensor]:
        """`function` of all items, `batch_size` at a time, and of less when the device's memory runs out."""
        results: list[torch.Tensor] = []
        start = 0
        with torch.inference_mode():
            while start < len(items):
                batch = items[start : start + self.batch_size]
                try:
                    results.append(function(batch))
                    start += len(batch)
                    continue
                except torch.OutOfMemoryError:
                    if not self._take_less(len(batch)):
                        raise
                torch.cuda.empty_cache()  # not before: the error holds on to what had been computed
        return results

    def _take_less(self, items: int) -> bool:
        """Half of what was too much: of the batch's items or, where it held but one, of the passes of guidance."""
        if items > 1:
            self.batch_size = items // 2
        elif len(self.texts) < self.passes:
            self.texts = self.text.split(1)
        else:
            return False
        return True

    def _bring_denoisers(self) -> None:
        networks = self.networks
        self._bring(networks.unet, *networks.controlnets, *networks.map_embeddings)

    def _bring(self, *needed: torch.nn.Module) -> None:
        """With `low_vram`, these networks are brought onto the device, and the others wait on the host."""
        if not self.settings.low_vram:
            return
        for network in self.networks.all():
            if not any(network is other for other in needed):
                network.to("cpu")
        for network in needed:
            network.to(self.networks.device)

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
