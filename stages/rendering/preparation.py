"""The tasks before the first denoising step: load and measure the networks, and encode and noise images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.base.cache import FrameCache
from stages.base.overlap import Reads
from stages.rendering.plan import SOURCE_LATENTS
from stages.rendering.tasks import RenderTask, StepTask, one_by_one


@dataclass
class LoadTask(RenderTask):
    """Load the networks and try the attention backend. Raises DiffSynthError if that fails."""

    def reads(self, start: int, stop: int) -> Reads:
        """The control maps that the first step reads first. They stay in memory."""
        first = StepTask(self.plan, 0)
        opening = first.reads(0, min(first.chunk, len(self.plan.keys)))
        return [(name, frames) for name, frames in opening if name in self.plan.control_maps]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        self.denoiser.try_backend(self.plan.backend)


@dataclass
class ChooseBackendTask(RenderTask):
    """Note which attention backend is the fastest."""

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        plan = self.plan
        seconds = self.denoiser.measure_backends(*plan.tile_size, len(plan.pattern), plan.joint)
        chosen = min(seconds, key=lambda name: seconds[name], default="sdpa")
        cache["rendered"].note(attention_backend=chosen, attention_seconds={**seconds})


@dataclass
class MeasureTask(RenderTask):
    """Measure how many groups of frames can go through the networks at once."""

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        plan = self.plan
        backend = plan.noted_backend(cache)
        fitting = self.denoiser.fitting_batch(*plan.tile_size, len(plan.pattern), plan.joint, backend)
        cache["rendered"].note(batch_size=fitting)


@dataclass
class EncodeReferencesTask(RenderTask):
    """Encode the reference images. Every step adds noise to their clean latents."""

    def reads(self, start: int, stop: int) -> Reads:
        return [("references", range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        images = cache["references"].read(range(start, stop))
        with self.batches(cache) as batches:
            cache["reference_latents"].write(start, self.denoiser.encode(images, batches).numpy())


@dataclass
class EncodeFramesTask(RenderTask):
    """Encode the frames, which masks keep in part."""

    def reads(self, start: int, stop: int) -> Reads:
        return [("frames", self.plan.keys[start:stop])]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        with self.batches(cache) as batches:
            frames = self.rendered_frames(cache, "frames").read(range(start, stop))
            cache[SOURCE_LATENTS].write(start, self.denoiser.encode(frames, batches).numpy())


@dataclass
class NoiseFramesTask(RenderTask):
    """Encode the frames and add the noise of the first timestep, for img2img."""

    def reads(self, start: int, stop: int) -> Reads:
        frames = range(start, stop)
        return [*one_by_one(self.plan.start, self.plan.keys[start:stop]), *self.noise.reads(frames)]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        denoiser, frames = self.denoiser, self.rendered_frames(cache, self.plan.start)
        with self.batches(cache) as batches:
            clean = denoiser.encode(np.stack([frames[index] for index in range(start, stop)]), batches)
            noise = self.noise.draw(cache, range(start, stop), 0)
            latents = denoiser.sampler.add_noise(clean, noise, denoiser.sampler.timesteps[0])
            cache[self.plan.latents(-1)].write(start, latents.numpy())
