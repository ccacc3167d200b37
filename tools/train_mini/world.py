"""Draw scenes of the painted world in many looks, each of which a caption can describe.

A scene is drawn once as a map of labels. A look then gives every material its colours, lights the scene and paints it
in a medium, so a scene has the same edges in every look.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.base.arrays import Floats, Image, Mask
from tools.train_mini.scenes import Scene

SEASONS = ("winter", "spring", "summer", "autumn")
TIMES = ("day", "sunset", "night")
MEDIA = ("photo", "watercolor", "oil", "ink sketch", "cartoon", "pastel")
COLOURS = {
    "red": (210, 50, 45), "orange": (235, 140, 40), "yellow": (235, 210, 60), "green": (70, 170, 80),
    "teal": (40, 160, 160), "blue": (50, 90, 210), "purple": (130, 70, 180), "pink": (235, 130, 170),
}  # fmt: skip

OVERSAMPLING = 2  # labels are drawn larger and scaled down, for smooth edges
FIXED_POINT = 4  # fractional bits of OpenCV's coordinates


@dataclass(frozen=True)
class Look:
    """How a scene is painted. `colour` names the dominant one of COLOURS; empty for none."""

    season: str
    time: str
    medium: str
    colour: str = ""


def random_look(rng: np.random.Generator) -> Look:
    colour = str(rng.choice(list(COLOURS))) if rng.random() < 0.2 else ""
    return Look(str(rng.choice(SEASONS)), str(rng.choice(TIMES)), str(rng.choice(MEDIA)), colour)


# -- looks -------------------------------------------------------------------------------------------------------------

# A material's colour in winter, spring, summer and autumn, or one for all seasons.
MATERIALS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "sky": ((205, 218, 232), (150, 205, 250), (75, 155, 240), (185, 200, 210)),
    "cloud": ((236, 239, 244), (250, 250, 252), (248, 250, 255), (222, 216, 210)),
    "sun": ((255, 250, 225), (255, 244, 170), (255, 238, 120), (255, 214, 130)),
    "mountain": ((214, 224, 238), (140, 165, 170), (105, 130, 150), (150, 125, 115)),
    "hill": ((226, 234, 244), (150, 210, 120), (82, 150, 62), (196, 142, 62)),
    "ground": ((238, 243, 250), (158, 214, 104), (86, 160, 52), (186, 140, 70)),
    "foliage": ((212, 224, 236), (246, 176, 204), (44, 124, 44), (222, 98, 28)),
    "conifer": ((150, 178, 186), (70, 150, 90), (26, 96, 56), (110, 110, 50)),
    "water": ((176, 208, 226), (84, 164, 214), (36, 116, 190), (92, 122, 132)),
    "ripple": ((228, 240, 248), (160, 210, 240), (110, 180, 230), (160, 172, 172)),
    "trunk": ((104, 92, 92), (120, 84, 58), (110, 74, 44), (92, 60, 44)),
    "path": ((214, 220, 230), (214, 194, 150), (218, 190, 132), (164, 116, 74)),
    "rock": ((186, 194, 206), (150, 148, 142), (140, 134, 124), (134, 118, 104)),
    "fur": ((150, 146, 146), (156, 120, 88), (150, 104, 64), (164, 96, 50)),
    "skin": ((232, 190, 170),), "window": ((120, 150, 176),), "door": ((106, 66, 44),), "sail": ((246, 242, 230),),
    "wall": ((214, 206, 196),), "roof": ((150, 72, 58),), "clothes": ((150, 150, 150),),
    "trousers": ((70, 74, 96),), "hair": ((66, 46, 36),), "paint": ((150, 150, 150),),
}  # fmt: skip
PAINTED = {
    "wall": 0.45,
    "roof": 0.5,
    "clothes": 0.85,
    "trousers": 0.4,
    "paint": 0.9,
    "fur": 0.15,
}  # share of the shape's hue
HUES = np.array(list(COLOURS.values()), np.float32)
BEHIND = ("sky", "cloud", "sun", "mountain")  # background, on which no snow lies

LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.04, 0.72, 0.56), "night": (0.36, 0.43, 0.64)}
SKIES = {"sunset": ((118, 70, 140), (255, 150, 60)), "night": ((8, 10, 38), (34, 46, 92))}  # top, bottom
LIT = (255, 205, 105)  # windows in the dark
SEASON_SPOTS = {"winter": (250, 252, 255), "spring": (250, 140, 190), "autumn": (214, 84, 24)}


def render(scene: Scene, look: Look, height: int, width: int, time: float = 0.0) -> Image:
    """Draw a scene in a look at `time` (seconds)."""
    labels, relief = draw(scene, height, width, time)
    painted = _lit(scene, look, labels, relief)
    painted = np.asarray(cv2.resize(painted, (width, height), interpolation=cv2.INTER_AREA), np.float32)
    if look.colour:
        painted = 0.62 * painted + 0.38 * np.array(COLOURS[look.colour], np.float32) * (
            0.35 + painted.mean(2, keepdims=True) / 190
        )
    lines = _outlines(labels, height, width)
    painted = PAINTERS[look.medium](painted, lines, np.random.default_rng((scene.seed, 3)))
    image: Image = np.clip(painted + 0.5, 0, 255).astype(np.uint8)
    return image


def draw(scene: Scene, height: int, width: int, time: float) -> tuple[Image, Floats]:
    """Return the index of each pixel's shape, uint8, and how much it faces the light, -1 to 1. Both are oversampled."""
    h, w = height * OVERSAMPLING, width * OVERSAMPLING
    labels, relief = np.zeros((h, w), np.uint8), np.zeros((h, w), np.float32)
    for number, shape in enumerate(scene.shapes[:255]):
        outline = (shape.outline(time) - (scene.pan * time * shape.layer, 0) - scene.corner) * scene.zoom
        points = np.clip(outline * h * 2**FIXED_POINT, -(2**27), 2**27).astype(np.int32)
        x0, y0, x1, y1 = _bounds(outline * h, h, w)
        if x1 <= x0 or y1 <= y0:
            continue
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(mask, [points - np.array([x0, y0], np.int32) * 2**FIXED_POINT], 1, shift=FIXED_POINT)
        inside = mask.astype(bool)
        labels[y0:y1, x0:x1][inside] = number
        # Light comes from the upper left. The relief runs from 1 to -1 across the shape's box.
        slope = (
            np.linspace(1, -1, y1 - y0, dtype=np.float32)[:, None] + np.linspace(0.6, -0.6, x1 - x0, dtype=np.float32)
        ) / 1.6
        relief[y0:y1, x0:x1][inside] = slope[inside]
    return labels, relief


