"""How control maps are made from frames. docs/annotators.md says how to add an annotator.

An annotator is built once a map. Frames and maps are uint8 RGB [K, H, W, 3].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from stages.annotators.controlnet_aux import DETECTORS, Detector
from stages.annotators.depth import Depth, DepthOverTime
from stages.annotators.dwpose import Dwpose
from stages.annotators.plain import Canny, Shuffle, Tile
from stages.annotators.pose import Openpose, OpenposeOverTime
from stages.models.weights import Weights


class Annotator(Protocol):
    """Turns frames into control maps."""

    def maps(self, frames: np.ndarray) -> np.ndarray:
        """Control maps uint8 [K, H, W, 3] of `frames` uint8 [K, H, W, 3]."""


@runtime_checkable
class OverTime(Protocol):
    """Turns a video into control maps in two passes: it looks at every frame alone, then draws in the light of all."""

    MEASURES: int

    def note_shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of what is noted of a frame of this size."""

    def look(self, frames: np.ndarray) -> np.ndarray:
        """Notes float32 [K, *note_shape] of frames. Only this needs weights."""

    def measure(self, notes: np.ndarray) -> np.ndarray:
        """What must be known of all frames to draw one, float64 [K, MEASURES], of notes [K, *note_shape]."""

    def draw(
        self, notes: Sequence[np.ndarray], start: int, stop: int, measures: np.ndarray, size: tuple[int, int]
    ) -> np.ndarray:
        """Maps uint8 [stop - start, *size, 3] of frames start..stop-1 of the video with these notes and measures."""

    def draw_still(self, note: np.ndarray, measures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The map uint8 [*size, 3] of an image that is no frame of the video with these measures."""


def build(
    name: str, options: dict[str, Any], style_image: np.ndarray | None = None, weights: Weights | None = None,
    device: str = "auto",
) -> Annotator | OverTime:  # fmt: skip
    """The annotator `name` with `options`, its networks on `device`.

    `style_image` uint8 [H, W, 3] has the frames' size; `shuffle` needs it. `weights`: what those with weights read.
    """
    if name in PLAIN:
        return PLAIN[name](**options, **({"style_image": style_image} if name == "shuffle" else {}))
    if name == "depth" and options.get("normalize") == "video":
        model = {key: value for key, value in options.items() if key != "normalize"}
        return DepthOverTime("range", **model, weights=weights, device=device)
    return ANNOTATORS[name](**options, **({} if weights is None else {"weights": weights}), device=device)


PLAIN: dict[str, Callable[..., Annotator]] = {"tile": Tile, "canny": Canny, "shuffle": Shuffle}
DETECTED: dict[str, Callable[..., Annotator]] = {name: partial(Detector, name) for name in DETECTORS}
ANNOTATORS: dict[str, Callable[..., Annotator | OverTime]] = {
    **PLAIN,
    **DETECTED,
    "depth": Depth,
    "depth_video": partial(DepthOverTime, "mean"),
    "openpose": Openpose,
    "openpose_video": OpenposeOverTime,
    "dwpose": Dwpose,
}
