"""The scenes of the painted world: moving shapes of named materials.

Coordinates are relative to the height of the picture: y runs from 0 (top) to 1, x from 0 to the aspect ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Points: TypeAlias = NDArray[np.float64]
"""The corners of a polygon, x and y [P, 2]."""

Outline: TypeAlias = Callable[[float], Points]
"""A polygon at a time in seconds."""


@dataclass
class Shape:
    """A moving polygon of one material.

    Attributes:
        layer: The share of the camera's motion that it follows, from 0 (far away) to 1 (nearest).
        variation: Brightness, from -1 (darker) to 1 (lighter).
        hue: The index of its colour, for materials that have several.
    """

    material: str
    outline: Outline
    layer: float = 1.0
    variation: float = 0.0
    hue: int = 0


@dataclass
class Scene:
    """Shapes from back to front.

    Attributes:
        pan: Speed at which the camera moves to the right, in picture heights per second.
        words: What the scene shows.
        corner: The top left corner of a zoomed view.
    """

    shapes: list[Shape] = field(default_factory=list)
    pan: float = 0.0
    words: list[str] = field(default_factory=list)
    seed: int = 0
    zoom: float = 1.0
    corner: tuple[float, float] = (0.0, 0.0)

    def add(
        self,
        material: str,
        outline: Points | Outline | list[tuple[float, float]],
        layer: float = 1.0,
        variation: float = 0.0,
        hue: int = 0,
    ) -> None:
        """Add a shape in front of the others. See `Shape`."""
        moving = outline if callable(outline) else _still(np.asarray(outline, float))
        self.shapes.append(Shape(material, moving, layer, variation, hue))


def random_scene(seed: int, aspect: float = 1.0) -> Scene:
    """Make a landscape or, for two seeds in five, abstract shapes or close-ups, whose edges resemble real footage."""
    rng = np.random.default_rng((seed, 1))
    scene = Scene(seed=seed, pan=float(rng.normal(0, 0.12)))
    kind = rng.random()
    if kind < 0.6:
        _landscape(scene, rng, aspect)
    elif kind < 0.8:
        _abstract(scene, rng, aspect)
    else:
        _figures(scene, rng, aspect)
    return scene


def random_view(scene: Scene, rng: np.random.Generator) -> Scene:
    """Zoom into the scene in two of five cases."""
    zoom = rng.uniform(1.0, 2.2) if rng.random() < 0.4 else 1.0
    x, y = rng.uniform(0, 1 - 1 / zoom, 2)
    return replace(scene, zoom=zoom, corner=(x, y))


def _still(outline: Points) -> Outline:
    return lambda time: outline


def _drifting(outline: Points, velocity: Points) -> Outline:
    return lambda time: outline + velocity * time


def _landscape(scene: Scene, rng: np.random.Generator, aspect: float) -> None:
    horizon = rng.uniform(0.3, 0.65)
    scene.add("sky", _box(-9, -9, 9, 9), layer=0.0)
    if rng.random() < 0.6:
        at = (rng.uniform(0.1, aspect - 0.1), rng.uniform(0.06, horizon * 0.7))
        scene.add("sun", _ellipse(*at, r := rng.uniform(0.04, 0.09), r), layer=0.0)
    for _ in range(rng.integers(0, 4)):
        _cloud(scene, rng, rng.uniform(-0.2, aspect + 0.2), rng.uniform(0.03, horizon * 0.7))
    if rng.random() < 0.6:
        scene.add(
            "mountain",
            _ridge(rng, horizon - rng.uniform(0.05, 0.25), 0.14, rough=True),
            layer=0.15,
            variation=rng.uniform(-1, 1),
        )
        scene.words.append("mountains")
    for k in range(rng.integers(0, 3)):
        scene.add(
            "hill", _ridge(rng, horizon - 0.03 + 0.05 * k, 0.05), layer=0.3 + 0.1 * k, variation=rng.uniform(-1, 1)
        )
    if rng.random() < 0.4:
        scene.add("water", _box(-9, horizon + 0.02, 9, 9), layer=0.5)
        for _ in range(rng.integers(2, 7)):
            y = rng.uniform(horizon + 0.05, 0.95)
            scene.add(
                "ripple",
                _ellipse(rng.uniform(0, aspect), y, rng.uniform(0.05, 0.2), 0.004 + 0.01 * (y - horizon)),
                layer=0.6,
            )
        for _ in range(rng.integers(0, 3)):
            _boat(scene, rng, rng.uniform(0, aspect), rng.uniform(horizon + 0.08, 0.85))
        if rng.random() < 0.5:
            scene.add("ground", _ridge(rng, rng.uniform(0.8, 0.92), 0.06), layer=1.0)
        scene.words.append("lake")
    else:
        scene.add("ground", _ridge(rng, horizon + 0.04, 0.03), layer=0.5, variation=rng.uniform(-0.5, 0.5))
        if rng.random() < 0.4:
            _path(scene, rng, aspect, horizon + 0.08)
    things = [_tree, _tree, _conifer, _house, _person, _animal, _rock, _ball, _fence, _bush]
    for depth in np.sort(rng.uniform(horizon + 0.08, 1.02, rng.integers(3, 10))):
        things[rng.integers(len(things))](scene, rng, rng.uniform(-0.05, aspect + 0.05), float(depth))


def _abstract(scene: Scene, rng: np.random.Generator, aspect: float) -> None:
    """Blobs, polygons and strokes in the season's colours."""
    scene.add(
        str(rng.choice(["sky", "ground", "wall", "foliage", "paint"])),
        _box(-9, -9, 9, 9),
        layer=0.0,
        hue=int(rng.integers(8)),
    )
    materials = ["paint", "paint", "foliage", "ground", "rock", "wall", "roof", "water", "trunk", "clothes", "mountain"]
    for _ in range(rng.integers(5, 26)):
        x, y, size = rng.uniform(0, aspect), rng.uniform(0, 1), 0.04 + rng.gamma(1.5, 0.1)
        outline = [_blob, _polygon, _stroke][rng.integers(3)](rng, x, y, size)
        drift = rng.normal(0, 0.08, 2)
        scene.add(str(rng.choice(materials)), _drifting(outline, drift), layer=rng.uniform(0, 1),
                  variation=rng.uniform(-1, 1), hue=int(rng.integers(8)))  # fmt: skip
    scene.words.append("shapes")


