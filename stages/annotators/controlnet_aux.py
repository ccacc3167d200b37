"""The one door to controlnet_aux: its detectors by our names, with our options, without its resizing and its noise."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stages.models.weights import Weights, explained, no_logs, pick_device

GRID = 64  # px; images whose sides are not multiples of this are resized by controlnet_aux

# Our name: controlnet_aux's class, and its words for our options.
DETECTORS: dict[str, tuple[str, dict[str, str]]] = {
    "lineart_standard": ("LineartStandardDetector", {"sigma": "guassian_sigma", "threshold": "intensity_threshold"}),
    "hed": ("HEDdetector", {}),
    "softedge_pidi": ("PidiNetDetector", {}),
    "lineart": ("LineartDetector", {}),
    "lineart_anime": ("LineartAnimeDetector", {}),
    "mlsd": ("MLSDdetector", {"score": "thr_v", "distance": "thr_d"}),
    "normalbae": ("NormalBaeDetector", {}),
    "midas": ("MidasDetector", {}),
    "zoe": ("ZoeDetector", {"gamma": "gamma_corrected"}),
    "leres": ("LeresDetector", {"remove_near": "thr_a", "remove_background": "thr_b"}),
    "teed": ("TEEDdetector", {"steps": "safe_steps"}),
    "anyline": ("AnylineDetector", {"sigma": "guassian_sigma", "threshold": "intensity_threshold"}),
    "mediapipe_face": ("MediapipeFaceDetector", {}),
}


class Detector:
    """A detector of controlnet_aux, frame by frame: none of them takes more than one."""

    def __init__(
        self, name: str, weights: Weights | None = None, device: str = "auto", resolution: int | None = None,
        **options: Any,
    ):  # fmt: skip
        self.name, self.weights, self.device, self.resolution = name, weights, device, resolution
        words = DETECTORS[name][1]
        self.options = {words.get(key, key): value for key, value in options.items()} | {"output_type": "np"}

    @cached_property
    def detector(self) -> Any:
        return load(self.name, DETECTORS[self.name][0], self.weights, self.device)

    @cached_property
    def sizes(self) -> list[str]:
        takes = inspect.signature(self.detector.__call__).parameters
        return [size for size in ("detect_resolution", "image_resolution") if size in takes]

    def maps(self, frames: np.ndarray) -> np.ndarray:
        hush = _closed_stderr if self.name == "mediapipe_face" else quiet
        with hush():
            return np.stack([look_at(frame, self.resolution, self._detect) for frame in frames])

    def _detect(self, image: np.ndarray, side: int) -> np.ndarray:
        return self.detector(image, **dict.fromkeys(self.sizes, side), **self.options)


def load(name: str, kind: str, weights: Weights | None, device: str) -> Any:
    """The detector of controlnet_aux's class `kind` for the annotator `name`, on `device`."""
    make = detector_class(kind)
    if weights is None:
        return make()
    folder = weights.folder()
    what = f"{', '.join(str(folder / file) for file in weights.files)} (weights of {name!r})"
    with quiet(), _no_arguments(), explained(weights.key, what, "is the download complete, and the right file?"):
        return make.from_pretrained(str(folder), filename=weights.files[0]).to(pick_device(device))


def detector_class(name: str) -> Any:
    """controlnet_aux's class of this name."""
    with quiet():
        import controlnet_aux

        return getattr(controlnet_aux, name)


def look_at(image: np.ndarray, resolution: int | None, detect: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """`detect(image, shorter side)`, in the size of the image.

    With a `resolution`, controlnet_aux resizes the image to it. Without, the image is padded to sides that
    controlnet_aux leaves as they are, and the map cut back.
    """
    height, width = image.shape[:2]
    if resolution is not None:
        return cv2.resize(detect(image, resolution), (width, height), interpolation=cv2.INTER_LINEAR)
    padded = pad(image)
    return np.ascontiguousarray(detect(padded, min(padded.shape[:2]))[:height, :width])


def pad(image: np.ndarray) -> np.ndarray:
    """The image with its last rows and columns repeated until its sides are multiples of GRID."""
    height, width = image.shape[:2]
    return cv2.copyMakeBorder(image, 0, -height % GRID, 0, -width % GRID, cv2.BORDER_REPLICATE)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """controlnet_aux and timm speak of their own affairs; users need not know."""
    with contextlib.redirect_stdout(io.StringIO()), no_logs():
        yield


@contextlib.contextmanager
def _closed_stderr() -> Iterator[None]:
    """MediaPipe's C++ writes to the file behind sys.stderr, past Python."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nothing, quiet():
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@contextlib.contextmanager
def _no_arguments() -> Iterator[None]:
    """LeReS parses the command line of whatever program loads it."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = arguments
