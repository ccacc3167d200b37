"""Rendering against diffusers' own pipelines with the same tiny weights, frame by frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from transformers import CLIPTextModel

from stages.base.cache import FrameCache
from stages.diffusion.loading import load_networks
from stages.diffusion.noise import draw
from stages.diffusion.prompts import encode_prompts
from stages.diffusion.settings import ModelNames
from tests.conftest import GOLDEN, MODEL
from tests.typing import Keys, Render

CONTROLNETS = [str(GOLDEN / "models/control0"), str(GOLDEN / "models/control1")]
STEPS, TOLERANCE = 5, 1e-3
JOB: Keys = {
    "frames": 2, "num_inference_steps": STEPS, "controlnet_model_id": CONTROLNETS, "combine_pattern": [0],
    "controlnet_processor": ["canny", "tile"], "controlnet_scale": [1.0, 0.7], "guidance_scale": 4.0,
    "negative_prompt": "blurry",
}  # fmt: skip


def ddim() -> DDIMScheduler:
    config = json.loads((MODEL / "scheduler/scheduler_config.json").read_text())
    betas = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    return DDIMScheduler(**betas, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False)


def pipeline(kind: Any = StableDiffusionControlNetPipeline) -> Any:
    nets = [ControlNetModel.from_pretrained(name) for name in CONTROLNETS]
    pipe = kind.from_pretrained(MODEL, controlnet=nets, scheduler=ddim(), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def expected(cache: FrameCache, prompts: Sequence[torch.Tensor], pipe: Any = None, **more: Any) -> np.ndarray:
    """What the pipeline makes of the frames in a cache, with the embeddings of each frame's prompt."""
    names = [next(name for name in cache.arrays("control/*") if kind in name) for kind in ("canny", "tile")]
    pipe = pipe or pipeline()
    negative = pipe.encode_prompt("blurry", "cpu", 1, False)[0]
    noise, results = draw(0, 0, *cache["frames"].shape[1:3]), []
    for frame, text in enumerate(prompts):
        maps = [Image.fromarray(cache[name][frame]) for name in names]
        control = {"control_image": maps} if "image" in more else {"image": maps}
        own = {key: value[frame] if isinstance(value, list) and key.endswith("image") else value
               for key, value in more.items()}  # fmt: skip
        results.append(
            pipe(
                **{"controlnet_conditioning_scale": [1.0, 0.7], "guidance_scale": 4.0, **control, **own},
                prompt_embeds=text, negative_prompt_embeds=negative, num_inference_steps=STEPS,
                latents=None if "strength" in own and own["strength"] < 1 else noise, output_type="latent",
            ).images
        )  # fmt: skip
    return torch.cat(results).numpy()


def embedded(*prompts: str) -> list[torch.Tensor]:
    pipe = pipeline()
    return [pipe.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in prompts]


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    print(f"largest difference of latents: {np.abs(found - wanted).max():.1e}")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("attention", ["joint", "shared"])
@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({}, {}),
        (
            {"controlnet_start": [0.0, 0.4], "controlnet_end": [0.6, 1.0]},
            {"control_guidance_start": [0.0, 0.4], "control_guidance_end": [0.6, 1.0]},
        ),
        ({"guess_mode": True}, {"guess_mode": True}),
        ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
    ],
)
def test_controlnets_run_as_in_the_pipeline(attention: str, keys: Keys, options: Keys, render: Render) -> None:
    cache = render(**{**JOB, **keys}, attention=attention)
    assert_close(cache["latents"][:], expected(cache, embedded("winter", "winter"), **options))


def test_guidance_is_off_where_the_pipeline_turns_it_off(render: Render) -> None:
    """diffusers has no such option, but its scale may change after each step, and a scale of 1 changes nothing."""

    def unguided(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0000001 if step + 1 >= 4 else 4.0
        return values

    without = render("without", **JOB)["latents"][:]
    cache = render(**JOB, guidance_end=0.8)
    assert_close(cache["latents"][:], expected(cache, embedded("winter", "winter"), callback_on_step_end=unguided))
    assert np.abs(without - cache["latents"][:]).max() > TOLERANCE


@pytest.mark.parametrize("attention", ["joint", "shared"])
def test_prompts_turn_into_each_other(attention: str, render: Render) -> None:
    spring, winter = embedded("spring", "winter")
    keys: Keys = {**JOB, "frames": 5, "prompt": {"1": "spring", "3": "winter"}, "attention": attention}
    cache = render(**keys)
    texts = [spring, spring, torch.lerp(spring, winter, 0.5), winter, winter]
    assert_close(cache["latents"][:], expected(cache, texts))


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_mask_is_what_the_inpainting_pipeline_makes_of_it(
    strength: float, render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 24:] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    cache = render(**JOB, mask="mask.png", mask_feather=0, img2img_strength=strength)
    sources = [Image.fromarray(frame) for frame in cache["frames"][:]]
    pipe = pipeline(StableDiffusionControlNetInpaintPipeline)
    if strength < 1:  # latents that are given would not be noised
        monkeypatch.setattr(
            "diffusers.pipelines.controlnet.pipeline_controlnet_inpaint.randn_tensor",
            lambda *args, **more: draw(0, 0, 64, 64),
        )
    given = {"image": sources, "mask_image": [Image.fromarray(mask)] * 2, "strength": strength}
    found = cache["latents"][:]
    assert_close(found, expected(cache, embedded("winter", "winter"), pipe, **given))


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip_counts_layers_from_the_last(skip: int) -> None:
    """diffusers counts from 0, and looks for a part of the encoder that newer versions of transformers lack."""
    pipe = pipeline()
    encoder: CLIPTextModel = pipe.text_encoder
    if not hasattr(encoder, "text_model"):
        object.__setattr__(encoder, "text_model", encoder)
    networks = load_networks(ModelNames(model_id=str(MODEL), device="cpu"))
    with torch.inference_mode():
        found = encode_prompts(networks, ["winter, snow"], clip_skip=skip)
        wanted = pipe.encode_prompt("winter, snow", "cpu", 1, False, clip_skip=skip - 1 or None)[0]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
