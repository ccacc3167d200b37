"""How control maps are made from frames.

Each annotator is registered with its options and what must be known about it before it runs. docs/extending.md says
how to add one, here or in another package. Frames and maps are uint8 RGB [K, H, W, 3].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, get_args, runtime_checkable

import numpy as np
from pydantic import Field

from stages.base.mistakes import Strict
from stages.base.paths import InputFile, WeightsName
from stages.base.registry import Registry
from stages.models.weights import Weights

PUBLISHED_SIDE = 512  # px; the shorter side at which some of DiffSynth's annotators look at frames


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


# --- options --------------------------------------------------------------------------------------------


class AnnotatorOptions(Strict):
    """An annotator's options, as fields, and what the engine must know about it. Its docstring is its description.

    Each has a field `name: Literal["..."]`, which is what jobs call the annotator.
    """

    uses_style_image: ClassVar[bool] = False
    """Does it work on the job's `style_image`?"""
    requires: ClassVar[str] = ""
    """An optional module that it imports, if it does."""
    extra: ClassVar[str] = ""
    """The extra of this package that installs `requires`."""
    diffsynth: ClassVar[dict[str, dict[str, str | int]]] = {}
    """DiffSynth's own names for it, each with the options that make it do what DiffSynth did."""

    name: str

    @classmethod
    def missing_package(cls) -> str:
        """What this Python lacks for the annotator and how to install it. Empty if it lacks nothing."""
        if not cls.requires or _is_installed(cls.requires):
            return ""
        library = cls.requires.partition(".")[0]
        install = f": pip install 'diffsynth-cli[{cls.extra}]'" if cls.extra else ""
        return f"the annotator {name_of(cls)!r} needs {library}, which is not installed{install}"

    def weights(self, key: str) -> Weights | None:
        """The files that it reads. `key` is the job's, for messages."""
        return None

    def build(self, style_image: np.ndarray | None, weights: Weights | None, device: str) -> Annotator | OverTime:
        """The annotator with these options.

        Args:
            style_image: The job's, uint8 [H, W, 3] in the frames' size, if `uses_style_image`.
            weights: What `weights` gives.
            device: The job's device for networks: auto, cpu, mps, cuda or cuda:1.
        """
        raise NotImplementedError


class Resized(AnnotatorOptions):
    """Options of annotators that can look at smaller or larger frames."""

    resolution: int | None = Field(None, ge=64, le=8192)
    """Look at images whose shorter side is this many pixels; null: at the images as they are."""


class Weighted(AnnotatorOptions):
    """Options of annotators with weights. `files`: what is read of the model, laid out as it was published."""

    files: ClassVar[tuple[str, ...]]

    model: WeightsName = "lllyasviel/Annotators"
    """A hub id, or a local folder with the same files."""

    def weights(self, key: str) -> Weights:
        return Weights(key, self.model, self.files)


class FromFiles(AnnotatorOptions):
    """Options of annotators whose maps were made elsewhere and are read from files."""

    path: InputFile = Field(min_length=1)
    """A video or a folder of images, one per frame."""
    references: InputFile | None = None
    """The same for `frames_reference`, one image each."""

    def as_map(self, values: np.ndarray) -> np.ndarray:
        """The map uint8 [H, W, 3] that an image's values [H, W, 3] stand for."""
        raise NotImplementedError


def name_of(options: type[AnnotatorOptions]) -> str:
    """What jobs call the annotator with these options."""
    (name,) = get_args(options.model_fields["name"].annotation)
    return str(name)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its parent is missing
        return False


# --- the annotators there are ---------------------------------------------------------------------------

ANNOTATORS: Registry[AnnotatorOptions] = Registry(
    "annotator", AnnotatorOptions, name_of, package="stages.annotators", group="diffsynth_cli.annotators"
)


def published_names() -> dict[str, dict[str, Any]]:
    """DiffSynth's own names of annotators: for each, our name and the options that make ours do the same."""
    return {
        theirs: {"name": name, **options}
        for name, model in ANNOTATORS.built_in.items()
        for theirs, options in model.diffsynth.items()
    }


def build(
    name: str,
    options: dict[str, Any],
    style_image: np.ndarray | None = None,
    weights: Weights | None = None,
    device: str = "auto",
) -> Annotator | OverTime:
    """The annotator `name` with `options`, its networks on `device`.

    `style_image` uint8 [H, W, 3] has the frames' size, for annotators that use it. `weights`: what those with weights
    read.
    """
    return ANNOTATORS[name].model_validate({"name": name, **options}).build(style_image, weights, device)
