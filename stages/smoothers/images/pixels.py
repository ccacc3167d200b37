"""Operations on images, wherever these are: on the processor, as NumPy arrays, by OpenCV; on a GPU, as torch tensors,
by what `gpu` registers here. What is written with these and with the array API runs on both.

Images are [H, W, C], maps of one number [H, W, 1]. On a GPU other dimensions may stand before these: there a stack of
images takes as many steps as one, and steps are what takes time.

OpenCV is imported when it is first used: smoothers' options can be read without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, singledispatch
from typing import Any

import numpy as np

from native import binding

Array = Any
"""NumPy's on the processor, torch's on a GPU."""

AT_ONCE = 8  # images of a stack that go through an operation together on a GPU
SMALLEST = 12  # px a side: optical flow cannot read smaller pictures


@singledispatch
def each(stack: Array, function: Callable[..., Array], *stacks: Array) -> Array:
    """`function` of every image of a stack, or of several together, as a stack: on a GPU AT_ONCE together. It must not
    call `each`, and what it gives for one image must not depend on others."""
    return np.stack(list(_pool().map(function, stack, *stacks)))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


@singledispatch
def floats(image: Array) -> Array:
    """As float32."""
    return image.astype(np.float32)


@singledispatch
def halves(image: Array) -> Array:
    """As float16, to be kept."""
    return image.astype(np.float16)


@singledispatch
def fetch(image: Array) -> np.ndarray:
    """As a NumPy array, uint8, rounded to the nearest."""
    return image if image.dtype == np.uint8 else np.clip(np.rint(image), 0, 255).astype(np.uint8)


@singledispatch
def flow(a: Array, b: Array, stiff: bool = False) -> Array:
    """Optical flow from image a to b, RGB, 0..255, so that a(p) looks like b(p + flow(p)), float32 [H, W, 2], x then y.
    `stiff`: for images with noise of their own; a GPU's method must be told to follow it less.

    On the processor DIS (Kroeger et al. 2016).
    """
    if min(a.shape[:2]) < SMALLEST:
        return np.zeros((*a.shape[:2], 2), np.float32)
    import cv2

    grey = [cv2.cvtColor(fetch(image), cv2.COLOR_RGB2GRAY) for image in (a, b)]
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    return estimator.calc(*grey, None)


@singledispatch
def match(source: Array, target: Array, start: Array, **options: Any) -> Array:
    """For every patch of `target` the place of the likest in `source`, searched from `start` on: images uint8, fields
    int32 [H, W, 2], row and column. `options` of `native.binding.match`; raises as that does."""
    images = (np.ascontiguousarray(image)[None] for image in (source, target))
    return binding.match(*images, start="given", nnf=np.ascontiguousarray(start, np.int32)[None], **options).nnf[0]


@singledispatch
def synthesize(style: Array, guide: Array, target: Array, **options: Any) -> tuple[Array, Array]:
    """`target` painted as `style` paints `guide`, uint8 [H, W, C], and where in it each patch was found, int32
    [H, W, 2], row and column. All uint8; `options` of `native.binding.synthesize`; raises as that does."""
    images = (np.ascontiguousarray(image)[None] for image in (style, guide, target))
    made = binding.synthesize(*images, **options)
    return made.image[0], made.nnf[0]


@singledispatch
def sample(image: Array, places: Array, cubic: bool = False) -> Array:
    """The image, float32, at `places` [h, w, 2] (x, y): between pixels linear or cubic, outside its nearest pixel."""
    import cv2

    x, y = np.ascontiguousarray(np.moveaxis(places, 2, 0))
    how = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    return cv2.remap(image, x, y, how, borderMode=cv2.BORDER_REPLICATE).reshape(*places.shape[:2], -1)


@singledispatch
def box(values: Array, side: int) -> Array:
    """Mean over squares of `side` pixels, float32; mirrored at the borders."""
    import cv2

    return cv2.blur(values, (side, side)).reshape(values.shape)


@singledispatch
def gauss(values: Array, deviation: float) -> Array:
    """Mean weighted by a Gaussian of `deviation` pixels, float32; mirrored at the borders."""
    import cv2

    return cv2.GaussianBlur(values, (0, 0), deviation).reshape(values.shape)


@singledispatch
def shrink(values: Array, height: int, width: int) -> Array:
    """float32 [height, width, C], each pixel the mean of those it covers."""
    import cv2

    return cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)


@singledispatch
def enlarge(values: Array, height: int, width: int) -> Array:
    """float32 [height, width, C], linear between pixels."""
    import cv2

    return cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)


@singledispatch
def percentile(values: Array, per_cent: float) -> Array:
    """Of an image's numbers, channel by channel, as an image of one pixel."""
    return np.percentile(values, per_cent, axis=(-3, -2), keepdims=True).astype(np.float32)


@singledispatch
def median(stack: Array) -> Array:
    """Of a stack's images, number by number."""
    return np.median(stack, axis=0)
