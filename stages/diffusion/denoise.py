"""The noise of every frame, predicted with its neighbours in view: DiffSynth's loop, one step at a time.

DiffSynth, arXiv 2308.03463, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from stages.diffusion import LATENT_CHANNELS, LATENT_FACTOR
from stages.diffusion.attention import Joint, Kept, Shared, View
from stages.diffusion.compilation import compile_blocks
from stages.diffusion.guidance import embed_guidance, takes_guidance
from stages.diffusion.loading import Networks, load_networks
from stages.diffusion.sampler import SAMPLERS
from stages.diffusion.settings import Batches, Settings

FILL = 0.8  # of a GPU's free memory is used
MOST_AT_ONCE = 16  # groups; more are no faster
WORTH_WHILE = 4096  # latents: matrices of so many rows use a processor well


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
        self.texts_apart = self.text.split(1)
        self.positive = self.text[-1:]
        if settings.tiled:
            networks.vae.enable_tiling()
        if settings.compiled:
            compile_blocks(networks.unet, *networks.controlnets)
        self.anchors: tuple[Frames, float, torch.Tensor, Kept] | None = None  # the last ones, and their keys

    def fitting_batch(self, height: int, width: int, group: int, joint: bool = True) -> int:
        """How many groups, or images, of this size to process at once.

        On a GPU that is as many as it has room for, measured on one; elsewhere as many as make a batch worthwhile.
        `group`: frames in a group. `joint`: whether groups go through the networks.
        """
        device = self.networks.device
        if device.type != "cuda":
            latents_a_group = self.passes * group * height * width // LATENT_FACTOR**2
            return min(max(WORTH_WHILE // latents_a_group, 1), MOST_AT_ONCE)
        latents = self.initial_noise(height, width).repeat(group, 1, 1, 1)
        maps = [np.zeros((group, height, width, 3), np.uint8)] * len(self.networks.controlnets)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        if joint:
            self.predict_noise(Frames(latents, maps), [range(group)], 0, self.sampler.timesteps[0], Batches())
        self.decode(latents[:1], Batches())
        taken = torch.cuda.max_memory_allocated(device) - before
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return min(max(int(FILL * free / taken), 1), MOST_AT_ONCE)

    def initial_noise(self, height: int, width: int) -> torch.Tensor:
        """The noise that all frames start from, float32 [1, 4, height/8, width/8]."""
        shape = (1, LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR)
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(self.settings.seed))

    def encode(self, images: np.ndarray, batches: Batches, predicted: bool = False) -> torch.Tensor:
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
        return torch.cat([latents.float().cpu() for latents in self._batched(one, images, batches)])

    def decode(self, latents: torch.Tensor, batches: Batches, predicted: bool = False) -> np.ndarray:
        """The images of clean latents."""
        vae = (self.networks.tiny_vae if predicted else None) or self.networks.vae

        def one(batch: torch.Tensor) -> torch.Tensor:
            return vae.decode(self._to_device(batch) / vae.config["scaling_factor"]).sample

        self._bring(vae)
        images = [self._bytes(batch) for batch in self._batched(one, latents, batches)]
        return np.concatenate(images)

    def predict_noise(
        self, frames: Frames, groups: Sequence[Sequence[int]], own: int, timestep: float, batches: Batches
    ) -> torch.Tensor:
        """The noise in every group's own frame (`attention`: joint), float32 [len(groups), 4, h, w].

        Each group lists, as indexes into `frames`, those that attend to each other; all are of one length. The noise
        of the member at `own` is returned.
        """
        self._bring_denoisers()
        latents, embedded = frames.latents, self._embed(frames.maps, batches)
        view = Joint(len(groups[0]), own)

        def one(batch: Sequence[Sequence[int]]) -> torch.Tensor:
            members = [frame for group in batch for frame in group]
            inputs = latents[members], [part[members] for part in embedded]
            predicted = torch.cat([self._predict(*inputs, timestep, text, view) for text in self._texts(batches)])
            asked = predicted.unflatten(1, (len(batch), -1))[:, :, own]
            return self._guided_noise(asked, latents[[group[own] for group in batch]], timestep)

        return torch.cat([noise.float().cpu() for noise in self._batched(one, groups, batches)])

    def predict_shared_noise(
        self, frames: Frames, sources: Sequence[Sequence[int]], anchors: Frames, timestep: float, batches: Batches
    ) -> torch.Tensor:
        """The noise in every frame of a window (`attention`: shared), float32 [F, 4, h, w].

        `sources` lists for each frame those that it sees, as indexes into `frames` and, from F on, into `anchors`:
        frames that are the same for all windows, and see each other. They go through the networks once per timestep.
        """
        self._bring_denoisers()
        embedded, seen = self._embed(frames.maps, batches), torch.tensor(sources, device=self.networks.device)

        def one(batch: Sequence[Frames]) -> torch.Tensor:
            latents, predicted = batch[0].latents, []
            for text in self._texts(batches):
                view = Shared(seen, self._keys_of(anchors, timestep, text, batches))
                predicted.append(self._predict(latents, embedded, timestep, text, view))
            return self._guided_noise(torch.cat(predicted), latents, timestep)

        return self._batched(one, [frames], batches)[0].float().cpu()

    def _keys_of(self, anchors: Frames, timestep: float, text: torch.Tensor, batches: Batches) -> Kept:
        """The keys and values of these frames, which see each other, in all layers. The last result is remembered."""
        if not len(anchors.latents):
            return {}
        if self.anchors is None or self.anchors[:2] != (anchors, timestep) or self.anchors[2] is not text:
            kept: Kept = {}
            everyone = torch.arange(len(anchors.latents), device=self.networks.device)
            view = Shared(everyone.expand(len(everyone), -1), keep=kept)
            self._predict(anchors.latents, self._embed(anchors.maps, batches), timestep, text, view)
            self.anchors = anchors, timestep, text, kept
        return self.anchors[3]

    def _texts(self, batches: Batches) -> tuple[torch.Tensor, ...]:
        """The embeddings of those passes of guidance that go through the networks in one batch."""
        return self.texts_apart if batches.passes_apart else (self.text,)

    def _embed(self, maps: Sequence[np.ndarray], batches: Batches) -> list[torch.Tensor]:
        """What the ControlNets' first layers make of control maps: [F, channels, h, w] each, on the device."""

        def one(embed: torch.nn.Module, batch: np.ndarray) -> torch.Tensor:
            embedded: torch.Tensor = embed(self._pixels(batch))
            return embedded

        return [
            torch.cat(self._batched(partial(one, embed), net_maps, batches))
            for embed, net_maps in zip(self.networks.map_embeddings, maps, strict=True)
        ]

    def _predict(
        self, latents: torch.Tensor, embedded: list[torch.Tensor], timestep: float, text: torch.Tensor, view: View
    ) -> torch.Tensor:
        """What the U-Net gives for each pass of `text`, float32 [passes, F, 4, h, w]."""
        batch = self._to_device(latents).repeat(len(text), 1, 1, 1)
        residuals = self._control_residuals(batch, embedded, timestep, text, view)
        predicted = self.networks.unet(
            batch,
            timestep,
            text,
            down_block_additional_residuals=residuals[:-1] or None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
            cross_attention_kwargs={"view": view},
            return_dict=False,
        )[0]
        return predicted.float().unflatten(0, (len(text), -1))

    def _control_residuals(
        self, latents: torch.Tensor, embedded: list[torch.Tensor], timestep: float, text: torch.Tensor, view: View
    ) -> list[torch.Tensor]:
        """What the ControlNets add to the U-Net's skip connections and, last, to its middle."""
        total: list[torch.Tensor] = []
        for controlnet, scale, maps in zip(self.networks.controlnets, self.settings.scales, embedded, strict=True):
            frames = len(maps)
            # A net that pools over space (shuffle) says nothing of layout: the negative pass gets zeros from it.
            pooled = bool(controlnet.config["global_pool_conditions"]) and self.passes == 2
            if pooled and text is self.texts_apart[0]:
                continue
            run = latents[-frames:] if pooled else latents
            down, middle = controlnet(
                run,
                timestep,
                self.positive if pooled else text,
                maps.repeat(len(run) // frames, 1, 1, 1),
                conditioning_scale=scale,
                cross_attention_kwargs={"view": view},
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

    def _batched(self, function: Callable[[Any], torch.Tensor], items: Any, batches: Batches) -> list[torch.Tensor]:
        """`function` of all items, a batch at a time; smaller batches when the device runs out of memory."""
        results: list[torch.Tensor] = []
        start = 0
        with torch.inference_mode():
            while start < len(items):
                batch = items[start : start + batches.size]
                try:
                    results.append(function(batch))
                    start += len(batch)
                    continue
                except torch.OutOfMemoryError:
                    if not batches.reduce(len(batch), self.passes):
                        raise
                torch.cuda.empty_cache()  # not before: the error holds on to what had been computed
        return results

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
