"""Check the arguments of binding.py and hand arrays to the library. Used by binding.py and library.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Array: TypeAlias = Any
"""A NumPy array, or a torch tensor on a CUDA device. Every function treats both alike."""

STARTS = ("identity", "random", "given")
BORDERS = ("repeat", "zero")
RANGES: dict[str, tuple[float, float]] = {
    "patch_size": (3, 31),
    "pyramid_levels": (0, 16),
    "search_vote_iterations": (0, 1000),
    "patch_match_iterations": (0, 1000),
    "stop_threshold": (0, 255),
    "search_radius": (0, 32767),
    "rounds": (1, 64),
    "threads": (0, 1024),
    "channels": (1, 8),
    "uniformity": (0, 1e6),
    "guide_weight": (0, 1e6),
    "style_weight": (0, 1e6),
}
MAX_SIDE = 32767  # px, EBSYNTH_MAX_SIDE


def check_options(*, patch_sizes: Sequence[int] = (), min_patch_size: int = 3, **options: float) -> None:
    """Raise ValueError if an option or patch size is out of range. NaN always is."""
    for name, value in [*options.items(), *(("patch_size", size) for size in patch_sizes)]:
        low, high = RANGES.get(name, (float("-inf"), float("inf")))
        low = min_patch_size if name == "patch_size" else low
        if not low <= value <= high:
            raise ValueError(f"{name} is {value} (choose {low} to {high})")
        if name == "patch_size" and value % 2 == 0:
            raise ValueError(f"{name} is {value}, but must be odd")


def check_border(border: str) -> None:
    """Raise ValueError if there is no such border."""
    if border not in BORDERS:
        raise ValueError(f"unknown border {border!r} (choose {' or '.join(BORDERS)})")


def channel_weights(name: str, weights: Sequence[float] | None, channels: int) -> NDArray[np.float32]:
    """Return one weight per channel; None means weights that add up to 1.

    Raises:
        ValueError: There are too many or too few weights, or one is out of range.
    """
    if weights is None:
        return np.full(channels, 1 / max(channels, 1), np.float32)
    values = np.ascontiguousarray(weights, np.float32)
    if values.shape != (channels,):
        raise ValueError(f"{name}: got {values.size} weights for {channels} channels")
    if not ((values >= 0) & (values <= 1e6)).all():
        raise ValueError(f"{name} must be 0 to 1e6")
    return values


def check_start(memory: Host, start: str, nnf: Array | None, sizes: dict[str, int]) -> None:
    """Raise ValueError if there is no such start, or if `nnf` does not go with it."""
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r} (choose {', '.join(STARTS)})")
    if (start == "given") != (nnf is not None):
        raise ValueError("start='given' needs nnf, other starts do not use it")
    if nnf is not None:
        memory.check("nnf", nnf, "int32", (sizes["batch"], sizes["target_height"], sizes["target_width"], 2))


def check_synthesis(
    memory: Host, source_style: Array, source_guides: Array, target_guides: Array, modulation: Array | None
) -> dict[str, int]:
    """Check the images of `synthesize`.

    Returns:
        The sizes that the call's struct holds.

    Raises:
        ValueError: An array has the wrong type or shape.
    """
    memory.check("source_style", source_style, "uint8", 4)
    batch, source_height, source_width, style_channels = source_style.shape
    guide_channels = source_guides.shape[-1]
    memory.check("source_guides", source_guides, "uint8", (batch, source_height, source_width, guide_channels))
    memory.check("target_guides", target_guides, "uint8", 4)
    _, height, width, _ = target_guides.shape
    memory.check("target_guides", target_guides, "uint8", (batch, height, width, guide_channels))
    if modulation is not None:
        memory.check("modulation", modulation, "uint8", (batch, height, width, guide_channels))
    return _sizes(batch, (source_height, source_width), (height, width), style_channels, guide_channels)


def check_pair(
    memory: Host,
    source_guide: Array,
    target_guide: Array,
    source_style: Array | None,
    target_style: Array | None,
    guide_weight: float,
    style_weight: float,
) -> dict[str, int]:
    """Check the images and weights of `match` and `patch_error`.

    Returns:
        The sizes that the call's struct holds.

    Raises:
        ValueError: An array has the wrong type or shape, or all weights are 0.
    """
    memory.check("source_guide", source_guide, "uint8", 4)
    memory.check("target_guide", target_guide, "uint8", 4)
    batch, source_height, source_width, guide_channels = source_guide.shape
    _, height, width, _ = target_guide.shape
    memory.check("target_guide", target_guide, "uint8", (batch, height, width, guide_channels))
    style_channels = 0
    if source_style is not None:
        memory.check("source_style", source_style, "uint8", 4)
        style_channels = source_style.shape[-1]
        memory.check("source_style", source_style, "uint8", (batch, source_height, source_width, style_channels))
    if target_style is not None:
        memory.check("target_style", target_style, "uint8", (batch, height, width, style_channels))
    if not ((guide_channels and guide_weight) or (style_channels and style_weight)):
        raise ValueError("all weights are 0")
    return _sizes(batch, (source_height, source_width), (height, width), style_channels, guide_channels)


def _sizes(
    batch: int, source: tuple[int, int], target: tuple[int, int], style_channels: int, guide_channels: int
) -> dict[str, int]:
    return {
        "batch": batch,
        "source_height": source[0],
        "source_width": source[1],
        "target_height": target[0],
        "target_width": target[1],
        "style_channels": style_channels,
        "guide_channels": guide_channels,
    }


def memory_of(array: Array) -> Host:
    """Return how to handle an array and all others of the same call."""
    return Device(array.device) if getattr(array, "is_cuda", False) else Host()


class Host:
    """NumPy arrays in host memory."""

    kind = 0  # EBSYNTH_HOST

    def check(self, name: str, array: Array, dtype: str, shape: int | tuple[int, ...]) -> None:
        """Raise ValueError unless `array` is C-contiguous and has this type and this shape or number of axes."""
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} must be a NumPy array, or all arrays must be tensors on one CUDA device")
        _check_layout(name, str(array.dtype), array.shape, array.flags.c_contiguous, dtype, shape)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Return an uninitialised array."""
        return np.empty(shape, dtype)

    def pointer(self, array: Array | None) -> int | None:
        """Return the address of the first element; None if there is no array."""
        return None if array is None else int(array.ctypes.data)

    def stream(self) -> int | None:
        """Return the CUDA stream that the call runs on; None is the default stream."""
        return None

    def ordinal(self, wanted: int) -> int:
        """Return the number of the CUDA device to use: that of the arrays, else the one that is wanted."""
        return wanted


