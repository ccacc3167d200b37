"""The time offset between guide and style is found where it is clear, and 0 otherwise."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import pytest

from stages.smoothers.images.offset import Stretch, edge_map, find_offset, map_size
from tests.typing import Image, Images

HEIGHT, WIDTH, FRAMES = 48, 64, 30


def world(seed: int) -> np.ndarray:
    """A wide textured picture, uint8 [H, W', 3]."""
    rng = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, 400, 3)).astype(np.float32), (0, 0), 3)
    levels: Image = np.clip((picture - picture.mean()) * 6 + 128, 0, 255).astype(np.uint8)
    return levels


def pan(seed: int, places: Iterable[float]) -> np.ndarray:
    """A camera that looks at these places of a world, uint8 [N, H, W, 3]."""
    picture = world(seed)
    return np.stack([picture[:, round(place) : round(place) + WIDTH] for place in places])


def stylised(frames: np.ndarray) -> np.ndarray:
    """Other colours, flickering light and noise."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 12, frames.shape)
    return np.clip((255 - frames) * rng.uniform(0.8, 1.2, (len(frames), 1, 1, 3)) + noise, 0, 255).astype(np.uint8)


def stretch(style: np.ndarray, guide: np.ndarray, speed: float = 1.0) -> Stretch:
    """`speed`: frames of the style that pass in one of the guide."""
    maps = [np.stack([edge_map(frame) for frame in frames]) for frames in (style, guide)]
    return Stretch(maps[0], np.arange(len(style), dtype=float), maps[1], np.arange(len(guide), dtype=float) * speed)


UNEVEN = np.cumsum([3, 3, 0, 1, 5, 2, 4, 1, 1, 6] * 4)  # px; a camera that slows down and speeds up


@pytest.mark.parametrize("offset", [-7, -2, -1, 0, 1, 3, 10])
def test_an_offset_is_found(offset: int) -> None:
    guide = pan(0, UNEVEN)
    first, shown = max(0, -offset), UNEVEN[max(0, offset) : FRAMES + max(0, offset)]
    found = find_offset([stretch(stylised(pan(0, shown)), guide[first:])], 12)
    assert found.offset == offset and found.fits and found.motion > 0.5
    assert (found.motion > found.motion_at_zero) == (offset != 0)


@pytest.mark.parametrize(("every", "offset", "expected"), [(2, 6, 3.0), (2, -5, -2.5), (3, 4, 4 / 3), (3, 0, 0.0)])
def test_a_guide_with_more_frames_gives_fractions(every: int, offset: int, expected: float) -> None:
    places = np.cumsum([1, 2, 0, 1, 3, 1, 2, 0, 1, 2] * 9)
    guide, style = pan(0, places[max(0, -offset) :]), stylised(pan(0, places[max(0, offset) :: every]))
    assert find_offset([stretch(style, guide, 1 / every)], 6, 1 / every).offset == pytest.approx(expected)


def test_a_guide_with_fewer_frames_is_enough() -> None:
    found = find_offset([stretch(stylised(pan(0, UNEVEN[4:])), pan(0, UNEVEN[::2]), 2.0)], 8)
    assert found.offset in (3, 4)  # each of its frames is the nearest one of two


@pytest.mark.parametrize("pixels", [0, 1])
def test_where_next_to_nothing_moves_the_offset_stays_zero_and_the_guide_fits(pixels: int) -> None:
    guide = pan(0, np.linspace(0, pixels, FRAMES))
    found = find_offset([stretch(stylised(guide[4:]), guide)], 12)
    assert found.offset in (0, 4 * pixels) and found.fits


def test_rounding_is_not_motion() -> None:
    guide = pan(0, np.zeros(FRAMES))
    for missing in range(8):
        assert abs(find_offset([stretch(stylised(guide[missing:]), guide)], 12).motion) < 1e-3


def test_of_a_movement_that_repeats_the_nearest_offset_is_taken() -> None:
    swing = 60 + 30 * np.sin(np.arange(48) * 2 * np.pi / 12)
    assert find_offset([stretch(stylised(pan(0, swing[3:])), pan(0, swing))], 24).offset == 3


@pytest.mark.parametrize("guide", [pan(5, UNEVEN), pan(5, np.zeros(40)), np.full((40, HEIGHT, WIDTH, 3), 90, np.uint8)])
def test_a_guide_of_something_else_does_not_fit(guide: Images) -> None:
    found = find_offset([stretch(stylised(pan(0, UNEVEN)), guide)], 12)
    assert (found.offset, found.fits) == (0, False) and found.motion < 0.15


def test_another_part_of_the_same_shot_does_not_fit() -> None:
    """Both show one background, before which different things move."""
    rng = np.random.default_rng(2)

    def part() -> np.ndarray:
        frames = pan(0, np.zeros(FRAMES))
        for frame, (y, x) in zip(frames, np.cumsum(rng.integers(-6, 7, (FRAMES, 2)), axis=0) % (HEIGHT, WIDTH)):
            cv2.circle(frame, (int(x), int(y)), 12, (255, 255, 255), -1)
        return frames

    here, there = part(), part()
    assert find_offset([stretch(stylised(here), here)], 8).fits
    assert not find_offset([stretch(stylised(here), there)], 8).fits


def test_parts_in_which_nothing_moves_do_not_hide_the_offset() -> None:
    still = stretch(stylised(pan(3, np.zeros(20))), pan(3, np.zeros(30)))
    moving = stretch(stylised(pan(0, UNEVEN[5:])), pan(0, UNEVEN))
    assert find_offset([still, moving, still], 8).offset == 5


def test_a_few_frames_are_not_enough_to_find_an_offset() -> None:
    found = find_offset([stretch(stylised(pan(0, UNEVEN[:5])), pan(5, UNEVEN[:5]))], 8)
    assert (found.offset, found.fits, found.motion, found.motion_at_zero) == (0, True, 0, 0)
    assert -1 <= found.likeness <= 1


def test_the_result_does_not_depend_on_the_call() -> None:
    parts = [stretch(stylised(pan(0, UNEVEN[2:])), pan(0, UNEVEN))]
    assert find_offset(parts, 12) == find_offset(parts, 12)


def test_maps_are_small_and_keep_the_shape() -> None:
    assert map_size(1080, 1920) == (36, 64) and map_size(4000, 100) == (64, 8) and map_size(40, 30) == (40, 30)
