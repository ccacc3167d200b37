"""LoRA files: low-rank changes of weights, added once when a model is loaded (arXiv 2106.09685, section 4).

A layer's weight W becomes W + scale · alpha / rank · up @ down. Our own few lines, since the loader of diffusers 0.42
does not know the text encoder of transformers 5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from stages.base.errors import DiffSynthError
from stages.diffusion.tensor_files import read_tensors

# How the makers of LoRA files (kohya's scripts, peft, diffusers of several ages) name a layer's tensors.
TENSORS = {
    "down": re.compile(r"(.+?)(?:\.lora_(?:down|A)(?:\.default)?|[._]lora(?:_linear_layer)?\.down)\.weight"),
    "up": re.compile(r"(.+?)(?:\.lora_(?:up|B)(?:\.default)?|[._]lora(?:_linear_layer)?\.up)\.weight"),
    "alpha": re.compile(r"(.+)\.alpha"),
}
PARTS = {"lora_unet_": "unet", "unet.": "unet", "lora_te_": "text_encoder", "text_encoder.": "text_encoder"}
OTHER_KINDS = {"hada_w": "LoHa", "lokr_w": "LoKr", "dora_scale": "DoRA", "oft_blocks": "OFT"}
# Names that layers had in old versions of diffusers and transformers.
RENAMED = (
    (re.compile(r"^text_model_"), ""), (re.compile(r"_to_out$"), "_to_out_0"),
    (re.compile(r"(self_attn)_to_(q|k|v)$"), r"\1_\2_proj"), (re.compile(r"(self_attn)_to_out_0$"), r"\1_out_proj"),
)  # fmt: skip


def add_lora(path: str, scale: float, networks: Mapping[str, nn.Module], allow_pickle: bool = False) -> None:
    """Adds the LoRA in the file `path` to `networks` (unet, text_encoder), in place.

    Raises DiffSynthError if it cannot be read, is of another kind, or does not fit: then nothing has been changed.
    """
    layers = {
        (part, name.replace(".", "_")): module
        for part, network in networks.items()
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    changes = {key: _change(tensors) for key, tensors in read_lora(path, allow_pickle).items()}
    unknown = [f"{part}.{name}" for part, name in changes if (part, name) not in layers]
    if unknown:
        raise DiffSynthError(
            f"loras: {path}: {len(unknown)} of its {len(changes)} layers are not in the model, {unknown[0]} for one",
            "is it made for Stable Diffusion 1.x?",
        )
    for key, change in changes.items():
        weight = layers[key].weight
        if change.ndim == 4 and weight.ndim == 2 and change.shape[2:] == (1, 1):  # a 1×1 convolution is a linear layer
            changes[key] = change = change[:, :, 0, 0]
        if change.shape != weight.shape:
            raise DiffSynthError(
                f"loras: {path}: the layer {'.'.join(key)} is {_size(change)}, the model's {_size(weight)}",
                "it is made for another model",
            )
    for key, change in changes.items():
        weight = layers[key].weight
        weight.data += (scale * change).to(weight)


def read_lora(path: str, allow_pickle: bool = False) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """The tensors down [rank, in, ...], up [out, rank, ...] and perhaps alpha [] of every layer.

    Layers are named by network (unet, text_encoder) and by their name in it, with _ for every dot.
    """
    tensors = read_tensors("loras", path, allow_pickle)
    layers: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        role, name = next(
            ((role, found[1]) for role, form in TENSORS.items() if (found := form.fullmatch(key))), ("", "")
        )
        if not role:
            kind = next((kind for mark, kind in OTHER_KINDS.items() if mark in key), None)
            raise DiffSynthError(
                f"loras: {path} {f'is of the kind {kind}' if kind else f'holds {key}'}, which is not supported",
                "plain LoRA files are",
            )
        layers.setdefault(_place(path, name), {})[role] = tensor
    for place, roles in layers.items():
        if not {"up", "down"} <= roles.keys():
            raise DiffSynthError(f"loras: {path}: half of the layer {'.'.join(place)} is missing", "is it complete?")
    if not layers:
        raise DiffSynthError(f"loras: {path} is empty")
    return layers


def _change(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """alpha / rank · up @ down, float32, in the shape of the layer's weight."""
    up, down = tensors["up"].float(), tensors["down"].float()
    rank = down.shape[0]
    if up[0].numel() != rank:  # no product; nor can it be the model's size
        return torch.empty(0)
    product = (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
    return product * (float(tensors.get("alpha", rank)) / rank)


def _place(path: str, layer: str) -> tuple[str, str]:
    for prefix, part in PARTS.items():
        if layer.startswith(prefix):
            name = layer.removeprefix(prefix).replace(".processor", "").replace(".", "_")
            for old, new in RENAMED:
                name = old.sub(new, name)
            return part, name
    raise DiffSynthError(
        f"loras: {path}: {layer} is no layer of Stable Diffusion 1.x",
        "is it made for another kind of model, SDXL for example?",
    )


def _size(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape))
