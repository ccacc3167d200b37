"""Small videos, and measurements of their picture and sound."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.container import InputContainer

from stages.video import Encoding, encode, video_file
from stages.video.video_file import VideoFile
from tests.conftest import scene

COUNT, FPS = 12, Fraction(25)


def clip(path: Path, count: int = COUNT, **options: Any) -> Path:
    encode(path, (scene(i, 64, 96) for i in range(count)), Encoding(fps=FPS, crf=5, **options))
    return path


def flat(level: int, height: int = 64, width: int = 96) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def mpeg_ts(folder: Path, count: int = COUNT) -> Path:
    """A transport stream whose clock does not begin at 0."""
    with av.open(str(folder / "a.ts"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(i, 64, 96), format="rgb24")))
        container.mux(stream.encode(None))
    return folder / "a.ts"


def damaged_ts(folder: Path) -> Path:
    """A transport stream of 100 frames that is damaged in the middle."""
    data = bytearray(mpeg_ts(folder, 100).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (folder / "damaged.ts").write_bytes(data)
    return folder / "damaged.ts"


def raw_h264(folder: Path) -> Path:
    """A stream without a container: no times, no duration."""
    with av.open(str(clip(folder / "c.mp4"))) as source, av.open(str(folder / "a.h264"), "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return folder / "a.h264"


def watch_decoding(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seek even in short clips. Returns a list that gets the time of each frame that is decoded."""
    times: list[float] = []
    decode = VideoFile._decode

    def watched(self: VideoFile, container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        for frame in decode(self, container, stream):
            times.append(frame.time)
            yield frame

    monkeypatch.setattr(video_file, "SEEK_WORTH", 0.0)
    monkeypatch.setattr(VideoFile, "_decode", watched)
    return times


def tone(path: Path, begins: float = 0.0, seconds: float = 3.0, picture: bool = True) -> Path:
    """A video that turns white after 1 s, when a 440 Hz tone starts; `begins` is where its sound track starts, in s."""
    rate = 44_100
    with av.open(str(path), "w") as container:
        film = container.add_stream("libx264", rate=25) if picture else None
        audio = container.add_stream("aac", rate=rate, layout="mono")
        if film:
            film.width, film.height, film.pix_fmt = 96, 64, "yuv420p"
            for i in range(round(seconds * 25)):
                level = 255 if i >= 25 else 0
                container.mux(film.encode(av.VideoFrame.from_ndarray(flat(level), format="rgb24")))
            container.mux(film.encode(None))
        for start in range(round(begins * rate), round(seconds * rate), 1024):
            time = np.arange(start, start + 1024) / rate
            samples = (np.sin(2 * np.pi * 440 * time) * (time >= 1)).astype(np.float32) / 2
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def onsets(path: Path) -> tuple[float, float, float]:
    """When the picture turns white, when the tone sets in, and how long the sound lasts, in seconds."""
    with av.open(str(path)) as container:
        white = next(f.time for f in container.decode(video=0) if f.to_ndarray(format="gray").mean() > 128)
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    rate = frames[0].sample_rate
    assert white is not None and frames[0].time is not None
    return white, float(frames[0].time + np.argmax(np.abs(samples) > 0.1) / rate), len(samples) / rate
