"""Networks from diffusers folders and hub ids, checked before they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from stages.base.errors import DiffSynthError
from stages.diffusion import LATENT_CHANNELS, LATENT_FACTOR
from stages.diffusion.attention import CrossFrameAttention, Joint, Shared, pick_product
from stages.diffusion.lora import add_lora
from stages.weights import explained, find_files, no_logs, pick_device

# What is read of a model, as diffusers lays it out. Pickled weights are not: they can run code.
WEIGHTS = "diffusion_pytorch_model.safetensors"
CONTROLNET_FILES = VAE_FILES = ("config.json", WEIGHTS)
MODEL_FILES = (
    "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json",
    "text_encoder/config.json", "text_encoder/model.safetensors",
    "unet/config.json", f"unet/{WEIGHTS}", "vae/config.json", f"vae/{WEIGHTS}",
)  # fmt: skip
ALSO_DOWNLOADED = ("tokenizer/*",)
PREDICTIONS = ("epsilon", "v_prediction")  # the noise; or v, a mixture of noise and clean latents


@dataclass(frozen=True)
class ModelNames:
    """What to load, and onto what. `group`: how many frames attend to each other (`attention`: joint). `vae`: another
    one, if it is not the model's own; `loras`: files and scales; `backend`: the attention kernel."""

    model_id: str
    controlnets: tuple[str, ...]
    device: str
    dtype: str
    group: int
    vae: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    attention: str = "joint"
    backend: str = "sdpa"