class Device(Host):
    """Torch tensors on one CUDA device, used on torch's current stream."""

    kind = 1  # EBSYNTH_DEVICE

    def __init__(self, device: torch.device):
        self.torch, self.device = sys.modules["torch"], device  # whoever has a tensor has imported torch

    def check(self, name: str, array: Array, dtype: str, shape: int | tuple[int, ...]) -> None:
        if getattr(array, "device", None) != self.device:
            raise ValueError(f"{name} must be a tensor on {self.device}, like the first argument")
        _check_layout(
            name, str(array.dtype).removeprefix("torch."), tuple(array.shape), array.is_contiguous(), dtype, shape
        )

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self.device)

    def pointer(self, array: Array | None) -> int | None:
        return None if array is None else int(array.data_ptr())

    def stream(self) -> int | None:
        return int(self.torch.cuda.current_stream(self.device).cuda_stream)

    def ordinal(self, wanted: int) -> int:
        return self.torch.cuda.current_device() if self.device.index is None else int(self.device.index)


def _check_layout(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    contiguous: bool,
    expected_dtype: str,
    expected_shape: int | tuple[int, ...],
) -> None:
    any_shape = isinstance(expected_shape, int)
    fits = len(shape) == expected_shape if any_shape else shape == expected_shape
    if dtype != expected_dtype or not fits or not contiguous:
        expected = f"with {expected_shape} axes" if any_shape else f"of shape {expected_shape}"
        raise ValueError(f"{name} must be C-contiguous {expected_dtype} {expected}, not {dtype} of shape {shape}")
    if not all(0 < side <= MAX_SIDE for side in shape[1:3]):
        raise ValueError(f"{name}: height and width must be 1 to {MAX_SIDE}, but the shape is {shape}")
