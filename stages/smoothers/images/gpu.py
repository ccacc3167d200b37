"""The operations of `pixels` for torch tensors. Importing this module registers them.

Data leaves the device only through `fetch`. Tensors on the CPU work as well, slowly, so tests need no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import TypeVar, Unpack

import cv2
import numpy as np
import torch
from torch.backends import cudnn
from torch.nn import functional

from native import binding
from stages.smoothers.images import pixels

# Optical flow compares luminance only. Patch matching takes care of colours.
LUMINANCE = (0.299, 0.587, 0.114)
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


@pixels.each.register
def _each(stack: torch.Tensor, function: Callable[..., torch.Tensor], *stacks: torch.Tensor) -> torch.Tensor:
    # All batches have the same size, since it affects rounding: results must not depend on how many images there are.
    batches = zip(*(array.split(pixels.AT_ONCE) for array in (stack, *stacks)), strict=True)
    return torch.cat([function(*(_padded(array) for array in batch))[: len(batch[0])] for batch in batches])


def _padded(batch: torch.Tensor) -> torch.Tensor:
    return torch.cat([batch, batch[-1:].expand(pixels.AT_ONCE - len(batch), *batch.shape[1:])])


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
    sizes = [pair.reshape(-1, 1, *shape[-3:-1])]  # the first half of the batch is a, the second b
    while min(sizes[-1].shape[2:]) >= 2 * MIN_SIDE:
        sizes.append(_halved(sizes[-1]))
    moved = sizes[-1].new_zeros((len(sizes[-1]) // 2, 2, *sizes[-1].shape[2:]))
    for planes in reversed(sizes):
        if moved.shape[2:] != planes.shape[2:]:
            moved = _scaled_up(moved, *planes.shape[2:])
        here, there = _with_gradients(_blurred(planes, _gaussian(NOISE_BLUR))).chunk(2)
        for _ in range(STEPS):
            moved = moved + _step(here, _sampled(there, _places(moved)), stiff)
    return _images(moved, shape[:-3])


def _with_gradients(planes: torch.Tensor) -> torch.Tensor:
    """Append the gradients along x and y, in levels per pixel, to planes [B, 1, H, W]."""
    wide = functional.pad(planes, (1, 1, 1, 1), mode="replicate")
    across, down = wide[:, :, 1:-1], wide[..., 1:-1]
    return torch.cat([planes, (across[..., 2:] - across[..., :-2]) / 2, (down[:, :, 2:] - down[:, :, :-2]) / 2], 1)


def _step(here: torch.Tensor, found: torch.Tensor, stiff: bool) -> torch.Tensor:
    """Return how to change a motion, px [B, 2, H, W], that warps `found` onto `here`, both with gradients."""
    missing = here[:, :1] - found[:, :1]
    gradients = (here[:, 1:] + found[:, 1:]) / 2
    products = torch.cat([gradients * gradients, gradients[:, :1] * gradients[:, 1:], gradients * missing], 1)
    weighted = products / (1 + (missing / HALF_WEIGHT) ** 2)
    sums = _blurred(weighted, _gaussian(STIFF_AREA if stiff else AREA), mirrored=False)
    squares = sums[:, :2] + (STIFF_DAMPING if stiff else DAMPING)
    cross, wanted = sums[:, 2:3], sums[:, 3:]
    step = squares.flip(1) * wanted - cross * wanted.flip(1)
    return (step / (squares[:, :1] * squares[:, 1:] - cross * cross)).clip(-MAX_STEP, MAX_STEP)


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
    arrays, options = _for_library([image[None].contiguous() for image in (style, guide, target)], options)
    made = binding.synthesize(*arrays, **options)
    image, nnf = (torch.as_tensor(array[0], device=style.device) for array in (made.image, made.nnf))
    return image, nnf


def _for_library(tensors: list[torch.Tensor], options: Options) -> tuple[list[pixels.Array], Options]:
    """Return the tensors as the patch-matching library can use them, and options that say where."""
    if tensors[0].is_cuda and binding.runs_on_gpu(tensors[0].device.index or 0):
        return tensors, options
    options["backend"] = binding.on_cpu()  # it was built without CUDA, or not for this GPU
    return [tensor.cpu().numpy() for tensor in tensors], options


@pixels.sample.register
def _sample(image: torch.Tensor, places: torch.Tensor, cubic: bool = False) -> torch.Tensor:
    stack = torch.broadcast_shapes(image.shape[:-3], places.shape[:-3])
    planes, where = (array.expand(*stack, *array.shape[-3:]) for array in (image, places))
    return _images(_sampled(_planes(planes), where.reshape(-1, *where.shape[-3:]), cubic), stack)


@pixels.box.register
def _box(values: torch.Tensor, side: int) -> torch.Tensor:
    return _images(_blurred(_planes(values), (1 / side,) * side), values.shape[:-3])


@pixels.gauss.register
def _gauss(values: torch.Tensor, deviation: float) -> torch.Tensor:
    return _images(_blurred(_planes(values), _gaussian(deviation)), values.shape[:-3])


@pixels.shrink.register
def _shrink(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return _images(_resized(_planes(values), height, width, cv2.INTER_AREA), values.shape[:-3])


@pixels.enlarge.register
def _enlarge(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return _images(_resized(_planes(values), height, width, cv2.INTER_LINEAR), values.shape[:-3])


@pixels.percentile.register
def _percentile(values: torch.Tensor, per_cent: float) -> torch.Tensor:
    return values.flatten(-3, -2).quantile(per_cent / 100, -2)[..., None, None, :]


@pixels.median.register
def _median(stack: torch.Tensor) -> torch.Tensor:
    return stack.quantile(0.5, 0)


# -- planes: float32 [B, C, H, W], torch's layout ----------------------------------------------------------------------


def _planes(images: torch.Tensor) -> torch.Tensor:
    return images.reshape(-1, *images.shape[-3:]).permute(0, 3, 1, 2)


def _images(planes: torch.Tensor, stack: tuple[int, ...]) -> torch.Tensor:
    images = planes.permute(0, 2, 3, 1)
    return images.reshape(*stack, *images.shape[1:])


def _sampled(planes: torch.Tensor, places: torch.Tensor, cubic: bool = False) -> torch.Tensor:
    """Sample planes at `places`, px [B, H, W, 2], x then y."""
    height, width = planes.shape[2:]
    scale = _constant((2 / max(width - 1, 1), 2 / max(height - 1, 1)), planes.device)
    how = "bicubic" if cubic else "bilinear"
    return functional.grid_sample(planes, places * scale - 1, how, padding_mode="border", align_corners=True)


def _places(moved: torch.Tensor) -> torch.Tensor:
    """Return the positions that a motion [B, 2, H, W] leads to, for `_sampled`."""
    return _grid(*moved.shape[2:], moved.device) + moved.permute(0, 2, 3, 1)


@lru_cache(maxsize=32)
def _grid(height: int, width: int, device: torch.device) -> torch.Tensor:
    rows, columns = (torch.arange(size, dtype=torch.float32, device=device) for size in (height, width))
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)


def _halved(planes: torch.Tensor) -> torch.Tensor:
    height, width = planes.shape[2:]
    return _resized(_blurred(planes, _gaussian(PYRAMID_BLUR)), -(-height // 2), -(-width // 2), cv2.INTER_AREA)


def _scaled_up(moved: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Enlarge a motion to the next pyramid level."""
    scale = _constant((width / moved.shape[3], height / moved.shape[2]), moved.device)
    return _resized(moved, height, width, cv2.INTER_LINEAR) * scale[:, None, None]


