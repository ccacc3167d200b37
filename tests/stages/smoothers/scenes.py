"""A synthetic video that moves, stylised without flicker and with it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from tests.typing import Image, Images

HEIGHT, WIDTH = 96, 128
SPEED = 3  # px per frame, to the left


@dataclass
class Scene:
    """Videos of the same scene: `truth` is `guides` repainted, `styles` is `truth` with flicker."""

    guides: Images
    truth: Images
    styles: Images


def scene(kind: str, frames: int = 12) -> Scene:
    """A scene with flicker of this kind: "light" (gain, offset and noise vary) or "swimming" (detail moves)."""
    rng = np.random.default_rng(7)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH + SPEED * frames, 3)).astype(np.float32)
    world = cv2.GaussianBlur(noise, (0, 0), 3)
    world = np.clip((world - world.mean()) * 8 + 128, 0, 255)
    cv2.rectangle(world, (40, 20), (90, 60), (200, 60, 40), -1)
    guides = np.stack([world[:, SPEED * t : SPEED * t + WIDTH] for t in range(frames)]).astype(np.uint8)
    truth = np.stack([255 - guide for guide in guides])
    return Scene(guides, truth, np.stack([_flickering(image, kind, rng) for image in truth]))


def _flickering(image: Image, kind: str, rng: np.random.Generator) -> Image:
    if kind == "light":
        wide = cv2.resize(rng.normal(0, 10, (3, 4, 3)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        changed: np.ndarray = image * rng.uniform(0.85, 1.15, 3) + wide + rng.normal(0, 4, image.shape)
    else:
        y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
        off = cv2.resize(rng.normal(0, 1, (5, 6, 2)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        x, y = x + off[..., 0].astype(np.float32), y + off[..., 1].astype(np.float32)
        changed = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    levels: Image = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return levels


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a.astype(np.float64) - b) ** 2).mean())
