"""Paint frames between two consecutive frames of a video, to raise its frame rate.

Several motions from one frame to the other are tried at each pixel: optical flow and patch matching, of the video
itself and of the original video, and no motion. Both frames are moved along each to the time in between. The better the
two then agree at a pixel, the more that motion counts there. Where even the best motion leaves the frames different,
only the nearer one is shown, because a blend would show everything twice. If hardly any pixel can be followed, it is
shown unmoved.

Images are NumPy arrays, uint8 [H, W, 3], on the CPU. So the painted frames are the same on all machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stages.base.arrays import Floats, Image, Mask
from stages.smoothers.images.evidence import flicker_level, flicker_line, misfit
from stages.smoothers.images.matching import PATCH, carry, corrected, field
from stages.smoothers.images.pixels import box, fetch, floats, flow, gauss, mean_square, warp

SETTLING = 6  # rounds in which a motion is found at a point between the frames
# Differences count as larger by this factor. Simple motions are preferred, since flow and patches follow flicker, too.
STILL, GUIDE_FLOW, STYLE_FLOW, MATCHED = 1.0, 1.25, 1.5, 2.0
MEDIAN = 5  # px a side of the squares whose median motion is used
AREA = 15  # px a side of the squares over which frames are compared
FLOOR = 10.0  # levels², a negligible difference
SHARPNESS = 3  # power of the difference by which the weight of a motion falls
OUTSIDE = 900.0  # levels², assumed where a motion leaves the frame
SEAM = 1.0  # px over which motions, and one frame and the blend of both, merge
GHOST = 40.0  # levels, root mean square difference at which a blend counts half ...
FLICKERING = 8.0  # ... or this many times the square of what flickers
REACH = 2.0  # px, standard deviation of the area in which a blend is judged
STEEPNESS = 3
MOST = 60.0  # levels; whatever flickers, images that differ by more are not blended
RETURNING = 1.5  # px; a pixel that moves there and back must end this close to where it was ...
SIMILAR = 15.0  # ... or at one that differs by less than this, levels, root mean square ...
IN_COMMON = 0.88  # ... in this share of the frame, or the nearer frame is repeated


@dataclass(frozen=True)
class Motion:
    """A motion between two frames.

    Attributes:
        there: Motion of each pixel of the first frame, px, float32 [H, W, 2], x then y.
        back: The same from the second frame to the first.
        doubt: Factor by which differences count more.
    """

    there: Floats
    back: Floats
    doubt: float

    def is_followed(self, first: Image) -> Mask:
        """Return which pixels of the first frame come back to their place, or a similar one, from the second."""
        trip, image = self.there + warp(self.back, self.there), floats(first)
        alike = box(mean_square(warp(image, trip) - image), PATCH)[..., 0] < SIMILAR**2
        mask: Mask = alike | (np.linalg.norm(trip, axis=-1) < RETURNING)
        return mask

    def at(self, time: float) -> Iterator[Floats]:
        """Yield the motion through each point between the frames, as the first and the second frame see it."""
        yield _settled(self.there, -time)
        yield _settled(-self.back, 1 - time)


def motions(frames: Sequence[Image], guides: Sequence[Image] | None) -> list[Motion]:
    """Estimate the motion from one frame to the next.

    Args:
        frames: The two frames.
        guides: The same frames of the original video, if it is known.

    Returns:
        Candidates, some of which are right at each pixel. Empty if the frames have too little in common.
    """
    videos = [(frames, STYLE_FLOW), *(() if guides is None else [(guides, GUIDE_FLOW)])]
    found = [(pair[0], motion) for pair, doubt in videos for motion in _estimated(pair, doubt)]
    if np.mean(np.any([motion.is_followed(first) for first, motion in found], axis=0)) < IN_COMMON:
        return []
    still = np.zeros_like(found[0][1].there)
    return [Motion(still, still, STILL), *(motion for _, motion in found)]


def paint_between(frames: Sequence[Image], moved: Sequence[Motion], time: float) -> Image:
    """Paint the frame at a time between two frames, 0 < `time` < 1. At 0.5, the first one is the nearer.

    Args:
        frames: The two frames.
        moved: The result of `motions`. If it is empty, the nearer frame is returned.
        time: 0 is the first frame's, 1 the second's.
    """
    if not moved:
        return frames[0] if time <= 0.5 else frames[1]
    found = _moved([floats(frame) for frame in frames], moved, time)
    blend = (1 - time) * found.sides[0] + time * found.sides[1]
    share = _blendable(found)
    return fetch(share * blend + (1 - share) * found.nearer)


def _estimated(frames: Sequence[Image], doubt: float) -> Iterator[Motion]:
    first, second = frames
    there, back = flow(first, second), flow(second, first)
    yield Motion(there, back, doubt)
    yield Motion(
        corrected(there, field(first, second, there, threads=1)),
        corrected(back, field(second, first, back, threads=1)),
        MATCHED,
    )


def _settled(motion: Floats, step: float) -> Floats:
    """Return the motion of that pixel which arrives at p after `step` of its motion: v(p) = motion(p + step v(p))."""
    settled = motion
    for _ in range(SETTLING):
        settled = warp(motion, step * settled)
    return _median(settled)


def _median(motion: Floats) -> Floats:
    """Return a motion without outliers, which would show as dots."""
    import cv2

    return np.dstack([cv2.medianBlur(np.ascontiguousarray(part), MEDIAN) for part in np.moveaxis(motion, 2, 0)])


class Moved(NamedTuple):
    """Two frames that were moved to the same time, float32 [H, W, 3]."""

    sides: list[Floats]
    """Both, as the mean of all motions, by how much each counts."""
    nearer: Floats
    """The nearer one, or the other where that one ends, moved by the motion that counts most at each pixel."""
    difference: Floats
    """How much the two differ along that motion, levels² [H, W, 1]."""


def _moved(frames: Sequence[Floats], moved: Sequence[Motion], time: float) -> Moved:
    """Move both frames to `time` along the motions by which they agree best."""
    near, images = int(time > 0.5), np.zeros((2, *frames[0].shape), np.float32)
    total, best, least = np.zeros((3, *frames[0].shape[:2], 1), np.float32)
    nearer, clearest = frames[near], best
    for motion in moved:
        for path in motion.at(time):
            steps = (-time * path, (1 - time) * path)
            carried, inside = zip(*(carry(f, step, cubic=True) for f, step in zip(frames, steps, strict=True)))
            difference = np.where(inside[0] & inside[1], _difference(*carried), OUTSIDE)
            weight = gauss((motion.doubt * difference) ** -SHARPNESS, SEAM)
            better = weight > best
            best, least = np.where(better, weight, best), np.where(better, difference, least)
            if motion.doubt < MATCHED:
                clearer, seen = weight > clearest, np.where(inside[near], carried[near], carried[1 - near])
                nearer, clearest = np.where(clearer, seen, nearer), np.where(clearer, weight, clearest)
            images, total = images + weight * np.stack(carried), total + weight
    return Moved([*(images / total)], nearer, least)


def _difference(one: Floats, other: Floats) -> Floats:
    difference: Floats = box(mean_square(one - other), AREA) + FLOOR
    return difference


def _blendable(found: Moved) -> Floats:
    """Return where two frames are so alike that a blend shows nothing twice, 0..1 [H, W, 1]."""
    one, other = found.sides
    difference = np.maximum(misfit(one, other, REACH), found.difference)
    flickers = flicker_level(one, flicker_line(one, difference, REACH), REACH)
    allowed = np.clip(FLICKERING * flickers, GHOST**2, MOST**2)
    share: Floats = gauss(1 / (1 + (difference / allowed) ** STEEPNESS), SEAM)
    return share
