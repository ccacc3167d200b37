"""Masks from files as the alpha channel of frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path

import numpy as np

from stages.base.arrays import Image
from stages.base.errors import DiffSynthError, UsageError
from stages.base.words import counted
from stages.video import check_shape, fit, open_source, read_image
from stages.video.images import IMAGE_SUFFIXES


class Masks:
    """The masks of a video's frames: a video or a folder with one for each, or one image for all.

    Args:
        path: The video, folder or image. White is opaque, black transparent.
        count: Number of frames.
        height, width: Size of the frames. Masks of another size are resized.

    Raises:
        UsageError: `path` cannot be read, or does not fit the frames.
    """

    def __init__(self, path: Path, count: int, height: int, width: int):
        self.path, self.count, self.size = path, count, (height, width)
        if self._is_image:
            read_image(path)
            return
        source = open_source(path)
        check_shape(source, height, width)
        masks = sum(1 for _ in source.shots())
        if masks != count:
            raise UsageError(
                f"alpha: {path} holds {counted(masks, 'mask')} for {counted(count, 'frame')}",
                "give one mask for each frame, or a single image",
            )

    def applied(self, frames: Iterable[Image]) -> Iterator[Image]:
        """Yield frames uint8 [H, W, 3] with their masks as alpha, uint8 [H, W, 4]."""
        masks = self._read()
        for frame in frames:
            mask = next(masks, None)
            if mask is None:
                raise DiffSynthError(f"alpha: {self.path} has fewer masks than before", "try again")
            yield np.concatenate([frame, mask], axis=2)

    @property
    def _is_image(self) -> bool:
        return self.path.suffix.lower() in IMAGE_SUFFIXES and not self.path.is_dir()

    def _read(self) -> Iterator[Image]:
        if self._is_image:
            return repeat(self._alpha(read_image(self.path)), self.count)
        return (self._alpha(shot.image()) for shot in open_source(self.path).shots())

    def _alpha(self, image: Image) -> Image:
        grey: Image = np.rint(fit(image, *self.size).mean(axis=2, keepdims=True)).astype(np.uint8)
        return grey
