"""`python -m tools.train_mini.evaluate`: how well the embedded model does what a prompt and an edge map ask for.

On scenes that it never saw: are the look's words recovered from the picture (by a classifier trained on the painted
world itself)? Are its edges where the map has them? How much does the autoencoder lose? And the same with the
ControlNet or the prompt left out, which shows what each of them does.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import diffsynth_cli as ds
from diffsynth_cli.demo import write_demo
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
UNSEEN = 9 * 10**8  # scenes from here on are in no training
WORDS = {"season": SEASONS, "time": TIMES, "medium": MEDIA}
SOFTENED = 4096  # pictures that the judge also sees as the autoencoder gives them back
TOLERANCE = 2  # px, by which an edge may be off
SCHEDULER, STEPS, GUIDANCE, SCALE, BATCH = "dpm++2m", 12, 3.0, 1.25, 16  # all but the last as in the demo
PROMPT = "winter, snow, night"  # of the demo


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.train_mini.evaluate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "mini")
    parser.add_argument("--sheet", type=Path, default=FOLDER / "evaluation.png", help="pictures to look at")
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
        "the same, through the autoencoder": given_back(autoencoder, truth),
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
        found = recovered(classifier, images, looks)
        table.add_row(
            name,
            *(f"{100 * share:.1f} %" for share in found),
            f"{np.mean([agreement(edges(a), b) for a, b in zip(images, maps)]):.3f}",
        )
    Console().print(table)
    print(f"autoencoder: {likeness(made['the same, through the autoencoder'], truth):.2f} dB PSNR")
    show_steadiness(model)
    write_sheet(options.sheet, [seen, np.repeat(maps[..., None], 3, axis=3), *made.values()])


def show_steadiness(model: str) -> None:
    """The demo's clip, frame by frame with noise of their own, and as the demo renders it."""
    clip = np.stack([shot.image() for shot in open_source(CLIP).shots()])
    maps = np.stack([cv2.Canny(frame, 100, 200) for frame in clip])
    with tempfile.TemporaryDirectory() as folder:
        job = write_demo(Path(folder), None, PROMPT)
        made = ds.run(job, overrides={"model_id": model, "controlnet_model_id": [f"{model}/canny"]})
        cache = FrameCache(made.output_path / CACHE_NAME)
        videos = {
            "frame by frame, own noise": one_by_one(model, maps, [k + 1 for k in range(len(maps))]),
            "frame by frame, one noise": one_by_one(model, maps, [0] * len(maps)),
            "rendered": cache["rendered"][:],
            "deflickered": cache["deflickered"][:],
        }
    table = Table("demo clip", "warp error ×1000", "sharpness", title=PROMPT)
    for name, curves in zip(videos, measure(clip, list(videos.values())), strict=True):
        table.add_row(name, f"{np.nanmean(curves.warp[1]):.2f}", f"{np.mean(curves.sharpness):.0f}")
    Console().print(table)


def one_by_one(model: str, maps: np.ndarray, seeds: list[int]) -> np.ndarray:
    """Frames uint8 [N, H, W, 3] of these maps, none of which knows of the others."""
    names = ModelNames(model_id=model, controlnets=(f"{model}/canny",))
    networks = load_networks(names)
    settings = Settings(
        models=names, scales=(SCALE,), prompt=PROMPT, guidance=GUIDANCE, steps=STEPS, scheduler=SCHEDULER
    )
    noises = [Denoiser(networks, replace(settings, seed=seed)).initial_noise(*maps.shape[1:]) for seed in seeds]
    return denoised(Denoiser(networks, settings), torch.cat(noises), maps)


def denoised(denoiser: Denoiser, latents: torch.Tensor, maps: np.ndarray) -> np.ndarray:
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


