"""Guided synthesis, nearest-neighbour fields and remapping by libebsynth. include/ebsynth.h defines each of them.

Arrays are batched and C-contiguous: images uint8 [B, H, W, C], fields int32 [B, H, W, 2] (row, column), errors float32
[B, H, W]. NumPy arrays are processed on the host or, with the CUDA back end, copied to the device and back. Torch
tensors on a CUDA device are used in place, on the current stream of that device, and so are the results.

The library is loaded on first use and never built. Without it, numba computes the same bytes, more slowly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from native import abi
from native.arguments import (
    BORDERS,
    STARTS,
    Array,
    Host,
    channel_weights,
    check_border,
    check_options,
    check_pair,
    check_start,
    check_synthesis,
    memory_of,
)
from native.library import (
    BACKENDS,
    LIBRARY,
    EbsynthError,
    Progress,
    library_path,
    load,
    on_cpu,
    run,
    runs_on_gpu,
    uses_numba,
)

__all__ = [
    "BACKENDS",
    "BORDERS",
    "LIBRARY",
    "STARTS",
    "EbsynthError",
    "Fields",
    "Progress",
    "Synthesis",
    "info",
    "library_path",
    "match",
    "on_cpu",
    "patch_error",
    "remap",
    "runs_on_gpu",
    "synthesize",
]

_SEED_MASK = 0xFFFFFFFFFFFFFFFF


@dataclass
class Synthesis:
    """Painted images and where their patches come from.

    Attributes:
        image: uint8 [B, H, W, C].
        nnf: int32 [B, H, W, 2].
        error: Patch errors, float32 [B, H, W].
    """

    image: Array
    nnf: Array
    error: Array


@dataclass
class Fields:
    """Nearest-neighbour fields.

    Attributes:
        nnf: int32 [B, H, W, 2].
        error: Patch errors, float32 [B, H, W].
    """

    nnf: Array
    error: Array


class _SynthesisOptions(TypedDict):
    uniformity: float
    patch_size: int
    pyramid_levels: int
    search_vote_iterations: int
    patch_match_iterations: int
    stop_threshold: int
    extra_pass_3x3: bool
    seed: int


class _MatchingOptions(TypedDict):
    guide_weight: float
    style_weight: float
    pyramid_levels: int
    patch_match_iterations: int
    search_radius: int
    seed: int


def synthesize(
    source_style: Array,
    source_guides: Array,
    target_guides: Array,
    *,
    style_weights: Sequence[float] | None = None,
    guide_weights: Sequence[float] | None = None,
    modulation: Array | None = None,
    uniformity: float = 3500.0,
    patch_size: int = 5,
    pyramid_levels: int = 0,
    search_vote_iterations: int = 6,
    patch_match_iterations: int = 4,
    stop_threshold: int = 5,
    weighted_vote: bool = False,
    extra_pass_3x3: bool = False,
    seed: int = 0,
    backend: str = "auto",
    device: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> Synthesis:
    """Paint the target in the style of the source by guided synthesis (`ebsynth_synthesize`).

    Args:
        source_style: [B, H, W, 1..8].
        source_guides, target_guides: [B, H, W, G] and [B, h, w, G] with G of 0..24.
        style_weights, guide_weights: One per channel. By default, those of the style and of all guides each sum to 1.
        modulation: Factors of the guide weights (255 = 1), shaped like `target_guides`.

    Raises:
        ValueError: An argument is out of range, or arrays do not fit each other.
        EbsynthError: The library is missing, or the call failed.
    """
    memory, images = memory_of(source_style), (source_style, source_guides, target_guides, modulation)
    sizes = check_synthesis(memory, *images)
    style = channel_weights("style_weights", style_weights, sizes["style_channels"])
    guides = channel_weights("guide_weights", guide_weights, sizes["guide_channels"])
    if not (style.any() or guides.any()):
        raise ValueError("all weights are 0")
    options: _SynthesisOptions = {
        "uniformity": uniformity, "patch_size": patch_size, "pyramid_levels": pyramid_levels,
        "search_vote_iterations": search_vote_iterations, "patch_match_iterations": patch_match_iterations,
        "stop_threshold": stop_threshold, "extra_pass_3x3": extra_pass_3x3, "seed": seed & _SEED_MASK,
    }  # fmt: skip
    check_options(**options)
    if uses_numba(backend):
        from native import numba_backend

        painted = numba_backend.synthesize(
            *images, style, guides, weighted_vote=weighted_vote, progress=progress, **options
        )
        return Synthesis(*painted)
    call, result = _synthesis(memory, images, (style, guides), sizes, options, weighted_vote)
    run("synthesize", call, backend, memory.ordinal(device), threads, progress)
    return result


def _synthesis(
    memory: Host,
    images: tuple[Array, ...],
    weights: tuple[NDArray[np.float32], NDArray[np.float32]],
    sizes: dict[str, int],
    options: _SynthesisOptions,
    weighted_vote: bool,
) -> tuple[abi.Synthesis, Synthesis]:
    """Return the struct of a call and the arrays that it fills. The caller keeps `images` and `weights` alive."""
    source_style, source_guides, target_guides, modulation = map(memory.pointer, images)
    target = sizes["batch"], sizes["target_height"], sizes["target_width"]
    image = memory.empty((*target, sizes["style_channels"]), "uint8")
    nnf, error = memory.empty((*target, 2), "int32"), memory.empty(target, "float32")
    call = abi.Synthesis(
        memory=memory.kind,
        stream=memory.stream(),
        source_style=source_style,
        source_guides=source_guides,
        target_guides=target_guides,
        target_modulation=modulation,
        style_weights=weights[0].ctypes.data,
        guide_weights=weights[1].ctypes.data,
        vote=int(weighted_vote),
        image=memory.pointer(image),
        nnf=memory.pointer(nnf),
        error=memory.pointer(error),
        **sizes,
        **options,
    )
    return call, Synthesis(image, nnf, error)


def match(
    source_guide: Array,
    target_guide: Array,
    source_style: Array | None = None,
    target_style: Array | None = None,
    *,
    guide_weight: float = 1.0,
    style_weight: float = 1.0,
    patch_sizes: Sequence[int] = (5,),
    pyramid_levels: int = 0,
    patch_match_iterations: int = 4,
    search_radius: int = 0,
    start: str = "random",
    nnf: Array | None = None,
    seed: int = 0,
    border: str = "repeat",
    backend: str = "auto",
    device: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> Fields:
    """Find for each target pixel the source pixel with the most similar patch (`ebsynth_match`).

    Args:
        source_guide, source_style: [B, H, W, C].
        target_guide, target_style: [B, h, w, C]. Without a target style, the source's is painted during the search.
        patch_sizes: Side of the patches in pixels, odd, for each round of search.
        start: "identity", "random", or "given" to start at `nnf` [B, h, w, 2].
        border: What patches see outside an image: "repeat" (the nearest pixel) or "zero".

    Raises:
        ValueError: An argument is out of range, or arrays do not fit each other.
        EbsynthError: The library is missing, or the call failed.
    """
    memory, images = memory_of(source_guide), (source_guide, target_guide, source_style, target_style)
    sizes = check_pair(memory, *images, guide_weight, style_weight)
    check_start(memory, start, nnf, sizes)
    patches = np.asarray(patch_sizes, np.int32).ravel()
    options: _MatchingOptions = {
        "guide_weight": guide_weight, "style_weight": style_weight, "pyramid_levels": pyramid_levels,
        "patch_match_iterations": patch_match_iterations, "search_radius": search_radius, "seed": seed & _SEED_MASK,
    }  # fmt: skip
    check_options(patch_sizes=patches.tolist(), rounds=len(patches), **options)
    check_border(border)
    if uses_numba(backend):
        from native import numba_backend

        found = numba_backend.match(
            *images, patch_sizes=patches.tolist(), start=start, nnf=nnf, border=border, progress=progress, **options
        )
        return Fields(*found)
    call, result = _matching(memory, images, patches, sizes, options, start, nnf, border)
    run("match", call, backend, memory.ordinal(device), threads, progress)
    return result


def _matching(
    memory: Host,
    images: tuple[Array, ...],
    patches: NDArray[np.int32],
    sizes: dict[str, int],
    options: _MatchingOptions,
    start: str,
    nnf: Array | None,
    border: str,
) -> tuple[abi.Matching, Fields]:
    """Return the struct of a call and the arrays that it fills. The caller keeps `images` and `patches` alive."""
    source_guide, target_guide, source_style, target_style = map(memory.pointer, images)
    target = sizes["batch"], sizes["target_height"], sizes["target_width"]
    field, error = memory.empty((*target, 2), "int32"), memory.empty(target, "float32")
    if nnf is not None:
        field[...] = nnf
    call = abi.Matching(
        memory=memory.kind,
        stream=memory.stream(),
        source_style=source_style,
        target_style=target_style,
        source_guide=source_guide,
        target_guide=target_guide,
        patch_sizes=patches.ctypes.data,
        rounds=len(patches),
        start=STARTS.index(start),
        border=BORDERS.index(border),
        nnf=memory.pointer(field),
        error=memory.pointer(error),
        **sizes,
        **options,
    )
    return call, Fields(field, error)


def remap(
    source: Array,
    nnf: Array,
    *,
    patch_size: int = 1,
    border: str = "repeat",
    backend: str = "auto",
    device: int = 0,
    threads: int = 0,
) -> Array:
    """Rebuild images from the patches that fields point to (`ebsynth_remap`).

    Args:
        source: [B, H, W, 1..8].
        nnf: [B, h, w, 2].
        patch_size: Side of the patches in pixels, odd; 1 copies single pixels.
        border: As in `match`.

    Returns:
        uint8 [B, h, w, C].

    Raises:
        ValueError, EbsynthError: As in `match`.
    """
    memory = memory_of(source)
    memory.check("source", source, "uint8", 4)
    batch, source_height, source_width, channels = source.shape
    memory.check("nnf", nnf, "int32", 4)
    _, height, width, _ = nnf.shape
    memory.check("nnf", nnf, "int32", (batch, height, width, 2))
    check_options(min_patch_size=1, channels=channels, patch_size=patch_size)
    check_border(border)
    if uses_numba(backend):
        from native import numba_backend

        return numba_backend.remap(source, nnf, patch_size=patch_size, border=border)
    image = memory.empty((batch, height, width, channels), "uint8")
    call = abi.Remapping(
        memory=memory.kind, stream=memory.stream(), batch=batch, source_height=source_height,
        source_width=source_width, target_height=height, target_width=width, channels=channels, patch_size=patch_size,
        source=memory.pointer(source), nnf=memory.pointer(nnf), image=memory.pointer(image),
        border=BORDERS.index(border),
    )  # fmt: skip
    run("remap", call, backend, memory.ordinal(device), threads, None)
    return image


def patch_error(
    source_guide: Array,
    target_guide: Array,
    source_style: Array | None = None,
    target_style: Array | None = None,
    *,
    nnf: Array,
    guide_weight: float = 1.0,
    style_weight: float = 1.0,
    patch_size: int = 5,
    border: str = "repeat",
    backend: str = "auto",
    device: int = 0,
    threads: int = 0,
) -> Array:
    """Measure how well fields match (`ebsynth_patch_error`). Arguments and exceptions are those of `match`.

    Returns:
        The patch error of each target pixel, float32 [B, h, w].
    """
    memory, images = memory_of(source_guide), (source_guide, target_guide, source_style, target_style)
    sizes = check_pair(memory, *images, guide_weight, style_weight)
    if (source_style is None) != (target_style is None):
        raise ValueError("patch_error needs both styles or neither")
    target = sizes["batch"], sizes["target_height"], sizes["target_width"]
    memory.check("nnf", nnf, "int32", (*target, 2))
    check_options(guide_weight=guide_weight, style_weight=style_weight, patch_size=patch_size)
    check_border(border)
    if uses_numba(backend):
        from native import numba_backend

        return numba_backend.patch_error(
            *images, nnf, guide_weight=guide_weight, style_weight=style_weight, patch_size=patch_size, border=border
        )
    error = memory.empty(target, "float32")
    call = abi.Errors(
        memory=memory.kind, stream=memory.stream(), source_style=memory.pointer(source_style),
        target_style=memory.pointer(target_style), source_guide=memory.pointer(source_guide),
        target_guide=memory.pointer(target_guide), guide_weight=guide_weight, style_weight=style_weight,
        patch_size=patch_size, nnf=memory.pointer(nnf), error=memory.pointer(error), border=BORDERS.index(border),
        **sizes,
    )  # fmt: skip
    run("patch_error", call, backend, memory.ordinal(device), threads, None)
    return error


def info() -> dict[str, int | str]:
    """Describe how the library was built and what it can use on this machine.

    Raises:
        EbsynthError: The library is missing or cannot be loaded.
    """
    struct = abi.Info(struct_size=ctypes.sizeof(abi.Info))
    load().ebsynth_get_info(ctypes.byref(struct))
    values = {name: getattr(struct, name) for name, _ in abi.Info._fields_ if name != "struct_size"}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
