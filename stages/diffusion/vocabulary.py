"""CLIP's tokenizer, which single-file checkpoints lack. All Stable Diffusion 1.x models share it."""

from __future__ import annotations

import gzip

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from stages.models import CLIP_MERGES

WINDOW = 77  # tokens
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def clip_tokenizer() -> CLIPTokenizer:
    """Return the tokenizer of openai/clip-vit-large-patch14, built from the list of merges that ships with us."""
    alphabet = sorted(ByteLevel.alphabet())  # a letter for every byte
    lines = gzip.decompress(CLIP_MERGES.read_bytes()).decode().splitlines()
    merges = [tuple(line.split()) for line in lines]
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet), *map("".join, merges), START, END]
    return CLIPTokenizer({token: index for index, token in enumerate(tokens)}, merges, model_max_length=WINDOW)
