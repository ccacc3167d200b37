"""Cross-frame attention against its definition."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention

from stages.diffusion.attention import CrossFrameAttention, Joint, Kept, Regions, Shared, Words


def layer(cross_attention_dim: int | None = None) -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=16, heads=2, dim_head=8, cross_attention_dim=cross_attention_dim).eval()


@torch.inference_mode()
def test_all_tokens_of_a_group_attend_to_all_its_tokens() -> None:
    attention, states = layer(), torch.randn(6, 5, 16)  # two groups of three frames of five tokens
    attention.set_processor(CrossFrameAttention())
    found = attention(states, view=Joint(3))
    for group in range(2):
        tokens = states[3 * group : 3 * group + 3].reshape(15, 16)
        q, k, v = (
            part(tokens).reshape(15, 2, 8).transpose(0, 1) for part in (attention.to_q, attention.to_k, attention.to_v)
        )
        mixed = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1) @ v
        expected = attention.to_out[0](mixed.transpose(0, 1).reshape(15, 16)).reshape(3, 5, 16)
        torch.testing.assert_close(found[3 * group : 3 * group + 3], expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_groups_do_not_see_each_other() -> None:
    attention, states = layer(), torch.randn(4, 5, 16)
    attention.set_processor(CrossFrameAttention())
    other = torch.cat([states[:2], torch.randn(2, 5, 16)])
    torch.testing.assert_close(attention(states, view=Joint(2))[:2], attention(other, view=Joint(2))[:2])


@torch.inference_mode()
def test_attention_to_text_is_each_frames_own() -> None:
    attention, states, text = layer(cross_attention_dim=12), torch.randn(4, 5, 16), torch.randn(4, 7, 12)
    attention.set_processor(CrossFrameAttention())
    found = attention(states, encoder_hidden_states=text)
    torch.testing.assert_close(
        found[1:2], attention(states[1:2], encoder_hidden_states=text[1:2]), atol=1e-5, rtol=1e-5
    )


@torch.inference_mode()
def test_text_comes_once_a_pass_and_a_new_text_counts() -> None:
    attention, states = layer(cross_attention_dim=12), torch.randn(4, 5, 16)
    attention.set_processor(CrossFrameAttention())
    for text in (torch.randn(2, 7, 12), torch.randn(2, 7, 12)):  # two passes of two frames
        found, again = attention(states, encoder_hidden_states=text), attention(states, encoder_hidden_states=text)
        torch.testing.assert_close(found, again, rtol=0, atol=0)
        expected = layer(cross_attention_dim=12)(states, encoder_hidden_states=text.repeat_interleave(2, dim=0))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_shared_queries_see_the_keys_of_their_sources_and_of_anchors() -> None:
    attention, frames, anchors = layer(), torch.randn(2 * 3, 5, 16), torch.randn(2 * 2, 5, 16)  # two passes
    attention.set_processor(CrossFrameAttention())
    kept: Kept = {}
    attention(anchors, view=Shared(torch.tensor([[0, 1], [0, 1]]), keep=kept))
    sources = [[0, 1, 3], [4, 0, 1], [2, 2, 4]]  # 3 and 4: the anchors
    found = attention(frames, view=Shared(torch.tensor(sources), kept))
    plain = layer()
    for one in range(2):
        every = torch.cat([frames[3 * one : 3 * one + 3], anchors[2 * one : 2 * one + 2]])
        for frame, seen in enumerate(sources):
            expected = plain(every[frame][None], encoder_hidden_states=every[seen].reshape(1, 15, 16))
            torch.testing.assert_close(found[3 * one + frame][None], expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_anchors_of_another_video_are_forgotten_where_there_are_none() -> None:
    attention, view, states = layer(), Shared(torch.tensor([[0]])), torch.randn(1, 5, 16)
    attention.set_processor(CrossFrameAttention())
    attention(torch.randn(1, 9, 16), view=Shared(torch.tensor([[0]]), keep={}))  # of frames of another size
    torch.testing.assert_close(attention(states, view=view), layer()(states), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_regions_mix_the_results_of_their_texts_in_the_positive_pass() -> None:
    attention, states = layer(12), torch.randn(4, 8, 16)  # two passes of two frames of 2×4 tokens
    text, own = torch.randn(2, 3, 12), torch.randn(1, 5, 12)
    weights = torch.zeros(2, 1, 4, 8)  # of latents, four per token
    weights[0, 0, :, 4:] = 1
    weights[1] = 0.25
    attention.set_processor(CrossFrameAttention())
    plain = attention(states, text, view=Joint(1))
    alone = attention(states[2:], own, view=Joint(1))
    found = attention(states, text, view=Joint(1, words=Words(regions=Regions([own], weights))))
    torch.testing.assert_close(found[:2], plain[:2], atol=0, rtol=0)
    right = torch.tensor([0, 0, 1, 1] * 2)[:, None]
    torch.testing.assert_close(found[2], torch.where(right == 1, alone[0], plain[2]))
    torch.testing.assert_close(found[3], 0.75 * plain[3] + 0.25 * alone[1])


@torch.inference_mode()
def test_only_fixed_texts_are_kept() -> None:
    attention, processor = layer(12), CrossFrameAttention()
    attention.set_processor(processor)
    texts = [torch.randn(1, 3, 12) for _ in range(12)]
    for text in texts:
        attention(torch.randn(1, 8, 16), text, view=Joint(1, words=Words(fixed=False)))
    assert processor.kept == []
    for text in texts:
        attention(torch.randn(1, 8, 16), text, view=Joint(1))
    assert [kept[0] is text for kept, text in zip(processor.kept, texts[4:], strict=True)] == [True] * 8
