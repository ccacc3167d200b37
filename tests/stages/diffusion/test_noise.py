"""Noise: reproducible, white, and the same for the same index."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.diffusion.noise import draw, draw_for_frame, draw_for_indexes, normal, philox

SIZE = 64, 96
SUBPIXELS = np.arange(SIZE[0] // 2 * SIZE[1] // 2).reshape(1, SIZE[0] // 2, SIZE[1] // 2)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**64 - 1, 2**64 - 1), 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((0x85A308D3243F6A88, 0x0370734413198A2E), 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter: tuple[int, int], key: int, expected: str) -> None:
    low, high = counter
    words = philox(np.array([low], np.uint64), high, key)[0]
    assert " ".join(f"{word:08x}" for word in words) == expected


def test_values_are_normal_and_depend_on_seed_draw_and_index_alone() -> None:
    indexes = np.arange(50_000) + 2**40
    values = normal(7, 3, indexes)
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01 and np.abs(values).max() < 7
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.02
    np.testing.assert_array_equal(normal(7, 3, indexes[::-1])[::-1], values)
    for other in (normal(8, 3, indexes), normal(7, 4, indexes), normal(7, 3, indexes + 2**32)):
        assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize(("seed", "number"), [(0, 0), (2**63 - 1, 5)])
def test_the_subpixels_of_the_first_frame_add_up_to_its_noise_exactly(seed: int, number: int) -> None:
    torch.testing.assert_close(draw_for_indexes(seed, number, SUBPIXELS), draw(seed, number, *SIZE), atol=0, rtol=0)


def test_moved_subpixels_give_moved_noise_and_mixed_ones_white_noise() -> None:
    moved = np.roll(SUBPIXELS, (4, -8), (1, 2))  # 8 px down, 16 px to the left
    expected = torch.roll(draw(1, 0, *SIZE), (1, -2), (2, 3))
    torch.testing.assert_close(draw_for_indexes(1, 0, moved), expected, atol=0, rtol=0)
    shuffled = np.random.default_rng(0).permutation(2 * SUBPIXELS.size)[: SUBPIXELS.size].reshape(SUBPIXELS.shape)
    many = torch.cat([draw_for_indexes(seed, 0, shuffled) for seed in range(40)])
    assert abs(float(many.mean())) < 0.02 and abs(float(many.std()) - 1) < 0.02
    for one, other in ((many[..., 1:], many[..., :-1]), (many[:, :, 1:], many[:, :, :-1]), (many[:, 1:], many[:, :-1])):
        assert abs(float((one * other).mean())) < 0.02


def test_a_frames_own_noise_is_that_of_a_higher_seed() -> None:
    torch.testing.assert_close(draw_for_frame(3, 4, 2, *SIZE), draw(7, 2, *SIZE), atol=0, rtol=0)
    torch.testing.assert_close(draw_for_frame(2**63 - 1, 1, 0, *SIZE), draw(0, 0, *SIZE), atol=0, rtol=0)


def test_draws_of_a_seed_differ() -> None:
    drawn = [draw(0, 0, *SIZE), draw(0, 1, *SIZE), draw(0, 2, *SIZE), draw(1, 1, *SIZE)]
    for k, one in enumerate(drawn):
        assert all(abs(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]) < 0.3 for two in drawn[:k])
