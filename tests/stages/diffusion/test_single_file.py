"""Single files in all common formats, compared with the same weights in diffusers folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from stages.base.errors import DiffSynthError, UsageError
from stages.diffusion import single_file
from stages.diffusion.loading import Networks, load_networks
from stages.diffusion.prompts import encode_prompts
from stages.diffusion.settings import ModelNames
from stages.diffusion.vocabulary import clip_tokenizer
from tests.conftest import MODEL
from tests.stages.diffusion import original_layout

Tensors: TypeAlias = dict[str, torch.Tensor]
Network: TypeAlias = UNet2DConditionModel | AutoencoderKL | ControlNetModel


class MakeForm(Protocol):
    """Writes the model's folder again, each file by `rewrite` into a file of the pattern `name`."""

    def __call__(self, name: str, rewrite: Callable[[Tensors, Path], None]) -> Path: ...


DOWN = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
# Stable Diffusion's constants (8 heads, 32 groups), in small.
UNET = {"block_out_channels": [32, 64, 64], "down_block_types": DOWN, "layers_per_block": 2, "cross_attention_dim": 64,
        "attention_head_dim": 8}  # fmt: skip
CONTROLNET = UNET | {"conditioning_embedding_out_channels": [8, 8, 16, 32]}
UP = {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}
VAE = {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "latent_channels": 4,
       "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights in diffusers folders, and the same in single files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(MODEL / part, folder / "sd" / part)
    shutil.copytree(MODEL / "tokenizer", folder / "tokenizer")
    unet, vae = UNet2DConditionModel(**UNET, **UP), AutoencoderKL(**VAE)
    controlnet = ControlNetModel(**CONTROLNET)
    for parameter in controlnet.parameters():  # its zero convolutions would hide all else
        parameter.data += 0.02 * torch.randn_like(parameter)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=514, hidden_size=64, num_attention_heads=1, num_hidden_layers=2, intermediate_size=128,
        bos_token_id=512, eos_token_id=513, pad_token_id=513,
    ))  # fmt: skip
    unet.save_pretrained(folder / "sd/unet")
    vae.save_pretrained(folder / "sd/vae")
    text.save_pretrained(folder / "sd/text_encoder")
    controlnet.save_pretrained(folder / "control")
    tensors = original_layout.checkpoint(unet, vae, text)
    save_file(tensors, folder / "model.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "model.ckpt")
    control = original_layout.unet(controlnet)
    save_file({f"control_model.{name}": tensor for name, tensor in control.items()}, folder / "control.safetensors")
    save_file(control, folder / "control-bare.safetensors")
    shutil.copy(folder / "control/diffusion_pytorch_model.safetensors", folder / "control-diffusers.safetensors")
    save_file(original_layout.vae(vae), folder / "vae.safetensors")
    shutil.copy(folder / "sd/vae/diffusion_pytorch_model.safetensors", folder / "vae-diffusers.safetensors")
    return folder


def names(folder: Path, model: str = "model.safetensors", *controlnets: str, **more: Any) -> ModelNames:
    return ModelNames(
        model_id=str(folder / model),
        controlnets=tuple(str(folder / net) for net in controlnets),
        **{"device": "cpu", "dtype": "float32", **more},
    )


@torch.inference_mode()
def noise(networks: Networks) -> torch.Tensor:
    latents, text = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8), encode_prompts(networks, ["winter"])
    residuals = {}
    for controlnet, embed in zip(networks.controlnets, networks.map_embeddings):
        down, middle = controlnet(latents, 500, text, embed(torch.ones(1, 3, 64, 64) / 3), return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return networks.unet(latents, 500, text, **residuals).sample


@torch.inference_mode()
def coded(networks: Networks) -> torch.Tensor:
    image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    latents = networks.vae.encode(image).latent_dist.mean
    return torch.cat([latents.flatten(), networks.vae.decode(latents).sample.flatten()])


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("file", ["model.safetensors", "model.ckpt"])
def test_a_checkpoint_is_the_model_it_was_made_of(folder: Path, file: str) -> None:
    whole = load_networks(names(folder, "sd"))
    single = load_networks(names(folder, file, allow_pickle=file.endswith(".ckpt")))
    same(noise(single), noise(whole))
    same(coded(single), coded(whole))
    same(single.alphas, whole.alphas)
    assert single.prediction == "epsilon"
    for key in ("scaling_factor", "block_out_channels"):
        assert single.vae.config[key] == whole.vae.config[key]
    for network in (single.unet, single.vae, single.text_encoder):
        assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("file", ["control.safetensors", "control-bare.safetensors", "control-diffusers.safetensors"])
def test_a_controlnet_is_the_one_it_was_made_of(folder: Path, file: str) -> None:
    expected = noise(load_networks(names(folder, "sd", "control")))
    same(noise(load_networks(names(folder, "model.safetensors", file))), expected)
    assert (expected - noise(load_networks(names(folder)))).abs().max() > 1e-3


@pytest.mark.parametrize("file", ["vae.safetensors", "vae-diffusers.safetensors", "model.safetensors"])
def test_a_vae_is_the_one_it_was_made_of(folder: Path, file: str) -> None:
    expected = coded(load_networks(names(folder, "sd")))
    same(coded(load_networks(names(folder, "sd", vae=str(folder / file)))), expected)


@pytest.mark.parametrize(
    ("kind", "part", "file", "prefix"),
    [
        (UNet2DConditionModel, "unet", "model.safetensors", "model.diffusion_model."),
        (AutoencoderKL, "vae", "model.safetensors", "first_stage_model."),
        (ControlNetModel, "", "control.safetensors", "control_model."),
    ],
)
def test_networks_are_those_that_diffusers_own_loader_reads(
    kind: type[Network], part: str, file: str, prefix: str, folder: Path
) -> None:
    tensors = {name: tensor for name, tensor in load_file(folder / file).items() if name.startswith(prefix)}
    own = folder / ("sd" if part else "control")
    expected = kind.from_single_file(tensors, config=str(own), subfolder=part, local_files_only=True)
    if part:
        networks = single_file.load_checkpoint(str(folder / file), torch.float32, False, True)
        found = getattr(networks, part)
    else:
        found = single_file.load_controlnet(str(folder / file), torch.float32, False)
    weights = found.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_the_vae_may_come_from_elsewhere_if_the_checkpoint_has_none(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage")},
              folder / "bare.safetensors")  # fmt: skip
    with pytest.raises(DiffSynthError, match=r"has no tensors first_stage_model\.\*") as error:
        load_networks(names(folder, "bare.safetensors"))
    assert "the key vae" in error.value.hint
    same(coded(load_networks(names(folder, "bare.safetensors", vae=str(folder / "vae.safetensors")))),
         coded(load_networks(names(folder, "sd"))))  # fmt: skip


def test_the_widths_of_stable_diffusion_1_are_read_off_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published sizes, without numbers in them."""
    sizes = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
    vae = {"block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
           "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2}  # fmt: skip
    with init_empty_weights():
        tensors = {
            "_unet": original_layout.unet(UNet2DConditionModel(**sizes)),
            "_vae": original_layout.vae(AutoencoderKL(**vae)),
            "load_controlnet": original_layout.unet(ControlNetModel(**sizes)),
        }
        expected = {"_unet": UNet2DConditionModel(**sizes), "_vae": AutoencoderKL(**vae),
                    "load_controlnet": ControlNetModel(**sizes)}  # fmt: skip
    assert "output_blocks.11.0.skip_connection.weight" in tensors["_unet"] and len(tensors["_unet"]) == 686
    assert len(tensors["_vae"]) == 248 and len(tensors["load_controlnet"]) == 340
    monkeypatch.setattr(single_file, "_read", lambda *_: tensors["load_controlnet"])
    loaded = {
        "_unet": single_file._unet(tensors["_unet"], torch.float32),
        "_vae": single_file._vae(tensors["_vae"], torch.float32),
        "load_controlnet": single_file.load_controlnet("shuffle.safetensors", torch.float32, False),
    }
    assert loaded["load_controlnet"].config["global_pool_conditions"]
    for name, network in loaded.items():
        shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in expected[name].state_dict().items()}
        for key in ("norm_num_groups", "attention_head_dim", "down_block_types"):
            assert list_of(network.config.get(key)) == list_of(expected[name].config.get(key))


def list_of(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value


def test_the_tokenizer_is_clips() -> None:
    tokenizer = clip_tokenizer()
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A  Photo, of CATS!").input_ids == [49406, 320, 1125, 267, 539, 3989, 256, 49407]
    assert (tokenizer.pad_token_id, len(tokenizer), tokenizer.model_max_length) == (49407, 49408, 77)


def test_a_tokenizer_that_does_not_fit_the_text_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors")  # without the small tokenizer beside it
    with pytest.raises(DiffSynthError, match=r"a tokenizer of 49408 words, but its text encoder has 514"):
        load_networks(names(tmp_path, "alone.safetensors"))


# --- what is refused ------------------------------------------------------------------------------------

INPUT = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ("conditioner.embedders.1.model.positional_embedding", "is made for Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", "is made for Flux"),
        ("cond_stage_model.model.token_embedding.weight", "is a Stable Diffusion 2.x checkpoint"),
        ("v_pred", "predicts v"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "is a LoRA"),
        ("unet.down_blocks.0.attentions.0.attn1.processor.to_q_lora.up.weight", "is a LoRA"),
        ("control_model.input_hint_block.0.weight", "is a ControlNet"),
        ("first_stage_model.encoder.conv_in.weight", "is a VAE"),
        ("encoder.down.0.block.0.conv1.weight", "is a VAE"),
        ("emb_params", "is a textual inversion"),
        ("down_blocks.0.resnets.0.conv1.weight", "is a U-Net alone"),
        ("what.ever", "is not a Stable Diffusion 1.x checkpoint"),
    ],
)
def test_other_files_are_refused_by_name(tensor: str, expected: str, tmp_path: Path) -> None:
    tensors = {tensor: torch.zeros(1)} | ({INPUT: torch.zeros(1)} if "cond" in tensor or tensor == "v_pred" else {})
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(DiffSynthError, match=f"model_id: {tmp_path / 'a.safetensors'} is ") as error:
        load_networks(names(tmp_path, "a.safetensors"))
    assert expected in error.value.message and error.value.hint


def test_files_under_the_wrong_key_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(DiffSynthError, match=r"controlnet_model_id: .*vae.safetensors is a VAE, not a ControlNet"):
        load_networks(names(folder, "model.safetensors", "vae.safetensors"))
    with pytest.raises(DiffSynthError, match=r"vae: .*control.safetensors is a ControlNet, not a VAE"):
        load_networks(names(folder, vae=str(folder / "control.safetensors")))


def changed(folder: Path, path: Path, change: Callable[[Tensors], Tensors]) -> str:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), path / "a.safetensors")
    shutil.copytree(folder / "tokenizer", path / "tokenizer")
    with pytest.raises(DiffSynthError) as error:
        load_networks(names(path, "a.safetensors"))
    return error.value.message


def without(*wanted: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(wanted)}


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (INPUT, "the tensor conv_in.weight is missing"),
        ("input_blocks.3.0.op.bias", "the U-Net lacks 1 tensors, for example down_blocks.0.downsamplers.0.conv.bias"),
        ("decoder.conv_out.bias", "the VAE lacks 1 tensors, for example decoder.conv_out.bias"),
        (
            "layers.1.self_attn.k_proj.weight",
            "the text encoder lacks 1 tensors, for example encoder.layers.1.self_attn.k_proj",
        ),
    ],
)
def test_missing_tensors_are_named(lost: str, expected: str, folder: Path, tmp_path: Path) -> None:
    message = changed(folder, tmp_path, without(lost))
    assert f"model_id: {tmp_path / 'a.safetensors'} cannot be loaded" in message and expected in message


def test_tensors_of_a_wrong_shape_are_named(folder: Path, tmp_path: Path) -> None:
    last = "model.diffusion_model.out.0.bias"
    message = changed(folder, tmp_path, lambda tensors: tensors | {last: torch.zeros(7)})
    assert "the U-Net: conv_norm_out.bias is [7], not [32]" in message


def test_an_inpainting_model_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    wide = {INPUT: torch.zeros(32, 9, 3, 3)}
    assert "is an inpainting model: its U-Net takes 9 channels" in changed(folder, tmp_path, lambda all: all | wide)


def test_a_truncated_file_is_named(folder: Path, tmp_path: Path) -> None:
    for file in ("model.safetensors", "model.ckpt"):
        (tmp_path / file).write_bytes((folder / file).read_bytes()[:100_000])
        with pytest.raises(DiffSynthError, match=f"model_id: {tmp_path / file} cannot be read") as error:
            load_networks(names(tmp_path, file, allow_pickle=True))
        assert "\n" not in error.value.message


# --- pickles --------------------------------------------------------------------------------------------


def test_pickles_are_refused_unless_they_are_allowed(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"is a pickle, .* run code") as error:
        load_networks(names(folder, "model.ckpt"))
    assert "--allow-pickle" in error.value.hint


def test_other_objects_in_a_checkpoint_are_ignored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects of a library that is not installed."""
    import sys
    from types import ModuleType

    library = ModuleType("absent_trainer")
    exec("class Callback:\n    def __init__(self): self.best = 3", library.__dict__)
    library.Callback.__module__ = "absent_trainer"
    monkeypatch.setitem(sys.modules, "absent_trainer", library)
    content = torch.load(folder / "model.ckpt") | {"callbacks": {library.Callback: library.Callback()}}
    torch.save(content, tmp_path / "model.ckpt")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    monkeypatch.delitem(sys.modules, "absent_trainer")
    loaded = load_networks(names(tmp_path, "model.ckpt", allow_pickle=True))
    same(noise(loaded), noise(load_networks(names(folder, "sd"))))


# --- folders of other forms -----------------------------------------------------------------------------


@pytest.fixture
def other_form(folder: Path, tmp_path: Path) -> MakeForm:
    """The model's folder with its weights in another form."""

    def make(name: str, rewrite: Callable[[Tensors, Path], None]) -> Path:
        shutil.copytree(folder / "sd", tmp_path / "sd")
        for file in (tmp_path / "sd").glob("*/*.safetensors"):
            tensors = load_file(file)
            stem = "pytorch_model" if "bin" in name and file.stem == "model" else file.stem
            file.unlink()
            rewrite(tensors, file.with_name(name.format(stem)))
        return tmp_path

    return make


def half(tensors: Tensors, path: Path) -> None:
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def test_a_folder_with_only_float16_weights_is_loaded(folder: Path, other_form: MakeForm) -> None:
    loaded = load_networks(names(other_form("{}.fp16.safetensors", half), "sd"))
    assert loaded.dtype == loaded.unet.dtype == torch.float32
    torch.testing.assert_close(noise(loaded), noise(load_networks(names(folder, "sd"))), atol=0.02, rtol=0.02)


def test_a_cached_hub_model_with_only_float16_weights_is_found_offline(
    folder: Path, other_form: MakeForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = other_form("{}.fp16.safetensors", half)
    snapshot = place / "hub/models--owner--half/snapshots/0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(place / "sd", snapshot)
    (place / "hub/models--owner--half/refs").mkdir()
    (place / "hub/models--owner--half/refs/main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    hub = ModelNames(model_id="owner/half", device="cpu")
    same(noise(load_networks(hub)), noise(load_networks(names(place, "sd"))))
    (snapshot / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(DiffSynthError, match=r"unet/diffusion_pytorch_model\.safetensors of the hub model") as error:
        load_networks(hub)
    assert "\n" not in error.value.message


def test_a_folder_of_pickles_is_refused_unless_they_are_allowed(folder: Path, other_form: MakeForm) -> None:
    place = other_form("{}.bin", torch.save)
    with pytest.raises(DiffSynthError, match=r"lacks text_encoder/model\.safetensors") as error:
        load_networks(names(place, "sd"))
    assert "can run code" in error.value.hint
    same(noise(load_networks(names(place, "sd", allow_pickle=True))), noise(load_networks(names(folder, "sd"))))


def test_a_lora_fits_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    layer = "lora_te_text_model_encoder_layers_1_self_attn_q_proj"
    torch.manual_seed(0)
    tensors = {f"{layer}.lora_down.weight": torch.randn(2, 64), f"{layer}.lora_up.weight": torch.randn(64, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pt")
    plain = noise(load_networks(names(folder)))
    given = replace(names(folder), loras=((str(tmp_path / "a.safetensors"), 1.0),))
    assert (noise(load_networks(given)) - plain).abs().max() > 1e-4
    pickled = replace(given, loras=((str(tmp_path / "a.pt"), 1.0),), allow_pickle=True)
    same(noise(load_networks(pickled)), noise(load_networks(given)))
