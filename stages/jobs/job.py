"""The job file: every key declared once, with type, bounds, default and meaning.

The keys are those of DiffSynth's config files, so that such a file runs unmodified, plus ours.
`--help`, docs/job-keys.md and the JSON Schema are made from this model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from stages.base.annotators import ANNOTATORS, DIFFSYNTH_ANNOTATORS, AnnotatorSettings
from stages.base.mistakes import Strict, checked, shown, unknown
from stages.base.numbers import MOST, Count, Positive, Seconds
from stages.base.smoothers import PUBLISHED, PatchSize, SmootherConfig

STAGES = ("extract", "control", "render", "deflicker")
Stage = Literal["extract", "control", "render", "deflicker"]


def _expand_annotator(value: Any) -> Any:
    """`"canny"`, `"file:maps/"` and DiffSynth's names, in the long form {"name": ..., options}."""
    if isinstance(value, str):
        value = {"name": "file", "path": value[5:]} if value.startswith("file:") else {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError('give a name, "file:PATH" or an object {"name": ..., options}')
    name = value["name"]
    if name in DIFFSYNTH_ANNOTATORS:
        value = {**DIFFSYNTH_ANNOTATORS[name], **{key: option for key, option in value.items() if key != "name"}}
    elif name not in ANNOTATORS:
        raise ValueError(unknown("annotator", name, [*ANNOTATORS, *DIFFSYNTH_ANNOTATORS]))
    return checked(ANNOTATORS[value["name"]], value)


# --- smoothers ------------------------------------------------------------------------------------------


class TemporalMeanConfig(SmootherConfig):
    """Mean over the frames around each frame. No patch matching: the baseline."""

    radius: Count = 1
    """Frames to each side."""


class PatchBlendConfig(SmootherConfig):
    """Takes out flicker and keeps detail: light from the whole window, detail from what neighbours agree on."""

    window: int | None = Field(15, ge=0, le=1000)
    """Frames to each side that light and colour are averaged over; null: the whole video (up to 63 to each side)."""
    strength: float = Field(1.0, ge=0, le=1)
    """0 = the frames as they were, 1 = all flicker out."""
    detail: float = Field(0.5, ge=0, le=1)
    """0 = only what neighbours agree on, 0.5 = own detail where it stays in its place, 1 = all of each frame's own."""
    patch_size: PatchSize = 5
    """Pixels a side of the patches that are matched, odd."""
    guide_weight: float = Field(1.0, ge=0, le=100)
    """How much it counts against a match that the video differs there; less for grainy or noisy videos, 0 = nothing."""


SMOOTHERS: dict[str, type[SmootherConfig]] = {
    "PatchBlendSmoother": PatchBlendConfig,
    "TemporalMeanSmoother": TemporalMeanConfig,
    **PUBLISHED,
}
SmootherName = Literal[
    "PatchBlendSmoother", "TemporalMeanSmoother", "EbsynthSmoother", "VideoPatchMatchSmoother", "PySynthSmoother"
]


# --- the job --------------------------------------------------------------------------------------------


class Lora(Strict):
    """One LoRA file."""

    path: str
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

    path: str
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


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", value):
        raise ValueError(f"unknown device {value!r}; choose auto, cpu, cuda, cuda:N or mps")
    return value


LCM_STEPS = 50  # that latent consistency models are distilled at
Size = Annotated[int, Field(ge=64, le=8192, multiple_of=8)]


class Job(Strict):
    """One video to be restyled: what goes in, what is done to it, where results go."""

    model_id: str = Field(min_length=1)
    """Stable Diffusion 1.x model: a hub id (`stable-diffusion-v1-5/stable-diffusion-v1-5`), a local diffusers folder,
    a single-file checkpoint (`.safetensors`), or `mini`, the [embedded one](mini-model.md). See [models](models.md).
    Tokenizer, text encoder, U-Net and VAE are used, and of the scheduler its betas and what is predicted (the noise or
    v); the safety checker is not."""
    controlnet_model_id: list[str] = []
    """One ControlNet a control map: hub ids, local folders, single files, or `mini/canny`, the embedded one."""
    controlnet_processor: list[
        Annotated[AnnotatorSettings, BeforeValidator(_expand_annotator, json_schema_input_type=str | AnnotatorSettings)]
    ] = []
    """How each control map is made, one annotator for each ControlNet: a name, `file:PATH`, or an object
    `{"name": ..., options}`. See docs/annotators.md."""
    controlnet_scale: list[Annotated[float, Field(ge=-1e6, le=1e6)]] = []
    """Conditioning scale of each ControlNet, all 1.0 if left out. A net of scale 0 is not run, its map not made."""
    style_image: str | None = None
    """The image that the `shuffle` annotator works on, the same for every frame."""
    loras: list[Annotated[Lora, BeforeValidator(_expand_lora, json_schema_input_type=str | Lora)]] = []
    """LoRA files for U-Net and text encoder: a path, or an object `{"path": ..., "scale": ...}`, each."""
    vae: str | None = None
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
    allow_pickle: bool = False
    """Also read models in pickles (`.ckpt`, `.pt`, `.pth`, `.bin`). A pickle can run code on this machine: only for
    files from sources that you trust."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number type of the networks; auto: float16 on a GPU, float32 elsewhere."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """Where networks run and frames are smoothed: auto, cpu, cuda, cuda:1, mps (for networks)."""

    smoother: SmootherName | None = None
    """What takes the flicker out of the predicted frames while they are denoised."""
    smoother_config: dict[str, Any] = {}
    """Its options. See docs/smoothers.md."""
    ignore_smoother_steps: Count = 0
    """No smoothing in the last this many denoising steps."""
    smoother_interval: Positive = 1
    """Smooth on every k-th step, counted from the first: interval 5 of 20 steps smooths the 1st, 6th, 11th and 16th."""
    extra_deflickering_range: Count = 0
    """After denoising: `EbsynthSmoother` over this many frames to each side, whatever `smoother` is. 0 = off."""
    post_smoother: SmootherName | None = None
    """After denoising: a smoother of choice, in place of `extra_deflickering_range`."""
    post_smoother_config: dict[str, Any] = {}
    """Its options."""

    input_video: str = Field(min_length=1)
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
    output_path: str = Field(min_length=1)
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
    """Denoising steps; 50 at most with `lcm`."""
    scheduler: Literal["ddim", "dpm++2m", "euler", "lcm"] = "ddim"
    """How latents go from step to step. ddim: as published, in even steps. dpm++2m: DPM-Solver++ 2M with Karras'
    spacing, for fewer steps. euler: DDIM's step with Karras' spacing. lcm: in 4 to 8 steps, for LCM models or, with
    `guidance_scale` 1 to 2, an LCM LoRA in `loras`."""
    guidance_scale: float = Field(7.5, ge=1, le=100)
    """Classifier-free guidance; 1 = off, and then one pass through the networks instead of two."""
    seed_of_noise: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial noise, which all frames share."""
    img2img_strength: float = Field(1.0, gt=0, le=1)
    """Below 1: start from the frames themselves, noised to the first of the last int(steps × strength) steps."""

    frames_reference: list[str] = []
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
    attention_backend: Literal["sdpa", "xformers"] = "sdpa"
    """What computes attention: PyTorch, or (CUDA only) xformers, which is an extra: `diffsynth-cli[xformers]`."""
    keep_steps: bool = False
    """Keep the latents of every step in the cache (arrays `step_latents/0001` and so on)."""

    @property
    def networks_run(self) -> list[bool]:
        """For each ControlNet: is it run at all?"""
        return [scale != 0 for scale in self.controlnet_scale]


# Which stage reads which keys: a changed key makes these stages (and those after them) stale.
READS: dict[str, tuple[str, ...]] = {
    "extract": (
        "input_video", "frame_height", "frame_width", "frame_interval", "frame_maximum_count", "start_time", "end_time",
    ),
    "control": ("controlnet_processor", "style_image", "frames_reference"),
    "render": (
        "model_id", "controlnet_model_id", "controlnet_scale", "loras", "embeddings", "vae", "vae_tiling", "dtype",
        "smoother", "smoother_config", "ignore_smoother_steps", "smoother_interval", "prompt", "negative_prompt",
        "num_inference_steps", "scheduler", "guidance_scale", "seed_of_noise", "img2img_strength", "combine_pattern",
        "keyframes", "attention", "keep_steps",
    ),
    "deflicker": ("extra_deflickering_range", "post_smoother", "post_smoother_config"),
}  # fmt: skip
# These change no frame: where the networks run, what may be read, where results lie, how they are written.
READS_NOTHING = ("device", "attention_backend", "allow_pickle", "output_path", "fps", "keep_audio", "keep_frames")


def json_schema() -> dict[str, Any]:
    """JSON Schema of the job file, for editors."""
    return Job.model_json_schema()
