"""Draw a contact sheet: a few frames of a video from left to right, and a row for each state of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from stages.all_stages import stages_of
from stages.base.arrays import Frames
from stages.base.cache import FrameArray, FrameCache
from stages.base.errors import DiffSynthError
from stages.base.outputs import SIGNATURE
from stages.jobs.job import Job

COLUMNS = 6  # frames
SIDE = 384  # px
GAP = 4  # px
LABEL_HEIGHT = 20  # px
PAPER, INK = (250, 250, 250), (40, 40, 40)


def states(job: Job, cache: FrameCache) -> dict[str, FrameArray]:
    """Return the frames that finished stages of a job have made, by label."""
    records = {stage: cache.record(stage.name) for stage in stages_of(job).values()}
    names = [
        (label, name)
        for stage, record in records.items()
        if record.complete
        for label, name in stage.shown(cache).items()
        if name not in record.removed
    ]
    return {label: cache[name] for label, name in names if name in cache}


def compared(labels: Sequence[str], jobs: Sequence[tuple[Job, FrameCache]]) -> Mapping[str, Frames]:
    """Return frames by label: of one job, those that each stage has made; of several, the source and each result."""
    first = states(*jobs[0])
    if len(jobs) == 1:
        return first
    source = next(iter(first))
    results = ([*states(*each).values()][-1] for each in jobs)
    return {source: first[source], **dict(zip(labels, results, strict=True))}


def write_contact_sheet(path: Path, rows: Mapping[str, Frames], columns: int = COLUMNS, side: int = SIDE) -> None:
    """Write a PNG that shows `columns` evenly spaced frames of each video.

    Args:
        path: The PNG.
        rows: Videos of the same length and size, by label.
        columns: Number of frames per row.
        side: Greatest height and width of a frame in pixels. Larger ones are shrunk.

    Raises:
        DiffSynthError: There are no videos.
    """
    if not rows:
        raise DiffSynthError(f"{path}: there are no frames to show", "the job's key keep can keep them")
    count = len(next(iter(rows.values())))
    shown = np.unique(np.linspace(0, count - 1, columns).round().astype(int))
    height, width = next(iter(rows.values()))[0].shape[:2]
    scale = min(1.0, side / max(height, width))
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
    """Write a PNG atomically, with a comment that marks it as written by this program."""
    part = path.with_name(f".{path.name}.part")
    text = PngInfo()
    text.add_text("Comment", f"{SIGNATURE} {kind}")
    sheet.save(part, format="PNG", pnginfo=text)
    part.replace(path)
