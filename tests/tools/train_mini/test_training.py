"""Networks and the training loop: a stopped training resumes without a difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from tools.train_mini import networks
from tools.train_mini.data import Pictures
from tools.train_mini.training import SAVE_EVERY, Training, diffusion_loss, fit, vae_loss
from tools.train_mini.world import SYNONYMS, Look


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return networks.make_tokenizer()


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    rng = np.random.default_rng(0)
    images, maps = rng.integers(0, 256, (2, 128, 128, 3), np.uint8), rng.integers(0, 2, (2, 128, 128), np.uint8) * 255
    return Pictures(
        images, maps, ["winter, snow", "summer"], [Look("winter", "day", "photo"), Look("summer", "day", "photo")]
    )


def test_the_worlds_words_are_one_token_each_and_any_text_is_taken(tokenizer: CLIPTokenizer) -> None:
    for word in " ".join(text for synonyms in SYNONYMS.values() for text in synonyms).replace(",", "").split():
        assert len(tokenizer(word).input_ids) == 3, word
    for text in ("", "Winter SNOW", "xyzzy qwertz", "naïve 雪 🏔️", "a-b_c 12"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.bos_token_id not in ids[1:] and tokenizer.eos_token_id not in ids[:-1]  # nothing unknown
    assert tokenizer("Winter").input_ids == tokenizer("winter").input_ids


def test_the_vocabulary_is_the_same_each_time(tokenizer: CLIPTokenizer) -> None:
    assert all(networks.make_tokenizer().get_vocab() == tokenizer.get_vocab() for _ in range(4))


def line(target: torch.Tensor) -> tuple[nn.ModuleDict, Training]:
    torch.manual_seed(0)
    linear = nn.Linear(3, 1)
    model = nn.ModuleDict({"linear": linear})

    def loss(step: int) -> torch.Tensor:
        x = torch.randn(8, 3)  # fit seeds torch by the step
        error: torch.Tensor = (linear(x) - x @ target).square().mean()
        return error

    return model, Training("line", model, loss, 0, 0.05, average=0.9)


def test_training_learns_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    target, reports = torch.tensor([[1.0], [-2.0], [0.5]]), []
    (whole, at_once), (halves, stopped) = line(target), line(target)
    at_once.steps = stopped.steps = 2 * SAVE_EVERY
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    fit(at_once, tmp_path / "a", lambda *state: reports.append(state))

    class Killed(Exception): ...

    def kill(step: int, steps: int, loss: float | None = None) -> None:
        if step == SAVE_EVERY + 3:
            raise Killed

    with pytest.raises(Killed):
        fit(stopped, tmp_path / "b", kill)
    halves, stopped = line(target)
    stopped.steps = 2 * SAVE_EVERY
    fit(stopped, tmp_path / "b", lambda *state: None)
    torch.testing.assert_close(halves.state_dict(), whole.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(whole.state_dict()["linear.weight"].T, target, atol=0.02, rtol=0)
    assert reports[-1][:2] == (400, 400) and (tmp_path / "b/line.csv").read_text().count("\n") == 3


def test_every_network_gets_a_gradient(tokenizer: CLIPTokenizer, pictures: Pictures) -> None:
    vae = networks.make_vae()
    vae_loss(vae, pictures, 0, 2, "cpu")(0).backward()
    unet = networks.make_unet()
    trained = nn.ModuleDict(
        {
            "text_encoder": networks.make_text_encoder(tokenizer),
            "unet": unet,
            "controlnet": networks.make_controlnet(unet),
        }
    )
    alphas = networks.make_scheduler().alphas_cumprod
    loss = diffusion_loss(trained, tokenizer, alphas, torch.randn(2, 4, 16, 16), pictures, 0, 2, "cpu", no_control=0.0)
    loss(0).backward()
    for network in (vae, *trained.values()):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_saved_model_is_loaded_by_the_program(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    from stages.diffusion.loading import load_networks
    from stages.diffusion.settings import ModelNames

    unet = networks.make_unet()
    networks.save_model(tmp_path, tokenizer, networks.make_text_encoder(tokenizer), networks.make_vae(), unet)
    networks.save_network(tmp_path / "canny", networks.make_controlnet(unet))
    loaded = load_networks(ModelNames(model_id=str(tmp_path), controlnets=(str(tmp_path / "canny"),), device="cpu"))
    assert loaded.prediction == "v_prediction"
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 25e6
    torch.testing.assert_close(loaded.unet.conv_in.weight, unet.conv_in.weight.detach().half().float())