def _bounds(outline: NDArray[np.float64], h: int, w: int) -> tuple[int, int, int, int]:
    low, high = np.floor(outline.min(0)), np.ceil(outline.max(0)) + 1
    return max(int(low[0]), 0), max(int(low[1]), 0), min(int(high[0]), w), min(int(high[1]), h)


def _lit(scene: Scene, look: Look, labels: Image, relief: Floats) -> Floats:
    """Return the scene in the season's colours and the light of the time of day, 0 to 255."""
    rng = np.random.default_rng((scene.seed, 2))
    season, h = SEASONS.index(look.season), labels.shape[0]
    colours, glow, ground, behind = (
        np.zeros((256, 3), np.float32),
        np.zeros(256, bool),
        np.zeros(256, bool),
        np.zeros(256, bool),
    )
    for number, shape in enumerate(scene.shapes[:255]):
        of = MATERIALS[shape.material]
        colour = np.array(of[season if len(of) > 1 else 0], np.float32)
        share = PAINTED.get(shape.material, 0.0)
        colour = colour * (1 - share) + HUES[shape.hue % len(HUES)] * share
        if look.season == "winter" and share:
            colour = 0.75 * colour + 0.25 * np.array([205, 216, 230], np.float32)
        colours[number] = colour * (1 + 0.13 * shape.variation)
        glow[number] = shape.material == "window"
        ground[number] = shape.material in ("ground", "hill", "foliage")
        behind[number] = shape.material in BEHIND
    image = colours[labels] * (1 + 0.16 * relief[..., None])
    _season_details(scene, image, labels, look, ground, behind, rng)
    image *= np.array(LIGHT[look.time], np.float32)
    if look.time != "day":
        _evening(scene, image, labels, look, glow, rng)
    if look.season == "winter":
        _snowfall(image, h, rng, 0.45 if look.time == "night" else 0.8)
    return image


def _season_details(
    scene: Scene,
    image: Floats,
    labels: Image,
    look: Look,
    ground: Mask,
    behind: Mask,
    rng: np.random.Generator,
) -> None:
    """Add snow to edges below the background in winter, else blossoms or leaves to grass and trees, in place."""
    if look.season == "winter":
        thick = max(round(labels.shape[0] / 50 * scene.zoom), 2)
        above = np.vstack([labels[:1].repeat(thick, 0), labels[:-thick]])
        image[~behind[labels] & (above != labels) & behind[above]] = (250, 252, 255)
    elif look.season in SEASON_SPOTS:
        spots = (noise(rng, labels.shape, labels.shape[0] / 60) > 1.8) & ground[labels]
        image[spots] = SEASON_SPOTS[look.season]


