"""The training data: pictures of the painted world, edge maps of the same scenes, and captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from stages.base.arrays import Image, Images
from tools.train_mini.scenes import Scene, random_scene, random_view
from tools.train_mini.world import MEDIA, TIMES, Look, caption, noise, random_look, render

SIZE = 128  # px per side
CANNY = (100, 200)  # thresholds of the canny annotator
PART = 256  # pictures per file


@dataclass(frozen=True)
class Pictures:
    """Pictures with their edge maps, uint8 [N, S, S] (0 or 255), captions and looks."""

    images: Images
    maps: Images
    captions: list[str]
    looks: list[Look]


def edges(image: Image, low: float = CANNY[0], high: float = CANNY[1]) -> Image:
    """Return the edge map of the canny annotator, [H, W]."""
    return np.asarray(cv2.Canny(image, low, high), np.uint8)


def make_pictures(folder: Path, count: int, seed: int, progress: Callable[[int, int], None]) -> Pictures:
    """Draw `count` pictures on all CPU cores, or read them from `folder` if they were drawn before."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [(start, min(PART, count - start)) for start in range(0, count, PART)]
    paths = [folder / f"{seed}_{start:06d}_{size}.npz" for start, size in parts]
    missing = [(path, seed * 10**7 + start, size) for path, (start, size) in zip(paths, parts) if not path.exists()]
    # Not forked: a fork can hang if libraries have started threads.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(_make_part, missing), 1):
            progress(done, len(missing))
    made = [np.load(path) for path in paths]
    looks = [Look(*words) for part in made for words in json.loads(str(part["looks"]))]
    captions = [text for part in made for text in json.loads(str(part["captions"]))]
    return Pictures(
        np.concatenate([part["images"] for part in made]),
        np.concatenate([part["maps"] for part in made]),
        captions,
        looks,
    )


def _make_part(job: tuple[Path, int, int]) -> None:
    cv2.setNumThreads(1)
    path, first, count = job
    made = [one_picture(first + k) for k in range(count)]
    images, maps, captions, looks = zip(*made)
    words = [(look.season, look.time, look.medium, look.colour) for look in looks]
    part = path.with_suffix(".part.npz")
    np.savez_compressed(
        part, images=np.stack(images), maps=np.stack(maps), captions=json.dumps(captions), looks=json.dumps(words)
    )
    part.replace(path)


def one_picture(seed: int) -> tuple[Image, Image, str, Look]:
    """Draw a picture, and return it with an edge map of the same scene in another look, its caption and its look."""
    rng = np.random.default_rng((seed, 0))
    scene, look = random_view(random_scene(seed), rng), random_look(rng)
    return render(scene, look, SIZE, SIZE), control_map(scene, rng, SIZE, SIZE), caption(scene, look, rng), look


def control_map(scene: Scene, rng: np.random.Generator, height: int, width: int) -> Image:
    """Return edges of the scene as a camera might see it: mostly by day, sometimes with rough surfaces."""
    medium = "photo" if rng.random() < 0.8 else str(rng.choice(MEDIA))
    time = "day" if rng.random() < 0.7 else str(rng.choice(TIMES))
    image = render(scene, Look(str(rng.choice(["spring", "summer", "autumn"])), time, medium), height, width).astype(
        np.float32
    )
    if rng.random() < 0.25:
        rough = rng.uniform(10, 45) * noise(rng, image.shape, rng.uniform(2, 5))
        image += (rough * (noise(rng, image.shape, 60) > rng.uniform(-0.5, 1)))[..., None]
    low = rng.uniform(60, 140)
    return edges(np.clip(image, 0, 255).astype(np.uint8), low, low * 2)
