"""Maps that were made elsewhere."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from stages.annotators import ANNOTATORS, FromFiles

MapValue = Annotated[float, Field(ge=-1e30, le=1e30)]  # float32, with room for differences


@ANNOTATORS.register
class MapFiles(FromFiles):
    """Maps made elsewhere, a renderer's depth pass for example."""

    name: Literal["file"]
    near: MapValue | None = None
    """The value in the file that becomes white; with `far`."""
    far: MapValue | None = None
    """The value that becomes black. Left out, 8- and 16-bit images fill their range, and of EXR files 0..1 counts."""
    invert: bool = False
    """White becomes black."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> MapFiles:
        if (self.near is None) != (self.far is None):
            raise ValueError("near and far go together")
        if self.near is not None and self.far is not None and math.isclose(self.near, self.far, rel_tol=1e-6):
            raise ValueError("near and far are the same")
        return self

    def as_map(self, values: np.ndarray) -> np.ndarray:
        """The map uint8 [H, W, 3] of an image's values [H, W, 3]: from `far` (black) to `near` (white)."""
        if values.dtype == np.uint8 and self.near is None:
            return 255 - values if self.invert else values
        whole = float(np.iinfo(values.dtype).max) if values.dtype.kind == "u" else 1.0
        near, far = (whole, 0.0) if self.near is None or self.far is None else (self.near, self.far)
        # Renderers write infinity, or nothing that is a number, where there is no object.
        share = np.nan_to_num((values.astype(np.float32) - far) / (near - far), nan=0.0, posinf=1.0, neginf=0.0)
        share = share.clip(0, 1)
        return ((1 - share if self.invert else share) * 255).round().astype(np.uint8)
