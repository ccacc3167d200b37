"""The operations of `pixels` for torch tensors. Importing this module registers them.

Data leaves the device only through `fetch`. Tensors on the CPU work as well, slowly, so tests need no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from math import ceil, floor
from typing import TypeVar, Unpack

import cv2
import numpy as np
import torch
from torch.backends import cudnn
from torch.nn import functional

from native import binding
from stages.models.compiler import Tensors, check_compiler, compiled, compiler_errors
from stages.smoothers.images import pixels

# Optical flow compares luminance only. Patch matching takes care of colours.
LUMINANCE = (0.299, 0.587, 0.114)
PIXELS_AT_ONCE = 2 * 2**20  # of the frames smoothed together, which bounds the memory ...
PIXELS_TRACKED_AT_ONCE = 6 * 2**20  # ... together with this, of the pairs whose flow is found together
MAX_FRAMES_AT_ONCE = 8
MIN_SIDE = 8  # px of the smallest pyramid level
PYRAMID_BLUR = 1.0  # px, before an image is halved
NOISE_BLUR = 0.6  # px, before images are compared
STEPS = 3  # per pyramid level
MAX_STEP = 2.0  # px
AREA, STIFF_AREA = 2.0, 4.0  # px over which motion is constant
DAMPING, STIFF_DAMPING = 3.0, 100.0  # levels²/px², added to the squared gradients
HALF_WEIGHT = 20.0  # levels of difference at which the weight of a pixel is halved

Options = TypeVar("Options", pixels.MatchOptions, pixels.SynthesisOptions)


def load(frame: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy a frame uint8 [H, W, C] to a device."""
    return torch.from_numpy(np.ascontiguousarray(frame)).to(device)


