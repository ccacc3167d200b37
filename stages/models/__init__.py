"""The embedded models, made by tools/train_mini, and the file names of models."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
# A small Stable Diffusion model and its ControlNet, in diffusers layout.
EMBEDDED = ("mini", "mini/canny")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")  # loading one can run code
SINGLE_FILES = (".safetensors", *PICKLES)
CLIP_MERGES = FOLDER / "clip/merges.txt.gz"  # merges of CLIP's tokenizer, the most frequent first
TOKENIZER = "tokenizer"  # the folder next to a single file with another tokenizer


def embedded(name: str) -> Path | None:
    """Return the folder of an embedded model, None if there is none of this name."""
    return FOLDER / name if name in EMBEDDED else None
