"""Composite images by masks."""

from __future__ import annotations

import numpy as np

from stages.base.arrays import Images

WHITE = 255


def composite(images: Images, background: Images, masks: Images) -> Images:
    """Show `images` where masks are white and `background` where they are black, exactly, and mix them in between.

    Images are uint8 [K, H, W, 3], masks uint8 [K, H, W].
    """
    share = masks[..., None].astype(np.uint16)
    mixed = (share * images + (WHITE - share) * background + WHITE // 2) // WHITE
    return np.asarray(mixed, np.uint8)
