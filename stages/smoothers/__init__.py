"""Smoothers, which remove flicker from a video, and the postprocessing of smoothed frames.

All smoothers have the same interface: they read frames by index and return smoothed frames in chunks, so that they
process videos of any length in bounded memory. Each module of this package registers one smoother: its options, what
the engine must know about it, and the class that does the work. docs/extending.md says how to add one, here or in
another package.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Annotated, ClassVar, Literal, Protocol, cast, overload

import numpy as np
from pydantic import AfterValidator, Field

from stages.base.arrays import Frames as Frames
from stages.base.arrays import Image, Images
from stages.base.errors import UsageError
from stages.base.json_types import Json
from stages.base.mistakes import Strict
from stages.base.registry import Registry

CACHED_FRAMES = 8  # per video: the neighbours that detail is compared with, and one more

# Keys of DiffSynth's smoothers that have no meaning here: programs, folders, GPUs, processes, engines.
OBSOLETE_KEYS = ("bin_path", "cache_path", "engine_name", "gpu_id", "n_jobs", "num_iter", "threads_per_block")

EnhanceFactor = Annotated[float, Field(ge=-1000, le=1000)]
Enhancement = dict[Literal["contrast", "sharpness", "color", "brightness"], EnhanceFactor]


class Smoother(Protocol):
    """Removes flicker from one stylised video.

    It is built for all frames of the original video, the guides, and of the stylised video, the styles. It may cache
    intermediate results for the following frames, in bounded memory, and drops them after the last frame.
    """

    def smooth(self, start: int, stop: int) -> Images:
        """Smooth frames start..stop-1.

        The result for a frame must not depend on chunk borders or on earlier calls.

        Returns:
            uint8 [stop-start, H, W, 3].
        """


class SmootherOptions(Strict):
    """A smoother's options, as fields, and what the engine must know about it. The docstring is its description."""

    name: ClassVar[str]
    """The smoother's name in job files."""
    chunk: ClassVar[int] = 1
    """Frames smoothed at once. An interrupted chunk is redone."""
    on_gpu: ClassVar[bool] = False
    """Whether it accepts torch tensors. If so, it gets the frames as tensors when the device is an NVIDIA GPU."""
    enhances_first: ClassVar[bool] = False
    """Whether `postprocessing` is also applied before smoothing."""
    obsolete: ClassVar[tuple[str, ...]] = OBSOLETE_KEYS
    """Keys of older job files to ignore."""

    postprocessing: Enhancement = Field(default_factory=dict)
    """Pillow's ImageEnhance factors (1 = unchanged), applied in the order given after smoothing."""

    @property
    def warm_up(self) -> int:
        """What the first frame costs in addition to any other, as a number of frames. Others reuse its results."""
        return 0

    def pairs(self, frames: int) -> float:
        """Return how many pairs of frames are matched to smooth a video of this many, about."""
        return 0.0

    @abstractmethod
    def build(self, guides: Frames, styles: Frames, device: str) -> Smoother:
        """Build the smoother for one video.

        Args:
            guides: Frames of the original video.
            styles: Frames of the stylised video.
            device: Device of the job: auto, cpu, cuda, cuda:N or mps.
        """

    def build_compiled(self, guides: Frames, styles: Frames, device: str) -> Smoother:
        """Build the smoother with its functions of tensors compiled. By default, it has none."""
        return self.build(guides, styles, device)


SMOOTHERS: Registry[SmootherOptions] = Registry(
    "smoother",
    SmootherOptions,
    lambda options: options.name,
    package="stages.smoothers",
    group="diffsynth_cli.smoothers",
)


def build(
    name: str,
    config: Mapping[str, Json],
    guides: Frames,
    styles: Frames,
    device: str = "cpu",
    *,
    compiled: bool = False,
) -> Smoother:
    """Build the smoother `name` with the options `config` for one video.

    Args:
        name: A registered name.
        config: Its options.
        guides: Frames of the original video.
        styles: Frames of the stylised video.
        device: Device of the job: auto, cpu, cuda, cuda:N or mps.
        compiled: Compile what it does with tensors, so on an NVIDIA GPU only.

    Raises:
        UsageError: There is no such smoother.
        ValidationError: An option is wrong.
        DiffSynthError: PyTorch cannot compile here.
    """
    options = SMOOTHERS[name].model_validate(config)
    if options.on_gpu:
        loaded = frames_on_device(styles, device)
        guides, styles = loaded if guides is styles else frames_on_device(guides, device), loaded
    if options.enhances_first and options.postprocessing:
        styles = cached(styles, partial(enhance, postprocessing=options.postprocessing))
    smoother = (options.build_compiled if compiled else options.build)(guides, styles, device)
    return Enhanced(smoother, options.postprocessing) if options.postprocessing else smoother


