"""Existing maps, read from files."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stages.annotators import ANNOTATORS, FromFiles
from stages.base.arrays import Image

MapValue = Annotated[float, Field(ge=-1e30, le=1e30)]  # float32, with room for differences


@ANNOTATORS.register
class MapFiles(FromFiles):
    """Existing maps, such as a renderer's depth pass."""

    name: Literal["file"]
    near: MapValue | None = None
    """Value in the file that becomes white. Set together with `far`."""
    far: MapValue | None = None
    """Value that becomes black. By default, 8- and 16-bit images use their full range and EXR files 0..1."""
    invert: bool = False
    """Swap black and white."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> MapFiles:
        if (self.near is None) != (self.far is None):
            raise ValueError("set both near and far, or neither")
        if self.near is not None and self.far is not None and math.isclose(self.near, self.far, rel_tol=1e-6):
            raise ValueError("near and far must differ")
        return self

    def as_map(self, values: NDArray[np.uint8 | np.uint16 | np.float32]) -> Image:
        """Map values [H, W, 3] to grey levels uint8 [H, W, 3], from `far` (black) to `near` (white)."""
        if values.dtype == np.uint8 and self.near is None:
            grey = values.astype(np.uint8, copy=False)
            return 255 - grey if self.invert else grey
        full_range = float(np.iinfo(values.dtype.name).max) if values.dtype.kind == "u" else 1.0
        near, far = (full_range, 0.0) if self.near is None or self.far is None else (self.near, self.far)
        # Renderers write infinity or NaN where there is no object.
        share = np.nan_to_num((values.astype(np.float32) - far) / (near - far), nan=0.0, posinf=1.0, neginf=0.0)
        share = share.clip(0, 1)
        levels: Image = ((1 - share if self.invert else share) * 255).round().astype(np.uint8)
        return levels
