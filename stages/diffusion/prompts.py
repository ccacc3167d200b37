"""Prompts: their embeddings, and the texts that the passes of guidance attend to."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from stages.base.errors import UsageError
from stages.diffusion.loading import Networks
from stages.diffusion.settings import Mix, Settings

# A weighted part of a prompt in the notation of stable-diffusion-webui, or a character that is escaped.
MARKS = re.compile(r"\\[\\()\[\]]|\(|\[|:\s*([+-]?\d*\.?\d+)\s*\)|\)|\]|[^\\()\[\]:]+|.", re.DOTALL)
STRONGER = 1.1  # the weight of (word); that of [word] is its inverse


@dataclass(frozen=True, eq=False)
class Text:
    """What one or both passes of guidance attend to.

    Args:
        rows: float [passes, tokens, channels] or, if frames have different prompts, [passes * frames, ...]. The
            negative pass comes first.
        positive: The rows of the positive pass, None without it.
        passes: Number of passes, 1 or 2.
        fixed: Whether all calls get the same tensors, so that what is computed from them can be kept.
    """

    rows: torch.Tensor
    positive: torch.Tensor | None
    passes: int
    fixed: bool = True


class Prompts:
    """The encoded prompts of a job."""

    def __init__(self, networks: Networks, settings: Settings):
        negative = [settings.negative_prompt] if settings.passes == 2 else []
        texts = [*negative, *settings.prompts, *settings.regions]
        encoded = encode_prompts(networks, texts, settings.weighted, settings.clip_skip)
        first, last = len(negative), len(negative) + len(settings.prompts)
        self.positive, self.regions = encoded[first:last], encoded[last:].split(1)
        alone, both = (Text(rows, rows, 1) for rows in (self.positive[:1], encoded[: first + 1]))
        self.alone, self.both = alone, Text(both.rows, alone.rows, 1 + len(negative))
        self.negative = Text(encoded[:1], None, 1)

    def texts(self, mixes: Sequence[Mix], guided: bool, apart: bool) -> list[Text]:
        """Return the texts of the passes of some frames, one for all passes or, if `apart`, one for each.

        Args:
            mixes: The prompts of each frame.
            guided: Whether there is a negative pass.
            apart: Whether passes go through the networks one after the other.
        """
        if len(self.positive) > 1:
            return self._mixed(mixes, guided, apart)
        if not guided:
            return [self.alone]
        return [self.negative, self.alone] if apart else [self.both]

    def _mixed(self, mixes: Sequence[Mix], guided: bool, apart: bool) -> list[Text]:
        rows = torch.stack([torch.lerp(self.positive[a], self.positive[b], share) for a, b, share in mixes])
        alone = Text(rows, rows, 1, fixed=False)
        if not guided:
            return [alone]
        if apart:
            return [self.negative, alone]
        return [Text(torch.cat([self.negative.rows.expand_as(rows), rows]), rows, 2, fixed=False)]


def encode_prompts(
    networks: Networks, texts: Sequence[str], weighted: bool = False, clip_skip: int = 1
) -> torch.Tensor:
    """Return the embeddings of prompts, float [len(texts), tokens, channels].

    A prompt longer than the encoder's window is split into windows, which are encoded separately. The windows of
    shorter prompts are repeated to the length of the longest, which does not change attention.

    Args:
        networks: Tokenizer and text encoder.
        texts: The prompts.
        weighted: Whether (word), (word:1.3) and [word] give weights to parts of them.
        clip_skip: The layer of the text encoder that is used, counted from the last, which is 1.

    Raises:
        UsageError: The text encoder has fewer layers.
    """
    layers = networks.text_encoder.config.num_hidden_layers
    if clip_skip > layers:
        raise UsageError(f"clip_skip: the text encoder has {layers} layers, not {clip_skip}")
    encoded = [_encode(networks, text, weighted, clip_skip) for text in texts]
    longest = math.lcm(*(tokens.shape[1] for tokens in encoded))
    return torch.cat([tokens.repeat(1, longest // tokens.shape[1], 1) for tokens in encoded])


def _encode(networks: Networks, text: str, weighted: bool, clip_skip: int) -> torch.Tensor:
    encoder, tokenizer = networks.text_encoder, networks.tokenizer
    window = encoder.config.max_position_embeddings
    words = [word for part, weight in _parts(text, weighted) for word in _words(networks, part, weight)]
    begin, *_, end = tokenizer("").input_ids
    vectors = [(begin, 1.0), *words, (end, 1.0)]
    vectors += [(tokenizer.pad_token_id, 1.0)] * (-len(vectors) % window)
    ids, weights = (torch.tensor(part, device=networks.device).reshape(-1, window) for part in zip(*vectors))
    return _weighted(_hidden(networks, ids, clip_skip), weights).reshape(1, len(vectors), -1)


def _words(networks: Networks, text: str, weight: float) -> Iterator[tuple[int, float]]:
    """Yield the ids of the vectors of a text, without those of its beginning and end, with their weight."""
    for word in networks.tokenizer(text, truncation=False, add_special_tokens=False).input_ids:
        yield from ((vector, weight) for vector in networks.inverted.get(word, (word,)))


def _hidden(networks: Networks, ids: torch.Tensor, clip_skip: int) -> torch.Tensor:
    """Return the normalised states of a layer, [windows, tokens, channels]."""
    encoder = networks.text_encoder
    if clip_skip == 1:
        last: torch.Tensor = encoder(ids)[0]
        return last
    states = encoder(ids, output_hidden_states=True).hidden_states[-clip_skip]
    normalised: torch.Tensor = getattr(encoder, "text_model", encoder).final_layer_norm(states)
    return normalised


def _weighted(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply states by the weights of their tokens, and give each window its earlier mean."""
    if (weights == 1).all():
        return states
    scaled = states * weights[..., None].to(states.dtype)
    return scaled * (states.mean((1, 2), keepdim=True) / scaled.mean((1, 2), keepdim=True))


def _parts(text: str, weighted: bool) -> list[tuple[str, float]]:
    return parse_weights(text) if weighted else [(text, 1.0)]


def parse_weights(text: str) -> list[tuple[str, float]]:
    r"""Split a prompt into parts with their weights: 1.1 for each ( around them, 1.3 for (...:1.3), 1/1.1 for each [.

    A backslash makes a bracket literal, and brackets that are not closed still count.
    """
    parts: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []  # brackets, and how many parts precede them

    def scale(start: int, factor: float) -> None:
        parts[start:] = [(part, weight * factor) for part, weight in parts[start:]]

    for found in MARKS.finditer(text):
        mark, weight = found[0], found[1]
        if mark in ("(", "["):
            opened.append((mark, len(parts)))
        elif mark.endswith(")") and len(mark) > 1 and weight and opened and opened[-1][0] == "(":
            scale(opened.pop()[1], float(weight))
        elif mark in (")", "]") and opened and opened[-1][0] == {")": "(", "]": "["}[mark]:
            bracket, start = opened.pop()
            scale(start, STRONGER if bracket == "(" else 1 / STRONGER)
        else:
            parts.append((mark[1:] if mark[0] == "\\" and len(mark) == 2 else mark, 1.0))
    for bracket, start in opened:
        scale(start, STRONGER if bracket == "(" else 1 / STRONGER)
    return _joined(parts)


def _joined(parts: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Join neighbours of the same weight."""
    joined: list[tuple[str, float]] = []
    for part, weight in parts:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + part, weight)
        else:
            joined.append((part, weight))
    return joined
