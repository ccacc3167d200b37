"""Sources of frames: video files and folders of images. Times are seconds since the beginning of the file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from stages.base.errors import UsageError
from stages.base.json_types import JsonObject
from stages.video.images import IMAGE_SUFFIXES, VALUE_SUFFIXES, image_size, read_image, read_values
from stages.video.limits import check_length

IMAGE_FOLDER_FPS = Fraction(25)  # images have no time stamps; ffmpeg assumes 25, too
SHAPE_TOLERANCE = 0.03  # relative difference up to which aspect ratios count as equal
RATE_TOLERANCE = 0.5  # frames; deviation from a constant rate that is put down to rounding by the container
TIME_TOLERANCE = 1e-4  # s; rounding error of time stamps


@dataclass(frozen=True)
class Shot:
    """One frame of a source: its time in seconds, and a function that returns its pixels, uint8 [H, W, 3]."""

    time: float
    image: Callable[[], np.ndarray]


class Source(Protocol):
    """A source of frames. `height` and `width` are the displayed size, `fps` is the nominal rate."""

    path: Path
    height: int
    width: int
    fps: Fraction
    has_audio: bool
    estimate: int | None  # frames, according to the header
    ends: float | None  # s; end of the picture, according to the header
    damage: list[str]  # filled while shots are read
    seekable: bool  # whether times find frames again, as far as shots were read; not for images, which need no seek

    def shots(self, start_time: float = 0.0) -> Iterator[Shot]:
        """Yield all frames from `start_time` on, in order of strictly increasing times."""


def open_source(path: str | Path, values: bool = False) -> Source:
    """Open the video file or folder of images at `path`.

    Args:
        path: The file or folder.
        values: Read images unconverted (see `read_values`), for data rather than pictures.

    Raises:
        UsageError: `path` is neither.
    """
    path = Path(path)
    if path.is_dir():
        return ImageFolder(path, read=read_values if values else read_image)
    from stages.video.video_file import VideoFile

    return VideoFile(path)


class ImageFolder:
    """A folder of images of one size, sorted naturally (2.png before 10.png)."""

    def __init__(self, path: Path, fps: Fraction = IMAGE_FOLDER_FPS, read: Callable[[Path], np.ndarray] | None = None):
        self.path, self.fps, self.has_audio, self.read = path, fps, False, read or read_image
        self.damage: list[str] = []
        self.seekable = False
        known = IMAGE_SUFFIXES | (VALUE_SUFFIXES if read is read_values else set())
        self.files = sorted((f for f in path.iterdir() if f.suffix.lower() in known), key=_natural)
        if not self.files:
            raise UsageError(f"{path} holds no images", f"known: {', '.join(sorted(known))}")
        self.estimate: int | None = len(self.files)
        self.ends: float | None = None
        check_length(path, len(self.files))
        stated = [image_size(file) for file in self.files]  # from headers, before anything is decoded
        for file, size in zip(self.files, stated, strict=True):
            if size is not None and stated[0] is not None and sorted(size) != sorted(stated[0]):  # some may be rotated
                raise _another_size(file, size, stated[0])
        self.height, self.width = self.read(self.files[0]).shape[:2]

    def shots(self, start_time: float = 0.0) -> Iterator[Shot]:
        for index, file in enumerate(self.files):
            time = float(index / self.fps)
            if time >= start_time - TIME_TOLERANCE:
                yield Shot(time, partial(self._image, file))

    def _image(self, file: Path) -> np.ndarray:
        image = self.read(file)
        if image.shape[:2] != (self.height, self.width):
            raise _another_size(file, image.shape, (self.height, self.width))
        return image


def _another_size(file: Path, size: tuple[int, ...], first: tuple[int, ...]) -> UsageError:
    return UsageError(
        f"{file} is {size[1]}×{size[0]}, the first image of the folder {first[1]}×{first[0]}",
        "all images of a folder must have the same size",
    )


def stated_length(source: Source) -> int | None:
    """Return the number of frames according to the header. None if it does not say."""
    if source.estimate:
        return source.estimate
    return round(source.ends * float(source.fps)) if source.ends is not None else None


def certain_length(source: Source) -> tuple[float, float]:
    """Return limits of the number of frames. A video may have fewer than its header says, if some are damaged or cut
    off by an edit list."""
    if isinstance(source, ImageFolder):
        return len(source.files), len(source.files)
    return 1, source.estimate or math.inf


def check_shape(source: Source, height: int, width: int) -> None:
    """Raise UsageError if the aspect ratio of `source` is not width:height, since fitting would crop it."""
    if abs(source.width / source.height / (width / height) - 1) > SHAPE_TOLERANCE:
        raise UsageError(
            f"{source.path} is {source.width}×{source.height}, whose aspect ratio differs from {width}×{height}",
            "crop one of them first",
        )


def describe(source: Source, times: np.ndarray, interval: int = 1) -> JsonObject:
    """Describe when frames are shown.

    Args:
        source: The source of the frames.
        times: Time of each used frame in seconds [N].
        interval: The frames are every `interval`-th of the source.

    Returns:
        fps: the frame rate as a fraction, such as "25/1"; times: seconds since the first frame, None if the frame rate
        is constant; start, stop: the used part of the source in seconds; audio: whether the source has audio.
    """
    since = times - times[0]
    mean, stated = source.fps, source.fps
    if len(times) > 1:
        exact = Fraction((len(times) - 1) / since[-1])
        mean, stated = exact.limit_denominator(1001) or exact, source.fps / interval
    fps = next((rate for rate in (stated, mean) if _runs_at(rate, since)), mean)
    constant = _runs_at(fps, since)
    return {
        "fps": f"{fps.numerator}/{fps.denominator}",
        "times": None if constant else since.tolist(),
        "start": float(times[0]),
        "stop": float(times[0] + (len(times) / fps if constant else since[-1] + 1 / fps)),
        "audio": source.has_audio,
    }


def _runs_at(fps: Fraction, since: np.ndarray) -> bool:
    """Whether these times, in seconds since the first frame, have the constant frame rate `fps`."""
    return bool(np.all(np.abs(since * float(fps) - np.arange(len(since))) < RATE_TOLERANCE))


def url(path: Path) -> str:
    """Return a file's URL for FFmpeg, since a name may look like a protocol (`a:b.mp4`)."""
    return f"file:{path}"


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in parts]
