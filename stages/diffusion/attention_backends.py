"""Implementations of attention by name, and how fast they are on a GPU.

Queries, keys, values and results are [batch, tokens, heads, channels]. Stable Diffusion 1.x has 40, 80 and 160 channels
per head, which not all implementations support, so each says what it does with the others.

Backends are registered with properties that can be read without importing torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from stages.base.errors import DiffSynthError, UsageError
from stages.base.registry import Registry
from stages.models.weights import no_logs, pick_gpu

if TYPE_CHECKING:
    import torch

Kernel: TypeAlias = "Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]"
"""softmax(q kᵀ / √channels) v."""
Inputs: TypeAlias = "tuple[torch.Tensor, torch.Tensor, torch.Tensor]"
"""Queries, keys and values."""
Timer: TypeAlias = "Callable[[AttentionBackend, Inputs], float]"
"""Returns the seconds that a backend takes for these inputs."""

REPEATS, MOST_SECONDS = 5, 0.5  # of a measurement, which ends with whichever is reached first
TOLERANCES = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}  # of the largest value: what rounding can change


class AttentionBackend(ABC):
    """An implementation of attention. Stateless."""

    name: ClassVar[str]
    """Its name in jobs (`attention_backend`)."""
    description: ClassVar[str]
    """What it is, in one sentence."""
    module: ClassVar[str] = ""
    """The module that it needs besides torch."""
    install: ClassVar[str] = ""
    """How to install that module."""
    cuda_only: ClassVar[bool] = True
    """Whether it needs an NVIDIA GPU."""
    competes: ClassVar[bool] = True
    """Whether `auto` may choose it: it differs from the others by rounding only, and can be the fastest."""

    @abstractmethod
    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return the result of attention. Raises an exception for inputs that the backend does not support."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return the result of attention, by another backend for inputs that this one does not support."""
        return self.run(q, k, v)


BACKENDS: Registry[AttentionBackend] = Registry("attention backend", AttentionBackend, lambda backend: backend.name)


@BACKENDS.register
class Sdpa(AttentionBackend):
    """torch.nn.functional.scaled_dot_product_attention."""

    name = "sdpa"
    description = "PyTorch's choice."
    cuda_only = False

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@BACKENDS.register
class Auto(Sdpa):
    """`sdpa`, until backends have been measured."""

    name = "auto"
    description = "On an NVIDIA GPU, the fastest backend that changes results by rounding only; elsewhere, `sdpa`."
    competes = False


class TorchKernel(Sdpa):
    """One of PyTorch's own kernels. PyTorch chooses another one for inputs that it does not support."""

    kernel: ClassVar[str]
    """Its name in torch.nn.attention.SDPBackend."""
    cuda_only = True

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(getattr(SDPBackend, self.kernel)):
            return super().run(q, k, v)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel([getattr(SDPBackend, self.kernel), *others], set_priority=True):
            return super().run(q, k, v)


@BACKENDS.register
class Cudnn(TorchKernel):
    name, kernel = "cudnn", "CUDNN_ATTENTION"
    description = "cuDNN's kernel, which comes with PyTorch."


@BACKENDS.register
class Flash(TorchKernel):
    name, kernel = "flash", "FLASH_ATTENTION"
    description = "PyTorch's FlashAttention kernel."
    cuda_only = False


@BACKENDS.register
class Efficient(TorchKernel):
    name, kernel = "efficient", "EFFICIENT_ATTENTION"
    description = "PyTorch's memory-efficient kernel."


@BACKENDS.register
class Math(TorchKernel):
    name, kernel = "math", "MATH"
    description = "Plain matrix products, for comparison. Takes memory in proportion to queries × keys."
    cuda_only, competes = False, False

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.run(q, k, v)


class Dispatched(AttentionBackend):
    """A kernel of another package, called through diffusers."""

    dispatched: ClassVar[str]
    """Its name in diffusers.models.attention_dispatch.AttentionBackendName."""
    most_channels: ClassVar[int] = 256
    """Channels per head above which `sdpa` is used."""

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

        with attention_backend(self.dispatched):
            return dispatch_attention_fn(q, k, v)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        supported = q.shape[-1] <= self.most_channels
        return self.run(q, k, v) if supported else Sdpa().run(q, k, v)


