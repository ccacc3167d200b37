"""The job: each key with its type, bounds, default and description.

The keys are those of DiffSynth's config files, which run unmodified, and some of our own. `--help`, docs/job-keys.md
and the JSON Schema are generated from this model.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny

from stages.annotators import ANNOTATORS, MapOptions, published_names
from stages.base.errors import UsageError
from stages.base.json_types import JsonObject, Values
from stages.base.mistakes import Strict, checked, shown, unknown
from stages.base.numbers import MOST, Count, Positive, Seconds
from stages.base.paths import InputFile, ModelName, OutputFolder, TensorFile, identified
from stages.base.record import CACHE_NAME
from stages.base.registry import NameIn, OptionsIn
from stages.base.scenes import check_scenes
from stages.diffusion.sampler import SAMPLERS
from stages.jobs.keeping import ArrayGroup
from stages.jobs.machine import MachineSettings
from stages.jobs.masking import MaskSettings
from stages.smoothers import SMOOTHERS

MOMENT = re.compile(r"-?[0-9]{1,9}|-?[0-9]{1,6}(\.[0-9]{1,6})?s")
SIZE_GRID = 8  # pixels per latent
LARGEST_SIDE = 8192  # pixels
Size = Annotated[int, Field(ge=64, le=LARGEST_SIDE, multiple_of=SIZE_GRID)]
NOT_RUN = "not run (controlnet_scale 0)"


def expand_annotator(value: object) -> MapOptions:
    """Parse `"canny"`, `"file:maps/"`, one of DiffSynth's names, or an object {"name": ..., options}."""
    if isinstance(value, MapOptions):
        return value
    if isinstance(value, str):
        name, colon, path = value.partition(":")
        value = {"name": name, "path": path} if colon else {"name": name}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError('give a name, "file:PATH" or an object {"name": ..., options}')
    theirs = published_names()
    name = value["name"]
    if name in theirs:
        value = {**theirs[name], **{key: option for key, option in value.items() if key != "name"}}
    elif name not in ANNOTATORS:
        raise ValueError(unknown("annotator", name, [*ANNOTATORS, *theirs]))
    try:
        options = ANNOTATORS[value["name"]]
    except UsageError as error:  # another package is broken
        raise ValueError(f"{error.message}; {error.hint}") from None
    return checked(options, value)


# --- the job --------------------------------------------------------------------------------------------


class Lora(Strict):
    """One LoRA file."""

    path: TensorFile = Field(serialization_alias="file")  # what fingerprints call it
    """A `.safetensors` file."""
    scale: float = Field(1.0, ge=-10, le=10)


def _expand_lora(value: object) -> Lora:
    return checked(Lora, {"path": value} if isinstance(value, str) else value)


def _one_word(value: str) -> str:
    if value.split() != [value]:
        raise ValueError("must be one word, without spaces")
    return value


class Embedding(Strict):
    """One textual inversion."""

    path: TensorFile = Field(serialization_alias="file")
    """A `.safetensors` file."""
    token: Annotated[str, AfterValidator(_one_word)] | None = Field(None, min_length=1)
    """The word that stands for it in prompts. By default, the file's name without its suffix."""

    @property
    def word(self) -> str:
        """The word that stands for it in prompts."""
        return self.token or Path(self.path).stem


def _expand_embedding(value: object) -> Embedding:
    return checked(Embedding, {"path": value} if isinstance(value, str) else value)


class Region(Strict):
    """A part of the frames with a prompt of its own."""

    mask: InputFile
    """White where the region is."""
    prompt: str
    """The prompt there."""
    scale: float = Field(1.0, gt=0, le=1)
    """Its share there; the rest belongs to the job's prompt."""


class Upscale(Strict):
    """A second pass at a larger size."""

    factor: float = Field(2.0, gt=1, le=8)
    """How many times as large as the first pass's frames the result is, on each side."""
    strength: float = Field(0.3, gt=0, le=1)
    """Below 1, start from the enlarged frames with noise added, and run only the last int(steps × strength) steps."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Number of denoising steps. By default, `num_inference_steps`."""
    model: ModelName | None = None
    """ControlNet that is shown the enlarged frames, such as `lllyasviel/control_v11f1e_sd15_tile`. By default, none."""
    tile: Size | None = None
    """Predict noise in overlapping tiles of this side, in pixels, which takes less memory. By default, in whole
    frames."""


