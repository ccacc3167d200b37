"""Encode and decode frames, and predict their noise with cross-frame attention.

DiffSynth, arXiv 2308.03463, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TypeVar, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from stages.base.arrays import Images
from stages.diffusion import LATENT_FACTOR
from stages.diffusion.attention import Joint, Kept, Regions, Shared, View, Words, example_inputs
from stages.diffusion.attention_backends import Inputs, measure_backends, seconds_on_gpu, try_backend
from stages.diffusion.compilation import compile_blocks
from stages.diffusion.guidance import embed_guidance, takes_guidance
from stages.diffusion.loading import Networks, load_networks
from stages.diffusion.noise import draw
from stages.diffusion.prompts import Prompts, Text
from stages.diffusion.sampler import SAMPLERS
from stages.diffusion.settings import Batches, Mix, Settings

MEMORY_SHARE = 0.8  # of a GPU's free memory
MAX_BATCH = 16  # groups; more are not faster
CPU_LATENTS = 4096  # latents per batch; more are not faster on a CPU

Items = TypeVar("Items", Images, torch.Tensor, Sequence["Frames"], Sequence[Sequence[int]])


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames on their way through the networks.

    Args:
        latents: float32 [F, 4, h, w].
        maps: Control maps, uint8 [F, H, W, 3] per ControlNet.
        mixes: The prompts of each frame. Empty if there is only one prompt.
        regions: How much each latent belongs to each region, float32 [F, R, h, w]. None without regions.
    """

    latents: torch.Tensor
    maps: Sequence[Images]
    mixes: Sequence[Mix] = ()
    regions: torch.Tensor | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Frames)
            and torch.equal(self.latents, other.latents)
            and all(np.array_equal(a, b) for a, b in zip(self.maps, other.maps, strict=True))
            and self.mixes == other.mixes
            and (self.regions is None or torch.equal(self.regions, cast(torch.Tensor, other.regions)))
        )

    def pick(self, indexes: Sequence[int]) -> Frames:
        """Return some of the frames, without their maps."""
        mixes = [self.mixes[index] for index in indexes] if self.mixes else ()
        return Frames(self.latents[indexes], (), mixes, None if self.regions is None else self.regions[indexes])

    def crop(self, rows: slice, columns: slice) -> Frames:
        """Return a part of the frames, given in latents."""
        top, bottom, left, right = (LATENT_FACTOR * at for at in (rows.start, rows.stop, columns.start, columns.stop))
        maps = [images[:, top:bottom, left:right] for images in self.maps]
        regions = None if self.regions is None else self.regions[..., rows, columns]
        return Frames(self.latents[..., rows, columns], maps, self.mixes, regions)


