"""Cross-frame attention: what lets the frames of a video agree on one look.

Stable Diffusion's self-attention layers see one image. Here the tokens of several frames are laid side by
side before attention, so that every frame draws on the frames around it (DiffSynth, arXiv 2308.03463,
section 3.2).
"""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0


class JointAttention:
    """Self-attention over all tokens of a group of frames; cross-attention to the text is left as it is.

    The batch is a run of groups, each of `group` consecutive frames: hidden states [B*group, tokens, channels]
    become [B, group*tokens, channels], are attended to jointly and are cut apart again.
    """

    def __init__(self, group: int):
        self.group = group
        self.attend = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if encoder_hidden_states is not None:
            return self.attend(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        batch, tokens, channels = hidden_states.shape
        joined = hidden_states.reshape(batch // self.group, self.group * tokens, channels)
        return self.attend(attn, joined, None, attention_mask, temb).reshape(batch, tokens, channels)
