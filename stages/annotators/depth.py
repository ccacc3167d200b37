"""Depth by transformers' depth-estimation models, near is white; over time, without the flicker of per-frame ranges.

Depth is float32 [K, H, W], larger where nearer; its scale is the model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from stages.annotators import ANNOTATORS, Weighted
from stages.annotators.controlnet_aux import quiet
from stages.base.errors import DiffSynthError
from stages.base.paths import WeightsName
from stages.models.weights import Weights, explained, pick_device

NEAREST = 1e-3  # of a metric model's unit (m); what is nearer counts as this near
CONTRAST = 5.0  # how steep the sigmoid is, as published with DiffSynth
METRIC_MODELS = ("zoedepth", "depth_pro", "prompt_depth_anything")  # that do not say so in their configuration


class DepthModelOptions(Weighted):
    """Options of all annotators that run a depth model of transformers."""

    files = ("config.json", "preprocessor_config.json", "model.safetensors")
    model: WeightsName = "Intel/dpt-large"
    """A hub id or a local folder of a depth-estimation model."""
    invert: bool | None = None
    """Does the model give distances, so that near and far must change places? null: metric models do."""

    def network(self, weights: Weights | None, device: str) -> DepthModel:
        assert weights is not None, "see `weights`"
        return DepthModel(weights, device, self.invert)


@ANNOTATORS.register
class DepthOptions(DepthModelOptions):
    """Depth by a transformers model (DPT, Depth Anything, ZoeDepth, ...), near is white."""

    diffsynth = {"ControlnetImageProcesserDepth": {"normalize": "max"}}
    name: Literal["depth"]
    normalize: Literal["frame", "video", "max"] = "frame"
    """What fills the range from black to white: each frame; the whole video, which does not flicker; max: 0 to each
    frame's nearest point, as DiffSynth did."""

    def build(self, style_image: np.ndarray | None, weights: Weights | None, device: str) -> Depth | DepthOverTime:
        network = self.network(weights, device)
        return DepthOverTime(network, "range") if self.normalize == "video" else Depth(network, self.normalize)


@ANNOTATORS.register
class DepthVideoOptions(DepthModelOptions):
    """As depth, each frame shifted so that its mean is the video's."""

    diffsynth = {"VideoControlnetImageProcesserDepth": {"normalize": "max"}}
    name: Literal["depth_video"]
    normalize: Literal["frame", "max"] = "frame"
    """What fills a frame's range before it is shifted: its farthest to its nearest point; max: 0 to its nearest."""
    sigmoid: bool = False
    """More contrast about `threshold`."""
    threshold: float = Field(1.0, allow_inf_nan=False)
    """The grey level, in halves of white, that the contrast is raised about."""

    def build(self, style_image: np.ndarray | None, weights: Weights | None, device: str) -> DepthOverTime:
        return DepthOverTime(self.network(weights, device), "mean", self.normalize, self.sigmoid, self.threshold)


class DepthModel:
    """A network that sees depth, a batch of frames at a time."""

    def __init__(self, weights: Weights, device: str = "auto", invert: bool | None = None):
        self.weights, self.device, self._invert = weights, device, invert

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """What prepares images, and the network."""
        folder = self.weights.folder()
        with quiet(), explained(self.weights.key, f"{folder} (a depth model)"):
            from transformers import AutoImageProcessor, AutoModelForDepthEstimation
            from transformers.utils import logging

            logging.set_verbosity_error()
            logging.disable_progress_bar()
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            network, info = AutoModelForDepthEstimation.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        if missing := info["missing_keys"]:  # transformers would fill them with random numbers
            raise DiffSynthError(
                f"{self.weights.key}: {folder} lacks {len(missing)} tensors, {sorted(missing)[0]} for one",
                "is it a depth model?",
            )
        return processor, network.to(pick_device(self.device)).eval()

    @property
    def invert(self) -> bool:
        """Does the network give distances?"""
        if self._invert is not None:
            return self._invert
        config = self.parts[1].config
        return getattr(config, "depth_estimation_type", "") == "metric" or config.model_type in METRIC_MODELS

    def depth(self, frames: np.ndarray) -> np.ndarray:
        """Depth float32 [K, H, W] of frames uint8 [K, H, W, 3]."""
        import torch

        sizes = [frames.shape[1:3]] * len(frames)
        processor, network = self.parts
        with quiet(), torch.inference_mode():
            inputs = processor(images=list(frames), return_tensors="pt").to(network.device)
            finish = processor.post_process_depth_estimation
            takes = inspect.signature(finish).parameters
            given = {name: sizes for name in ("source_sizes", "target_sizes") if name in takes}
            found = [item["predicted_depth"].cpu().float().numpy() for item in finish(network(**inputs), **given)]
        depth = np.stack(found).reshape(frames.shape[:3])
        # ControlNets for depth have learned from MiDaS, which gives the inverse of distance.
        return 1 / np.maximum(depth, NEAREST) if self.invert else depth