def _blurred(planes: torch.Tensor, weights: tuple[float, ...], mirrored: bool = True) -> torch.Tensor:
    """Convolve both axes with `weights`. Planes are mirrored at the borders, or zero outside."""
    kernel, reach = _constant(weights, planes.device), len(weights) // 2
    stack = planes.reshape(-1, 1, *planes.shape[2:])
    # TF32, the default on new GPUs, rounds too much for differences between squares.
    with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for axis, shape in ((2, (1, 1, -1, 1)), (3, (1, 1, 1, -1))):
            if mirrored:
                stack = stack.index_select(axis, _mirror(stack.shape[axis], reach, planes.device))
            padding = (0, 0) if mirrored else (reach, 0) if axis == 2 else (0, reach)
            stack = functional.conv2d(stack, kernel.reshape(shape), padding=padding)
    return stack.reshape(planes.shape)


@cache
def _gaussian(deviation: float) -> tuple[float, ...]:
    """Return OpenCV's Gaussian kernel."""
    size = round(8 * deviation + 1) | 1
    return tuple(cv2.getGaussianKernel(size, deviation, cv2.CV_32F).ravel().tolist())


@cache
def _mirror(size: int, reach: int, device: torch.device) -> torch.Tensor:
    """Return the indices of a row of `size` pixels that is mirrored `reach` pixels beyond its ends."""
    return torch.as_tensor(np.pad(np.arange(size), reach, mode="reflect"), device=device)


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Copy constants to a device once, since every copy stalls it."""
    return torch.tensor(values, device=device)


def _resized(planes: torch.Tensor, height: int, width: int, how: int) -> torch.Tensor:
    down, across = (
        _resize_matrix(*sizes, how, planes.device) for sizes in zip(planes.shape[2:], (height, width), strict=True)
    )
    return down @ planes @ across.T


@cache
def _resize_matrix(size: int, new_size: int, how: int, device: torch.device) -> torch.Tensor:
    """Return OpenCV's resizing of a row as a matrix [new_size, size], by resizing unit vectors."""
    units = np.eye(size, dtype=np.float32)
    return torch.as_tensor(cv2.resize(units, (size, new_size), interpolation=how), device=device)
