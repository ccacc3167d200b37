"""LoRA files in all common layouts, added to the tiny golden model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel

from stages.base.errors import DiffSynthError
from stages.diffusion.loading import load_networks
from stages.diffusion.lora import add_lora
from stages.diffusion.settings import ModelNames
from tests.conftest import MODEL

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
RANK = 3


Layer: TypeAlias = tuple[str, str, str, tuple[int, ...]]
"""Network, name in a file, name in the model, shape of the weight."""

Layout: TypeAlias = Callable[[str, str], tuple[str, str, str | None]]
"""Names of the tensors of a layer in a file: down, up and alpha, if there is one."""


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    """The layers that the files change."""
    unet = UNet2DConditionModel.from_pretrained(MODEL / "unet")
    text = CLIPTextModel.from_pretrained(MODEL / "text_encoder")
    (query,) = (name for name, _ in text.named_modules() if name.endswith("layers.1.self_attn.q_proj"))
    named = [
        ("unet", f"{ATTENTION}.to_q", f"{ATTENTION}.to_q"),
        ("unet", f"{ATTENTION}.to_out.0", f"{ATTENTION}.to_out.0"),
        ("unet", "down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.0.conv1"),
        ("text_encoder", "text_model.encoder.layers.1.self_attn.q_proj", query),
    ]
    of = {"unet": unet, "text_encoder": text}
    return [
        (part, outer, inner, tuple(of[part].get_parameter(f"{inner}.weight").shape)) for part, outer, inner in named
    ]


def kohya(part: str, name: str) -> tuple[str, str, str | None]:
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part]
    layer = prefix + name.replace(".", "_")
    return f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha"


def peft(part: str, name: str) -> tuple[str, str, str | None]:
    return f"{part}.{name}.lora_A.weight", f"{part}.{name}.lora_B.weight", None


def old_diffusers(part: str, name: str) -> tuple[str, str, str | None]:
    name = re.sub(r"\.(to_q|to_out)(\.0)?$", r".processor.\1_lora", name)
    name = name.replace("self_attn.q_proj", "self_attn.to_q_lora")
    return (f"{part}.{name}.down.weight", f"{part}.{name}.up.weight", None) if "_lora" in name else peft(part, name)


def write(
    path: Path, layers: list[Layer], layout: Layout, rank: int = RANK, alpha: float = 1.5
) -> dict[tuple[str, str], torch.Tensor]:
    """Write a LoRA file and return what it must add to each weight at scale 1."""
    torch.manual_seed(0)
    tensors: dict[str | None, torch.Tensor] = {}
    expected: dict[tuple[str, str], torch.Tensor] = {}
    for part, outer, inner, shape in layers:
        down, up = torch.randn(rank, *shape[1:]), torch.randn(shape[0], rank, *[1] * (len(shape) - 2))
        names = layout(part, outer)
        tensors |= dict(zip(names, (down, up, torch.tensor(alpha)), strict=True))
        change = torch.einsum("or,r...->o...", up.flatten(1), down)
        expected[part, inner] = change * (alpha / rank if names[2] else 1)
    save_file({name: tensor for name, tensor in tensors.items() if name}, path)
    return expected


def load(*loras: tuple[str, float]) -> dict[str, nn.Module]:
    networks = load_networks(ModelNames(model_id=str(MODEL), device="cpu", loras=loras))
    return {"unet": networks.unet, "text_encoder": networks.text_encoder}


def weight(networks: dict[str, nn.Module], part: str, name: str) -> torch.Tensor:
    return networks[part].get_parameter(f"{name}.weight")


@pytest.mark.parametrize("layout", [kohya, peft, old_diffusers])
def test_every_layout_adds_its_product_to_the_weights(layout: Layout, layers: list[Layer], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    expected = write(path, layers, layout)
    plain, changed = load(), load((str(path), 0.5))
    for (part, name), change in expected.items():
        difference = weight(changed, part, name) - weight(plain, part, name)
        torch.testing.assert_close(difference, 0.5 * change, atol=1e-5, rtol=1e-4)
    same = [name for name, value in plain["unet"].state_dict().items()
            if torch.equal(value, changed["unet"].state_dict()[name])]  # fmt: skip
    assert len(same) == len(plain["unet"].state_dict()) - 3


def test_several_files_add_up(layers: list[Layer], tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    changes = [write(path, layers, layout) for path, layout in zip(paths, (kohya, peft))]
    plain, changed = load(), load((str(paths[0]), 1.0), (str(paths[1]), -0.25))
    for key, change in changes[0].items():
        difference = weight(changed, *key) - weight(plain, *key)
        torch.testing.assert_close(difference, change - 0.25 * changes[1][key], atol=1e-4, rtol=1e-4)


def test_a_linear_layer_may_be_written_as_a_convolution(layers: list[Layer], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    flat = [layer for layer in layers if len(layer[3]) == 2]
    expected = write(path, [(part, outer, inner, (*shape, 1, 1)) for part, outer, inner, shape in flat], kohya)
    plain, changed = load(), load((str(path), 1.0))
    for key, change in expected.items():
        difference = weight(changed, *key) - weight(plain, *key)
        torch.testing.assert_close(difference, change[:, :, 0, 0], atol=1e-5, rtol=1e-4)


def broken(tmp_path: Path, layers: list[Layer]) -> None:
    wide = [(part, outer, inner, (shape[0], shape[1] + 8, *shape[2:])) for part, outer, inner, shape in layers]
    elsewhere: list[Layer] = [("unet", "down_blocks.9.attn1.to_q", "", (8, 8))]
    write(tmp_path / "wide.safetensors", wide, kohya)
    write(tmp_path / "elsewhere.safetensors", elsewhere, peft)
    save_file({"lora_te2_text_model.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "xl.safetensors")
    save_file({"lora_unet_x.hada_w1_a": torch.zeros(2, 2)}, tmp_path / "loha.safetensors")
    save_file({"unet.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "half.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "wide.safetensors").read_bytes()[:500])
    torch.save({}, tmp_path / "pickled.pt")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("wide.safetensors", "but 32×32 in the model"),
        ("elsewhere.safetensors", "1 of its 1 layers are not in the model"),
        ("xl.safetensors", "is not a layer of Stable Diffusion 1.x"),
        ("loha.safetensors", "is a LoHa"),
        ("half.safetensors", "a tensor of layer unet.x is missing"),
        ("cut.safetensors", "cannot be read"),
        ("pickled.pt", "is a pickle, which is refused by default"),
    ],
)
def test_unusable_files_are_named_and_change_nothing(
    file: str, expected: str, layers: list[Layer], tmp_path: Path
) -> None:
    broken(tmp_path, layers)
    networks = load()
    before = {name: value.clone() for name, value in networks["unet"].state_dict().items()}
    with pytest.raises(DiffSynthError, match=f"loras: {re.escape(str(tmp_path / file))}") as error:
        add_lora(str(tmp_path / file), 1.0, networks)
    assert expected in error.value.message
    assert all(torch.equal(value, before[name]) for name, value in networks["unet"].state_dict().items())
