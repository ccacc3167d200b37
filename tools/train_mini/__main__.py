"""Draw the painted world and train the embedded model on it.

    python -m tools.train_mini [--steps 20000]

Everything is kept in build/train_mini, and the model in its folder mini. The same command resumes a stopped training; a
larger --steps extends a finished one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from torch import nn
from transformers import CLIPTokenizer

from tools.train_mini import networks as shapes
from tools.train_mini.data import Pictures, make_pictures
from tools.train_mini.training import Progress, Training, diffusion_loss, encode_all, fit, vae_loss

FOLDER = Path("build/train_mini")
MODEL = FOLDER / "mini"


def main() -> None:
    options = parse_arguments()
    torch.manual_seed(options.seed)
    with show_progress("pictures") as progress:
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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.train_mini", description=__doc__)
    parser.add_argument("--pictures", type=int, default=12288)
    parser.add_argument("--vae-steps", type=int, default=6000, help="training steps of the autoencoder, 16 crops each")
    parser.add_argument("--steps", type=int, default=20000, help="training steps of text encoder, U-Net and ControlNet")
    parser.add_argument("--batch", type=int, default=16, help="pictures per training step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=MODEL)
    return parser.parse_args()


def train_vae(options: argparse.Namespace, pictures: Pictures) -> AutoencoderKL:
    vae = shapes.make_vae().to(options.device).to(memory_format=torch.channels_last)
    loss = vae_loss(vae, pictures, options.seed, 16, options.device)
    with show_progress("autoencoder") as progress:
        fit(Training("vae", nn.ModuleDict({"vae": vae}), loss, options.vae_steps, rate=1e-3), FOLDER, progress)
    return vae


def scaled_latents(options: argparse.Namespace, vae: AutoencoderKL, pictures: Pictures) -> tuple[torch.Tensor, float]:
    """Return the latents of all pictures, scaled to a standard deviation of 1, and the scaling factor."""
    path = FOLDER / f"latents-{options.vae_steps}.pt"
    if not path.exists():
        with show_progress("latents") as progress:
            torch.save(encode_all(vae, pictures.images, options.device, progress), path)
    latents = torch.load(path, weights_only=True)
    scaling = 1 / float(latents.std())
    return latents * scaling, scaling


def train_diffusion(
    options: argparse.Namespace, latents: torch.Tensor, pictures: Pictures
) -> tuple[nn.ModuleDict, CLIPTokenizer]:
    tokenizer = shapes.make_tokenizer()
    unet = shapes.make_unet()
    trained = nn.ModuleDict(
        {"text_encoder": shapes.make_text_encoder(tokenizer), "unet": unet, "controlnet": shapes.make_controlnet(unet)}
    )
    trained.to(options.device).to(memory_format=torch.channels_last)
    alphas = shapes.make_scheduler().alphas_cumprod.to(options.device)
    loss = diffusion_loss(trained, tokenizer, alphas, latents, pictures, options.seed, options.batch, options.device)
    with show_progress("diffusion") as progress:
        # The autoencoder's steps are part of the name, since more of them change the latents.
        name = f"diffusion-{options.vae_steps}"
        fit(Training(name, trained, loss, options.steps, rate=8e-4, average=0.999), FOLDER, progress)
    return trained, tokenizer


@contextmanager
def show_progress(name: str) -> Iterator[Progress]:
    """Show a progress bar with the time left and the current loss."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with ProgressBar(*columns) as bar:
        task = bar.add_task(name, total=None, loss="")

        def progress(done: int, total: int, loss: float | None = None) -> None:
            bar.update(task, completed=done, total=total, loss="" if loss is None else f"loss {loss:.4f}")

        yield progress


if __name__ == "__main__":
    main()