def generate(model: str, looks: list[Look | None], maps: np.ndarray, scale: float) -> np.ndarray:
    """One picture a map, uint8 [N, S, S, 3], by the denoising loop that the program uses. A look of None: no prompt."""
    controlnets = (f"{model}/canny",) if scale else ()
    names = ModelNames(model_id=model, controlnets=controlnets)
    networks = load_networks(names)
    scales = (scale,) * len(controlnets)
    settings = Settings(models=names, scales=scales, guidance=GUIDANCE, steps=STEPS, scheduler=SCHEDULER)
    images = np.zeros((*maps.shape, 3), np.uint8)
    for look in track(dict.fromkeys(looks), f"scale {scale}", transient=True):
        mine = [k for k, other in enumerate(looks) if other == look]
        prompt = "" if look is None else f"{look.season}, {look.time}, {look.medium}"
        denoiser = Denoiser(networks, replace(settings, prompt=prompt))
        latents = denoiser.initial_noise(SIZE, SIZE).repeat(len(mine), 1, 1, 1)
        images[mine] = denoised(denoiser, latents, maps[mine])
    return images


def likeness(images: np.ndarray, truth: np.ndarray) -> float:
    """PSNR in dB, the mean over images."""
    return float(np.mean(10 * np.log10(255**2 / ((images.astype(float) - truth) ** 2).mean(axis=(1, 2, 3)))))


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """F1 of two edge maps, an edge counting as met within TOLERANCE pixels."""
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * TOLERANCE + 1,) * 2)
    near_found, near_wanted = cv2.dilate(found, around) > 0, cv2.dilate(wanted, around) > 0
    precision = near_wanted[found > 0].mean() if found.any() else float(not wanted.any())
    recall = near_found[wanted > 0].mean() if wanted.any() else 1.0
    return float(2 * precision * recall / max(precision + recall, 1e-9))


# -- words -------------------------------------------------------------------------------------------------------------


def trained_classifier(autoencoder: Denoiser, steps: int = 4000, batch: int = 32, rate: float = 3e-3) -> nn.Module:
    """Season, time and medium of a picture, learned from the painted world; kept in build/train_mini.

    Half of what it learns from are pictures as the model's autoencoder gives them back, which all that the model makes
    looks like: a judge of crisp pictures alone takes that softness for a medium of its own.
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
    softened = given_back(autoencoder, pictures.images[:SOFTENED])
    labels = torch.tensor([numbers(look) for look in pictures.looks])
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in track(range(steps), "classifier", transient=True):
        rng = np.random.default_rng(step)
        crisp, soft = (rng.integers(0, count, batch // 2) for count in (len(labels), len(softened)))
        images = to_pixels(np.concatenate([pictures.images[crisp], softened[soft]]), "cpu")
        wanted = labels[np.concatenate([crisp, soft])]
        scores = _by_word(classifier(images.flip(3) if step % 2 else images))
        loss = sum(F.cross_entropy(score, wanted[:, k]) for k, score in enumerate(scores))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.save(classifier.state_dict(), path)
    return classifier.eval()


def given_back(autoencoder: Denoiser, images: np.ndarray) -> np.ndarray:
    """The images, encoded and decoded, uint8 [N, H, W, 3]."""
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    batches = Batches(BATCH)
    made = [
        autoencoder.decode(autoencoder.encode(part, batches), batches)
        for part in track(parts, "autoencoder", transient=True)
    ]
    return np.concatenate(made)


def _by_word(scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return scores.split([len(words) for words in WORDS.values()], dim=1)


def numbers(look: Look) -> tuple[int, ...]:
    return tuple(words.index(getattr(look, name)) for name, words in WORDS.items())


@torch.inference_mode()
def recovered(classifier: nn.Module, images: np.ndarray, looks: list[Look]) -> np.ndarray:
    """The shares of pictures whose season, time and medium are those of the look."""
    scores = _by_word(classifier(to_pixels(images, "cpu")))
    found = torch.stack([score.argmax(1) for score in scores], dim=1).numpy()
    return (found == np.array([numbers(look) for look in looks])).mean(0)


def write_sheet(path: Path, rows: list[np.ndarray], columns: int = 14) -> None:
    sheet = np.concatenate([np.concatenate(list(images[:columns]), axis=1) for images in rows])
    cv2.imwrite(str(path), sheet[..., ::-1])
    print(path)


if __name__ == "__main__":
    main()
