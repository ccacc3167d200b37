"""Frames + control maps → latents → rendered frames: the denoising loop over a whole video.

A step is one phase over all frames, from one array of latents to the other, so that every frame sees its neighbours
at the same timestep. A smoothing step is two phases: predict clean frames, then deflicker them and go on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.base.cache import ArraySpec, FrameArray, FrameCache
from stages.base.engine import Footage, Options, Phase, Plan, Reporter, Run, Stage, Task
from stages.base.errors import UsageError
from stages.base.fingerprint import map_names
from stages.diffusion import LATENT_CHANNELS, LATENT_FACTOR
from stages.diffusion.layout import NETWORKS, check_model, vae_part
from stages.jobs.job import Job
from stages.models.weights import check_device, check_tensor_file
from stages.smoothers import CHUNKS, Smoother, bring, build

if TYPE_CHECKING:  # importing torch takes seconds; the tasks do it when they run
    import torch

    from stages.diffusion.denoise import Denoiser, Frames

CHUNK = 8  # frames; what is done again after a kill
SHARED_PIXELS = 16 * 512 * 960  # of the frames that go through the networks together where attention is shared
SHARED_CHUNK = 4, 16  # frames, at least and at most
LCM_GUIDANCE = 2  # at most, where it is no input of the model
PAINT_CHUNK = 2  # frames that are painted from keyframes

Item = int | str  # a frame by its number or an offset to it, or reference_k


class Picked(Sequence[np.ndarray]):
    """Some frames of an array."""

    def __init__(self, frames: FrameArray, keys: Sequence[int]):
        self.frames, self.keys = frames, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        return self.frames[self.keys[index]]

    def read(self, indices: Iterable[int]) -> np.ndarray:
        return self.frames.read(self.keys[index] for index in indices)


@dataclass
class RenderTask(Task):
    """What the tasks of this stage share."""

    job: Job
    options: Options
    keys: tuple[int, ...]  # the frames that are rendered; arrays of latents hold one item for each

    @property
    def denoiser(self) -> Denoiser:
        return load_denoiser(self.job, self.options)

    def note_batches(self, cache: FrameCache) -> None:
        """Note at the end of a chunk if memory ran out in it. Smaller batches round differently: a resumed render must
        take them from the same chunk on."""
        if reduced := self.denoiser.reduced:
            cache["rendered"].attrs["reduced"] = reduced

    def target(self, step: int, kind: str = "latents") -> str:
        """The array that a step writes to; they alternate, and the last is `latents`. Step -1 is the start."""
        last = len(self.denoiser.sampler.timesteps) - 1
        return kind if (last - step) % 2 == 0 else f"{kind}_other"

    def picked(self, cache: FrameCache, name: str) -> Picked:
        return Picked(cache[name], self.keys)


@dataclass
class EncodeReferencesTask(RenderTask):
    """The clean latents of the references, which every step noises anew."""

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        images = cache["references"].read(range(start, stop))
        cache["reference_latents"].write(start, self.denoiser.encode(images).numpy())
        self.note_batches(cache)


@dataclass
class NoiseFramesTask(RenderTask):
    """img2img: starts from the frames' own latents, noised to the first timestep."""

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        denoiser = self.denoiser
        clean = denoiser.encode(self.picked(cache, "frames").read(range(start, stop)))
        noise = denoiser.initial_noise(*cache["frames"].shape[1:3])
        latents = denoiser.sampler.add_noise(clean, noise, denoiser.sampler.timesteps[0])
        cache[self.target(-1)].write(start, latents.numpy())
        self.note_batches(cache)


