"""Masks from files: which parts of frames are restyled, belong to a region, or are opaque.

A mask is uint8 [H, W], 255 where that is so and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice, repeat
from pathlib import Path

import numpy as np

from stages.base.arrays import Image, Images
from stages.base.errors import UsageError
from stages.base.words import counted
from stages.compositing import WHITE
from stages.tasks import DecodeTask
from stages.video import ImageFolder, Selection, Shot, certain_length, fit, open_source, read_image

HINT = "give one mask for each frame of the video, or one image"


@dataclass(frozen=True)
class Mask:
    """A mask of a video, as the user describes it.

    Args:
        path: A video or a folder of images with one mask for each frame of the video, or one image for all frames.
        grow: By how many pixels the white part grows, or shrinks if it is negative.
        feather: Width in pixels of the soft edge on both sides of the white part's outline.
        invert: Swap black and white first.
    """

    path: str
    grow: int = 0
    feather: int = 0
    invert: bool = False

    def soften(self, image: Image) -> Image:
        """Return the mask in an image, uint8 [H, W, 3] to [H, W]."""
        import cv2

        mask = image.mean(axis=2).round().astype(np.uint8)
        mask = WHITE - mask if self.invert else mask
        if self.grow:
            mask = _grown(mask, self.grow)
        if self.feather:  # beyond this distance from the outline, the mask is what it was
            mask = np.asarray(cv2.GaussianBlur(mask, (2 * self.feather + 1,) * 2, self.feather / 2), np.uint8)
        return np.asarray(mask, np.uint8)

    def decode(self, target: str, selection: Selection, fps: Fraction | None = None) -> DecodeTask:
        """Return the task that writes the masks of all used frames into the array `target`, uint8 [N, H, W].

        Args:
            target: The array. Masks are resized to its size.
            selection: The used frames.
            fps: The frame rate of the masks if they are a folder of images.
        """
        shots = partial(mask_shots, self.path, selection, fps)
        return DecodeTask(self.path, shots, target, finish=self.soften)


PLAIN = Mask("")


def _grown(mask: Image, distance: int) -> Image:
    """Grow the white part of a mask by so many pixels, or shrink it. Grey becomes black or white."""
    import cv2

    white = mask > WHITE // 2
    grown = white if distance < 0 else ~white
    away = cv2.distanceTransform(grown.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)  # from the other part
    return np.where(away > -distance if distance < 0 else away <= distance, WHITE, 0).astype(np.uint8)


def mask_shots(path: str, selection: Selection, fps: Fraction | None, first: int) -> Iterator[Shot]:
    """Yield the masks of used frames from number `first` on. One image is repeated without end.

    Raises:
        UsageError: There are no more masks.
    """
    if is_still(path):
        image = read_image(path)
        yield from repeat(Shot(0.0, lambda: image))
    folder = Path(path).is_dir()
    source = ImageFolder(Path(path), fps) if folder and fps is not None else open_source(path)
    yield from islice(selection.shots(source), first, None)
    raise UsageError(f"{path}: there are fewer masks than frames", HINT)


def is_still(path: str) -> bool:
    """Whether the path is that of an image, which is the mask of all frames."""
    from stages.video.images import IMAGE_SUFFIXES

    return Path(path).suffix.lower() in IMAGE_SUFFIXES and not Path(path).is_dir()


def check_mask(key: str, path: str, selection: Selection, least: float) -> None:
    """Raise UsageError if a mask cannot be read, or is certainly too short.

    Args:
        key: The job key or option that names it.
        path: A video, a folder of images, or an image.
        selection: The used frames.
        least: The minimum of their number.
    """
    if is_still(path):
        read_image(path)
        return
    _, most = certain_length(open_source(path))
    if most < (least - 1) * selection.interval + 1:
        given = f"{counted(int(most), 'mask')} for {counted(int(least), 'used frame')}"
        raise UsageError(f"{key}: {path} holds {given}", HINT)


def with_alpha(frames: Iterable[Image], masks: Iterator[Shot]) -> Iterator[Image]:
    """Yield frames uint8 [H, W, 3] with their masks as alpha channel, uint8 [H, W, 4]."""
    for frame, mask in zip(frames, masks, strict=False):
        alpha = PLAIN.soften(fit(mask.image(), *frame.shape[:2]))
        yield np.dstack([frame, alpha])


def latents_inside(masks: Images, factor: int) -> np.ndarray:
    """Return which latents are restyled: those with any pixel that is not black, bool [K, H/factor, W/factor]."""
    count, height, width = masks.shape
    inside: np.ndarray = masks.reshape(count, height // factor, factor, width // factor, factor).max((2, 4)) > 0
    return inside