def _figures(scene: Scene, rng: np.random.Generator, aspect: float) -> None:
    """Close-ups with little around them: portraits, animals, a house front."""
    horizon = rng.uniform(0.2, 0.9)
    scene.add("sky", _box(-9, -9, 9, 9), layer=0.0)
    if rng.random() < 0.6:
        scene.add("hill", _ridge(rng, horizon - 0.08, 0.08), layer=0.2, variation=rng.uniform(-1, 1))
    scene.add("ground", _ridge(rng, horizon, 0.03), layer=0.4)
    for _ in range(rng.integers(1, 4)):
        thing = [_person, _animal, _tree, _house, _ball, _bush][rng.integers(6)]
        thing(scene, rng, rng.uniform(0.1, aspect - 0.1), rng.uniform(0.85, 1.15), rng.uniform(1.6, 3.2))


def _size(depth: float, rng: np.random.Generator, scale: float) -> float:
    """Return the height of a thing. Things further down are nearer, so larger."""
    return (0.05 + 0.28 * max(depth - 0.3, 0)) * rng.uniform(0.75, 1.3) * scale


def _tree(scene: Scene, rng: np.random.Generator, x: float, y: float, scale: float = 1.0) -> None:
    s, layer, shade = _size(y, rng, scale), min(y, 1), rng.uniform(-1, 1)
    scene.add(
        "trunk", [(x - 0.07 * s, y), (x - 0.04 * s, y - s), (x + 0.04 * s, y - s), (x + 0.07 * s, y)], layer=layer
    )
    for _ in range(rng.integers(2, 6)):
        at = x + rng.normal(0, 0.22) * s, y - s * rng.uniform(0.8, 1.4)
        scene.add(
            "foliage", _blob(rng, *at, s * rng.uniform(0.25, 0.45)), layer=layer, variation=shade + rng.normal(0, 0.4)
        )
    scene.words.append("trees")


