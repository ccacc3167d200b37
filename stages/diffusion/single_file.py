"""Load networks from single files: original Stable Diffusion 1.x checkpoints, and single networks in diffusers layout.

Sizes are inferred from the tensors. Heads and groups of norms cannot be, but are the same in all 1.x models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

# `from_single_file(config=...)` is built on these functions and gives the same networks, as a test shows. It is not
# used because it needs to know the sizes in advance, and cannot say which tensor is missing from a damaged file.
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from stages.base.errors import DiffSynthError
from stages.diffusion.tensor_files import read_tensors

Tensors: TypeAlias = Mapping[str, torch.Tensor]
Network = TypeVar("Network", bound=nn.Module)

UNET, TEXT_ENCODER, VAE = "model.diffusion_model.", "cond_stage_model.transformer.", "first_stage_model."
HEADS = 8  # of the U-Net's attention
TEXT_HEAD = 64  # channels per head of the text encoder
SCALING_FACTOR = 0.18215  # of latents

CHECKPOINT, CONTROLNET, BARE_VAE = "a Stable Diffusion 1.x checkpoint", "a ControlNet", "a VAE"
OTHER_MODEL = "only Stable Diffusion 1.x models are supported"
# The kind of a file, by the first of these patterns that matches the name of a tensor, and a hint on how to use it.
KINDS = {
    r"(.*[._])?(lora[._]|hada_w|lokr_w)": ("a LoRA", "use it with the key loras"),
    r"emb_params|string_to_param|clip_l|clip_g": ("a textual inversion", "use it with the key embeddings"),
    r"conditioner\.|(.+\.)?label_emb\.|add_embedding\.": ("made for Stable Diffusion XL", OTHER_MODEL),
    r"(.+\.)?joint_blocks\.": ("made for Stable Diffusion 3", OTHER_MODEL),
    r"(.+\.)?double_blocks\.": ("made for Flux", OTHER_MODEL),
    r"cond_stage_model\.model\.": ("a Stable Diffusion 2.x checkpoint", OTHER_MODEL),
    r"v_pred$": (
        "a checkpoint that predicts v, which can only be loaded from a diffusers folder",
        "convert it to a folder whose scheduler_config.json sets prediction_type",
    ),
    r"(control_model\.)?input_hint_block\.|controlnet_cond_embedding\.": (
        CONTROLNET, "use it with the key controlnet_model_id",
    ),
    r"model\.diffusion_model\.input_blocks\.": (CHECKPOINT, "use it with the key model_id"),
    r"(first_stage_model\.)?(encoder|decoder)\.(conv_in|down|up)": (BARE_VAE, "use it with the key vae"),
    r"down_blocks\.|input_blocks\.": ("a U-Net alone", "give the checkpoint or folder of the whole model"),
}  # fmt: skip
# Layers of a VAE that have other names in old versions of diffusers.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Checkpoint:
    """The networks of a whole model, in evaluation mode in CPU memory. `vae` is None if it was not requested."""

    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL | None


def load_checkpoint(path: str, dtype: torch.dtype, allow_pickle: bool, with_vae: bool) -> Checkpoint:
    """Load the networks of a checkpoint.

    Raises:
        DiffSynthError: The file is damaged, or not a Stable Diffusion 1.x checkpoint.
        ValueError: Tensors are missing or have the wrong shape.
    """
    tensors = _read("model_id", path, allow_pickle, (CHECKPOINT,))
    parts = {TEXT_ENCODER: "a text encoder"} | ({VAE: "a VAE; set one with the key vae"} if with_vae else {})
    for prefix, part in parts.items():
        if not _under(tensors, prefix):
            raise DiffSynthError(f"model_id: {path} has no tensors {prefix}*", f"the checkpoint lacks {part}")
    return Checkpoint(
        _text_encoder(_under(tensors, TEXT_ENCODER), dtype),
        _unet(_under(tensors, UNET), dtype),
        _vae(_under(tensors, VAE), dtype) if with_vae else None,
    )


def load_controlnet(path: str, dtype: torch.dtype, allow_pickle: bool) -> ControlNetModel:
    """Load a ControlNet. Raises as `load_checkpoint`."""
    tensors = _read("controlnet_model_id", path, allow_pickle, (CONTROLNET,))
    if "controlnet_cond_embedding.conv_in.weight" not in tensors:
        own = _under(tensors, "control_model.") or tensors
        tensors = convert_controlnet_checkpoint(dict(own), {"layers_per_block": _layers(own)})
    hint = "controlnet_cond_embedding."
    steps = _count(tensors, rf"{hint}blocks\.(\d+)\.") // 2  # every second layer halves the size
    channels = [f"{hint}conv_in.weight", *(f"{hint}blocks.{2 * step + 1}.weight" for step in range(steps))]
    config = _diffusion_config(tensors) | {
        "conditioning_channels": _shape(tensors, f"{hint}conv_in.weight")[1],
        "conditioning_embedding_out_channels": tuple(_shape(tensors, name)[0] for name in channels),
        "global_pool_conditions": "shuffle" in Path(path).name.lower(),  # cannot be inferred from tensors
    }
    return _fill(lambda: ControlNetModel.from_config(config), tensors, dtype, "the ControlNet")


def load_vae(path: str, dtype: torch.dtype, allow_pickle: bool) -> AutoencoderKL:
    """Load a VAE from its own file or from a checkpoint. Raises as `load_checkpoint`."""
    tensors = _read("vae", path, allow_pickle, (BARE_VAE, CHECKPOINT))
    return _vae(_under(tensors, VAE) or tensors, dtype)


def _read(key: str, path: str, allow_pickle: bool, kinds: tuple[str, ...]) -> Tensors:
    """Read the tensors of a file, which must be of one of these kinds."""
    tensors = read_tensors(key, path, allow_pickle)
    for pattern, (kind, hint) in KINDS.items():
        if any(re.match(pattern, name) for name in tensors):
            if kind not in kinds:
                raise DiffSynthError(f"{key}: {path} is {kind}, not {kinds[0]}", hint)
            return tensors
    raise DiffSynthError(f"{key}: {path} is not {kinds[0]}", f"none of its {len(tensors)} tensors has a known name")


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
    return _fill(lambda: CLIPTextModel(config), tensors, dtype, "the text encoder")


def _unet(tensors: Tensors, dtype: torch.dtype) -> UNet2DConditionModel:
    whole = {UNET + name: tensor for name, tensor in tensors.items()}
    converted = convert_ldm_unet_checkpoint(whole, {"layers_per_block": _layers(tensors)})
    config = _diffusion_config(converted)
    types = [kind.replace("Down", "Up") for kind in reversed(_down_block_types(converted))]
    config |= {"out_channels": _shape(converted, "conv_out.weight")[0], "up_block_types": types}
    return _fill(lambda: UNet2DConditionModel.from_config(config), converted, dtype, "the U-Net")


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
    return _fill(lambda: AutoencoderKL.from_config(config), tensors, dtype, "the VAE")


def _fill(make: Callable[[], Network], tensors: Tensors, dtype: torch.dtype, what: str) -> Network:
    """Make a network without weights and fill it with `tensors`."""
    with init_empty_weights():
        network = make()
    expected = network.state_dict()
    if missing := sorted(name for name in expected if tensors.get(name) is None):
        raise ValueError(f"{what} lacks {len(missing)} tensors, for example {missing[0]}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(f"{what}: {name} is {list(tensors[name].shape)}, not {list(tensor.shape)}")
    network.load_state_dict({name: tensors[name] for name in expected}, assign=True)
    return network.to(dtype).eval().requires_grad_(False)


# --- inferred sizes -----------------------------------------------------------------------------------


def _diffusion_config(tensors: Tensors) -> dict[str, object]:
    """Infer the configuration that U-Net and ControlNet share, from tensors in diffusers layout."""
    attends = _levels_with_attention(tensors)
    first = f"down_blocks.{attends.index(True) if True in attends else 0}.attentions.0.transformer_blocks.0."
    return {
        "in_channels": _shape(tensors, "conv_in.weight")[1],
        "block_out_channels": _block_channels(tensors, ""),
        "layers_per_block": _count(tensors, r"down_blocks\.0\.resnets\.(\d+)\."),
        "cross_attention_dim": _shape(tensors, f"{first}attn2.to_k.weight")[1],
        "attention_head_dim": HEADS,  # diffusers gives this name to the number of heads
        "down_block_types": _down_block_types(tensors),
    }


def _levels_with_attention(tensors: Tensors) -> list[bool]:
    levels = range(_count(tensors, r"down_blocks\.(\d+)\."))
    return [any(name.startswith(f"down_blocks.{level}.attentions.") for name in tensors) for level in levels]


def _down_block_types(tensors: Tensors) -> list[str]:
    return ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in _levels_with_attention(tensors)]


def _block_channels(tensors: Tensors, prefix: str) -> list[int]:
    levels = range(_count(tensors, rf"{re.escape(prefix)}down_blocks\.(\d+)\."))
    return [_shape(tensors, f"{prefix}down_blocks.{level}.resnets.0.conv1.weight")[0] for level in levels]


def _layers(tensors: Tensors) -> int:
    """Return the layers per block of a U-Net in the original layout: block 0 is a convolution, each ends in `op`."""
    ends = [int(found[1]) for name in tensors if (found := re.match(r"input_blocks\.(\d+)\.0\.op\.", name))]
    return min(ends, default=3) - 1


def _count(tensors: Tensors, pattern: str) -> int:
    """Count the different numbers in names that begin with this pattern."""
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})


def _shape(tensors: Tensors, name: str) -> torch.Size:
    if tensors.get(name) is None:
        raise ValueError(f"the tensor {name} is missing")
    return tensors[name].shape


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
