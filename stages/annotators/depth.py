"""Depth by transformers' depth-estimation models, per frame or consistent over the video.

Depth is float32 [K, H, W] and larger where nearer, in the model's own scale.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.annotators import ANNOTATORS, Weighted
from stages.annotators.controlnet_aux import quiet
from stages.annotators.pretrained import pretrained
from stages.base.arrays import Floats, Image, Images
from stages.base.paths import WeightsName
from stages.models.weights import Weights

NEAREST = 1e-3  # m, smallest distance of metric models
CONTRAST = 5.0  # steepness of the sigmoid, as published with DiffSynth
METRIC_MODELS = ("zoedepth", "depth_pro", "prompt_depth_anything")  # whose configuration does not say so


class DepthModelOptions(Weighted):
    """Options of all annotators that run a depth model of transformers."""

    files = ("config.json", "preprocessor_config.json", "model.safetensors")
    model: WeightsName = "Intel/dpt-large"
    """Hub id or local folder of a depth-estimation model."""
    invert: bool | None = None
    """Whether the model returns distances, to be inverted (null = if it is a metric model)."""

    def network(self, weights: Weights | None, device: str) -> DepthModel:
        assert weights is not None, "see `weights`"
        return DepthModel(weights, device, self.invert)


@ANNOTATORS.register
class DepthOptions(DepthModelOptions):
    """Depth by a transformers model (DPT, Depth Anything, ZoeDepth, ...), near is white."""

    diffsynth = {"ControlnetImageProcesserDepth": {"normalize": "max"}}
    name: Literal["depth"]
    normalize: Literal["frame", "video", "max"] = "frame"
    """Range mapped to black..white: that of each frame, of the whole video (no flicker), or 0 to each frame's nearest
    point (max, as in DiffSynth)."""

    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> Depth | VideoDepth:
        network = self.network(weights, device)
        return VideoDepth(network, "range") if self.normalize == "video" else Depth(network, self.normalize)


@ANNOTATORS.register
class DepthVideoOptions(DepthModelOptions):
    """Like depth, with the mean of each frame shifted to the mean of the video."""

    diffsynth = {"VideoControlnetImageProcesserDepth": {"normalize": "max"}}
    name: Literal["depth_video"]
    normalize: Literal["frame", "max"] = "frame"
    """Range mapped to black..white before shifting: that of the frame, or 0 to its nearest point (max)."""
    sigmoid: bool = False
    """Increase the contrast around `threshold`."""
    threshold: float = Field(1.0, allow_inf_nan=False)
    """Grey level of the highest contrast; 1 is mid-grey."""

    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> VideoDepth:
        return VideoDepth(self.network(weights, device), "mean", self.normalize, self.sigmoid, self.threshold)


class DepthModel:
    """A network that estimates the depth of a batch of frames."""

    def __init__(self, weights: Weights, device: str = "auto", invert: bool | None = None):
        self.weights, self.device, self._invert = weights, device, invert

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """The image processor and the network."""
        return pretrained(self.weights, "AutoModelForDepthEstimation", "a depth-estimation model", self.device)

    @property
    def invert(self) -> bool:
        """Whether the network returns distances."""
        if self._invert is not None:
            return self._invert
        config = self.parts[1].config
        return getattr(config, "depth_estimation_type", "") == "metric" or config.model_type in METRIC_MODELS

    def depth(self, frames: Images) -> Floats:
        """Estimate depth float32 [K, H, W] of frames uint8 [K, H, W, 3]."""
        import torch

        sizes = [frames.shape[1:3]] * len(frames)
        processor, network = self.parts
        with quiet(), torch.inference_mode():
            inputs = processor(images=list(frames), return_tensors="pt").to(network.device)
            finish = processor.post_process_depth_estimation
            takes = inspect.signature(finish).parameters
            given = {name: sizes for name in ("source_sizes", "target_sizes") if name in takes}
            found = [item["predicted_depth"].cpu().float().numpy() for item in finish(network(**inputs), **given)]
        depth: Floats = np.stack(found).reshape(frames.shape[:3])
        # Depth ControlNets were trained on MiDaS, which returns inverse distances.
        return np.asarray(1 / np.maximum(depth, NEAREST), np.float32) if self.invert else depth


class Depth:
    """Depth per frame; the nearest point is white. `normalize` is a key of GREY_LEVELS."""

    def __init__(self, model: DepthModel, normalize: Literal["frame", "max"]):
        self.model, self.normalize = model, normalize

    def maps(self, frames: Images) -> Images:
        return _rgb(GREY_LEVELS[self.normalize](self.model.depth(frames)))


class VideoDepth:
    """Depth with the range or the mean of the whole video.

    With `common` = "range", maps go from the video's farthest (black) to its nearest point (white). With "mean", each
    frame has its own range (see GREY_LEVELS) and is shifted to the mean of the video; with `sigmoid`, grey v then
    becomes 255 / (1 + exp(-5 (v / 127.5 - threshold))).
    """

    MEASURES = 3

    def __init__(
        self,
        model: DepthModel,
        common: Literal["range", "mean"],
        normalize: Literal["frame", "max"] = "frame",
        sigmoid: bool = False,
        threshold: float = 1.0,
    ):
        self.common, self.normalize, self.sigmoid, self.threshold = common, normalize, sigmoid, threshold
        self.model = model

    def note_shape(self, height: int, width: int) -> tuple[int, ...]:
        return height, width

    def look(self, frames: Images) -> Floats:
        depth = self.model.depth(frames)
        return depth if self.common == "range" else GREY_LEVELS[self.normalize](depth)

    def measure(self, notes: Floats) -> NDArray[np.float64]:
        """Return the lowest, highest and mean depth of each frame."""
        every = (1, 2)
        return np.stack([notes.min(every), notes.max(every), notes.mean(every, dtype=np.float64)], axis=1)

    def draw(
        self, notes: Sequence[Floats], start: int, stop: int, measures: NDArray[np.float64], size: tuple[int, int]
    ) -> Images:
        return np.stack([self.draw_still(notes[index], measures, size) for index in range(start, stop)])

    def draw_still(self, note: Floats, measures: NDArray[np.float64], size: tuple[int, int]) -> Image:
        low, high, mean = measures[:, 0].min(), measures[:, 1].max(), measures[:, 2].mean()
        if self.common == "range":
            return _rgb(_levels(note, low, high))
        grey = note - note.mean(dtype=np.float64) + mean
        if self.sigmoid:
            from scipy.special import expit

            grey = 255 * expit(CONTRAST * (grey / 127.5 - self.threshold))
        return _rgb(np.floor(grey) if self.normalize == "max" else grey)


def _own_range(depth: Floats) -> Floats:
    return np.stack([_levels(frame, float(frame.min()), float(frame.max())) for frame in depth])


def _up_to_max(depth: Floats) -> Floats:
    """Scale each frame's maximum to 255 and truncate, like transformers' pipeline of 2023."""
    depth = depth.clip(0)  # resizing can overshoot, and negative values would become white
    nearest = depth.max(axis=(1, 2), keepdims=True)
    return np.floor(depth * 255 / np.where(nearest > 0, nearest, 1))


GREY_LEVELS = {"frame": _own_range, "max": _up_to_max}
"""Convert depth [K, H, W] to float32 grey levels, from each frame's farthest point or from 0 (max) to its nearest."""


def _levels(depth: Floats, low: float, high: float) -> Floats:
    """Map `low`..`high` to 0..255, float32; black if the range is empty."""
    levels: Floats = ((depth - low) * (255 / (high - low) if high > low else 0)).astype(np.float32)
    return levels


def _rgb(grey: NDArray[np.floating]) -> Images:
    """Clip and round grey levels [..., H, W] to uint8 [..., H, W, 3]."""
    return np.repeat(grey.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=-1)
