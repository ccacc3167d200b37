"""Compiled blocks give what they gave before."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention import FeedForward
from torch import nn

from stages.diffusion import compilation
from stages.models import compiler


@pytest.mark.parametrize(
    ("backend", "batches"),
    [("eager", [3, 1]), pytest.param("inductor", [3], marks=pytest.mark.slow)],  # C++ takes seconds each time
)
def test_a_compiled_block_gives_the_same_for_every_shape(
    backend: str, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "BACKEND", backend)
    torch.manual_seed(0)
    network = nn.ModuleDict({"block": FeedForward(8)}).eval().requires_grad_(False)
    inputs = [torch.randn(frames, 5, 8) for frames in batches]
    before = [network["block"](hidden) for hidden in inputs]
    compilation.compile_blocks(network)
    assert network["block"]._compiled_call_impl is not None
    for hidden, expected in zip(inputs, before, strict=True):
        torch.testing.assert_close(network["block"](hidden), expected)
