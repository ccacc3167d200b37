"""Numbers in messages."""

from __future__ import annotations

import pytest

from stages.base.words import counted, per_second


def test_a_noun_follows_its_number() -> None:
    assert [counted(number, "frame") for number in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (1200.4, "1200"), (1000, "1000"), (119.88, "120"), (100, "100"), (29.97002, "29.97"), (25, "25"),
        (12.5, "12.5"), (10, "10"), (1, "1"), (0.0417, "0.042"),
    ],
)  # fmt: skip
def test_rates_are_rounded_to_significant_digits(frames: float, text: str) -> None:
    assert per_second(frames) == f"{text} frames/s"
