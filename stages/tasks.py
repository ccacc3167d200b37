"""Tasks shared by several stages: decode, smooth or paint a chunk of frames.

A task pickles, runs its chunks in any order and in any process, and drops what it keeps between chunks in `close()`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from stages.base.arrays import Image, Images
from stages.base.cache import FrameArray, FrameCache
from stages.base.engine import Task
from stages.base.errors import DiffSynthError
from stages.base.json_types import Values
from stages.base.overlap import Reads
from stages.base.scenes import scene_of
from stages.compositing import composite
from stages.smoothers import SMOOTHERS, Frames, LoadedFrames, Smoother, build, frames_on_device
from stages.video import Shot, fit

PAINT_CHUNK = 4  # frames that are painted at once, most of them from two keyframes
KEPT_BYTES = 32 * 2**20  # of frames that a smoother has read, per video: its window at 512×960 ...
LEAST_KEPT, MOST_KEPT = 4, 40  # ... within these numbers of frames
PAIRS = "pairs to match"  # in what tasks say of their work


def unchanged(image: np.ndarray) -> np.ndarray:
    """The image itself."""
    return image


@dataclass
class DecodeTask(Task):
    """Decode a chunk of a source into an array, cropped and resized to the array's frames.

    A chunk that follows the last one continues decoding there. Any other one opens the source again.

    Args:
        source: What is decoded, for messages.
        shots: Opens the source and yields its frames from the one with this number on.
        target: The array that is written.
        convert: Turns a decoded image into uint8 RGB [H, W, 3].
        finish: Turns the fitted image into what is written.
        shown: (height, width) at which the source is meant to be seen, if its pixels are not square.
    """

    source: str
    shots: Callable[[int], Iterator[Shot]]
    target: str
    convert: Callable[[np.ndarray], np.ndarray] = unchanged
    finish: Callable[[np.ndarray], np.ndarray] = unchanged
    shown: tuple[int, int] | None = None
    _left: Iterator[Shot] | None = field(default=None, init=False, repr=False)
    _next: int = field(default=0, init=False, repr=False)

    @property
    def kind(self) -> str:
        return "decode a video"

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        target = cache[self.target]
        height, width = target.shape[1:3]
        shots = islice(self._from(start), stop - start)
        frames = [self.finish(fit(self.convert(shot.image()), height, width, self.shown)) for shot in shots]
        self._next = start + len(frames)
        if self._next < stop:
            raise DiffSynthError(
                f"{self.source} has fewer frames than when it was first read", "use --restart if it was replaced"
            )
        target.write(start, np.stack(frames))

    def _from(self, start: int) -> Iterator[Shot]:
        if self._left is None or self._next != start:
            self._left = self.shots(start)
        return self._left

    def close(self) -> None:
        self._left = None


def masked(cache: FrameCache, images: Images, guides: str, mask: str | None, frames: Sequence[int]) -> Images:
    """Show the array `guides` where the array `mask` is black. `images` are those of `frames`."""
    if mask is None:
        return images
    return composite(images, cache[guides].read(frames), cache[mask].read(frames))


def reads_of_masked(guides: str, mask: str | None, frames: Sequence[int]) -> Reads:
    """What `masked` reads."""
    return [] if mask is None else [(guides, frames), (mask, frames)]


class Picked(Sequence[np.ndarray]):
    """A subset of the frames of an array, such as those of a scene."""

    def __init__(self, frames: FrameArray, keys: Sequence[int]):
        self.frames, self.keys = frames, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        return self.frames[self.keys[index]]

    def read(self, indices: Iterable[int]) -> np.ndarray:
        return self.frames.read(self.keys[index] for index in indices)


def read_ahead(frames: Frames) -> LoadedFrames:
    """Return frames that another thread reads: with each, the one after it. The last ones are kept."""
    reader = ThreadPoolExecutor(1, "read ahead")
    recent: OrderedDict[int, Future[Image]] = OrderedDict()

    def read(index: int) -> Future[Image]:
        if index not in recent:
            recent[index] = reader.submit(frames.__getitem__, index)
        recent.move_to_end(index)
        return recent[index]

    def load(index: int) -> Image:
        frame = read(index)
        if index + 1 < len(frames):
            read(index + 1)
        image = frame.result()
        while len(recent) > min(max(KEPT_BYTES // image.nbytes, LEAST_KEPT), MOST_KEPT):
            recent.popitem(last=False)
        return image

    return LoadedFrames(len(frames), load)


@dataclass
class ChunkSmoother:
    """A smoother that is built when the first chunk needs it.

    It is kept for the chunk that follows in the same scene, for which it may hold results. Any other chunk gets a new
    one, which bounds the memory whatever the order is.
    """

    name: str
    config: Values
    device: str
    compiled: bool = False
    _smoother: Smoother | None = field(default=None, init=False, repr=False)
    _next: int = field(default=0, init=False, repr=False)

    def __reduce__(self) -> tuple[type[ChunkSmoother], tuple[str, Values, str, bool]]:
        return ChunkSmoother, (self.name, self.config, self.device, self.compiled)  # another process builds its own

    @property
    def chunk(self) -> int:
        """How many frames the smoother returns at once."""
        return SMOOTHERS[self.name].chunk

    @property
    def warm_up(self) -> int:
        """What the first frame costs in addition to any other, as a number of frames."""
        return SMOOTHERS[self.name].model_validate(self.config).warm_up

    def work(self, frames: int) -> dict[str, float]:
        """How many pairs of frames are matched to deflicker this many frames of one scene."""
        return {PAIRS: SMOOTHERS[self.name].model_validate(self.config).pairs(frames)}

    def smooth(self, guides: Frames, styles: Frames, *, start: int, stop: int, first: int) -> np.ndarray:
        """Deflicker frames start..stop-1 of a video, which belong to a scene.

        Args:
            guides: The frames of the scene in the original video.
            styles: The frames of the scene in the stylised video.
            start: The first frame to deflicker.
            stop: The first frame after it.
            first: The first frame of the scene.
        """
        if self._smoother is None or start == first or self._next != start:
            ahead = read_ahead(styles)
            guides = ahead if guides is styles else read_ahead(guides)
            self._smoother = build(self.name, dict(self.config), guides, ahead, self.device, compiled=self.compiled)
        self._next = stop
        return self._smoother.smooth(start - first, stop - first)

    def close(self) -> None:
        self._smoother = None


@dataclass
class SmoothTask(Task):
    """Deflicker a chunk of the array `styles`; `guides` may name the same array. Scenes begin at `cuts`.

    Where the array `mask` is black, if there is one, the guides are shown.
    """

    smoother: ChunkSmoother
    guides: str
    styles: str
    target: str
    cuts: Sequence[int] = ()
    mask: str | None = None

    @property
    def chunk(self) -> int:
        return self.smoother.chunk

    @property
    def warm_up(self) -> int:
        return -(-self.smoother.warm_up // self.chunk)

    def reads(self, start: int, stop: int) -> Reads:
        """What `run` reads, except for the frames that the smoother reads ahead itself."""
        return reads_of_masked(self.guides, self.mask, range(start, stop))

    def work(self, frames: int) -> dict[str, float]:
        return self.smoother.work(frames)

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        scene = scene_of(start, len(cache[self.styles]), self.cuts)
        styles = Picked(cache[self.styles], scene)
        guides = styles if self.guides == self.styles else Picked(cache[self.guides], scene)
        smoothed = self.smoother.smooth(guides, styles, start=start, stop=stop, first=scene.start)
        cache[self.target].write(start, masked(cache, smoothed, self.guides, self.mask, range(start, stop)))

    def close(self) -> None:
        self.smoother.close()


@dataclass
class PaintTask(Task):
    """Paint a chunk from the keyframes of its scene.

    Args:
        guides: The array of the original video's frames.
        styles: The array of the stylised keyframes.
        keys: Which frames of the video these are, in ascending order.
        target: The array of painted frames.
        unseen: The array of the share of each frame that no keyframe shows.
        device: Device of the job.
        patch_size: Side of the patches in pixels.
        cuts: The first frame of each scene after the first. Every scene has a keyframe.
        mask: The array of masks. Where they are black, the guides are shown.
    """

    guides: str
    styles: str
    keys: Sequence[int]
    target: str
    unseen: str
    device: str
    patch_size: int
    cuts: Sequence[int] = ()
    mask: str | None = None

    @property
    def chunk(self) -> int:
        return PAINT_CHUNK

    def work(self, frames: int) -> dict[str, float]:
        return {PAIRS: 2.0 * (frames - len(self.keys))}

    def reads(self, start: int, stop: int) -> Reads:
        """What `run` reads at once. The painter reads frames one by one."""
        return reads_of_masked(self.guides, self.mask, range(start, stop))

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        from stages.smoothers.images.keyframes import Interpolator

        scene = scene_of(start, len(cache[self.guides]), self.cuts)
        inside = range(*(bisect_left(self.keys, frame) for frame in (scene.start, scene.stop)))
        guides = frames_on_device(cache[self.guides], self.device)
        styles = frames_on_device(Picked(cache[self.styles], inside), self.device)
        painter = Interpolator(guides, styles, self.keys[inside.start : inside.stop], self.patch_size)
        frames, unseen = zip(*painter.paint(range(start, stop)), strict=True)
        painted = masked(cache, np.stack(frames), self.guides, self.mask, range(start, stop))
        cache[self.target].write(start, painted)
        cache[self.unseen].write(start, np.array(unseen, np.float32))
