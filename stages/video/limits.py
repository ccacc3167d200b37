"""How large images and videos may be. Larger ones are damaged or made to exhaust memory, disk or time."""

from __future__ import annotations

from pathlib import Path

from stages.base.errors import UsageError

MOST_PIXELS = 13_000**2  # of an image or a frame; 0.5 GB as RGB
MOST_FRAMES = 2_000_000  # of a video or a folder of images; 18 hours at 30 frames/s
MOST_SECONDS = 24 * 60 * 60  # of a video


def check_pixels(path: Path, height: int, width: int) -> None:
    """Raise UsageError if an image or frame of this size would exhaust memory."""
    if height * width > MOST_PIXELS:
        raise too_large(path)


def too_large(path: Path) -> UsageError:
    """Return the error about an image or frame with more than MOST_PIXELS."""
    side = f"{MOST_PIXELS**0.5:.0f}"
    return UsageError(
        f"{path} is too large",
        f"images and frames may have at most {side}×{side} pixels, or the same number in another shape",
    )


def check_length(path: Path, frames: int, seconds: float = 0.0) -> None:
    """Raise UsageError if a source with so many frames, or frames until so late, is longer than any that is meant."""
    if frames > MOST_FRAMES or seconds > MOST_SECONDS:
        raise UsageError(
            f"{path} is too long",
            f"at most {MOST_FRAMES:,} frames and {MOST_SECONDS // 3600} hours can be used; cut it, or set "
            "frame_maximum_count or end_time",
        )
