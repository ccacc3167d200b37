"""The training loop, and the losses of the autoencoder and of text encoder, U-Net and ControlNet together.

A batch depends only on the seed and the step, and a checkpoint holds all state, so a resumed training gives the same
weights as an uninterrupted one.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from stages.base.arrays import Images
from tools.train_mini.data import Pictures

CROP = 64  # px per side of what the autoencoder is trained on
WARM_UP = 100  # steps
COOL_DOWN = 0.25  # share of the steps at the end in which the learning rate falls to 0
SAVE_EVERY = 200  # steps


Loss: TypeAlias = Callable[[int], torch.Tensor]
"""Computes the loss of a step."""


class Progress(Protocol):
    """Receives the number of items or steps done, the total, and the current loss if there is one."""

    def __call__(self, done: int, total: int, loss: float | None = None, /) -> None: ...


@dataclass
class Training:
    """What to train and how.

    Attributes:
        name: Name of the checkpoint and the log.
        loss: Computes the scalar loss of a step.
        rate: The highest learning rate.
        average: Decay of the running mean of the weights.
    """

    name: str
    networks: nn.ModuleDict
    loss: Loss
    steps: int
    rate: float
    average: float = 0.998


def fit(training: Training, folder: Path, progress: Progress) -> None:
    """Train up to `steps`, resuming from a checkpoint in `folder`; the networks end with the mean of their weights."""
    parameters = [p for p in training.networks.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=training.rate, betas=(0.9, 0.99), weight_decay=0.01)
    mean = {name: value.detach().clone() for name, value in training.networks.state_dict().items()}
    path, first, spent = folder / f"{training.name}.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=parameters[0].device)
        training.networks.load_state_dict(state["networks"])
        optimizer.load_state_dict(state["optimizer"])
        mean, first, spent = state["mean"], state["step"], state["seconds"]
    training.networks.train()
    recent: list[float] = []
    for step in range(first, training.steps):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = training.rate * _rate(step, training.steps)
        torch.manual_seed(step)
        with torch.autocast("cuda", torch.bfloat16, enabled=parameters[0].is_cuda):
            loss = training.loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        _follow(mean, training.networks, min(training.average, (1 + step) / (10 + step)))
        spent += time.perf_counter() - started
        recent.append(loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == training.steps:
            part = path.with_suffix(".part")
            torch.save(
                {
                    "networks": training.networks.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "mean": mean,
                    "step": step + 1,
                    "seconds": spent,
                },
                part,
            )
            part.replace(path)
            _write_log(folder / f"{training.name}.csv", step + 1, spent, float(np.mean(recent)))
            recent.clear()
        progress(step + 1, training.steps, loss.item())
    training.networks.load_state_dict(mean)
    training.networks.eval()


def _rate(step: int, steps: int) -> float:
    return min((step + 1) / WARM_UP, 1.0, (steps - step) / (COOL_DOWN * steps))


def _follow(mean: dict[str, torch.Tensor], networks: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for name, value in networks.state_dict().items():
            if value.is_floating_point():
                mean[name].lerp_(value, 1 - decay)


def _write_log(path: Path, step: int, seconds: float, loss: float) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        csv.writer(file).writerows([("step", "seconds", "loss")] * new + [(step, round(seconds), round(loss, 5))])


# -- the autoencoder ---------------------------------------------------------------------------------------------------


def vae_loss(
    vae: AutoencoderKL, pictures: Pictures, seed: int, batch: int, device: str
) -> Callable[[int], torch.Tensor]:
    """Return the autoencoder's loss by step: errors of values and slopes, and a little KL divergence."""

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, step, 0))
        size = pictures.images.shape[1] - CROP
        crops = [
            pictures.images[n, y : y + CROP, x : x + CROP, :]
            for n, y, x in zip(
                rng.integers(0, len(pictures.images), batch),
                rng.integers(0, size + 1, batch),
                rng.integers(0, size + 1, batch),
            )
        ]
        target = to_pixels(np.stack(crops), device)
        posterior = vae.encode(target).latent_dist
        difference = vae.decode(posterior.sample()).sample - target
        slopes = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
        return (
            difference.abs().mean()
            + 2 * difference.square().mean()
            + slopes
            + 1e-5 * posterior.kl().mean() / (CROP / 8) ** 2
        )

    return loss


def to_pixels(images: Images, device: str) -> torch.Tensor:
    """Return images as float32 [N, 3, H, W], -1 to 1."""
    return (
        torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)
        / 127.5
        - 1
    )


@torch.inference_mode()
def encode_all(vae: AutoencoderKL, images: Images, device: str, progress: Progress) -> torch.Tensor:
    """Return the mean latents of all pictures, unscaled, float32 [N, 4, S/8, S/8], in CPU memory."""
    latents = []
    for start in range(0, len(images), 64):
        latents.append(vae.encode(to_pixels(images[start : start + 64], device)).latent_dist.mean.float().cpu())
        progress(start, len(images))
    return torch.cat(latents)


# -- text encoder, U-Net and ControlNet --------------------------------------------------------------------------------


def diffusion_loss(
    networks: nn.ModuleDict, tokenizer: CLIPTokenizer, alphas: torch.Tensor, latents: torch.Tensor, pictures: Pictures,
    seed: int, batch: int, device: str, no_prompt: float = 0.1, no_control: float = 0.12,
) -> Loss:  # fmt: skip
    """Return the loss by step: the squared error of v (arXiv 2202.00512, appendix D).

    The prompt or the map is sometimes left out, so that guidance works and the networks learn to use each of them.
    """
    ids = tokenizer(
        pictures.captions,
        truncation=True,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    no_text = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, step, 1))
        chosen = rng.integers(0, len(latents), batch)
        clean = latents[chosen].to(device)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(device)
        timesteps = torch.from_numpy(rng.integers(0, len(alphas), batch)).to(device)
        alpha = alphas[timesteps][:, None, None, None]
        noisy, v = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        prompted = torch.from_numpy(rng.random(batch) >= no_prompt)[:, None]
        text = networks["text_encoder"](torch.where(prompted, ids[chosen], no_text).to(device))[0]
        controlled = torch.from_numpy((rng.random(batch) >= no_control).astype(np.float32)).to(device)[
            :, None, None, None
        ]
        maps = torch.from_numpy(pictures.maps[chosen]).to(device)[:, None].float().expand(-1, 3, -1, -1) / 255
        down, middle = networks["controlnet"](noisy, timesteps, text, maps, return_dict=False)
        predicted = networks["unet"](
            noisy, timesteps, text,
            down_block_additional_residuals=[residual * controlled for residual in down],
            mid_block_additional_residual=middle * controlled, return_dict=False,
        )[0]  # fmt: skip
        return F.mse_loss(predicted, v)

    return loss
