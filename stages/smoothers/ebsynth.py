"""Smoothing by guided synthesis: neighbours painted anew where the guide says that their parts have gone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from native import binding
from stages.base.errors import DiffSynthError
from stages.base.numbers import Offset
from stages.smoothers import SMOOTHERS, Frames, PatchOptions, SmootherOptions
from stages.smoothers.pysynth import library_options

CHANNELS = 3


@SMOOTHERS.register
class Ebsynth(PatchOptions, SmootherOptions):
    """Every frame is the mean of itself and of its neighbours, carried onto it by guided synthesis."""

    name = "EbsynthSmoother"
    smooth_index: list[Offset] = Field(default_factory=lambda: [-3, -2, -1, 1, 2, 3])
    """Which neighbours, as offsets."""

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
    """Frame i is the mean of itself and of every frame i+d, d of `smooth_index`, carried onto frame i: painted by
    guided synthesis (Jamriška et al. 2019) in that frame's style, from that frame's guide to frame i's. Neighbours
    before the first or after the last frame are left out. Rounded to the nearest (ties to even).
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

    def smooth(self, start: int, stop: int) -> np.ndarray:
        return np.stack([self._mean(index) for index in range(start, stop)])

    def _mean(self, index: int) -> np.ndarray:
        neighbours = [index + d for d in self.offsets if 0 <= index + d < len(self.styles)]
        total = self.styles[index].astype(np.int64)
        for neighbour in neighbours:  # one at a time: the library's memory is then that of one pair
            total = total + self._carried(neighbour, index)
        return np.rint(total / (1 + len(neighbours))).astype(np.uint8)

    def _carried(self, source: int, target: int) -> np.ndarray:
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
        return painted.image[0].astype(np.int64)
