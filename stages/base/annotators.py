"""The annotators that a job may name: one model each, with its options and the files that it needs.

How they are run is the business of `stages.annotators`.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from stages.base.mistakes import Strict
from stages.base.paths import InputFile, WeightsName

PUBLISHED_SIDE = 512  # px; the shorter side at which some of DiffSynth's annotators look at frames

# DiffSynth's own names: our annotator, with the options that make it do what DiffSynth did.
DIFFSYNTH_ANNOTATORS: dict[str, dict[str, str | int]] = {
    "ControlnetImageProcesserDepth": {"name": "depth", "normalize": "max"},
    "ControlnetImageProcesserHED": {"name": "hed"},
    "ControlnetImageProcesserShuffle": {"name": "shuffle", "resolution": PUBLISHED_SIDE},
    "ControlnetImageProcesserTile": {"name": "tile"},
    "ControlnetImageProcesserPose": {"name": "openpose"},
    "VideoControlnetImageProcesserOpenpose": {"name": "openpose_video", "resolution": PUBLISHED_SIDE},
    "VideoControlnetImageProcesserDepth": {"name": "depth_video", "normalize": "max"},
}


class AnnotatorOptions(Strict):
    """What all annotators share."""

    uses_style_image: ClassVar[bool] = False
    """Does it work on the job's `style_image`?"""


class Resized(AnnotatorOptions):
    """What controlnet_aux's detectors share."""

    resolution: int | None = Field(None, ge=64, le=8192)
    """Look at images whose shorter side is this many pixels; null: at the images as they are."""


# --- without weights ------------------------------------------------------------------------------------


class Canny(AnnotatorOptions):
    """Hard edges (OpenCV's Canny)."""

    name: Literal["canny"]
    low_threshold: int = Field(100, ge=0, le=2000)
    """Gradients below this are never an edge."""
    high_threshold: int = Field(200, ge=0, le=2000)
    """Gradients above this always are."""


class LineartStandard(AnnotatorOptions):
    """Dark lines found by subtracting a blurred copy of the frame."""

    name: Literal["lineart_standard"]
    sigma: float = Field(6.0, gt=0, le=100)
    """Blur, in pixels."""
    threshold: int = Field(8, ge=0, le=255)
    """Differences below this, in grey levels, do not count when contrast is set."""


class Shuffle(Resized):
    """`style_image` with its contents moved about: its colours and textures without its layout."""

    uses_style_image = True
    name: Literal["shuffle"]
    seed: int = Field(0, ge=0, lt=2**32)
    """Of NumPy's generator."""


class Tile(AnnotatorOptions):
    """The frame itself."""

    name: Literal["tile"]


MapValue = Annotated[float, Field(ge=-1e30, le=1e30)]  # float32, with room for differences


class MapFiles(AnnotatorOptions):
    """Maps made elsewhere, a renderer's depth pass for example."""

    name: Literal["file"]
    path: InputFile = Field(min_length=1)
    """A video or a folder of images, one a frame."""
    references: InputFile | None = None
    """The same for `frames_reference`, one image each."""
    near: MapValue | None = None
    """The value in the file that becomes white; with `far`."""
    far: MapValue | None = None
    """The value that becomes black. Left out, 8- and 16-bit images fill their range, and of EXR files 0..1 counts."""
    invert: bool = False
    """White becomes black."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> MapFiles:
        if (self.near is None) != (self.far is None):
            raise ValueError("near and far go together")
        if self.near is not None and self.far is not None and math.isclose(self.near, self.far, rel_tol=1e-6):
            raise ValueError("near and far are the same")
        return self


# --- with weights ---------------------------------------------------------------------------------------


class Weighted(AnnotatorOptions):
    """What annotators with weights share. `files`: what is read of the model, laid out as it was published."""

    files: ClassVar[tuple[str, ...]]

    model: WeightsName = "lllyasviel/Annotators"
    """A hub id, or a local folder with the same files."""


class Detector(Weighted, Resized):
    """A detector whose weights lie on the hub."""


class FromExtra(AnnotatorOptions):
    """An annotator whose library is optional: `package` is what it imports, `extra` what pip installs it by."""

    package: ClassVar[str]
    extra: ClassVar[str]


class Hed(Detector):
    """Soft edges (HED)."""

    files = ("ControlNetHED.pth",)
    name: Literal["hed"]
    safe: bool = False
    """Few grey levels: hides what the frame showed."""
    scribble: bool = False
    """Thin lines, as drawn by hand."""


class SoftedgePidi(Detector):
    """Soft edges (PiDiNet)."""

    files = ("table5_pidinet.pth",)
    name: Literal["softedge_pidi"]
    safe: bool = False
    """Few grey levels: hides what the frame showed."""
    scribble: bool = False
    """Thin lines, as drawn by hand."""


class Lineart(Detector):
    """Line drawing of a photograph."""

    files = ("sk_model.pth", "sk_model2.pth")
    name: Literal["lineart"]
    coarse: bool = False
    """Fewer lines."""


class LineartAnime(Detector):
    """Line drawing of an anime frame."""

    files = ("netG.pth",)
    name: Literal["lineart_anime"]


class Mlsd(Detector):
    """Straight lines."""

    files = ("mlsd_large_512_fp32.pth",)
    name: Literal["mlsd"]
    score: float = Field(0.1, ge=0, le=1)
    """How sure a line must be."""
    distance: float = Field(0.1, ge=0, le=20)
    """How long it must be, in the network's own measure."""


