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
from typing import Protocol, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Colorspace

from stages.base.errors import DiffSynthError, UsageError
from stages.base.json_types import JsonObject
from stages.video.images import IMAGE_SUFFIXES, VALUE_SUFFIXES, image_size, read_image, read_values

IMAGE_FOLDER_FPS = Fraction(25)  # images have no time stamps; ffmpeg assumes 25, too
HD_HEIGHT = 720  # like players, assume BT.709 for untagged video from this height on, else BT.601
SEEK_WORTH = 10.0  # s; shorter distances are decoded as quickly as seeking takes
SHAPE_TOLERANCE = 0.03  # relative difference up to which aspect ratios count as equal
RATE_TOLERANCE = 0.5  # frames; deviation from a constant rate that is put down to rounding by the container
TIME_TOLERANCE = 1e-4  # s; rounding error of time stamps
TRUNCATION_TOLERANCE = 0.5  # s; containers round durations, and audio may be slightly longer


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
    return ImageFolder(path, read=read_values if values else read_image) if path.is_dir() else VideoFile(path)


class VideoFile:
    """A file that FFmpeg can read. Applies rotation and pixel aspect ratio, keeps time stamps."""

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
            end, length, count = 0.0, float(1 / self.fps), 0  # s; end and duration of the previous frame
            for frame in self._frames_before(container, stream, start_time + zero):
                time = frame.time - zero if frame.pts is not None else end
                if count and time <= end - length:  # a broken time stamp, not after the previous one
                    time = end
                length = (
                    float(frame.duration * cast(Fraction, frame.time_base)) if frame.duration else float(1 / self.fps)
                )
                end = time + length
                count += 1
                if time < start_time - TIME_TOLERANCE:
                    continue
                yield Shot(time, partial(self._pixels, frame))
            if count and self.ends is not None and end < self.ends - max(TRUNCATION_TOLERANCE, float(2 / self.fps)):
                raise DiffSynthError(
                    f"{self.path} is truncated or damaged: "
                    f"it ends after {end:.2f} s, but its header says {self.ends:.2f} s",
                    f'set "end_time": {time:.3f} to use what there is',
                )

    def _open(self) -> InputContainer:
        try:
            return av.open(url(self.path), metadata_errors="ignore")
        except FileNotFoundError:
            raise UsageError(f"{self.path}: no such file") from None
        except (av.error.FFmpegError, OSError) as error:
            raise UsageError(
                f"{self.path} is not a video that can be read ({error.strerror or error})",
                "check that the file is complete; FFmpeg cannot read it either",
            ) from None

    def _frames_before(self, container: InputContainer, stream: av.VideoStream, time: float) -> Iterator[av.VideoFrame]:
        """Yield frames from a keyframe before `time` on, or from the first one if seeking fails."""
        if time <= SEEK_WORTH:
            yield from self._decode(container, stream)
            return
        if seek(container, stream, time):
            frames = self._decode(container, stream)
            first = next(frames, None)
            if first is not None and first.pts is not None and first.time <= time:
                yield from chain([first], frames)
                return
        with self._open() as again:  # the first container may be anywhere after seeking
            yield from self._decode(again, _best_stream(again, self.path))

    def _decode(self, container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        """Yield the frames of a stream. Damaged packets are skipped and noted."""
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

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
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


def count_packets(path: Path) -> int:
    """Count the frames of a video file, damaged ones included, without decoding. 0 if it is unreadable."""
    try:
        with av.open(url(path), metadata_errors="ignore") as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.error.FFmpegError, OSError, IndexError):
        return 0


def _best_stream(container: InputContainer, path: Path) -> av.VideoStream:
    stream = cast("av.VideoStream | None", container.streams.best("video"))
    if stream is None:
        raise UsageError(f"{path} holds no video", "give a video file or a folder of images")
    return stream


def seek(container: InputContainer, stream: av.VideoStream | av.AudioStream, time: float) -> bool:
    """Seek to the last keyframe before `time`. Return False if the file does not support it."""
    try:
        container.seek(int(time / cast(Fraction, stream.time_base)), stream=stream)
    except (av.error.FFmpegError, OSError):
        return False
    return True


def _stated_end(container: InputContainer, stream: av.VideoStream) -> float | None:
    """Return when the picture ends according to the header, in seconds since the start of the file."""
    zero = (container.start_time or 0) / av.time_base
    if stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * cast(Fraction, stream.time_base)) - zero
    if match := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):  # Matroska
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) - zero
    if container.duration and not container.streams.audio:
        return float(container.duration) / av.time_base
    return None


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in parts]
