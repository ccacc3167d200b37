"""Draw a report of what smoothing changed: crops before and after, where it matters most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffsynth_cli.contact_sheet import INK, PAPER, save_sheet
from diffsynth_cli.outputs import HTML, is_page
from stages.base.errors import UsageError
from stages.base.outputs import SIGNATURE, check_output
from stages.smoothers.images.changes import Changes, Place, percent
from stages.smoothers.images.comparison import STRUCTURE_LOST
from stages.smoothers.images.synthesis import check_writable
from stages.video import read_comment

SIDE = 192  # px; crops are enlarged to about this
COLUMNS = 3  # pairs of crops
WIDTH = 1232  # px of the sheet
MARGIN, SEAM = 16, 2  # px around the sheet, between the crops of a pair
LINE = 22  # px
TITLE, TEXT = 18, 14  # px, font sizes
FADED, ALARM, RULE = (110, 110, 110), (180, 40, 30), (215, 215, 215)

Line = tuple[str, int, tuple[int, int, int]]  # text, font size, colour


@dataclass(frozen=True)
class Section:
    """Places of one kind.

    Attributes:
        title: What they have in common.
        explanation: How they were found.
        places: Best first.
        caption: Says where a place is and what was measured there.
    """

    title: str
    explanation: str
    places: Sequence[Place]
    caption: Callable[[Place], str]


def sections(changes: Changes) -> list[Section]:
    """Return the places worth looking at, by kind."""
    squares = (
        f"worst square of 16 pixels, ignoring brightness: 1 is unchanged, below {STRUCTURE_LOST} is visible damage"
    )
    return [
        Section("Changed most", "largest mean difference", changes.changed.best(), changed_caption),
        Section("Least structure kept", squares, changes.lost.best(), lost_caption),
        Section(
            "Left unchanged",
            "where the style moved or flickered by this many levels",
            changes.kept.best(),
            kept_caption,
        ),
    ]


def check_report(path: Path, mode: str, inputs: Sequence[Path], force: bool) -> None:
    """Raise UsageError if a sheet or page cannot be written to `path`, or if `mode` smooths no frames."""
    check_writable(path, (".png", HTML))
    check_output(path, inputs, force=force, own=is_page(path) or read_comment(path).startswith(SIGNATURE))
    if mode == "interpolate":
        raise UsageError("--report compares frames before and after smoothing, which --mode interpolate does not have")


def write_report(path: Path, changes: Changes) -> None:
    """Write a sheet of the places in `changes` as a PNG."""
    summary = changes.summary().replace("→", "to")  # Pillow's own font has no arrows
    warning = changes.warning()
    parts = [
        _lines(
            (f"{len(changes.structure)} frames: {summary}", TITLE - 2, INK),
            (warning or "No frame lost structure in more than 1 % of its area.", TEXT, ALARM if warning else FADED),
            ("Each pair shows the style on the left and the result on the right.", TEXT, FADED),
        ),
        *(part for section in sections(changes) for part in _section(section)),
    ]
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts) + MARGIN), PAPER)
    top = MARGIN // 2
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    save_sheet(sheet, path, "report")


def _section(section: Section) -> list[Image.Image]:
    """Return a heading and the rows of pairs below it."""
    places, title = section.places, section.title
    about = section.explanation if places else "no such places"
    heading = Image.new("RGB", (WIDTH, 2 * LINE), PAPER)
    draw = ImageDraw.Draw(heading)
    draw.line((MARGIN, LINE // 3, WIDTH - MARGIN, LINE // 3), RULE)
    draw.text((MARGIN, LINE * 2 // 3), title, INK, _font(TITLE))
    end = MARGIN + round(draw.textlength(title, _font(TITLE)))
    draw.text((end + 12, LINE * 2 // 3 + TITLE - TEXT), about, FADED, _font(TEXT))
    rows = [places[start : start + COLUMNS] for start in range(0, len(places), COLUMNS)]
    return [heading, *(_row(row, section.caption) for row in rows)]


def _row(places: Sequence[Place], caption: Callable[[Place], str]) -> Image.Image:
    """Return up to COLUMNS pairs side by side, each with its caption."""
    height, width = places[0].before.shape[:2]
    scale = max(1, SIDE // max(height, width))
    height, width = height * scale, width * scale
    row = Image.new("RGB", (WIDTH, height + 2 * LINE), PAPER)
    draw = ImageDraw.Draw(row)
    for column, place in enumerate(places):
        left = MARGIN + column * (WIDTH - MARGIN) // COLUMNS
        draw.text((left, 2), caption(place), INK, _font(TEXT))
        for offset, crop in ((0, place.before), (width + SEAM, place.after)):
            enlarged = Image.fromarray(np.ascontiguousarray(crop)).resize((width, height), Image.Resampling.NEAREST)
            row.paste(enlarged, (left + offset, LINE))
    return row


def changed_caption(place: Place) -> str:
    """Say where a place is and how much it changed."""
    return f"{_where(place)}: changed {place.change:.1f} levels, structure {place.structure:.2f}"


def lost_caption(place: Place) -> str:
    """Say where a place is and how much structure it kept."""
    return f"{_where(place)}: structure {place.structure:.2f}, changed {place.change:.1f} levels"


def kept_caption(place: Place) -> str:
    """Say where a place is, how much of it is unchanged, and by how much the style moved or flickered there."""
    moved = place.score / place.unchanged
    return f"{_where(place)}: {percent(place.unchanged)} unchanged, {moved:.0f} levels"


def _where(place: Place) -> str:
    return f"frame {place.frame} at {place.x}, {place.y}"


def _lines(*lines: Line) -> Image.Image:
    image = Image.new("RGB", (WIDTH, LINE * len(lines) + LINE // 2), PAPER)
    draw = ImageDraw.Draw(image)
    for index, (text, points, colour) in enumerate(lines):
        draw.text((MARGIN, index * LINE), text, colour, _font(points))
    return image


def _font(points: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(points)
