"""Finding cuts in drawn clips."""

from __future__ import annotations

import numpy as np
import pytest

from stages.video import find_cuts
from tests.conftest import scene
from tests.typing import Image


def moving(frames: int) -> list[Image]:
    return [scene(index, 120, 160) for index in range(frames)]


def other(frames: int) -> list[Image]:
    """Another scene that moves."""
    return [255 - scene(2 * index, 160, 120).transpose(1, 0, 2) for index in range(frames)]


def test_a_cut_is_the_first_frame_of_a_scene() -> None:
    assert find_cuts([*moving(11), *other(9), *moving(7)]) == [11, 20]


@pytest.mark.parametrize("frames", [0, 1, 2, 30])
def test_motion_is_no_cut(frames: int) -> None:
    assert find_cuts(moving(frames)) == []


def test_a_fade_is_no_cut() -> None:
    shares = np.linspace(0, 1, 20)
    fade = [(a * (1 - share) + b * share).astype(np.uint8) for a, b, share in zip(moving(20), other(20), shares)]
    assert find_cuts(fade) == []


def test_cuts_do_not_depend_on_the_size_of_frames_nor_change_them() -> None:
    large = [np.kron(image, np.ones((6, 6, 1), np.uint8)) for image in [*moving(8), *other(8)]]
    before = [image.copy() for image in large]
    assert find_cuts(iter(large)) == [8]
    np.testing.assert_array_equal(large, before)
