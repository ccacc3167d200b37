"""DiffSynth's name for PySynth over the whole video."""

from __future__ import annotations

from stages.smoothers import SMOOTHERS, Frames, MatchingOptions, SmootherOptions
from stages.smoothers.pysynth import PySynth, PySynthSmoother


@SMOOTHERS.register
class VideoPatchMatch(SmootherOptions):
    """Remap and blend over the whole video through blending tables. Frames are enhanced before and after."""

    name = "VideoPatchMatchSmoother"
    enhances_first = True
    ebsynth_config: MatchingOptions = MatchingOptions()
    """How frames are carried onto each other."""

    def build(self, guides: Frames, styles: Frames, device: str) -> PySynthSmoother:
        return PySynth(ebsynth_config=self.ebsynth_config).build(guides, styles, device)