@dataclass(frozen=True)
class Networks:
    """The networks of one Stable Diffusion model with its ControlNets, in evaluation mode on one device.

    `tiny_vae`: an autoencoder for predicted frames, which are decoded only to be smoothed. `map_embeddings`: the
    ControlNets' first layers, which see nothing but the control map; the rest of each net takes what they give.
    `view`: whom the frames see in the attention layers of U-Net and ControlNets.
    `alphas` float32 [1000], on the host: the cumulative products of 1 - beta. `prediction`: what the U-Net gives,
    one of PREDICTIONS.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    tiny_vae: AutoencoderTiny | None
    controlnets: tuple[ControlNetModel, ...]
    map_embeddings: tuple[nn.Module, ...]
    view: Joint | Shared
    alphas: torch.Tensor
    prediction: str
    device: torch.device
    dtype: torch.dtype


def load_networks(names: ModelNames) -> Networks:
    """Raises DiffSynthError, naming the model, if one is missing, damaged, or not made for this loop."""
    device = pick_device(names.device)
    dtype = pick_dtype(names.dtype, device)
    other_vae = None if names.vae is None else _load_vae(names.vae, dtype).to(device)
    tiny = isinstance(other_vae, AutoencoderTiny)
    product = pick_product(names.backend, device)
    folder = find_model("model_id", names.model_id, MODEL_FILES)
    controlnets = tuple(_load_controlnet(name, dtype).to(device) for name in names.controlnets)
    with _quiet(), explained("model_id", names.model_id):
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        networks = Networks(
            tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            text_encoder=_load(CLIPTextModel, folder, "text_encoder", dtype).to(device),
            unet=_load(UNet2DConditionModel, folder, "unet", dtype).to(device),
            vae=_load(AutoencoderKL, folder, "vae", dtype).to(device) if tiny or other_vae is None else other_vae,
            tiny_vae=other_vae if tiny else None,
            controlnets=controlnets,
            map_embeddings=tuple(controlnet.controlnet_cond_embedding for controlnet in controlnets),
            view=Joint(names.group) if names.attention == "joint" else Shared(),
            alphas=scheduler.alphas_cumprod.float(),
            prediction=scheduler.config["prediction_type"],
            device=device,
            dtype=dtype,
        )
    _check_fit(names, networks)
    for path, scale in names.loras:
        add_lora(path, scale, {"unet": networks.unet, "text_encoder": networks.text_encoder})
    for controlnet in controlnets:
        controlnet.controlnet_cond_embedding = nn.Identity()  # it is done before, once a map
    for network in (networks.unet, *controlnets):
        seeing = [name for name in network.attn_processors if name.startswith("up_blocks") and ".attn1." in name]
        last = seeing[-1] if seeing else None
        layers = {name: CrossFrameAttention(networks.view, product, name == last) for name in network.attn_processors}
        network.set_attn_processor(layers)
    for network in (networks.unet, networks.vae, *controlnets, *networks.map_embeddings):
        network.to(memory_format=torch.channels_last)  # what convolutions are fastest with
    return networks


def find_model(key: str, name: str, files: tuple[str, ...]) -> Path:
    """The folder of a model with all of `files`: a local one, or a hub model's, downloaded if it is not there yet."""
    pickled = any((Path(name) / file).with_suffix(".bin").exists() for file in files)
    hint = (
        "pickled weights (.bin) are not read, since they can run code: convert them to .safetensors"
        if pickled
        else "is it a Stable Diffusion 1.x model (or ControlNet) in diffusers layout?"
    )
    with _quiet():
        return find_files(key, name, files, ALSO_DOWNLOADED if files is MODEL_FILES else (), hint)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number type of this name; auto: float16 on a GPU, float32 elsewhere."""
    if name == "auto":
        name = "float16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def _load_controlnet(name: str, dtype: torch.dtype) -> ControlNetModel:
    folder = find_model("controlnet_model_id", name, CONTROLNET_FILES)
    with explained("controlnet_model_id", name):
        return _load(ControlNetModel, folder, None, dtype)


def _load_vae(name: str, dtype: torch.dtype) -> AutoencoderKL | AutoencoderTiny:
    """A VAE's own folder, or the `vae` of a whole model's."""
    whole = (Path(name) / "vae/config.json").exists()
    folder = find_model("vae", name, VAE_FILES if not whole else tuple(f"vae/{file}" for file in VAE_FILES))
    with explained("vae", name):
        part = "vae" if whole else None
        tiny = AutoencoderTiny.load_config(folder, subfolder=part).get("_class_name") == "AutoencoderTiny"
        return _load(AutoencoderTiny if tiny else AutoencoderKL, folder, part, dtype)


def _load(kind: Any, folder: Path, part: str | None, dtype: torch.dtype) -> Any:
    where = {} if part is None else {"subfolder": part}
    typed = {"dtype": dtype} if kind is CLIPTextModel else {"torch_dtype": dtype}
    network, info = kind.from_pretrained(
        folder, **where, **typed, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if missing := info["missing_keys"]:  # the libraries would fill them with random numbers
        raise ValueError(f"{part or 'its weights'} lacks {len(missing)} tensors, {sorted(missing)[0]} for one")
    return network.eval().requires_grad_(False)


def _check_fit(names: ModelNames, networks: Networks) -> None:
    """Stops at models that load but that this loop's mathematics does not hold for."""
    unet, vae = networks.unet.config, networks.vae.config
    problems = {
        f"predicts {networks.prediction!r}, this loop knows {' and '.join(PREDICTIONS)}": networks.prediction
        not in PREDICTIONS,
        "is a Stable Diffusion XL model, which is not supported": unet["addition_embed_type"] is not None,
        f"has {unet['in_channels']} input channels, not {LATENT_CHANNELS}": unet["in_channels"] != LATENT_CHANNELS,
    }
    for problem in (text for text, holds in problems.items() if holds):
        raise DiffSynthError(f"model_id: {names.model_id} {problem}")
    factor, channels = 2 ** (len(vae["block_out_channels"]) - 1), vae["latent_channels"]
    if (factor, channels) != (LATENT_FACTOR, LATENT_CHANNELS):
        whose = f"vae: {names.vae}" if names.vae else f"model_id: {names.model_id} has a VAE that"
        raise DiffSynthError(
            f"{whose} makes {channels} channels of an eighth of the size, not {LATENT_CHANNELS} of an eighth"
            if factor == LATENT_FACTOR else f"{whose} shrinks images by {factor}, not by {LATENT_FACTOR}"
        )  # fmt: skip
    for name, controlnet in zip(names.controlnets, networks.controlnets, strict=True):
        for key in ("cross_attention_dim", "block_out_channels", "layers_per_block"):
            if controlnet.config[key] != unet[key]:
                raise DiffSynthError(
                    f"controlnet_model_id: {name} does not fit {names.model_id}: "
                    f"its {key} is {controlnet.config[key]}, the model's {unet[key]}",
                    "both must be made for the same version of Stable Diffusion",
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers and transformers talk about their own affairs while they load."""
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    with no_logs():
        yield