def _conifer(scene: Scene, rng: np.random.Generator, x: float, y: float, scale: float = 1.0) -> None:
    s, layer, shade = _size(y, rng, scale) * 1.2, min(y, 1), rng.uniform(-1, 0.5)
    scene.add("trunk", _box(x - 0.04 * s, y - 0.3 * s, x + 0.04 * s, y), layer=layer)
    for k in range(3):
        half, base = (0.36 - 0.08 * k) * s, y - (0.2 + 0.32 * k) * s
        scene.add(
            "conifer", [(x - half, base), (x, base - 0.6 * s), (x + half, base)], layer=layer, variation=shade + 0.2 * k
        )
    scene.words.append("trees")


def _bush(scene: Scene, rng: np.random.Generator, x: float, y: float, scale: float = 1.0) -> None:
    s, layer = _size(y, rng, scale) * 0.5, min(y, 1)
    for _ in range(rng.integers(2, 5)):
        scene.add(
            "foliage",
            _blob(rng, x + rng.normal(0, 0.4) * s, y - 0.3 * s, s * rng.uniform(0.3, 0.6)),
            layer=layer,
            variation=rng.uniform(-1, 1),
        )


def _house(scene: Scene, rng: np.random.Generator, x: float, y: float, scale: float = 1.0) -> None:
    s, layer, hue = _size(y, rng, scale) * 1.2, min(y, 1), int(rng.integers(8))
    w, h, top = s * rng.uniform(0.5, 0.9), s * rng.uniform(0.5, 0.9), s * rng.uniform(0.25, 0.6)
    scene.add("wall", _box(x - w, y - h, x + w, y), layer=layer, hue=hue)
    scene.add(
        "roof",
        [
            (x - 1.15 * w, y - h),
            (x - 0.2 * w * rng.random(), y - h - top),
            (x + 0.3 * w, y - h - top),
            (x + 1.15 * w, y - h),
        ],
        layer=layer,
        hue=hue,
    )
    if rng.random() < 0.5:
        scene.add(
            "wall", _box(x + 0.45 * w, y - h - top * 1.1, x + 0.65 * w, y - h - 0.2 * top), layer=layer, hue=hue + 1
        )
    for k in range(n := int(rng.integers(1, 4))):
        at = x - w + 2 * w * (k + 0.5) / n
        scene.add("window", _box(at - 0.12 * w, y - 0.8 * h, at + 0.12 * w, y - 0.45 * h), layer=layer)
    scene.add("door", _box(x - 0.1 * w, y - 0.35 * h, x + 0.14 * w, y), layer=layer)
    scene.words.append("house")


def _person(scene: Scene, rng: np.random.Generator, x: float, y: float, scale: float = 1.0) -> None:
    s, layer, hue, speed = _size(y, rng, scale) * 0.8, min(y, 1), int(rng.integers(8)), rng.normal(0, 0.08)

    def walking(points: Points, swing: float = 0.0) -> Outline:
        return lambda t: points + np.array([speed * t + swing * s * np.sin(6 * t), 0]) * 1.0

    for side in (-1, 1):
        leg = np.array(
            [
                (x + side * 0.02 * s, y - 0.5 * s),
                (x + side * 0.12 * s, y - 0.5 * s),
                (x + side * 0.14 * s, y),
                (x + side * 0.04 * s, y),
            ]
        )
        scene.add("trousers", walking(leg, side * 0.03), layer=layer, hue=hue + 3)
        arm = np.array(
            [
                (x + side * 0.12 * s, y - 0.92 * s),
                (x + side * 0.2 * s, y - 0.9 * s),
                (x + side * 0.24 * s, y - 0.5 * s),
                (x + side * 0.17 * s, y - 0.5 * s),
            ]
        )
        scene.add("clothes", walking(arm, -side * 0.03), layer=layer, hue=hue, variation=-0.5)
    scene.add(
        "clothes",
        walking(
            np.array(
                [
                    (x - 0.14 * s, y - 0.95 * s),
                    (x + 0.14 * s, y - 0.95 * s),
                    (x + 0.13 * s, y - 0.45 * s),
                    (x - 0.13 * s, y - 0.45 * s),
                ]
            )
        ),
        layer=layer,
        hue=hue,
    )
    scene.add("hair", walking(_ellipse(x, y - 1.13 * s, 0.12 * s, 0.14 * s)), layer=layer, hue=hue)
    scene.add(
        "skin", walking(_ellipse(x, y - 1.08 * s, 0.095 * s, 0.115 * s)), layer=layer, variation=rng.uniform(-1, 0.5)
    )
    for side in (-1, 1):
        scene.add(
            "hair", walking(_ellipse(x + side * 0.04 * s, y - 1.1 * s, 0.012 * s, 0.012 * s)), layer=layer, hue=hue
        )
    scene.words.append("person")


