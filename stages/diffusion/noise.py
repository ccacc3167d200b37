"""Noise of frames: one for all of them, one for each, or one that follows the motion of the video.

All noise is drawn on the CPU, so that it does not depend on the device. Draw 0 is the noise that frames start from, and
draw k is what step k - 1 adds, if its sampler adds noise.

Noise that follows motion is white in every frame (cf. How I Warped Your Noise, Chang et al., ICLR 2024). A latent is
the sum of 4×4 subpixels divided by 4, and each subpixel has an index that moves with the picture. Its values depend on
its index alone, so that any frame is computed by itself.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from stages.diffusion import LATENT_CHANNELS, LATENT_FACTOR, SUBPIXELS

ROUNDS = 10
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
LARGEST_SEED = 2**63  # seeds of frames begin at 0 again


def draw(seed: int, number: int, height: int, width: int) -> torch.Tensor:
    """Return draw `number` of a seed for a frame of this size, float32 [1, 4, height/8, width/8]."""
    generator = torch.Generator("cpu").manual_seed(seed if number == 0 else _mixed(seed, number - 1))
    return torch.randn((1, LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR), generator=generator)


def draw_for_frame(seed: int, frame: int, number: int, height: int, width: int) -> torch.Tensor:
    """Return draw `number` of a frame that has noise of its own: that of the seed that is higher by its number."""
    return draw((seed + frame) % LARGEST_SEED, number, height, width)


def draw_for_indexes(seed: int, number: int, indexes: NDArray[np.int64]) -> torch.Tensor:
    """Return draw `number` of frames whose subpixels have these indexes.

    Args:
        seed: Random seed.
        number: Number of the draw.
        indexes: int64 [F, h*4, w*4], unique in each frame. 0, 1, ... are the subpixels of the frame whose noise is
            `draw`, row by row.

    Returns:
        float32 [F, 4, h, w].
    """
    frames, rows, columns = indexes.shape
    known = _subpixels_of_draw(seed, number, rows * LATENT_FACTOR // SUBPIXELS, columns * LATENT_FACTOR // SUBPIXELS)
    flat, fresh = indexes.ravel(), indexes.ravel() >= len(known)
    values = known[np.where(fresh, 0, flat)]
    values[fresh] = normal(seed, number, flat[fresh])
    blocks = values.reshape(frames, rows // SUBPIXELS, SUBPIXELS, columns // SUBPIXELS, SUBPIXELS, LATENT_CHANNELS)
    return torch.from_numpy(blocks.sum((2, 4)) / SUBPIXELS).permute(0, 3, 1, 2).float().contiguous()


@lru_cache(2)
def _subpixels_of_draw(seed: int, number: int, height: int, width: int) -> NDArray[np.float64]:
    """Return white noise of subpixels [h*4*w*4, 4] whose sums are those of `draw`."""
    wanted = draw(seed, number, height, width)[0].permute(1, 2, 0).double().numpy()
    shape = (wanted.shape[0], SUBPIXELS, wanted.shape[1], SUBPIXELS, LATENT_CHANNELS)
    free = normal(seed, number, np.arange(wanted.size // LATENT_CHANNELS * SUBPIXELS**2)).reshape(shape)
    fitted = free - free.mean((1, 3), keepdims=True) + wanted[:, None, :, None] / SUBPIXELS
    return np.asarray(fitted.reshape(-1, LATENT_CHANNELS), np.float64)


def normal(seed: int, number: int, indexes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return standard normal values [K, 4] that depend only on seed, number of the draw, and index [K]."""
    words = philox(indexes.astype(np.uint64), number, seed)
    uniform = (words + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(uniform[:, :2])), 2 * np.pi * uniform[:, 2:]
    return np.asarray(np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1), np.float64)


def philox(low: NDArray[np.uint64], high: int, key: int) -> NDArray[np.uint64]:
    """Return Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        low: The low halves of counters [K]. Counters have 128 bits.
        high: Their high half.
        key: 64 bits.

    Returns:
        Four words of 32 bits per counter [K, 4].
    """
    upper = np.uint64(high)
    c0, c1 = low & LOW, low >> HALF
    c2, c3 = np.full_like(low, upper & LOW), np.full_like(low, upper >> HALF)
    k0, k1 = np.uint64(key) & LOW, np.uint64(key) >> HALF
    for _ in range(ROUNDS):
        one, two = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (two >> HALF) ^ c1 ^ k0, two & LOW, (one >> HALF) ^ c3 ^ k1, one & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return np.stack([c0, c1, c2, c3], axis=1)


def _mixed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])