@dataclass
class StepTask(RenderTask):
    """One denoising step, or of a smoothing step the first half, which ends in predicted frames."""

    step: int
    smoothed: bool

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        denoiser = self.denoiser
        sampler, timestep = denoiser.sampler, denoiser.sampler.timesteps[self.step]
        noise = self._predict(cache, start, stop, timestep)
        latents = self.latents(cache, range(start, stop))
        clean = sampler.clean(latents, noise, timestep)
        if self.smoothed:
            cache["predicted"].write(start, denoiser.decode(clean, predicted=True))
        else:
            self.go_on(cache, start, latents, clean)
        self.note_batches(cache)

    def latents(self, cache: FrameCache, frames: Sequence[int]) -> torch.Tensor:
        """What the step starts from, float32 [len(frames), 4, h, w]."""
        import torch

        if self.step == 0 and self.job.img2img_strength == 1:
            return self.denoiser.initial_noise(*cache["frames"].shape[1:3]).repeat(len(frames), 1, 1, 1)
        return torch.from_numpy(cache[self.target(self.step - 1)].read(frames))

    def go_on(self, cache: FrameCache, start: int, latents: torch.Tensor, clean: torch.Tensor) -> None:
        """Writes where the step leads to from these clean latents."""
        sampler, before = self.denoiser.sampler, None
        if sampler.multistep:
            before = self.clean_before(cache, range(start, start + len(clean)))
            cache[self.target(self.step, "clean")].write(start, clean.numpy())
        made = sampler.step(latents, clean, sampler.timesteps[self.step], before).numpy()
        cache[self.target(self.step)].write(start, made)
        if self.job.keep_steps:
            cache["latents_steps"].step(self.step).write(start, made)

    def clean_before(self, cache: FrameCache, frames: Sequence[int]) -> torch.Tensor | None:
        """The clean latents that the step before went on from, smoothed if it was; None: this is the first."""
        import torch

        return torch.from_numpy(cache[self.target(self.step - 1, "clean")].read(frames)) if self.step else None

    def _predict(self, cache: FrameCache, start: int, stop: int, timestep: float) -> torch.Tensor:
        pattern, count, chunk = self.job.combine_pattern, len(self.keys), range(start, stop)
        if self.job.attention == "shared":
            frames, anchors, sources = shared_window(pattern, chunk, count)
            inputs, fixed = self._inputs(cache, frames, timestep), self._inputs(cache, anchors, timestep)
            noise = self.denoiser.predict_shared_noise(inputs, sources, fixed, timestep)
            return noise[[frames.index(frame) for frame in chunk]]
        groups = attended_frames(pattern, chunk, count)
        members = _ordered(item for group in groups for item in group)
        inputs = self._inputs(cache, members, timestep)
        indexes = [[members.index(item) for item in group] for group in groups]
        return self.denoiser.predict_noise(inputs, indexes, pattern.index(0), timestep)

    def _inputs(self, cache: FrameCache, items: Sequence[Item], timestep: float) -> Frames:
        """Latents and control maps of frames and, after them, of references, noised to this timestep."""
        import torch

        from stages.diffusion.denoise import Frames

        frames = [item for item in items if isinstance(item, int)]
        references = [int(item.removeprefix("reference_")) for item in items if isinstance(item, str)]
        names = [pair for pair in map_names(cache.recorded("control") or {}) if pair is not None]
        latents = self.latents(cache, frames)
        maps = [self.picked(cache, name).read(frames) for name, _ in names]
        if references:
            noise = self.denoiser.initial_noise(*cache["references"].shape[1:3])
            clean = torch.from_numpy(cache["reference_latents"].read(references))
            latents = torch.cat([latents, self.denoiser.sampler.add_noise(clean, noise, timestep)])
            of_references = [cache[name].read(references) for _, name in names]
            maps = [np.concatenate(pair) for pair in zip(maps, of_references, strict=True)]
        return Frames(latents, maps)


@dataclass
class SmoothTask(StepTask):
    """The second half of a smoothing step: predicted frames, deflickered, set where the step leads to."""

    made: Smoother | None = field(default=None, init=False)  # for all chunks: it keeps what the next one needs, too

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        if self.made is None:
            guides, styles = self.picked(cache, "frames"), cache["predicted"]
            job = self.job
            self.made = build(job.smoother or "", job.smoother_config, guides, styles, device=job.device)
        images = self.made.smooth(start, stop)
        latents, clean = self.latents(cache, range(start, stop)), self.denoiser.encode(images, predicted=True)
        self.go_on(cache, start, latents, clean)
        self.note_batches(cache)


