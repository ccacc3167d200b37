"""Rendering with attention backends: which one runs, what is noted, and what a resume does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from diffsynth_cli.failures import Interrupted
from stages.base.cache import FrameCache
from stages.diffusion.attention_backends import BACKENDS, Sdpa, TorchKernel
from stages.diffusion.denoise import Denoiser
from stages.render import tasks as render_tasks
from tests.stages.test_render import assert_same
from tests.typing import Cli, MakeJob, Render


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of backends by name."""
    counts: Counter[str] = Counter()

    def counted(kind: type[Sdpa]) -> Callable[..., torch.Tensor]:
        real = kind.attend

        def attend(self: Sdpa, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            counts[self.name] += 1
            return real(self, q, k, v)

        return attend

    for name in ("sdpa", "auto", "flash", "math"):
        kind = BACKENDS[name]
        assert issubclass(kind, Sdpa)
        monkeypatch.setattr(kind, "attend", counted(kind))
    return counts


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    """Let measurements find these seconds, as on a GPU."""

    def find(seconds: dict[str, float]) -> None:
        def measure(self: Denoiser, height: int, width: int, group: int, joint: bool) -> dict[str, float]:
            return seconds

        monkeypatch.setattr(Denoiser, "measure_backends", measure)

    return find


def attention(cache: FrameCache) -> object:
    return cache["rendered"].attrs["attention_backend"]
