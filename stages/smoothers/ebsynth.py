"""Smoothing by guided synthesis: neighbouring frames are repainted to fit each frame, then averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from native import binding
from stages.base.arrays import Image, Images
from stages.base.numbers import Offset
from stages.smoothers import SMOOTHERS, Frames, PatchOptions, SmootherOptions
from stages.smoothers.images.library import batched, library_errors, library_options, pairs_at_once

CHANNELS = 3


@SMOOTHERS.register
class Ebsynth(PatchOptions, SmootherOptions):
    """Average each frame with its neighbours, warped onto it by guided synthesis."""

    name = "EbsynthSmoother"
    smooth_index: list[Offset] = Field(default_factory=lambda: [-3, -2, -1, 1, 2, 3])
    """Neighbours to use, as frame offsets."""

    def pairs(self, frames: int) -> float:
        return float(sum(max(frames - abs(offset), 0) for offset in self.smooth_index if offset))

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
        for group in batched(neighbours, pairs_at_once(self.device, self.guides[index])):
            total += self._warped(group, index).sum(axis=0, dtype=np.int64)
        return np.rint(total / (1 + len(neighbours))).astype(np.uint8)

    def _warped(self, sources: Sequence[int], target: int) -> Images:
        styles, guides = (np.stack([frames[index] for index in sources]) for frames in (self.styles, self.guides))
        with library_errors():
            painted = binding.synthesize(
                styles,
                guides,
                np.stack([self.guides[target]] * len(sources)),
                guide_weights=[self.guide_weight / CHANNELS] * CHANNELS,
                patch_size=self.patch_size,
                **library_options(self.device),
            )
        images: Images = painted.image
        return images
