"""The job file: every key declared once, with type, bounds, default and meaning.

The keys are those of DiffSynth's config files, so that such a file runs unmodified, plus ours.
`--help`, docs/job-keys.md and the JSON Schema are made from this model.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny

from stages.annotators import ANNOTATORS, AnnotatorOptions, published_names
from stages.base.errors import UsageError
from stages.base.mistakes import Strict, checked, shown, unknown
from stages.base.numbers import MOST, Count, Positive, Seconds
from stages.base.paths import InputFile, ModelName, OutputFolder, TensorFile, identified
from stages.base.registry import NameIn, OptionsIn
from stages.diffusion.sampler import SAMPLERS
from stages.jobs.machine import MachineSettings
from stages.smoothers import SMOOTHERS

NOT_RUN = "not run (controlnet_scale 0)"


def expand_annotator(value: Any) -> Any:
    """The options meant by `"canny"`, `"file:maps/"`, DiffSynth's names, or the long form {"name": ..., options}."""
    if isinstance(value, AnnotatorOptions):
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
    except UsageError as error:  # of another package, which is broken
        raise ValueError(f"{error.message}; {error.hint}") from None
    return checked(options, value)


# --- the job --------------------------------------------------------------------------------------------


class Lora(Strict):
    """One LoRA file."""

    path: TensorFile = Field(serialization_alias="file")  # what fingerprints call it
    """A `.safetensors` file."""
    scale: float = Field(1.0, ge=-10, le=10)


def _expand_lora(value: Any) -> Any:
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
    """The word in prompts that stands for it; left out, the file's name without its ending."""

    @property
    def word(self) -> str:
        """The word in prompts that stands for it."""
        return self.token or Path(self.path).stem


def _expand_embedding(value: Any) -> Any:
    return checked(Embedding, {"path": value} if isinstance(value, str) else value)


def _pattern_item(value: Any) -> Any:
    if type(value) is int and abs(value) <= MOST:
        return value
    if isinstance(value, str) and re.fullmatch(r"reference_[0-9]{1,9}", value):
        return value
    raise ValueError(f'give offsets (-1, 0, 1) and "reference_0", "reference_1", ..., not {shown(value)}')


def _keyframes(value: Any) -> Any:
    every = type(value) is int and 1 <= value <= MOST
    listed = isinstance(value, list) and value and all(type(item) is int and 0 <= item <= MOST for item in value)
    if every or listed or value == "auto":
        return value
    raise ValueError(f'give a number from 1, a list of frame numbers from 0, or "auto", not {shown(value)}')


SmootherName = Annotated[str, NameIn(SMOOTHERS)]
SmootherConfig = Annotated[dict[str, Any], OptionsIn(SMOOTHERS)]
Size = Annotated[int, Field(ge=64, le=8192, multiple_of=8)]


