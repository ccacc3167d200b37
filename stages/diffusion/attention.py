"""Cross-frame attention: what lets the frames of a video agree on one look.

Stable Diffusion's self-attention layers see one image. Here the frames of a video see each other
(DiffSynth, arXiv 2308.03463, section 3.2), in one of two ways:

- joint: frames form groups, and all tokens of a group attend to all its tokens. A frame goes through the networks once
  for every group that it is in.
- shared: a frame goes through the networks once, and its queries attend to the keys and values of other frames.

A layer's hidden states are [passes * frames, tokens, channels], the passes those of classifier-free guidance. The text
comes once a pass, [passes, tokens, channels], and its keys and values are computed once for all steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from diffusers.models.attention_processor import Attention
from torch.nn import functional as F

from stages.base.errors import DiffSynthError

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""softmax(q kᵀ / √d) v of [batch, tokens, heads, d] each."""


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """PyTorch's own."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def pick_product(backend: str, device: torch.device) -> Product:
    """The attention kernel of this name: sdpa or xformers. Raises DiffSynthError where it cannot run."""
    if backend == "sdpa":
        return sdpa
    if device.type != "cuda":
        raise DiffSynthError(
            f"attention_backend: xformers has kernels for CUDA only, not for {device.type}", "sdpa runs everywhere"
        )
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise DiffSynthError(
            f"attention_backend: xformers cannot be loaded: {error}", "pip install 'diffsynth-cli[xformers]'"
        ) from error
    return memory_efficient_attention


class View(Protocol):
    """Whom the frames of a batch see."""

    def attend(self, layer: CrossFrameAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor: ...


class CrossFrameAttention:
    """The processor of one attention layer of one network; `view` is common to all of them."""

    def __init__(self, view: View, product: Product, last: bool = False):
        self.view, self.product = view, product
        self.last = last  # no later layer of its network lets frames see each other
        self.text: torch.Tensor | None = None  # the one that text_keys are of
        self.text_keys: tuple[torch.Tensor, torch.Tensor] | None = None
        self.kept: tuple[torch.Tensor, torch.Tensor] | None = None  # keys and values of anchors

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        q = attn.to_q(hidden_states)
        if encoder_hidden_states is None:
            found = self.view.attend(self, *_heads(attn, q, attn.to_k(hidden_states), attn.to_v(hidden_states)))
        else:
            k, v = self._of_text(attn, encoder_hidden_states)
            found = self.product(*_heads(attn, q.reshape(len(k), -1, q.shape[-1]), k, v))
        return attn.to_out[0](found.reshape(q.shape).to(q.dtype))

    def _of_text(self, attn: Attention, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.text_keys is None or self.text is not text:
            self.text, self.text_keys = text, (attn.to_k(text), attn.to_v(text))
        return self.text_keys


def _heads(attn: Attention, *parts: torch.Tensor) -> list[torch.Tensor]:
    """[batch, tokens, channels] → [batch, tokens, heads, channels / heads]"""
    return [part.unflatten(-1, (attn.heads, -1)) for part in parts]


@dataclass
class Joint:
    """The batch is a run of groups, each of `group` consecutive frames, of which the one at `own` is asked for: in the
    last layer the others need not look any more."""

    group: int
    own: int = 0

    def attend(self, layer: CrossFrameAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(0, (-1, self.group)) for part in (q, k, v))
        if not layer.last:
            return layer.product(*(part.flatten(1, 2) for part in (q, k, v))).reshape(q.flatten(0, 1).shape)
        found = torch.zeros_like(q)
        found[:, self.own] = layer.product(q[:, self.own], k.flatten(1, 2), v.flatten(1, 2))
        return found.flatten(0, 1)


@dataclass
class Shared:
    """`sources` int64 [frames, seen]: the frames that each frame sees, numbers in the batch or, if the batch is
    `anchored`, from its length on those of the anchors, which went through the networks before, `keeping` their keys
    and values."""

    sources: torch.Tensor = field(default_factory=lambda: torch.zeros((1, 1), dtype=torch.int64))
    keeping: bool = False
    anchored: bool = False

    def attend(self, layer: CrossFrameAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        passes = len(q) // len(self.sources)
        k, v = (part.unflatten(0, (passes, -1)) for part in (k, v))
        if self.keeping:
            layer.kept = k, v
        elif self.anchored and layer.kept is not None:
            k, v = (torch.cat([part, kept], dim=1) for part, kept in zip((k, v), layer.kept, strict=True))
        k, v = (part[:, self.sources].flatten(2, 3).flatten(0, 1) for part in (k, v))
        return layer.product(q, k, v)
