"""Make the pictures of docs/tasks.md and docs/gallery.md with the embedded model, from clips that are drawn here.

python -m tools.docs_pictures
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage

import diffsynth_cli as ds
from stages.base.arrays import Image
from stages.base.cache import FrameCache
from stages.base.record import CACHE_NAME
from stages.video import fit, save_png
from tools.train_mini.clip import FPS, HEIGHT, SCENE, WIDTH
from tools.train_mini.scenes import random_scene
from tools.train_mini.world import Look, draw, render

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
FRAMES, COLUMNS, GAP, QUALITY = 9, 3, 4, 82
DAY = Look("summer", "day", "photo")

Frame = Callable[[float], Image]
"""Draws a frame at a time in seconds, uint8 RGB [H, W, 3]."""


def painted(number: int, look: Look) -> Frame:
    """Return the frames of a scene of the painted world in a look."""
    scene = random_scene(number, WIDTH / HEIGHT)
    return lambda time: render(scene, look, HEIGHT, WIDTH, time)


def damaged(frame: Frame) -> Frame:
    """Return the frames at half the size, with noise, as an old camera would give them."""

    def shrunk(time: float) -> Image:
        small = cv2.resize(frame(time), (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
        noise = np.random.default_rng(round(time * FPS)).normal(0, 9, small.shape)
        noisy: Image = np.clip(small + noise, 0, 255).astype(np.uint8)
        return noisy

    return shrunk


def clay(number: int) -> Frame:
    """Return the frames of a scene without colours or texture, like a plain 3D rendering."""
    scene = random_scene(number, WIDTH / HEIGHT)

    def shaded(time: float) -> Image:
        labels, relief = draw(scene, HEIGHT, WIDTH, time)
        tones = np.random.default_rng(number).permutation(np.linspace(95, 215, 256))
        grey = np.clip(tones[labels] * (1 + 0.2 * relief), 0, 255).astype(np.uint8)
        return np.repeat(cv2.resize(grey, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[..., None], 3, axis=2)

    return shaded


def outlines(number: int) -> Frame:
    """Return the outlines of a scene, white on black, as a renderer can write them."""
    scene = random_scene(number, WIDTH / HEIGHT)

    def drawn(time: float) -> Image:
        labels, _ = draw(scene, HEIGHT, WIDTH, time)
        lines = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
        small = cv2.resize(lines.astype(np.uint8) * 255, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        return np.repeat(np.where(small > 64, 255, 0).astype(np.uint8)[..., None], 3, axis=2)

    return drawn


@dataclass(frozen=True)
class Example:
    """A job of the embedded model.

    Attributes:
        clip: Draws its input.
        keys: Job keys other than the demo's.
        image: The image that `keys` calls `image.png`.
        maps: Draws the control maps that `keys` expects in the folder `maps`.
    """

    clip: Frame
    keys: dict[str, object]
    image: Image | None = field(default=None, compare=False)
    maps: Frame | None = None


LIKE_IMAGE = {"frames_reference": ["image.png"], "combine_pattern": ["reference_0", -1, 0, 1]}
TASKS = {
    "text_guided": Example(painted(SCENE, DAY), {"prompt": "autumn, orange leaves, oil"}),
    "fashion": Example(
        painted(1023, DAY),
        {"prompt": "a person", **LIKE_IMAGE},
        painted(1012, Look("autumn", "day", "cartoon"))(0.0),
    ),
    "image_guided": Example(
        painted(1015, DAY),
        {"prompt": "a house by a lake", **LIKE_IMAGE},
        painted(1040, Look("winter", "sunset", "watercolor"))(0.0),
    ),
    "restoring": Example(
        damaged(painted(1029, DAY)),
        {"prompt": "summer, day, photo", "scheduler": "ddim", "num_inference_steps": 20, "img2img_strength": 0.4},
    ),
    "rendering_3d": Example(
        clay(1018), {"prompt": "summer, day, photo", "controlnet_processor": ["file:maps"]}, maps=outlines(1018)
    ),
}
GALLERY = (
    "winter, snow, day", "spring, blossoms, watercolor", "summer, noon, cartoon",
    "autumn, orange leaves, pastel", "summer, night, moonlight, oil", "teal, dusk, ink sketch",
)  # fmt: skip


def write_frames(folder: Path, frame: Frame, count: int) -> list[Image]:
    """Write frames as a folder of images, and return them."""
    folder.mkdir()
    frames = [frame(index / FPS) for index in range(count)]
    for index, image in enumerate(frames):
        save_png(folder / f"{index:05}.png", image, "")
    return frames


def run(example: Example, frames: int) -> tuple[list[Image], list[Image]]:
    """Run a job and return its input and its result, resized to the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = write_frames(folder / "clip", example.clip, frames)
        if example.maps is not None:
            write_frames(folder / "maps", example.maps, frames)
        if example.image is not None:
            save_png(folder / "image.png", example.image, "")
        keys = json.loads((resources.files("templates") / "demo.json").read_text()) | {
            "input_video": "clip", "frame_height": HEIGHT, "frame_width": WIDTH,
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(keys | example.keys))
        ds.run(folder / "job.json")
        made = FrameCache(folder / keys["output_path"] / CACHE_NAME)["deflickered"][:]
    return [fit(frame, HEIGHT, WIDTH) for frame in clip], list(made)


def write(name: str, rows: list[list[Image]]) -> None:
    """Write images in rows, with transparent gaps."""
    height, width = rows[0][0].shape[:2]
    step, columns = np.array([width + GAP, height + GAP]), max(map(len, rows))
    sheet = PillowImage.new("RGBA", tuple(step * (columns, len(rows)) - GAP))
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            sheet.paste(PillowImage.fromarray(image), tuple(step * (column, row)))
    path = PICTURES / f"{name}.webp"
    sheet.save(path, quality=QUALITY, method=6)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Make all pictures."""
    PICTURES.mkdir(exist_ok=True)
    for name, example in TASKS.items():
        before, after = run(example, FRAMES)
        chosen = range(0, FRAMES, FRAMES // COLUMNS)
        given = [] if example.image is None else [example.image]
        write(name, [[before[k] for k in chosen] + given, [after[k] for k in chosen]])
    looks = [run(Example(painted(SCENE, DAY), {"prompt": prompt}), 2)[1][0] for prompt in GALLERY]
    write("gallery", [looks[:COLUMNS], looks[COLUMNS:]])


if __name__ == "__main__":
    main()
