"""Numbers and foreign text in messages."""

from __future__ import annotations

import re

# Control characters other than tab and line feed, line separators, and characters that change the direction of text.
UNSEEN = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"


def printable(text: str) -> str:
    """Return text as it can be shown on a terminal, whatever a job, file or model made it contain.

    Control characters are escaped. Lines after the first are indented, so that none looks like another message.
    """
    escaped = re.sub(UNSEEN, lambda found: ascii(found[0])[1:-1], text)
    return re.sub(r"\n(?=[^\s])", "\n  ", escaped)


def counted(number: int, noun: str) -> str:
    """Format a number with its noun: "1 frame", "2 frames"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def per_second(frames: float) -> str:
    """Format a frame rate or a speed: "25 frames/s", "23.98 frames/s", "0.042 frames/s", "1200 frames/s"."""
    if frames < 1:
        return f"{frames:.2g} frames/s"
    return f"{frames:.0f} frames/s" if frames >= 100 else f"{f'{frames:.2f}'.rstrip('0').rstrip('.')} frames/s"


def duration(seconds: float) -> str:
    """Format a time: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def size(number: float) -> str:
    """Format a number of bytes: "80 kB", "3.1 MB", "210 GB", "1.1 TB"."""
    if number < 1e5:
        return f"{number / 1e3:.0f} kB"
    for unit, scale in (("TB", 1e12), ("GB", 1e9)):
        if number >= scale:
            return f"{number / scale:.{0 if number >= 10 * scale else 1}f} {unit}"
    return f"{number / 1e6:.{0 if number >= 1e7 else 1}f} MB"
