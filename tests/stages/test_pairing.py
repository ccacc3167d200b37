"""Pairing the frames of a guide with those of a style."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stages import pairing
from stages.pairing import GuideShots, align, pairs, unused_frames
from stages.smoothers.images.offset import MIN_MOTION
from stages.video import Encoding, encode, open_source
from tests.conftest import write_images
from tests.stages.smoothers.images.test_offset import UNEVEN, pan, stylised
from tests.typing import Image


def video(path: Path, frames: Iterable[Image], fps: Fraction | int = 25) -> Path:
    encode(path, frames, Encoding(Fraction(fps), crf=5))
    return path


def partners(guide: Path, style: Path, offset: float = 0.0) -> list[int | None]:
    """The number of each style frame's partner."""
    source = open_source(guide)
    return [
        None if partner is None else round(partner.time * source.fps)
        for partner, _ in pairs(source, open_source(style), offset)
    ]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A guide of 8 frames, a style of 6, a guide of 16 at twice the rate, and a folder of 6 images."""
    frames = pan(0, UNEVEN[:16])
    video(tmp_path / "guide.mp4", frames[:8])
    video(tmp_path / "style.mp4", frames[:6])
    video(tmp_path / "fast.mp4", frames, 50)
    write_images(tmp_path / "images", frames[:6])
    return tmp_path


@pytest.mark.parametrize(
    ("guide", "style", "offset", "expected"),
    [
        ("guide.mp4", "style.mp4", 0, [0, 1, 2, 3, 4, 5]),
        ("guide.mp4", "style.mp4", 4, [4, 5, 6, 7, None, None]),
        ("guide.mp4", "style.mp4", -2, [None, None, 0, 1, 2, 3]),
        ("guide.mp4", "style.mp4", 20, [None] * 6),
        ("guide.mp4", "images", 1, [1, 2, 3, 4, 5, 6]),
        ("images", "guide.mp4", 0, [0, 1, 2, 3, 4, 5, None, None]),
        ("fast.mp4", "style.mp4", 0, [0, 2, 4, 6, 8, 10]),
        ("fast.mp4", "style.mp4", 0.5, [1, 3, 5, 7, 9, 11]),
        ("fast.mp4", "style.mp4", 4, [8, 10, 12, 14, 15, None]),
        ("fast.mp4", "style.mp4", -1.5, [None, 0, 1, 3, 5, 7]),
    ],
)
def test_frames_are_paired_at_an_offset(
    clips: Path, guide: str, style: str, offset: float, expected: list[int | None] | list[None] | list[int]
) -> None:
    assert partners(clips / guide, clips / style, offset) == expected


def test_style_frames_without_a_partner_guide_themselves(clips: Path) -> None:
    shots = [shot.image() for shot in GuideShots(clips / "guide.mp4", clips / "images", -2)(0)]
    styles = [shot.image() for shot in open_source(clips / "images").shots()]
    guides = [shot.image() for shot in open_source(clips / "guide.mp4").shots()]
    np.testing.assert_array_equal(shots, styles[:2] + guides[:4])


@pytest.mark.parametrize(("offset", "count", "expected"), [(0, 6, 2), (2, 6, 0), (-1, 6, 3), (9, 6, 0)])
def test_frames_of_the_guide_after_the_style_are_counted(clips: Path, offset: int, count: int, expected: int) -> None:
    guide, style = open_source(clips / "guide.mp4"), open_source(clips / "style.mp4")
    assert unused_frames(guide, style, offset, count) == expected
    assert unused_frames(open_source(clips / "fast.mp4"), style, 0, 6) == 4


@pytest.mark.parametrize(("offset", "every"), [(5, 1), (-3, 1), (4, 2)])
def test_a_long_video_is_compared_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int, every: int
) -> None:
    monkeypatch.setattr(pairing, "STRETCH", 15)
    monkeypatch.setattr(pairing, "STRETCHES", 2)
    monkeypatch.setattr(pairing, "SEARCH", 0.4)
    places = (
        np.cumsum(np.tile([0, 1, 3, 1, 0, 2, 4, 0, 1, 2], 18) * np.random.default_rng(0).choice([-1, 1], 180)) + 150
    )
    guide, style = places[max(0, -offset) :], places[max(0, offset) :: every]
    read: list[int] = []
    found = align(
        open_source(video(tmp_path / "guide.mp4", pan(0, guide))),
        open_source(video(tmp_path / "style.mp4", stylised(pan(0, style)), Fraction(25, every))),
        read.append,
    )
    assert found.fits and found.motion > MIN_MOTION
    assert found.offset == pytest.approx(offset / every)
    assert sum(read) < len(style) // 2 + len(guide) // 2


def test_compared_parts_are_evenly_spaced() -> None:
    assert pairing._parts(50) == pairing._parts(None) == [(0, 159)]
    parts = pairing._parts(100_000)
    assert parts[0][0] == 0 and parts[-1][1] == 99_999 and all(b[0] > a[1] for a, b in pairwise(parts))
