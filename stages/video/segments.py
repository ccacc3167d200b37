"""Parts of a video that are encoded independently of each other, in any order and process, and then joined."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TypeAlias, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from stages.video.encoding import Encoding, Packet, encode_packets, new_video

Segment: TypeAlias = tuple[NDArray[np.int64], bytes]
"""Of each packet, the time stamps pts and dts, the duration, whether it is a keyframe, and the size; and their data."""


def encode_segment(path: Path, frames: Iterable[np.ndarray], how: Encoding, first: int) -> bytes:
    """Encode a part of a video, and return it in a form that `read_segment` reads.

    It begins with a keyframe, and refers to no other part.

    Args:
        path: The video that it belongs to.
        frames: uint8 RGB [H, W, 3], at least one, all of one size.
        how: Codec and times of the whole video.
        first: The number of the first of these frames in the video.
    """
    packets = encode_packets(path, frames, how, first)
    notes = [(packet.pts, packet.dts, packet.duration, packet.is_keyframe, packet.size) for packet in packets]
    file = BytesIO()
    data = np.frombuffer(b"".join(map(bytes, packets)), np.uint8)
    np.savez(file, notes=np.array(notes, np.int64), data=data)
    return file.getvalue()


def read_segment(stored: bytes) -> Segment | None:
    """Return what `encode_segment` has made. None if it is damaged."""
    try:
        with np.load(BytesIO(stored)) as file:  # which compares checksums
            return file["notes"], file["data"].tobytes()
    except (BadZipFile, OSError, ValueError, KeyError, EOFError, zlib.error):
        return None


def join(path: Path, segments: Iterable[Segment], shape: tuple[int, ...], how: Encoding) -> None:
    """Write a video atomically from the segments of all its frames, in order, and its audio.

    Raises:
        DiffSynthError: Writing failed.
    """
    with new_video(path, shape, how) as video:
        for packet in _in_decoding_order(chain.from_iterable(_packets(segment, how) for segment in segments), how):
            video.sound_until(cast(int, packet.pts))
            packet.stream = video.picture
            video.container.mux(packet)


def _in_decoding_order(packets: Iterable[Packet], how: Encoding) -> Iterator[Packet]:
    """Make times of decoding continuous. A last segment shorter than the encoder's delay has later ones."""
    first = 0
    for index, packet in enumerate(packets):
        first = packet.dts or 0 if index == 0 else first
        if how.fps is not None:
            packet.dts = first + index
        yield packet


def _packets(segment: Segment, how: Encoding) -> Iterator[Packet]:
    import av

    notes, data = segment
    begin = 0
    for pts, dts, duration, is_keyframe, size in notes.tolist():
        packet = cast(Packet, av.Packet(data[begin : begin + size]))
        packet.time_base = how.time_base
        packet.pts, packet.dts, packet.duration, packet.is_keyframe = pts, dts, duration, bool(is_keyframe)
        begin += size
        yield packet
