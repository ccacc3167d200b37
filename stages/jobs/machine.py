"""Settings of the machine a job runs on, available as job keys and as command-line options."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stages.base.mistakes import Strict
from stages.base.numbers import Positive
from stages.base.paths import CacheAddress
from stages.base.registry import NameIn
from stages.diffusion.attention_backends import BACKENDS

DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")  # examples


def check_device_name(value: str) -> str:
    """Return `value` if it names a device, else raise ValueError."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", value):
        raise ValueError(f"unknown device {value!r}; choose auto, cpu, cuda, cuda:N or mps")
    return value


class MachineSettings(Strict):
    """Where and how networks run. Apart from `dtype`, these change results at most by rounding."""

    device: Annotated[str, AfterValidator(check_device_name)] = Field("auto", examples=list(DEVICES))
    """Device for networks and smoothing: auto, cpu, cuda, cuda:N or mps (networks only)."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Data type of the networks. auto: float16 on a GPU, float32 elsewhere."""
    batch_size: Positive | None = None
    """Groups of frames per pass through the networks. By default, as many as fit in memory."""
    low_vram: bool = False
    """Offload idle networks to CPU memory. Needs less GPU memory but takes longer."""
    compile: bool = False
    """Compile networks and, on a GPU, smoothing, which takes minutes at the start. Meant for GPUs."""
    attention_backend: Annotated[str, NameIn(BACKENDS)] = "auto"
    """Attention implementation. auto: on an NVIDIA GPU, the fastest, measured when the render starts; elsewhere sdpa,
    PyTorch's choice."""
    cache: CacheAddress | None = Field(None, min_length=1)
    """Where frames are kept: a folder, or a URL such as `s3://bucket/winter.zarr`. By default, `cache.zarr` in
    `output_path`."""
    allow_pickle: bool = False
    """Also load models from pickles (`.ckpt`, `.pt`, `.pth`, `.bin`). A pickle can run code on this machine, so use it
    only with files from sources you trust."""
