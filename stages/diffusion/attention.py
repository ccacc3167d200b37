"""Cross-frame attention, which gives the frames of a video a consistent look.

In Stable Diffusion's self-attention layers, an image attends to itself. Here the frames of a video attend to each other
(DiffSynth, arXiv 2308.03463, section 3.2), in one of two ways:

- joint: frames form groups, and all tokens of a group attend to each other. A frame goes through the networks once per
  group that it is in.
- shared: a frame goes through the networks once, and its queries attend to the keys and values of other frames.

A layer's hidden states are [passes * frames, tokens, channels], where passes are those of classifier-free guidance. The
text comes once per pass, [passes, tokens, channels], and its keys and values are computed once for all steps. Where
frames have different prompts, it comes once per frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from stages.diffusion.attention_backends import Inputs, Kernel, Sdpa

sdpa = Sdpa().attend

MOST_KEPT = 8  # texts whose keys and values a layer keeps


class View(Protocol):
    """Which frames a pass attends to, and how. It is passed to the networks as one of `cross_attention_kwargs`."""

    @property
    def kernel(self) -> Kernel:
        """The implementation of attention."""

    @property
    def words(self) -> Words:
        """What is special about the text of the pass."""

    def attend(self, layer: CrossFrameAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return the result of attention in a layer, [passes * frames, tokens, heads, d]."""


@dataclass(frozen=True, eq=False)
class Words:
    """What is special about the text of a pass.

    Args:
        fixed: Whether other passes get the same tensor, so that its keys and values are kept.
        regions: Parts of frames with texts of their own.
    """

    fixed: bool = True
    regions: Regions | None = None


PLAIN = Words()


class CrossFrameAttention:
    """The processor of one attention layer of one network.

    Args:
        last: Whether this is the last self-attention layer of its network.
    """

    def __init__(self, last: bool = False):
        self.last = last
        self.kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # texts with their keys and values

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        view: View | None = None,
    ) -> torch.Tensor:
        kernel = sdpa if view is None else view.kernel
        words = PLAIN if view is None else view.words
        q = attn.to_q(hidden_states)
        if encoder_hidden_states is not None:
            found = self.attend_to_text(attn, q, encoder_hidden_states, kernel, words.fixed)
            if words.regions is not None:
                found = words.regions.mix(self, attn, q, found, kernel)
        else:
            parts = _heads(attn, q, attn.to_k(hidden_states), attn.to_v(hidden_states))
            found = kernel(*parts) if view is None else view.attend(self, *parts)
        projected: torch.Tensor = attn.to_out[0](found.reshape(q.shape).to(q.dtype))
        return projected

    def attend_to_text(
        self, attn: Attention, q: torch.Tensor, text: torch.Tensor, kernel: Kernel, fixed: bool
    ) -> torch.Tensor:
        """Return the result of attention to texts, [rows of text, tokens, heads, d]. Each is for equally many frames.

        Args:
            attn: The layer.
            q: Queries [frames, tokens, channels].
            text: [rows, tokens, channels].
            kernel: The implementation of attention.
            fixed: Whether to keep the keys and values of the text.
        """
        k, v = self._keys_of(attn, text, fixed)
        return kernel(*_heads(attn, q.reshape(len(k), -1, q.shape[-1]), k, v))

    def _keys_of(self, attn: Attention, text: torch.Tensor, fixed: bool) -> tuple[torch.Tensor, torch.Tensor]:
        for known, *keys in self.kept:
            if known is text:
                return keys[0], keys[1]
        k, v = attn.to_k(text), attn.to_v(text)
        if fixed:
            self.kept = [*self.kept[-MOST_KEPT + 1 :], (text, k, v)]
        return k, v


def _heads(attn: Attention, *parts: torch.Tensor) -> list[torch.Tensor]:
    """Reshape [batch, tokens, channels] to [batch, tokens, heads, channels / heads]."""
    return [part.unflatten(-1, (attn.heads, -1)) for part in parts]


