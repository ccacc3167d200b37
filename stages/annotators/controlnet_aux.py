"""Annotators based on controlnet_aux's detectors, without their resizing and terminal output."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from stages.annotators import ANNOTATORS, AnnotatorOptions, Resized, Weighted
from stages.base.arrays import Image, Images
from stages.base.paths import WeightsName
from stages.models.weights import Weights, explained, no_logs, pick_device

LINES = {"sigma": "guassian_sigma", "threshold": "intensity_threshold"}  # controlnet_aux's names

CHECK_FILE = "check that the download is complete and that it is the right file"
GRID = 64  # px; controlnet_aux resizes images whose sides are not multiples of this


class DetectorOptions(AnnotatorOptions):
    """Options of detectors of controlnet_aux."""

    detector: ClassVar[str]
    """Name of controlnet_aux's class."""
    words: ClassVar[dict[str, str]] = {}
    """controlnet_aux's names of options that have another name here."""
    noisy: ClassVar[bool] = False
    """Whether its native code writes to stderr."""

    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> Detector:
        return Detector(self, weights, device)


class Network(Weighted, Resized, DetectorOptions):
    """Options of detectors with weights on the hub."""


@ANNOTATORS.register
class LineartStandard(DetectorOptions):
    """Dark lines found by subtracting a blurred copy of the frame."""

    detector, words = "LineartStandardDetector", LINES
    name: Literal["lineart_standard"]
    sigma: float = Field(6.0, gt=0, le=100)
    """Standard deviation of the blur in pixels."""
    threshold: int = Field(8, ge=0, le=255)
    """Ignore differences below this, in grey levels, when setting the contrast."""


@ANNOTATORS.register
class MediapipeFace(Resized, DetectorOptions):
    """Faces (MediaPipe's face mesh); needs `pip install 'diffsynth-cli[mediapipe]'`."""

    detector, noisy = "MediapipeFaceDetector", True
    requires, extra = "mediapipe.python.solutions", "mediapipe"
    name: Literal["mediapipe_face"]
    max_faces: int = Field(1, ge=1, le=100)
    min_confidence: float = Field(0.5, ge=0, le=1)
    """Minimum confidence of a face."""


@ANNOTATORS.register
class Hed(Network):
    """Soft edges (HED)."""

    detector = "HEDdetector"
    diffsynth = {"ControlnetImageProcesserHED": {}}
    files = ("ControlNetHED.pth",)
    name: Literal["hed"]
    safe: bool = False
    """Use few grey levels, to hide details of the frame."""
    scribble: bool = False
    """Thin lines, like a sketch."""


@ANNOTATORS.register
class SoftedgePidi(Network):
    """Soft edges (PiDiNet)."""

    detector = "PidiNetDetector"
    files = ("table5_pidinet.pth",)
    name: Literal["softedge_pidi"]
    safe: bool = False
    """Use few grey levels, to hide details of the frame."""
    scribble: bool = False
    """Thin lines, like a sketch."""


@ANNOTATORS.register
class Lineart(Network):
    """Line drawing of a photograph."""

    detector = "LineartDetector"
    files = ("sk_model.pth", "sk_model2.pth")
    name: Literal["lineart"]
    coarse: bool = False
    """Draw fewer lines."""


@ANNOTATORS.register
class LineartAnime(Network):
    """Line drawing of an anime frame."""

    detector = "LineartAnimeDetector"
    files = ("netG.pth",)
    name: Literal["lineart_anime"]


@ANNOTATORS.register
class Mlsd(Network):
    """Straight lines."""

    detector, words = "MLSDdetector", {"score": "thr_v", "distance": "thr_d"}
    files = ("mlsd_large_512_fp32.pth",)
    name: Literal["mlsd"]
    score: float = Field(0.1, ge=0, le=1)
    """Minimum score of a line."""
    distance: float = Field(0.1, ge=0, le=20)
    """Minimum length of a line, in the network's units."""


@ANNOTATORS.register
class NormalBae(Network):
    """Surface normals."""

    detector = "NormalBaeDetector"
    files = ("scannet.pt",)
    name: Literal["normalbae"]


@ANNOTATORS.register
class Midas(Network):
    """Depth (MiDaS 3), near is white."""

    detector = "MidasDetector"
    files = ("dpt_hybrid-midas-501f0c75.pt",)
    name: Literal["midas"]


@ANNOTATORS.register
class Zoe(Network):
    """Depth (ZoeDepth, in the version used for ControlNet), near is white."""

    detector, words = "ZoeDetector", {"gamma": "gamma_corrected"}
    files = ("ZoeD_M12_N.pt",)
    name: Literal["zoe"]
    gamma: bool = False
    """Darken distant areas."""


