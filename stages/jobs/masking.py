"""The keys of masks, which jobs and `diffsynth smooth` share."""

from __future__ import annotations

from pydantic import Field

from stages.base.mistakes import Strict
from stages.base.paths import InputFile


class MaskSettings(Strict):
    """Which parts of frames are restyled."""

    mask: InputFile | None = None
    """Restyle only where this is white, and keep the source's pixels where it is black: a video or a folder of images
    with one mask per frame, or one image for all frames."""
    mask_grow: int = Field(0, ge=-1000, le=1000)
    """Pixels by which the white part of `mask` grows; it shrinks by a negative number."""
    mask_feather: int = Field(4, ge=0, le=1000)
    """Width in pixels of the soft edge of `mask`."""
    mask_invert: bool = False
    """Swap black and white of `mask`."""
