"""Measure how well the embedded model follows a prompt and an edge map.

    python -m tools.train_mini.evaluate [--scenes 200] [--model FOLDER]

On scenes that it was not trained on: does a classifier trained on the painted world recognise the look of the picture?
Are the edges where the map has them? How much does the autoencoder lose? The same without ControlNet and without prompt
shows what each of them contributes.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import diffsynth_cli as ds
from diffsynth_cli.demo import write_demo
from stages.base.arrays import Image, Images
from stages.base.cache import FrameCache
from stages.base.record import CACHE_NAME
from stages.diffusion.denoise import Denoiser, Frames
from stages.diffusion.loading import load_networks
from stages.diffusion.settings import Batches, ModelNames, Settings
from stages.models import FOLDER as EMBEDDED
from stages.smoothers.images.metrics import measure
from stages.video import open_source
from tools.train_mini.clip import CLIP
from tools.train_mini.data import SIZE, edges, make_pictures
from tools.train_mini.scenes import random_scene, random_view
from tools.train_mini.training import to_pixels
from tools.train_mini.world import MEDIA, SEASONS, TIMES, Look, render

FOLDER = Path("build/train_mini")
UNSEEN = 9 * 10**8  # first seed of scenes that are not used in training
WORDS = {"season": SEASONS, "time": TIMES, "medium": MEDIA}
RECONSTRUCTED = 4096  # training pictures of the classifier that also pass through the autoencoder
TOLERANCE = 2  # px by which an edge may be displaced
SCHEDULER, STEPS, GUIDANCE, SCALE = "dpm++2m", 12, 3.0, 1.25  # as in the demo
PROMPT = "winter, snow, night"  # as in the demo
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.train_mini.evaluate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=200, help="number of scenes")
    parser.add_argument("--model", type=Path, default=EMBEDDED / "mini", help="folder of the model")
    parser.add_argument(
        "--sheet", type=Path, default=FOLDER / "evaluation.png", help="where to write a sheet of the pictures"
    )
    options = parser.parse_args()
    model = str(options.model.resolve())
    names = ModelNames(model_id=model)
    autoencoder = Denoiser(load_networks(names), Settings(models=names))
    classifier = trained_classifier(autoencoder)
    scenes = [
        random_view(random_scene(UNSEEN + k), np.random.default_rng((UNSEEN + k, 0))) for k in range(options.scenes)
    ]
    looks = list(itertools.islice(itertools.cycle(_shuffled_looks()), options.scenes))
    seen = np.stack([render(scene, Look("summer", "day", "photo"), SIZE, SIZE) for scene in scenes])
    truth = np.stack([render(scene, look, SIZE, SIZE) for scene, look in zip(scenes, looks)])
    maps = np.stack([edges(image) for image in seen])
    made = {
        "the painted world itself": truth,
        "reconstructed by the autoencoder": reconstruct(autoencoder, truth),
        "prompt and map": generate(model, looks, maps, SCALE),
        "without ControlNet": generate(model, looks, maps, 0.0),
        "without prompt": generate(model, [None] * len(looks), maps, SCALE),
    }
    table = Table(
        "pictures",
        *WORDS,
        "edges (F1)",
        title=f"{options.scenes} unseen scenes, {STEPS} steps, guidance {GUIDANCE}, ControlNet {SCALE}",
    )
    for name, images in made.items():
        shares = accuracy(classifier, images, looks)
        table.add_row(
            name,
            *(f"{100 * share:.1f} %" for share in shares),
            f"{np.mean([agreement(edges(a), b) for a, b in zip(images, maps)]):.3f}",
        )
    Console().print(table)
    print(f"autoencoder: {psnr(made['reconstructed by the autoencoder'], truth):.2f} dB PSNR")
    show_flicker(model)
    write_sheet(options.sheet, [seen, np.repeat(maps[..., None], 3, axis=3), *made.values()])


def show_flicker(model: str) -> None:
    """Print the flicker of the demo's clip, rendered frame by frame and as the demo renders it."""
    clip = np.stack([shot.image() for shot in open_source(CLIP).shots()])
    maps = np.stack([edges(frame) for frame in clip])
    with tempfile.TemporaryDirectory() as folder:
        job = write_demo(Path(folder), None, PROMPT)
        made = ds.run(job, overrides={"model_id": model, "controlnet_model_id": [f"{model}/canny"]})
        cache = FrameCache(made.output_path / CACHE_NAME)
        videos = {
            "frame by frame, different noise": render_separately(model, maps, [k + 1 for k in range(len(maps))]),
            "frame by frame, same noise": render_separately(model, maps, [0] * len(maps)),
            "rendered": cache["rendered"][:],
            "deflickered": cache["deflickered"][:],
        }
    table = Table("demo clip", "warp error ×1000", "sharpness", title=PROMPT)
    for name, curves in zip(videos, measure(clip, list(videos.values())), strict=True):
        table.add_row(name, f"{np.nanmean(curves.warp[1]):.2f}", f"{np.mean(curves.sharpness):.0f}")
    Console().print(table)


