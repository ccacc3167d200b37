"""What `pixels` does, on a GPU, with torch. Importing this module is what makes tensors work there.

Nothing leaves the device but by `fetch`. Tensors on the processor work, too, slowly: all of this can be tested where
there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch.backends import cudnn
from torch.nn import functional

from native import binding
from stages.smoothers.images import pixels

# Optical flow. Shades count, colours do not: matching patches is what knows colours.
SHADES = (0.299, 0.587, 0.114)
COARSEST = 8  # px a side, at least, of the smallest pictures that are compared
HALVED = 1.0  # px, smoothing before a picture is halved
NOISE = 0.6  # px, smoothing of what is compared
STEPS = 3  # at each size
STEP = 2.0  # px, at most
AREA, STIFF_AREA = 2.0, 4.0  # px that move together
UNMOVED, STIFF = 3.0, 100.0  # levels² a px² of gradient that it takes to move anything
ODD = 20.0  # levels of difference at which a pixel counts half


def load(frame: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 [H, W, C], brought there."""
    return torch.from_numpy(np.ascontiguousarray(frame)).to(device)


@pixels.each.register
def _each(stack: torch.Tensor, function: Callable[..., Any], *stacks: torch.Tensor) -> torch.Tensor:
    """In batches of one size: how a GPU rounds depends on it, and no image may depend on how many come with it."""
    batches = zip(*(array.split(pixels.AT_ONCE) for array in (stack, *stacks)), strict=True)
    return torch.cat([function(*(_filled(array) for array in batch))[: len(batch[0])] for batch in batches])


def _filled(batch: torch.Tensor) -> torch.Tensor:
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
    """Lucas & Kanade's method from small pictures to large ones (Bouguet 2000), with the gradients of both images
    (Birchfield & Pundlik 2008), and weights by Geman & McClure for what no motion explains."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    if min(shape[-3:-1]) < pixels.SMALLEST:
        return a.new_zeros((*shape[:-1], 2), dtype=torch.float32)
    shades = _constant(SHADES, a.device)
    pair = torch.stack([(image.float() @ shades).expand(shape[:-1]) for image in (a, b)])
    sizes = [pair.reshape(-1, 1, *shape[-3:-1])]  # the first half of the batch is a, the other b
    while min(sizes[-1].shape[2:]) >= 2 * COARSEST:
        sizes.append(_halved(sizes[-1]))
    moved = sizes[-1].new_zeros((len(sizes[-1]) // 2, 2, *sizes[-1].shape[2:]))
    for planes in reversed(sizes):
        if moved.shape[2:] != planes.shape[2:]:
            moved = _grown(moved, *planes.shape[2:])
        here, there = _with_slopes(_blurred(planes, _bell(NOISE))).chunk(2)
        for _ in range(STEPS):
            moved = moved + _step(here, _sampled(there, _places(moved)), stiff)
    return _images(moved, shape[:-3])


def _with_slopes(planes: torch.Tensor) -> torch.Tensor:
    """Values [B, 1, H, W], and their change along x and along y, levels a px."""
    wide = functional.pad(planes, (1, 1, 1, 1), mode="replicate")
    across, down = wide[:, :, 1:-1], wide[..., 1:-1]
    return torch.cat([planes, (across[..., 2:] - across[..., :-2]) / 2, (down[:, :, 2:] - down[:, :, :-2]) / 2], 1)


def _step(here: torch.Tensor, found: torch.Tensor, stiff: bool) -> torch.Tensor:
    """What is to be added to a motion, px [B, 2, H, W], that carries `found` to `here`, both with slopes."""
    missing = here[:, :1] - found[:, :1]
    slopes = (here[:, 1:] + found[:, 1:]) / 2
    products = torch.cat([slopes * slopes, slopes[:, :1] * slopes[:, 1:], slopes * missing], 1)
    weighted = products / (1 + (missing / ODD) ** 2)
    sums = _blurred(weighted, _bell(STIFF_AREA if stiff else AREA), mirrored=False)
    squares = sums[:, :2] + (STIFF if stiff else UNMOVED)
    mixed, wanted = sums[:, 2:3], sums[:, 3:]
    step = squares.flip(1) * wanted - mixed * wanted.flip(1)
    return (step / (squares[:, :1] * squares[:, 1:] - mixed * mixed)).clip(-STEP, STEP)


@pixels.match.register
def _match(source: torch.Tensor, target: torch.Tensor, start: torch.Tensor, **options: Any) -> torch.Tensor:
    options.pop("threads", None)  # a stack is one call: what there is may work at it
    shape = torch.broadcast_shapes(source.shape, target.shape)
    arrays = [image.expand(shape).reshape(-1, *shape[-3:]).contiguous() for image in (source, target)]
    arrays.append(start.expand(*shape[:-1], 2).reshape(-1, *shape[-3:-1], 2).to(torch.int32).contiguous())
    arrays, options = _for_library(arrays, options)
    found = binding.match(*arrays[:2], start="given", nnf=arrays[2], **options).nnf
    return torch.as_tensor(found, device=source.device).reshape(*shape[:-1], 2)


@pixels.synthesize.register
def _synthesize(style: torch.Tensor, guide: torch.Tensor, target: torch.Tensor, **options: Any) -> tuple[Any, Any]:
    arrays, options = _for_library([image[None].contiguous() for image in (style, guide, target)], options)
    made = binding.synthesize(*arrays, **options)
    return tuple(torch.as_tensor(array[0], device=style.device) for array in (made.image, made.nnf))


def _for_library(arrays: list[Any], options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The tensors and options where the patch-matching library can work on them."""
    tensor = arrays[0]
    if tensor.is_cuda and _library_has_cuda():
        return arrays, {**options, "device": tensor.device.index or 0}
    return [array.cpu().numpy() for array in arrays], options  # a library that was built without nvcc