@dataclass(frozen=True, eq=False)
class Regions:
    """Parts of frames that attend to texts of their own, in the positive pass, which is the last.

    Args:
        texts: The text of each region, [1, tokens, channels].
        weights: How much each latent of each frame belongs to each region, float [frames, regions, h, w]. They add up
            to at most 1; the rest belongs to the text of the pass.
    """

    texts: Sequence[torch.Tensor]
    weights: torch.Tensor

    def mix(
        self, layer: CrossFrameAttention, attn: Attention, q: torch.Tensor, found: torch.Tensor, kernel: Kernel
    ) -> torch.Tensor:
        """Mix `found`, the result of attention to the text of the pass, with that of attention to each region's."""
        frames, tokens = len(self.weights), q.shape[1]
        of_pass = found.reshape(-1, tokens, *found.shape[2:])
        shares = self._per_token(tokens).to(found.dtype)
        mixed = of_pass[-frames:] * (1 - shares.sum(1))[..., None, None]
        for text, share in zip(self.texts, shares.unbind(1), strict=True):
            own = layer.attend_to_text(attn, q[-frames:], text, kernel, fixed=True)
            mixed = mixed + own.reshape(mixed.shape) * share[..., None, None]
        return torch.cat([of_pass[:-frames], mixed])

    def _per_token(self, tokens: int) -> torch.Tensor:
        """Return the weights in a layer with so many tokens per frame, [frames, regions, tokens]."""
        height, width = self.weights.shape[2:]
        while height * width > tokens:
            height, width = -(-height // 2), -(-width // 2)  # as the networks halve frames
        return nn.functional.adaptive_avg_pool2d(self.weights, (height, width)).flatten(2)


@dataclass(frozen=True)
class Joint:
    """Groups of `group` consecutive frames of the batch attend to each other.

    Only the result of the frame at `own` in each group is needed, so the others are skipped in the last layer.
    """

    group: int
    own: int = 0
    kernel: Kernel = sdpa
    words: Words = PLAIN

    def attend(self, layer: CrossFrameAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(0, (-1, self.group)) for part in (q, k, v))
        if not layer.last:
            return self.kernel(*(part.flatten(1, 2) for part in (q, k, v))).reshape(q.flatten(0, 1).shape)
        found = torch.zeros_like(q)
        found[:, self.own] = self.kernel(q[:, self.own], k.flatten(1, 2), v.flatten(1, 2))
        return found.flatten(0, 1)


Kept = dict[CrossFrameAttention, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of anchors, [passes, anchors, tokens, heads, d], in every self-attention layer."""


@dataclass(frozen=True)
class Shared:
    """Each frame of the batch attends to the frames in `sources`.

    Args:
        sources: Indexes of frames, int64 [frames, attended].
        anchors: Keys and values from an earlier pass, whose frames have the indexes after those of the batch.
        keep: Where to store the keys and values of this pass.
        kernel: The implementation of attention.
        words: What is special about the text.
    """

    sources: torch.Tensor
    anchors: Kept = field(default_factory=dict)
    keep: Kept | None = None
    kernel: Kernel = sdpa
    words: Words = PLAIN

    def attend(self, layer: CrossFrameAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        passes = len(q) // len(self.sources)
        k, v = (part.unflatten(0, (passes, -1)) for part in (k, v))
        if self.keep is not None:
            self.keep[layer] = k, v
        if layer in self.anchors:
            k, v = (torch.cat([part, kept], dim=1) for part, kept in zip((k, v), self.anchors[layer], strict=True))
        k, v = (part[:, self.sources].flatten(2, 3).flatten(0, 1) for part in (k, v))
        return self.kernel(q, k, v)


def example_inputs(network: nn.Module, *, tokens: int, group: int, joint: bool, like: torch.Tensor) -> Inputs:
    """Return random queries, keys and values as the first attention layer of a network has them, which has most tokens.

    Args:
        network: The network.
        tokens: Tokens per frame.
        group: Frames per group. One group is returned.
        joint: Whether attention is joint or shared.
        like: A tensor of the device and data type.
    """
    layer = next(module for module in network.modules() if isinstance(module, Attention))
    shape = layer.heads, layer.to_q.out_features // layer.heads
    random = torch.Generator(like.device).manual_seed(0)
    q, k, v = (
        torch.randn(group, tokens, *shape, device=like.device, dtype=like.dtype, generator=random) for _ in range(3)
    )
    k, v = (part.flatten(0, 1)[None] for part in (k, v))
    return (q.flatten(0, 1)[None], k, v) if joint else (q, k.repeat(group, 1, 1, 1), v.repeat(group, 1, 1, 1))