def _pattern_item(value: object) -> int | str:
    if type(value) is int and abs(value) <= MOST:
        return value
    if isinstance(value, str) and re.fullmatch(r"reference_[0-9]{1,9}", value):
        return value
    raise ValueError(f'give offsets (-1, 0, 1) and "reference_0", "reference_1", ..., not {shown(value)}')


def _keyframes(value: object) -> object:
    every = type(value) is int and 1 <= value <= MOST
    listed = isinstance(value, list) and value and all(type(item) is int and 0 <= item <= MOST for item in value)
    if every or listed or value == "auto":
        return value
    raise ValueError(f'give a number from 1, a list of frame numbers from 0, or "auto", not {shown(value)}')


def _prompt(value: object) -> object:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not value or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"give a text, or texts by the frames or seconds at which they begin, not {shown(value)}")
    for moment in value:
        if not MOMENT.fullmatch(str(moment)):
            raise ValueError(f'give frames ("48") or seconds ("2.5s") as the keys of prompts, not {shown(moment)}')
    return value


SmootherName = Annotated[str, NameIn(SMOOTHERS)]
SmootherConfig = Annotated[Values, OptionsIn(SMOOTHERS)]
Share = Annotated[float, Field(ge=0, le=1)]


class Job(MachineSettings, MaskSettings):
    """One video to restyle: its input, the settings of each stage, and the output folder."""

    model_id: ModelName = Field(min_length=1)
    """Stable Diffusion 1.x model: a hub id (`stable-diffusion-v1-5/stable-diffusion-v1-5`), perhaps with a revision
    (`owner/model@revision`), a local diffusers folder, a single-file checkpoint (`.safetensors`), or `mini`, the
    [embedded model](mini-model.md). See [models](models.md). Tokenizer, text encoder, U-Net and VAE are used, and the
    scheduler's betas and prediction type (noise or v). The safety checker is not loaded."""
    controlnet_model_id: list[ModelName] = []
    """ControlNets, one per control map: hub ids, local folders, single files, or `mini/canny`, the embedded one."""
    controlnet_processor: list[
        Annotated[SerializeAsAny[MapOptions], BeforeValidator(expand_annotator), OptionsIn(ANNOTATORS, shorthand=True)]
    ] = []
    """Annotators that make the control maps, one per ControlNet: a name, `file:PATH`, or an object
    `{"name": ..., options}`. See [annotators](annotators.md)."""
    controlnet_scale: list[Annotated[float, Field(ge=-1e6, le=1e6)]] = []
    """Conditioning scale of each ControlNet. By default, all are 1.0. A ControlNet of scale 0 is skipped, and so is its
    map."""
    controlnet_start: list[Share] = []
    """The part of the steps after which each ControlNet begins to run: 0.25 skips the first quarter. By default, all
    are 0."""
    controlnet_end: list[Share] = []
    """The part of the steps after which each ControlNet no longer runs. By default, all are 1."""
    guess_mode: bool = False
    """Run the ControlNets for the prompt alone, not for the negative prompt, and weaken them in the outer layers, so
    that a picture can be made without a prompt."""
    style_image: InputFile | None = None
    """Image for annotators such as `shuffle`, which make all maps from it."""
    loras: list[Annotated[Lora, BeforeValidator(_expand_lora, json_schema_input_type=str | Lora)]] = []
    """LoRA files for U-Net and text encoder, each a path or an object `{"path": ..., "scale": ...}`."""
    vae: ModelName | None = None
    """VAE to use instead of the model's own: a hub id, a local folder or a single file. A tiny autoencoder
    (`madebyollin/taesd`) is used only for smoothing steps, which it makes cheap; the final frames are decoded by the
    model's own VAE."""
    vae_tiling: bool = False
    """Encode and decode large frames in overlapping tiles. Uses less memory; seams are blended, so results differ
    slightly."""
    embeddings: list[
        Annotated[Embedding, BeforeValidator(_expand_embedding, json_schema_input_type=str | Embedding)]
    ] = []
    """Textual inversions, each a path or an object `{"path": ..., "token": ...}`. The token is the word that stands for
    it in prompts; by default, the file's name without its suffix."""

    smoother: SmootherName | None = None
    """Smoother that removes flicker from the predicted frames during denoising."""
    smoother_config: SmootherConfig = {}
    """Options of `smoother`. See [smoothers](smoothers.md)."""
    ignore_smoother_steps: Count = 0
    """Number of final denoising steps without smoothing."""
    smoother_interval: Positive = 1
    """Smooth on every k-th step, counted from the first: interval 5 of 20 steps smooths the 1st, 6th, 11th and 16th."""
    extra_deflickering_range: Count = 0
    """After denoising, apply `EbsynthSmoother` over this many frames to each side, whatever `smoother` is. 0 = off."""
    post_smoother: SmootherName | None = None
    """Smoother to apply after denoising, instead of `extra_deflickering_range`."""
    post_smoother_config: SmootherConfig = {}
    """Options of `post_smoother`."""

    input_video: InputFile = Field(min_length=1)
    """A video file, or a folder of images (sorted naturally)."""
    frame_height: Size | None = None
    """Height of frames in pixels, a multiple of 8. By default, the source's. If only height or width is given, the
    other follows from the source's aspect ratio. Frames are cropped around the centre to the new aspect ratio, then
    resized."""
    frame_width: Size | None = None
    """Width of frames in pixels. See `frame_height`."""
    frame_interval: Positive = 1
    """Use every k-th frame."""
    frame_maximum_count: Positive | None = None
    """Use at most this many frames."""
    output_path: OutputFolder = Field(min_length=1)
    """Folder for all results."""
    fps: float | None = Field(None, ge=0.01, le=1000)
    """Frame rate of video.mp4. By default, frames keep the source's time stamps."""
    keep_audio: bool = True
    """Copy the used part of the source's audio, unless `fps` changes the speed."""
    keep_frames: bool = False
    """Also write each frame as an image (`frames/00000.png`, ...) in `output_path`, as DiffSynth does."""
    keep: list[ArrayGroup] | None = None
    """Arrays that stay in the cache when the job is complete: any of `frames`, `control`, `latents`, `rendered` and
    `deflickered`. `export` needs `deflickered`, and `report` needs `frames`. By default, all stay. See
    [disk space](cache.md#disk-space)."""
    start_time: Seconds | None = None
    """Start of the used part, in seconds. The first frame at or after it is the first one used."""
    end_time: Annotated[Seconds, Field(gt=0)] | None = None
    """End of the used part, in seconds. Only frames before it are used."""
    scenes: Annotated[Literal["auto"] | list[Positive] | None, BeforeValidator(check_scenes)] = None
    """Process every scene as if it were a video of its own: auto finds the cuts, or list the first frame of each scene
    after the first, counted in used frames from 0. See [scenes](rendering.md#scenes). null = the video is one scene."""

    prompt: Annotated[str | dict[str, str], BeforeValidator(_prompt)]
    """Prompt. May be longer than the text encoder's window. Or several, by the frame or time from which they apply:
    `{"0": "spring", "48": "winter"}` or `{"0s": "spring", "2.5s": "winter"}`. In between, one turns into the next. See
    [prompts over time](steering.md#prompts-over-time)."""
    negative_prompt: str = ""
    """Negative prompt."""
    prompt_weighting: Literal["a1111"] | None = None
    """a1111: in all prompts, `(word)`, `(word:1.3)` and `[word]` make a word count more or less. null: brackets are
    ordinary characters."""
    clip_skip: Annotated[Positive, Field(le=32)] = 1
    """The layer of the text encoder to use, counted from the last. Some models were trained with 2."""
    num_inference_steps: int = Field(20, ge=1, le=1000)
    """Number of denoising steps. Some schedulers have a lower limit."""
    scheduler: Annotated[str, NameIn(SAMPLERS)] = "ddim"
    """Sampler of the denoising steps."""
    guidance_scale: float = Field(7.5, ge=1, le=100)
    """Scale of classifier-free guidance. 1 = off, which takes one pass through the networks instead of two."""
    guidance_start: Share = 0.0
    """The part of the steps after which guidance begins."""
    guidance_end: Share = 1.0
    """The part of the steps after which guidance is off. Steps without it take one pass instead of two."""
    seed_of_noise: int = Field(0, ge=0, lt=2**63)
    """Random seed of the noise."""
    noise: Literal["same", "frame", "warped"] = "same"
    """Noise that frames start from, and that some schedulers add. same: one noise for all frames, as published. frame:
    another one for each frame, as if they were unrelated images. warped: noise that moves with the picture, so that
    details stick to what moves. See [noise](steering.md#noise)."""
    img2img_strength: float = Field(1.0, gt=0, le=1)
    """Below 1, start from the source's frames with noise added, and run only the last int(steps × strength) steps."""

    upscale: Upscale | None = None
    """Render the frames a second time, enlarged, for detail: an object `{"factor": 2.0, "strength": 0.3, "steps": null,
    "model": null, "tile": null}`, of which any part can be left out. See [second pass](steering.md#second-pass)."""

    regions: list[Region] = Field([], max_length=16)
    """Parts of the frames with prompts of their own: `{"mask": PATH, "prompt": TEXT, "scale": 1.0}`, with masks as for
    `mask`. See [regions](steering.md#regions)."""

    frames_reference: list[InputFile] = []
    """Images that every frame may attend to. They go through the same annotators as the frames."""
    combine_pattern: list[Annotated[int | str, BeforeValidator(_pattern_item)]] = Field(
        [0], min_length=1, max_length=64
    )
    """The frames that each frame attends to: offsets, clamped to the first and last frame of the scene (-10000 is the
    first frame), or "reference_k" for frames_reference[k]. Must contain 0 exactly once."""
    keyframes: Annotated[Positive | Literal["auto"] | list[Count], BeforeValidator(_keyframes)] = 1
    """Render only every k-th frame, the frames listed, or (auto) those with content that the last one lacks. The others
    are painted from the two keyframes around them, in the same scene. 1 = render all."""
    attention: Literal["joint", "shared"] = "joint"
    """joint: all tokens of the pattern's frames attend to each other, and each frame passes through the networks once
    per frame that attends to it. shared: each frame passes through once and attends to the other frames' keys and
    values. Results are similar, and the longer the pattern, the more work is saved."""
    keep_steps: bool = False
    """Keep the latents of every step in the cache (arrays `step_latents/0001` and so on)."""

    @property
    def cache_place(self) -> str:
        """The folder or URL of the frame cache."""
        return self.cache or str(Path(self.output_path) / CACHE_NAME)

    @property
    def networks_run(self) -> list[bool]:
        """Whether each ControlNet is run."""
        return [scale != 0 for scale in self.controlnet_scale]

    @property
    def spans(self) -> list[tuple[float, float]]:
        """The part of the steps in which each ControlNet runs."""
        nets = len(self.controlnet_model_id)
        starts, ends = self.controlnet_start or [0.0] * nets, self.controlnet_end or [1.0] * nets
        return [*zip(starts, ends, strict=True)]

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts, in the order of the file."""
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt.values())

    def inputs(self, keys: Collection[str], known: object) -> dict[str, object]:
        """Return the values of `keys` as fingerprints store them. `known` is what an earlier one stores.

        A key that it lacks was added in a later version. It is left out at its default, so that the cache stays valid.
        """
        effective = self._effective()
        values = identified(effective, [key for key in keys if not effective._is_new(key, known)], known)
        # An update of another package may change what its annotators do.
        for item in cast("list[object]", values.get("controlnet_processor", [])):
            if isinstance(item, dict) and (package := ANNOTATORS.version(item["name"])):
                item["package"] = package
        return values

    def _effective(self) -> Job:
        """Copy the job without values that have no effect, so that changing them makes no stage stale."""
        maps = list(zip(self.controlnet_processor, self.networks_run, strict=True))
        nets = zip(self.controlnet_model_id, self.networks_run, strict=True)
        styled = any(runs and item.uses_style_image for item, runs in maps)
        return self.model_copy(
            update={
                "controlnet_processor": [item if runs else NOT_RUN for item, runs in maps],
                "smoother": _versioned(self.smoother),
                "post_smoother": _versioned(self.post_smoother),
                "controlnet_model_id": [net if runs else NOT_RUN for net, runs in nets],
                "style_image": self.style_image if styled else None,
                "extra_deflickering_range": self.extra_deflickering_range if self.post_smoother is None else 0,
                "embeddings": [item.model_copy(update={"token": item.word}) for item in self.embeddings],
                **({} if self.mask else MaskSettings().model_dump()),
            }
        )

    def _is_new(self, key: str, known: object) -> bool:
        """Whether the version that stored `known` did not know a key, which is at its default."""
        is_default = getattr(self, key) == type(self).model_fields[key].get_default(call_default_factory=True)
        return isinstance(known, dict) and bool(known) and key not in known and is_default


def _versioned(smoother: str | None) -> str | None:
    """Return the smoother's name, with the version of its package unless it is built in."""
    package = None if smoother is None else SMOOTHERS.version(smoother)
    return smoother if package is None else f"{smoother} of {package}"


def json_schema() -> tuple[JsonObject, list[str]]:
    """Return the JSON Schema of job files, and messages about packages whose options it lacks."""
    problems = [problem for registry in (ANNOTATORS, SMOOTHERS) for problem in registry.usable()[1]]
    return Job.model_json_schema(), problems
