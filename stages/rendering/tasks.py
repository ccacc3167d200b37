"""The tasks of denoising steps. Each loads the networks once per process and takes everything else from the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from stages.base.arrays import Images
from stages.base.cache import FrameCache
from stages.base.engine import Task
from stages.base.json_types import Values
from stages.base.overlap import Reads
from stages.base.scenes import split as scenes_of
from stages.compositing import WHITE
from stages.diffusion import LATENT_FACTOR
from stages.diffusion.sampler import SAMPLERS
from stages.diffusion.settings import Batches, Mix
from stages.diffusion.tiles import predict_in_tiles
from stages.masks import latents_inside
from stages.rendering.noise import FrameNoise
from stages.rendering.pattern import Item, attended_frames, ordered, shared_window, split
from stages.rendering.plan import MASK, SOURCE_LATENTS, RenderPlan
from stages.tasks import ChunkSmoother, Picked, masked, reads_of_masked

SHARED_PIXELS = 16 * 512 * 960  # of the frames that go through the networks together with shared attention
SHARED_CHUNK = 4, 16  # minimum and maximum number of these frames
FIRST_FRAMES = 2  # of a video, which a smoother would wait for before it reads ahead
SAMPLES = "frames through the networks"  # in what tasks say of their work

if TYPE_CHECKING:  # importing torch takes seconds, so tasks import it when they run
    import torch

    from stages.diffusion.denoise import Denoiser, Frames


@dataclass
class RenderTask(Task):
    """Base class of the tasks of this stage."""

    plan: RenderPlan
    _batches: Batches | None = field(default=None, init=False, repr=False)

    @property
    def denoiser(self) -> Denoiser:
        from stages.diffusion.denoise import denoiser

        return denoiser(self.plan.settings)

    @property
    def noise(self) -> FrameNoise:
        """The noise of the frames."""
        return FrameNoise(self.plan)

    def reads_of_background(self, frames: Sequence[int]) -> Reads:
        """What `masked` reads."""
        numbers = [self.plan.keys[frame] for frame in frames]
        return reads_of_masked("frames", MASK if self.plan.mask else None, numbers)

    def masked(self, cache: FrameCache, images: Images, frames: Sequence[int]) -> Images:
        """Show the source in images of rendered frames where the mask is black."""
        mask = MASK if self.plan.mask else None
        return masked(cache, images, "frames", mask, [self.plan.keys[frame] for frame in frames])

    def rendered_frames(self, cache: FrameCache, name: str) -> Picked:
        """The frames of an array that are rendered."""
        return Picked(cache[name], self.plan.keys)

    @contextmanager
    def batches(self, cache: FrameCache) -> Iterator[Batches]:
        """Batch sizes for a chunk. If memory runs out, the reduced sizes are stored for later chunks."""
        batches = self._batches = self._batches or self._first_batches(cache)
        before = replace(batches)
        yield batches
        if batches != before:
            cache["rendered"].note(reduced={"batch_size": batches.size, "passes_apart": batches.passes_apart})

    def _first_batches(self, cache: FrameCache) -> Batches:
        """Batch sizes for the first chunk. Notes which device computes, since results of others can differ."""
        attributes: Values = cache["rendered"].attrs
        device, noted = self.denoiser.device_name, attributes.get("devices", [])
        if device not in noted:
            cache["rendered"].note(devices=[*noted, device])
        return self.plan.batches(cache)

    def close(self) -> None:
        self._batches = None


def one_by_one(name: str, frames: Sequence[int]) -> Reads:
    """The reads of single frames of an array. A smoother reads the same ones, so they are kept in memory once."""
    return [(name, (frame,)) for frame in frames]


def shared_chunk(height: int, width: int) -> int:
    """Return how many frames of this size are predicted together with shared attention."""
    least, most = SHARED_CHUNK
    return min(max(SHARED_PIXELS // (height * width), least), most)


@lru_cache(2)
def samples(pattern: tuple[Item, ...], joint: bool, count: int, cuts: tuple[int, ...], size: int) -> int:
    """Return how many frames go through the networks in a step. One that is in several groups counts several times.

    Args:
        pattern: The frames that each frame attends to.
        joint: Whether these form groups.
        count: Number of frames.
        cuts: The first frame of each scene after the first.
        size: Number of frames of a chunk.
    """
    if joint:
        return len(pattern) * count
    scenes = scenes_of(count, cuts)
    windows = (
        shared_window(pattern, scene[k : k + size], scene) for scene in scenes for k in range(len(scene))[::size]
    )
    return sum(len(frames) + len(anchors) for frames, anchors, _ in windows)


@dataclass
class StepTask(RenderTask):
    """A denoising step, or the first half of a smoothed step, which ends with predicted frames."""

    step: int

    @property
    def chunk(self) -> int:
        return super().chunk if self.plan.joint else shared_chunk(*self.plan.tile_size)

    @property
    def kind(self) -> str:
        return "predict a smoothed step" if self.plan.is_smoothed(self.step) else "denoising step"

    def reads(self, start: int, stop: int) -> Reads:
        chunk = range(start, stop)
        smoothed = self.plan.is_smoothed(self.step)
        after = self.reads_of_background(chunk) if smoothed else self.reads_of_next(chunk)
        return [*self._reads_of_noise(chunk), *after]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        denoiser, frames = self.denoiser, range(start, stop)
        sampler, timestep = denoiser.sampler, denoiser.sampler.timesteps[self.step]
        with self.batches(cache) as batches:
            latents, noise = self._predict(cache, frames, timestep, batches)
            clean = sampler.clean(latents, noise, timestep)
            if self.plan.is_smoothed(self.step):
                predicted = self.masked(cache, denoiser.decode(clean, batches, predicted=True), frames)
                cache[self.plan.predicted(self.step)].write(start, predicted)
            else:
                self.write_next(cache, frames, latents, clean)

    def work(self, frames: int) -> dict[str, float]:
        plan = self.plan
        once = samples(plan.pattern, plan.joint, len(plan.keys), plan.key_cuts, self.chunk)
        return {SAMPLES: plan.passes(self.step) * once}

    def write_next(self, cache: FrameCache, frames: range, latents: torch.Tensor, clean: torch.Tensor) -> None:
        """Compute the next latents from the clean ones and write them."""
        sampler = self.denoiser.sampler
        before = self.clean_before(cache, frames) if self.plan.multistep else None
        timestep = sampler.timesteps[self.step]
        fresh = self.noise.draw(cache, frames, self.step + 1) if sampler.adds_noise else None
        following = sampler.step(latents, clean, timestep, before, fresh)
        if self.plan.mask is not None:
            clean, following = self._keep_outside(cache, frames, clean, following, sampler.after(timestep))
        if self.plan.keeps_clean(self.step):
            cache[self.plan.clean(self.step)].write(frames.start, clean.numpy())
        cache[self.plan.latents(self.step)].write(frames.start, following.numpy())

    def reads_of_next(self, frames: Sequence[int]) -> Reads:
        """What `write_next` reads."""
        plan, adds_noise = self.plan, SAMPLERS[self.plan.settings.scheduler].adds_noise
        masks = [(SOURCE_LATENTS, frames), (MASK, [plan.keys[frame] for frame in frames])] if plan.mask else []
        noise = self.noise.reads(frames) if plan.mask or adds_noise else []
        return [*self.reads_of_clean(frames), *masks, *noise]

    def _keep_outside(
        self, cache: FrameCache, frames: range, clean: torch.Tensor, following: torch.Tensor, after: float | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace clean and following latents outside the mask by those of the source, with the frames' noise."""
        import torch

        source = torch.from_numpy(cache[SOURCE_LATENTS].read(frames))
        inside = latents_inside(self.rendered_frames(cache, MASK).read(frames), LATENT_FACTOR)
        mask = torch.from_numpy(inside)[:, None]
        noised = source
        if after is not None:
            noised = self.denoiser.sampler.add_noise(source, self.noise.draw(cache, frames, 0), after)
        return torch.where(mask, clean, source), torch.where(mask, following, noised)

    def clean_before(self, cache: FrameCache, frames: Sequence[int]) -> torch.Tensor | None:
        """Return the clean latents of the previous step, after smoothing. None for the first step."""
        import torch

        return torch.from_numpy(cache[self.plan.clean(self.step - 1)].read(frames)) if self.step else None

    def reads_of_clean(self, frames: Sequence[int]) -> Reads:
        """What `clean_before` reads."""
        return [(self.plan.clean(self.step - 1), frames)] if self.plan.multistep and self.step else []

    def latents(self, cache: FrameCache, frames: Sequence[int]) -> torch.Tensor:
        """What the step starts from, float32 [len(frames), 4, h, w]."""
        import torch

        if self._starts:
            return self.noise.draw(cache, frames, 0)
        return torch.from_numpy(cache[self.plan.latents(self.step - 1)].read(frames))

    def reads_of_latents(self, frames: Sequence[int]) -> Reads:
        """What `latents` reads."""
        return self.noise.reads(frames) if self._starts else [(self.plan.latents(self.step - 1), frames)]

    @property
    def _starts(self) -> bool:
        """Whether the step starts from noise alone."""
        return self.step == 0 and not self.plan.img2img

    def _predict(
        self, cache: FrameCache, chunk: range, timestep: float, batches: Batches
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents of the chunk and their predicted noise, both float32 [len(chunk), 4, h, w]."""
        pattern, scene = self.plan.pattern, self.plan.scene(chunk.start)
        if not self.plan.joint:
            frames, anchors, sources = shared_window(pattern, chunk, scene)
            inputs, fixed = (self._inputs(cache, items, timestep) for items in (frames, anchors))
            noise = predict_in_tiles(
                lambda part, kept: self.denoiser.predict_shared_noise(part, sources, kept, timestep, batches),
                self.plan.tile,
                inputs,
                fixed,
            )
            places = [frames.index(frame) for frame in chunk]
            return inputs.latents[places], noise[places]
        groups = attended_frames(pattern, chunk, scene)
        members = ordered(item for group in groups for item in group)
        inputs = self._inputs(cache, members, timestep)
        indexes = [[members.index(item) for item in group] for group in groups]
        own = pattern.index(0)
        noise = predict_in_tiles(
            lambda part: self.denoiser.predict_noise(part, indexes, own, timestep, batches), self.plan.tile, inputs
        )
        return inputs.latents[[members.index(frame) for frame in chunk]], noise

    def _reads_of_noise(self, chunk: range) -> Reads:
        """What `_predict` reads."""
        pattern, scene = self.plan.pattern, self.plan.scene(chunk.start)
        if self.plan.joint:
            return self._reads_of_inputs(ordered(chain(*attended_frames(pattern, chunk, scene))))
        frames, anchors, _ = shared_window(pattern, chunk, scene)
        return chain(self._reads_of_inputs(frames), self._reads_of_inputs(anchors))

    def _inputs(self, cache: FrameCache, items: Sequence[Item], timestep: float) -> Frames:
        """Return latents and control maps of frames, followed by those of references noised to this timestep."""
        import torch

        from stages.diffusion.denoise import Frames

        frames, references = split(items)
        latents = self.latents(cache, frames)
        maps = [self.rendered_frames(cache, name).read(frames) for name, _ in self.plan.maps]
        if references:
            noise = self.denoiser.initial_noise(*self.plan.size)
            clean = torch.from_numpy(cache["reference_latents"].read(references))
            latents = torch.cat([latents, self.denoiser.sampler.add_noise(clean, noise, timestep)])
            of_references = [cache[name].read(references) for _, name in self.plan.maps]
            maps = [np.concatenate(pair) for pair in zip(maps, of_references, strict=True)]
        mixes = self._mixes(frames, references)
        return Frames(latents, maps, mixes, self._regions(cache, frames, len(references)))

    def _mixes(self, frames: Sequence[int], references: Sequence[int]) -> list[Mix]:
        """The prompts of frames, and of references, which have the earliest. Empty if there is only one prompt."""
        if not self.plan.schedule:
            return []
        earliest = self.plan.schedule[0][1]
        return [*self.plan.mixes(frames), *[(earliest, earliest, 0.0)] * len(references)]

    def _regions(self, cache: FrameCache, frames: Sequence[int], references: int) -> torch.Tensor | None:
        """How much each latent belongs to each region, [frames and references, regions, h, w]. References have none."""
        import torch

        if not self.plan.regions:
            return None
        scales = [scale for _, scale in self.plan.regions]
        names = [self.plan.region_mask(index) for index in range(len(scales))]
        masks = np.stack([self.rendered_frames(cache, name).read(frames) for name in names], axis=1) / WHITE
        weights = torch.from_numpy(masks * np.array(scales)[:, None, None]).float()
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.cat([weights, weights.new_zeros((references, *weights.shape[1:]))])

    def _reads_of_inputs(self, items: Sequence[Item]) -> Reads:
        """What `_inputs` reads."""
        frames, references = split(items)
        numbers = [self.plan.keys[frame] for frame in frames]
        regions = [self.plan.region_mask(index) for index in range(len(self.plan.regions))]
        of_references = ["reference_latents", *(name for _, name in self.plan.maps)] if references else []
        return [
            *self.reads_of_latents(frames),
            *((name, numbers) for name in (*(name for name, _ in self.plan.maps), *regions)),
            *((name, references) for name in of_references),
        ]


@dataclass
class SmoothStepTask(StepTask):
    """The second half of a smoothed step: smooth the predicted frames and compute the next latents."""

    smoother: ChunkSmoother

    @property
    def chunk(self) -> int:
        """As many frames as the networks take at once, in whole chunks of the smoother."""
        return self.smoother.chunk * max(super().chunk // self.smoother.chunk, 1)

    @property
    def warm_up(self) -> int:
        return -(-self.smoother.warm_up // self.chunk)

    @property
    def kind(self) -> str:
        return "smooth a step"

    def work(self, frames: int) -> dict[str, float]:
        return self.smoother.work(frames)

    def reads(self, start: int, stop: int) -> Reads:
        """What `run` reads, except for most frames of both videos, which the smoother reads ahead itself."""
        first = range(min(stop, FIRST_FRAMES)) if start == 0 else range(0)
        return [
            *one_by_one("frames", self.plan.keys[: len(first)]),
            *one_by_one(self.plan.predicted(self.step), first),
            *self.reads_of_latents(range(start, stop)),
            *self.reads_of_next(range(start, stop)),
            *self.reads_of_background(range(start, stop)),
        ]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        scene, frames, size = self.plan.scene(start), range(start, stop), self.smoother.chunk
        guides = Picked(cache["frames"], self.plan.keys[scene.start : scene.stop])
        styles = Picked(cache[self.plan.predicted(self.step)], scene)
        parts = [
            self.smoother.smooth(guides, styles, start=part, stop=min(part + size, stop), first=scene.start)
            for part in frames[::size]
        ]
        with self.batches(cache) as batches:
            smoothed = self.masked(cache, np.concatenate(parts), frames)
            clean = self.denoiser.encode(smoothed, batches, predicted=True)
            self.write_next(cache, frames, self.latents(cache, frames), clean)

    def close(self) -> None:
        super().close()
        self.smoother.close()


@dataclass
class DecodeLatentsTask(RenderTask):
    """Decode the final latents into images."""

    def reads(self, start: int, stop: int) -> Reads:
        return [("latents", range(start, stop)), *self.reads_of_background(range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        import torch

        latents = torch.from_numpy(cache["latents"].read(range(start, stop)))
        with self.batches(cache) as batches:
            images = self.denoiser.decode(latents, batches)
            cache[self.plan.decoded].write(start, self.masked(cache, images, range(start, stop)))
