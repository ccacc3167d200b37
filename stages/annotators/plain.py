"""Annotators without weights."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import Field

from stages.annotators import ANNOTATORS, PUBLISHED_SIDE, AnnotatorOptions, Resized
from stages.annotators.controlnet_aux import detector_class, look_at
from stages.base.arrays import Image, Images
from stages.models.weights import Weights


@ANNOTATORS.register
class TileOptions(AnnotatorOptions):
    """The unchanged frame."""

    diffsynth = {"ControlnetImageProcesserTile": {}}
    name: Literal["tile"]

    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> Tile:
        return Tile()


class Tile:
    """Returns frames unchanged."""

    def maps(self, frames: Images) -> Images:
        return frames


@ANNOTATORS.register
class CannyOptions(AnnotatorOptions):
    """Hard edges (OpenCV's Canny)."""

    name: Literal["canny"]
    low_threshold: int = Field(100, ge=0, le=2000)
    """Gradients below this are never edges."""
    high_threshold: int = Field(200, ge=0, le=2000)
    """Gradients above this are always edges."""

    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> Canny:
        return Canny(self.low_threshold, self.high_threshold)


class Canny:
    """Draws white edges on black. Uses OpenCV directly: controlnet_aux's detector only adds resizing."""

    def __init__(self, low: int, high: int):
        self.low, self.high = low, high

    def maps(self, frames: Images) -> Images:
        import cv2

        return np.stack([cv2.cvtColor(cv2.Canny(frame, self.low, self.high), cv2.COLOR_GRAY2RGB) for frame in frames])


@ANNOTATORS.register
class ShuffleOptions(Resized):
    """`style_image` with its contents shuffled: colours and textures without the layout."""

    uses_style_image = True
    diffsynth = {"ControlnetImageProcesserShuffle": {"resolution": PUBLISHED_SIDE}}
    name: Literal["shuffle"]
    seed: int = Field(0, ge=0, lt=2**32)
    """Random seed."""

    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> Shuffle:
        assert style_image is not None, "checked before the stage runs"
        return Shuffle(style_image, self.seed, self.resolution)


class Shuffle:
    """Shuffles the style image with controlnet_aux: one map for all frames."""

    def __init__(self, style_image: np.ndarray, seed: int, resolution: int | None):
        self.style_image, self.seed, self.resolution = style_image, seed, resolution

    @cached_property
    def map(self) -> Image:
        detector = detector_class("ContentShuffleDetector")()
        state = np.random.get_state()
        np.random.seed(self.seed)  # the detector uses NumPy's global generator
        try:
            return look_at(
                self.style_image,
                self.resolution,
                lambda image, side: detector(image, detect_resolution=side, image_resolution=side, output_type="np"),
            )
        finally:
            np.random.set_state(state)

    def maps(self, frames: Images) -> Images:
        return np.repeat(self.map[None], len(frames), axis=0)
