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
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack

import numpy as np
from array_api_compat import array_namespace

from native import binding
from stages.base.arrays import Image

Array: TypeAlias = Any
"""A NumPy array, or a torch tensor on a GPU. The array API that both are used through has no types."""

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
Fuse: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Turns a function of stacks into a faster one of the same kind."""

AT_ONCE = 8  # pairs of frames processed together, for each frame that is smoothed at once
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
def frames_at_once(image: Array) -> int:
    """Return how many frames of this size to smooth together: several on a GPU, which small images leave idle."""
    return 1


@singledispatch
def filled(image: Array, items: list[T], size: int) -> list[T]:
    """Extend a list of what to compute with images like `image` to `size` items by repeating the last one.

    On a GPU, rounding can depend on how many images are processed together. NumPy arrays are processed one by one, so
    their list is returned as it is.
    """
    return items


@singledispatch
def each(stack: Array, function: Callable[..., Array], *stacks: Array) -> Array:
    """Apply `function` to each image of one or more stacks and stack the results.

    The stacks' leading dimensions are broadcast. On a GPU, the function gets whole stacks. It must not call `each`, and
    its result for an image must not depend on the other images.
    """
    shape = np.broadcast_shapes(*(array.shape[:-3] for array in (stack, *stacks)))
    arrays = [np.broadcast_to(array, (*shape, *array.shape[-3:])) for array in (stack, *stacks)]
    results = np.stack(
        list(_pool().map(lambda place: function(*(array[place] for array in arrays)), np.ndindex(shape)))
    )
    return results.reshape(*shape, *results.shape[1:])


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


def as_it_is(function: Function) -> Function:
    """Return a function itself."""
    return function


@singledispatch
def fuse(image: Array, function: Function) -> Function:
    """Compile a function of stacks of images like `image`, so that it runs as few kernels. Only tensors need that.

    The function may call `each`, and all others here but `match`, `synthesize` and `fetch`. Other arguments are numbers
    that are always the same.

    Raises:
        DiffSynthError: PyTorch cannot compile here. The function raises it, too, if it cannot be compiled.
    """
    return function


def stacked(images: list[Array]) -> Array:
    """Join images to a stack."""
    return array_namespace(images[0]).stack(images)


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
    """Paint each image of `target` in the way that of `style` paints that of `guide`. All are stacks, uint8.

    Returns:
        The images uint8 [N, H, W, C], and the position of each patch in its style, int32 [N, H, W, 2] (row, column).

    Raises what `native.binding.synthesize` raises.
    """
    options["backend"] = binding.on_cpu()
    made = binding.synthesize(*map(np.ascontiguousarray, (style, guide, target)), **options)
    return made.image, made.nnf


@singledispatch
def positions(image: Array) -> Array:
    """Return the position of each pixel, float32 [H, W, 2], x then y."""
    rows, columns = (np.arange(size, dtype=np.float32) for size in image.shape[:2])
    return np.stack(np.meshgrid(columns, rows, indexing="xy"), axis=-1)


@singledispatch
def warp(image: Array, motion: Array, cubic: bool = False) -> Array:
    """Sample an image at p + motion(p), linearly or cubically; float32. Its border pixels extend outwards."""
    import cv2

    x, y = np.ascontiguousarray(np.moveaxis(positions(motion) + motion, 2, 0))
    how = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    return cv2.remap(floats(image), x, y, how, borderMode=cv2.BORDER_REPLICATE).reshape(*motion.shape[:2], -1)


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
def mean_square(values: Array) -> Array:
    """Average the squares over channels: [H, W, C] to [H, W, 1]."""
    return array_namespace(values).vecdot(values, values)[..., None] / values.shape[-1]


@singledispatch
def percentile(values: Array, per_cent: float) -> Array:
    """Return the percentile of each channel as an image of one pixel."""
    return np.percentile(values, per_cent, axis=(-3, -2), keepdims=True).astype(np.float32)


@singledispatch
def median(stack: Array) -> Array:
    """Return the median over the images of stacks [..., N, H, W, C], element by element, as stacks of one image."""
    return np.median(stack, axis=-4, keepdims=True)


@singledispatch
def mean(stack: Array, weights: Array) -> Array:
    """Return the weighted mean over the images of stacks [..., N, H, W, C], as stacks of one image."""
    layers, shares = (np.moveaxis(array, -4, 0) for array in (stack, weights))
    return (sum(map(np.multiply, layers, shares)) / sum(shares))[..., None, :, :, :]


@singledispatch
def numbers(image: Array, values: tuple[float, ...]) -> Array:
    """Return numbers as an array float32 [N] on the device of an image."""
    return np.array(values, np.float32)
