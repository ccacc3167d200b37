"""Annotators that need no weights."""

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np

from stages.annotators.controlnet_aux import detector_class, look_at


class Tile:
    """The frame itself."""

    def maps(self, frames: np.ndarray) -> np.ndarray:
        return frames


class Canny:
    """White edges on black. OpenCV's own function: controlnet_aux's detector of this name adds only resizing."""

    def __init__(self, low_threshold: int = 100, high_threshold: int = 200):
        self.low, self.high = low_threshold, high_threshold

    def maps(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([cv2.cvtColor(cv2.Canny(frame, self.low, self.high), cv2.COLOR_GRAY2RGB) for frame in frames])


class Shuffle:
    """The style image, fitted to the frames and moved about (controlnet_aux): one map for all frames."""

    def __init__(self, style_image: np.ndarray, seed: int = 0, resolution: int | None = None):
        self.style_image, self.seed, self.resolution = style_image, seed, resolution

    @cached_property
    def map(self) -> np.ndarray:
        detector = detector_class("ContentShuffleDetector")()
        state = np.random.get_state()
        np.random.seed(self.seed)  # the detector draws from NumPy's global generator
        try:
            return look_at(
                self.style_image,
                self.resolution,
                lambda image, side: detector(image, detect_resolution=side, image_resolution=side, output_type="np"),
            )
        finally:
            np.random.set_state(state)

    def maps(self, frames: np.ndarray) -> np.ndarray:
        return np.repeat(self.map[None], len(frames), axis=0)
