"""Named types of NumPy arrays. Shapes are not checked; the names say what to expect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]
"""RGB [H, W, 3], or a grey image or mask [H, W]."""

Images: TypeAlias = NDArray[np.uint8]
"""RGB [N, H, W, 3]."""

Flow: TypeAlias = NDArray[np.float32]
"""Displacement of each pixel [H, W, 2] in pixels, horizontal then vertical."""

Field: TypeAlias = NDArray[np.int32]
"""Nearest-neighbour field [H, W, 2]: the row and column of each pixel's match."""

Floats: TypeAlias = NDArray[np.float32]
"""float32 values of any shape."""

Times: TypeAlias = NDArray[np.float64]
"""Seconds [N]."""

Mask: TypeAlias = NDArray[np.bool_]
"""Marked pixels [H, W]."""


class Frames(Protocol):
    """The frames of a video by index, such as a list of images. Reading one may mean decoding it."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Image]: ...

    def __getitem__(self, index: int, /) -> Image: ...
