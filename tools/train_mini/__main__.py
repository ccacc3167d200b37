"""`python -m tools.train_mini`: draws the painted world and trains the embedded model on it.

Everything is kept in build/train_mini, the model in its folder mini; the same command goes on where it was stopped,
and a larger --steps trains on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from tools.train_mini import networks as shapes
from tools.train_mini.data import Pictures, make_pictures
from tools.train_mini.training import Training, diffusion_loss, encode_all, fit, vae_loss

FOLDER = Path("build/train_mini")
MODEL = FOLDER / "mini"


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    with stage("pictures") as progress:
        pictures = make_pictures(FOLDER / "pictures", options.pictures, options.seed, progress)
    vae = train_vae(options, pictures)
    latents, scaling = scaled_latents(options, vae, pictures)
    vae.register_to_config(scaling_factor=scaling)
    trained, tokenizer = train_diffusion(options, latents, pictures)
    shapes.save_model(options.out, tokenizer, trained["text_encoder"], vae, trained["unet"])
    shapes.save_network(options.out / "canny", trained["controlnet"])
    print(
        f"{options.out}: {sum(file.stat().st_size for file in options.out.rglob('*') if file.is_file()) / 1e6:.1f} MB"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.train_mini", description=__doc__)
    parser.add_argument("--pictures", type=int, default=12288)
    parser.add_argument("--vae-steps", type=int, default=6000, help="of 16 crops")
    parser.add_argument(
        "--steps", type=int, default=20000, help="of --batch pictures, for text encoder, U-Net and ControlNet"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=MODEL)
    return parser.parse_args()


def train_vae(options: argparse.Namespace, pictures: Pictures) -> nn.Module:
    vae = shapes.make_vae().to(options.device, memory_format=torch.channels_last)
    loss = vae_loss(vae, pictures, options.seed, 16, options.device)
    with stage("autoencoder") as progress:
        fit(Training("vae", nn.ModuleDict({"vae": vae}), loss, options.vae_steps, rate=1e-3), FOLDER, progress)
    return vae


def scaled_latents(options: argparse.Namespace, vae: nn.Module, pictures: Pictures) -> tuple[torch.Tensor, float]:
    """All latents, scaled to a deviation of 1, and the factor."""
    path = FOLDER / f"latents-{options.vae_steps}.pt"
    if not path.exists():
        with stage("latents") as progress:
            torch.save(encode_all(vae, pictures.images, options.device, progress), path)
    latents = torch.load(path, weights_only=True)
    scaling = 1 / float(latents.std())
    return latents * scaling, scaling


def train_diffusion(
    options: argparse.Namespace, latents: torch.Tensor, pictures: Pictures
) -> tuple[nn.ModuleDict, shapes.CLIPTokenizer]:
    tokenizer = shapes.make_tokenizer()
    unet = shapes.make_unet()
    trained = nn.ModuleDict(
        {"text_encoder": shapes.make_text_encoder(tokenizer), "unet": unet, "controlnet": shapes.make_controlnet(unet)}
    )
    trained.to(options.device, memory_format=torch.channels_last)
    alphas = shapes.make_scheduler().alphas_cumprod.to(options.device)
    loss = diffusion_loss(trained, tokenizer, alphas, latents, pictures, options.seed, options.batch, options.device)
    with stage("diffusion") as progress:
        # Named by the autoencoder it belongs to: trained on, that gives other latents.
        name = f"diffusion-{options.vae_steps}"
        fit(Training(name, trained, loss, options.steps, rate=8e-4, average=0.999), FOLDER, progress)
    return trained, tokenizer


@contextmanager
def stage(name: str) -> Iterator[Callable[..., None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(name, total=None, loss="")

        def progress(done: int, total: int, loss: float | None = None) -> None:
            bar.update(task, completed=done, total=total, loss="" if loss is None else f"loss {loss:.4f}")

        yield progress


if __name__ == "__main__":
    main()