class NormalBae(Detector):
    """Surface normals."""

    files = ("scannet.pt",)
    name: Literal["normalbae"]


class Midas(Detector):
    """Depth (MiDaS 3), near is white."""

    files = ("dpt_hybrid-midas-501f0c75.pt",)
    name: Literal["midas"]


class Zoe(Detector):
    """Depth (ZoeDepth as ControlNet's makers use it), near is white."""

    files = ("ZoeD_M12_N.pt",)
    name: Literal["zoe"]
    gamma: bool = False
    """Darker far off."""


class Leres(Detector):
    """Depth (LeReS), near is white."""

    files = ("res101.pth", "latest_net_G.pth")
    name: Literal["leres"]
    remove_near: float = Field(0, ge=0, le=100)
    """Percent of the range."""
    remove_background: float = Field(0, ge=0, le=100)
    """Percent of the range."""
    boost: bool = False
    """Look at parts of the frame, too: finer, and many times slower."""


class Teed(Detector):
    """Edges (TEED)."""

    files = ("5_model.pth",)
    name: Literal["teed"]
    model: WeightsName = "fal-ai/teed"
    steps: int = Field(2, ge=0, le=10)
    """Grey levels above black; 0: all."""


class Anyline(Detector):
    """Edges and lines (TEED joined with lineart_standard)."""

    files = ("Anyline/MTEED.pth",)
    name: Literal["anyline"]
    model: WeightsName = "TheMistoAI/MistoLine"
    sigma: float = Field(2.0, gt=0, le=100)
    """Blur, in pixels."""
    threshold: int = Field(3, ge=0, le=255)
    """Differences below this, in grey levels, do not count when contrast is set."""


class _Pose(Detector):
    files: ClassVar[tuple[str, ...]] = ("body_pose_model.pth", "hand_pose_model.pth", "facenet.pth")
    hands: bool = True
    face: bool = True


class Openpose(_Pose):
    """Skeletons of people: body, hands and face."""

    name: Literal["openpose"]


class OpenposeVideo(_Pose):
    """As openpose, face points smoothed over time (Savitzky-Golay, window 7, order 2)."""

    name: Literal["openpose_video"]


class Dwpose(_Pose, FromExtra):
    """Skeletons of people by DWPose: body, hands and face; needs `pip install 'diffsynth-cli[dwpose]'`."""

    files = ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")
    package, extra = "onnxruntime", "dwpose"
    name: Literal["dwpose"]
    model: WeightsName = "yzd-v/DWPose"


class MediapipeFace(Resized, FromExtra):
    """Faces (MediaPipe's face mesh); needs `pip install 'diffsynth-cli[mediapipe]'`."""

    package, extra = "mediapipe.python.solutions", "mediapipe"
    name: Literal["mediapipe_face"]
    max_faces: int = Field(1, ge=1, le=100)
    min_confidence: float = Field(0.5, ge=0, le=1)
    """How sure a face must be."""


class _DepthModel(Weighted):
    files = ("config.json", "preprocessor_config.json", "model.safetensors")
    model: WeightsName = "Intel/dpt-large"
    """A hub id or a local folder of a depth-estimation model."""
    invert: bool | None = None
    """Does the model give distances, so that near and far must change places? null: metric models do."""


class Depth(_DepthModel):
    """Depth by a transformers model (DPT, Depth Anything, ZoeDepth, ...), near is white."""

    name: Literal["depth"]
    normalize: Literal["frame", "video", "max"] = "frame"
    """What fills the range from black to white: each frame; the whole video, which does not flicker; max: 0 to each
    frame's nearest point, as DiffSynth did."""


class DepthVideo(_DepthModel):
    """As depth, each frame shifted so that its mean is the video's."""

    name: Literal["depth_video"]
    normalize: Literal["frame", "max"] = "frame"
    """What fills a frame's range before it is shifted: its farthest to its nearest point; max: 0 to its nearest."""
    sigmoid: bool = False
    """More contrast about `threshold`."""
    threshold: float = Field(1.0, allow_inf_nan=False)
    """The grey level, in halves of white, that the contrast is raised about."""


AnnotatorSettings = (
    Canny | LineartStandard | Shuffle | Tile | MapFiles
    | Depth | DepthVideo | Hed | SoftedgePidi | Lineart | LineartAnime | Mlsd | NormalBae | Midas | Zoe | Leres | Teed
    | Anyline | Openpose | OpenposeVideo | Dwpose | MediapipeFace
)  # fmt: skip
ANNOTATORS: dict[str, type[AnnotatorOptions]] = {
    get_args(model.model_fields["name"].annotation)[0]: model for model in get_args(AnnotatorSettings)
}


def missing_package(name: str) -> str:
    """What this Python lacks for the annotator `name` and how to install it. Empty if it lacks nothing."""
    model = ANNOTATORS[name]
    if not issubclass(model, FromExtra) or _is_installed(model.package):
        return ""
    library = model.package.partition(".")[0]
    return f"the annotator {name!r} needs {library}, which is not installed: pip install 'diffsynth-cli[{model.extra}]'"


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # its parent is missing
        return False
