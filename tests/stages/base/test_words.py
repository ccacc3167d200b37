"""Numbers and foreign text in messages."""

from __future__ import annotations

import pytest

from stages.base.words import counted, duration, per_second, printable, size


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe ✓ 雪\t👩‍🎨", "Größe ✓ 雪\t👩‍🎨"),
        ("\x1b[2J\x07\r\x00", r"\x1b[2J\x07\r\x00"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("\u202egpj.\u2066x\u2028y", r"\u202egpj.\u2066x\u2028y"),
        ("a\nerror: b\n  c\n", "a\n  error: b\n  c\n"),
    ],
)
def test_text_cannot_steer_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "0.012 s"), (99, "99 s"), (101, "2 min"), (5900, "98 min"), (6100, "1.69 h"), (360_000, "100 h")],
)
def test_times_have_the_unit_that_people_plan_in(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 kB"),
        (1234, "1 kB"),
        (3.14e6, "3.1 MB"),
        (2.5e7, "25 MB"),
        (2.04e9, "2.0 GB"),
        (2.1e11, "210 GB"),
        (1.1e12, "1.1 TB"),
    ],
)
def test_sizes_have_the_unit_that_disks_are_sold_in(number: float, text: str) -> None:
    assert size(number) == text
