"""Networks from diffusers folders, hub ids and single files, checked before they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from stages.diffusion.attention import CrossFrameAttention, Product, pick_product
from stages.diffusion.embeddings import add_embedding
from stages.diffusion.layout import NETWORKS, find_model, is_single_file, vae_part, weight_names
from stages.diffusion.lora import add_lora
from stages.diffusion.settings import ModelNames
from stages.diffusion.single_file import load_checkpoint, load_controlnet, load_vae
from stages.diffusion.vocabulary import clip_tokenizer
from stages.models import TOKENIZER
from stages.models.weights import explained, first_there, no_logs, pick_device

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of Stable Diffusion 1.x
SPECIAL = {9: "an inpainting model", 8: "an InstructPix2Pix model"}  # by the channels that the U-Net takes
PREDICTIONS = ("epsilon", "v_prediction")  # the noise; or v, a mixture of noise and clean latents


@dataclass(frozen=True)
class Networks:
    """The networks of one Stable Diffusion model with its ControlNets, in evaluation mode, on the host: who uses them
    brings them to `device`.

    `tiny_vae`: an autoencoder for predicted frames, which are decoded only to be smoothed. `map_embeddings`: the
    ControlNets' first layers, which see nothing but the control map; the rest of each net takes what they give.
    `alphas` float32 [1000], on the host: the cumulative products of 1 - beta. `prediction`: what the U-Net gives,
    one of PREDICTIONS. `inverted`: for ids of words that textual inversion brought, the ids of their vectors.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    tiny_vae: AutoencoderTiny | None
    controlnets: tuple[ControlNetModel, ...]
    map_embeddings: tuple[nn.Module, ...]
    alphas: torch.Tensor
    prediction: str
    inverted: Mapping[int, tuple[int, ...]]
    device: torch.device
    dtype: torch.dtype

    def all(self) -> list[nn.Module]:
        tiny = [] if self.tiny_vae is None else [self.tiny_vae]
        return [self.text_encoder, self.unet, self.vae, *tiny, *self.controlnets, *self.map_embeddings]


def load_networks(names: ModelNames) -> Networks:
    """Raises DiffSynthError, naming the model, if one is missing, damaged, or not made for this loop."""
    device = pick_device(names.device)
    dtype = pick_dtype(names.dtype, device)
    with _quiet():
        other_vae = None if names.vae is None else _load_vae(names.vae, dtype, names.allow_pickle)
        tiny = other_vae if isinstance(other_vae, AutoencoderTiny) else None
        with explained("model_id", names.model_id):
            load = _from_file if is_single_file(names.model_id) else _from_folder
            model, tokenizer, scheduler = load(names, dtype, with_vae=other_vae is tiny)
        controlnets = [_load_controlnet(name, dtype, names.allow_pickle) for name in names.controlnets]
        networks = Networks(
            tokenizer=tokenizer,
            text_encoder=model["text_encoder"],
            unet=model["unet"],
            vae=model["vae"] if other_vae is None or tiny else other_vae,
            tiny_vae=tiny,
            controlnets=tuple(controlnets),
            map_embeddings=tuple(controlnet.controlnet_cond_embedding for controlnet in controlnets),
            alphas=scheduler.alphas_cumprod.float(),
            prediction=scheduler.config["prediction_type"],
            inverted={},
            device=device,
            dtype=dtype,
        )
    _check_fit(names, networks)
    return _adapt(networks, names)


def _adapt(networks: Networks, names: ModelNames) -> Networks:
    """The networks with all that is added to them."""
    for path, scale in names.loras:
        parts = {"unet": networks.unet, "text_encoder": networks.text_encoder}
        add_lora(path, scale, parts, names.allow_pickle)
    inverted: dict[int, tuple[int, ...]] = {}
    for path, token in names.embeddings:
        inverted |= add_embedding(path, token, networks.tokenizer, networks.text_encoder, names.allow_pickle)
    _let_see(networks, pick_product(names.backend, networks.device))
    for network in (networks.unet, networks.vae, *networks.controlnets, *networks.map_embeddings):
        network.to(memory_format=torch.channels_last)  # what convolutions are fastest with
    return replace(networks, inverted=inverted)