class Depth:
    """Each frame's depth in grey levels, its nearest point white. `normalize`: see GREY_LEVELS."""

    def __init__(self, model: DepthModel, normalize: Literal["frame", "max"]):
        self.model, self.normalize = model, normalize

    def maps(self, frames: np.ndarray) -> np.ndarray:
        return _rgb(GREY_LEVELS[self.normalize](self.model.depth(frames)))


class DepthOverTime:
    """Depth whose range or mean is the video's, by `common`.

    range: from the video's farthest (black) to its nearest point (white). mean: each frame has its own range (see
    GREY_LEVELS), and is shifted so that its mean is the video's; with `sigmoid`, grey v becomes
    255 / (1 + exp(-5 (v / 127.5 - threshold))).
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

    def look(self, frames: np.ndarray) -> np.ndarray:
        depth = self.model.depth(frames)
        return depth if self.common == "range" else GREY_LEVELS[self.normalize](depth)

    def measure(self, notes: np.ndarray) -> np.ndarray:
        """Lowest, highest and mean depth of each frame."""
        every = (1, 2)
        return np.stack([notes.min(every), notes.max(every), notes.mean(every, dtype=np.float64)], axis=1)

    def draw(
        self, notes: Sequence[np.ndarray], start: int, stop: int, measures: np.ndarray, size: tuple[int, int]
    ) -> np.ndarray:
        return np.stack([self.draw_still(notes[index], measures, size) for index in range(start, stop)])

    def draw_still(self, note: np.ndarray, measures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        low, high, mean = measures[:, 0].min(), measures[:, 1].max(), measures[:, 2].mean()
        if self.common == "range":
            return _rgb(_levels(note, low, high))
        grey = note - note.mean(dtype=np.float64) + mean
        if self.sigmoid:
            from scipy.special import expit

            grey = 255 * expit(CONTRAST * (grey / 127.5 - self.threshold))
        return _rgb(np.floor(grey) if self.normalize == "max" else grey)


def _own_range(depth: np.ndarray) -> np.ndarray:
    return np.stack([_levels(frame, float(frame.min()), float(frame.max())) for frame in depth])


def _up_to_max(depth: np.ndarray) -> np.ndarray:
    """Depth × 255 / its maximum in each frame, truncated, as transformers' pipeline of 2023 gave it."""
    depth = depth.clip(0)  # resizing can overshoot, and negative numbers would become white
    nearest = depth.max(axis=(1, 2), keepdims=True)
    return np.floor(depth * 255 / np.where(nearest > 0, nearest, 1))


GREY_LEVELS = {"frame": _own_range, "max": _up_to_max}
"""Depth [K, H, W] as float32 grey levels, from each frame's farthest or from 0 (max) to its nearest point."""


def _levels(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """`low`..`high` as 0..255, float32; black if there is no range."""
    return ((depth - low) * (255 / (high - low) if high > low else 0)).astype(np.float32)


def _rgb(grey: np.ndarray) -> np.ndarray:
    """Grey levels [..., H, W], clipped and rounded, as uint8 [..., H, W, 3]."""
    return np.repeat(grey.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=-1)
