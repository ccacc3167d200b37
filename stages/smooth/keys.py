"""Frame numbers of keyframes, read from the names of their images."""

from __future__ import annotations

import re

from stages.base.engine import Reporter
from stages.base.errors import UsageError
from stages.smooth.request import Smoothing
from stages.video import ImageFolder, Source, open_source


def key_numbers(style: Source) -> tuple[int, ...]:
    """Return the frame number of each keyframe: the last number in its name (00012.png, frame-12.png)."""
    if not isinstance(style, ImageFolder):
        raise UsageError(f"{style.path} is not a folder of images", "--mode interpolate needs one")
    numbers = [re.findall(r"\d+", file.stem) for file in style.files]
    if unnamed := [file.name for file, found in zip(style.files, numbers, strict=True) if not found]:
        raise UsageError(f"{style.path}: {unnamed[0]} has no frame number in its name", "name it like 00012.png")
    keys = tuple(int(found[-1]) for found in numbers)
    if list(keys) != sorted(set(keys)):
        raise UsageError(f"{style.path}: frame numbers do not ascend: {', '.join(map(str, keys[:12]))}")
    return keys


def keys_inside(offset: int, count: int, smoothing: Smoothing, reporter: Reporter) -> tuple[int, tuple[int, ...]]:
    """Select the keyframes within the guide, and warn about the others.

    Args:
        offset: Frames by which the keyframes are ahead of the guide.
        count: Number of frames of the guide.
        smoothing: The guide, and the keyframes as style.
        reporter: Receives the warning.

    Returns:
        The index of the first selected keyframe, and the frame numbers of the selected ones in the guide.

    Raises:
        UsageError: No keyframe is within the guide, or one is beyond its end without an offset.
    """
    style, guide, numbers = smoothing.style, smoothing.guide, key_numbers(open_source(smoothing.style))
    if offset == 0 and numbers[-1] >= count:
        raise UsageError(f"{style} has a keyframe {numbers[-1]}, but the last frame of {guide} is {count - 1}")
    inside = tuple(number + offset for number in numbers if 0 <= number + offset < count)
    if not inside:
        raise UsageError(f"{style}: no keyframe lies within {guide}, which has {count} frames")
    if outside := [str(number) for number in numbers if not 0 <= number + offset < count]:
        reporter.warn(f"{style}: ignored keyframes outside {guide}: {', '.join(outside)}")
    return numbers.index(inside[0] - offset), inside
