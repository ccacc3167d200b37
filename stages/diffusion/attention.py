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
    """Whom the frames of a pass see. It goes through the networks with the pass (`cross_attention_kwargs`)."""

    def attend(self, layer: CrossFrameAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """What the frames see in a layer, [passes * frames, tokens, heads, d]."""


class CrossFrameAttention:
    """The processor of one attention layer of one network.

    Args:
        product: The kernel.
        last: Whether no later layer of its network lets frames see each other.
    """

    def __init__(self, product: Product, last: bool = False):
        self.product, self.last = product, last
        self.text: torch.Tensor | None = None  # the one that text_keys were computed from
        self.text_keys: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        view: View | None = None,
    ) -> torch.Tensor:
        q = attn.to_q(hidden_states)
        if encoder_hidden_states is not None:
            k, v = self._of_text(attn, encoder_hidden_states)
            found = self.product(*_heads(attn, q.reshape(len(k), -1, q.shape[-1]), k, v))
        else:
            parts = _heads(attn, q, attn.to_k(hidden_states), attn.to_v(hidden_states))
            found = self.product(*parts) if view is None else view.attend(self, *parts)
        return attn.to_out[0](found.reshape(q.shape).to(q.dtype))

    def _of_text(self, attn: Attention, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.text_keys is None or self.text is not text:
            self.text, self.text_keys = text, (attn.to_k(text), attn.to_v(text))
        return self.text_keys


def _heads(attn: Attention, *parts: torch.Tensor) -> list[torch.Tensor]:
    """[batch, tokens, channels] → [batch, tokens, heads, channels / heads]"""
    return [part.unflatten(-1, (attn.heads, -1)) for part in parts]


@dataclass(frozen=True)
class Joint:
    """The batch is a run of groups of `group` consecutive frames, which attend to each other.

    Only the frame at `own` of each group is asked for: in the last layer the others attend to nothing.
    """

    group: int
    own: int = 0

    def attend(self, layer: CrossFrameAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(0, (-1, self.group)) for part in (q, k, v))
        if not layer.last:
            return layer.product(*(part.flatten(1, 2) for part in (q, k, v))).reshape(q.flatten(0, 1).shape)
        found = torch.zeros_like(q)
        found[:, self.own] = layer.product(q[:, self.own], k.flatten(1, 2), v.flatten(1, 2))
        return found.flatten(0, 1)


Kept = dict[CrossFrameAttention, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of anchors, [passes, anchors, tokens, heads, d], in every layer that lets frames see each other."""


@dataclass(frozen=True)
class Shared:
    """`sources` int64 [frames, seen]: the frames that each frame of the batch sees, by their indexes in the batch.

    `anchors`: keys and values from an earlier pass; their frames have the indexes after those of the batch. `keep`:
    where this pass stores its own.
    """

    sources: torch.Tensor
    anchors: Kept = field(default_factory=dict)
    keep: Kept | None = None

    def attend(self, layer: CrossFrameAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        passes = len(q) // len(self.sources)
        k, v = (part.unflatten(0, (passes, -1)) for part in (k, v))
        if self.keep is not None:
            self.keep[layer] = k, v
        if layer in self.anchors:
            k, v = (torch.cat([part, kept], dim=1) for part, kept in zip((k, v), self.anchors[layer], strict=True))
        k, v = (part[:, self.sources].flatten(2, 3).flatten(0, 1) for part in (k, v))
        return layer.product(q, k, v)