def _let_see(networks: Networks, product: Product) -> None:
    """Take out the ControlNets' first layers, which run once per map; let frames see each other in attention layers."""
    for controlnet in networks.controlnets:
        controlnet.controlnet_cond_embedding = nn.Identity()
    for network in (networks.unet, *networks.controlnets):
        seeing = [name for name in network.attn_processors if name.startswith("up_blocks") and ".attn1." in name]
        last = seeing[-1] if seeing else None
        layers = {name: CrossFrameAttention(product, name == last) for name in network.attn_processors}
        network.set_attn_processor(layers)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number type of this name; auto: float16 on a GPU, float32 elsewhere."""
    if name == "auto":
        name = "float16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def _from_folder(
    names: ModelNames, dtype: torch.dtype, with_vae: bool
) -> tuple[dict[str, Any], CLIPTokenizer, DDIMScheduler]:
    folder = find_model("model_id", names.model_id, NETWORKS, names.allow_pickle)
    kinds = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
    wanted = [part for part in NETWORKS if part != "vae" or with_vae]
    model = {part: _load(kinds[part], folder, part, dtype, names.allow_pickle) for part in wanted}
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    return model, tokenizer, DDIMScheduler.from_pretrained(folder, subfolder="scheduler")


def _from_file(
    names: ModelNames, dtype: torch.dtype, with_vae: bool
) -> tuple[dict[str, Any], CLIPTokenizer, DDIMScheduler]:
    checkpoint = load_checkpoint(names.model_id, dtype, names.allow_pickle, with_vae)
    beside = Path(names.model_id).parent / TOKENIZER
    tokenizer = CLIPTokenizer.from_pretrained(beside) if beside.is_dir() else clip_tokenizer()
    return vars(checkpoint), tokenizer, DDIMScheduler(**BETAS)


def _load_controlnet(name: str, dtype: torch.dtype, allow_pickle: bool) -> ControlNetModel:
    with explained("controlnet_model_id", name):
        if is_single_file(name):
            return load_controlnet(name, dtype, allow_pickle)
        folder = find_model("controlnet_model_id", name, ("",), allow_pickle)
        return _load(ControlNetModel, folder, "", dtype, allow_pickle)


def _load_vae(name: str, dtype: torch.dtype, allow_pickle: bool) -> AutoencoderKL | AutoencoderTiny:
    """A VAE's own folder or file, or the VAE of a whole model's."""
    with explained("vae", name):
        if is_single_file(name):
            return load_vae(name, dtype, allow_pickle)
        part = vae_part(name)
        folder = find_model("vae", name, (part,), allow_pickle)
        tiny = AutoencoderTiny.load_config(folder / part).get("_class_name") == "AutoencoderTiny"
        return _load(AutoencoderTiny if tiny else AutoencoderKL, folder, part, dtype, allow_pickle)


def _load(kind: Any, folder: Path, part: str, dtype: torch.dtype, allow_pickle: bool) -> Any:
    weights = first_there(folder, weight_names(part, allow_pickle)) or ""
    where = {"subfolder": part} if part else {}
    typed = {"dtype": dtype} if kind is CLIPTextModel else {"torch_dtype": dtype}
    network, info = kind.from_pretrained(
        folder, **where, **typed, use_safetensors=weights.endswith(".safetensors"), local_files_only=True,
        variant="fp16" if ".fp16." in weights else None, output_loading_info=True,
    )  # fmt: skip
    if missing := info["missing_keys"]:  # the libraries would fill them with random numbers
        raise ValueError(f"{part or 'its weights'} lacks {len(missing)} tensors, {sorted(missing)[0]} for one")
    return network.eval().requires_grad_(False)


def _check_fit(names: ModelNames, networks: Networks) -> None:
    """Stops at models that load but that this loop's mathematics does not hold for."""
    unet, vae = networks.unet.config, networks.vae.config
    words, width = networks.text_encoder.get_input_embeddings().weight.shape
    problems = {
        f"predicts {networks.prediction!r}, this loop knows {' and '.join(PREDICTIONS)}": networks.prediction
        not in PREDICTIONS,
        "begins with pure noise (zero terminal SNR), which is not supported": float(networks.alphas[-1]) <= 0,
        "is a Stable Diffusion XL model, which is not supported": unet["addition_embed_type"] is not None,
        f"is {SPECIAL.get(unet['in_channels'], 'another kind of model')}: its U-Net takes {unet['in_channels']} "
        f"channels, not {LATENT_CHANNELS}": unet["in_channels"] != LATENT_CHANNELS,
        f"has a text encoder that gives {width} channels, but its U-Net takes {unet['cross_attention_dim']}": width
        != unet["cross_attention_dim"],
        f"has a tokenizer of {len(networks.tokenizer)} words, but its text encoder knows {words}": words
        < len(networks.tokenizer),
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