@cache
def _library_has_cuda() -> bool:
    return binding.library_path().exists() and bool(binding.info()["cuda_built"])


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
    return _images(_blurred(_planes(values), _bell(deviation)), values.shape[:-3])


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


# -- planes: float32 [B, C, H, W], as torch wants them -----------------------------------------------------------------


def _planes(images: torch.Tensor) -> torch.Tensor:
    return images.reshape(-1, *images.shape[-3:]).permute(0, 3, 1, 2)


def _images(planes: torch.Tensor, stack: tuple[int, ...]) -> torch.Tensor:
    images = planes.permute(0, 2, 3, 1)
    return images.reshape(*stack, *images.shape[1:])


def _sampled(planes: torch.Tensor, places: torch.Tensor, cubic: bool = False) -> torch.Tensor:
    """`places`: px [B, H, W, 2], x then y."""
    height, width = planes.shape[2:]
    scale = _constant((2 / max(width - 1, 1), 2 / max(height - 1, 1)), planes.device)
    how = "bicubic" if cubic else "bilinear"
    return functional.grid_sample(planes, places * scale - 1, how, padding_mode="border", align_corners=True)


def _places(moved: torch.Tensor) -> torch.Tensor:
    """Where a motion [B, 2, H, W] leads, as `_sampled` takes it."""
    return _grid(*moved.shape[2:], moved.device) + moved.permute(0, 2, 3, 1)


@lru_cache(maxsize=32)
def _grid(height: int, width: int, device: torch.device) -> torch.Tensor:
    rows, columns = (torch.arange(size, dtype=torch.float32, device=device) for size in (height, width))
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)


def _halved(planes: torch.Tensor) -> torch.Tensor:
    height, width = planes.shape[2:]
    return _resized(_blurred(planes, _bell(HALVED)), -(-height // 2), -(-width // 2), cv2.INTER_AREA)


def _grown(moved: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A motion of smaller pictures, as one of larger ones."""
    scale = _constant((width / moved.shape[3], height / moved.shape[2]), moved.device)
    return _resized(moved, height, width, cv2.INTER_LINEAR) * scale[:, None, None]


def _blurred(planes: torch.Tensor, weights: tuple[float, ...], mirrored: bool = True) -> torch.Tensor:
    """Weighted sum along both axes, of what is mirrored at the borders, or zero beyond them."""
    kernel, reach = _constant(weights, planes.device), len(weights) // 2
    stack = planes.reshape(-1, 1, *planes.shape[2:])
    # What a convolution rounds away with TF32, its default on new GPUs, is as much as differences between squares hold.
    with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for axis, shape in ((2, (1, 1, -1, 1)), (3, (1, 1, 1, -1))):
            if mirrored:
                stack = stack.index_select(axis, _mirror(stack.shape[axis], reach, planes.device))
            padding = (0, 0) if mirrored else (reach, 0) if axis == 2 else (0, reach)
            stack = functional.conv2d(stack, kernel.reshape(shape), padding=padding)
    return stack.reshape(planes.shape)


@cache
def _bell(deviation: float) -> tuple[float, ...]:
    """OpenCV's Gaussian."""
    size = round(8 * deviation + 1) | 1
    return tuple(cv2.getGaussianKernel(size, deviation, cv2.CV_32F).ravel().tolist())


@cache
def _mirror(size: int, reach: int, device: torch.device) -> torch.Tensor:
    """Which pixel stands in each place of a row that is mirrored `reach` pixels beyond its ends."""
    return torch.as_tensor(np.pad(np.arange(size), reach, mode="reflect"), device=device)


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Kept, because whatever is brought to a device holds it up."""
    return torch.tensor(values, device=device)


def _resized(planes: torch.Tensor, height: int, width: int, how: int) -> torch.Tensor:
    down, across = (
        _resizing(*sizes, how, planes.device) for sizes in zip(planes.shape[2:], (height, width), strict=True)
    )
    return down @ planes @ across.T


@cache
def _resizing(size: int, wanted: int, how: int, device: torch.device) -> torch.Tensor:
    """What OpenCV does to a row, as a matrix [wanted, size]: found by doing it to the unit vectors."""
    units = np.eye(size, dtype=np.float32)
    return torch.as_tensor(cv2.resize(units, (size, wanted), interpolation=how), device=device)