def _animal(scene: Scene, rng: np.random.Generator, x: float, y: float, scale: float = 1.0) -> None:
    s, layer, hue, speed, facing = (
        _size(y, rng, scale) * 0.7,
        min(y, 1),
        int(rng.integers(8)),
        rng.normal(0, 0.08),
        rng.choice([-1, 1]),
    )

    def part(outline: Points, swing: float = 0.0, variation: float = 0.0) -> None:
        scene.add(
            "fur",
            lambda t: outline + np.array([speed * t + swing * s * np.sin(7 * t), 0]),
            layer=layer,
            variation=variation,
            hue=hue,
        )

    for k, at in enumerate((-0.38, -0.26, 0.26, 0.38)):
        part(_box(x + (at - 0.05) * s, y - 0.45 * s, x + (at + 0.05) * s, y), swing=0.03 * (-1) ** k, variation=-0.7)
    part(_blob(rng, x, y - 0.55 * s, 0.5 * s, flat=0.5, rough=0.06))
    part(_stroke(rng, x - facing * 0.6 * s, y - 0.6 * s, 0.18 * s), variation=-0.3)
    head = x + facing * 0.55 * s
    part(
        np.array([(head - 0.1 * s, y - 0.9 * s), (head - 0.06 * s, y - 1.15 * s), (head + 0.02 * s, y - 0.9 * s)]),
        variation=-0.5,
    )
    part(
        np.array([(head + 0.02 * s, y - 0.9 * s), (head + 0.1 * s, y - 1.13 * s), (head + 0.14 * s, y - 0.88 * s)]),
        variation=-0.5,
    )
    part(_ellipse(head, y - 0.8 * s, 0.2 * s, 0.17 * s), variation=0.2)
    part(_ellipse(head + facing * 0.16 * s, y - 0.74 * s, 0.12 * s, 0.08 * s), variation=0.5)
    part(_ellipse(head + facing * 0.05 * s, y - 0.85 * s, 0.02 * s, 0.02 * s), variation=-2.5)
    scene.words.append("animal")


def _boat(scene: Scene, rng: np.random.Generator, x: float, y: float) -> None:
    s, hue, speed = _size(y, rng, 1.0), int(rng.integers(8)), rng.normal(0, 0.1)

    def at(points: list[tuple[float, float]]) -> Outline:
        outline = np.array(points) * s + (x, y)
        return lambda t: outline + np.array([speed * t, 0.01 * s * np.sin(3 * t)])

    scene.add("paint", at([(-0.5, -0.15), (0.5, -0.15), (0.35, 0.05), (-0.35, 0.05)]), layer=y, hue=hue)
    scene.add("trunk", at([(-0.02, -0.15), (-0.02, -1), (0.02, -1), (0.02, -0.15)]), layer=y)
    scene.add("sail", at([(0.04, -0.95), (0.04, -0.25), (0.42, -0.25)]), layer=y)
    scene.words.append("boat")


def _rock(scene: Scene, rng: np.random.Generator, x: float, y: float, scale: float = 1.0) -> None:
    scene.add("rock", _polygon(rng, x, y, _size(y, rng, scale) * 0.4), layer=min(y, 1), variation=rng.uniform(-1, 1))


