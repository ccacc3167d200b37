"""Networks from single files: the layout in which Stable Diffusion 1.x was published, and bare networks in diffusers'.

How large a network is can be read off its tensors; what cannot (heads, groups of norms) is the same in all of 1.x.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

# The functions behind `from_single_file(config=...)`, which works offline and gives the same networks (a test compares
# them). But it needs to know the sizes first, in either layout, and cannot say which tensor a damaged file lacks.
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel

from stages.base.errors import DiffSynthError
from stages.diffusion.tensor_files import read_tensors

Tensors = Mapping[str, torch.Tensor]

UNET, TEXT_ENCODER, VAE = "model.diffusion_model.", "cond_stage_model.transformer.", "first_stage_model."
HEADS = 8  # of the U-Net's attention
TEXT_HEAD = 64  # channels of a head of the text encoder
SCALING_FACTOR = 0.18215  # of latents

CHECKPOINT, CONTROLNET, BARE_VAE = "a Stable Diffusion 1.x checkpoint", "a ControlNet", "a VAE"
OTHER_MODEL = "Stable Diffusion 1.x models are supported"
# What a file is, by the first of these patterns that one of its tensors' names fits, and what to do with such a file.
KINDS = {
    r"(.*[._])?(lora[._]|hada_w|lokr_w)": ("a LoRA", "it is for the key loras"),
    r"emb_params|string_to_param|clip_l|clip_g": ("a textual inversion", "it is for the key embeddings"),
    r"conditioner\.|(.+\.)?label_emb\.|add_embedding\.": ("made for Stable Diffusion XL", OTHER_MODEL),
    r"(.+\.)?joint_blocks\.": ("made for Stable Diffusion 3", OTHER_MODEL),
    r"(.+\.)?double_blocks\.": ("made for Flux", OTHER_MODEL),
    r"cond_stage_model\.model\.": ("a Stable Diffusion 2.x checkpoint", OTHER_MODEL),
    r"v_pred$": (
        "a checkpoint that predicts v, which is read from diffusers folders only",
        "convert it to one, whose scheduler_config.json says so",
    ),
    r"(control_model\.)?input_hint_block\.|controlnet_cond_embedding\.": (
        CONTROLNET, "it is for the key controlnet_model_id",
    ),
    r"model\.diffusion_model\.input_blocks\.": (CHECKPOINT, "it is for the key model_id"),
    r"(first_stage_model\.)?(encoder|decoder)\.(conv_in|down|up)": (BARE_VAE, "it is for the key vae"),
    r"down_blocks\.|input_blocks\.": ("a U-Net alone", "give the checkpoint or folder of the whole model"),
}  # fmt: skip
# Names that layers of a VAE in diffusers' layout had in its old versions.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Checkpoint:
    """The networks of a whole model in evaluation mode on the CPU. `vae`: None if it was not asked for."""

    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL | None


def load_checkpoint(path: str, dtype: torch.dtype, allow_pickle: bool, with_vae: bool) -> Checkpoint:
    """Raises DiffSynthError if the file is damaged, or says what it is if it is no Stable Diffusion 1.x checkpoint;
    ValueError if tensors are missing or of a wrong shape."""
    tensors = _read("model_id", path, allow_pickle, (CHECKPOINT,))
    parts = {TEXT_ENCODER: "a text encoder"} | ({VAE: "a VAE; name one by the key vae"} if with_vae else {})
    for prefix, part in parts.items():
        if not _under(tensors, prefix):
            raise DiffSynthError(f"model_id: {path} has no tensors {prefix}*", f"the checkpoint lacks {part}")
    return Checkpoint(
        _text_encoder(_under(tensors, TEXT_ENCODER), dtype),
        _unet(_under(tensors, UNET), dtype),
        _vae(_under(tensors, VAE), dtype) if with_vae else None,
    )


def load_controlnet(path: str, dtype: torch.dtype, allow_pickle: bool) -> ControlNetModel:
    """Raises as `load_checkpoint`."""
    tensors = _read("controlnet_model_id", path, allow_pickle, (CONTROLNET,))
    if "controlnet_cond_embedding.conv_in.weight" not in tensors:
        own = _under(tensors, "control_model.") or tensors
        tensors = convert_controlnet_checkpoint(dict(own), {"layers_per_block": _layers(own)})
    hint = "controlnet_cond_embedding."
    steps = _count(tensors, rf"{hint}blocks\.(\d+)\.") // 2  # each ends in a layer that halves the size
    channels = [f"{hint}conv_in.weight", *(f"{hint}blocks.{2 * step + 1}.weight" for step in range(steps))]
    config = _diffusion_config(tensors) | {
        "conditioning_channels": _shape(tensors, f"{hint}conv_in.weight")[1],
        "conditioning_embedding_out_channels": tuple(_shape(tensors, name)[0] for name in channels),
        "global_pool_conditions": "shuffle" in Path(path).name.lower(),  # tensors do not tell; its makers' names do
    }
    return _filled(ControlNetModel, config, tensors, dtype, "the ControlNet")


def load_vae(path: str, dtype: torch.dtype, allow_pickle: bool) -> AutoencoderKL:
    """A VAE's own file, or the VAE of a checkpoint. Raises as `load_checkpoint`."""
    tensors = _read("vae", path, allow_pickle, (BARE_VAE, CHECKPOINT))
    return _vae(_under(tensors, VAE) or tensors, dtype)


