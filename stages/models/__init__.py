"""The models that are shipped with the program, and where their files lie. tools/train_mini makes them."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
# `mini`: Stable Diffusion's shape, in small; `mini/canny`: its ControlNet. Folders in diffusers layout.
EMBEDDED = ("mini", "mini/canny")


def embedded(name: str) -> Path | None:
    """The folder of an embedded model of this name, if there is one."""
    return FOLDER / name if name in EMBEDDED else None
