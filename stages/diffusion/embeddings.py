"""Textual inversion: files that add a word to prompts, made of one or more vectors (arXiv 2208.01618)."""

from __future__ import annotations

from typing import cast

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from stages.base.errors import DiffSynthError
from stages.diffusion.tensor_files import read_content


def add_embedding(
    path: str, token: str, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, allow_pickle: bool = False
) -> dict[int, tuple[int, ...]]:
    """Add the vectors in the file `path` to the text encoder, and the word `token` to the tokenizer, in place.

    Returns:
        The id of the word, with the ids of its vectors, which replace it in prompts.

    Raises:
        DiffSynthError: The file cannot be read or does not fit, or the word exists. Nothing has been changed.
    """
    vectors = read_embedding(path, allow_pickle)
    words, width = word_vectors(text_encoder).shape
    if vectors.shape[1] != width:
        raise DiffSynthError(
            f"embeddings: {path} has vectors of {vectors.shape[1]} values, but the model needs {width}",
            "is it made for Stable Diffusion 1.x?",
        )
    if len(tokenizer.tokenize(token)) == 1:
        raise DiffSynthError(
            f"embeddings: {path}: the word {token!r} is already in the vocabulary",
            'choose another word: {"path": ..., "token": ...}',
        )
    tokenizer.add_tokens([_as_word(token)])
    ids = range(words, words + len(vectors))
    text_encoder.resize_token_embeddings(ids.stop, mean_resizing=False)
    weight = word_vectors(text_encoder.requires_grad_(False))
    weight.data[ids.start : ids.stop] = vectors.to(weight)
    return {cast(int, tokenizer.convert_tokens_to_ids(token)): tuple(ids)}


def word_vectors(text_encoder: CLIPTextModel) -> torch.Tensor:
    """Return the vectors of the text encoder's vocabulary [words, width], without copying them."""
    return cast(nn.Embedding, text_encoder.get_input_embeddings()).weight


def read_embedding(path: str, allow_pickle: bool = False) -> torch.Tensor:
    """Read the vectors [n, width] of a file.

    It may hold {token: vectors}, {"emb_params": vectors} or {"string_to_param": {"*": vectors}}. Raises as
    `add_embedding`.
    """
    content = read_content("embeddings", path, allow_pickle)
    if {"clip_l", "clip_g"} <= content.keys():
        raise DiffSynthError(f"embeddings: {path} is made for Stable Diffusion XL, which is not supported")
    named = content.get("string_to_param", content)
    tensors = [value for value in named.values() if isinstance(value, torch.Tensor)] if isinstance(named, dict) else []
    found = [tensor for tensor in tensors if tensor.ndim in (1, 2) and tensor.numel()]
    if len(found) != 1:
        raise DiffSynthError(
            f"embeddings: {path} has {len(found)} lists of vectors instead of one",
            "is it a textual inversion of Stable Diffusion 1.x?",
        )
    return found[0].detach().reshape(-1, found[0].shape[-1])


def _as_word(token: str) -> AddedToken:
    """Return a token that matches whole words of prompts, in lower or upper case."""
    return AddedToken(token, single_word=True, normalized=True, special=False)
