"""Video files. Times are seconds since the beginning of the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import PictureType
from av.video.reformatter import Colorspace

from stages.base.errors import DiffSynthError, UsageError
from stages.video.containers import open_container
from stages.video.limits import check_length, check_pixels
from stages.video.sources import TIME_TOLERANCE, Shot

HD_HEIGHT = 720  # like players, assume BT.709 for untagged video from this height on, else BT.601
MOST_REORDERED = 16  # frames that may be shown before one that is decoded first, in H.264 and H.265
SEEK_WORTH = 10.0  # s; shorter distances are decoded as quickly as seeking takes
ROUNDING = 1e-7  # s; more than sums of times are off, and less than a tick of a container's clock
TRUNCATION_TOLERANCE = 0.5  # s; containers round durations, and audio may be slightly longer


class VideoFile:
    """A file that FFmpeg can read. Applies rotation and pixel aspect ratio, keeps time stamps."""

    def __init__(self, path: Path):
        self.path = path
        self.damage: list[str] = []
        self.seekable = True
        with self._open() as container:
            stream = _best_stream(container, path)
            self.fps = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.estimate: int | None = stream.frames or None
            self.has_audio = bool(container.streams.audio)
            self.ends: float | None = _stated_end(container, stream)
            check_pixels(path, stream.height, stream.width)
            first = next(self._decode(container, stream), None)
            if first is None:
                raise UsageError(f"{path} holds no frame that can be decoded", "is the file complete?")
            self._turns = (first.rotation // 90) % 4
            aspect = float(stream.sample_aspect_ratio or 1) or 1.0
            size = (first.height, max(1, round(first.width * aspect)))
            self.height, self.width = size[::-1] if self._turns % 2 else size
            check_pixels(path, self.height, self.width)

    def shots(self, start_time: float = 0.0) -> Iterator[Shot]:
        self.damage.clear()
        self.seekable = True
        with self._open() as container:
            stream = _best_stream(container, self.path)
            zero = (container.start_time or 0) / av.time_base
            end, length, count = 0.0, float(1 / self.fps), 0  # s; end and duration of the previous frame
            for frame in self._frames_before(container, stream, start_time + zero + ROUNDING):
                time = frame.time - zero if frame.pts is not None else end
                if broken := count > 0 and time <= end - length:  # not after the previous one
                    time = end
                if broken or frame.pts is None or frame.is_corrupt or self.damage:
                    self.seekable = False
                length = (
                    float(frame.duration * cast(Fraction, frame.time_base)) if frame.duration else float(1 / self.fps)
                )
                end = time + length
                count += 1
                if time < start_time - TIME_TOLERANCE:
                    continue
                yield Shot(time, partial(self._pixels, frame))
                check_length(self.path, count, time)  # since more are wanted
            if count and self.ends is not None and end < self.ends - max(TRUNCATION_TOLERANCE, float(2 / self.fps)):
                raise DiffSynthError(
                    f"{self.path} is truncated or damaged: "
                    f"it ends after {end:.2f} s, but its header says {self.ends:.2f} s",
                    f'set "end_time": {time:.3f} to use what there is',
                )

    def _open(self) -> InputContainer:
        try:
            return open_container(self.path)
        except FileNotFoundError:
            raise UsageError(f"{self.path}: no such file") from None
        except (av.error.FFmpegError, OSError) as error:
            raise UsageError(
                f"{self.path} is not a video that can be read ({error.strerror or error})",
                "check that the file is complete, and a video itself rather than a playlist",
            ) from None

    def _frames_before(self, container: InputContainer, stream: av.VideoStream, time: float) -> Iterator[av.VideoFrame]:
        """Yield frames from a keyframe at or before `time` on, or from the first one if seeking fails."""
        if time > SEEK_WORTH:
            for lead in (0.0, float(MOST_REORDERED / self.fps)):
                with self._open() as seeking:
                    if (frames := self._from_keyframe(seeking, time, lead)) is not None:
                        yield from frames
                        return
                self.damage.clear()
        yield from self._decode(container, stream)

    def _from_keyframe(self, container: InputContainer, time: float, lead: float) -> Iterator[av.VideoFrame] | None:
        """Seek to `lead` seconds before `time`, and return the frames from the first keyframe on. None if it is later.

        Some containers find a keyframe that is decoded before `time` but shown after it. A lead finds the one before.
        """
        stream = _best_stream(container, self.path)
        if not seek(container, stream, time - lead):
            return None
        frames = self._decode(container, stream)
        first = _keyframe(frames, time)
        return None if first is None else chain([first], frames)

    def _decode(self, container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        """Yield the frames of a stream. Damaged packets are skipped and noted."""
        stream.thread_type = "AUTO"
        depth = stream.codec_context.reorder_depth  # a decoder drops a frame when it has to raise this
        try:
            for packet in container.demux(stream):
                self.seekable &= stream.codec_context.reorder_depth == depth and not packet.is_corrupt
                try:
                    yield from packet.decode()
                except av.error.InvalidDataError:
                    where = f" at {float(packet.pts * packet.time_base):.2f} s" if packet.pts is not None else ""
                    self.damage.append(f"damaged data{where}")
        except (av.error.FFmpegError, OSError) as error:
            self.damage.append(f"reading stopped: {error.strerror or error}")

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        check_pixels(self.path, frame.height, frame.width)  # which may change from frame to frame
        untagged = Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601
        tagged = frame.colorspace in {int(space) for space in Colorspace}
        image = frame.reformat(format="rgb24", src_colorspace=None if tagged else untagged).to_ndarray()
        return np.ascontiguousarray(np.rot90(image, self._turns))


def _keyframe(frames: Iterator[av.VideoFrame], time: float) -> av.VideoFrame | None:
    """Return the first keyframe, or None if a frame before it is later than `time`.

    A decoder may show other frames first: some that lack those they were predicted from, or, in a video that is
    refreshed bit by bit and has no keyframes, frames that are only nearly complete.
    """
    for frame in frames:
        if frame.pts is None or frame.time > time:
            return None
        if frame.key_frame and frame.pict_type == PictureType.I:
            return frame
    return None


def count_packets(path: Path) -> int:
    """Count the frames of a video file, damaged ones included, without decoding. 0 if it is unreadable."""
    try:
        with open_container(path) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.error.FFmpegError, OSError, IndexError):
        return 0


def _best_stream(container: InputContainer, path: Path) -> av.VideoStream:
    stream = cast("av.VideoStream | None", container.streams.best("video"))
    if stream is None:
        raise UsageError(f"{path} holds no video", "give a video file or a folder of images")
    if cast("av.VideoCodecContext | None", stream.codec_context) is None:
        raise UsageError(f"{path}: FFmpeg has no decoder for its codec", "convert it, for example to H.264")
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
