"""Annotators, which make control maps from frames.

Each annotator is registered with its options and what the engine must know about it. docs/extending.md says
how to add one, here or in another package. Frames and maps are uint8 RGB [K, H, W, 3].
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.base.arrays import Floats, Image, Images
from stages.base.errors import UsageError
from stages.base.json_types import Json
from stages.base.mistakes import Strict
from stages.base.paths import InputFile, WeightsName
from stages.base.registry import Registry
from stages.models.weights import Weights

PUBLISHED_SIDE = 512  # px, shorter side to which some of DiffSynth's annotators resize frames


class Annotator(Protocol):
    """Turns frames into control maps."""

    def maps(self, frames: Images) -> Images:
        """Make control maps uint8 [K, H, W, 3] from frames uint8 [K, H, W, 3]."""


@runtime_checkable
class VideoAnnotator(Protocol):
    """Turns a video into control maps in two passes: it analyses each frame, then draws with the results of all."""

    MEASURES: int

    def note_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of the notes on a frame of this size."""

    def look(self, frames: Images) -> Floats:
        """Analyse frames: return notes float32 [K, *note_shape]. Only this method needs weights."""

    def measure(self, notes: Floats) -> NDArray[np.float64]:
        """Reduce notes [K, *note_shape] to float64 [K, MEASURES]. Drawing a frame needs these of all frames."""

    def draw(
        self, notes: Sequence[Floats], start: int, stop: int, measures: NDArray[np.float64], size: tuple[int, int]
    ) -> Images:
        """Draw maps uint8 [stop - start, *size, 3] of frames start..stop-1, given the notes and measures of all."""

    def draw_still(self, note: Floats, measures: NDArray[np.float64], size: tuple[int, int]) -> Image:
        """Draw the map uint8 [*size, 3] of an image outside the video that the measures describe."""


# --- options --------------------------------------------------------------------------------------------


class MapOptions(Strict):
    """Where control maps come from, with its options as fields. The docstring is its description.

    Every annotator has a field `name: Literal["..."]`, its name in job files.
    """

    uses_style_image: ClassVar[bool] = False
    """Whether it works on the job's `style_image`."""
    requires: ClassVar[str] = ""
    """An optional module that it imports; empty if none."""
    extra: ClassVar[str] = ""
    """The extra of this package that installs `requires`."""
    diffsynth: ClassVar[dict[str, dict[str, str | int]]] = {}
    """DiffSynth's names for it, each with the options that reproduce DiffSynth's results."""

    name: str

    @classmethod
    def missing_package(cls) -> str:
        """Describe the package that the annotator lacks and how to install it; empty if none is missing."""
        if not cls.requires or _is_installed(cls.requires):
            return ""
        library = cls.requires.partition(".")[0]
        install = f": pip install 'diffsynth-cli[{cls.extra}]'" if cls.extra else ""
        return f"the annotator {name_of(cls)!r} needs {library}, which is not installed{install}"

    def weights(self, key: str) -> Weights | None:
        """Return the weights that it needs. `key` is the job's key, for messages."""
        return None


class AnnotatorOptions(MapOptions):
    """Options of annotators, which make maps from frames."""

    @abstractmethod
    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> Annotator | VideoAnnotator:
        """Build the annotator with these options.

        Args:
            style_image: The job's style image, uint8 [H, W, 3] in the frames' size, if `uses_style_image`.
            weights: The result of `weights`.
            device: Device of the networks: auto, cpu, mps, cuda or cuda:N.
        """


class Resized(AnnotatorOptions):
    """Options of annotators that can work at a different resolution."""

    resolution: int | None = Field(None, ge=64, le=8192)
    """Resize images to this shorter side in pixels (null = do not resize)."""


class Weighted(AnnotatorOptions):
    """Options of annotators with weights. `files` are the model's files to read, under their published names."""

    files: ClassVar[tuple[str, ...]]

    model: WeightsName = "lllyasviel/Annotators"
    """Hub id, or local folder with the same files."""

    def weights(self, key: str) -> Weights:
        return Weights(key, self.model, self.files)


class FromFiles(MapOptions):
    """Options of existing maps, which are read from files."""

    path: InputFile = Field(min_length=1)
    """Video or folder of images, one per frame."""
    references: InputFile | None = None
    """The same for the images of `frames_reference`."""

    @abstractmethod
    def as_map(self, values: NDArray[np.uint8 | np.uint16 | np.float32]) -> Image:
        """Convert the values of an image [H, W, 3] to a map uint8 [H, W, 3]."""


def name_of(options: type[MapOptions]) -> str:
    """Return the name in job files of the annotator with these options."""
    (name,) = get_args(options.model_fields["name"].annotation)
    return str(name)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its parent is missing
        return False


# --- registry -------------------------------------------------------------------------------------------

ANNOTATORS: Registry[MapOptions] = Registry(
    "annotator", MapOptions, name_of, package="stages.annotators", group="diffsynth_cli.annotators"
)


def published_names() -> dict[str, dict[str, str | int]]:
    """Return for each of DiffSynth's names our name and the options that reproduce its results."""
    return {
        theirs: {"name": name, **options}
        for name, model in ANNOTATORS.built_in.items()
        for theirs, options in model.diffsynth.items()
    }


def build(
    name: str,
    options: Mapping[str, Json],
    style_image: Image | None = None,
    weights: Weights | None = None,
    device: str = "auto",
) -> Annotator | VideoAnnotator:
    """Build the annotator `name`. The other arguments are those of `AnnotatorOptions.build`.

    Raises:
        UsageError: There is no such annotator, or its maps are read from files.
        ValidationError: An option is wrong.
    """
    settings = ANNOTATORS[name].model_validate({"name": name, **options})
    if not isinstance(settings, AnnotatorOptions):
        raise UsageError(f"{name!r} reads maps from files instead of making them", "choose another annotator")
    return settings.build(style_image, weights, device)
