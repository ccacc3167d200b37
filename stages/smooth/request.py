"""The request of `diffsynth smooth`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.base.json_types import Values
from stages.base.scenes import Scenes
from stages.masks import Mask
from stages.video import is_video_name

NAME = "smooth"  # of the stage


@dataclass(frozen=True)
class Smoothing:
    """What to smooth, and how.

    Args:
        guide: The video that `style` was made from. None to smooth `style` without a guide.
        style: The stylised video or folder of images.
        output: The video or, without a video's suffix, the folder of %05d.png to write.
        config: Options of the smoother.
        interpolate: `style` holds keyframes, named by their frame numbers in the guide; the other frames are painted.
        device: auto, cpu, cuda or cuda:N.
        offset: Frames by which the style is ahead of the guide. None to detect it.
        scenes: The first frame of each scene of the output after the first, auto to find them in the guide, or None.
        compiled: Compile smoothing on a GPU.
        mask: Where the stylised frames are shown; elsewhere the guide is. None: everywhere.
    """

    guide: Path | None
    style: Path
    output: Path
    config: Values
    interpolate: bool = False
    device: str = "auto"
    offset: float | None = None
    scenes: Scenes = None
    compiled: bool = False
    mask: Mask | None = None

    @property
    def makes_video(self) -> bool:
        return is_video_name(self.output)

    @property
    def inputs(self) -> list[Path]:
        mask = None if self.mask is None else Path(self.mask.path)
        return [path for path in (self.guide, self.style, mask) if path is not None]

    @property
    def cache_path(self) -> Path:
        return cache_path(self.output)


def cache_path(output: Path) -> Path:
    """Return where unfinished work on an output is kept."""
    return output.with_name(f"{output.name}.cache.zarr")
