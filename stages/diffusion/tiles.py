"""Predicting noise in overlapping tiles, so that large frames need little memory.

MultiDiffusion (arXiv 2302.08113, section 4), with weights that fall towards the borders of tiles, so that none shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from stages.diffusion import LATENT_FACTOR

if TYPE_CHECKING:
    import torch

    from stages.diffusion.denoise import Frames

OVERLAP = 0.25  # of a tile's side, at least


def predict_in_tiles(predict: Callable[..., torch.Tensor], side: int | None, *frames: Frames) -> torch.Tensor:
    """Return what `predict` returns for frames, from the predictions for their tiles.

    Args:
        predict: Predicts the noise of cropped frames, float32 [K, 4, h, w].
        side: Side of the tiles in pixels. None: the frames are not divided.
        frames: What is cropped for `predict`, all of one size.
    """
    import torch

    height, width = frames[0].latents.shape[2:]
    rows, columns = (parts_along(length, side) for length in (height, width))
    if len(rows) == len(columns) == 1:
        return predict(*frames)
    tiles = [(..., *tile) for tile in product(rows, columns)]
    predicted = [predict(*(part.crop(row, column) for part in frames)) for _, row, column in tiles]
    total, weights = torch.zeros(*predicted[0].shape[:2], height, width), torch.zeros(height, width)
    for tile, noise in zip(tiles, predicted, strict=True):
        weight = torch.outer(*map(_ramp, tile[1:]))
        total[tile] += weight * noise
        weights[tile] += weight
    return total / weights


def parts_along(length: int, side: int | None) -> list[slice]:
    """Return where tiles begin and end along an axis, in latents. They overlap by OVERLAP at least.

    Args:
        length: Length of the axis in latents.
        side: Side of the tiles in pixels. None: one part.
    """
    tile = length if side is None else min(side // LATENT_FACTOR, length)
    if tile == length:
        return [slice(0, length)]
    count = 1 + math.ceil((length - tile) / (tile * (1 - OVERLAP)))
    return [slice(start, start + tile) for start in np.linspace(0, length - tile, count).round().astype(int).tolist()]


def _ramp(part: slice) -> torch.Tensor:
    """Return weights along one axis of a tile, which rise from the borders over as much as tiles overlap."""
    import torch

    length = part.stop - part.start
    distance = torch.arange(length) + 1.0
    return torch.minimum(distance, distance.flip(0)).clamp(max=max(1.0, OVERLAP * length))
