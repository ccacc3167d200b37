"""How smoothers call the patch-matching library: where it runs, on how many pairs of frames at once, and its errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypedDict, TypeVar

from native import binding
from stages.base.arrays import Image
from stages.base.errors import DiffSynthError

PIXELS_ON_GPU = 8 * 512 * 960  # of the pairs in one call, which bounds the memory ...
PAIRS_ON_GPU = 8  # ... and how many they are at most

Item = TypeVar("Item")


class LibraryOptions(TypedDict):
    """Where the patch-matching library runs: arguments of `native.binding`."""

    backend: str
    device: int


def library_options(device: str) -> LibraryOptions:
    """Choose the back end and device of the patch-matching library for the `device` of a job."""
    if device in ("cpu", "mps"):
        return {"backend": binding.on_cpu(), "device": 0}
    return {"backend": "auto", "device": int(device.partition(":")[2] or 0)}


def pairs_at_once(device: str, image: Image) -> int:
    """Return how many pairs of such images to match in one call. One alone does not fill a GPU."""
    where = library_options(device)
    if where["backend"] != "auto" or not binding.runs_on_gpu(where["device"]):
        return 1
    fitting: int = PIXELS_ON_GPU // (image.shape[0] * image.shape[1])
    return min(max(fitting, 1), PAIRS_ON_GPU)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Split into lists of `size` items. The last may be shorter. (Python 3.12 has this as itertools.batched.)"""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


@contextmanager
def library_errors() -> Iterator[None]:
    """Turn errors of the patch-matching library into DiffSynthError."""
    try:
        yield
    except binding.EbsynthError as error:
        raise DiffSynthError(str(error)) from error