class Enhanced:
    """A smoother followed by Pillow's ImageEnhance filters, in the order given."""

    def __init__(self, smoother: Smoother, postprocessing: Enhancement):
        self.smoother, self.postprocessing = smoother, postprocessing

    def smooth(self, start: int, stop: int) -> Images:
        return np.stack([enhance(frame, self.postprocessing) for frame in self.smoother.smooth(start, stop)])


def enhance(frame: Image, postprocessing: Enhancement) -> Image:
    """Apply Pillow's ImageEnhance filters to a frame, in the order given."""
    from PIL import Image as PillowImage
    from PIL import ImageEnhance

    image = PillowImage.fromarray(frame)
    for name, factor in postprocessing.items():
        image = getattr(ImageEnhance, name.capitalize())(image).enhance(factor)
    return np.asarray(image)


class LoadedFrames(Sequence[Image]):
    """As many frames as `length` says, which the function `load` returns by index."""

    def __init__(self, length: int, load: Callable[[int], Image]):
        self.length, self.load = length, load

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        chosen = range(self.length)[index]
        return self.load(chosen) if isinstance(chosen, int) else [self.load(k) for k in chosen]


def cached(frames: Frames, convert: Callable[[Image], Image], kept: int = CACHED_FRAMES) -> LoadedFrames:
    """Return frames that are converted when they are first read. The last few are kept."""
    return LoadedFrames(len(frames), lru_cache(kept)(lambda index: convert(frames[index])))


def frames_on_device(frames: Frames, device: str) -> Frames:
    """Convert frames to tensors on the NVIDIA GPU that `device` selects; without one, to NumPy arrays.

    Smoothers treat both alike (see stages.smoothers.images.pixels), so tensors count as `Frames`, too.
    """
    from stages.models.weights import pick_gpu

    gpu = pick_gpu(device)
    if gpu is None:
        return cached(frames, np.asarray)
    from stages.smoothers.images.gpu import load
    from stages.smoothers.images.pixels import frames_at_once

    load_here = cast(Callable[[Image], Image], partial(load, device=gpu))
    return cached(frames, load_here, CACHED_FRAMES * frames_at_once(load_here(frames[0])))


# --- shared options -------------------------------------------------------------------------------------


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


PatchSize = Annotated[int, Field(ge=3, le=31), AfterValidator(_odd)]


class PatchOptions(Strict):
    """Options of guided patch matching."""

    patch_size: PatchSize = 21
    """Side of the patches in pixels, odd."""
    guide_weight: float = Field(100.0, ge=0, le=1e6)
    """Weight of the original video in matching; the stylised video has weight 1."""


class MatchingOptions(PatchOptions):
    """Options of PySynth's patch matching."""

    num_iter: int = Field(6, ge=1, le=64)
    """Rounds of search and vote per pyramid level."""


# --- older job files ------------------------------------------------------------------------------------


def drop_obsolete(name: str, config: Mapping[str, Json]) -> tuple[dict[str, Json], list[str]]:
    """Split the options of the smoother `name` into those still used and the names of obsolete ones."""
    try:
        options = SMOOTHERS[name]
    except UsageError:  # reported when the job is validated
        return dict(config), []
    kept, dropped = _split(config, set(options.obsolete))
    for key, nested in kept.items():
        if isinstance(nested, dict) and (model := _nested_model(options, key)):
            kept[key], more = _split(nested, set(options.obsolete) - set(model.model_fields))
            dropped += [f"{key}.{old}" for old in more]
    return kept, dropped


def _nested_model(options: type[SmootherOptions], key: str) -> type[Strict] | None:
    field = options.model_fields.get(key)
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, Strict) else None


def _split(config: Mapping[str, Json], unused: set[str]) -> tuple[dict[str, Json], list[str]]:
    """Return `config` without the keys `unused`, and which of these were set."""
    dropped = sorted(key for key in unused if config.get(key) is not None)
    return {key: value for key, value in config.items() if key not in unused}, dropped