@dataclass
class DecodeTask(RenderTask):
    """The finished latents as images."""

    array: str

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        import torch

        latents = torch.from_numpy(cache["latents"].read(range(start, stop)))
        cache[self.array].write(start, self.denoiser.decode(latents))
        self.note_batches(cache)


@dataclass
class PaintTask(Task):
    """All frames from the keyframes."""

    keys: tuple[int, ...]
    device: str

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        from stages.smoothers.keyframes import Interpolator

        guides, keyframes = (bring(cache[name], self.device) for name in ("frames", "keyframes"))
        painter = Interpolator(guides, keyframes, self.keys)
        frames, unseen = zip(*(painter.paint(index) for index in range(start, stop)), strict=True)
        cache["rendered"].write(start, np.stack(frames))
        cache["unseen"].write(start, np.array(unseen, np.float32))


def attended_frames(pattern: Sequence[Item], frames: Sequence[int], count: int) -> list[list[Item]]:
    """For each of `frames`, what the pattern names: offsets clamped to 0..count-1, references as they are."""
    return [
        [item if isinstance(item, str) else min(max(frame + item, 0), count - 1) for item in pattern]
        for frame in frames
    ]


def shared_window(
    pattern: Sequence[Item], chunk: Sequence[int], count: int
) -> tuple[list[int], list[Item], list[list[int]]]:
    """What goes through the networks together for the frames of `chunk`: those and the frames that they see; anchors,
    which all frames of the video see; and for each of the first whom it sees, as indexes into both, one after another.

    The frames at the rim, which are there to be seen, see nothing beyond it but the nearest that is there.
    """
    anchored = [isinstance(item, str) or (item != 0 and abs(item) >= count - 1) for item in pattern]
    near = [item for item, far in zip(pattern, anchored, strict=True) if not far]
    frames = _ordered(item for group in attended_frames(near, chunk, count) for item in group)
    groups = attended_frames(pattern, frames, count)
    anchors = _ordered(item for group in groups for item, far in zip(group, anchored, strict=True) if far)

    def place(item: Item, far: bool) -> int:
        if far or isinstance(item, str):
            return len(frames) + anchors.index(item)
        return min(range(len(frames)), key=lambda index: abs(frames[index] - item))

    return frames, anchors, [[place(*pair) for pair in zip(group, anchored, strict=True)] for group in groups]


def _ordered(items: Iterable[Item]) -> list[Any]:
    """Each once: frames in order, then references in order."""
    return sorted(set(items), key=lambda item: (isinstance(item, str), int(str(item).removeprefix("reference_"))))


def running_nets(job: Job) -> list[int]:
    """The indexes of the ControlNets that are run."""
    return [index for index, runs in enumerate(job.networks_run) if runs]


def is_smoothed(job: Job, step: int, steps: int) -> bool:
    """Is there smoothing on this one (from 0) of `steps` steps?"""
    return job.smoother is not None and step % job.smoother_interval == 0 and step < steps - job.ignore_smoother_steps


def load_denoiser(job: Job, options: Options) -> Denoiser:
    """The networks and prompts of a job, loaded once a process."""
    from stages.diffusion.denoise import ModelNames, Settings, denoiser

    nets = running_nets(job)
    models = ModelNames(
        job.model_id, tuple(job.controlnet_model_id[i] for i in nets), job.device, job.dtype, len(job.combine_pattern),
        job.vae, tuple((lora.path, lora.scale) for lora in job.loras),
        tuple((item.path, item.word) for item in job.embeddings), job.allow_pickle, job.attention,
        job.attention_backend,
    )  # fmt: skip
    scales = tuple(job.controlnet_scale[i] for i in nets)
    ready = denoiser(
        Settings(
            models, scales, job.prompt, job.negative_prompt, job.guidance_scale, job.num_inference_steps,
            job.img2img_strength, job.seed_of_noise, job.scheduler, job.vae_tiling, options.low_vram,
            options.compiled,
        )
    )  # fmt: skip
    ready.use_batches(options.batch_size or 1, options.passes_apart)
    return ready


