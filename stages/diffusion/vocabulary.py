"""CLIP's tokenizer, which single-file checkpoints lack: all Stable Diffusion 1.x models share it."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from stages.base.errors import DiffSynthError

WINDOW = 77  # tokens
TOKENS = 49408
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of openai/clip-vit-large-patch14, made from the list of merges that open_clip_torch carries.

    Raises DiffSynthError if that package is not there.
    """
    alphabet = sorted(ByteLevel.alphabet())  # a letter for every byte
    merges = _merges(TOKENS - 2 * len(alphabet) - 2)
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet), *map("".join, merges), START, END]
    return CLIPTokenizer({token: index for index, token in enumerate(tokens)}, merges, model_max_length=WINDOW)


def _merges(count: int) -> list[tuple[str, ...]]:
    package = find_spec("open_clip")  # importing it would take seconds
    path = Path(package.origin or "").parent / "bpe_simple_vocab_16e6.txt.gz" if package else None
    if path is None or not path.exists():
        raise DiffSynthError(
            "CLIP's vocabulary, which single-file checkpoints need, is not there",
            "pip install open_clip_torch; or put a folder `tokenizer` beside the checkpoint",
        )
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [tuple(line.split()) for line in lines[1 : count + 1]]  # the first is a version