def _read(key: str, path: str, allow_pickle: bool, wanted: tuple[str, ...]) -> Tensors:
    """The tensors of a file that must be of a kind that is `wanted`."""
    tensors = read_tensors(key, path, allow_pickle)
    for pattern, (kind, hint) in KINDS.items():
        if any(re.match(pattern, name) for name in tensors):
            if kind not in wanted:
                raise DiffSynthError(f"{key}: {path} is {kind}, not {wanted[0]}", hint)
            return tensors
    raise DiffSynthError(f"{key}: {path} is not {wanted[0]}", f"none of its {len(tensors)} tensors has a known name")


# --- networks -------------------------------------------------------------------------------------------


def _text_encoder(tensors: Tensors, dtype: torch.dtype) -> CLIPTextModel:
    tensors = _under(tensors, "text_model.") or tensors
    words, width = _shape(tensors, "embeddings.token_embedding.weight")
    config = CLIPTextConfig(
        vocab_size=words, hidden_size=width, num_attention_heads=max(width // TEXT_HEAD, 1),
        num_hidden_layers=_count(tensors, r"encoder\.layers\.(\d+)\."),
        intermediate_size=_shape(tensors, "encoder.layers.0.mlp.fc1.weight")[0],
        max_position_embeddings=_shape(tensors, "embeddings.position_embedding.weight")[0],
        bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=words - 1,
    )  # fmt: skip
    return _filled(CLIPTextModel, config, tensors, dtype, "the text encoder")


def _unet(tensors: Tensors, dtype: torch.dtype) -> UNet2DConditionModel:
    whole = {UNET + name: tensor for name, tensor in tensors.items()}
    converted = convert_ldm_unet_checkpoint(whole, {"layers_per_block": _layers(tensors)})
    config = _diffusion_config(converted)
    types = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
    config |= {"out_channels": _shape(converted, "conv_out.weight")[0], "up_block_types": types}
    return _filled(UNet2DConditionModel, config, converted, dtype, "the U-Net")


def _vae(tensors: Tensors, dtype: torch.dtype) -> AutoencoderKL:
    if any(name.startswith("encoder.down_blocks.") for name in tensors):
        old = rf"(attentions\.0)\.({'|'.join(OLD_NAMES)})\."
        tensors = {re.sub(old, lambda found: f"{found[1]}.{OLD_NAMES[found[2]]}.", name): tensor
                   for name, tensor in tensors.items()}  # fmt: skip
    else:
        levels = range(_count(tensors, r"encoder\.down\.(\d+)\."))
        tensors = convert_ldm_vae_checkpoint(dict(tensors), {"down_block_types": levels, "up_block_types": levels})
    levels = range(_count(tensors, r"encoder\.down_blocks\.(\d+)\."))
    config = {
        "in_channels": _shape(tensors, "encoder.conv_in.weight")[1],
        "out_channels": _shape(tensors, "decoder.conv_out.weight")[0],
        "latent_channels": _shape(tensors, "decoder.conv_in.weight")[1],
        "block_out_channels": _block_channels(tensors, "encoder."),
        "layers_per_block": _count(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
        "scaling_factor": SCALING_FACTOR,
    }
    return _filled(AutoencoderKL, config, tensors, dtype, "the VAE")


def _filled(kind: Any, config: Any, tensors: Tensors, dtype: torch.dtype, what: str) -> Any:
    """The network of this kind and configuration that holds `tensors`."""
    with init_empty_weights():
        network = kind(config) if kind is CLIPTextModel else kind.from_config(config)
    expected = network.state_dict()
    if missing := sorted(name for name in expected if tensors.get(name) is None):
        raise ValueError(f"{what} lacks {len(missing)} tensors, {missing[0]} for one")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(f"{what}: {name} is {list(tensors[name].shape)}, not {list(tensor.shape)}")
    network.load_state_dict({name: tensors[name] for name in expected}, assign=True)
    return network.to(dtype).eval().requires_grad_(False)


# --- what tensors tell ----------------------------------------------------------------------------------


def _diffusion_config(tensors: Tensors) -> dict[str, Any]:
    """What U-Net and ControlNet have in common, of tensors in diffusers' layout."""
    levels = range(_count(tensors, r"down_blocks\.(\d+)\."))
    attends = [any(name.startswith(f"down_blocks.{level}.attentions.") for name in tensors) for level in levels]
    first = f"down_blocks.{attends.index(True) if True in attends else 0}.attentions.0.transformer_blocks.0."
    return {
        "in_channels": _shape(tensors, "conv_in.weight")[1],
        "block_out_channels": _block_channels(tensors, ""),
        "layers_per_block": _count(tensors, r"down_blocks\.0\.resnets\.(\d+)\."),
        "cross_attention_dim": _shape(tensors, f"{first}attn2.to_k.weight")[1],
        "attention_head_dim": HEADS,  # the name is diffusers' mistake, which its models keep
        "down_block_types": ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
    }


def _block_channels(tensors: Tensors, prefix: str) -> list[int]:
    levels = range(_count(tensors, rf"{re.escape(prefix)}down_blocks\.(\d+)\."))
    return [_shape(tensors, f"{prefix}down_blocks.{level}.resnets.0.conv1.weight")[0] for level in levels]


def _layers(tensors: Tensors) -> int:
    """Layers a block of a U-Net in the original layout: block 0 is the first convolution, and each ends in `op`."""
    ends = [int(found[1]) for name in tensors if (found := re.match(r"input_blocks\.(\d+)\.0\.op\.", name))]
    return min(ends, default=3) - 1


def _count(tensors: Tensors, pattern: str) -> int:
    """How many different numbers names that begin with this pattern have."""
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})


def _shape(tensors: Tensors, name: str) -> torch.Size:
    if tensors.get(name) is None:
        raise ValueError(f"the tensor {name} is missing")
    return tensors[name].shape


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
