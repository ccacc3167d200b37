"""Back ends of the patch-matching library, among them CUDA on an emulated GPU."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from native import binding, library
from tests.native import emulator

HAS_LIBRARY = binding.library_path().exists()
HAS_CUDA = HAS_LIBRARY and int(binding.info()["cuda_devices"]) > 0
ORDERS = int(os.environ.get("EMULATED_ORDERS", 1))  # `make emulate` tries more
_SKIPPED = {
    "cpu": pytest.mark.skipif(not HAS_LIBRARY, reason="no library was built"),
    "cuda": pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device"),
    "emulated": pytest.mark.skipif(not emulator.can_build(), reason="the emulator needs CMake and Linux on x86-64"),
}
EMULATED = [f"emulated {order}" for order in range(1, ORDERS + 1)]


def backends(*names: str) -> pytest.MarkDecorator:
    """Run a test with these back ends as its argument `backend`; "emulated" is CUDA on the emulated GPU."""
    wanted = [order for name in names for order in (EMULATED if name == "emulated" else [name])]
    marks = {"cuda": [pytest.mark.gpu]}
    params = [
        pytest.param(name, marks=[mark for mark in (_SKIPPED.get(name.split()[0]),) if mark] + marks.get(name, []))
        for name in wanted
    ]
    return pytest.mark.parametrize("backend", params, indirect=True)


every_backend = backends("cpu", "numba", "cuda", "emulated")
backends_but_cpu = backends("numba", "cuda", "emulated")


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a back end. Lanes, warps and blocks of the emulated GPU run in random orders."""
    name = str(request.param)
    if name.startswith("emulated"):
        machine = request.getfixturevalue("gpu").machine
        machine.shuffle = zlib.crc32(request.node.nodeid.encode()) >> 1 or 1
        return "cuda"
    return name


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[emulator.Emulator]:
    """Use the library whose CUDA back end runs on an emulated machine, and return that machine."""
    if not emulator.can_build():
        pytest.skip("the emulator needs CMake and Linux on x86-64")
    given = os.environ.get("EMULATED_LIBRARY")  # `make mutants` tests libraries with mistakes
    emulated = emulator.Emulator(Path(given) if given else emulator.build())
    monkeypatch.setenv("EBSYNTH_LIBRARY", str(emulated.library))
    forget_contexts()
    yield emulated
    emulated.reset()
    forget_contexts()


def forget_contexts() -> None:
    """Forget what this thread keeps of the library between calls."""
    library._idle.contexts.clear()
    library._runs_on_gpu.cache_clear()
