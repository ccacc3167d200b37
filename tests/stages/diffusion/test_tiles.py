"""Predicting noise in tiles: where they lie, and how predictions are put together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from stages.diffusion.denoise import Frames
from stages.diffusion.tiles import parts_along, predict_in_tiles


@pytest.mark.parametrize(("length", "side"), [(8, None), (8, 64), (8, 128), (9, 64), (37, 64), (64, 256), (100, 264)])
def test_tiles_cover_everything_and_overlap(length: int, side: int | None) -> None:
    parts = parts_along(length, side)
    assert parts[0].start == 0 and parts[-1].stop == length
    sizes = {part.stop - part.start for part in parts}
    assert sizes == {length if side is None else min(length, side // 8)}
    (size,) = sizes
    assert all(before.stop - after.start >= 0.25 * size - 1 for before, after in pairwise(parts))


def frames(height: int, width: int) -> Frames:
    latents = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 8 * height, 8 * width, 3), np.uint8)
    return Frames(latents, [images], (), latents[:, :1])


def test_what_depends_on_each_place_alone_is_the_same_in_tiles() -> None:
    def local(part: Frames) -> torch.Tensor:
        shrunk = torch.from_numpy(part.maps[0][:, ::8, ::8, :1]).permute(0, 3, 1, 2)
        assert part.regions is not None and part.latents.shape[2:] in [(8, 8), (8, 16), (16, 8)]
        return part.latents + shrunk / 255 + part.regions

    whole = frames(20, 13)
    expected = whole.latents + torch.from_numpy(whole.maps[0][:, ::8, ::8, :1]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(predict_in_tiles(local, 64, whole), expected + whole.latents[:, :1])


def test_one_tile_turns_into_the_next_gradually() -> None:
    counted = iter(range(100))
    steps = predict_in_tiles(lambda part: torch.full_like(part.latents, next(counted)), 128, frames(16, 28))[0, 0, 0]
    assert steps[0] == 0 and steps[-1] == 1
    assert len(steps.unique()) > 4 and (steps.diff() >= 0).all() and steps.diff().max() < 0.5
