"""Textual inversion: words for the prompt that a file brings along, of one or more vectors each (arXiv 2208.01618)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import CLIPTextModel, CLIPTokenizer

from stages.base.errors import DiffSynthError
from stages.diffusion.tensor_files import read_content


def add_embedding(
    path: str, token: str, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, allow_pickle: bool = False
) -> dict[int, tuple[int, ...]]:
    """Teaches the text encoder the vectors in the file `path`, and the tokenizer the word `token` for them, in place.

    Gives the word's id and, in its stead, the ids of its vectors. Raises DiffSynthError if the file cannot be read
    or does not fit, or the word is in the vocabulary: then nothing has been changed.
    """
    vectors = read_embedding(path, allow_pickle)
    known = text_encoder.get_input_embeddings().weight
    if vectors.shape[1] != known.shape[1]:
        raise DiffSynthError(
            f"embeddings: {path} holds vectors of {vectors.shape[1]} numbers, the model's have {known.shape[1]}",
            "is it made for Stable Diffusion 1.x?",
        )
    if len(tokenizer.tokenize(token)) == 1:
        raise DiffSynthError(
            f"embeddings: {path}: the word {token!r} is in the vocabulary already",
            'give it another one: {"path": ..., "token": ...}',
        )
    tokenizer.add_tokens([_as_word(token)])
    text_encoder.resize_token_embeddings(len(known) + len(vectors), mean_resizing=False)
    text_encoder.get_input_embeddings().weight.data[len(known) :] = vectors.to(known)
    text_encoder.requires_grad_(False)
    return {tokenizer.convert_tokens_to_ids(token): tuple(range(len(known), len(known) + len(vectors)))}


def read_embedding(path: str, allow_pickle: bool = False) -> torch.Tensor:
    """The vectors [n, width] in a file of any of the common forms: {token: vectors}, {"emb_params": vectors} or
    {"string_to_param": {"*": vectors}}. Raises as `add_embedding`."""
    content = read_content("embeddings", path, allow_pickle)
    if {"clip_l", "clip_g"} <= content.keys():
        raise DiffSynthError(f"embeddings: {path} is made for Stable Diffusion XL, which is not supported")
    found = [value for value in _tensors(content.get("string_to_param", content)) if value.ndim in (1, 2)]
    if len(found) != 1:
        raise DiffSynthError(
            f"embeddings: {path} holds {len(found)} lists of vectors, not one",
            "is it a textual inversion of Stable Diffusion 1.x?",
        )
    return found[0].reshape(-1, found[0].shape[-1])


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    return (value.detach() for value in dict(content).values() if isinstance(value, torch.Tensor))


def _as_word(token: str) -> AddedToken:
    """Found in prompts as a word of its own, in small or capital letters."""
    return AddedToken(token, single_word=True, normalized=True, special=False)
