"""A smoother and an annotator for diffsynth: an example of a package that adds to it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from stages.annotators import AnnotatorOptions
from stages.models.weights import Weights
from stages.smoothers import Frames, SmootherOptions


class Median(SmootherOptions):
    """Median over the frames around each frame: removes what flashes up for a frame or two."""

    name = "MedianSmoother"
    chunk = 8
    radius: int = Field(2, ge=1, le=16)
    """Frames to each side."""

    def build(self, guides: Frames, styles: Frames, device: str) -> MedianSmoother:
        return MedianSmoother(styles, self.radius)


class MedianSmoother:
    """Median over frames i-radius..i+radius, as far as they exist."""

    def __init__(self, styles: Frames, radius: int):
        self.styles, self.radius = styles, radius

    def smooth(self, start: int, stop: int) -> np.ndarray:
        """Frames start..stop-1, smoothed, uint8 [stop-start, H, W, 3]."""
        first, end = max(start - self.radius, 0), min(stop + self.radius, len(self.styles))
        near = np.stack([self.styles[index] for index in range(first, end)])
        windows = [
            near[max(index - self.radius - first, 0) : index + self.radius + 1 - first] for index in range(start, stop)
        ]
        return np.stack([np.rint(np.median(window, axis=0)).astype(np.uint8) for window in windows])


class Brightness(AnnotatorOptions):
    """Brightness, for ControlNets that colour a video."""

    name: Literal["brightness"]
    gamma: float = Field(1.0, ge=0.1, le=10)
    """Above 1: darker middle tones."""

    def build(self, style_image: np.ndarray | None, weights: Weights | None, device: str) -> BrightnessAnnotator:
        return BrightnessAnnotator(self.gamma)


class BrightnessAnnotator:
    """The luma of each frame (ITU-R BT.601), as grey RGB."""

    def __init__(self, gamma: float):
        self.gamma = gamma

    def maps(self, frames: np.ndarray) -> np.ndarray:
        """Control maps uint8 [K, H, W, 3] of frames uint8 [K, H, W, 3]."""
        luma = (frames @ np.array([0.299, 0.587, 0.114])) / 255
        grey = np.rint(255 * luma**self.gamma).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
