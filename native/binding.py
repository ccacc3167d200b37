"""The one door to libebsynth: guided synthesis, nearest-neighbour fields, remapping. include/ebsynth.h defines each.

Arrays are batched and C-contiguous: images uint8 [B, H, W, C], fields int32 [B, H, W, 2] (row, column), errors float32
[B, H, W]. NumPy arrays are computed on the host or, with a CUDA back end, copied there and back; torch tensors on a
CUDA device are used where they lie, on the current stream, and the results are tensors on the same device.

The library is loaded when it is first needed, never built. Where there is none, numba computes the same bytes, slower.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from native import Backend, abi

Progress = Callable[[float], None]
"""Called now and then with the share that is done, 0..1. What it raises ends the call and is raised by it."""

BACKENDS = tuple(Backend)
STARTS = ("identity", "random", "given")
BORDERS = ("repeat", "zero")
VERSION = 1 << 16 | 1  # of the header that the structs below were written from
LIBRARY = "libebsynth" + {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")

_OK, _CANCELLED = 0, 3
_STATUS = {
    1: "invalid argument",
    2: "out of memory",
    4: "no such back end here",
    5: "device error",
    6: "internal error",
}
_HOW_TO_BUILD = "`make native` in a checkout, or `pip install .` again with a C++ compiler at hand, builds it"


class EbsynthError(RuntimeError):
    """The library is missing or refused a call; the message says why."""


@dataclass
class Synthesis:
    image: Any  # uint8 [B, H, W, C]
    nnf: Any  # int32 [B, H, W, 2]
    error: Any  # float32 [B, H, W], patch errors


@dataclass
class Fields:
    nnf: Any  # int32 [B, H, W, 2]
    error: Any  # float32 [B, H, W], patch errors


def synthesize(
    source_style: Any,
    source_guides: Any,
    target_guides: Any,
    *,
    style_weights: Sequence[float] | None = None,
    guide_weights: Sequence[float] | None = None,
    modulation: Any = None,
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
    """Guided synthesis (`ebsynth_synthesize`): paints the target in the style of the source.

    source_style [B, H, W, 1..8], source_guides [B, H, W, 0..24], target_guides and modulation [B, h, w, same].
    Weights are one a channel; by default 1 for the whole style and 1 for all guides together. Raises ValueError for
    arrays that do not fit each other, EbsynthError for what the library refuses.
    """
    memory = _memory(source_style)
    memory.check("source_style", source_style, "uint8", 4)
    batch, source_height, source_width, style_channels = source_style.shape
    guide_channels = source_guides.shape[-1]
    memory.check("source_guides", source_guides, "uint8", (batch, source_height, source_width, guide_channels))
    memory.check("target_guides", target_guides, "uint8", 4)
    _, height, width, _ = target_guides.shape
    memory.check("target_guides", target_guides, "uint8", (batch, height, width, guide_channels))
    if modulation is not None:
        memory.check("modulation", modulation, "uint8", target_guides.shape)
    style_weights_ = _weights("style_weights", style_weights, style_channels)
    guide_weights_ = _weights("guide_weights", guide_weights, guide_channels)
    if not (style_weights_.any() or guide_weights_.any()):
        raise ValueError("all weights are 0")
    options: dict[str, Any] = {
        "uniformity": uniformity,
        "patch_size": patch_size,
        "pyramid_levels": pyramid_levels,
        "search_vote_iterations": search_vote_iterations,
        "patch_match_iterations": patch_match_iterations,
        "stop_threshold": stop_threshold,
        "extra_pass_3x3": extra_pass_3x3,
        "seed": seed & 0xFFFFFFFFFFFFFFFF,
    }
    image = memory.empty((batch, height, width, style_channels), "uint8")
    nnf = memory.empty((batch, height, width, 2), "int32")
    error = memory.empty((batch, height, width), "float32")
    call = abi.Synthesis(
        memory=memory.kind,
        stream=memory.stream(),
        batch=batch,
        source_height=source_height,
        source_width=source_width,
        target_height=height,
        target_width=width,
        style_channels=style_channels,
        guide_channels=guide_channels,
        source_style=memory.pointer(source_style),
        source_guides=memory.pointer(source_guides),
        target_guides=memory.pointer(target_guides),
        target_modulation=memory.pointer(modulation),
        style_weights=style_weights_.ctypes.data,
        guide_weights=guide_weights_.ctypes.data,
        vote=int(weighted_vote),
        image=memory.pointer(image),
        nnf=memory.pointer(nnf),
        error=memory.pointer(error),
        **options,
    )
    _check_options(options)
    if _numba(backend):
        from native import numba_backend

        arrays = (source_style, source_guides, target_guides, modulation, style_weights_, guide_weights_)
        painted = numba_backend.synthesize(*arrays, weighted_vote=weighted_vote, progress=progress, **options)
        return Synthesis(*painted)
    _run("synthesize", call, backend, device, threads, progress)
    return Synthesis(image, nnf, error)


def match(
    source_guide: Any,
    target_guide: Any,
    source_style: Any = None,
    target_style: Any = None,
    *,
    guide_weight: float = 1.0,
    style_weight: float = 1.0,
    patch_sizes: Sequence[int] = (5,),
    pyramid_levels: int = 0,
    patch_match_iterations: int = 4,
    search_radius: int = 0,
    start: str = "random",
    nnf: Any = None,
    seed: int = 0,
    border: str = "repeat",
    backend: str = "auto",
    device: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> Fields:
    """Nearest-neighbour fields between pairs of images (`ebsynth_match`): for each target pixel a source pixel.

    source_* [B, H, W, C], target_* [B, h, w, C]; without a target style, the source's is painted on the way.
    `start` is "identity", "random", or "given": then the search begins at `nnf` [B, h, w, 2]. `border` is what patches
    see outside an image, "repeat" (its border, repeated) or "zero". Raises as `synthesize`.
    """
    memory = _memory(source_guide)
    images = (source_guide, target_guide, source_style, target_style)
    shapes = _check_pair(memory, *images, guide_weight, style_weight)
    batch, height, width = shapes["batch"], shapes["target_height"], shapes["target_width"]
    if start not in STARTS or (start == "given") != (nnf is not None):
        raise ValueError("start is identity, random or given; nnf goes with given alone")
    fields = memory.empty((batch, height, width, 2), "int32")
    if nnf is not None:
        memory.check("nnf", nnf, "int32", (batch, height, width, 2))
        fields[...] = nnf
    error = memory.empty((batch, height, width), "float32")
    sizes = np.asarray(patch_sizes, np.int32).ravel()
    options: dict[str, Any] = {
        "guide_weight": guide_weight,
        "style_weight": style_weight,
        "pyramid_levels": pyramid_levels,
        "patch_match_iterations": patch_match_iterations,
        "search_radius": search_radius,
        "seed": seed & 0xFFFFFFFFFFFFFFFF,
    }
    _check_options({**options, "rounds": len(sizes), "border": border}, patch_sizes=sizes.tolist())
    if _numba(backend):
        from native import numba_backend

        return Fields(
            *numba_backend.match(
                *images, patch_sizes=sizes.tolist(), start=start, nnf=nnf, border=border, progress=progress, **options
            )
        )
    call = abi.Matching(
        memory=memory.kind,
        stream=memory.stream(),
        source_style=memory.pointer(source_style),
        target_style=memory.pointer(target_style),
        source_guide=memory.pointer(source_guide),
        target_guide=memory.pointer(target_guide),
        patch_sizes=sizes.ctypes.data,
        rounds=len(sizes),
        start=STARTS.index(start),
        border=BORDERS.index(border),
        nnf=memory.pointer(fields),
        error=memory.pointer(error),
        **shapes,
        **options,
    )
    _run("match", call, backend, device, threads, progress)
    return Fields(fields, error)


def remap(
    source: Any,
    nnf: Any,
    *,
    patch_size: int = 1,
    border: str = "repeat",
    backend: str = "auto",
    device: int = 0,
    threads: int = 0,
) -> Any:
    """Images through fields (`ebsynth_remap`): source [B, H, W, 1..8], nnf [B, h, w, 2] → uint8 [B, h, w, C]."""
    memory = _memory(source)
    memory.check("source", source, "uint8", 4)
    batch, source_height, source_width, channels = source.shape
    memory.check("nnf", nnf, "int32", 4)
    _, height, width, _ = nnf.shape
    memory.check("nnf", nnf, "int32", (batch, height, width, 2))
    _check_options({"channels": channels, "patch_size": patch_size, "border": border}, smallest_patch=1)
    if _numba(backend):
        from native import numba_backend

        return numba_backend.remap(source, nnf, patch_size=patch_size, border=border)
    image = memory.empty((batch, height, width, channels), "uint8")
    call = abi.Remapping(
        memory=memory.kind,
        stream=memory.stream(),
        batch=batch,
        source_height=source_height,
        source_width=source_width,
        target_height=height,
        target_width=width,
        channels=channels,
        patch_size=patch_size,
        source=memory.pointer(source),
        nnf=memory.pointer(nnf),
        image=memory.pointer(image),
        border=BORDERS.index(border),
    )
    _run("remap", call, backend, device, threads, None)
    return image


def patch_error(
    source_guide: Any,
    target_guide: Any,
    source_style: Any = None,
    target_style: Any = None,
    *,
    nnf: Any,
    guide_weight: float = 1.0,
    style_weight: float = 1.0,
    patch_size: int = 5,
    border: str = "repeat",
    backend: str = "auto",
    device: int = 0,
    threads: int = 0,
) -> Any:
    """The patch error of given fields (`ebsynth_patch_error`): float32 [B, h, w]. Arguments as in `match`."""
    memory = _memory(source_guide)
    images = (source_guide, target_guide, source_style, target_style)
    shapes = _check_pair(memory, *images, guide_weight, style_weight)
    if (source_style is None) != (target_style is None):
        raise ValueError("patch_error needs both styles or none")
    batch, height, width = shapes["batch"], shapes["target_height"], shapes["target_width"]
    memory.check("nnf", nnf, "int32", (batch, height, width, 2))
    options: dict[str, Any] = {"guide_weight": guide_weight, "style_weight": style_weight, "patch_size": patch_size}
    _check_options({**options, "border": border})
    if _numba(backend):
        from native import numba_backend

        return numba_backend.patch_error(*images, nnf, border=border, **options)
    error = memory.empty((batch, height, width), "float32")
    call = abi.Errors(
        memory=memory.kind,
        stream=memory.stream(),
        source_style=memory.pointer(source_style),
        target_style=memory.pointer(target_style),
        source_guide=memory.pointer(source_guide),
        target_guide=memory.pointer(target_guide),
        nnf=memory.pointer(nnf),
        error=memory.pointer(error),
        border=BORDERS.index(border),
        **shapes,
        **options,
    )
    _run("patch_error", call, backend, device, threads, None)
    return error


def info() -> dict[str, Any]:
    """What the library was built with and finds here; raises EbsynthError where there is none."""
    found = abi.Info(struct_size=ctypes.sizeof(abi.Info))
    _library().ebsynth_get_info(ctypes.byref(found))
    values = {name: getattr(found, name) for name, _ in abi.Info._fields_ if name != "struct_size"}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


# -- arguments ---------------------------------------------------------------------------------------------------------

_RANGES = {
    "patch_size": (3, 31),
    "pyramid_levels": (0, 16),
    "search_vote_iterations": (0, 1000),
    "patch_match_iterations": (0, 1000),
    "stop_threshold": (0, 255),
    "search_radius": (0, 32767),
    "rounds": (1, 64),
    "channels": (1, 8),
    "uniformity": (0, 1e6),
    "guide_weight": (0, 1e6),
    "style_weight": (0, 1e6),
}


def _check_options(options: dict[str, Any], patch_sizes: Sequence[int] = (), smallest_patch: int = 3) -> None:
    for name, value in [*options.items(), *(("patch_size", size) for size in patch_sizes)]:
        if name == "border":
            if value not in BORDERS:
                raise ValueError(f"border is {value!r}, allowed are {' and '.join(BORDERS)}")
            continue
        low, high = _RANGES.get(name, (float("-inf"), float("inf")))
        low = smallest_patch if name == "patch_size" else low
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}, allowed are {low} to {high}")
        if name == "patch_size" and value % 2 == 0:
            raise ValueError(f"{name} is {value}, must be odd")


def _weights(name: str, given: Sequence[float] | None, channels: int) -> np.ndarray:
    weights = np.full(channels, 1 / max(channels, 1), np.float32) if given is None else np.asarray(given, np.float32)
    if weights.shape != (channels,):
        raise ValueError(f"{name}: {weights.size} given for {channels} channels")
    if not ((weights >= 0) & (weights <= 1e6)).all():
        raise ValueError(f"{name} must be 0 to 1e6")
    return np.ascontiguousarray(weights)


def _check_pair(
    memory: _Host,
    source_guide: Any,
    target_guide: Any,
    source_style: Any,
    target_style: Any,
    guide_weight: float,
    style_weight: float,
) -> dict[str, int]:
    """The call's sizes."""
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
    return {
        "batch": batch,
        "source_height": source_height,
        "source_width": source_width,
        "target_height": height,
        "target_width": width,
        "style_channels": style_channels,
        "guide_channels": guide_channels,
    }


