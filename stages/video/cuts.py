"""Finding cuts with PySceneDetect."""

from __future__ import annotations

from collections.abc import Iterable

from stages.base.arrays import Image
from stages.video.images import fit

SIDE = 256  # px, longer side of the frames that are compared; more takes longer and finds the same
SHORTEST = 5  # frames of a scene, as many as the detector compares to find a cut
RATE = 25.0  # frames/s; the detector counts frames, so that any rate would do


def find_cuts(frames: Iterable[Image]) -> list[int]:
    """Find the first frame of each scene after the first, where a frame differs suddenly from the one before.

    Fades are not found. A scene is at least SHORTEST frames long; a shorter one is joined to the next.

    Args:
        frames: The frames of a video, uint8 RGB [H, W, 3].

    Returns:
        Frame numbers, ascending.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode

    detector = AdaptiveDetector(min_scene_len=SHORTEST)
    found = (detector.process_frame(FrameTimecode(index, RATE), _small(frame)) for index, frame in enumerate(frames))
    return [cut.frame_num for cuts in found for cut in cuts]


def _small(frame: Image) -> Image:
    """Return a small copy of a frame, uint8 BGR."""
    scale = min(1.0, SIDE / max(frame.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in frame.shape[:2])
    return fit(frame, height, width)[..., ::-1]
