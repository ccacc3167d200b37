"""What is done to a chunk of frames: decoding, smoothing, painting from keyframes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from stages.base.cache import FrameCache
from stages.smoothers import Smoother, bring, build
from stages.smoothers.images.keyframes import Interpolator
from stages.smoothers.patch_blend import PatchBlend
from stages.video import Shot, fit

SMOOTHER = PatchBlend.name


@dataclass
class DecodeTask:
    """Decodes a chunk into an array, at that array's size. Chunks in order decode each frame once."""

    array: str
    shots: Callable[[], Iterator[Shot]]
    _left: Iterator[Shot] = field(default=iter(()), init=False, repr=False)
    _next: int = field(default=-1, init=False, repr=False)

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        array = cache[self.array]
        if self._next != start:
            self._left = islice(self.shots(), start, None)
        height, width = array.shape[1:3]
        array.write(start, np.stack([fit(shot.image(), height, width) for shot in islice(self._left, stop - start)]))
        self._next = stop


@dataclass
class SmoothTask:
    """Deflickers a chunk. `guides` is the name of the array that leads; it may be that of the styles."""

    config: dict[str, Any]
    device: str
    guides: str
    made: Smoother | None = field(default=None, init=False)  # for all chunks: it keeps what the next one needs, too

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        if self.made is None:
            styles = cache["styles"]
            guides = styles if self.guides == "styles" else cache[self.guides]
            self.made = build(SMOOTHER, self.config, guides, styles, device=self.device)
        cache["smoothed"].write(start, self.made.smooth(start, stop))


@dataclass
class PaintTask:
    """Paints a chunk from keyframes."""

    keys: tuple[int, ...]
    patch_size: int
    device: str

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        guides, styles = (bring(cache[name], self.device) for name in ("guides", "styles"))
        painter = Interpolator(guides, styles, self.keys, self.patch_size)
        frames, unseen = zip(*(painter.paint(index) for index in range(start, stop)), strict=True)
        cache["smoothed"].write(start, np.stack(frames))
        cache["guessed"].write(start, np.array(unseen, np.float32))
