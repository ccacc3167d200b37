"""Write a page that shows what became of a video: one HTML file that needs neither a network nor other files."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from hashlib import sha256
from importlib import resources
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image as Pillow

from diffsynth_cli.change_report import sections
from diffsynth_cli.clip import write_clip
from diffsynth_cli.measuring import MEANINGS, cell, measured, panels
from diffsynth_cli.outputs import GENERATOR
from stages.base.arrays import Image
from stages.base.cache import FrameArray
from stages.base.reporting import Reporter
from stages.base.words import counted, duration, per_second
from stages.smoothers.images.changes import Changes
from stages.smoothers.images.metrics import Curves, measure

POINTS = 2000  # of a curve; longer ones are thinned out
CLOSE_UP = "luminance"  # flickers by few of its 256 levels, so its axis does not begin at 0
BLOCK = 3 << 16  # bytes; a multiple of 3, so that base64 needs no padding in between


@dataclass(frozen=True)
class StageTime:
    """What is known about the work of a stage.

    Attributes:
        name: The stage.
        state: done, partly, stale or to do.
        remarks: Why it is stale, or when it was finished.
        seconds: How long it took. None if it is not known.
        phases: Seconds of each phase.
    """

    name: str
    state: str
    remarks: str
    seconds: float | None
    phases: Mapping[str, float]


@dataclass(frozen=True)
class Exhibit:
    """What a page shows.

    Attributes:
        title: Title of the page.
        videos: All videos by label, uint8 RGB [N, H, W, 3].
        guide: Label of the original video.
        style: Label of the stylised video, if there is one.
        result: Label of the smoothed video, if there is one.
        fps: Frame rate.
        stages: In the order in which they ran.
        settings: What was asked for, by name.
        machine: Versions and devices, by name.
    """

    title: str
    videos: Mapping[str, FrameArray]
    guide: str
    style: str | None
    result: str | None
    fps: Fraction
    stages: Sequence[StageTime]
    settings: Mapping[str, str]
    machine: Mapping[str, str]

    @property
    def frames(self) -> int:
        """The number of frames."""
        return len(self.videos[self.guide])


@dataclass(frozen=True)
class Findings:
    """What was measured.

    Attributes:
        curves: By the label of the video: the result's, then the style's.
        changes: What smoothing changed. None without a smoothed video.
    """

    curves: Mapping[str, Curves]
    changes: Changes | None

    def worst_frame(self) -> int:
        """Return the frame that kept the least structure or, without smoothing, the one with the most warp error."""
        if self.changes is not None:
            return int(np.argmin(self.changes.structure))
        errors = [error for curve in self.curves.values() for error in curve.warp[1]]
        return int(np.nanargmax(errors)) if np.isfinite(errors).any() else 0


def write_page(path: Path, exhibit: Exhibit, reporter: Reporter, first: int | None = None) -> None:
    """Write a page atomically.

    Args:
        path: The .html file.
        exhibit: What it shows.
        reporter: Receives progress.
        first: First frame of the clip. By default, the worst frame is in the middle if not all frames fit.
    """
    findings, part = _measure(exhibit, reporter), path.with_name(f".{path.name}.part")
    try:
        with TemporaryDirectory() as folder:
            video, shown = Path(folder) / "clip.mp4", [*exhibit.videos.values()]
            clip = write_clip(video, shown, exhibit.fps, reporter, centre=findings.worst_frame(), first=first)
            data = {**asdict(clip), "fps": float(exhibit.fps), "frames": exhibit.frames, "videos": [*exhibit.videos]}
            with part.open("w", encoding="utf-8") as file:
                for piece in _template().generate(
                    **_words(exhibit, findings),
                    data={**data, "wiped": _wiped(exhibit), "panels": _panels(findings.curves)},
                    excerpt=clip.count < exhibit.frames,
                    clip=_base64(video),
                ):
                    file.write(piece)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    reporter.end("written", f"{path}: {counted(exhibit.frames, 'frame')}")


def _measure(exhibit: Exhibit, reporter: Reporter) -> Findings:
    """Measure the smoothed video or, without one, the stylised video."""
    videos, style, result = exhibit.videos, exhibit.style, exhibit.result
    if style is None:
        return Findings({}, None)
    reporter.begin("report", exhibit.frames)
    reporter.phase("measure")
    if result is None:
        found = measure(videos[exhibit.guide], [videos[style]], progress=reporter.advance)
        return Findings({style: found[0]}, None)
    changes = Changes(keep_places=True)
    smoothed = changes.watch(videos[style], videos[result], exhibit.frames)
    found = measure(videos[exhibit.guide], [smoothed], progress=reporter.advance, style=videos[style])
    return Findings({result: found[0], style: found[1]}, changes)


# --- what stands on the page ----------------------------------------------------------------------------


def _template() -> Template:
    """Return the page's template, with its style sheet and its script."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page, style, script = (
        (resources.files("templates") / name).read_text(encoding="utf-8")
        for name in ("report.html", "report.css", "report.js")
    )
    environment.globals |= {"style": Markup(style), "script": Markup(script)}
    environment.globals |= {"style_hash": _hash(style), "script_hash": _hash(script), "generator": GENERATOR}
    environment.filters |= {"duration": duration, "png": _png}
    return environment.from_string(page)


