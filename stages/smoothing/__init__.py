"""Taking the flicker out of a video: smoothers, and what is done to frames after smoothing.

All smoothers have one interface: frames come in by index, read when asked for, and go out by chunk, so that a
smoother of any window works on a video of any length in bounded memory. docs/smoothers.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageEnhance

Frames = Sequence[np.ndarray]
"""uint8 RGB [H, W, 3] by index; reading one may mean decoding it."""


class Smoother(Protocol):
    """Takes the flicker out of a stylised video."""

    def smooth(self, guides: Frames, styles: Frames, start: int, stop: int) -> np.ndarray:
        """Frames start..stop-1, deflickered, as uint8 [stop-start, H, W, 3].

        `guides` are the frames of the original video, which does not flicker, `styles` those of the stylised one;
        both are the whole video. The result for a frame must not depend on where a chunk begins.
        """


class TemporalMeanSmoother:
    """Mean over frames i-radius..i+radius, indexes clamped, rounded to the nearest (ties to even)."""

    def __init__(self, radius: int = 1):
        self.radius = radius

    def smooth(self, guides: Frames, styles: Frames, start: int, stop: int) -> np.ndarray:
        def frame(index: int) -> np.ndarray:
            return styles[min(max(index, 0), len(styles) - 1)].astype(np.int64)

        # A running sum of integers: exact, and as cheap for a wide window as for a narrow one.
        total = sum((frame(index) for index in range(start - self.radius, start + self.radius)), np.int64(0))
        smoothed = []
        for index in range(start, stop):
            total = total + frame(index + self.radius)
            smoothed.append(np.rint(total / (2 * self.radius + 1)).astype(np.uint8))
            total = total - frame(index - self.radius)
        return np.stack(smoothed)


class Enhanced:
    """A smoother followed by Pillow's ImageEnhance filters, in the order given."""

    def __init__(self, smoother: Smoother, postprocessing: dict[str, float]):
        self.smoother, self.postprocessing = smoother, postprocessing

    def smooth(self, guides: Frames, styles: Frames, start: int, stop: int) -> np.ndarray:
        return np.stack([self._enhance(frame) for frame in self.smoother.smooth(guides, styles, start, stop)])

    def _enhance(self, frame: np.ndarray) -> np.ndarray:
        image = Image.fromarray(frame)
        for name, factor in self.postprocessing.items():
            image = getattr(ImageEnhance, name.capitalize())(image).enhance(factor)
        return np.asarray(image)


def build(name: str, config: dict[str, Any], window: int | None = None) -> Smoother:
    """The smoother `name` with the options `config`; `window` frames to each side, if given, in place of its own."""
    config = dict(config)
    postprocessing = config.pop("postprocessing", {})
    smoother = SMOOTHERS[name](config, window)
    return Enhanced(smoother, postprocessing) if postprocessing else smoother


def _temporal_mean(config: dict[str, Any], window: int | None) -> Smoother:
    return TemporalMeanSmoother(**config) if window is None else TemporalMeanSmoother(window)


def _ebsynth(config: dict[str, Any], window: int | None) -> Smoother:
    from stages.smoothing.ebsynth import EbsynthSmoother  # loads the library's binding

    if window is not None:
        config["smooth_index"] = range(-window, window + 1)
    return EbsynthSmoother(**config)


# Frames of a chunk, which is done again after a kill: a frame by guided synthesis can take many seconds.
CHUNKS = {"TemporalMeanSmoother": 8, "EbsynthSmoother": 1}

SMOOTHERS: dict[str, Callable[[dict[str, Any], int | None], Smoother]] = {
    "TemporalMeanSmoother": _temporal_mean,
    "EbsynthSmoother": _ebsynth,
}
