"""Videos side by side."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from diffsynth_cli.comparison import GAP, LABEL_HEIGHT, side_by_side, tile_size, write_comparison
from diffsynth_cli.results import SilentReporter
from stages.video import open_source, read_comment
from tests.conftest import scene


def test_frames_stand_beside_each_other_under_their_labels() -> None:
    videos = {"one": [scene(0), scene(1)], "other": [scene(5), scene(6)]}
    pictures = [*side_by_side(videos)]
    height, width = tile_size(64, 64, 2)
    assert len(pictures) == 2 and pictures[0].shape == (LABEL_HEIGHT + height, 2 * (width + GAP), 3)
    assert pictures[0][:LABEL_HEIGHT, : width // 2].min() < 100  # ink
    left, right = pictures[1][LABEL_HEIGHT:, :width], pictures[1][LABEL_HEIGHT:, width + GAP : -GAP]
    for tile, frame in ((left, scene(1)), (right, scene(6))):
        assert np.abs(tile[4::7, 4::7].astype(int) - frame.repeat(7, 0).repeat(7, 1)[4::7, 4::7]).mean() < 6


@pytest.mark.parametrize(
    ("size", "count", "shown"),
    [
        ((160, 256), 3, (320, 512)),
        ((1080, 1920), 3, (360, 636)),
        ((64, 64), 2, (448, 448)),
        ((512, 512), 3, (480, 480)),
    ],
)
def test_small_videos_are_enlarged_and_large_ones_shrunk(
    size: tuple[int, int], count: int, shown: tuple[int, int]
) -> None:
    assert tile_size(*size, count) == pytest.approx(shown, abs=4)


def test_a_comparison_is_written_and_known_again(tmp_path: Path) -> None:
    videos = {"one": [scene(k) for k in range(3)], "other": [scene(k + 9) for k in range(3)]}
    write_comparison(tmp_path / "out.mp4", videos, Fraction(12), SilentReporter())
    assert len([*open_source(tmp_path / "out.mp4").shots()]) == 3
    assert "comparison" in read_comment(tmp_path / "out.mp4")
