"""Smoothing by guided synthesis: neighbouring frames are repainted to fit each frame, then averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from native import binding
from stages.base.arrays import Image, Images
from stages.base.errors import DiffSynthError
from stages.base.numbers import Offset
from stages.smoothers import SMOOTHERS, Frames, PatchOptions, SmootherOptions
from stages.smoothers.pysynth import library_options

CHANNELS = 3


@SMOOTHERS.register
class Ebsynth(PatchOptions, SmootherOptions):
    """Average each frame with its neighbours, warped onto it by guided synthesis."""

    name = "EbsynthSmoother"
    smooth_index: list[Offset] = Field(default_factory=lambda: [-3, -2, -1, 1, 2, 3])
    """Neighbours to use, as frame offsets."""

    def build(self, guides: Frames, styles: Frames, device: str) -> EbsynthSmoother:
        return EbsynthSmoother(
            guides,
            styles,
            smooth_index=self.smooth_index,
            patch_size=self.patch_size,
            guide_weight=self.guide_weight,
            device=device,
        )


class EbsynthSmoother:
    """Averages each frame i with the frames i + d, d of `smooth_index`, warped onto it and rounded (ties to even).

    Warping means guided synthesis (Jamriška et al. 2019): the neighbour's style is painted from its own guide onto the
    guide of frame i. Neighbours beyond the ends of the video are skipped.
    """

    def __init__(
        self,
        guides: Frames,
        styles: Frames,
        *,
        smooth_index: Sequence[int],
        patch_size: int,
        guide_weight: float,
        device: str,
    ):
        self.guides, self.styles, self.device = guides, styles, device
        self.offsets, self.patch_size, self.guide_weight = [d for d in smooth_index if d], patch_size, guide_weight

    def smooth(self, start: int, stop: int) -> Images:
        return np.stack([self._mean(index) for index in range(start, stop)])

    def _mean(self, index: int) -> Image:
        neighbours = [index + d for d in self.offsets if 0 <= index + d < len(self.styles)]
        total = self.styles[index].astype(np.int64)
        for neighbour in neighbours:  # one at a time, so that the library needs the memory of one pair only
            total = total + self._warped(neighbour, index)
        return np.rint(total / (1 + len(neighbours))).astype(np.uint8)

    def _warped(self, source: int, target: int) -> NDArray[np.int64]:
        images = (self.styles[source], self.guides[source], self.guides[target])
        try:
            painted = binding.synthesize(
                *(np.ascontiguousarray(image)[None] for image in images),
                guide_weights=[self.guide_weight / CHANNELS] * CHANNELS,
                patch_size=self.patch_size,
                **library_options(self.device),
            )
        except binding.EbsynthError as error:
            raise DiffSynthError(str(error)) from error
        image: Image = painted.image[0]
        return image.astype(np.int64)
