"""Compile networks (`--compile`), so that their blocks run as fewer kernels.

Residual blocks and feed-forward layers, most of a U-Net, are compiled one by one. Attention is not. It is already a
fused kernel, and cross-frame attention changes from batch to batch, which would recompile it each time.
"""

from __future__ import annotations

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from stages.models import compiler

BLOCKS = (ResnetBlock2D, FeedForward)
MAX_SHAPES = 256  # per kind of block: its widths in all networks, times the batch sizes


def compile_blocks(*networks: nn.Module) -> None:
    """Compile the blocks of networks when they first run. Raises DiffSynthError if PyTorch cannot compile here."""
    compiler.check_compiler(next(networks[0].parameters()).device)
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = MAX_SHAPES * len(BLOCKS)
    for network in networks:
        for block in network.modules():
            if isinstance(block, BLOCKS):
                # Dynamic shapes would make results depend on which shapes came first, so on where a run is resumed.
                block.compile(dynamic=False, backend=compiler.BACKEND)