def _hash(text: str) -> str:
    """Return the hash by which a page allows a script or style sheet of its own and no other."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _words(exhibit: Exhibit, findings: Findings) -> dict[str, object]:
    """Return what the page says."""
    _, height, width, _ = exhibit.videos[exhibit.guide].shape
    changes, style = findings.changes, findings.curves.get(exhibit.style or "")
    numbers = {
        label: curve.summary(style if label == exhibit.result else None) for label, curve in findings.curves.items()
    }
    for found in numbers.values():
        found.pop("own_warp_style", None)  # the style has a column of its own
    return {
        "exhibit": exhibit,
        "size": f"{counted(exhibit.frames, 'frame')} of {width}×{height}, {per_second(float(exhibit.fps))}",
        "summary": changes.summary() if changes else "",
        "warning": changes.warning() if changes else "",
        "sections": sections(changes) if changes else [],
        "numbers": numbers,
        "measures": {name: MEANINGS[name] for name in measured(numbers.values())},
        "cell": cell,
    }


def _wiped(exhibit: Exhibit) -> list[int]:
    """Return the numbers of the two videos that the slider wipes between at first."""
    labels = [*exhibit.videos]
    left, right = exhibit.style or exhibit.guide, exhibit.result or labels[-1]
    return [labels.index(exhibit.guide if left == right else left), labels.index(right)]


def _panels(curves: Mapping[str, Curves]) -> list[dict[str, object]]:
    """Return the curves of each measure, by the label of the video."""
    if not curves:
        return []
    shown = panels(next(iter(curves.values())), len(curves) > 1)
    lines = {
        name: [{"label": label, **_thinned(found)} for label, curve in curves.items() if (found := numbers(curve))]
        for name, numbers in shown.items()
    }
    return [
        {"measure": name, "lines": found, "fromZero": not name.startswith(CLOSE_UP)}
        for name, found in lines.items()
        if found
    ]


def _thinned(values: Sequence[float]) -> dict[str, object]:
    """Return POINTS values at most, each the one of several that is farthest from the median. Unknown ones are None."""
    step = -(-len(values) // POINTS)
    padded = np.append(values, [np.nan] * (-len(values) % step)).reshape(-1, step)
    unusual = np.nan_to_num(np.abs(padded - np.nanmedian(padded)) if np.isfinite(padded).any() else padded, nan=-1)
    chosen = padded[np.arange(len(padded)), unusual.argmax(axis=1)]
    return {"step": step, "values": [float(f"{value:.4g}") if np.isfinite(value) else None for value in chosen]}


def _png(image: Image) -> str:
    """Return an image as an address that contains it."""
    file = BytesIO()
    Pillow.fromarray(image).save(file, format="PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def _base64(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield b64encode(block).decode()
