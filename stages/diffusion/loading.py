"""Load networks from diffusers folders, hub ids and single files, and check that they fit together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, ModelMixin, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from stages.base.errors import DiffSynthError
from stages.diffusion import LATENT_CHANNELS, LATENT_FACTOR
from stages.diffusion.attention import CrossFrameAttention
from stages.diffusion.embeddings import add_embedding, word_vectors
from stages.diffusion.layout import NETWORKS, find_model, is_single_file, vae_part, weight_names
from stages.diffusion.lora import add_lora
from stages.diffusion.settings import ModelNames
from stages.diffusion.single_file import Checkpoint, load_checkpoint, load_controlnet, load_vae
from stages.diffusion.vocabulary import clip_tokenizer
from stages.models import TOKENIZER
from stages.models.weights import explained, first_existing, no_logs, pick_device

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of Stable Diffusion 1.x
SPECIAL = {9: "an inpainting model", 8: "an InstructPix2Pix model"}  # by input channels of the U-Net
PREDICTIONS = ("epsilon", "v_prediction")  # noise; or v, a mixture of noise and clean latents

Network = TypeVar("Network", bound="PreTrainedModel | ModelMixin")


@dataclass(frozen=True)
class Networks:
    """The networks of a Stable Diffusion model with ControlNets, in evaluation mode.

    They are in CPU memory; whoever uses them moves them to `device`.

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
    """Load the networks of a job.

    Raises:
        DiffSynthError: A model is missing, damaged or not supported.
    """
    device = pick_device(names.device)
    dtype = pick_dtype(names.dtype, device)
    with _quiet():
        other_vae = None if names.vae is None else _load_vae(names.vae, dtype, names.allow_pickle)
        tiny = other_vae if isinstance(other_vae, AutoencoderTiny) else None
        with explained("model_id", names.model_id):
            load = _from_file if is_single_file(names.model_id) else _from_folder
            model, tokenizer, scheduler = load(names, dtype, with_vae=other_vae is tiny)
        vae = other_vae if isinstance(other_vae, AutoencoderKL) else model.vae
        assert vae is not None  # the model's own is loaded unless there is another one
        controlnets = [_load_controlnet(name, dtype, names.allow_pickle) for name in names.controlnets]
        networks = Networks(
            tokenizer=tokenizer,
            text_encoder=model.text_encoder,
            unet=model.unet,
            vae=vae,
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
    """Add LoRA files, textual inversions and cross-frame attention to the networks."""
    for path, scale in names.loras:
        parts = {"unet": networks.unet, "text_encoder": networks.text_encoder}
        add_lora(path, scale, parts, names.allow_pickle)
    inverted: dict[int, tuple[int, ...]] = {}
    for path, token in names.embeddings:
        inverted |= add_embedding(path, token, networks.tokenizer, networks.text_encoder, names.allow_pickle)
    _install_attention(networks)
    for network in (networks.unet, networks.vae, *networks.controlnets, *networks.map_embeddings):
        network.to(memory_format=torch.channels_last)  # fastest for convolutions
    return replace(networks, inverted=inverted)


def _install_attention(networks: Networks) -> None:
    """Take out the ControlNets' first layers, which run once per map; replace all attention layers."""
    for controlnet in networks.controlnets:
        controlnet.controlnet_cond_embedding = nn.Identity()
    attending: tuple[UNet2DConditionModel | ControlNetModel, ...] = (networks.unet, *networks.controlnets)
    for network in attending:
        names = network.attn_processors
        self_attention = [name for name in names if name.startswith("up_blocks") and ".attn1." in name]
        last = self_attention[-1] if self_attention else None
        layers = {name: CrossFrameAttention(name == last) for name in network.attn_processors}
        network.set_attn_processor(layers)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of this name. `auto` is float16 on CUDA, float32 elsewhere."""
    if name == "auto":
        name = "float16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def _from_folder(
    names: ModelNames, dtype: torch.dtype, with_vae: bool
) -> tuple[Checkpoint, CLIPTokenizer, DDIMScheduler]:
    folder = find_model("model_id", names.model_id, NETWORKS, names.allow_pickle)
    model = Checkpoint(
        _load(CLIPTextModel, folder, "text_encoder", dtype, names.allow_pickle),
        _load(UNet2DConditionModel, folder, "unet", dtype, names.allow_pickle),
        _load(AutoencoderKL, folder, "vae", dtype, names.allow_pickle) if with_vae else None,
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    return model, tokenizer, DDIMScheduler.from_pretrained(folder, subfolder="scheduler")


def _from_file(
    names: ModelNames, dtype: torch.dtype, with_vae: bool
) -> tuple[Checkpoint, CLIPTokenizer, DDIMScheduler]:
    checkpoint = load_checkpoint(names.model_id, dtype, names.allow_pickle, with_vae)
    folder = Path(names.model_id).parent / TOKENIZER
    tokenizer = CLIPTokenizer.from_pretrained(folder) if folder.is_dir() else clip_tokenizer()
    return checkpoint, tokenizer, DDIMScheduler(**BETAS)


def _load_controlnet(name: str, dtype: torch.dtype, allow_pickle: bool) -> ControlNetModel:
    with explained("controlnet_model_id", name):
        if is_single_file(name):
            return load_controlnet(name, dtype, allow_pickle)
        folder = find_model("controlnet_model_id", name, ("",), allow_pickle)
        return _load(ControlNetModel, folder, "", dtype, allow_pickle)


def _load_vae(name: str, dtype: torch.dtype, allow_pickle: bool) -> AutoencoderKL | AutoencoderTiny:
    """Load a VAE from its own folder or file, or from those of a whole model."""
    with explained("vae", name):
        if is_single_file(name):
            return load_vae(name, dtype, allow_pickle)
        part = vae_part(name)
        folder = find_model("vae", name, (part,), allow_pickle)
        tiny = AutoencoderTiny.load_config(folder / part).get("_class_name") == "AutoencoderTiny"
        if tiny:
            return _load(AutoencoderTiny, folder, part, dtype, allow_pickle)
        return _load(AutoencoderKL, folder, part, dtype, allow_pickle)


def _load(kind: type[Network], folder: Path, part: str, dtype: torch.dtype, allow_pickle: bool) -> Network:
    weights = first_existing(folder, weight_names(part, allow_pickle)) or ""
    where = {"subfolder": part} if part else {}
    typed = {"dtype": dtype} if kind is CLIPTextModel else {"torch_dtype": dtype}
    # Overloads and missing annotations hide the type of the result with `output_loading_info`.
    load = cast("Callable[..., tuple[Network, Mapping[str, Collection[str]]]]", kind.from_pretrained)
    network, info = load(
        folder, **where, **typed, use_safetensors=weights.endswith(".safetensors"), local_files_only=True,
        variant="fp16" if ".fp16." in weights else None, output_loading_info=True,
    )  # fmt: skip
    if missing := info["missing_keys"]:  # the libraries would initialise them randomly
        raise ValueError(f"{part or 'its weights'} lacks {len(missing)} tensors, for example {sorted(missing)[0]}")
    network.eval().requires_grad_(False)
    return network


def _check_fit(names: ModelNames, networks: Networks) -> None:
    """Raise DiffSynthError for models that load but are not supported."""
    unet, vae = networks.unet.config, networks.vae.config
    words, width = word_vectors(networks.text_encoder).shape
    problems = {
        f"predicts {networks.prediction!r}, but only {' and '.join(PREDICTIONS)} are supported": networks.prediction
        not in PREDICTIONS,
        "starts from pure noise (zero terminal SNR), which is not supported": float(networks.alphas[-1]) <= 0,
        "is a Stable Diffusion XL model, which is not supported": unet["addition_embed_type"] is not None,
        f"is {SPECIAL.get(unet['in_channels'], 'another kind of model')}: its U-Net takes {unet['in_channels']} "
        f"channels, not {LATENT_CHANNELS}": unet["in_channels"] != LATENT_CHANNELS,
        f"has a text encoder of {width} channels, but its U-Net needs {unet['cross_attention_dim']}": width
        != unet["cross_attention_dim"],
        f"has a tokenizer of {len(networks.tokenizer)} words, but its text encoder has {words}": words
        < len(networks.tokenizer),
    }
    for problem in (text for text, applies in problems.items() if applies):
        raise DiffSynthError(f"model_id: {names.model_id} {problem}")
    factor, channels = 2 ** (len(vae["block_out_channels"]) - 1), vae["latent_channels"]
    if (factor, channels) != (LATENT_FACTOR, LATENT_CHANNELS):
        whose = f"vae: {names.vae}" if names.vae else f"model_id: {names.model_id} has a VAE that"
        raise DiffSynthError(
            f"{whose} has latents of {channels} channels, not {LATENT_CHANNELS}"
            if factor == LATENT_FACTOR else f"{whose} scales images down by {factor}, not by {LATENT_FACTOR}"
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
    """Suppress log messages and progress bars of diffusers and transformers."""
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    with no_logs():
        yield
