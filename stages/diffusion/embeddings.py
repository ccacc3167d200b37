"""Textual inversion: words for the prompt that a file brings along, of one or more vectors each (arXiv 2208.01618)."""

from __future__ import annotations

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
    words, width = text_encoder.get_input_embeddings().weight.shape
    if vectors.shape[1] != width:
        raise DiffSynthError(
            f"embeddings: {path} holds vectors of {vectors.shape[1]} numbers, the model's have {width}",
            "is it made for Stable Diffusion 1.x?",
        )
    if len(tokenizer.tokenize(token)) == 1:
        raise DiffSynthError(
            f"embeddings: {path}: the word {token!r} is in the vocabulary already",
            'give it another one: {"path": ..., "token": ...}',
        )
    tokenizer.add_tokens([_as_word(token)])
    ids = range(words, words + len(vectors))
    text_encoder.resize_token_embeddings(ids.stop, mean_resizing=False)
    weight = text_encoder.requires_grad_(False).get_input_embeddings().weight
    weight.data[ids.start : ids.stop] = vectors.to(weight)
    return {tokenizer.convert_tokens_to_ids(token): tuple(ids)}


def read_embedding(path: str, allow_pickle: bool = False) -> torch.Tensor:
    """The vectors [n, width] in a file of any of the common forms: {token: vectors}, {"emb_params": vectors} or
    {"string_to_param": {"*": vectors}}. Raises as `add_embedding`."""
    content = read_content("embeddings", path, allow_pickle)
    if {"clip_l", "clip_g"} <= content.keys():
        raise DiffSynthError(f"embeddings: {path} is made for Stable Diffusion XL, which is not supported")
    named = content.get("string_to_param", content)
    tensors = [value for value in named.values() if isinstance(value, torch.Tensor)] if isinstance(named, dict) else []
    found = [tensor for tensor in tensors if tensor.ndim in (1, 2) and tensor.numel()]
    if len(found) != 1:
        raise DiffSynthError(
            f"embeddings: {path} holds {len(found)} lists of vectors, not one",
            "is it a textual inversion of Stable Diffusion 1.x?",
        )
    return found[0].detach().reshape(-1, found[0].shape[-1])


def _as_word(token: str) -> AddedToken:
    """Found in prompts as a word of its own, in small or capital letters."""
    return AddedToken(token, single_word=True, normalized=True, special=False)
