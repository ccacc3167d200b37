"""Sources of frames: video files and folders of images. Times are seconds since the beginning of the file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import Colorspace

from stages.base.errors import DiffSynthError, UsageError
from stages.video.images import IMAGE_SUFFIXES, VALUE_SUFFIXES, image_size, read_image, read_values

IMAGE_FOLDER_FPS = Fraction(25)  # images carry no times; 25 is what ffmpeg assumes
HD_HEIGHT = 720  # untagged video of this height or more is BT.709, smaller is BT.601, as players assume
SEEK_WORTH = 10.0  # s; less is decoded as quickly as it is searched for
SHAPE_TOLERANCE = 0.03  # by which two aspect ratios may differ and still be one shape
RATE_TOLERANCE = 0.5  # frames; time stamps this near to a constant rate are that rate, rounded by the container
TIME_TOLERANCE = 1e-4  # s; differences of time stamps are not exact
TRUNCATION_TOLERANCE = 0.5  # s; containers round durations, and audio may outlast the picture a little


@dataclass(frozen=True)
class Shot:
    """One frame of a source: when it is shown, and its pixels when asked for (uint8 [h, w, 3])."""

    time: float
    image: Callable[[], np.ndarray]


class Source(Protocol):
    """Where frames come from. `height` and `width` are as displayed, `fps` the nominal rate."""

    path: Path
    height: int
    width: int
    fps: Fraction
    has_audio: bool
    estimate: int | None  # frames, if the file says
    ends: float | None  # s; when the picture ends, if the file says
    damage: list[str]  # filled while shots are read

    def shots(self, start_time: float = 0.0) -> Iterator[Shot]:
        """All frames from `start_time` on, in order of strictly increasing times."""


def open_source(path: str | Path, values: bool = False) -> Source:
    """The video file or image folder at `path`. Raises DiffSynthError if it is neither.

    `values`: images as their files have them (see `read_values`), for data rather than pictures.
    """
    path = Path(path)
    return ImageFolder(path, read=read_values if values else read_image) if path.is_dir() else VideoFile(path)


class VideoFile:
    """A file that FFmpeg can read: its rotation and pixel aspect honoured, its time stamps kept."""

    def __init__(self, path: Path):
        self.path = path
        self.damage: list[str] = []
        with self._open() as container:
            stream = _best_stream(container, path)
            self.fps = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.estimate: int | None = stream.frames or None
            self.has_audio = bool(container.streams.audio)
            self.ends: float | None = _stated_end(container, stream)
            first = next(self._decode(container, stream), None)
            if first is None:
                raise UsageError(f"{path} holds no frame that can be decoded", "is the file complete?")
            self._turns = (first.rotation // 90) % 4
            aspect = float(stream.sample_aspect_ratio or 1) or 1.0
            size = (first.height, max(1, round(first.width * aspect)))
            self.height, self.width = size[::-1] if self._turns % 2 else size

    def shots(self, start_time: float = 0.0) -> Iterator[Shot]:
        self.damage.clear()
        with self._open() as container:
            stream = _best_stream(container, self.path)
            zero = (container.start_time or 0) / av.time_base
            end, length, count = 0.0, float(1 / self.fps), 0  # s; where the frame before ends, how long it is shown
            for frame in self._frames_before(container, stream, start_time + zero):
                time = frame.time - zero if frame.pts is not None else end
                if count and time <= end - length:  # not after the frame before: a broken stamp
                    time = end
                length = float(frame.duration * frame.time_base) if frame.duration else float(1 / self.fps)
                end = time + length
                count += 1
                if time < start_time - TIME_TOLERANCE:
                    continue
                yield Shot(time, partial(self._pixels, frame))
            if count and self.ends is not None and end < self.ends - max(TRUNCATION_TOLERANCE, float(2 / self.fps)):
                raise DiffSynthError(
                    f"{self.path} is truncated or damaged: "
                    f"it ends after {end:.2f} s, but says that it lasts {self.ends:.2f} s",
                    f'"end_time": {time:.3f} uses what is there',
                )

    def _open(self) -> Any:
        try:
            return av.open(url(self.path), metadata_errors="ignore")
        except FileNotFoundError:
            raise UsageError(f"{self.path}: no such file") from None
        except (av.error.FFmpegError, OSError) as error:
            raise UsageError(
                f"{self.path} is not a video that can be read ({error.strerror or error})",
                "is it complete? FFmpeg cannot read it either",
            ) from None

    def _frames_before(self, container: Any, stream: Any, time: float) -> Iterator[Any]:
        """Frames from a key frame before `time` on; from the first where searching leads nowhere."""
        if time <= SEEK_WORTH:
            yield from self._decode(container, stream)
            return
        if seek(container, stream, time):
            frames = self._decode(container, stream)
            first = next(frames, None)
            if first is not None and first.pts is not None and first.time <= time:
                yield from chain([first], frames)
                return
        with self._open() as again:  # wherever the search has led the first one
            yield from self._decode(again, _best_stream(again, self.path))

    def _decode(self, container: Any, stream: Any) -> Iterator[Any]:
        """Frames of a stream. Damaged packets are skipped and noted, as players do."""
        stream.thread_type = "AUTO"
        try:
            for packet in container.demux(stream):
                try:
                    yield from packet.decode()
                except av.error.InvalidDataError:
                    where = f" at {float(packet.pts * packet.time_base):.2f} s" if packet.pts is not None else ""
                    self.damage.append(f"damaged data{where}")
        except (av.error.FFmpegError, OSError) as error:
            self.damage.append(f"reading stopped: {error.strerror or error}")

    def _pixels(self, frame: Any) -> np.ndarray:
        untagged = Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601
        tagged = frame.colorspace in {int(space) for space in Colorspace}
        image = frame.reformat(format="rgb24", src_colorspace=None if tagged else untagged).to_ndarray()
        return np.ascontiguousarray(np.rot90(image, self._turns))


class ImageFolder:
    """A folder of images of one size, sorted naturally (2.png before 10.png)."""

    def __init__(self, path: Path, fps: Fraction = IMAGE_FOLDER_FPS, read: Callable[[Path], np.ndarray] | None = None):
        self.path, self.fps, self.has_audio, self.read = path, fps, False, read or read_image
        self.damage: list[str] = []
        known = IMAGE_SUFFIXES | (VALUE_SUFFIXES if read is read_values else set())
        self.files = sorted((f for f in path.iterdir() if f.suffix.lower() in known), key=_natural)
        if not self.files:
            raise UsageError(f"{path} holds no images", f"known: {', '.join(sorted(known))}")
        self.estimate: int | None = len(self.files)
        self.ends: float | None = None
        stated = [image_size(file) for file in self.files]  # by their headers, before anything is decoded
        for file, size in zip(self.files, stated, strict=True):
            if size is not None and stated[0] is not None and sorted(size) != sorted(stated[0]):  # some may be turned
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
        "the images of a folder must have one size",
    )


def stated_length(source: Source) -> int | None:
    """How many frames a source has by the word of its header; None if it does not say."""
    if source.estimate:
        return source.estimate
    return round(source.ends * float(source.fps)) if source.ends is not None else None


def certain_length(source: Source) -> tuple[float, float]:
    """How many frames a source has at least and at most. Of those that a video's header counts, some may be damaged or
    cut off by an edit list."""
    if isinstance(source, ImageFolder):
        return len(source.files), len(source.files)
    return 1, source.estimate or math.inf


def check_shape(source: Source, height: int, width: int) -> None:
    """Raises UsageError if `source` has another aspect ratio than `height` and `width`: fitted, it would be cut."""
    if abs(source.width / source.height / (width / height) - 1) > SHAPE_TOLERANCE:
        raise UsageError(
            f"{source.path} is {source.width}×{source.height}, which is another shape than {width}×{height}",
            "crop one of them first",
        )


def describe(source: Source, times: np.ndarray, interval: int = 1) -> dict[str, Any]:
    """How the frames shown at `times` (seconds, every `interval`-th of the source's) are played.

    fps: the frame rate as a fraction, e.g. "25/1"; times: seconds since the first of them, where the rate is not
    constant, else None; start, stop: the used part in seconds of the source; audio: does the source have any.
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
    """Are these times (seconds since the first frame) those of a constant frame rate?"""
    return bool(np.all(np.abs(since * float(fps) - np.arange(len(since))) < RATE_TOLERANCE))


def url(path: Path) -> str:
    """How FFmpeg is told of a file, whose name may look like that of a protocol (`a:b.mp4`)."""
    return f"file:{path}"


def count_packets(path: Path) -> int:
    """How many frames of a video file are there, undamaged or not. Decodes nothing; 0 if it cannot be read."""
    try:
        with av.open(url(path), metadata_errors="ignore") as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.error.FFmpegError, OSError, IndexError):
        return 0


def _best_stream(container: Any, path: Path) -> Any:
    stream = container.streams.best("video")
    if stream is None:
        raise UsageError(f"{path} holds no video", "give a video file or a folder of images")
    return stream


def seek(container: Any, stream: Any, time: float) -> bool:
    """Goes to the last key frame before `time`; False in a file that cannot be searched."""
    try:
        container.seek(int(time / stream.time_base), stream=stream)
    except (av.error.FFmpegError, OSError):
        return False
    return True


def _stated_end(container: Any, stream: Any) -> float | None:
    """When the picture ends by the word of the file, in seconds since its beginning."""
    zero = (container.start_time or 0) / av.time_base
    if stream.duration:
        return float((stream.start_time or 0) * stream.time_base + stream.duration * stream.time_base) - zero
    if match := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):  # Matroska
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) - zero
    if container.duration and not container.streams.audio:
        return container.duration / av.time_base
    return None


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in parts]
