"""Operations on images in NumPy arrays (with OpenCV) and in torch tensors on a GPU (registered by `gpu`).

Code that only uses these and the array API runs on both.

Images are [H, W, C] and maps with one value per pixel [H, W, 1]. Tensors may have leading dimensions: a GPU processes a
stack of images with as many kernel launches as a single one.

OpenCV is imported on first use, so that smoothers' options can be read without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, singledispatch
from typing import Any, TypeAlias, TypedDict, Unpack

import numpy as np

from native import binding
from stages.base.arrays import Image

Array: TypeAlias = Any
"""A NumPy array, or a torch tensor on a GPU. The array API that both are used through has no types."""

AT_ONCE = 8  # images of a stack processed together on a GPU
MIN_FLOW_SIDE = 12  # px; optical flow cannot process smaller images


class Where(TypedDict, total=False):
    """Where the patch-matching library runs: options of `native.binding`. NumPy arrays are processed by the CPU."""

    threads: int
    backend: str


class MatchOptions(Where, total=False):
    """Options of `native.binding.match`."""

    patch_sizes: tuple[int, ...]
    pyramid_levels: int
    patch_match_iterations: int
    search_radius: int


class SynthesisOptions(Where, total=False):
    """Options of `native.binding.synthesize`."""

    guide_weights: list[float]
    patch_size: int
    search_vote_iterations: int
    patch_match_iterations: int


@singledispatch
def each(stack: Array, function: Callable[..., Array], *stacks: Array) -> Array:
    """Apply `function` to each image of one or more stacks and stack the results.

    On a GPU it gets AT_ONCE images at a time. It must not call `each`, and its result for an image must not depend on
    the other images.
    """
    return np.stack(list(_pool().map(function, stack, *stacks)))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


@singledispatch
def floats(image: Array) -> Array:
    """Convert to float32."""
    return image.astype(np.float32)


@singledispatch
def halves(image: Array) -> Array:
    """Convert to float16, for storage."""
    return image.astype(np.float16)


@singledispatch
def fetch(image: Array) -> Image:
    """Convert to a NumPy array of uint8, rounded to the nearest."""
    pixels: Image = image if image.dtype == np.uint8 else np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return pixels


@singledispatch
def flow(a: Array, b: Array, stiff: bool = False) -> Array:
    """Estimate the optical flow from image a to image b, such that a(p) looks like b(p + flow(p)).

    NumPy arrays are processed by DIS (Kroeger et al. 2016).

    Args:
        a, b: RGB in 0..255.
        stiff: Smooth the flow more, for noisy images. Only the method for GPUs needs it.

    Returns:
        float32 [H, W, 2], x then y, in pixels.
    """
    if min(a.shape[:2]) < MIN_FLOW_SIDE:
        return np.zeros((*a.shape[:2], 2), np.float32)
    import cv2

    grey_a, grey_b = (cv2.cvtColor(fetch(image), cv2.COLOR_RGB2GRAY) for image in (a, b))
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    no_start: Array = None  # OpenCV's types do not allow for it
    return estimator.calc(grey_a, grey_b, no_start)


@singledispatch
def match(source: Array, target: Array, start: Array, **options: Unpack[MatchOptions]) -> Array:
    """Find the most similar patch of `source` for every patch of `target`, starting at the field `start`.

    Images are uint8, fields int32 [H, W, 2] (row, column). Raises what `native.binding.match` raises.
    """
    options["backend"] = binding.on_cpu()
    images = (np.ascontiguousarray(image)[None] for image in (source, target))
    return binding.match(*images, start="given", nnf=np.ascontiguousarray(start, np.int32)[None], **options).nnf[0]


@singledispatch
def synthesize(style: Array, guide: Array, target: Array, **options: Unpack[SynthesisOptions]) -> tuple[Array, Array]:
    """Paint `target` in the way `style` paints `guide`. All images are uint8.

    Returns:
        The image uint8 [H, W, C], and the position of each patch in the style, int32 [H, W, 2] (row, column).

    Raises what `native.binding.synthesize` raises.
    """
    options["backend"] = binding.on_cpu()
    images = (np.ascontiguousarray(image)[None] for image in (style, guide, target))
    made = binding.synthesize(*images, **options)
    return made.image[0], made.nnf[0]


@singledispatch
def sample(image: Array, places: Array, cubic: bool = False) -> Array:
    """Sample a float32 image at `places` [h, w, 2] (x, y), linearly or cubically. Its border pixels extend outwards."""
    import cv2

    x, y = np.ascontiguousarray(np.moveaxis(places, 2, 0))
    how = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    return cv2.remap(image, x, y, how, borderMode=cv2.BORDER_REPLICATE).reshape(*places.shape[:2], -1)


@singledispatch
def box(values: Array, side: int) -> Array:
    """Average over squares of `side` pixels. Mirrored at the borders; float32."""
    import cv2

    return cv2.blur(values, (side, side)).reshape(values.shape)


@singledispatch
def gauss(values: Array, deviation: float) -> Array:
    """Blur with a Gaussian of standard deviation `deviation` in pixels. Mirrored at the borders; float32."""
    import cv2

    return cv2.GaussianBlur(values, (0, 0), deviation).reshape(values.shape)


@singledispatch
def shrink(values: Array, height: int, width: int) -> Array:
    """Shrink to float32 [height, width, C] by averaging areas."""
    import cv2

    return cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)


@singledispatch
def enlarge(values: Array, height: int, width: int) -> Array:
    """Enlarge to float32 [height, width, C] by linear interpolation."""
    import cv2

    return cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)


@singledispatch
def percentile(values: Array, per_cent: float) -> Array:
    """Return the percentile of each channel as an image of one pixel."""
    return np.percentile(values, per_cent, axis=(-3, -2), keepdims=True).astype(np.float32)


@singledispatch
def median(stack: Array) -> Array:
    """Return the median of a stack of images, element by element."""
    return np.median(stack, axis=0)