def _ball(scene: Scene, rng: np.random.Generator, x: float, y: float, scale: float = 1.0) -> None:
    r, speed = _size(y, rng, scale) * 0.3, rng.normal(0, 0.2)
    height = rng.uniform(0, 0.2)
    scene.add(
        "paint",
        lambda t: _ellipse(x + speed * t, y - r - height * abs(np.sin(4 * t)), r, r),
        layer=min(y, 1),
        hue=int(rng.integers(8)),
    )
    scene.words.append("ball")


def _fence(scene: Scene, rng: np.random.Generator, x: float, y: float, scale: float = 1.0) -> None:
    s, layer = _size(y, rng, scale) * 0.5, min(y, 1)
    for k in range(6):
        scene.add("trunk", _box(x + 0.4 * k * s, y - s, x + (0.4 * k + 0.12) * s, y), layer=layer)
    scene.add("trunk", _box(x - 0.1 * s, y - 0.7 * s, x + 2.3 * s, y - 0.58 * s), layer=layer)


def _path(scene: Scene, rng: np.random.Generator, aspect: float, top: float) -> None:
    far, near = rng.uniform(0.2, 0.8) * aspect, rng.uniform(0, aspect)
    bend = rng.uniform(-0.3, 0.3)
    t = np.linspace(0, 1, 12)
    middle, width = far + (near - far) * t + bend * np.sin(np.pi * t), 0.01 + 0.16 * t
    y = top + (1.1 - top) * t
    scene.add(
        "path", np.concatenate([np.stack([middle - width, y], 1), np.stack([middle + width, y], 1)[::-1]]), layer=0.7
    )


def _cloud(scene: Scene, rng: np.random.Generator, x: float, y: float) -> None:
    s = rng.uniform(0.05, 0.12)
    for _ in range(rng.integers(2, 5)):
        outline = _ellipse(
            x + rng.normal(0, 1.2) * s,
            y + rng.normal(0, 0.25) * s,
            s * rng.uniform(0.7, 1.5),
            s * rng.uniform(0.35, 0.6),
        )
        scene.add("cloud", _drifting(outline, np.array([0.02, 0.0])), layer=0.05)


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _blob(rng: np.random.Generator, x: float, y: float, size: float, flat: float = 0.9, rough: float = 0.15) -> Points:
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    waves = sum(rng.normal(0, rough / k**0.7) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 9))
    return np.stack([x + size * (1 + waves) * np.cos(angle), y + flat * size * (1 + waves) * np.sin(angle)], axis=1)


def _polygon(rng: np.random.Generator, x: float, y: float, size: float) -> Points:
    angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    radius = size * rng.uniform(0.6, 1.2, len(angle))
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def _stroke(rng: np.random.Generator, x: float, y: float, size: float) -> Points:
    """Return a band that bends and tapers."""
    t = np.linspace(0, 1, 14)
    angle = rng.uniform(0, 2 * np.pi) + rng.normal(0, 1.5) * t
    line = np.stack([x + size * np.cumsum(np.cos(angle)) / 7, y + size * np.cumsum(np.sin(angle)) / 7], axis=1)
    across = np.stack([-np.sin(angle), np.cos(angle)], axis=1) * (size * rng.uniform(0.05, 0.25) * (1.1 - t))[:, None]
    return np.concatenate([line - across, (line + across)[::-1]])


def _ridge(rng: np.random.Generator, y: float, height: float, rough: bool = False) -> Points:
    """Return the area below a wavy or jagged line."""
    x = np.linspace(-2.5, 5, 150)
    line = np.full_like(x, y)
    for k in range(1, 7 if rough else 4):
        line += height * rng.normal(0, 0.6) / k * np.sin(x * k * rng.uniform(1.5, 3) + rng.uniform(0, 6.3))
    if rough:
        line -= height * 0.5 * np.abs(np.sin(x * rng.uniform(3, 6))) + rng.normal(0, height * 0.05, len(x))
    return np.concatenate([np.stack([x, line], 1), [(9, 9), (-9, 9)]])
