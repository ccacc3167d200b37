"""Find, load and call the shared library libebsynth. Only binding.py, arguments.py and tests use this module."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from native import Backend, abi
from native.arguments import check_options

Progress = Callable[[float], None]
"""Called repeatedly with the fraction done, 0..1. An exception it raises ends the call and reaches the caller."""

BACKENDS = tuple(Backend)
VERSION = 1 << 16 | 1  # version of ebsynth.h that abi.py describes
LIBRARY = "libebsynth" + {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")

_OK, _CANCELLED = 0, 3
_STATUS = {
    1: "invalid argument",
    2: "out of memory",
    4: "this back end is not available here",
    5: "device error",
    6: "internal error",
}
_HOW_TO_BUILD = "build it with `make native` in a checkout, or install a C++ compiler and run `pip install .` again"


class EbsynthError(RuntimeError):
    """The library is missing, cannot be loaded, or failed; the message says why."""


def library_path() -> Path:
    """Where the library is expected: $EBSYNTH_LIBRARY, or next to this file."""
    return Path(os.environ.get("EBSYNTH_LIBRARY") or Path(__file__).parent / LIBRARY)


def uses_numba(backend: str) -> bool:
    """Whether numba computes a call with this back end: if asked for, or if "auto" finds no library.

    Raises:
        ValueError: There is no such back end.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown back end {backend!r} (choose {', '.join(BACKENDS)})")
    return backend == "numba" or (backend == "auto" and not library_path().exists())


def load() -> ctypes.CDLL:
    """Load the library once per path.

    Raises:
        EbsynthError: It is missing, cannot be loaded, or has another version.
    """
    return _load(library_path())


@cache
def _load(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise EbsynthError(f"the patch-matching library is missing ({path}); {_HOW_TO_BUILD}")
    # GNU OpenMP's threads spin for milliseconds after each parallel region, thousands of times per call. When other
    # programs need the cores, that wastes them (measured next to two busy processes: 2.4 s instead of 5 to 8 s).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        library = ctypes.CDLL(str(path))
        library.ebsynth_get_info.argtypes = [ctypes.c_void_p]
        info = abi.Info(struct_size=ctypes.sizeof(abi.Info))
        status = library.ebsynth_get_info(ctypes.byref(info))
    except (OSError, AttributeError) as error:
        raise EbsynthError(f"cannot load {path} ({error}); {_HOW_TO_BUILD}") from error
    if status != _OK or info.version >> 16 != VERSION >> 16 or info.version < VERSION:
        raise EbsynthError(f"{path} has another version than this program; {_HOW_TO_BUILD}")
    library.ebsynth_create.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.ebsynth_destroy.argtypes = [ctypes.c_void_p]
    library.ebsynth_last_error.argtypes = [ctypes.c_void_p]
    library.ebsynth_last_error.restype = ctypes.c_char_p
    for name in ("synthesize", "match", "remap", "patch_error"):
        getattr(library, f"ebsynth_{name}").argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library


def run(name: str, call: ctypes.Structure, backend: str, device: int, threads: int, progress: Progress | None) -> None:
    """Run one call of the library in a context of its own.

    Args:
        name: Function, without the prefix `ebsynth_`.
        call: Its struct, one of abi.py's.
        backend: "auto", "cpu" or "cuda".
        device: Ordinal of the CUDA device.
        threads: CPU threads (0 = all).
        progress: Called with the fraction done. What it raises is raised here.

    Raises:
        ValueError: `threads` is out of range.
        EbsynthError: The library is missing, or the call failed.
    """
    check_options(threads=threads)
    library = load()
    raised: list[BaseException] = []

    def report(_user: int | None, fraction: float) -> int:
        # Needed even without a progress callback: this is where Python notices Ctrl-C.
        try:
            if progress is not None:
                progress(fraction)
        except BaseException as error:
            raised.append(error)
            return 1
        return 0

    callback = abi.PROGRESS(report)
    settings = abi.Settings(backend=BACKENDS.index(Backend(backend)), device=device, threads=threads, progress=callback)
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
