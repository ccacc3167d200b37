"""Count the kernels that torch launches for a frame, and the memory that it takes.

No GPU is needed: tensors are simulated and have no contents.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from native import binding
from stages.base.arrays import Image
from stages.models import weights
from stages.smoothers import build
from stages.smoothers.images import gpu, pixels

PACKAGE = "stages."  # whose functions the kernels are grouped by
FREE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh")
HOST_READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")  # wait for the GPU


class KernelCount(TorchDispatchMode):
    """Count the operations of torch that compute or copy something while this context is active.

    Views and allocations are free. Everything else counts as one kernel, though a few operations launch more.

    Attributes:
        kernels: The count by function of this project (module and name).
        waits: The count of operations whose result the CPU has to wait for, by function.
        live_bytes, peak_bytes: Memory of a GPU's tensors, now and at most, without what torch's allocator adds.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no type for it
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.live_bytes = self.peak_bytes = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def restart(self) -> None:
        """Forget what has been counted, but not what is still in memory."""
        self.kernels.clear()
        self.waits.clear()
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in HOST_READS or _leaves_gpu(args, result):
            self.waits[_caller()] += 1
        if not (name in FREE or _is_view(func, args, result)):
            self.kernels[_caller()] += 1
        for tensor in _tensors(result):
            if tensor.device.type != "cpu":
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def release(_: object) -> None:
            del self._storages[key]
            self.live_bytes -= size

        self._storages[key] = weakref.ref(storage, release)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def _leaves_gpu(args: Sequence[object], result: object) -> bool:
    before, after = ({tensor.device.type for tensor in _tensors(values)} for values in (args, result))
    return "cpu" in after and bool(before) and "cpu" not in before


def _is_view(func: torch._ops.OpOverload, args: Sequence[object], result: object) -> bool:
    if func._schema.is_mutable:
        return False
    inputs, outputs = ({tensor.untyped_storage()._cdata for tensor in _tensors(values)} for values in (args, result))
    return outputs <= inputs


def _tensors(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _caller() -> str:
    """Return the innermost function of this project on the stack."""
    frame = sys._getframe(1)
    while frame.f_back and not frame.f_globals.get("__name__", "").startswith(PACKAGE):
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__', '').rpartition('.')[2]}.{frame.f_code.co_name}"


def count_kernels(height: int, width: int, window: int, frames: int) -> KernelCount:
    """Count what PatchBlendSmoother launches for `frames` frames in the middle of a long video.

    Sums over windows that the preceding frames computed are kept, as they are while a video is smoothed.
    """
    before = -(-(window + 1) // gpu.MAX_FRAMES_AT_ONCE) * gpu.MAX_FRAMES_AT_ONCE
    first = 2 * before
    video = np.zeros((first + frames + 3 * before, height, width, 3), np.uint8)
    counted = KernelCount()
    with simulated_gpu():
        smoother = build("PatchBlendSmoother", {"window": window}, video, video.copy(), device="cuda")
        with counted:
            smoother.smooth(first - before, first)
            counted.restart()
            smoother.smooth(first, first + frames)
    return counted


@contextmanager
def simulated_gpu() -> Iterator[None]:
    """Run the code for GPUs on simulated tensors, which have a device but no contents."""

    def match(source: torch.Tensor, target: torch.Tensor, *, nnf: torch.Tensor, **options: object) -> binding.Fields:
        return binding.Fields(torch.empty_like(nnf), None)

    def fetch(image: FakeTensor) -> Image:
        return np.zeros(image.round().clip(0, 255).to(torch.uint8).cpu().shape, np.uint8)

    pixels.fetch.register(FakeTensor, fetch)
    with ExitStack() as stack:
        for place, name, value in (
            (binding, "match", match),
            (binding, "runs_on_gpu", lambda device: True),
            (weights, "pick_gpu", lambda name: torch.device("cuda:0")),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        _drop_constants()
        stack.enter_context(FakeTensorMode())
        stack.callback(_drop_constants)
        yield


def _drop_constants() -> None:
    """Drop tensors that are cached, since simulated and real ones do not mix."""
    for function in vars(gpu).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
