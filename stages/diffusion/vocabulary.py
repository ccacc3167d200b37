"""CLIP's tokenizer. All Stable Diffusion 1.x models share it, and single-file checkpoints lack it."""

from __future__ import annotations

import gzip
from typing import cast

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from stages.models import CLIP_MERGES

WINDOW = 77  # tokens
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def clip_tokenizer() -> CLIPTokenizer:
    """Return the tokenizer of openai/clip-vit-large-patch14, built from the merges that ship with the program."""
    alphabet = sorted(ByteLevel.alphabet())  # one letter per byte
    lines = gzip.decompress(CLIP_MERGES.read_bytes()).decode().splitlines()
    merges = [tuple(line.split()) for line in lines]
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet), *map("".join, merges), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # Merges are pairs, whatever the annotation says.
    return CLIPTokenizer(vocabulary, cast("list[str]", merges), model_max_length=WINDOW)