@ANNOTATORS.register
class Leres(Network):
    """Depth (LeReS), near is white."""

    detector, words = "LeresDetector", {"remove_near": "thr_a", "remove_background": "thr_b"}
    files = ("res101.pth", "latest_net_G.pth")
    name: Literal["leres"]
    remove_near: float = Field(0, ge=0, le=100)
    """Depth range to cut off, in per cent."""
    remove_background: float = Field(0, ge=0, le=100)
    """Depth range to cut off, in per cent."""
    boost: bool = False
    """Also process crops of the frame: finer, but many times slower."""


@ANNOTATORS.register
class Teed(Network):
    """Edges (TEED)."""

    detector, words = "TEEDdetector", {"steps": "safe_steps"}
    files = ("5_model.pth",)
    name: Literal["teed"]
    model: WeightsName = "fal-ai/teed"
    steps: int = Field(2, ge=0, le=10)
    """Grey levels above black (0 = all)."""


@ANNOTATORS.register
class Anyline(Network):
    """Edges and lines (TEED joined with lineart_standard)."""

    detector, words = "AnylineDetector", LINES
    files = ("Anyline/MTEED.pth",)
    name: Literal["anyline"]
    model: WeightsName = "TheMistoAI/MistoLine"
    sigma: float = Field(2.0, gt=0, le=100)
    """Standard deviation of the blur in pixels."""
    threshold: int = Field(3, ge=0, le=255)
    """Ignore differences below this, in grey levels, when setting the contrast."""


class Detector:
    """Applies a detector of controlnet_aux to one frame at a time."""

    def __init__(self, options: DetectorOptions, weights: Weights | None, device: str):
        self.settings, self.weights, self.device = options, weights, device
        self.resolution = options.resolution if isinstance(options, Resized) else None
        given = options.model_dump(exclude={"name", "model", "resolution"})
        self.options = {options.words.get(key, key): value for key, value in given.items()} | {"output_type": "np"}

    @cached_property
    def detector(self) -> Any:
        return load(self.settings.name, self.settings.detector, self.weights, self.device)

    @cached_property
    def sizes(self) -> list[str]:
        """The detector's parameters for sizes."""
        takes = inspect.signature(self.detector.__call__).parameters
        return [size for size in ("detect_resolution", "image_resolution") if size in takes]

    def maps(self, frames: Images) -> Images:
        hush = _closed_stderr if self.settings.noisy else quiet
        with hush():
            return np.stack([look_at(frame, self.resolution, self._detect) for frame in frames])

    def _detect(self, image: Image, side: int) -> Image:
        found: Image = self.detector(image, **dict.fromkeys(self.sizes, side), **self.options)
        return found


def load(name: str, kind: str, weights: Weights | None, device: str) -> Any:
    """Load a detector of controlnet_aux's class `kind` for the annotator `name` on `device`."""
    make = detector_class(kind)
    if weights is None:
        return make()
    folder = weights.folder()
    what = f"{', '.join(str(folder / file) for file in weights.files)} (weights of {name!r})"
    with (
        quiet(),
        _no_arguments(),
        explained(weights.key, what, CHECK_FILE),
    ):
        return make.from_pretrained(str(folder), filename=weights.files[0]).to(pick_device(device))


def detector_class(name: str) -> Any:
    """Return the class of controlnet_aux with this name."""
    with quiet():
        import controlnet_aux

        return getattr(controlnet_aux, name)


def look_at(image: Image, resolution: int | None, detect: Callable[[Image, int], Image]) -> Image:
    """Run `detect(image, shorter side)` and return the map in the size of the image.

    With a `resolution`, controlnet_aux resizes the image. Without, the image is padded to a size that controlnet_aux
    does not resize, and the map is cropped.
    """
    import cv2

    height, width = image.shape[:2]
    if resolution is not None:
        small = detect(image, resolution)
        return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    padded = pad(image)
    return np.ascontiguousarray(detect(padded, min(padded.shape[:2]))[:height, :width])


def pad(image: Image) -> Image:
    """Repeat the last rows and columns until the sides are multiples of GRID."""
    import cv2

    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, 0, -height % GRID, 0, -width % GRID, cv2.BORDER_REPLICATE)
    return np.asarray(padded, np.uint8)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output of controlnet_aux and timm, which does not concern users."""
    with contextlib.redirect_stdout(io.StringIO()), no_logs():
        yield


@contextlib.contextmanager
def _closed_stderr() -> Iterator[None]:
    """Also suppress what MediaPipe's C++ code writes directly to stderr."""
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
    """Hide the command line, which LeReS would parse."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = arguments
