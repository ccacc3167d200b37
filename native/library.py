"""Find, load and call the shared library libebsynth. Only binding.py, arguments.py and tests use this module."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from weakref import finalize

from native import Backend, abi
from native.arguments import check_options

Progress = Callable[[float], None]
"""Called repeatedly with the fraction done, 0..1. An exception it raises ends the call and reaches the caller."""

BACKENDS = tuple(Backend)
VERSION = 1 << 16 | 2  # version of ebsynth.h that abi.py describes
LIBRARY = "libebsynth" + {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")

_CONTEXTS = 4  # kept per thread
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


class _Reporter:
    """Passes progress on to the caller of the current call, and keeps what the caller raises."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.raised: BaseException | None = None

    def __call__(self, _user: int | None, fraction: float) -> int:
        # Needed even without a progress callback: this is where Python notices Ctrl-C.
        try:
            if self.progress is not None:
                self.progress(fraction)
        except BaseException as error:
            self.raised = error
            return 1
        return 0


class _Context:
    """A context of the library, which is not shared between threads.

    Raises:
        EbsynthError: The library cannot use this back end.
    """

    def __init__(self, library: ctypes.CDLL, backend: str, device: int, threads: int):
        self.library, self.reporter, self.handle = library, _Reporter(), ctypes.c_void_p()
        self.callback = abi.PROGRESS(self.reporter)
        settings = abi.Settings(
            struct_size=ctypes.sizeof(abi.Settings), backend=BACKENDS.index(Backend(backend)), device=device,
            threads=threads, progress=self.callback,
        )  # fmt: skip
        status = library.ebsynth_create(ctypes.byref(settings), ctypes.byref(self.handle))
        if status != _OK:
            raise EbsynthError(f"{backend}: {_STATUS.get(status, status)}: {_last_error(library, None)}")
        self.close = finalize(self, library.ebsynth_destroy, self.handle)
        self.close.atexit = False  # CUDA may be gone by then

    def run(self, name: str, call: ctypes.Structure, progress: Progress | None) -> None:
        self.reporter.progress, call.struct_size = progress, ctypes.sizeof(call)
        status = getattr(self.library, f"ebsynth_{name}")(self.handle, ctypes.byref(call))
        if self.reporter.raised is not None:
            raise self.reporter.raised
        if status == _CANCELLED:
            raise EbsynthError("cancelled")
        if status != _OK:
            raise EbsynthError(f"{_STATUS.get(status, status)}: {_last_error(self.library, self.handle)}")
        self.reporter.progress = None


def _last_error(library: ctypes.CDLL, handle: ctypes.c_void_p | None) -> str:
    text: bytes = library.ebsynth_last_error(handle)
    return text.decode()


class _Idle(threading.local):
    """Contexts of a thread that no call uses. With CUDA, creating one takes as long as a small call."""

    def __init__(self) -> None:
        self.contexts: dict[tuple[ctypes.CDLL, str, int, int], _Context] = {}


_idle = _Idle()


def run(name: str, call: ctypes.Structure, backend: str, device: int, threads: int, progress: Progress | None) -> None:
    """Run one call of the library.

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
    wanted = load(), backend, device, threads
    context = _idle.contexts.pop(wanted, None) or _Context(*wanted)
    try:
        context.run(name, call, progress)
    except BaseException:
        context.close()  # CUDA does not recover from some errors
        raise
    if backend == Backend.CPU or not runs_on_gpu(device):
        return  # without CUDA, creating a context takes no time, and keeping it would only keep its memory
    _idle.contexts[wanted] = context
    while len(_idle.contexts) > _CONTEXTS:
        del _idle.contexts[next(iter(_idle.contexts))]


def runs_on_gpu(device: int) -> bool:
    """Whether there is a library, and it can compute on this CUDA device."""
    return library_path().exists() and _runs_on_gpu(load(), device)


@cache
def _runs_on_gpu(library: ctypes.CDLL, device: int) -> bool:
    try:
        _Context(library, Backend.CUDA, device, 0)
    except EbsynthError:
        return False
    return True


def on_cpu() -> Backend:
    """The back end for the CPU: the library or, if it was not built, numba."""
    return Backend.CPU if library_path().exists() else Backend.NUMBA
