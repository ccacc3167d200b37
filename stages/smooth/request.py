"""What to smooth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.video import is_video_name

NAME = "smooth"  # of the stage


@dataclass(frozen=True)
class Smoothing:
    """What to smooth.

    `guide`: the video that `style` was made from; None if `style` is to be its own guide.
    `output`: a video, or a folder of %05d.png, by its suffix. `config`: the smoother's options.
    `interpolate`: `style` is a folder of keyframes, named by their numbers in the guide; all other frames are painted.
    `device`: auto, cpu, cuda, cuda:1.
    `offset`: frames by which the style runs ahead of the guide; None to find out.
    """

    guide: Path | None
    style: Path
    output: Path
    config: dict[str, Any]
    interpolate: bool = False
    device: str = "auto"
    offset: float | None = None

    @property
    def makes_video(self) -> bool:
        return is_video_name(self.output)

    @property
    def inputs(self) -> list[Path]:
        return [path for path in (self.guide, self.style) if path is not None]

    @property
    def cache_path(self) -> Path:
        return self.output.with_name(f"{self.output.name}.cache.zarr")