def render_separately(model: str, maps: Images, seeds: list[int]) -> Images:
    """Render a frame per map, each without regard to the others."""
    names = ModelNames(model_id=model, controlnets=(f"{model}/canny",))
    networks = load_networks(names)
    settings = Settings(
        models=names, scales=(SCALE,), prompts=(PROMPT,), guidance=GUIDANCE, steps=STEPS, scheduler=SCHEDULER
    )
    noises = [Denoiser(networks, replace(settings, seed=seed)).initial_noise(*maps.shape[1:]) for seed in seeds]
    return denoise(Denoiser(networks, settings), torch.cat(noises), maps)


def denoise(denoiser: Denoiser, latents: torch.Tensor, maps: Images) -> Images:
    """Run all steps on latents [N, 4, h, w] with edge maps [N, H, W], and decode them."""
    batches = Batches(BATCH)
    control = [np.repeat(maps[..., None], 3, axis=3)] * len(denoiser.networks.controlnets)
    sampler, before = denoiser.sampler, None
    for timestep in sampler.timesteps:
        noise = denoiser.predict_noise(Frames(latents, control), [[k] for k in range(len(maps))], 0, timestep, batches)
        clean = sampler.clean(latents, noise, timestep)
        latents, before = sampler.step(latents, clean, timestep, before), clean
    return denoiser.decode(latents, batches)


def _shuffled_looks() -> list[Look]:
    looks = [Look(*words) for words in itertools.product(SEASONS, TIMES, MEDIA)]
    return [looks[k] for k in np.random.default_rng(0).permutation(len(looks))]


# -- pictures ----------------------------------------------------------------------------------------------------------


def generate(model: str, looks: Sequence[Look | None], maps: Images, scale: float) -> Images:
    """Generate a picture per map with the program's own denoising loop. A look of None means no prompt."""
    controlnets = (f"{model}/canny",) if scale else ()
    names = ModelNames(model_id=model, controlnets=controlnets)
    networks = load_networks(names)
    scales = (scale,) * len(controlnets)
    settings = Settings(models=names, scales=scales, guidance=GUIDANCE, steps=STEPS, scheduler=SCHEDULER)
    images = np.zeros((*maps.shape, 3), np.uint8)
    for look in track(dict.fromkeys(looks), f"scale {scale}", transient=True):
        indexes = [k for k, other in enumerate(looks) if other == look]
        prompt = "" if look is None else f"{look.season}, {look.time}, {look.medium}"
        denoiser = Denoiser(networks, replace(settings, prompts=(prompt,)))
        latents = denoiser.initial_noise(SIZE, SIZE).repeat(len(indexes), 1, 1, 1)
        images[indexes] = denoise(denoiser, latents, maps[indexes])
    return images


