"""The one door to PyAV: sources of frames (video files, image folders), fitting, and encoding with audio.

Times are seconds since the beginning of the file, images uint8 RGB [H, W, 3].
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
from av.filter import Graph
from av.video.reformatter import Colorspace
from PIL import Image

from stages.base.errors import DiffSynthError, UsageError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
VALUE_SUFFIXES = {".exr"}  # of data rather than pictures
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
                raise DiffSynthError(f"{path} holds no frame that can be decoded", "is the file complete?")
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
            return av.open(str(self.path), metadata_errors="ignore")
        except FileNotFoundError:
            raise DiffSynthError(f"{self.path}: no such file") from None
        except (av.error.FFmpegError, OSError) as error:
            raise DiffSynthError(
                f"{self.path} is not a video that can be read ({error.strerror or error})",
                "is it complete? FFmpeg cannot read it either",
            ) from None

    def _frames_before(self, container: Any, stream: Any, time: float) -> Iterator[Any]:
        """Frames from a key frame before `time` on; from the first where searching leads nowhere."""
        if time <= SEEK_WORTH:
            yield from self._decode(container, stream)
            return
        if _seek(container, stream, time):
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
            raise DiffSynthError(f"{path} holds no images", f"known: {', '.join(sorted(known))}")
        self.estimate: int | None = len(self.files)
        self.ends: float | None = None
        self.height, self.width = self.read(self.files[0]).shape[:2]

    def shots(self, start_time: float = 0.0) -> Iterator[Shot]:
        for index, file in enumerate(self.files):
            time = float(index / self.fps)
            if time >= start_time - TIME_TOLERANCE:
                yield Shot(time, partial(self._image, file))

    def _image(self, file: Path) -> np.ndarray:
        image = self.read(file)
        if image.shape[:2] != (self.height, self.width):
            raise DiffSynthError(
                f"{file} is {image.shape[1]}×{image.shape[0]}, the first image of the folder "
                f"{self.width}×{self.height}",
                "the images of a folder must have one size",
            )
        return image


def stated_length(source: Source) -> int | None:
    """How many frames a source has by the word of its header; None if it does not say."""
    if source.estimate:
        return source.estimate
    return round(source.ends * float(source.fps)) if source.ends is not None else None


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


def read_image(path: str | Path) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3]; its EXIF rotation honoured, 16-bit and grey images converted."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DiffSynthError(f"{path} is not an image that can be read")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_values(path: str | Path) -> np.ndarray:
    """An image file's own values, RGB [H, W, 3]: uint8, uint16 or (EXR) float32. Grey is repeated."""
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # OpenCV asks when the first EXR file is opened
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        exr = Path(path).suffix.lower() == ".exr"
        hint = "this OpenCV may be built without EXR; 16-bit PNG files do as well" if exr else ""
        raise DiffSynthError(f"{path} is not an image that can be read", hint)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def fit(image: np.ndarray, height: int, width: int, shown: tuple[int, int] | None = None) -> np.ndarray:
    """The centre of `image` with the aspect ratio height:width, resized to uint8 [height, width, 3].

    `shown` is the (height, width) at which the image is meant to be seen, if its pixels are not square.
    """
    rows, columns = image.shape[:2]
    shown_height, shown_width = shown or (rows, columns)
    crop_rows = round(min(rows, rows * shown_width * height / (shown_height * width)))
    crop_columns = round(min(columns, columns * shown_height * width / (shown_width * height)))
    y, x = (rows - crop_rows) // 2, (columns - crop_columns) // 2
    image = image[y : y + crop_rows, x : x + crop_columns]
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    shrinks = height * width < crop_rows * crop_columns
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)


# --- encoding -------------------------------------------------------------------------------------------

