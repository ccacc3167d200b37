"""Audio of a video, cut to a span and padded with silence."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import cast

import av
from av.container import InputContainer, OutputContainer
from av.filter import Graph

from stages.video.containers import open_container
from stages.video.encoding import Audio
from stages.video.video_file import seek

AUDIO_BIT_RATE = 192_000
AUDIO_RATE = 48_000


class SoundTrack:
    """Audio cut to a span, with silence in gaps, written slightly ahead of the picture."""

    def __init__(self, container: OutputContainer, audio: Audio, codec: str):
        self.container = container
        self.stream = cast("av.AudioStream", container.add_stream(codec, rate=AUDIO_RATE, layout=_layout(audio.path)))
        self.stream.bit_rate = AUDIO_BIT_RATE
        self.frames = _cut_sound(audio, self.stream)
        self.written = 0.0  # s
        self.ended = False

    def write_until(self, time: float) -> None:
        """Write what sounds until `time`, in seconds. Infinity ends the track."""
        while self.written <= time and not self.ended:
            frame = next(self.frames, None)
            if frame is None:
                self.container.mux(self.stream.encode(None))
                self.ended = True
                return
            self.container.mux(self.stream.encode(frame))
            self.written = float((frame.time or 0.0) + frame.samples / frame.sample_rate)


def _layout(path: Path) -> str:
    with open_container(path) as source:
        return "mono" if source.streams.audio[0].channels == 1 else "stereo"


def _cut_sound(audio: Audio, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    """Yield the span's audio frames in the encoder's format, with times from 0 and gaps filled with silence."""
    with open_container(audio.path) as source:
        track = source.streams.audio[0]
        zero = (source.start_time or 0) / av.time_base + audio.start
        seek(source, track, zero)
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
            except av.error.EOFError:  # atrim has reached its end
                break
            yield from _pull(graph)
        yield from _pull(graph)


def _sound_frames(source: InputContainer, track: av.AudioStream) -> Iterator[av.AudioFrame]:
    for packet in source.demux(track):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue  # skip damaged packets: aresample fills the gap with silence


def _pull(graph: Graph) -> Iterator[av.AudioFrame]:
    while True:
        try:
            yield cast("av.AudioFrame", graph.pull())
        except (av.error.BlockingIOError, av.error.EOFError):
            return
