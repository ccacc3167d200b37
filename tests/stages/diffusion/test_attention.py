"""Joint attention against its definition."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention

from stages.diffusion.attention import JointAttention


def layer(**how) -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=16, heads=2, dim_head=8, **how).eval()


@torch.inference_mode()
def test_all_tokens_of_a_group_attend_to_all_its_tokens():
    attention, states = layer(), torch.randn(6, 5, 16)  # two groups of three frames of five tokens
    attention.set_processor(JointAttention(3))
    found = attention(states)
    for group in range(2):
        tokens = states[3 * group : 3 * group + 3].reshape(15, 16)
        q, k, v = (
            part(tokens).reshape(15, 2, 8).transpose(0, 1) for part in (attention.to_q, attention.to_k, attention.to_v)
        )
        mixed = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1) @ v
        expected = attention.to_out[0](mixed.transpose(0, 1).reshape(15, 16)).reshape(3, 5, 16)
        torch.testing.assert_close(found[3 * group : 3 * group + 3], expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_groups_do_not_see_each_other():
    attention, states = layer(), torch.randn(4, 5, 16)
    attention.set_processor(JointAttention(2))
    other = torch.cat([states[:2], torch.randn(2, 5, 16)])
    torch.testing.assert_close(attention(states)[:2], attention(other)[:2])


@torch.inference_mode()
def test_attention_to_text_is_each_frames_own():
    attention, states, text = layer(cross_attention_dim=12), torch.randn(4, 5, 16), torch.randn(4, 7, 12)
    attention.set_processor(JointAttention(2))
    found = attention(states, encoder_hidden_states=text)
    torch.testing.assert_close(
        found[1:2], attention(states[1:2], encoder_hidden_states=text[1:2]), atol=1e-5, rtol=1e-5
    )
