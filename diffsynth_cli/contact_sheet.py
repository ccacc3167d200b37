"""Frames side by side on one picture: time runs to the right, each row is another state of the video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from stages.all_stages import all_stages
from stages.base.cache import FrameCache
from stages.base.outputs import SIGNATURE

COLUMNS = 6  # frames
SIDE = 384  # px; longer sides are made smaller
GAP = 4  # px
LABEL_HEIGHT = 20  # px
PAPER, INK = (250, 250, 250), (40, 40, 40)


def states(cache: FrameCache) -> dict[str, Sequence[np.ndarray]]:
    """What finished stages have made of the video so far, by label."""
    done = [stage for stage in all_stages().values() if cache.record(stage.name).complete]
    names = {label: name for stage in done for label, name in stage.shown(cache).items()}
    return {label: cache[name] for label, name in names.items() if name in cache}


def write_contact_sheet(path: Path, rows: dict[str, Sequence[np.ndarray]], columns: int = COLUMNS) -> None:
    """A PNG of `columns` frames at even distances of each row's video.

    `rows`: by label, videos of equal length, uint8 [H, W, 3] by index; all frames of one size.
    """
    count = len(next(iter(rows.values())))
    shown = np.unique(np.linspace(0, count - 1, columns).round().astype(int))
    height, width = next(iter(rows.values()))[0].shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    size = (len(shown) * (width + GAP) + GAP, len(rows) * (height + LABEL_HEIGHT + GAP) + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, (label, frames) in enumerate(rows.items()):
        top = GAP + row * (height + LABEL_HEIGHT + GAP)
        draw.text((2 * GAP, top), label, INK, font)
        for column, index in enumerate(shown):
            frame = Image.fromarray(frames[int(index)]).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(frame, (GAP + column * (width + GAP), top + LABEL_HEIGHT))
    save_sheet(sheet, path, "contact sheet")


def save_sheet(sheet: Image.Image, path: Path, kind: str) -> None:
    """Write a PNG atomically, with a comment that says that it is this program's own."""
    part = path.with_name(f".{path.name}.part")
    text = PngInfo()
    text.add_text("Comment", f"{SIGNATURE} {kind}")
    sheet.save(part, format="PNG", pnginfo=text)
    part.replace(path)
