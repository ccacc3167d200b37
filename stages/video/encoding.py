"""Codecs, containers and encoding. The same frames always give the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np

from stages.base.errors import DiffSynthError, UsageError
from stages.codecs import Codec
from stages.video.images import IMAGE_FORMATS, IMAGE_SUFFIXES, VALUE_SUFFIXES
from stages.video.sources import url

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer

    from stages.video.sound import SoundTrack


@dataclass(frozen=True)
class Encoder:
    """Settings of an encoder: FFmpeg's name, pixel format, quality and the usual suffix of the file.

    `with_alpha` is the pixel format, with options that replace others, for frames with an alpha channel.
    """

    ffmpeg: str
    pixel_format: str
    crf: int | None
    suffix: str
    options: dict[str, str] = field(default_factory=dict)
    with_alpha: tuple[str, dict[str, str]] | None = None

    def of(self, channels: int) -> Encoder:
        """Return the settings for frames of this many channels, 3 or 4."""
        if channels == 3:
            return self
        if self.with_alpha is None:
            raise UsageError(f"{self.ffmpeg} cannot hold an alpha channel", "choose another codec")
        pixel_format, options = self.with_alpha
        return replace(self, pixel_format=pixel_format, options=self.options | options)


# mbtree=0: at many sizes x264's macroblock tree reads uninitialised memory, so output bytes would vary.
ENCODERS: dict[str, Encoder] = {
    Codec.H264: Encoder("libx264", "yuv420p", 19, ".mp4", {"preset": "medium", "x264-params": "mbtree=0"}),
    Codec.HEVC: Encoder(
        "libx265",
        "yuv420p",
        20,
        ".mp4",
        {"preset": "medium", "x265-params": "log-level=none:pools=4:frame-threads=2"},
    ),
    Codec.VP9: Encoder("libvpx-vp9", "yuv420p", 24, ".webm", {"b": "0", "row-mt": "1"}),
    Codec.AV1: Encoder("libsvtav1", "yuv420p", 22, ".mp4", {"preset": "8"}),
    Codec.PRORES: Encoder(
        "prores_ks",
        "yuv422p10le",
        None,
        ".mov",
        {"profile": "hq"},
        ("yuva444p10le", {"profile": "4444", "alpha_bits": "16"}),
    ),
    Codec.FFV1: Encoder("ffv1", "bgr0", None, ".mkv", with_alpha=("bgra", {})),
}
# Fixed, since the bytes that x264 writes depend on it.
ENCODER_THREADS = 4
CONTAINERS = {  # suffix: (FFmpeg's muxer, audio encoder, options)
    ".mp4": ("mp4", "aac", {"movflags": "+faststart"}),
    ".mov": ("mov", "aac", {"movflags": "+faststart"}),
    ".mkv": ("matroska", "aac", {"fflags": "+bitexact"}),  # otherwise each file has a random number in it
    ".webm": ("webm", "libopus", {"fflags": "+bitexact"}),
}
CONTAINER_CODECS = {
    ".mp4": ("h264", "hevc", "vp9", "av1"), ".mov": ("h264", "hevc", "prores"),
    ".mkv": tuple(ENCODERS), ".webm": ("vp9", "av1"),
}  # fmt: skip
OTHER_SUFFIXES = (  # of videos that can be read but not written
    ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob",
    ".wmv", ".y4m",
)  # fmt: skip
SLOWEST, FASTEST = Fraction(1, 10_000), 1000  # frames/s; MP4 files have a clock of their own in milliseconds
TIMESTAMP_RATE = 90_000  # ticks a second for frames without a constant rate

Packet: TypeAlias = "av.Packet[av.VideoStream]"


@dataclass(frozen=True)
class Audio:
    """The part of a file's audio from `start` to `stop`, in seconds."""

    path: Path
    start: float
    stop: float


@dataclass(frozen=True)
class Encoding:
    """How to write a video.

    Args:
        fps: Constant frame rate. None to use `times`.
        times: Time of each frame in seconds.
        codec: A key of `ENCODERS`.
        crf: Quality, lower is better. None for the codec's default.
        audio: Audio to add.
        comment: Comment in the file's metadata, see `read_comment`.
    """

    fps: Fraction | None = None
    times: np.ndarray = field(default_factory=lambda: np.empty(0))
    codec: str = "h264"
    crf: int | None = None
    audio: Audio | None = None
    comment: str = ""

    def ticks(self, index: int) -> int:
        return index if self.fps is not None else round(float(self.times[index]) * TIMESTAMP_RATE)

    @property
    def time_base(self) -> Fraction:
        return 1 / self.fps if self.fps is not None else Fraction(1, TIMESTAMP_RATE)

    @cached_property
    def durations(self) -> dict[int | None, int]:
        """Ticks for which each frame is shown, by its time stamp, if the frame rate varies. The last one is a guess."""
        stamps = [self.ticks(index) for index in range(len(self.times))]
        gaps = np.diff(stamps)
        last = np.median(gaps) if len(gaps) else TIMESTAMP_RATE / 25
        return {stamp: int(gap) for stamp, gap in zip(stamps, [*gaps, last], strict=True)}


