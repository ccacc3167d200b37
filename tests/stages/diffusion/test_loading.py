"""Finding and loading models: the hub cache, damaged files and unsupported models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.base.errors import DiffSynthError
from stages.diffusion.layout import NETWORKS, find_model
from stages.diffusion.loading import load_networks
from stages.diffusion.prompts import encode_prompts
from stages.diffusion.settings import ModelNames
from tests.conftest import CONTROLNET, MODEL
from tests.typing import Keys


def names(model: str | Path = MODEL, *controlnets: Path, device: str = "cpu") -> ModelNames:
    return ModelNames(model_id=str(model), controlnets=tuple(map(str, controlnets)), device=device, dtype="float32")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(MODEL, tmp_path / "sd")
    return tmp_path / "sd"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_local_folder_loads_in_evaluation_mode_without_gradients() -> None:
    networks = load_networks(names(MODEL, CONTROLNET))
    for network in (networks.unet, networks.vae, networks.text_encoder, *networks.controlnets):
        assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    assert networks.alphas.dtype == torch.float32 and networks.alphas.shape == (1000,)


def test_loading_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    load_networks(names(MODEL, CONTROLNET))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_hub_id_is_found_in_the_hub_cache_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout in which huggingface_hub keeps what it downloaded."""
    snapshot = tmp_path / "models--owner--tiny/snapshots/0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(MODEL, snapshot)
    (tmp_path / "models--owner--tiny/refs").mkdir()
    (tmp_path / "models--owner--tiny/refs/main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_model("model_id", "owner/tiny", NETWORKS) == snapshot
    assert load_networks(names("owner/tiny")).unet.config["in_channels"] == 4


def test_hub_id_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DiffSynthError, match=r"model_id: owner/absent is not a local folder, and scheduler/"):
        load_networks(names("owner/absent"))


def test_what_is_neither_folder_nor_hub_id_is_named() -> None:
    with pytest.raises(DiffSynthError, match="neither a folder nor a hub id"):
        load_networks(names("not a name!"))


def test_missing_parts_are_named_and_pickles_explained(copy: Path) -> None:
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(DiffSynthError, match=r"lacks unet/diffusion_pytorch_model\.safetensors") as error:
        load_networks(names(copy))
    assert "which are refused by default" in error.value.hint


def test_cut_weights_are_named(copy: Path) -> None:
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(DiffSynthError, match=f"model_id: {copy} cannot be loaded"):
        load_networks(names(copy))


def test_missing_tensors_are_not_made_up(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_in.weight"]
    save_file(tensors, weights)
    with pytest.raises(DiffSynthError, match=r"conv_in\.weight"):
        load_networks(names(copy))


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "starts from pure noise"),
    ],
)
def test_unsupported_models_are_refused(copy: Path, file: str, changes: Keys, expected: str) -> None:
    edit(copy / file, **changes)
    with pytest.raises(DiffSynthError, match=expected):
        load_networks(names(copy))


@pytest.mark.parametrize("whole", [True, False], ids=["a model's", "alone"])
def test_another_vae_replaces_the_models_own(whole: bool, copy: Path) -> None:
    edit(copy / "vae/config.json", scaling_factor=0.5)
    vae = copy if whole else copy / "vae"
    networks = load_networks(replace(names(), vae=str(vae)))
    assert networks.vae.config["scaling_factor"] == 0.5
    assert load_networks(names()).vae.config["scaling_factor"] != 0.5


def test_a_vae_that_does_not_fit_is_named(copy: Path) -> None:
    with pytest.raises(DiffSynthError, match=f"vae: {copy / 'unet'}"):
        load_networks(replace(names(), vae=str(copy / "unet")))


def test_only_the_betas_of_the_scheduler_count(copy: Path) -> None:
    edit(copy / "scheduler/scheduler_config.json", _class_name="PNDMScheduler", skip_prk_steps=True)
    torch.testing.assert_close(load_networks(names(copy)).alphas, load_networks(names()).alphas)


@torch.inference_mode()
def test_prompts_of_different_lengths_fill_whole_windows() -> None:
    networks = load_networks(names())
    window = networks.tokenizer.model_max_length
    long, longer = "winter snow " * 15, "winter snow " * 25
    sizes = [encode_prompts(networks, ["blurry", prompt]).shape[1] // window for prompt in ("winter", long, longer)]
    assert sizes == sorted(sizes) and sizes[0] == 1 and sizes[1] > 1
    both = encode_prompts(networks, [long, longer])
    assert both.shape[0] == 2 and both.shape[1] % window == 0
    torch.testing.assert_close(both[1:, :window], encode_prompts(networks, [longer])[:, :window])
