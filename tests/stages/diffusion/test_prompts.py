"""Weights in prompts, and layers of the text encoder."""

from __future__ import annotations

import pytest
import torch

from stages.base.errors import UsageError
from stages.diffusion.loading import Networks, load_networks
from stages.diffusion.prompts import Prompts, encode_prompts, parse_weights
from stages.diffusion.settings import ModelNames, Settings
from tests.conftest import MODEL

NAMES = ModelNames(model_id=str(MODEL), device="cpu")


@pytest.fixture(scope="module")
def networks() -> Networks:
    return load_networks(NAMES)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a cat", [("a cat", 1.0)]),
        ("a (cat)", [("a ", 1.0), ("cat", 1.1)]),
        ("a ((cat)) [dog]", [("a ", 1.0), ("cat", 1.21), (" ", 1.0), ("dog", 1 / 1.1)]),
        ("(a cat:1.5), snow", [("a cat", 1.5), (", snow", 1.0)]),
        ("(a (cat:2) here: .5)", [("a ", 0.5), ("cat", 1.0), (" here", 0.5)]),
        (r"a \(cat\) \\ b", [(r"a (cat) \ b", 1.0)]),
        ("time: 12:30", [("time: 12:30", 1.0)]),
        ("(open", [("open", 1.1)]),
        ("closed) [c:1.3]", [("closed) ", 1.0), ("c:1.3", 1 / 1.1)]),
    ],
)
def test_weights_are_parsed(text: str, parts: list[tuple[str, float]]) -> None:
    found = parse_weights(text)
    assert [part for part, _ in found] == [part for part, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@torch.inference_mode()
def test_weights_multiply_the_states_of_words_and_keep_the_mean(networks: Networks) -> None:
    plain, weighted = (encode_prompts(networks, [text], weighted=True) for text in ("winter snow", "winter (snow:1.5)"))
    count = len(networks.tokenizer("winter").input_ids) - 1
    total = len(networks.tokenizer("winter snow").input_ids) - 1
    factors = torch.ones(plain.shape[1])
    factors[count:total] = 1.5
    scaled = plain * factors[None, :, None]
    torch.testing.assert_close(weighted, scaled * plain.mean() / scaled.mean())


@torch.inference_mode()
def test_brackets_are_ordinary_characters_unless_weights_are_asked_for(networks: Networks) -> None:
    literal, weighted = (encode_prompts(networks, ["winter (snow)"], weighted=on) for on in (False, True))
    assert not torch.equal(literal, weighted)
    plain = [encode_prompts(networks, ["winter snow"], weighted=on) for on in (False, True)]
    torch.testing.assert_close(*plain, atol=0, rtol=0)


def test_more_layers_than_there_are_cannot_be_skipped(networks: Networks) -> None:
    with pytest.raises(UsageError, match="clip_skip: the text encoder has 2 layers, not 3"):
        encode_prompts(networks, ["winter"], clip_skip=3)


@torch.inference_mode()
def test_frames_with_different_prompts_have_a_row_each(networks: Networks) -> None:
    prompts = Prompts(networks, Settings(models=NAMES, prompts=("spring", "winter"), guidance=2.0, negative_prompt="x"))
    mixes = [(0, 1, 0.0), (0, 1, 0.25), (1, 1, 0.0)]
    (both,) = prompts.texts(mixes, guided=True, apart=False)
    apart = prompts.texts(mixes, guided=True, apart=True)
    (alone,) = prompts.texts(mixes, guided=False, apart=False)
    assert both.rows.shape[0] == 6 and both.passes == 2 and not both.fixed
    torch.testing.assert_close(both.rows[:3], apart[0].rows.expand(3, -1, -1))
    torch.testing.assert_close(both.rows[3:], apart[1].rows)
    torch.testing.assert_close(alone.rows[1], torch.lerp(prompts.positive[0], prompts.positive[1], 0.25))
    assert apart[0].positive is None and alone.positive is alone.rows
