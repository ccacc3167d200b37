"""One contract for all annotators, at sizes that controlnet_aux would have changed."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.annotators import ANNOTATORS, build
from tests.conftest import scene

SIZES = [(64, 64), (72, 104), (200, 120)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ANNOTATORS)
def test_maps_are_frames_in_size_and_kind_and_the_same_every_time(name, size):
    frames = np.stack([scene(i, *size) for i in range(3)])
    before = frames.copy()
    maps = build(name, {}, scene(9, *size)).maps(frames)
    assert maps.shape == frames.shape and maps.dtype == np.uint8
    assert maps.std() > 5
    np.testing.assert_array_equal(build(name, {}, scene(9, *size)).maps(frames), maps)
    np.testing.assert_array_equal(build(name, {}, scene(9, *size)).maps(frames[1:]), maps[1:])
    np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize("name", ["canny", "lineart_standard"])
def test_lines_lie_where_the_frame_has_them(name):
    frame = np.full((120, 200, 3), 230, np.uint8)
    cv2.line(frame, (30, 20), (150, 90), (10, 10, 10), 3)
    drawn = cv2.dilate((frame[..., 0] < 100).astype(np.uint8), np.ones((9, 9)))
    (found,) = build(name, {}, None).maps(frame[None])
    assert (found[..., 0] > 128).sum() > 100
    assert drawn[found[..., 0] > 128].all()


def test_shuffle_leaves_numpys_generator_alone():
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    build("shuffle", {}, scene(0))
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_loading_says_nothing(capfd):
    build("lineart_standard", {}, None)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_every_annotator_is_in_the_docs():
    text = (Path(__file__).parents[3] / "docs/annotators.md").read_text()
    assert set(ANNOTATORS) <= set(re.findall(r"`(\w+)`", text))