# Encoders and their settings. The number of threads is fixed, since it changes the bytes that x264 writes.
ENCODERS: dict[str, tuple[str, str, int, dict[str, str]]] = {
    # name: (FFmpeg's encoder, pixel format, crf, options)
    # x264's macroblock tree reads memory that it never wrote, at many sizes: the same frames gave different bytes.
    "h264": ("libx264", "yuv420p", 19, {"preset": "medium", "x264-params": "mbtree=0"}),
    "hevc": ("libx265", "yuv420p", 20, {"preset": "medium", "x265-params": "log-level=none:pools=4:frame-threads=2"}),
    "vp9": ("libvpx-vp9", "yuv420p", 24, {"b": "0", "row-mt": "1"}),
    "prores": ("prores_ks", "yuv422p10le", 0, {"profile": "hq"}),
    "ffv1": ("ffv1", "bgr0", 0, {}),
}
ENCODER_THREADS = 4
CONTAINERS = {  # suffix: (FFmpeg's muxer, audio encoder, options)
    ".mp4": ("mp4", "aac", {"movflags": "+faststart"}),
    ".mov": ("mov", "aac", {"movflags": "+faststart"}),
    ".mkv": ("matroska", "aac", {"fflags": "+bitexact"}),  # otherwise each file has a random number in it
    ".webm": ("webm", "libopus", {"fflags": "+bitexact"}),
}
CONTAINER_CODECS = {
    ".mp4": ("h264", "hevc", "vp9"), ".mov": ("h264", "hevc", "prores"),
    ".mkv": tuple(ENCODERS), ".webm": ("vp9",),
}  # fmt: skip
OTHER_SUFFIXES = (  # of videos that are not written
    ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob",
    ".wmv", ".y4m",
)  # fmt: skip
AUDIO_BIT_RATE = 192_000
AUDIO_RATE = 48_000
SLOWEST, FASTEST = Fraction(1, 10_000), 1000  # frames/s; MP4 files have a clock of their own in milliseconds
TIMESTAMP_RATE = 90_000  # ticks a second for frames without a constant rate


@dataclass(frozen=True)
class Audio:
    """The part of a file's sound from `start` to `stop`, in seconds."""

    path: Path
    start: float
    stop: float


