"""The plan of a render, made once and read by all of its tasks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from stages.base.cache import ArraySpec, FrameCache
from stages.base.json_types import Values
from stages.base.scenes import scene_of
from stages.diffusion import LATENT_CHANNELS, LATENT_FACTOR
from stages.diffusion.layout import guidance_is_input
from stages.diffusion.settings import Batches, Mix, Settings
from stages.masks import Mask
from stages.rendering.noise import ENDS, ORIGINS, noise_arrays
from stages.rendering.pattern import Item
from stages.rendering.schedule import Schedule, mix_at
from stages.video import Selection

# Prefixes of the arrays of a step. Each step has its own.
STEP_LATENTS, STEP_CLEAN, STEP_PREDICTED = "step_latents", "step_clean", "step_predicted"
MASK, REGION_MASKS, SOURCE_LATENTS = "mask", "region_masks", "source_latents"
ARRAYS = (
    f"{STEP_LATENTS}/*",
    f"{STEP_CLEAN}/*",
    f"{STEP_PREDICTED}/*",
    "latents",
    "reference_latents",
    MASK,
    f"{REGION_MASKS}/*",
    SOURCE_LATENTS,
    ORIGINS,
    ENDS,
    "keyframes",
    "rendered",
    "unseen",
)
"""What rendering can make."""
MOST_AT_ONCE = {STEP_LATENTS: 1, STEP_CLEAN: 2, STEP_PREDICTED: 1}  # not counting the final latents


@dataclass(frozen=True, kw_only=True)
class RenderPlan:
    """Everything that the tasks of a render need, except what is in the cache.

    Steps count from 0, and step -1 is the start. A step never overwrites what another step wrote.

    Args:
        settings: Models, prompts and numbers of the denoiser.
        pattern: The frames that each frame attends to.
        joint: Whether these frames form groups (`attention`: joint). Otherwise, each goes through the networks once.
        size: (height, width) of the frames.
        frames: Number of frames of the video.
        cuts: The first frame of each scene after the first.
        keys: Numbers of the frames that are rendered. Arrays of latents have one item for each.
        references: Number of reference images.
        maps: For each ControlNet that runs, the names of the arrays with its maps of the frames and of the references.
        start: The array of the frames that img2img starts from.
        given: Arrays that exist for this plan alone, and that no step after the last one reads.
        tile: Side in pixels of the tiles in which noise is predicted. None: frames are not divided.
        steps: Number of denoising steps.
        multistep: Whether the sampler uses the clean latents of the previous step.
        noise: Which noise frames get: same, frame or warped.
        schedule: The frames from which prompts apply, if there are several.
        mask: Which parts of frames are restyled. None: all.
        regions: The mask of each region that has a prompt of its own, and the share of that prompt.
        used: The used frames of the video, and its frame rate, None before it has been decoded.
        smoother: Name and options of the smoother, None if no step is smoothed.
        smoother_interval: Every n-th step is smoothed, starting with the first.
        unsmoothed: Number of steps at the end that are not smoothed.
        keep_steps: Whether to keep the latents of all steps.
        batch_size: Groups of frames that go through the networks at once, None until it has been measured.
        backend: The attention backend; auto until it has been measured.
    """

    settings: Settings
    pattern: tuple[Item, ...]
    joint: bool
    size: tuple[int, int]
    frames: int
    cuts: tuple[int, ...]
    keys: tuple[int, ...]
    references: int
    maps: tuple[tuple[str, str], ...]
    start: str
    given: tuple[str, ...]
    tile: int | None
    steps: int
    multistep: bool
    noise: str
    schedule: Schedule
    mask: Mask | None
    regions: tuple[tuple[Mask, float], ...]
    used: tuple[Selection, Fraction | None]
    smoother: tuple[str, Values] | None
    smoother_interval: int
    unsmoothed: int
    keep_steps: bool
    batch_size: int | None
    backend: str

    @property
    def tile_size(self) -> tuple[int, int]:
        """(height, width) of what goes through the networks at once."""
        height, width = self.size
        return (height, width) if self.tile is None else (min(height, self.tile), min(width, self.tile))

    def passes(self, step: int) -> int:
        """How often a frame goes through the networks in a step."""
        models = self.settings.models
        is_input = guidance_is_input(models.model_id, models.allow_pickle)
        return 2 if self.settings.is_guided(step) and not is_input else 1

    def mixes(self, frames: Sequence[int]) -> list[Mix]:
        """The prompts of rendered frames, by their places in `keys`. Empty if there is only one prompt."""
        if not self.schedule:
            return []
        numbers = [self.keys[frame] for frame in frames]
        scenes = (scene_of(number, self.frames, self.cuts) for number in numbers)
        return [
            mix_at(self.schedule, number, scene, self.frames) for number, scene in zip(numbers, scenes, strict=True)
        ]

    @property
    def img2img(self) -> bool:
        """Whether rendering starts from the frames themselves."""
        return self.settings.strength < 1

    @property
    def key_cuts(self) -> tuple[int, ...]:
        """The cuts in arrays of latents: the place in `keys` at which each scene after the first begins."""
        return tuple(bisect_left(self.keys, cut) for cut in self.cuts)

    def scene(self, key: int) -> range:
        """The places in `keys` of the rendered frames of the scene that contains the one at place `key`."""
        return scene_of(key, len(self.keys), self.key_cuts)

    def is_smoothed(self, step: int) -> bool:
        """Whether the predicted frames of this step are smoothed."""
        within = step % self.smoother_interval == 0 and step < self.steps - self.unsmoothed
        return self.smoother is not None and within

    # --- arrays -----------------------------------------------------------------------------------------

    def latents(self, step: int) -> str:
        """The array of latents that a step writes. The last step writes the final latents."""
        return "latents" if step == self.steps - 1 else f"{STEP_LATENTS}/{step + 1:04}"

    def clean(self, step: int) -> str:
        """The array of the clean latents of a step, after smoothing."""
        return f"{STEP_CLEAN}/{step + 1:04}"

    def predicted(self, step: int) -> str:
        """The array of the predicted frames of a smoothed step."""
        return f"{STEP_PREDICTED}/{step + 1:04}"

    @property
    def control_maps(self) -> list[str]:
        """The arrays of control maps of the frames and of the references."""
        return [name for pair in self.maps for name in pair]

    @property
    def decoded(self) -> str:
        """The array into which the final latents are decoded."""
        return "rendered" if len(self.keys) == self.frames else "keyframes"

    def keeps_clean(self, step: int) -> bool:
        """Whether the next step uses the clean latents of this one."""
        return self.multistep and step < self.steps - 1

    @property
    def _read_by_all_steps(self) -> list[str]:
        warped = [ORIGINS, ENDS] if self.noise == "warped" else []
        sources = [SOURCE_LATENTS] if self.mask else []
        regions = [self.region_mask(index) for index in range(len(self.regions))]
        references = ["reference_latents"] if self.references else []
        return [*references, *warped, *sources, *regions, *self.given]

    def region_mask(self, index: int) -> str:
        """The array of the masks of a region, one value per latent."""
        return f"{REGION_MASKS}/{index}"

    def drops(self, step: int) -> tuple[str, ...]:
        """The arrays that are no longer needed once a step is complete."""
        has_start = step > 0 or self.img2img
        return (
            *([self.latents(step - 1)] if has_start and not self.keep_steps else []),
            *([self.clean(step - 1)] if step > 0 and self.keeps_clean(step - 1) else []),
            *([self.predicted(step)] if self.is_smoothed(step) else []),
            *(self._read_by_all_steps if step == self.steps - 1 else []),
        )

    def arrays(self) -> list[ArraySpec]:
        """All arrays that the render makes."""
        count, keys = self.frames, len(self.keys)
        latents = (keys, LATENT_CHANNELS, *(side // LATENT_FACTOR for side in self.size))
        steps = range(self.steps)
        arrays = [ArraySpec(self.latents(step), latents, "float32") for step in ([-1] if self.img2img else [])]
        arrays += [ArraySpec(self.latents(step), latents, "float32") for step in steps]
        arrays += [ArraySpec(self.clean(step), latents, "float32") for step in steps if self.keeps_clean(step)]
        images = (keys, *self.size, 3)
        arrays += [ArraySpec(self.predicted(step), images, "uint8") for step in steps if self.is_smoothed(step)]
        if self.references:
            arrays.append(ArraySpec("reference_latents", (self.references, *latents[1:]), "float32"))
        if self.noise == "warped":
            arrays += noise_arrays(keys, self.key_cuts, self.size)
        if self.mask:
            arrays.append(ArraySpec(MASK, (count, *self.size), "uint8"))
            arrays.append(ArraySpec(SOURCE_LATENTS, latents, "float32"))
        grid = (count, *latents[2:])
        arrays += [ArraySpec(self.region_mask(index), grid, "uint8") for index in range(len(self.regions))]
        arrays.append(ArraySpec("rendered", (count, *self.size, 3), "uint8"))
        if keys < count:
            arrays += [ArraySpec("keyframes", images, "uint8"), ArraySpec("unseen", (count,), "float32")]
        return arrays

    def most_at_once(self) -> list[ArraySpec]:
        """The arrays that are on the disk at the same time, at the peak."""
        limits = {
            **MOST_AT_ONCE,
            REGION_MASKS: len(self.regions),
            **({STEP_LATENTS: self.steps + 1} if self.keep_steps else {}),
        }
        found: list[ArraySpec] = []
        for spec in self.arrays():
            group = spec.name.partition("/")[0]
            if sum(other.name.partition("/")[0] == group for other in found) < limits.get(group, 1):
                found.append(spec)
        return found

    # --- batches ----------------------------------------------------------------------------------------

    def batches(self, cache: FrameCache) -> Batches:
        """The batch sizes and attention backend of the job, or the measured ones, reduced if memory ran out earlier.

        All processes and a resumed render read them from the cache, since with others numbers round differently.
        """
        noted: Values = cache["rendered"].attrs
        reduced = noted.get("reduced", {})
        size = self.batch_size or noted["batch_size"]
        passes_apart = reduced.get("passes_apart", False)
        return Batches(min(size, reduced.get("batch_size", size)), passes_apart, self.noted_backend(cache))

    def noted_backend(self, cache: FrameCache) -> str:
        """The attention backend that was asked for or measured."""
        noted: Values = cache["rendered"].attrs
        return noted["attention_backend"] if self.backend == "auto" else self.backend
