"""Make the pictures of the docs and the README with the embedded model, from clips that are drawn here.

python -m tools.docs_pictures [tasks] [rendering] [upscaled] [between] [demo]
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage

import diffsynth_cli as ds
from diffsynth_cli.comparison import side_by_side
from diffsynth_cli.demo import compared_videos, singly, write_demo
from stages.base.arrays import Image
from stages.base.cache import FrameCache
from stages.base.record import CACHE_NAME
from stages.frame_rate import Raised
from stages.video import fit, save_png
from tools.train_mini.clip import FPS, HEIGHT, SCENE, WIDTH
from tools.train_mini.scenes import random_scene
from tools.train_mini.world import Look, draw, render

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
DEMO_WIDTH = 320  # px of each video
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


def panning(frame: Frame, step: float) -> Frame:
    """Return what a camera sees that pans over the first frame, `step` pixels per frame."""
    wide = fit(frame(0.0), 2 * HEIGHT, 2 * WIDTH)

    def seen(time: float) -> Image:
        centre = (WIDTH / 2 + step * time * FPS, HEIGHT)
        return np.asarray(cv2.getRectSubPix(wide, (WIDTH, HEIGHT), centre), np.uint8)

    return seen


def oval() -> Image:
    """Return a mask that is white around the middle."""
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    cv2.ellipse(mask, (WIDTH // 2 + 8, HEIGHT - 50), (78, 46), 0, 0, 360, (255, 255, 255), -1)
    return mask


def right_half() -> Image:
    """Return a mask that is white on the right."""
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[:, WIDTH // 2 :] = 255
    return mask


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
SUMMER, WINTER = "summer, day, photo", "winter, snow, night"
RENDERING = {
    "mask": Example(painted(SCENE, DAY), {"prompt": WINTER, "mask": "image.png", "mask_feather": 8}, oval()),
    "regions": Example(
        painted(SCENE, DAY), {"prompt": SUMMER, "regions": [{"mask": "image.png", "prompt": WINTER}]}, right_half()
    ),
    "prompts": Example(painted(SCENE, DAY), {"prompt": {"0": SUMMER, str(FRAMES - 1): WINTER}}),
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


def make_tasks() -> None:
    """Make the pictures of tasks and of the gallery."""
    for name, example in TASKS.items():
        before, after = run(example, FRAMES)
        chosen = range(0, FRAMES, FRAMES // COLUMNS)
        given = [] if example.image is None else [example.image]
        write(name, [[before[k] for k in chosen] + given, [after[k] for k in chosen]])
    looks = [run(Example(painted(SCENE, DAY), {"prompt": prompt}), 2)[1][0] for prompt in GALLERY]
    write("gallery", [looks[:COLUMNS], looks[COLUMNS:]])


def make_rendering() -> None:
    """Make the pictures of docs/rendering.md."""
    for name, example in RENDERING.items():
        before, after = run(example, FRAMES)
        chosen = range(0, FRAMES, FRAMES // 2)
        write(name, [[before[k] for k in chosen], [after[k] for k in chosen]])
    rows = []
    for noise in ("same", "warped"):
        example = Example(panning(painted(SCENE, DAY), 4.0), {"prompt": WINTER, "noise": noise, "post_smoother": None})
        before, after = run(example, FRAMES)
        rows.append([after[k] for k in range(0, FRAMES, FRAMES // 2)])
    write("noise", rows)


def make_upscaled() -> None:
    """Make the picture of the second pass: a part of frames, enlarged by hand and rendered again."""
    rows = []
    for keys in ({}, {"upscale": {"factor": 2.0, "strength": 0.3, "steps": 10}}):
        _, after = run(Example(painted(SCENE, DAY), {"prompt": WINTER, **keys}), FRAMES)
        large = [cv2.resize(frame, (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_LANCZOS4) for frame in after]
        rows.append([np.asarray(large[k], np.uint8)[HEIGHT:, 140:396] for k in range(0, FRAMES, FRAMES // 2)])
    write("upscale", rows)


def make_between() -> None:
    """Make the picture of frames that are painted in between: two frames far apart, a cross-fade, and ours."""
    before, after = run(Example(painted(SCENE, DAY), {"prompt": "summer, noon, cartoon"}), FRAMES)
    ends, guides = ([images[0], images[FRAMES // 2]] for images in (after, before))
    ours = [*Raised(np.stack(ends), np.stack(guides), 2)][1]
    fade = np.asarray(cv2.addWeighted(ends[0], 0.5, ends[1], 0.5, 0), np.uint8)
    write("between", [[ends[0], fade, ends[1]], [ends[0], ours, ends[1]]])


def make_demo() -> None:
    """Make the moving picture of the README: the demo's clip, single frames, and the result."""
    with tempfile.TemporaryDirectory() as name:
        path = write_demo(Path(name), None, "winter, snow, night")
        for overrides in (singly(path), []):
            ds.run(path, overrides=overrides)
        size = (3 * DEMO_WIDTH, round(3 * DEMO_WIDTH * 0.225))
        frames = [PillowImage.fromarray(picture).resize(size) for picture in side_by_side(compared_videos(path))]
    path = PICTURES.parent / "demo.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0, quality=QUALITY)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


SETS = {
    "tasks": make_tasks,
    "rendering": make_rendering,
    "upscaled": make_upscaled,
    "between": make_between,
    "demo": make_demo,
}


def main() -> None:
    """Make the sets of pictures that are named, or all of them."""
    PICTURES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or SETS:
        SETS[name]()


if __name__ == "__main__":
    main()
