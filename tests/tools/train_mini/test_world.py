"""The painted world: the same scene in every look, and looks that words can tell apart."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from tools.train_mini.data import control_map, edges, make_pictures
from tools.train_mini.evaluate import agreement
from tools.train_mini.scenes import random_scene, random_view
from tools.train_mini.world import MEDIA, SEASONS, TIMES, Look, caption, draw, random_look, render

SUMMER_DAY = Look("summer", "day", "photo")


def test_a_scene_is_the_same_each_time_it_is_drawn() -> None:
    for seed in range(6):
        first, again = (render(random_scene(seed, 1.5), SUMMER_DAY, 48, 72) for _ in range(2))
        np.testing.assert_array_equal(first, again)


def test_looks_change_colours_and_keep_the_drawing() -> None:
    scene = random_scene(1034, 1.6)
    images = [render(scene, Look(*words), 96, 152) for words in itertools.product(SEASONS, TIMES, MEDIA)]
    means = np.stack([image.mean((0, 1)) for image in images])
    apart = np.abs(means[:, None] - means[None]).max(2)[np.triu_indices(len(images), 1)]
    assert np.median(apart) > 20  # levels
    drawn = edges(images[0])
    assert np.mean([agreement(edges(image), drawn) for image in images]) > 0.6


def test_scenes_move_and_night_is_dark() -> None:
    scene = random_scene(1034, 1.6)
    labels = [draw(scene, 48, 76, time)[0] for time in (0.0, 1.0)]
    assert 0.02 < np.mean(labels[0] != labels[1]) < 0.6
    day, night = (render(scene, Look("summer", time, "photo"), 48, 76).mean() for time in ("day", "night"))
    assert night < 0.6 * day


def test_a_view_shows_a_part_larger() -> None:
    scene, rng = random_scene(3), np.random.default_rng(1)
    views = [random_view(scene, rng) for _ in range(20)]
    assert {view.zoom > 1 for view in views} == {True, False}
    for view in views:
        assert all(0 <= corner <= 1 - 1 / view.zoom for corner in view.corner)


def test_captions_say_the_look_more_often_than_not() -> None:
    rng, found = np.random.default_rng(0), 0
    for seed in range(60):
        look = random_look(rng)
        words = caption(random_scene(seed), look, rng)
        found += any(
            word in words for word in (look.medium.split()[0], "photo", "real", "draw", "sketch", "comic", "chalk")
        )
    assert found > 40


@pytest.mark.parametrize("seed", range(4))
def test_control_maps_are_black_and_white(seed: int) -> None:
    found = control_map(random_scene(seed), np.random.default_rng(seed), 64, 64)
    assert found.shape == (64, 64) and set(np.unique(found)) <= {0, 255}


def test_pictures_are_made_once_and_alike(tmp_path: Path) -> None:
    done: list[int] = []
    first = make_pictures(tmp_path, 3, 7, lambda count, total: done.append(count))
    again = make_pictures(tmp_path, 3, 7, lambda count, total: done.append(count))
    assert len(done) == 1 and first.images.shape == (3, 128, 128, 3) and first.maps.shape == (3, 128, 128)
    np.testing.assert_array_equal(first.images, again.images)
    assert first.captions == again.captions and first.looks == again.looks
    assert len(make_pictures(tmp_path, 2, 7, lambda count, total: None).images) == 2  # no more than asked for