class _Host:
    """NumPy arrays."""

    kind = 0

    def check(self, name: str, array: Any, dtype: str, shape: Any) -> None:
        """`shape` is what the array's must be, or how many axes it must have."""
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} must be a NumPy array, or all arrays tensors on one CUDA device")
        self._check(name, str(array.dtype), tuple(array.shape), array.flags.c_contiguous, dtype, shape)

    def _check(self, name: str, is_dtype: str, is_shape: tuple, contiguous: bool, dtype: str, shape: Any) -> None:
        fits = len(is_shape) == shape if isinstance(shape, int) else is_shape == tuple(shape)
        if is_dtype != dtype or not fits or not contiguous:
            wanted = f"{shape} axes" if isinstance(shape, int) else f"shape {tuple(shape)}"
            raise ValueError(f"{name} must be C-contiguous {dtype}, {wanted}; it is {is_dtype} of shape {is_shape}")
        if not all(0 < side <= 32767 for side in is_shape[1:3]):
            raise ValueError(f"{name}: sides must be 1 to 32767; its shape is {is_shape}")

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return np.empty(shape, dtype)

    def pointer(self, array: Any) -> int | None:
        return None if array is None else array.ctypes.data

    def stream(self) -> int | None:
        return None


class _Device(_Host):
    """Torch tensors of one CUDA device, used on torch's current stream."""

    kind = 1

    def __init__(self, device: Any):
        self.torch, self.device = sys.modules["torch"], device

    def check(self, name: str, array: Any, dtype: str, shape: Any) -> None:
        if getattr(array, "device", None) != self.device:
            raise ValueError(f"{name} must be a tensor on {self.device}, as the first argument is")
        is_dtype = str(array.dtype).removeprefix("torch.")
        self._check(name, is_dtype, tuple(array.shape), array.is_contiguous(), dtype, shape)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self.device)

    def pointer(self, array: Any) -> int | None:
        return None if array is None else array.data_ptr()

    def stream(self) -> int | None:
        return self.torch.cuda.current_stream(self.device).cuda_stream


