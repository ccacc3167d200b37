"""Compiled networks (`--compile`): the same blocks, fused into fewer kernels.

What makes the bulk of a U-Net is compiled block by block: residual blocks and feed-forward layers, which see one frame
at a time. The attention between them is a fused kernel already, and where frames see each other it changes from batch
to batch, which would compile it anew each time.
"""

from __future__ import annotations

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from stages.base.errors import DiffSynthError

BACKEND = "inductor"
BLOCKS = (ResnetBlock2D, FeedForward)
MOST_FORMS = 256  # of a block: its widths in all networks, times the sizes of batches


def compile_blocks(*networks: nn.Module) -> None:
    """Lets their blocks be compiled when they are met first. Raises DiffSynthError where nothing can be compiled."""
    _try_out(next(networks[0].parameters()).device)
    torch._dynamo.config.recompile_limit = MOST_FORMS
    torch._dynamo.config.accumulated_recompile_limit = MOST_FORMS * len(BLOCKS)
    for network in networks:
        for block in network.modules():
            if isinstance(block, BLOCKS):
                # One form for each shape: one for all would depend on which shapes came first, and so would a resume.
                block.compile(dynamic=False, backend=BACKEND)


def _try_out(device: torch.device) -> None:
    try:
        torch.compile(lambda numbers: numbers.sin() + 1, backend=BACKEND)(torch.zeros(8, device=device))
    except Exception as error:  # of the many kinds that a missing compiler shows itself by
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DiffSynthError(
            f"--compile: PyTorch cannot compile for {device.type} here: {reason}",
            "on a CPU it needs a C++ compiler, on CUDA Triton; without --compile all works as well, only slower",
        ) from error
