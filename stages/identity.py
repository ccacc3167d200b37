"""What decides, besides the job, which bytes a machine computes: versions of programs, and the processor."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import numpy as np

import native
import stages
from native.binding import info
from native.library import library_path
from stages.base.cluster.worker import Identity
from stages.base.record import versions
from stages.models.weights import pick_gpu

SHOWN = 8  # digits of a hash in messages


def identify() -> Identity:
    """Describe this machine. Imports torch only if there is an NVIDIA driver."""
    return Identity(platform.node(), program_versions(), processor())


def program_versions() -> dict[str, str]:
    """Return the versions of this program, its patch-matching library and the packages that can change a frame.

    The program's files count, too, because not every change of them has a version of its own.
    """
    return {**versions(), "libebsynth": _library_version(), "the files of diffsynth-cli": _hash()[:SHOWN]}


def processor(device: str = "auto") -> str:
    """Return the model of the GPU that this device of a job is, or what kind of CPU computes without one."""
    gpu = pick_gpu(device)
    if gpu is not None:
        import torch

        return torch.cuda.get_device_name(gpu)
    return f"{platform.machine()} CPU ({_instructions()})"


def _instructions() -> str:
    """Name the largest set of instructions of the CPU, by which libraries choose their kernels."""
    sets = np.show_config(mode="dicts")["SIMD Extensions"]
    return [*sets["baseline"], *sets.get("found", [])][-1]


def _library_version() -> str:
    if not library_path().exists():
        return "none (numba)"
    version = int(info()["version"])
    return f"{version >> 16}.{version & 0xFFFF}"


def _hash() -> str:
    """Return a hash of the program's Python files."""
    digest = hashlib.sha256()
    for package in (stages, native):
        folder = Path(package.__path__[0])
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()
