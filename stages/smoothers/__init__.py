"""Taking the flicker out of a video: smoothers, and what is done to frames after smoothing.

All smoothers have one interface: frames are read by index, when asked for, and smoothed frames come in chunks, so that
a smoother of any window works on a video of any length in bounded memory. Each module of this package registers one:
its options, what the engine must know about it, and the class that does the work. docs/extending.md says how to add
one, here or in another package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import AfterValidator, Field

from stages.base.errors import UsageError
from stages.base.mistakes import Strict
from stages.base.registry import Registry

Frames = Sequence[np.ndarray]
"""uint8 RGB [H, W, 3] by index; reading one may mean decoding it."""

KEPT = 8  # frames of a video: the neighbours that detail is compared with, and one further off

# Keys of DiffSynth's smoothers that mean nothing here: programs, folders, cards, processes, a choice of engines.
OBSOLETE_KEYS = ("bin_path", "cache_path", "engine_name", "gpu_id", "n_jobs", "num_iter", "threads_per_block")

EnhanceFactor = Annotated[float, Field(ge=-1000, le=1000)]
Enhancement = dict[Literal["contrast", "sharpness", "color", "brightness"], EnhanceFactor]


class Smoother(Protocol):
    """Takes the flicker out of one stylised video.

    It is built for `guides`, the frames of the original video, which does not flicker, and `styles`, those of the
    stylised one; both are the whole video. It may keep what it finds for the frames that come next, in bounded memory,
    and drops all of it after the last frame.
    """

    def smooth(self, start: int, stop: int) -> np.ndarray:
        """Frames start..stop-1, deflickered, as uint8 [stop-start, H, W, 3].

        The result for a frame must not depend on where a chunk begins, nor on what was asked for before.
        """


class SmootherOptions(Strict):
    """A smoother's options, as fields, and what the engine must know about it. Its docstring is its description."""

    name: ClassVar[str]
    """What jobs call the smoother."""
    chunk: ClassVar[int] = 1
    """Frames that are smoothed at once, and redone after a kill."""
    on_gpu: ClassVar[bool] = False
    """Does it work on torch tensors? On an NVIDIA GPU, it is then given the frames as tensors there."""
    enhances_first: ClassVar[bool] = False
    """Is `postprocessing` applied to the frames before they are smoothed, too?"""
    obsolete: ClassVar[tuple[str, ...]] = OBSOLETE_KEYS
    """Keys of older job files that are ignored."""

    postprocessing: Enhancement = Field(default_factory=dict)
    """Pillow's ImageEnhance factors (1 = unchanged), applied in the order given after smoothing."""

    def build(self, guides: Frames, styles: Frames, device: str) -> Smoother:
        """The smoother with these options for one video. `device` is the job's: auto, cpu, cuda, cuda:1 or mps."""
        raise NotImplementedError


SMOOTHERS: Registry[SmootherOptions] = Registry(
    "smoother",
    SmootherOptions,
    lambda options: options.name,
    package="stages.smoothers",
    group="diffsynth_cli.smoothers",
)


def build(name: str, config: dict[str, Any], guides: Frames, styles: Frames, device: str = "cpu") -> Smoother:
    """The smoother `name` with the options `config`, for one video. It matches patches on `device`."""
    options = SMOOTHERS[name].model_validate(config)
    if options.on_gpu:
        brought = bring(styles, device)
        guides, styles = brought if guides is styles else bring(guides, device), brought
    if options.enhances_first and options.postprocessing:
        styles = Brought(styles, partial(enhance, postprocessing=options.postprocessing))
    smoother = options.build(guides, styles, device)
    return Enhanced(smoother, options.postprocessing) if options.postprocessing else smoother


class Enhanced:
    """A smoother followed by Pillow's ImageEnhance filters, in the order given."""

    def __init__(self, smoother: Smoother, postprocessing: Enhancement):
        self.smoother, self.postprocessing = smoother, postprocessing

    def smooth(self, start: int, stop: int) -> np.ndarray:
        return np.stack([enhance(frame, self.postprocessing) for frame in self.smoother.smooth(start, stop)])


def enhance(frame: np.ndarray, postprocessing: Enhancement) -> np.ndarray:
    """A frame after Pillow's ImageEnhance filters, in the order given."""
    from PIL import Image, ImageEnhance

    image = Image.fromarray(frame)
    for name, factor in postprocessing.items():
        image = getattr(ImageEnhance, name.capitalize())(image).enhance(factor)
    return np.asarray(image)


class Brought(Sequence[Any]):
    """Frames where they are worked on: there `load` takes them when they are asked for. The last few are kept."""

    def __init__(self, frames: Frames, load: Callable[[np.ndarray], Any]):
        self.length, self.kept = len(frames), lru_cache(KEPT)(lambda index: load(frames[index]))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return self.kept(index)


def bring(frames: Frames, device: str) -> Frames:
    """`frames` as torch tensors on the NVIDIA GPU that `device` means; where it means none, as NumPy arrays."""
    from stages.models.weights import pick_gpu

    gpu = pick_gpu(device)
    if gpu is None:
        return Brought(frames, np.asarray)
    from stages.smoothers.images.gpu import load

    return Brought(frames, partial(load, device=gpu))


# --- options that several smoothers have ----------------------------------------------------------------


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


PatchSize = Annotated[int, Field(ge=3, le=31), AfterValidator(_odd)]


class PatchOptions(Strict):
    """How frames are carried onto each other."""

    patch_size: PatchSize = 21
    """Side of the patches in pixels, odd."""
    guide_weight: float = Field(100.0, ge=0, le=1e6)
    """Weight of differences between the guides; those between the styles have weight 1."""


class MatchingOptions(PatchOptions):
    """How PySynth carries frames onto each other."""

    num_iter: int = Field(6, ge=1, le=64)
    """Rounds of search and vote at each size of the picture."""


# --- older job files ------------------------------------------------------------------------------------


def drop_obsolete(name: str, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options of the smoother `name` without keys that are no longer needed, and these keys."""
    try:
        options = SMOOTHERS[name]
    except UsageError:  # reported when the job is validated
        options = SmootherOptions
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


def _split(config: dict[str, Any], unused: set[str]) -> tuple[dict[str, Any], list[str]]:
    """What is left without the keys `unused`, and those of them that hold anything."""
    dropped = sorted(key for key in unused if config.get(key) is not None)
    return {key: value for key, value in config.items() if key not in unused}, dropped
