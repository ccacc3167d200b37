"""How control maps are made from frames: the one door to controlnet_aux.

An annotator is built once a process and turns frames into maps. Frames and maps are uint8 RGB [K, H, W, 3].
docs/annotators.md says how to add one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import cv2
import numpy as np

DETECTOR_GRID = 64  # px; controlnet_aux resizes images whose sides are not multiples of this


class Annotator(Protocol):
    """Turns frames into control maps."""

    def maps(self, frames: np.ndarray) -> np.ndarray:
        """Control maps uint8 [K, H, W, 3] of `frames` uint8 [K, H, W, 3]."""


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


class LineartStandard:
    """Lines, as what is darker than its blurred surroundings (controlnet_aux)."""

    def __init__(self, sigma: float = 6.0, threshold: int = 8):
        self.sigma, self.threshold = sigma, threshold
        self.detector = _controlnet_aux("LineartStandardDetector")()

    def maps(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([self._map(frame) for frame in frames])

    def _map(self, frame: np.ndarray) -> np.ndarray:
        # controlnet_aux's own spelling of its option
        return _without_resizing(
            frame,
            lambda image, side: self.detector(
                image,
                guassian_sigma=self.sigma,
                intensity_threshold=self.threshold,
                detect_resolution=side,
                output_type="np",
            ),
        )


class Shuffle:
    """The style image, fitted to the frames and moved about (controlnet_aux): one map for all frames."""

    def __init__(self, style_image: np.ndarray, seed: int = 0):
        detector = _controlnet_aux("ContentShuffleDetector")()
        state = np.random.get_state()
        np.random.seed(seed)  # the detector draws from NumPy's global generator
        try:
            self.map = _without_resizing(
                style_image,
                lambda image, side: detector(image, detect_resolution=side, image_resolution=side, output_type="np"),
            )
        finally:
            np.random.set_state(state)

    def maps(self, frames: np.ndarray) -> np.ndarray:
        return np.repeat(self.map[None], len(frames), axis=0)


def build(name: str, options: dict[str, Any], style_image: np.ndarray | None) -> Annotator:
    """The annotator `name` with `options`. `style_image` uint8 [H, W, 3] has the frames' size; `shuffle` needs it."""
    if name == "shuffle":
        options = {**options, "style_image": style_image}
    return ANNOTATORS[name](**options)


ANNOTATORS: dict[str, Callable[..., Annotator]] = {
    "tile": Tile,
    "canny": Canny,
    "lineart_standard": LineartStandard,
    "shuffle": Shuffle,
}


def _without_resizing(image: np.ndarray, detect: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """`detect(image, shorter side)` on an image padded to sides that controlnet_aux leaves as they are, cut back."""
    height, width = image.shape[:2]
    bottom, right = -height % DETECTOR_GRID, -width % DETECTOR_GRID
    padded = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(detect(padded, min(padded.shape[:2]))[:height, :width])


def _controlnet_aux(name: str) -> Any:
    with _silence():
        import controlnet_aux

        return getattr(controlnet_aux, name)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """controlnet_aux and timm warn of their own affairs when they are imported; users need not know."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
