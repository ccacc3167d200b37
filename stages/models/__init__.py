"""Names of models: those that are shipped with the program, made by tools/train_mini, and what single files end in."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
# `mini`: Stable Diffusion's shape, in small; `mini/canny`: its ControlNet. Folders in diffusers layout.
EMBEDDED = ("mini", "mini/canny")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")  # reading them can run code that they hold
SINGLE_FILES = (".safetensors", *PICKLES)
CLIP_MERGES = FOLDER / "clip/merges.txt.gz"  # byte pairs of CLIP's vocabulary, the most frequent first
TOKENIZER = "tokenizer"  # the folder of another one beside a single file


def embedded(name: str) -> Path | None:
    """The folder of an embedded model of this name, if there is one."""
    return FOLDER / name if name in EMBEDDED else None
