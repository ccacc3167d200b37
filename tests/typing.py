"""Types of what fixtures give and of what tests pass on to each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stages.base.cache import FrameCache

Image: TypeAlias = NDArray[np.uint8]
"""RGB [H, W, 3], or grey [H, W]."""

Images: TypeAlias = NDArray[np.uint8]
"""RGB [N, H, W, 3]."""

Floats: TypeAlias = NDArray[np.float32]
"""float32 values of any shape."""

Keys: TypeAlias = dict[str, Any]
"""Keys of a job, or options of a smoother or annotator, with values that may be wrong on purpose."""

Run: TypeAlias = Callable[[Any, FrameCache, int, int], None]
"""The method `run` of a class of tasks."""


class Cli(Protocol):
    """The command line: exit code and output of a command."""

    def __call__(self, *arguments: object) -> tuple[int, str]: ...


class MakeJob(Protocol):
    """Writes a job file for a folder of so many images, which `keys` may also give as `frames`."""

    def __call__(self, frames: int = 6, /, **keys: object) -> Path: ...


class Render(Protocol):
    """Runs a job into the output folder `name`; the key `batch_size` is 2 unless given."""

    def __call__(self, name: str = "out", /, **keys: object) -> FrameCache: ...
