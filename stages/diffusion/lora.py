"""LoRA files: low-rank updates of weights, added when a model is loaded (arXiv 2106.09685, section 4).

A layer's weight W becomes W + scale · alpha / rank · up @ down. The loader of diffusers 0.42 is not used
because it does not support the text encoder of transformers 5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from stages.base.errors import DiffSynthError
from stages.diffusion.tensor_files import read_tensors

# Names of a layer's tensors in files of kohya's scripts, PEFT and several versions of diffusers.
TENSORS = {
    "down": re.compile(r"(.+?)(?:\.lora_(?:down|A)(?:\.default)?|[._]lora(?:_linear_layer)?\.down)\.weight"),
    "up": re.compile(r"(.+?)(?:\.lora_(?:up|B)(?:\.default)?|[._]lora(?:_linear_layer)?\.up)\.weight"),
    "alpha": re.compile(r"(.+)\.alpha"),
}
PARTS = {"lora_unet_": "unet", "unet.": "unet", "lora_te_": "text_encoder", "text_encoder.": "text_encoder"}
OTHER_KINDS = {"hada_w": "LoHa", "lokr_w": "LoKr", "dora_scale": "DoRA", "oft_blocks": "OFT"}
# Layers that have other names in old versions of diffusers and transformers.
RENAMED = (
    (re.compile(r"^text_model_"), ""), (re.compile(r"_to_out$"), "_to_out_0"),
    (re.compile(r"(self_attn)_to_(q|k|v)$"), r"\1_\2_proj"), (re.compile(r"(self_attn)_to_out_0$"), r"\1_out_proj"),
)  # fmt: skip


def add_lora(path: str, scale: float, networks: Mapping[str, nn.Module], allow_pickle: bool = False) -> None:
    """Add the LoRA in the file `path` to `networks` (unet, text_encoder), in place.

    Raises:
        DiffSynthError: It cannot be read, is of another kind or does not fit. Nothing has been changed.
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
            f"loras: {path}: {len(unknown)} of its {len(changes)} layers are not in the model, such as {unknown[0]}",
            "is it made for Stable Diffusion 1.x?",
        )
    for key, change in changes.items():
        weight = layers[key].weight
        if change.ndim == 4 and weight.ndim == 2 and change.shape[2:] == (1, 1):  # a 1×1 convolution is a linear layer
            changes[key] = change = change[:, :, 0, 0]
        if change.shape != weight.shape:
            raise DiffSynthError(
                f"loras: {path}: layer {'.'.join(key)} is {_size(change)}, but {_size(weight)} in the model",
                "is it made for another model?",
            )
    for key, change in changes.items():
        weight = layers[key].weight
        weight.data += (scale * change).to(weight)


def read_lora(path: str, allow_pickle: bool = False) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """Read the tensors of every layer: down [rank, in, ...], up [out, rank, ...] and optionally alpha [].

    A layer is identified by its network (unet, text_encoder) and its name there, with underscores in place of dots.
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
                f"loras: {path} {f'is a {kind}' if kind else f'has the tensor {key}'}, which is not supported",
                "use a plain LoRA file",
            )
        layers.setdefault(_place(path, name), {})[role] = tensor
    for place, roles in layers.items():
        if not {"up", "down"} <= roles.keys():
            raise DiffSynthError(
                f"loras: {path}: a tensor of layer {'.'.join(place)} is missing", "is the download complete?"
            )
    if not layers:
        raise DiffSynthError(f"loras: {path} is empty")
    return layers


def _change(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return alpha / rank · up @ down, float32, in the shape of the layer's weight."""
    up, down = tensors["up"].float(), tensors["down"].float()
    rank = down.shape[0]
    if up[0].numel() != rank:  # they do not fit each other; the caller compares sizes
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
        f"loras: {path}: {layer} is not a layer of Stable Diffusion 1.x",
        "is it made for another kind of model, for example SDXL?",
    )


def _size(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape))