def _evening(scene: Scene, image: Floats, labels: Image, look: Look, glow: Mask, rng: np.random.Generator) -> None:
    """Paint the sky, stars and lit windows of sunset or night, in place."""
    h, w = labels.shape
    top, below = (np.array(colour, np.float32) for colour in SKIES[look.time])
    fall = np.clip(np.linspace(0, 1.6, h, dtype=np.float32), 0, 1)[:, None, None]
    materials = np.array([shape.material for shape in scene.shapes[:255]] + [""] * 256)[:256]
    sky = (materials == "sky")[labels]
    image[sky] = np.broadcast_to(top + (below - top) * fall, image.shape)[sky]
    disc = (materials == "sun")[labels]
    image[disc] = (255, 196, 92) if look.time == "sunset" else (236, 238, 224)
    if look.time == "night":
        stars = (
            (rng.random((h // 3 + 1, w // 3 + 1)) > 0.992)
            .astype(np.uint8)
            .repeat(3, 0)
            .repeat(3, 1)[:h, :w]
            .astype(bool)
        )
        image[stars & sky] = (225, 228, 240)
    image[glow[labels]] = LIT


def _snowfall(image: Floats, h: int, rng: np.random.Generator, strength: float) -> None:
    flakes = np.zeros(image.shape[:2], np.uint8)
    for x, y, r in zip(rng.integers(0, image.shape[1], 40), rng.integers(0, h, 40), rng.uniform(0.005, 0.009, 40)):
        cv2.circle(flakes, (int(x), int(y)), max(int(r * h), 1), 255, -1, cv2.LINE_AA)
    cover = strength * flakes[..., None].astype(np.float32) / 255
    image += cover * (255 - image)


def _outlines(labels: Image, height: int, width: int) -> Floats:
    """Return where labels meet, 0 to 1, at the picture's size."""
    edges = np.zeros(labels.shape, np.float32)
    edges[:, 1:] = labels[:, 1:] != labels[:, :-1]
    edges[1:] = np.maximum(edges[1:], labels[1:] != labels[:-1])
    thick = cv2.dilate(edges, np.ones((2, 2)))
    return np.asarray(cv2.resize(thick, (width, height), interpolation=cv2.INTER_AREA), np.float32)


def noise(rng: np.random.Generator, shape: tuple[int, ...], grain: float, along: float | None = None) -> Floats:
    """Return normal noise with grains of `grain` pixels, stretched along an angle if one is given; deviation 1."""
    white = rng.standard_normal(shape[:2]).astype(np.float32)
    if along is None:
        blurred = cv2.GaussianBlur(white, (0, 0), max(grain / 2, 0.3))
    else:
        size = int(grain * 6) | 1
        kernel = np.zeros((size, size), np.float32)
        c, reach = size // 2, (size // 2) * np.array([np.cos(along), np.sin(along)])
        cv2.line(
            kernel,
            (round(c - reach[0]), round(c - reach[1])),
            (round(c + reach[0]), round(c + reach[1])),
            1.0,
            1,
            cv2.LINE_AA,
        )
        blurred = cv2.GaussianBlur(cv2.filter2D(white, -1, kernel), (0, 0), grain / 4)
    return np.asarray(blurred / max(float(blurred.std()), 1e-6), np.float32)


def _grey(image: Floats) -> Floats:
    return image @ np.array([0.3, 0.59, 0.11], np.float32)


def _photo(image: Floats, lines: Floats, rng: np.random.Generator) -> Floats:
    """Shade the picture with slightly uneven surfaces."""
    shaded: Floats = image * (1 + 0.035 * noise(rng, image.shape, 5))[..., None]
    return shaded


def _watercolor(image: Floats, lines: Floats, rng: np.random.Generator) -> Floats:
    """Paint thin, blotchy colour on paper, darker at the edge of each wash."""
    blurred = cv2.GaussianBlur(image, (0, 0), 0.9)
    rim = np.clip(1.5 * cv2.GaussianBlur(lines, (0, 0), 0.8), 0, 1)[..., None]
    wash = blurred * (1 - 0.55 * rim) + 9 * noise(rng, image.shape, 14)[..., None]
    return np.asarray(0.72 * wash + 0.28 * np.array([252, 248, 238], np.float32), np.float32)


def _oil(image: Floats, lines: Floats, rng: np.random.Generator) -> Floats:
    """Paint strong colours in long strokes."""
    thick = cv2.medianBlur(np.clip(image, 0, 255).astype(np.uint8), 5).astype(np.float32)
    thick = thick + 0.35 * (thick - _grey(thick)[..., None])
    painted: Floats = thick * (0.97 + 0.055 * noise(rng, image.shape, 4, along=rng.uniform(0.4, 1.0)))[..., None]
    return painted


def _ink(image: Floats, lines: Floats, rng: np.random.Generator) -> Floats:
    """Draw dark lines, and hatching in the shadows, over a pale wash."""
    light = _grey(image)[..., None] / 255
    wash = 0.45 * image + 0.55 * np.array([244, 240, 230], np.float32) * (0.45 + 0.55 * light)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    hatch = (np.sin((x + y) * 2 * np.pi / 6) > 0.1)[..., None] * np.clip(0.62 - light, 0, 1)
    ink = np.clip(1.15 * lines[..., None] + 0.75 * hatch, 0, 0.95)
    drawn: Floats = wash * (1 - ink) + np.array([24, 22, 28], np.float32) * ink
    return drawn


def _cartoon(image: Floats, lines: Floats, rng: np.random.Generator) -> Floats:
    """Paint a few flat colours within bold outlines."""
    flat = cv2.medianBlur(np.clip(image, 0, 255).astype(np.uint8), 3).astype(np.float32)
    flat = flat + 0.25 * (flat - _grey(flat)[..., None])
    flat = (np.round(flat / 36) * 36).astype(np.float32)
    bold = np.clip(1.6 * cv2.GaussianBlur(lines, (0, 0), 0.6), 0, 1)[..., None]
    drawn: Floats = flat * (1 - bold) + np.array([18, 16, 24], np.float32) * bold
    return drawn


def _pastel(image: Floats, lines: Floats, rng: np.random.Generator) -> Floats:
    """Paint soft, milky chalk on grainy paper."""
    soft = cv2.GaussianBlur(image, (0, 0), 0.5) * (1 - 0.3 * lines[..., None])
    milky = 0.72 * soft + 0.28 * np.array([236, 226, 232], np.float32) * (0.55 + 0.45 * _grey(soft)[..., None] / 255)
    return np.asarray(milky + 6 * noise(rng, image.shape, 3)[..., None], np.float32)


PAINTERS = dict(zip(MEDIA, (_photo, _watercolor, _oil, _ink, _cartoon, _pastel)))


# -- captions ----------------------------------------------------------------------------------------------------------

SYNONYMS = {
    "winter": ("winter", "winter, snow", "snow", "snowy winter"),
    "spring": ("spring", "spring, blossoms", "springtime"),
    "summer": ("summer", "summer, green", "summertime"), "autumn": ("autumn", "fall", "autumn, orange leaves"),
    "day": ("day", "daylight", "noon"), "sunset": ("sunset", "sunset, dusk", "evening"),
    "night": ("night", "night, dark", "moonlight"),
    "photo": ("photo", "photograph", "realistic"), "watercolor": ("watercolor", "watercolor painting"),
    "oil": ("oil", "oil painting"), "ink sketch": ("ink", "ink sketch", "ink drawing", "sketch"),
    "cartoon": ("cartoon", "flat cartoon", "comic"), "pastel": ("pastel", "pastel drawing", "chalk"),
}  # fmt: skip
FILLERS = (
    "a",
    "the",
    "of",
    "in",
    "with",
    "beautiful",
    "best quality",
    "detailed",
    "scene",
    "painting of",
    "view",
    "at",
    "and",
)
THINGS = (
    "mountains",
    "lake",
    "trees",
    "house",
    "person",
    "animal",
    "boat",
    "ball",
    "shapes",
    "man",
    "woman",
    "dog",
    "wolf",
    "cat",
    "girl",
    "street",
    "city",
    "forest",
    "sea",
)


def caption(scene: Scene, look: Look, rng: np.random.Generator, drop: float = 0.12) -> str:
    """Return a caption of the scene in this look: its words in random order, some left out, some filler added."""
    words = [str(rng.choice(SYNONYMS[word])) for word in (look.season, look.time, look.medium) if rng.random() > drop]
    words += [look.colour] if look.colour and rng.random() > drop else []
    things = sorted(set(scene.words))
    words += [str(word) for word in rng.permutation(things)[: rng.integers(0, 3)]] if things else []
    words += [str(word) for word in rng.choice(FILLERS, rng.integers(0, 3))]
    words += [
        "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(3, 9))) for _ in range(rng.integers(0, 2))
    ]
    return str(rng.choice([", ", ", ", " "])).join(str(word) for word in rng.permutation(words)) if words else ""