def encode(path: Path, frames: Iterable[np.ndarray], how: Encoding) -> None:
    """Write a video atomically.

    If the codec needs even sizes, the last row or column of frames is repeated (see `padded_size`).

    Args:
        path: The file. Its suffix determines the container.
        frames: uint8 RGB [H, W, 3], or RGB and alpha [H, W, 4], all of one size.
        how: Codec, times and audio.

    Raises:
        UsageError: The container cannot hold the codec, or the codec no alpha.
        DiffSynthError: There are no frames, or writing failed.
    """
    check_encoding(path, how.codec)
    frames = iter(frames)
    if (first := next(frames, None)) is None:
        raise DiffSynthError(f"{path}: there are no frames to write")
    with new_video(path, first.shape, how) as video:
        for packet in compressed(video.picture, video.with_sound(chain([first], frames)), how):
            video.container.mux(packet)


@dataclass(frozen=True)
class NewVideo:
    """A video that is being written.

    Args:
        container: The file.
        picture: Its video stream, with an encoder.
        sound: Its audio, if it has any.
        how: The times of its frames.
    """

    container: OutputContainer
    picture: av.VideoStream
    sound: SoundTrack | None
    how: Encoding

    def sound_until(self, ticks: int) -> None:
        """Write the audio up to the time stamp of a frame."""
        if self.sound is not None:
            self.sound.write_until(float(ticks * self.how.time_base))

    def with_sound(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the same frames, each after the audio up to its time has been written."""
        for index, frame in enumerate(frames):
            self.sound_until(self.how.ticks(index))
            yield frame


@contextmanager
def new_video(path: Path, shape: tuple[int, ...], how: Encoding) -> Iterator[NewVideo]:
    """Open a video for writing. If there is no error, it gets the rest of its audio at the end and replaces `path`.

    Args:
        path: The file. Its suffix determines the container.
        shape: Shape of the frames, [H, W, 3].
        how: Codec, times and audio.

    Raises:
        UsageError: The container cannot hold the codec.
        DiffSynthError: Writing failed.
    """
    import av

    from stages.video.sound import SoundTrack

    muxer, audio_codec, options = check_encoding(path, how.codec)
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _explained(path):
            with av.open(url(part), "w", format=muxer, container_options=options) as container:
                if how.comment:
                    container.metadata["comment"] = how.comment
                sound = SoundTrack(container, how.audio, audio_codec) if how.audio else None
                yield NewVideo(container, _picture_stream(container, shape, how), sound, how)
                if sound:
                    sound.write_until(float("inf"))
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of FFmpeg and the system into one that says what could not be written."""
    import av

    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        raise DiffSynthError(f"{path} could not be written: {error.strerror or error}") from error


def encode_packets(path: Path, frames: Iterable[np.ndarray], how: Encoding, first: int) -> list[Packet]:
    """Encode a part of a video as `encode` would, beginning with a keyframe, without writing a file.

    Args:
        path: The video that the part belongs to. Its suffix determines the container.
        frames: uint8 RGB [H, W, 3], at least one, all of one size.
        how: Codec and times of the whole video.
        first: The number of the first of these frames in the video.

    Raises:
        DiffSynthError: Encoding failed.
    """
    import av

    muxer, *_ = check_encoding(path, how.codec)
    frames = iter(frames)
    opening = next(frames)
    with _explained(path), av.open(BytesIO(), "w", format=muxer) as container:  # only the encoder depends on it
        picture = _picture_stream(container, opening.shape, how)
        return [*compressed(picture, chain([opening], frames), how, first)]


def compressed(
    picture: av.VideoStream, frames: Iterable[np.ndarray], how: Encoding, first: int = 0
) -> Iterator[Packet]:
    """Encode frames of a video, from number `first` on, and yield their packets with the time stamps of the video."""
    for index, frame in enumerate(frames, first):
        yield from _timed(picture.encode(_picture_frame(frame, picture, how, index)), how)
    yield from _timed(picture.encode(None), how)


def check_encoding(path: Path, codec: str) -> tuple[str, str, dict[str, str]]:
    """Return the muxer, audio encoder and options for `path`. Raise UsageError if it cannot hold the codec."""
    from av.codec import codecs_available

    suffix = path.suffix.lower()
    if suffix not in CONTAINERS:
        raise UsageError(f"{path}: cannot write {suffix or 'a video without a suffix'}", f"use {_listed(CONTAINERS)}")
    if codec not in CONTAINER_CODECS[suffix]:
        raise UsageError(
            f"{path}: a {suffix} file cannot hold {codec}", f"it can hold {_listed(CONTAINER_CODECS[suffix])}"
        )
    if ENCODERS[codec].ffmpeg not in codecs_available:
        raise UsageError(f"{codec}: FFmpeg was built without {ENCODERS[codec].ffmpeg}", "choose another codec")
    return CONTAINERS[suffix]


def check_encoder(path: Path, codec: str, height: int, width: int, fps: Fraction) -> None:
    """Check that frames of this size and rate can be encoded, by opening the encoder and writing no frame.

    Raises:
        UsageError: The container cannot hold the codec, or the encoder does not support the size or rate.
    """
    import av

    muxer, *_ = check_encoding(path, codec)
    try:
        if not SLOWEST <= fps <= FASTEST:
            raise ValueError("FFmpeg writes files of such rates, but cannot read them")
        with av.open(BytesIO(), "w", format=muxer) as container:
            _picture_stream(container, (height, width, 3), Encoding(fps, codec=codec))
            container.start_encoding()
    except (av.error.FFmpegError, OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{path}: {codec} cannot hold frames of {width}×{height} at {float(fps):.6g} frames/s",
            "choose another frame_height, frame_width or fps",
        ) from error


def is_video_name(path: Path) -> bool:
    """Whether an output of this name is a video; otherwise it is a folder of images.

    Raises UsageError for the suffixes of videos that cannot be written and of single images.
    """
    suffix = path.suffix.lower()
    if suffix in CONTAINERS:
        return True
    if suffix in OTHER_SUFFIXES:
        raise UsageError(f"{path}: cannot write {suffix} videos", f"use {_listed(CONTAINERS)}, or the name of a folder")
    if suffix in IMAGE_SUFFIXES | VALUE_SUFFIXES:
        raise UsageError(f"{path} is the name of a single image", "give the name of a folder for images")
    return False


def default_codec(path: Path) -> str:
    """Return the default codec of a video of this name."""
    return CONTAINER_CODECS[path.suffix.lower()][0]


def padded_size(codec: str, height: int, width: int) -> tuple[int, int]:
    """Return the encoded (height, width): even if the codec halves the resolution of colour, else unchanged."""
    if ENCODERS[codec].pixel_format.startswith("bgr"):
        return height, width
    return height + height % 2, width + width % 2


def read_comment(path: Path) -> str:
    """Return the comment in the metadata of a video or image. Empty if there is none or the file is unreadable."""
    if path.suffix.lower() in IMAGE_FORMATS:
        return IMAGE_FORMATS[path.suffix.lower()].comment(path)
    import av

    from stages.video.containers import open_container

    try:
        with open_container(path) as container:
            tags = {name.lower(): value for name, value in container.metadata.items()}
            return str(tags.get("comment", ""))
    except (av.error.FFmpegError, OSError, ValueError):
        return ""


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _picture_stream(container: OutputContainer, shape: tuple[int, ...], how: Encoding) -> av.VideoStream:
    encoder = ENCODERS[how.codec].of(shape[2])
    crf = encoder.crf if how.crf is None else how.crf
    options = encoder.options if crf is None else {**encoder.options, "crf": str(crf)}
    os.environ.setdefault("SVT_LOG", "1")  # errors only; read when the encoder of AV1 is opened
    stream = cast(
        "av.VideoStream", container.add_stream(encoder.ffmpeg, rate=how.fps or TIMESTAMP_RATE, options=options)
    )
    stream.height, stream.width = padded_size(how.codec, shape[0], shape[1])
    stream.pix_fmt = encoder.pixel_format
    stream.time_base = stream.codec_context.time_base = how.time_base
    stream.codec_context.thread_count = ENCODER_THREADS
    if how.fps is None:  # with B-frames, MP4 files with varying frame rates get a wrong duration
        stream.codec_context.max_b_frames = 0
    if not encoder.pixel_format.startswith("bgr"):  # BT.709, limited range: what players assume of untagged HD video
        context = stream.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1, 1
    return stream


def _picture_frame(image: np.ndarray, stream: av.VideoStream, how: Encoding, index: int) -> av.VideoFrame:
    import av
    from av.video.reformatter import Colorspace

    pad = ((0, stream.height - image.shape[0]), (0, stream.width - image.shape[1]), (0, 0))
    pixels = "rgb24" if image.shape[2] == 3 else "rgba"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.pad(image, pad, mode="edge")), format=pixels)
    if not (stream.pix_fmt or "").startswith("bgr"):
        frame = frame.reformat(format=stream.pix_fmt, dst_colorspace=Colorspace.ITU709)
    frame.pts, frame.time_base = how.ticks(index), how.time_base
    return frame


def _timed(packets: list[Packet], how: Encoding) -> list[Packet]:
    """Set the durations of packets, which encoders do not know if the frame rate varies."""
    for packet in packets if how.fps is None else ():
        packet.duration = how.durations[packet.pts]
    return packets