def rendered_frames(job: Job, guides: FrameArray, reporter: Reporter) -> tuple[int, ...]:
    """The numbers of the frames that are rendered, ascending."""
    count = len(guides)
    if job.keyframes == "auto":
        from stages.smoothers.keyframes import choose

        reporter.begin("render", count)
        reporter.phase("choose keyframes")
        return tuple(choose(bring(guides, job.device), reporter.advance))
    if isinstance(job.keyframes, list):
        check_keyframes(job.keyframes, count)
        return tuple(sorted(set(job.keyframes)))
    return (*range(0, count - 1, job.keyframes), count - 1)


def check_keyframes(listed: Sequence[int], count: float) -> None:
    """Raises UsageError if these are no numbers of `count` frames."""
    if not listed or max(listed) >= count:
        raise UsageError(f"keyframes: there are {int(count)} frames, 0 to {int(count) - 1}", "list some of them")


def check(run: Run[Job], footage: Footage) -> list[ArraySpec]:
    job = run.job
    if isinstance(job.keyframes, list):
        check_keyframes(job.keyframes, footage.most)
    check_device(job.device)
    if job.attention_backend == "xformers" and find_spec("xformers") is None:
        raise UsageError(
            "attention_backend: xformers is not installed", "pip install 'diffsynth-cli[xformers]', or take sdpa"
        )
    check_model("model_id", job.model_id, NETWORKS, job.allow_pickle)
    for index in running_nets(job):
        check_model(f"controlnet_model_id[{index}]", job.controlnet_model_id[index], ("",), job.allow_pickle)
    if job.vae is not None:
        check_model("vae", job.vae, (vae_part(job.vae),), job.allow_pickle)
    files = [(f"loras[{index}]", lora.path) for index, lora in enumerate(job.loras)]
    files += [(f"embeddings[{index}]", embedding.path) for index, embedding in enumerate(job.embeddings)]
    for key, path in files:
        check_tensor_file(key, Path(path))
    if job.smoother is not None:
        build(job.smoother, job.smoother_config, [], [])
    count, steps = footage.count or 0, int(job.num_inference_steps * job.img2img_strength)
    keys = -(-count // job.keyframes) if isinstance(job.keyframes, int) else count
    # Clean latents, which some schedulers look back at, are small beside the frames.
    return _arrays(job, (count, footage.height, footage.width), keys, steps, multistep=False)


def plan(run: Run[Job], resume: bool) -> Plan:
    job, cache, options = run.job, run.cache, run.options
    begun: dict[str, Any] = cache["rendered"].attrs.asdict() if resume else {}
    options = _resumed(options, begun)
    run.reporter.begin("render", None)
    run.reporter.phase("load models")
    denoiser = load_denoiser(job, options)
    if job.scheduler == "lcm" and denoiser.settings.guidance > LCM_GUIDANCE:
        run.reporter.warn(f"guidance_scale: {job.guidance_scale} is much for lcm; 1 to {LCM_GUIDANCE} burns no colours")
    sampler, steps = denoiser.sampler, len(denoiser.sampler.timesteps)
    count, height, width, _ = cache["frames"].shape
    options = replace(options, batch_size=options.batch_size or denoiser.fitting_batch(height, width))
    keys = tuple(begun["keys"]) if resume else rendered_frames(job, cache["frames"], run.reporter)
    arrays = _arrays(job, (count, height, width), len(keys), steps, sampler.multistep)
    chunk = CHUNK if job.attention == "joint" else shared_chunk(height, width)
    phases = _phases(job, options, keys, steps, count, chunk)
    scratch = ("latents_other", "clean", "clean_other", "predicted", "reference_latents", "keyframes")
    begin = {"keys": list(keys), "batch_size": options.batch_size, "compiled": options.compiled}
    phases[-1] = replace(phases[-1], drops=scratch)
    return Plan(count, arrays, phases, lambda cache: cache["rendered"].attrs.update(begin))


def _arrays(job: Job, shape: tuple[int, int, int], keys: int, steps: int, multistep: bool) -> list[ArraySpec]:
    """What is made for frames of this shape (count, height, width), of which `keys` are rendered in `steps` steps."""
    count, height, width = shape
    size = (LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR)
    alternating = ("latents", "latents_other", *(("clean", "clean_other") if multistep else ()))
    arrays = [ArraySpec(name, (keys, *size), "float32") for name in alternating]
    if job.smoother is not None:
        arrays.append(ArraySpec("predicted", (keys, height, width, 3), "uint8"))
    if job.keep_steps:
        arrays.append(ArraySpec("latents_steps", (keys, *size), "float32", steps=steps))
    if job.frames_reference:
        arrays.append(ArraySpec("reference_latents", (len(job.frames_reference), *size), "float32"))
    arrays.append(ArraySpec("rendered", (count, height, width, 3), "uint8"))
    if keys < count:
        arrays.append(ArraySpec("keyframes", (keys, height, width, 3), "uint8"))
        arrays.append(ArraySpec("unseen", (count,), "float32"))
    return arrays


def _resumed(options: Options, begun: dict[str, Any]) -> Options:
    """The options that a render goes on with. In other batches, or not compiled if it was, it would round otherwise."""
    sizes = [options.batch_size or begun.get("batch_size"), begun.get("reduced", {}).get("batch_size")]
    return replace(
        options,
        batch_size=min((size for size in sizes if size), default=None),
        compiled=options.compiled or begun.get("compiled", False),
        passes_apart=begun.get("reduced", {}).get("passes_apart", False),
    )


def shared_chunk(height: int, width: int) -> int:
    """How many frames of this size are predicted together where attention is shared."""
    least, most = SHARED_CHUNK
    return min(max(SHARED_PIXELS // (height * width), least), most)


def _phases(job: Job, options: Options, keys: tuple[int, ...], steps: int, count: int, chunk: int) -> list[Phase]:
    phases, shared = [], (job, options, keys)
    if job.frames_reference:
        phases.append(Phase("encode references", len(job.frames_reference), CHUNK, EncodeReferencesTask(*shared)))
    if job.img2img_strength < 1:
        phases.append(Phase("noise the frames", len(keys), CHUNK, NoiseFramesTask(*shared)))
    for step in range(steps):
        smoothed = is_smoothed(job, step, steps)
        name = f"step {step + 1}/{steps}"
        phases.append(Phase(name, len(keys), chunk, StepTask(*shared, step, smoothed)))
        if smoothed and job.smoother is not None:
            task = SmoothTask(*shared, step, smoothed)
            phases.append(Phase(f"{name} smooth", len(keys), CHUNKS[job.smoother], task))
    if len(keys) == count:
        return [*phases, Phase("decode", count, CHUNK, DecodeTask(*shared, "rendered"))]
    decode = Phase("decode", len(keys), CHUNK, DecodeTask(*shared, "keyframes"))
    return [*phases, decode, Phase("paint the frames between", count, PAINT_CHUNK, PaintTask(keys, job.device))]


def deliver(run: Run[Job], fingerprint: str) -> None:
    """Says which frames show what no keyframe shows."""
    if "unseen" not in run.cache:
        return
    from stages.smoothers.keyframes import guessed

    if worst := guessed(run.cache["unseen"][:]):
        run.reporter.warn(f'{worst}; "keyframes": "auto", or a list with these, renders them')


STAGE = Stage("render", plan, deliver, check)
