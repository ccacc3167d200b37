"""Rename tensors to the names that Stable Diffusion 1.x was published with: the inverse of the loader."""

from __future__ import annotations

import re

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
OUTER = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "conv_out": "out.2",
         "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0",
         "controlnet_mid_block": "middle_block_out.0", "controlnet_cond_embedding.conv_in": "input_hint_block.0",
         "controlnet_cond_embedding.conv_out": "input_hint_block.14"}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet(network: UNet2DConditionModel | ControlNetModel) -> dict[str, torch.Tensor]:
    """The tensors of a U-Net or ControlNet by their original names, without a prefix."""
    layers = network.config["layers_per_block"]
    attends = ["CrossAttn" in kind for kind in network.config.get("up_block_types", ())]

    def original(name: str) -> str:
        stem, last = name.rsplit(".", 1)
        if stem in OUTER:
            return f"{OUTER[stem]}.{last}"
        if found := re.fullmatch(r"controlnet_down_blocks\.(\d+)", stem):
            return f"zero_convs.{found[1]}.0.{last}"
        if found := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)", stem):
            return f"input_hint_block.{2 * int(found[1]) + 2}.{last}"
        found = re.fullmatch(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(\w+)\.(\d+)\.(.+)", name)
        assert found is not None
        side, kind, inner = found[1], found[2], found[4]
        block, number = int(side.split(".")[1]) if "." in side else 0, int(found[3])
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{last}"
        if kind == "upsamplers":
            return f"output_blocks.{block * (layers + 1) + layers}.{2 if attends[block] else 1}.conv.{last}"
        if kind == "resnets":
            part = inner.rsplit(".", 1)[0]
            inner = f"{RESNET[part]}.{last}"
        if side == "mid_block":
            return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{inner}"
        place = f"input_blocks.{1 + block * (layers + 1) + number}" if side.startswith("down") else (
            f"output_blocks.{block * (layers + 1) + number}")  # fmt: skip
        return f"{place}.{1 if kind == 'attentions' else 0}.{inner}"

    return {original(name): tensor for name, tensor in network.state_dict().items()}


def vae(network: AutoencoderKL) -> dict[str, torch.Tensor]:
    """The tensors of a VAE by their original names, without a prefix. Its attention consisted of convolutions."""
    levels = len(network.config["block_out_channels"])
    tensors = {}
    for name, tensor in network.state_dict().items():
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        for kind, original in (("resnets", "block"), (r"upsamplers\.0", "upsample")):
            for level in range(levels):
                name = re.sub(rf"up_blocks\.{level}\.{kind}", f"up.{levels - 1 - level}.{original}", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        if found := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", name):
            name = f"{found[1]}.mid.attn_1.{ATTENTION[found[2]]}.{found[3]}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        tensors[name] = tensor.contiguous()
    return tensors


def checkpoint(
    unet_: UNet2DConditionModel, vae_: AutoencoderKL, text_encoder: CLIPTextModel
) -> dict[str, torch.Tensor]:
    """The tensors of a whole checkpoint, with everything else in it: EMA weights, tables of the schedule."""
    import torch

    ours = {f"model.diffusion_model.{name}": tensor for name, tensor in unet(unet_).items()}
    copies = {f"model_ema.diffusion_model{i}": torch.full((3,), torch.nan) for i in range(120)}
    ours |= {f"first_stage_model.{name}": tensor for name, tensor in vae(vae_).items()}
    text = "cond_stage_model.transformer.text_model."
    ours |= {text + name.removeprefix("text_model."): tensor for name, tensor in text_encoder.state_dict().items()}
    ours[f"{text}embeddings.position_ids"] = torch.arange(77)[None]
    return ours | copies | {"alphas_cumprod": torch.ones(1000)}