@BACKENDS.register
class Xformers(Dispatched):
    name = dispatched = module = "xformers"
    description = "xFormers' memory-efficient kernels."
    install = "pip install 'diffsynth-cli[xformers]'"


@BACKENDS.register
class Flash2(Dispatched):
    name, dispatched, module = "flash2", "flash", "flash_attn"
    description = "FlashAttention 2 from the package `flash-attn`, for float16 and bfloat16."
    install = "pip install flash-attn"


@BACKENDS.register
class Flash3(Dispatched):
    name, dispatched, module = "flash3", "_flash_3", "flash_attn_interface"
    description = "FlashAttention 3, built from source, for float16 and bfloat16 on GPUs such as the H100."
    install = "build FlashAttention 3 from its source"


@BACKENDS.register
class Sage(Dispatched):
    name = dispatched = "sage"
    module = "sageattention"
    description = "SageAttention, for float16 and bfloat16. It quantises, which changes frames by more than rounding."
    install = "install sageattention 2.1.1 or newer"
    competes = False
    most_channels = 128


def check_backend(name: str, device: str) -> None:
    """Raise UsageError for a backend that cannot run here. Imports torch only if the backend needs a GPU."""
    backend = BACKENDS[name]
    if backend.module and find_spec(backend.module) is None:
        raise UsageError(f"attention_backend: {name} is not installed", f"{backend.install}, or use sdpa")
    if backend.cuda_only and pick_gpu(device) is None:
        raise UsageError(f"attention_backend: {name} needs an NVIDIA GPU", "use sdpa")


def try_backend(name: str, inputs: Inputs) -> None:
    """Raise DiffSynthError if a backend does not support the device, data type or head dimension of `inputs`."""
    q = inputs[0]
    check_backend(name, str(q.device))
    try:
        BACKENDS[name]().run(*inputs).cpu()  # waits for the GPU
    except Exception as error:  # each package has its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DiffSynthError(
            f"attention_backend: {name} cannot run on {q.device} in {_dtype_name(q)}, with {q.shape[-1]} channels per "
            f"head: {reason}",
            "use sdpa",
        ) from error


def measure_backends(
    inputs: Inputs, timer: Timer, backends: Iterable[AttentionBackend] | None = None
) -> dict[str, float]:
    """Return the seconds that each backend takes, by name.

    Args:
        inputs: Queries, keys and values of the size and type that matter.
        timer: Measures a backend.
        backends: The backends to measure besides `sdpa`, by default all that may compete. Those that do not run here,
            or whose results differ from PyTorch's by more than rounding, are left out.
    """
    if backends is None:
        backends = [kind() for kind in BACKENDS.values() if kind.competes]
    sdpa = Sdpa()
    expected = sdpa.run(*inputs)
    seconds = {sdpa.name: timer(sdpa, inputs)}
    for backend in backends:
        if backend.name not in seconds and _agrees(backend, inputs, expected):
            seconds[backend.name] = timer(backend, inputs)
    return seconds


def _agrees(backend: AttentionBackend, inputs: Inputs, expected: torch.Tensor) -> bool:
    """Return whether a backend runs here and gives `expected`, apart from rounding."""
    try:
        with no_logs():  # PyTorch warns of kernels that it cannot use
            error = (backend.run(*inputs) - expected).abs().max()
    except Exception:  # a missing package, an unsupported GPU, too little memory
        return False
    return bool(error <= TOLERANCES[_dtype_name(expected)] * expected.abs().max())


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def seconds_on_gpu(backend: AttentionBackend, inputs: Inputs) -> float:
    """Return the seconds that a backend takes on the GPU of `inputs`: the least of several runs after the first."""
    import torch

    with torch.cuda.device(inputs[0].device):
        backend.attend(*inputs)
        seconds: list[float] = []
        while len(seconds) < REPEATS and sum(seconds) < MOST_SECONDS:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            backend.attend(*inputs)
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000)
    return min(seconds)
