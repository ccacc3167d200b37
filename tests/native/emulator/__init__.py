"""A libebsynth whose CUDA back end runs on a CPU: built when first used, and adjustable to imitate other machines."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from weakref import finalize

import numpy as np
from filelock import FileLock

HERE = Path(__file__).parent
BUILD = HERE.parents[2] / "build" / "emulated"
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


class Machine(ctypes.Structure):
    """The machine to imitate, as in emulator.h."""

    _fields_ = (
        ("devices", ctypes.c_int32),
        ("driver", ctypes.c_int32),
        ("runs_code", ctypes.c_int32),
        ("has_pools", ctypes.c_int32),
        ("shuffle", ctypes.c_int32),
        ("allocations_left", ctypes.c_int64),
        ("calls_left", ctypes.c_int64),
    )


class Counts(ctypes.Structure):
    """What has happened on the machine since the library was loaded, as in emulator.h."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "launches", "blocks", "exchanges", "allocations", "live", "live_bytes", "peak_bytes", "pools",
            "synchronizations", "contexts",
        )
    )  # fmt: skip


class Emulator:
    """The emulated machine of a library that `build` made."""

    def __init__(self, library: Path):
        self.library = library
        loaded = ctypes.CDLL(str(library))
        self.machine = Machine.in_dll(loaded, "emulated_machine")
        self.counts = Counts.in_dll(loaded, "emulated_counts")
        self._defaults = bytes(self.machine)
        self._allocate, self._release, self._copy = (
            getattr(loaded, f"emulated_{name}") for name in ("allocate", "release", "copy")
        )
        self._allocate.restype = ctypes.c_void_p
        self._allocate.argtypes = [ctypes.c_size_t, ctypes.c_int]
        self._release.argtypes = [ctypes.c_void_p]
        self._copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def reset(self) -> None:
        """Imitate the default machine again."""
        ctypes.memmove(ctypes.byref(self.machine), self._defaults, len(self._defaults))

    def tensor(self, shape: tuple[int, ...], dtype: str, device: int) -> Tensor:
        """Return an uninitialised tensor on one of its devices."""
        return Tensor(self, shape, dtype, device)


class Tensor:
    """As much of a torch tensor as native.binding needs, in the memory of an emulated device."""

    is_cuda = True

    def __init__(self, emulator: Emulator, shape: tuple[int, ...], dtype: str, device: int):
        self.emulator, self.shape, self.dtype, self.device = emulator, shape, dtype, Device(device)
        self.bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.address: int = emulator._allocate(self.bytes, device)
        finalize(self, emulator._release, self.address)

    def is_contiguous(self) -> bool:
        return True

    def data_ptr(self) -> int:
        return self.address

    def fill(self, values: np.ndarray) -> Tensor:
        """Copy an array into it."""
        data = np.ascontiguousarray(values, self.dtype).reshape(self.shape)
        self.emulator._copy(self.address, data.ctypes.data, self.bytes, self.device.index)
        return self

    def numpy(self) -> np.ndarray:
        """Copy it to an array."""
        values = np.empty(self.shape, self.dtype)
        self.emulator._copy(values.ctypes.data, self.address, self.bytes, self.device.index)
        return values


@dataclass(frozen=True)
class Device:
    """A CUDA device."""

    index: int


def can_build() -> bool:
    """Whether this machine can build and run the emulator."""
    has_tools = shutil.which("cmake", path=TOOLS) and any(map(shutil.which, ("c++", "g++", "clang++")))
    return bool(has_tools) and sys.platform == "linux" and platform.machine() == "x86_64"


@cache
def build(native: Path | None = None, folder: Path = BUILD) -> Path:
    """Build the library, or only what has changed since it was built, and return its path.

    Args:
        native: Sources of the library, by default this project's.
        folder: Where to build.

    Raises:
        RuntimeError: It does not compile. The message is the compiler's.
    """
    sources = [] if native is None else [f"-Dnative={native}"]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # tests run in several processes
        for command in (["-S", str(HERE), "-B", str(folder), *sources], ["--build", str(folder), "--parallel"]):
            done = subprocess.run(
                ["cmake", *command], env={**os.environ, "PATH": TOOLS}, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(done.stdout + done.stderr)
    return folder / "native" / "libebsynth.so"
