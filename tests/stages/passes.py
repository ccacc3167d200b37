"""Passes through the networks, watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch

from stages.diffusion.attention import View
from stages.diffusion.denoise import Denoiser
from stages.diffusion.prompts import Text

Look: TypeAlias = Callable[[torch.Tensor, Text, View], None]
PREDICT = Denoiser._predict


def watch_passes(monkeypatch: pytest.MonkeyPatch, look: Look) -> None:
    """Call `look` with the latents, the texts and the view of each pass, before it is made."""

    def predict(
        self: Denoiser,
        latents: torch.Tensor,
        embedded: list[torch.Tensor],
        timestep: float,
        text: Text,
        view: View,
    ) -> torch.Tensor:
        look(latents, text, view)
        return PREDICT(self, latents, embedded, timestep, text, view)

    monkeypatch.setattr(Denoiser, "_predict", predict)