class Job(MachineSettings):
    """One video to be restyled: what goes in, what is done to it, where results go."""

    model_id: ModelName = Field(min_length=1)
    """Stable Diffusion 1.x model: a hub id (`stable-diffusion-v1-5/stable-diffusion-v1-5`), a local diffusers folder,
    a single-file checkpoint (`.safetensors`), or `mini`, the [embedded one](mini-model.md). See [models](models.md).
    Tokenizer, text encoder, U-Net and VAE are used, and of the scheduler its betas and what is predicted (the noise or
    v); the safety checker is not."""
    controlnet_model_id: list[ModelName] = []
    """One ControlNet a control map: hub ids, local folders, single files, or `mini/canny`, the embedded one."""
    controlnet_processor: list[
        Annotated[
            SerializeAsAny[AnnotatorOptions], BeforeValidator(expand_annotator), OptionsIn(ANNOTATORS, shorthand=True)
        ]
    ] = []
    """How each control map is made, one annotator for each ControlNet: a name, `file:PATH`, or an object
    `{"name": ..., options}`. See docs/annotators.md."""
    controlnet_scale: list[Annotated[float, Field(ge=-1e6, le=1e6)]] = []
    """Conditioning scale of each ControlNet, all 1.0 if left out. A net of scale 0 is not run, its map not made."""
    style_image: InputFile | None = None
    """The image that an annotator such as `shuffle` works on, the same for every frame."""
    loras: list[Annotated[Lora, BeforeValidator(_expand_lora, json_schema_input_type=str | Lora)]] = []
    """LoRA files for U-Net and text encoder: a path, or an object `{"path": ..., "scale": ...}`, each."""
    vae: ModelName | None = None
    """Another VAE in place of the model's own: a hub id, a local folder or a single file. A tiny autoencoder
    (`madebyollin/taesd`) is used for smoothing steps only, which it makes cheap; finished frames are the model's own
    VAE's."""
    vae_tiling: bool = False
    """Encode and decode large frames in tiles that overlap: less memory; their seams are blended, not exact."""
    embeddings: list[
        Annotated[Embedding, BeforeValidator(_expand_embedding, json_schema_input_type=str | Embedding)]
    ] = []
    """Textual inversions: a path, or an object `{"path": ..., "token": ...}`, each. The token, by default the file's
    name without its ending, is the word in prompts that stands for it."""

    smoother: SmootherName | None = None
    """What takes the flicker out of the predicted frames while they are denoised."""
    smoother_config: SmootherConfig = {}
    """Its options. See docs/smoothers.md."""
    ignore_smoother_steps: Count = 0
    """No smoothing in the last this many denoising steps."""
    smoother_interval: Positive = 1
    """Smooth on every k-th step, counted from the first: interval 5 of 20 steps smooths the 1st, 6th, 11th and 16th."""
    extra_deflickering_range: Count = 0
    """After denoising: `EbsynthSmoother` over this many frames to each side, whatever `smoother` is. 0 = off."""
    post_smoother: SmootherName | None = None
    """After denoising: a smoother of choice, in place of `extra_deflickering_range`."""
    post_smoother_config: SmootherConfig = {}
    """Its options."""

    input_video: InputFile = Field(min_length=1)
    """A video file, or a folder of images (sorted naturally)."""
    frame_height: Size | None = None
    """Frames are cropped about the centre to the aspect ratio asked for, then resized. Source's height if left out; if
    only one of height and width is given, the other follows from the source's aspect ratio. A multiple of 8."""
    frame_width: Size | None = None
    """See `frame_height`."""
    frame_interval: Positive = 1
    """Use every k-th frame."""
    frame_maximum_count: Positive | None = None
    """Use at most this many frames."""
    output_path: OutputFolder = Field(min_length=1)
    """Folder for all results."""
    fps: float | None = Field(None, ge=0.01, le=1000)
    """Frame rate of video.mp4. Left out, frames keep the source's time stamps."""
    keep_audio: bool = True
    """Carry the used part of the source's audio over (not when `fps` changes the speed)."""
    keep_frames: bool = False
    """Also write every frame as an image, `frames/00000.png` and so on in `output_path`, as DiffSynth does."""
    start_time: Seconds | None = None
    """Seconds; the first frame at or after it is the first used."""
    end_time: Annotated[Seconds, Field(gt=0)] | None = None
    """Seconds; only frames before it are used."""

    prompt: str
    """What the frames should show. May be longer than the text encoder's window."""
    negative_prompt: str = ""
    """What they should not show."""
    num_inference_steps: int = Field(20, ge=1, le=1000)
    """Denoising steps. Some schedulers take fewer at most."""
    scheduler: Annotated[str, NameIn(SAMPLERS)] = "ddim"
    """How latents go from step to step."""
    guidance_scale: float = Field(7.5, ge=1, le=100)
    """Classifier-free guidance; 1 = off, and then one pass through the networks instead of two."""
    seed_of_noise: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial noise, which all frames share."""
    img2img_strength: float = Field(1.0, gt=0, le=1)
    """Below 1: start from the frames themselves, noised to the first of the last int(steps × strength) steps."""

    frames_reference: list[InputFile] = []
    """Images that every frame may attend to. Each goes through the same annotators as the frames."""
    combine_pattern: list[Annotated[int | str, BeforeValidator(_pattern_item)]] = Field(
        [0], min_length=1, max_length=64
    )
    """The frames that each frame attends to: offsets, clamped to the first and last frame (-10000: the first frame);
    "reference_k" is frames_reference[k]. Must hold 0 once."""
    keyframes: Annotated[Positive | Literal["auto"] | list[Count], BeforeValidator(_keyframes)] = 1
    """Render every k-th frame only, or those that are listed, or (auto) those that show what the last one did not; the
    others are painted from the two around them. 1 = render all."""
    attention: Literal["joint", "shared"] = "joint"
    """joint: exact, all tokens of the pattern's frames attend to each other, and a frame goes through the networks once
    for each frame that sees it. shared: it goes through them once, and sees what the others are then: nearly the same,
    with less work the longer the pattern is."""
    keep_steps: bool = False
    """Keep the latents of every step in the cache (arrays `step_latents/0001` and so on)."""

    @property
    def networks_run(self) -> list[bool]:
        """For each ControlNet: is it run at all?"""
        return [scale != 0 for scale in self.controlnet_scale]

    def inputs(self, keys: Collection[str], known: object) -> dict[str, object]:
        """The values of `keys` as fingerprints hold them. `known` is what an earlier one holds."""
        values = identified(self._effective(), keys, known)
        # An update of another package may change what its annotators do.
        for item in cast("list[object]", values.get("controlnet_processor", [])):
            if isinstance(item, dict) and (package := ANNOTATORS.version(item["name"])):
                item["package"] = package
        return values

    def _effective(self) -> Job:
        """The same job without values that have no effect: changing them makes no stage stale."""
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
            }
        )


def _versioned(smoother: str | None) -> str | None:
    """The smoother's name, and the version of the other package that it comes from."""
    package = None if smoother is None else SMOOTHERS.version(smoother)
    return smoother if package is None else f"{smoother} of {package}"


# Keys that no stage depends on: they change no frame, but where networks run, what may be read, where results go and
# how they are written.
CHANGE_NO_FRAME = (
    *(key for key in MachineSettings.model_fields if key != "dtype"),
    "output_path",
    "fps",
    "keep_audio",
    "keep_frames",
)


def json_schema() -> tuple[dict[str, Any], list[str]]:
    """JSON Schema of the job file, for editors; and what is wrong with packages whose options it lacks."""
    problems = [problem for registry in (ANNOTATORS, SMOOTHERS) for problem in registry.usable()[1]]
    return Job.model_json_schema(), problems
