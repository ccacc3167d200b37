"""Annotators that need no weights."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import Field

from stages.annotators import ANNOTATORS, PUBLISHED_SIDE, AnnotatorOptions, Resized
from stages.annotators.controlnet_aux import detector_class, look_at
from stages.models.weights import Weights


@ANNOTATORS.register
class TileOptions(AnnotatorOptions):
    """The frame itself."""

    diffsynth = {"ControlnetImageProcesserTile": {}}
    name: Literal["tile"]

    def build(self, style_image: np.ndarray | None, weights: Weights | None, device: str) -> Tile:
        return Tile()


class Tile:
    """The frame itself."""

    def maps(self, frames: np.ndarray) -> np.ndarray:
        return frames


@ANNOTATORS.register
class CannyOptions(AnnotatorOptions):
    """Hard edges (OpenCV's Canny)."""

    name: Literal["canny"]
    low_threshold: int = Field(100, ge=0, le=2000)
    """Gradients below this are never an edge."""
    high_threshold: int = Field(200, ge=0, le=2000)
    """Gradients above this always are."""

    def build(self, style_image: np.ndarray | None, weights: Weights | None, device: str) -> Canny:
        return Canny(self.low_threshold, self.high_threshold)


class Canny:
    """White edges on black. OpenCV's own function: controlnet_aux's detector of this name adds only resizing."""

    def __init__(self, low: int, high: int):
        self.low, self.high = low, high

    def maps(self, frames: np.ndarray) -> np.ndarray:
        import cv2

        return np.stack([cv2.cvtColor(cv2.Canny(frame, self.low, self.high), cv2.COLOR_GRAY2RGB) for frame in frames])


@ANNOTATORS.register
class ShuffleOptions(Resized):
    """`style_image` with its contents moved about: its colours and textures without its layout."""

    uses_style_image = True
    diffsynth = {"ControlnetImageProcesserShuffle": {"resolution": PUBLISHED_SIDE}}
    name: Literal["shuffle"]
    seed: int = Field(0, ge=0, lt=2**32)
    """Of NumPy's generator."""

    def build(self, style_image: np.ndarray | None, weights: Weights | None, device: str) -> Shuffle:
        assert style_image is not None, "jobs without one are refused"
        return Shuffle(style_image, self.seed, self.resolution)


class Shuffle:
    """The style image, fitted to the frames and moved about (controlnet_aux): one map for all frames."""

    def __init__(self, style_image: np.ndarray, seed: int, resolution: int | None):
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