def psnr(images: Images, truth: Images) -> float:
    """Return the mean PSNR of images in dB."""
    return float(np.mean(10 * np.log10(255**2 / ((images.astype(float) - truth) ** 2).mean(axis=(1, 2, 3)))))


def agreement(found: Image, expected: Image) -> float:
    """Return the F1 score of two edge maps. Edges match within TOLERANCE pixels."""
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * TOLERANCE + 1,) * 2)
    near_found, near_expected = cv2.dilate(found, around) > 0, cv2.dilate(expected, around) > 0
    precision = near_expected[found > 0].mean() if found.any() else float(not expected.any())
    recall = near_found[expected > 0].mean() if expected.any() else 1.0
    return float(2 * precision * recall / max(precision + recall, 1e-9))


# -- classifier --------------------------------------------------------------------------------------------------------


def trained_classifier(autoencoder: Denoiser, steps: int = 4000, batch: int = 32, rate: float = 3e-3) -> nn.Module:
    """Train a classifier of season, time and medium on the painted world, or load it from build/train_mini.

    Half of its training pictures pass through the autoencoder, as all pictures of the model do. A classifier trained on
    crisp pictures alone mistakes their softness for a medium.
    """
    heads = sum(map(len, WORDS.values()))
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((3, 32, 64, 128, 160)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    classifier = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, heads))
    path = FOLDER / f"judge-{steps}.pt"
    if path.exists():
        classifier.load_state_dict(torch.load(path, weights_only=True))
        return classifier.eval()
    torch.manual_seed(0)
    pictures = make_pictures(FOLDER / "pictures", 12288, 0, lambda done, total: None)
    soft_images = reconstruct(autoencoder, pictures.images[:RECONSTRUCTED])
    labels = torch.tensor([numbers(look) for look in pictures.looks])
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in track(range(steps), "classifier", transient=True):
        rng = np.random.default_rng(step)
        crisp, soft = (rng.integers(0, count, batch // 2) for count in (len(labels), len(soft_images)))
        images = to_pixels(np.concatenate([pictures.images[crisp], soft_images[soft]]), "cpu")
        expected = labels[np.concatenate([crisp, soft])]
        scores = _by_word(classifier(images.flip(3) if step % 2 else images))
        losses = [F.cross_entropy(score, expected[:, k]) for k, score in enumerate(scores)]
        optimizer.zero_grad()
        sum(losses, torch.zeros(())).backward()
        optimizer.step()
        schedule.step()
    torch.save(classifier.state_dict(), path)
    return classifier.eval()


def reconstruct(autoencoder: Denoiser, images: Images) -> Images:
    """Encode and decode images."""
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    batches = Batches(BATCH)
    made = [
        autoencoder.decode(autoencoder.encode(part, batches), batches)
        for part in track(parts, "autoencoder", transient=True)
    ]
    return np.concatenate(made)


def _by_word(scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split scores into those of season, time and medium."""
    return tuple(scores.split([len(words) for words in WORDS.values()], dim=1))


def numbers(look: Look) -> tuple[int, ...]:
    """Return the indexes of season, time and medium."""
    return tuple(words.index(getattr(look, name)) for name, words in WORDS.items())


@torch.inference_mode()
def accuracy(classifier: nn.Module, images: Images, looks: list[Look]) -> NDArray[np.float64]:
    """Return the shares of pictures whose season, time and medium are recognised, [3]."""
    scores = _by_word(classifier(to_pixels(images, "cpu")))
    found = torch.stack([score.argmax(1) for score in scores], dim=1).numpy()
    shares: NDArray[np.float64] = (found == np.array([numbers(look) for look in looks])).mean(0)
    return shares


def write_sheet(path: Path, rows: list[Images], columns: int = 14) -> None:
    sheet = np.concatenate([np.concatenate(list(images[:columns]), axis=1) for images in rows])
    cv2.imwrite(str(path), sheet[..., ::-1])
    print(path)


if __name__ == "__main__":
    main()
