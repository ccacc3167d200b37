"""The C interface returns a status whatever it is called with."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest

from native import abi, binding
from native.library import load

pytestmark = pytest.mark.skipif(not binding.library_path().exists(), reason="no library was built")

CALLS = 10_000
STATUSES = range(7)
SIDE, CHANNELS = 12, 32  # buffers hold three images of these
WILD = [0, 1, -1, 2, 3, 4, 5, 7, 8, 24, 25, 31, 32, 33, 64, 1000, 2**15, 2**31 - 1, -(2**31)]
FLOATS = [0.0, 1.0, -1.0, 0.5, 1e-30, 1e6, 1e38, float("nan"), float("inf"), float("-inf")]


class Buffers:
    """Memory large enough for every valid call of at most SIDE × SIDE pixels."""

    def __init__(self) -> None:
        size = 3 * SIDE * SIDE * CHANNELS
        rng = np.random.default_rng(0)
        self.bytes = rng.integers(0, 256, size, np.uint8)
        self.fields = rng.integers(-(2**31), 2**31, size).astype(np.int32)
        self.floats = np.zeros(size, np.float32)
        self.weights = np.ones(64, np.float32)
        self.sizes = np.array([3, 5] * 64, np.int32)

    def of(self, member: str, draw: random.Random) -> int | None:
        if draw.random() < 0.03:
            return None
        if member.endswith("weights"):
            self.weights[:] = [draw.choice(FLOATS) if draw.random() < 0.01 else draw.random() for _ in range(64)]
            return self.weights.ctypes.data
        by_name = {"nnf": self.fields, "error": self.floats, "patch_sizes": self.sizes}
        return by_name.get(member, self.bytes).ctypes.data


def fill(call: ctypes.Structure, buffers: Buffers, draw: random.Random) -> None:
    """Fill a call with mostly valid members. Invalid sizes are absurd, so that the buffers hold every valid call."""
    call.struct_size = ctypes.sizeof(call) if draw.random() < 0.97 else draw.choice(WILD) & 0xFFFFFFFF
    value: int | float | None
    for name, kind, *_ in call._fields_[1:]:
        wild = draw.random() < 0.02
        if name == "stream":
            value = None
        elif name == "memory":
            value = draw.choice([-1, 1, 2]) if wild else 0
        elif kind is ctypes.c_void_p:
            value = buffers.of(name, draw)
        elif kind is ctypes.c_float:
            value = draw.choice(FLOATS) if wild else draw.random() * 10
        elif name == "batch":
            value = -1 if wild else draw.choice([0, 1, 2])
        elif name.endswith(("height", "width")):
            value = draw.choice([0, -1, 2**15, 2**31 - 1, -(2**31)]) if wild else draw.randint(1, SIDE)
        elif name == "rounds":
            value = draw.choice([-1, 0, 65, 2**31 - 1]) if wild else draw.randint(1, 3)
        elif name == "seed":
            value = draw.getrandbits(64)
        elif wild and name in ("search_vote_iterations", "patch_match_iterations"):
            value = draw.choice([-1, 1001, 2**31 - 1])
        elif wild:
            value = draw.choice(WILD)
        else:
            values = {
                "patch_size": draw.choice([3, 5]),
                "guide_channels": draw.randint(1, 8),
                "border": draw.randint(0, 1),
            }
            value = values.get(name, draw.randint(1, 2))
        setattr(call, name, value)


def test_random_calls_always_end_with_a_status() -> None:
    library, draw, buffers = load(), random.Random(0), Buffers()
    settings = abi.Settings(struct_size=ctypes.sizeof(abi.Settings), backend=1, threads=1)
    context = ctypes.c_void_p()
    assert library.ebsynth_create(ctypes.byref(settings), ctypes.byref(context)) == 0
    kinds = {
        "synthesize": abi.Synthesis,
        "match": abi.Matching,
        "remap": abi.Remapping,
        "patch_error": abi.Errors,
    }
    seen = dict.fromkeys(STATUSES, 0)
    for _ in range(CALLS):
        name = draw.choice(list(kinds))
        call = kinds[name]()
        fill(call, buffers, draw)
        status = getattr(library, f"ebsynth_{name}")(context, ctypes.byref(call))
        text = library.ebsynth_last_error(context)
        assert status in STATUSES and (status == 0) == (text == b"")
        seen[status] += 1
    library.ebsynth_destroy(context)
    assert seen[0] > CALLS // 10 and seen[1] > CALLS // 10 and seen[6] == 0


def test_null_pointers_are_refused() -> None:
    library = load()
    library.ebsynth_destroy(None)
    assert library.ebsynth_last_error(None) == b""
    assert library.ebsynth_create(None, None) == 1
    assert library.ebsynth_get_info(None) == 1
    for name in ("synthesize", "match", "remap", "patch_error"):
        assert getattr(library, f"ebsynth_{name}")(None, None) == 1


@pytest.mark.parametrize(
    ("member", "value"), [("backend", 3), ("backend", -1), ("device", -1), ("threads", -1), ("threads", 1025)]
)
def test_wrong_settings_make_no_context(member: str, value: int) -> None:
    settings = abi.Settings(struct_size=ctypes.sizeof(abi.Settings))
    setattr(settings, member, value)
    context = ctypes.c_void_p(1)
    assert load().ebsynth_create(ctypes.byref(settings), ctypes.byref(context)) == 1
    assert context.value is None


def test_programs_compiled_with_an_older_header_still_run() -> None:
    """Structs of version 1.0 end before `border`: what lies behind them is not read."""
    source, nnf = np.full((1, 5, 5, 1), 100, np.uint8), np.zeros((1, 5, 5, 2), np.int32)
    image = np.zeros_like(source)
    call = abi.Remapping(
        struct_size=abi.Remapping.border.offset, batch=1, source_height=5, source_width=5, target_height=5,
        target_width=5, channels=1, patch_size=3, source=source.ctypes.data, nnf=nnf.ctypes.data,
        image=image.ctypes.data, border=1,
    )  # fmt: skip
    settings, context = abi.Settings(struct_size=ctypes.sizeof(abi.Settings), backend=1), ctypes.c_void_p()
    library = load()
    assert library.ebsynth_create(ctypes.byref(settings), ctypes.byref(context)) == 0
    assert library.ebsynth_remap(context, ctypes.byref(call)) == 0
    assert (image == 100).all()  # with a border of zeros, pixels beside the border would be darker
    call.struct_size -= 1
    assert library.ebsynth_remap(context, ctypes.byref(call)) == 1
    library.ebsynth_destroy(context)