@lru_cache(maxsize=1)
def denoiser(settings: Settings) -> Denoiser:
    """Return the denoiser with these settings, loaded once per process."""
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
        self.sampler = sampler(networks.alphas, settings.steps, settings.strength)
        self.passes = settings.passes
        for network in [networks.text_encoder] if settings.low_vram else networks.all():
            network.to(networks.device)
        with torch.inference_mode():
            self.prompts = Prompts(networks, settings)
        if settings.tiled:
            networks.vae.enable_tiling()
        if settings.compiled:
            compile_blocks(networks.unet, *networks.controlnets)
        self.anchors: tuple[Frames, float, str, int, bool, Kept] | None = None  # the latest, and their keys

    @property
    def device_name(self) -> str:
        """The model of the GPU that the networks run on, or the name of another device."""
        device = self.networks.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def try_backend(self, name: str) -> None:
        """Raise DiffSynthError if this attention backend cannot run here."""
        try_backend(name, self._attention_inputs(tokens=64, group=1, joint=True))

    def measure_backends(self, height: int, width: int, group: int, joint: bool) -> dict[str, float]:
        """Return the seconds that attention to frames of this size takes on a GPU with each backend. Elsewhere, none.

        Args:
            height: Height of the frames.
            width: Width of the frames.
            group: Frames per group.
            joint: Whether attention is joint or shared.
        """
        if self.networks.device.type != "cuda":
            return {}
        tokens = height * width // LATENT_FACTOR**2
        with torch.inference_mode():
            inputs = self._attention_inputs(tokens=tokens, group=group, joint=joint)
            seconds = measure_backends(inputs, seconds_on_gpu)
        del inputs
        torch.cuda.empty_cache()
        return seconds

    def _attention_inputs(self, *, tokens: int, group: int, joint: bool) -> Inputs:
        like = torch.empty(0, device=self.networks.device, dtype=self.networks.dtype)
        return example_inputs(self.networks.unet, tokens=tokens, group=group, joint=joint, like=like)

    def fitting_batch(self, height: int, width: int, group: int, joint: bool = True, backend: str = "auto") -> int:
        """Return how many groups, or images, of this size to process at once.

        On a GPU, as many as fit into its memory, by the memory that one takes. Elsewhere, as many as use the CPU well.

        Args:
            height: Height of the images.
            width: Width of the images.
            group: Frames per group.
            joint: Whether groups go through the networks.
            backend: The attention backend.
        """
        device = self.networks.device
        if device.type != "cuda":
            latents_per_group = self.passes * group * height * width // LATENT_FACTOR**2
            return min(max(CPU_LATENTS // latents_per_group, 1), MAX_BATCH)
        latents = self.initial_noise(height, width).repeat(group, 1, 1, 1)
        maps = [np.zeros((group, height, width, 3), np.uint8)] * len(self.networks.controlnets)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        if joint:
            batches = Batches(backend=backend)
            self.predict_noise(Frames(latents, maps), [range(group)], 0, self.sampler.timesteps[0], batches)
        self.decode(latents[:1], Batches())
        taken = torch.cuda.max_memory_allocated(device) - before
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return min(max(int(MEMORY_SHARE * free / taken), 1), MAX_BATCH)

    def initial_noise(self, height: int, width: int) -> torch.Tensor:
        """Return the noise of the first frame and of references, float32 [1, 4, height/8, width/8]."""
        return draw(self.settings.seed, 0, height, width)

    def encode(self, images: Images, batches: Batches, predicted: bool = False) -> torch.Tensor:
        """Return the clean latents of images, the scaled mean of the VAE.

        `predicted` images are those of a step before the last. They use the tiny autoencoder, if there is one.
        """
        tiny = self.networks.tiny_vae if predicted else None

        def one(batch: Images) -> torch.Tensor:
            pixels = self._pixels(batch) * 2 - 1
            if tiny is not None:
                return tiny.encode(pixels).latents * _scaling(tiny)
            return vae.encode(pixels).latent_dist.mean * _scaling(vae)

        vae = self.networks.vae
        self._load(tiny or vae)
        return torch.cat([latents.float().cpu() for latents in self._batched(one, images, batches)])

    def decode(self, latents: torch.Tensor, batches: Batches, predicted: bool = False) -> Images:
        """Return the images of clean latents. `predicted` as for `encode`."""
        vae = (self.networks.tiny_vae if predicted else None) or self.networks.vae

        def one(batch: torch.Tensor) -> torch.Tensor:
            return vae.decode(self._to_device(batch) / _scaling(vae)).sample

        self._load(vae)
        images = [self._bytes(batch) for batch in self._batched(one, latents, batches)]
        return np.concatenate(images)

    def predict_noise(
        self, frames: Frames, groups: Sequence[Sequence[int]], own: int, timestep: float, batches: Batches
    ) -> torch.Tensor:
        """Predict the noise of one frame per group with joint attention, float32 [len(groups), 4, h, w].

        Args:
            frames: The frames.
            groups: Indexes of frames that attend to each other; all groups have the same length.
            own: Which member of each group to predict.
            timestep: The timestep of the latents.
            batches: How many groups to process at once.
        """
        self._load_denoisers()
        embedded = self._embed(frames.maps, batches)

        def one(batch: Sequence[Sequence[int]]) -> torch.Tensor:
            members = [frame for group in batch for frame in group]
            of_batch, maps = frames.pick(members), [part[members] for part in embedded]
            predicted = [
                self._predict(of_batch.latents, maps, timestep, text, Joint(len(groups[0]), own, batches.kernel, words))
                for text, words in self._texts(of_batch, timestep, batches)
            ]
            asked = torch.cat(predicted).unflatten(1, (len(batch), -1))[:, :, own]
            return self._guided_noise(asked, frames.latents[[group[own] for group in batch]], timestep)

        return torch.cat([noise.float().cpu() for noise in self._batched(one, groups, batches)])

    def predict_shared_noise(
        self, frames: Frames, sources: Sequence[Sequence[int]], anchors: Frames, timestep: float, batches: Batches
    ) -> torch.Tensor:
        """Predict the noise of all frames of a window with shared attention, float32 [F, 4, h, w].

        Args:
            frames: The F frames of the window.
            sources: For each frame, the frames that it attends to: indexes into `frames` or, from F on, `anchors`.
            anchors: Frames that are the same in all windows and attend to each other. They go through the networks
                once per timestep.
            timestep: The timestep of the latents.
            batches: Whether to separate the passes of guidance.
        """
        self._load_denoisers()
        embedded, seen = self._embed(frames.maps, batches), torch.tensor(sources, device=self.networks.device)

        def one(batch: Sequence[Frames]) -> torch.Tensor:
            latents, predicted = batch[0].latents, []
            for text, words in self._texts(batch[0], timestep, batches):
                anchored = self._keys_of(anchors, timestep, text, batches)
                view = Shared(seen, anchored, kernel=batches.kernel, words=words)
                predicted.append(self._predict(latents, embedded, timestep, text, view))
            return self._guided_noise(torch.cat(predicted), latents, timestep)

        return self._batched(one, [frames], batches)[0].float().cpu()

    def _keys_of(self, anchors: Frames, timestep: float, like: Text, batches: Batches) -> Kept:
        """Return the keys and values of anchors in all layers, in passes like those of a text. The latest are kept."""
        if not len(anchors.latents):
            return {}
        key = anchors, timestep, batches.backend, like.passes, like.positive is None
        if self.anchors is None or self.anchors[:5] != key:
            kept: Kept = {}
            everyone = torch.arange(len(anchors.latents), device=self.networks.device)
            texts = self._texts(anchors, timestep, batches)
            text, words = next(found for found in texts if (found[0].positive is None) == (like.positive is None))
            view = Shared(everyone.expand(len(everyone), -1), keep=kept, kernel=batches.kernel, words=words)
            self._predict(anchors.latents, self._embed(anchors.maps, batches), timestep, text, view)
            self.anchors = *key, kept
        return self.anchors[5]

    def _texts(self, frames: Frames, timestep: float, batches: Batches) -> list[tuple[Text, Words]]:
        """Return the text of each pass of guidance, or one for both, and what is special about it."""
        guided = self.settings.is_guided(self._step(timestep))
        texts = self.prompts.texts(frames.mixes, guided, batches.passes_apart)
        return [(text, Words(text.fixed, self._regions(frames, text))) for text in texts]

    def _regions(self, frames: Frames, text: Text) -> Regions | None:
        if frames.regions is None or text.positive is None:
            return None
        return Regions(self.prompts.regions, self._to_device(frames.regions))

    def _step(self, timestep: float) -> int:
        return self.sampler.timesteps.index(timestep)

    def _embed(self, maps: Sequence[Images], batches: Batches) -> list[torch.Tensor]:
        """Return the output of each ControlNet's first layers for its maps, [F, channels, h, w], on the device."""

        def one(embed: torch.nn.Module, batch: Images) -> torch.Tensor:
            embedded: torch.Tensor = embed(self._pixels(batch))
            return embedded

        return [
            torch.cat(self._batched(partial(one, embed), net_maps, batches))
            for embed, net_maps in zip(self.networks.map_embeddings, maps, strict=True)
        ]

    def _predict(
        self, latents: torch.Tensor, embedded: list[torch.Tensor], timestep: float, text: Text, view: View
    ) -> torch.Tensor:
        """Return the output of the U-Net for each pass of `text`, float32 [passes, F, 4, h, w]."""
        batch = self._to_device(latents).repeat(text.passes, 1, 1, 1)
        residuals = self._control_residuals(batch, embedded, timestep, text, view)
        predicted = self.networks.unet(
            batch,
            timestep,
            text.rows,
            down_block_additional_residuals=residuals[:-1] or None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
            cross_attention_kwargs={"view": view},
            return_dict=False,
        )[0]
        passes: torch.Tensor = predicted.float().unflatten(0, (text.passes, -1))
        return passes

    def _control_residuals(
        self, latents: torch.Tensor, embedded: list[torch.Tensor], timestep: float, text: Text, view: View
    ) -> list[torch.Tensor]:
        """Return what the ControlNets add to the U-Net's skip connections and, last, to its middle block."""
        total: list[torch.Tensor] = []
        nets = zip(self.networks.controlnets, self.settings.scales, embedded, strict=True)
        for net, (controlnet, scale, maps) in enumerate(nets):
            # A ControlNet that pools over space (shuffle) has no layout: it adds zeros to the negative pass.
            alone = self.settings.guess or bool(controlnet.config["global_pool_conditions"])
            if not self.settings.runs(net, self._step(timestep)) or (alone and text.positive is None):
                continue
            frames = len(maps)
            run = latents[-frames:] if alone else latents
            down, middle = controlnet(
                run,
                timestep,
                text.positive if alone and text.positive is not None else text.rows,
                maps.repeat(len(run) // frames, 1, 1, 1),
                conditioning_scale=scale,
                guess_mode=self.settings.guess,
                cross_attention_kwargs={"view": view},
                return_dict=False,
            )
            residuals = [*down, middle]
            if alone and text.passes == 2:
                residuals = [torch.cat([torch.zeros_like(residual), residual]) for residual in residuals]
            total = [a + b for a, b in zip(total, residuals, strict=True)] if total else residuals
        return total

    def _guided_noise(self, predicted: torch.Tensor, latents: torch.Tensor, timestep: float) -> torch.Tensor:
        """Apply classifier-free guidance (arXiv 2207.12598, eq. 6) to predictions [passes, F, 4, h, w]."""
        if len(predicted) == 2:
            negative, positive = predicted[0], predicted[1]
            guided = negative + self.settings.guidance * (positive - negative)
        else:
            guided = predicted[0]
        if self.networks.prediction == "epsilon":
            return guided
        return self.sampler.noise_of_v(self._to_device(latents).float(), guided, timestep)

    def _batched(self, function: Callable[[Items], torch.Tensor], items: Items, batches: Batches) -> list[torch.Tensor]:
        """Apply a function to batches of items, reducing the batch size when the device runs out of memory."""
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
                torch.cuda.empty_cache()  # after the except block, since the error keeps tensors alive
        return results

    def _load_denoisers(self) -> None:
        networks = self.networks
        self._load(networks.unet, *networks.controlnets, *networks.map_embeddings)

    def _load(self, *needed: torch.nn.Module) -> None:
        """With `low_vram`, move these networks to the device and offload the others to CPU memory."""
        if not self.settings.low_vram:
            return
        for network in self.networks.all():
            if not any(network is other for other in needed):
                network.to("cpu")
        for network in needed:
            network.to(self.networks.device)

    def _to_device(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.to(self.networks.device, self.networks.dtype)

    def _pixels(self, images: Images) -> torch.Tensor:
        """Return images as [K, 3, H, W], 0 to 1, on the device."""
        pixels = torch.from_numpy(images).to(self.networks.device).permute(0, 3, 1, 2)
        return (pixels.float() / 255).to(self.networks.dtype)

    @staticmethod
    def _bytes(pixels: torch.Tensor) -> Images:
        """Return pixels from -1 to 1 as images, rounded to the nearest level."""
        levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round()
        images: Images = levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return images


def _scaling(vae: AutoencoderKL | AutoencoderTiny) -> float:
    return float(vae.config["scaling_factor"])
