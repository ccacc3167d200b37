"""Taking the flicker out of a video: smoothers, and what is done to frames after smoothing.

All smoothers have one interface: frames come in by index, read when asked for, and go out by chunk, so that a
smoother of any window works on a video of any length in bounded memory. docs/smoothers.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageEnhance

from stages.base.smoothers import EbsynthConfig, PySynthConfig, VideoPatchMatchConfig

Frames = Sequence[np.ndarray]
"""uint8 RGB [H, W, 3] by index; reading one may mean decoding it."""

KEPT = 8  # frames of a video: the neighbours that detail is compared with, and one further off


class Smoother(Protocol):
    """Takes the flicker out of one stylised video.

    It is made with `guides`, the frames of the original video, which does not flicker, and `styles`, those of the
    stylised one; both are the whole video. It may keep what it finds for the frames that come next, in bounded memory,
    and drops all of it after the last frame.
    """

    def smooth(self, start: int, stop: int) -> np.ndarray:
        """Frames start..stop-1, deflickered, as uint8 [stop-start, H, W, 3].

        The result for a frame must not depend on where a chunk begins, nor on what was asked for before.
        """


class TemporalMeanSmoother:
    """Mean over frames i-radius..i+radius, indexes clamped, rounded to the nearest (ties to even)."""

    def __init__(self, guides: Frames, styles: Frames, radius: int = 1):
        self.styles, self.radius = styles, radius
        self.next: tuple[int, Any] | None = None  # a frame, and the sum of its window but for the last frame of it

    def smooth(self, start: int, stop: int) -> np.ndarray:
        # A running sum of integers: exact, and as cheap for a wide window as for a narrow one.
        total = self.next[1] if self.next and self.next[0] == start else self._window(start)
        smoothed = []
        for index in range(start, stop):
            total = total + self._frame(index + self.radius)
            smoothed.append(np.rint(total / (2 * self.radius + 1)).astype(np.uint8))
            total = total - self._frame(index - self.radius)
        self.next = (stop, total) if stop < len(self.styles) else None
        return np.stack(smoothed)

    def _window(self, index: int) -> Any:
        """The sum of frames index-radius..index+radius-1, each read once."""
        last = len(self.styles) - 1
        first, end = index - self.radius, index + self.radius - 1
        inside = sum((self._frame(other) for other in range(max(first, 0), min(end, last) + 1)), np.int64(0))
        return inside + max(-first, 0) * self._frame(0) + max(end - last, 0) * self._frame(last)

    def _frame(self, index: int) -> np.ndarray:
        return self.styles[min(max(index, 0), len(self.styles) - 1)].astype(np.int64)


class Enhanced:
    """A smoother followed by Pillow's ImageEnhance filters, in the order given."""

    def __init__(self, smoother: Smoother, postprocessing: dict[str, float]):
        self.smoother, self.postprocessing = smoother, postprocessing

    def smooth(self, start: int, stop: int) -> np.ndarray:
        return np.stack([enhance(frame, self.postprocessing) for frame in self.smoother.smooth(start, stop)])


def enhance(frame: np.ndarray, postprocessing: dict[str, float]) -> np.ndarray:
    """A frame after Pillow's ImageEnhance filters, in the order given."""
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


def build(
    name: str,
    config: dict[str, Any],
    guides: Frames,
    styles: Frames,
    device: str = "cpu",
) -> Smoother:
    """The smoother `name` with the options `config`. Those that match patches do so on `device`."""
    config = dict(config)
    postprocessing = config.pop("postprocessing", {})
    if name in ON_GPU:
        brought = bring(styles, device)
        guides, styles = brought if guides is styles else bring(guides, device), brought
    if name in ENHANCED_BEFORE and postprocessing:
        styles = Brought(styles, partial(enhance, postprocessing=postprocessing))
    smoother = SMOOTHERS[name](config, device)(guides, styles)
    return Enhanced(smoother, postprocessing) if postprocessing else smoother


Maker = Callable[[Frames, Frames], Smoother]


def _temporal_mean(config: dict[str, Any], device: str) -> Maker:
    return partial(TemporalMeanSmoother, **config)


def _ebsynth(config: dict[str, Any], device: str) -> Maker:
    from stages.smoothers.ebsynth import EbsynthSmoother  # loads the library's binding, as all below do

    options = EbsynthConfig.model_validate(config)
    return partial(EbsynthSmoother, device=device, **options.model_dump(exclude={"postprocessing"}))


def _patch_blend(config: dict[str, Any], device: str) -> Maker:
    from stages.smoothers.patch_blend import PatchBlendSmoother

    return partial(PatchBlendSmoother, **config)


def _py_synth(config: dict[str, Any], device: str) -> Maker:
    from stages.smoothers.pysynth import PySynthSmoother

    options = PySynthConfig.model_validate(config)
    matching = options.ebsynth_config.model_dump()
    return partial(PySynthSmoother, speed=options.speed, window_size=options.window_size, device=device, **matching)


def _video_patch_match(config: dict[str, Any], device: str) -> Maker:
    options = VideoPatchMatchConfig.model_validate(config)
    return _py_synth({"ebsynth_config": options.ebsynth_config}, device)


# The others leave it to the patch-matching library where it works, or have nothing to do there.
ON_GPU = ("PatchBlendSmoother",)

# These also enhance frames before they smooth them.
ENHANCED_BEFORE = ("VideoPatchMatchSmoother",)

# Frames of a chunk, which is done again after a kill: where patches are matched, a frame can take seconds.
CHUNKS = {
    "TemporalMeanSmoother": 8,
    "PatchBlendSmoother": 1,
    "EbsynthSmoother": 1,
    "PySynthSmoother": 1,
    "VideoPatchMatchSmoother": 1,
}

SMOOTHERS: dict[str, Callable[[dict[str, Any], str], Maker]] = {
    "TemporalMeanSmoother": _temporal_mean,
    "PatchBlendSmoother": _patch_blend,
    "EbsynthSmoother": _ebsynth,
    "PySynthSmoother": _py_synth,
    "VideoPatchMatchSmoother": _video_patch_match,
}
