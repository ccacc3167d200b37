"""PyTorch's compiler (`--compile`): whether it works on this machine, what it compiles, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from stages.base.errors import DiffSynthError

BACKEND = "inductor"

Tensors = TypeVar("Tensors", torch.Tensor, tuple[torch.Tensor, ...])


def check_compiler(device: torch.device) -> None:
    """Raise DiffSynthError if PyTorch cannot compile for a device."""
    with compiler_errors(device):
        torch.compile(lambda numbers: numbers.sin() + 1, backend=BACKEND)(torch.zeros(8, device=device))


@contextmanager
def compiler_errors(device: torch.device) -> Iterator[None]:
    """Turn exceptions into DiffSynthError, since a missing compiler has many symptoms."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DiffSynthError(
            f"--compile: PyTorch cannot compile for {device.type} here: {reason}",
            "it needs a C++ compiler on a CPU and Triton on CUDA; or run without --compile, which is slower",
        ) from error


def compiled(function: Callable[..., Tensors], arguments: Sequence[torch.Tensor | float]) -> Callable[..., Tensors]:
    """Compile what a function of tensors does with these arguments. It takes others of the same layout.

    The function is run and its operations on tensors are recorded, so it may also use anything else, such as OpenCV for
    constants. What it caches, and numbers among the arguments, are constants of the recording.
    """
    from torch._inductor import config
    from torch.fx.experimental.proxy_tensor import make_fx

    function(*arguments)  # fills its caches, or the recording would contain how
    graph = make_fx(function)(*arguments)
    run = torch.compile(graph, fullgraph=True, dynamic=False, backend=BACKEND, options={"layout_optimization": False})
    return _copied(run) if config.triton.cudagraphs else run


def _copied(run: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """Copy the results of a CUDA graph, since its next run overwrites them."""

    def copy(*arguments: torch.Tensor | float) -> Tensors:
        results = run(*arguments)
        return results.clone() if isinstance(results, torch.Tensor) else tuple(result.clone() for result in results)

    return copy
