"""PySynth over the whole video, under the name that DiffSynth gave it."""

from __future__ import annotations

from stages.smoothers import SMOOTHERS, Frames, MatchingOptions, SmootherOptions
from stages.smoothers.pysynth import PySynth, PySynthSmoother


@SMOOTHERS.register
class VideoPatchMatch(SmootherOptions):
    """PySynth over the whole video. Postprocessing is applied before and after smoothing."""

    name = "VideoPatchMatchSmoother"
    enhances_first = True
    ebsynth_config: MatchingOptions = MatchingOptions()
    """Options of patch matching."""

    def pairs(self, frames: int) -> float:
        return self._whole_video.pairs(frames)

    def build(self, guides: Frames, styles: Frames, device: str) -> PySynthSmoother:
        return self._whole_video.build(guides, styles, device)

    @property
    def _whole_video(self) -> PySynth:
        return PySynth(ebsynth_config=self.ebsynth_config)