def _memory(array: Any) -> _Host:
    return _Device(array.device) if getattr(array, "is_cuda", False) else _Host()


# -- the library -------------------------------------------------------------------------------------------------------


def library_path() -> Path:
    """Where the library should be: EBSYNTH_LIBRARY, or beside this file."""
    return Path(os.environ.get("EBSYNTH_LIBRARY") or Path(__file__).parent / LIBRARY)


def _numba(backend: str) -> bool:
    if backend not in BACKENDS:
        raise ValueError(f"unknown back end {backend!r}; known: {', '.join(BACKENDS)}")
    return backend == "numba" or (backend == "auto" and not library_path().exists())


@cache
def _load(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise EbsynthError(f"the patch-matching library is not there ({path}); {_HOW_TO_BUILD}")
    # GNU OpenMP lets threads wait busily for milliseconds, thousands of times a call: where another program wants the
    # processors too, that is all they do. (Measured beside two busy processes: 2.4 s instead of 5 to 8 s.)
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        library = ctypes.CDLL(str(path))
        library.ebsynth_get_info.argtypes = [ctypes.c_void_p]
        found = abi.Info(struct_size=ctypes.sizeof(abi.Info))
        status = library.ebsynth_get_info(ctypes.byref(found))
    except (OSError, AttributeError) as error:
        raise EbsynthError(f"{path} cannot be loaded ({error}); {_HOW_TO_BUILD}") from error
    if status != _OK or found.version >> 16 != VERSION >> 16 or found.version < VERSION:
        raise EbsynthError(f"{path} is of another version than this program; {_HOW_TO_BUILD}")
    library.ebsynth_create.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.ebsynth_destroy.argtypes = [ctypes.c_void_p]
    library.ebsynth_last_error.argtypes = [ctypes.c_void_p]
    library.ebsynth_last_error.restype = ctypes.c_char_p
    for name in ("synthesize", "match", "remap", "patch_error"):
        getattr(library, f"ebsynth_{name}").argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library


def _library() -> ctypes.CDLL:
    return _load(library_path())


def _run(name: str, call: ctypes.Structure, backend: str, device: int, threads: int, progress: Progress | None) -> None:
    """One call of the library, in a context of its own; what `progress` raises is raised here."""
    library = _library()
    raised: list[BaseException] = []

    def report(_user: Any, fraction: float) -> int:
        # Called without a progress callback, too: it is where Python notices Ctrl-C.
        try:
            if progress is not None:
                progress(fraction)
        except BaseException as error:
            raised.append(error)
            return 1
        return 0

    callback = abi.PROGRESS(report)
    settings = abi.Settings(backend=BACKENDS.index(backend), device=device, threads=threads, progress=callback)
    settings.struct_size, call.struct_size = ctypes.sizeof(settings), ctypes.sizeof(call)
    context = ctypes.c_void_p()
    status = library.ebsynth_create(ctypes.byref(settings), ctypes.byref(context))
    if status != _OK:
        raise EbsynthError(f"{backend}: {_STATUS.get(status, status)}")
    try:
        status = getattr(library, f"ebsynth_{name}")(context, ctypes.byref(call))
        if raised:
            raise raised[0]
        if status == _CANCELLED:
            raise EbsynthError("cancelled")
        if status != _OK:
            raise EbsynthError(f"{_STATUS.get(status, status)}: {library.ebsynth_last_error(context).decode()}")
    finally:
        library.ebsynth_destroy(context)