@pixels.frames_at_once.register
def _frames_at_once(image: torch.Tensor) -> int:
    fitting = max(PIXELS_AT_ONCE // (image.shape[-3] * image.shape[-2]), 1)
    return min(1 << fitting.bit_length() - 1, MAX_FRAMES_AT_ONCE)


@pixels.filled.register
def _filled(image: torch.Tensor, items: list[pixels.T], size: int) -> list[pixels.T]:
    return items + items[-1:] * (size - len(items))


@pixels.each.register
def _each(stack: torch.Tensor, function: Callable[..., torch.Tensor], *stacks: torch.Tensor) -> torch.Tensor:
    return function(stack, *stacks)


@pixels.fuse.register
def _fuse(image: torch.Tensor, function: Callable[..., Tensors]) -> Callable[..., Tensors]:
    check_compiler(image.device)
    graphs: dict[object, Callable[..., Tensors]] = {}

    def fused(*arguments: torch.Tensor | float) -> Tensors:
        layout = tuple(map(_layout, arguments))
        with cudnn.flags(enabled=False):
            if layout in graphs:
                return graphs[layout](*arguments)
            with compiler_errors(image.device):
                graphs[layout] = compiled(function, arguments)
                return graphs[layout](*arguments)

    return fused


def _layout(argument: torch.Tensor | float) -> object:
    """Return what a compiled function takes for granted of an argument."""
    return (argument.shape, argument.stride(), argument.dtype) if isinstance(argument, torch.Tensor) else argument


@pixels.floats.register
def _floats(image: torch.Tensor) -> torch.Tensor:
    return image.float()


@pixels.halves.register
def _halves(image: torch.Tensor) -> torch.Tensor:
    return image.half()


@pixels.fetch.register
def _fetch(image: torch.Tensor) -> np.ndarray:
    return image.round().clip(0, 255).to(torch.uint8).cpu().numpy()


@pixels.flow.register
def _flow(a: torch.Tensor, b: torch.Tensor, stiff: bool = False) -> torch.Tensor:
    """Estimate optical flow by the pyramidal Lucas-Kanade method (Bouguet 2000).

    It uses the gradients of both images (Birchfield & Pundlik 2008) and Geman-McClure weights against outliers.
    """
    shape = torch.broadcast_shapes(a.shape, b.shape)
    if min(shape[-3:-1]) < pixels.MIN_FLOW_SIDE:
        return a.new_zeros((*shape[:-1], 2), dtype=torch.float32)
    luminance = _constant(LUMINANCE, a.device)
    pair = torch.stack([(image.float() @ luminance).expand(shape[:-1]) for image in (a, b)])
    levels = [pair.reshape(-1, *shape[-3:-1])]  # the first half of the batch is a, the second b
    del pair  # so that a level can be freed
    while min(levels[-1].shape[1:]) >= 2 * MIN_SIDE:
        levels.append(_halved(levels[-1]))
    places = _grid(*levels[-1].shape[1:], a.device).expand(len(levels[-1]) // 2, -1, -1, -1)
    while levels:
        planes = _with_gradients(levels.pop())
        if places.shape[1:3] != planes.shape[2:]:
            places = _scaled_up(places, *planes.shape[2:])
        places = _tracked(planes, places, stiff)
    moved = _moved(places) * _constant((places.shape[2] / 2, places.shape[1] / 2), a.device)
    return moved.reshape(*shape[:-1], 2)


def _with_gradients(images: torch.Tensor) -> torch.Tensor:
    """Return blurred images [B, H, W] and half their gradients along x and y, levels per pixel, as planes [B, 3, H, W].

    Images of the second half of the batch are negated, so that adding planes of both halves gives the difference of the
    images and their mean gradients.
    """
    wide = functional.pad(_blurred(images[None], _gaussian(NOISE_BLUR)), (1, 1, 1, 1), mode="replicate")
    with cudnn.flags(enabled=False):
        planes = functional.conv2d(wide, _gradients(len(images), images.device), groups=len(images))
    return planes.reshape(-1, 3, *images.shape[1:])


@lru_cache(maxsize=32)
def _gradients(batch: int, device: torch.device) -> torch.Tensor:
    """Return the kernels of `_with_gradients`, three for each image."""
    image, across = np.zeros((2, 3, 3), np.float32)
    image[1, 1], across[1] = 1, (-0.25, 0, 0.25)
    kernels = [np.stack([sign * image, across, across.T]) for sign in (1, -1)]
    return torch.as_tensor(np.repeat(kernels, batch // 2, axis=0).reshape(-1, 1, 3, 3), device=device)


def _tracked(planes: torch.Tensor, places: torch.Tensor, stiff: bool) -> torch.Tensor:
    """Move `places` to where they look alike. `planes` are those of `_with_gradients`.

    Only so many pairs are processed together that what the steps need in between stays small.
    """
    parts = -(-places[..., 0].numel() // PIXELS_TRACKED_AT_ONCE)
    moved = []
    for here, there, part in zip(*(array.tensor_split(parts) for array in (*planes.chunk(2), places)), strict=True):
        for _ in range(STEPS):
            part = _step(here, there, part, stiff)
        moved.append(part)
    return torch.cat(moved) if parts > 1 else moved[0]


def _step(here: torch.Tensor, there: torch.Tensor, places: torch.Tensor, stiff: bool) -> torch.Tensor:
    """Return places in `there` that look more like `here`; both [B, 3, H, W], as `_with_gradients` returns them."""
    area, damping = (STIFF_AREA, STIFF_DAMPING) if stiff else (AREA, DAMPING)
    kernel = _gaussian(area)
    products = _convolved(_products(here + _sampled(there, places)), kernel, padding=len(kernel) // 2)
    step = _solved(products.unflatten(1, (2, 3)), damping)
    del products  # so that no more is in memory than needed
    height, width = here.shape[2:]
    return torch.addcmul(places, step.permute(0, 2, 3, 1), _constant((-2 / width, -2 / height), here.device))


def _products(sums: torch.Tensor) -> torch.Tensor:
    """Multiply both gradients, weighted, by what is missing and by both: what is wanted, and two of a matrix, each."""
    missing, gradients = sums[:, :1], sums[:, 1:]
    weights = torch.addcmul(_constant((1.0,), sums.device), missing, missing, value=HALF_WEIGHT**-2)
    products: torch.Tensor = (gradients / weights)[:, :, None] * sums[:, None]
    return products.flatten(1, 2)


def _solved(equations: torch.Tensor, damping: float) -> torch.Tensor:
    """Solve two damped equations for a step in pixels, [B, 2, H, W]. They are [B, 2, 3, H, W], and are changed."""
    equations += _constant((0.0, damping, 0.0, 0.0, 0.0, damping), equations.device).reshape(2, 3, 1, 1)
    solved = torch.linalg.cross(*equations.unbind(1), dim=1)  # Cramer's rule: the determinant, minus the numerators
    step: torch.Tensor = solved[:, 1:] / solved[:, :1]
    return step.clip_(-MAX_STEP, MAX_STEP)


@pixels.match.register
def _match(
    source: torch.Tensor, target: torch.Tensor, start: torch.Tensor, **options: Unpack[pixels.MatchOptions]
) -> torch.Tensor:
    options.pop("threads", None)  # a whole stack is one call, which may use all threads
    shape = torch.broadcast_shapes(source.shape, target.shape)
    arrays = [image.expand(shape).reshape(-1, *shape[-3:]).contiguous() for image in (source, target)]
    arrays.append(start.expand(*shape[:-1], 2).reshape(-1, *shape[-3:-1], 2).to(torch.int32).contiguous())
    arrays, options = _for_library(arrays, options)
    found = binding.match(*arrays[:2], start="given", nnf=arrays[2], **options).nnf
    return torch.as_tensor(found, device=source.device).reshape(*shape[:-1], 2)


@pixels.synthesize.register
def _synthesize(
    style: torch.Tensor, guide: torch.Tensor, target: torch.Tensor, **options: Unpack[pixels.SynthesisOptions]
) -> tuple[torch.Tensor, torch.Tensor]:
    arrays, options = _for_library([images.contiguous() for images in (style, guide, target)], options)
    made = binding.synthesize(*arrays, **options)
    image, nnf = (torch.as_tensor(array, device=style.device) for array in (made.image, made.nnf))
    return image, nnf


def _for_library(tensors: list[torch.Tensor], options: Options) -> tuple[list[pixels.Array], Options]:
    """Return the tensors as the patch-matching library can use them, and options that say where."""
    if tensors[0].is_cuda and binding.runs_on_gpu(tensors[0].device.index or 0):
        return tensors, options
    options["backend"] = binding.on_cpu()  # it was built without CUDA, or not for this GPU
    return [tensor.cpu().numpy() for tensor in tensors], options


@pixels.positions.register
def _positions(image: torch.Tensor) -> torch.Tensor:
    return _pixel_grid(*image.shape[-3:-1], image.device)


@lru_cache(maxsize=32)
def _pixel_grid(height: int, width: int, device: torch.device) -> torch.Tensor:
    rows, columns = (torch.arange(size, dtype=torch.float32, device=device) for size in (height, width))
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)


@pixels.warp.register
def _warp(image: torch.Tensor, motion: torch.Tensor, cubic: bool = False) -> torch.Tensor:
    stack, (height, width) = torch.broadcast_shapes(image.shape[:-3], motion.shape[:-3]), image.shape[-3:-1]
    places = torch.addcmul(_grid(height, width, image.device), motion, _constant((2 / width, 2 / height), image.device))
    planes, where = (array.expand(*stack, *array.shape[-3:]) for array in (image.float(), places))
    return _images(_sampled(_planes(planes), where.reshape(-1, *where.shape[-3:]), cubic), stack)


@pixels.box.register
def _box(values: torch.Tensor, side: int) -> torch.Tensor:
    return _images(_blurred(_planes(values), (1 / side,) * side), values.shape[:-3])


@pixels.gauss.register
def _gauss(values: torch.Tensor, deviation: float) -> torch.Tensor:
    return _images(_blurred(_planes(values), _gaussian(deviation)), values.shape[:-3])


@pixels.shrink.register
def _shrink(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    planes = _planes(values)
    return _images(_shrunk(planes, height, width), values.shape[:-3])


@pixels.enlarge.register
def _enlarge(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return _images(_enlarged(_planes(values), height, width), values.shape[:-3])


@pixels.mean_square.register
def _mean_square(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean(-1, keepdim=True)


@pixels.percentile.register
def _percentile(values: torch.Tensor, per_cent: float) -> torch.Tensor:
    pixels_last = values.flatten(-3, -2).movedim(-2, -1)
    rank = per_cent / 100 * (pixels_last.shape[-1] - 1)
    low = pixels_last.kthvalue(floor(rank) + 1).values  # sorting a stack would sort its images one by one
    high = pixels_last.kthvalue(ceil(rank) + 1).values
    return torch.lerp(low, high, rank % 1)[..., None, None, :]


@pixels.median.register
def _median(stack: torch.Tensor) -> torch.Tensor:
    ordered, count = stack.sort(-4).values, stack.shape[-4]
    return (ordered.narrow(-4, (count - 1) // 2, 1) + ordered.narrow(-4, count // 2, 1)) / 2


@pixels.mean.register
def _mean(stack: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (stack * weights).sum(-4, keepdim=True) / weights.sum(-4, keepdim=True)


@pixels.numbers.register
def _numbers(image: torch.Tensor, values: tuple[float, ...]) -> torch.Tensor:
    return _constant(tuple(map(float, values)), image.device)


# -- planes: float32 [B, C, H, W], torch's layout ----------------------------------------------------------------------


def _planes(images: torch.Tensor) -> torch.Tensor:
    return images.reshape(-1, *images.shape[-3:]).permute(0, 3, 1, 2)


def _images(planes: torch.Tensor, stack: tuple[int, ...]) -> torch.Tensor:
    images = planes.permute(0, 2, 3, 1)
    return images.reshape(*stack, *images.shape[1:])


def _sampled(planes: torch.Tensor, places: torch.Tensor, cubic: bool = False) -> torch.Tensor:
    """Sample planes at `places` [B, H, W, 2], x then y, where -1 and 1 are the borders of the image."""
    how = "bicubic" if cubic else "bilinear"
    return functional.grid_sample(planes, places, how, padding_mode="border", align_corners=False)


@lru_cache(maxsize=32)
def _grid(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return the place of each pixel, for `_sampled`."""
    rows, columns = ((2 * torch.arange(size, device=device) + 1) / size - 1 for size in (height, width))
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)


def _moved(places: torch.Tensor) -> torch.Tensor:
    return places - _grid(*places.shape[1:3], places.device)


def _scaled_up(places: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Enlarge a motion to the next pyramid level."""
    moved = _enlarged(_moved(places).permute(0, 3, 1, 2), height, width)
    return _grid(height, width, places.device) + moved.permute(0, 2, 3, 1)


def _blurred(planes: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """Convolve both axes with `weights`. Planes are mirrored at the borders."""
    reach = len(weights) // 2
    if reach < min(planes.shape[2:]):
        return _convolved(functional.pad(planes, (reach,) * 4, mode="reflect"), weights)
    down, across = (_blur_matrix(size, weights, planes.device) for size in planes.shape[2:])  # mirrored repeatedly
    return down @ planes @ across.T


def _convolved(planes: torch.Tensor, weights: tuple[float, ...], padding: int = 0) -> torch.Tensor:
    """Convolve both axes with `weights`. Planes are zero outside."""
    batch, stack = planes.shape[:2], planes.reshape(1, -1, *planes.shape[2:])
    del planes  # so that they can be freed after the first pass
    kernel = _kernels(weights, stack.shape[1], stack.device)
    # torch's own kernel, unlike cuDNN's, never rounds to TF32, and a plane is the same in every batch.
    with cudnn.flags(enabled=False):
        stack = functional.conv2d(stack, kernel[..., None], padding=(padding, 0), groups=stack.shape[1])
        stack = functional.conv2d(stack, kernel[:, :, None], padding=(0, padding), groups=stack.shape[1])
    return stack.reshape(*batch, *stack.shape[2:])


@lru_cache(maxsize=256)
def _kernels(weights: tuple[float, ...], planes: int, device: torch.device) -> torch.Tensor:
    """Return the kernel of a convolution along one axis for each plane, [planes, 1, size]."""
    return _constant(weights, device).repeat(planes, 1, 1)


@cache
def _gaussian(deviation: float) -> tuple[float, ...]:
    """Return OpenCV's Gaussian kernel."""
    size = round(8 * deviation + 1) | 1
    return tuple(cv2.getGaussianKernel(size, deviation, cv2.CV_32F).ravel().tolist())


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Copy constants to a device once, since every copy stalls it."""
    return torch.tensor(values, device=device)


def _enlarged(planes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return functional.interpolate(planes, (height, width), mode="bilinear", align_corners=False)


def _halved(images: torch.Tensor) -> torch.Tensor:
    """Blur images [B, H, W] and halve their size."""
    height, width = (-(-size // 2) for size in images.shape[1:])
    return _shrunk(images, height, width, PYRAMID_BLUR)


def _shrunk(images: torch.Tensor, height: int, width: int, blur: float = 0.0) -> torch.Tensor:
    down, across = (
        _shrink_matrix(*sizes, blur, images.device) for sizes in zip(images.shape[-2:], (height, width), strict=True)
    )
    return down @ (images @ across.T)


@cache
def _shrink_matrix(size: int, new_size: int, blur: float, device: torch.device) -> torch.Tensor:
    """Return OpenCV's resizing of a row, blurred first, as a matrix [new_size, size], by resizing unit vectors."""
    rows = _mirrored_sums(size, _gaussian(blur) if blur else (1.0,))
    return torch.as_tensor(cv2.resize(rows, (size, new_size), interpolation=cv2.INTER_AREA), device=device)


@cache
def _blur_matrix(size: int, weights: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.as_tensor(_mirrored_sums(size, weights), device=device)


def _mirrored_sums(size: int, weights: tuple[float, ...]) -> np.ndarray:
    """Return the convolution of a row as a matrix [size, size]. The row is mirrored at its ends."""
    matrix = np.zeros((size, size), np.float32)
    places = np.pad(np.arange(size), len(weights) // 2, mode="reflect")
    for row, sums in enumerate(matrix):
        np.add.at(sums, places[row : row + len(weights)], np.array(weights, np.float32))
    return matrix