@dataclass(frozen=True)
class Encoding:
    """How a video is to be written. `fps` for a constant rate, or else `times` in seconds, one a frame.

    `comment` is written into the file's metadata, from where `read_comment` reads it.
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


def encode(path: Path, frames: Iterable[np.ndarray], how: Encoding) -> None:
    """Writes uint8 frames [H, W, 3] as a video, its kind chosen by the suffix of `path`.

    Odd sizes are padded by repeating the last row or column if the codec needs even ones (`padded_size`). The file
    appears when it is complete.
    """
    muxer, audio_codec, options = check_encoding(path, how.codec)
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with av.open(str(part), "w", format=muxer, container_options=options) as container:
            if how.comment:
                container.metadata["comment"] = how.comment
            sound = _SoundTrack(container, how.audio, audio_codec) if how.audio else None
            picture = None
            for index, frame in enumerate(frames):
                picture = picture or _picture_stream(container, frame.shape, how)
                if sound:
                    sound.write_until(float(how.ticks(index) * how.time_base))
                container.mux(_timed(picture.encode(_picture_frame(frame, picture, how, index)), how))
            if picture is None:
                raise DiffSynthError(f"{path}: there are no frames to write")
            container.mux(_timed(picture.encode(None), how))
            if sound:
                sound.write_until(float("inf"))
        part.replace(path)
    except (av.error.FFmpegError, OSError) as error:
        raise DiffSynthError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def check_encoding(path: Path, codec: str) -> tuple[str, str, dict[str, str]]:
    """Muxer, audio encoder and options for a file of this name; UsageError if it cannot hold the codec."""
    suffix = path.suffix.lower()
    if suffix not in CONTAINERS:
        raise UsageError(f"{path}: cannot write {suffix or 'a video without a suffix'}", f"use {_listed(CONTAINERS)}")
    if codec not in CONTAINER_CODECS[suffix]:
        raise UsageError(
            f"{path}: a {suffix} file cannot hold {codec}", f"it can hold {_listed(CONTAINER_CODECS[suffix])}"
        )
    return CONTAINERS[suffix]


def check_encoder(path: Path, codec: str, height: int, width: int, fps: Fraction) -> None:
    """Check that frames of this size and rate can be encoded, by opening the encoder and writing no frame.

    Raises:
        UsageError: The file's suffix does not go with the codec, or the encoder takes no such frames.
    """
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
    if suffix in IMAGE_SUFFIXES:
        raise UsageError(f"{path} is the name of a single image", "give the name of a folder for images")
    return False


def default_codec(path: Path) -> str:
    """The codec of a video of this name if none is asked for."""
    return CONTAINER_CODECS[path.suffix.lower()][0]


def padded_size(codec: str, height: int, width: int) -> tuple[int, int]:
    """The (height, width) at which frames of this size are encoded: even where the codec halves colour resolution."""
    if ENCODERS[codec][1].startswith("bgr"):
        return height, width
    return height + height % 2, width + width % 2


def read_comment(path: Path) -> str:
    """The comment in the metadata of a video or PNG file; empty if there is none or the file cannot be read."""
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path) as image:
                return str(image.info.get("Comment", ""))
        with av.open(str(path), metadata_errors="ignore") as container:
            tags = {name.lower(): value for name, value in container.metadata.items()}
            return str(tags.get("comment", ""))
    except (av.error.FFmpegError, OSError, ValueError):
        return ""


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _picture_stream(container: Any, shape: tuple[int, ...], how: Encoding) -> Any:
    encoder, pixel_format, crf, options = ENCODERS[how.codec]
    stream = container.add_stream(encoder, rate=how.fps or TIMESTAMP_RATE, options=dict(options))
    stream.height, stream.width = padded_size(how.codec, shape[0], shape[1])
    stream.pix_fmt = pixel_format
    stream.time_base = stream.codec_context.time_base = how.time_base
    stream.codec_context.thread_count = ENCODER_THREADS
    if how.fps is None:  # with B-frames, MP4 and uneven times give a wrong length of the whole
        stream.codec_context.max_b_frames = 0
    if crf or how.crf is not None:
        stream.codec_context.options = {**options, "crf": str(crf if how.crf is None else how.crf)}
    if not pixel_format.startswith("bgr"):  # BT.709, limited range: what players assume of untagged HD video
        context = stream.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1, 1
    return stream


def _picture_frame(image: np.ndarray, stream: Any, how: Encoding, index: int) -> Any:
    pad = ((0, stream.height - image.shape[0]), (0, stream.width - image.shape[1]), (0, 0))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.pad(image, pad, mode="edge")), format="rgb24")
    if not stream.pix_fmt.startswith("bgr"):
        frame = frame.reformat(format=stream.pix_fmt, dst_colorspace=Colorspace.ITU709)
    frame.pts, frame.time_base = how.ticks(index), how.time_base
    return frame


def _timed(packets: list[Any], how: Encoding) -> list[Any]:
    """The same packets with their durations, which encoders do not know where the rate is not constant."""
    if how.fps is None:
        stamps = [how.ticks(index) for index in range(len(how.times))]
        lengths = dict(zip(stamps, np.diff(stamps), strict=False))
        for packet in packets:
            packet.duration = int(lengths.get(packet.pts, np.median(np.diff(stamps)) if len(stamps) > 1 else 3600))
    return packets


class _SoundTrack:
    """Sound cut to a span, silence where the file has none, written a little ahead of the picture."""

    def __init__(self, container: Any, audio: Audio, codec: str):
        self.container = container
        self.stream = container.add_stream(codec, rate=AUDIO_RATE, layout=_layout(audio.path))
        self.stream.bit_rate = AUDIO_BIT_RATE
        self.frames = _cut_sound(audio, self.stream)
        self.written = 0.0  # s

    def write_until(self, time: float) -> None:
        while self.written <= time:
            frame = next(self.frames, None)
            if frame is None:
                self.container.mux(self.stream.encode(None))
                self.written = float("inf")
                return
            self.container.mux(self.stream.encode(frame))
            self.written = float(frame.time + frame.samples / frame.sample_rate)


def _layout(path: Path) -> str:
    with av.open(str(path)) as source:
        return "mono" if source.streams.audio[0].channels == 1 else "stereo"


def _cut_sound(audio: Audio, stream: Any) -> Iterator[Any]:
    """Audio frames of the span, in the encoder's format, with times from 0 and gaps filled with silence."""
    with av.open(str(audio.path), metadata_errors="ignore") as source:
        track = source.streams.audio[0]
        zero = (source.start_time or 0) / av.time_base + audio.start
        _seek(source, track, zero)
        graph = Graph()
        filters = [graph.add_abuffer(template=track)]
        for name, options in (
            ("asetpts", f"PTS-{zero!r}/TB"),
            ("aresample", f"{AUDIO_RATE}:async=1:first_pts=0"),
            ("atrim", f"start=0:end={audio.stop - audio.start!r}"),
            ("aformat", f"sample_fmts={stream.format.name}:channel_layouts={stream.layout.name}"),
            ("asetnsamples", f"n={stream.codec_context.frame_size or 1024}:p=0"),
            ("abuffersink", None),
        ):
            filters.append(graph.add(name, options))
            filters[-2].link_to(filters[-1])
        graph.configure()
        for frame in chain(_sound_frames(source, track), [None]):
            try:
                graph.push(frame)
            except av.error.EOFError:  # atrim has had all it wants
                break
            yield from _pull(graph)
        yield from _pull(graph)


def _sound_frames(source: Any, track: Any) -> Iterator[Any]:
    for packet in source.demux(track):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue  # a damaged packet is heard as silence: aresample fills the gap


def _pull(graph: Any) -> Iterator[Any]:
    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def _best_stream(container: Any, path: Path) -> Any:
    stream = container.streams.best("video")
    if stream is None:
        raise DiffSynthError(f"{path} holds no video", "give a video file or a folder of images")
    return stream


def _seek(container: Any, stream: Any, time: float) -> bool:
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
