"""Compile networks (`--compile`), so that their blocks run as fewer kernels.

Residual blocks and feed-forward layers, most of a U-Net, are compiled one by one. Attention is not. It is already a
fused kernel, and cross-frame attention changes from batch to batch, which would recompile it each time.
"""

from __future__ import annotations

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from stages.base.errors import DiffSynthError

BACKEND = "inductor"
BLOCKS = (ResnetBlock2D, FeedForward)
MAX_SHAPES = 256  # per kind of block: its widths in all networks, times the batch sizes


def compile_blocks(*networks: nn.Module) -> None:
    """Compile the blocks of networks when they first run. Raises DiffSynthError if PyTorch cannot compile here."""
    _check_compiler(next(networks[0].parameters()).device)
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = MAX_SHAPES * len(BLOCKS)
    for network in networks:
        for block in network.modules():
            if isinstance(block, BLOCKS):
                # Dynamic shapes would make results depend on which shapes came first, so on where a run is resumed.
                block.compile(dynamic=False, backend=BACKEND)


def _check_compiler(device: torch.device) -> None:
    try:
        torch.compile(lambda numbers: numbers.sin() + 1, backend=BACKEND)(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler has many symptoms
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DiffSynthError(
            f"--compile: PyTorch cannot compile for {device.type} here: {reason}",
            "it needs a C++ compiler on a CPU and Triton on CUDA; or run without --compile, which is slower",
        ) from error
