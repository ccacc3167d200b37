"""A video that is joined from segments, compared with the same frames encoded at once."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from stages.video import Audio, Encoding, Segment, encode, encode_segment, join, open_source, read_segment
from tests.conftest import scene
from tests.stages.video.clips import FPS, tone
from tests.typing import Image

LENGTH = 8  # frames per segment
UNEVEN = np.cumsum(np.random.default_rng(1).integers(20, 90, 3 * LENGTH)) / 1000 - 0.02
CLOCKS = {"constant": lambda count: Encoding(fps=FPS), "fraction": lambda count: Encoding(fps=Fraction(30000, 1001)),
          "uneven": lambda count: Encoding(times=UNEVEN[:count])}  # fmt: skip


def images(start: int, stop: int) -> list[Image]:
    return [scene(index, 64, 96) for index in range(start, stop)]


def segments(path: Path, count: int, how: Encoding, length: int = LENGTH) -> list[Segment]:
    """Encode segments, the last one first, and return them in order."""
    starts = range(0, count, length)
    stored = {
        start: encode_segment(path, images(start, min(start + length, count)), how, start) for start in reversed(starts)
    }
    found = [read_segment(stored[start]) for start in starts]
    return [segment for segment in found if segment is not None]


def joined(path: Path, count: int, how: Encoding) -> Path:
    join(path, segments(path, count, how), (64, 96, 3), how)
    return path


def packets(path: Path, kind: str) -> list[tuple[int | None, int | None, int | None, bool, bytes]]:
    with av.open(str(path)) as container:
        (stream,) = (stream for stream in container.streams if stream.type == kind)
        found = [packet for packet in container.demux(stream) if packet.size]
        return [(packet.pts, packet.dts, packet.duration, packet.is_keyframe, bytes(packet)) for packet in found]


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("count", [1, 2, LENGTH])
def test_a_single_segment_gives_the_bytes_of_encoding_at_once(tmp_path: Path, clock: str, count: int) -> None:
    how = CLOCKS[clock](count)
    encode(tmp_path / "whole.mp4", images(0, count), how)
    assert joined(tmp_path / "joined.mp4", count, how).read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("count", [LENGTH + 1, 2 * LENGTH, 3 * LENGTH - 6])
def test_joined_segments_have_the_same_frames_and_times(tmp_path: Path, clock: str, count: int) -> None:
    how = CLOCKS[clock](count)
    encode(tmp_path / "whole.mp4", images(0, count), how)
    joined(tmp_path / "joined.mp4", count, how)
    whole, parts = (list(open_source(tmp_path / name).shots()) for name in ("whole.mp4", "joined.mp4"))
    assert [shot.time for shot in parts] == [shot.time for shot in whole] and len(parts) == count
    for one, other in zip(parts, whole, strict=True):
        assert np.abs(one.image().astype(int) - other.image()).mean() < 2
    video = packets(tmp_path / "joined.mp4", "video")
    stamps = [dts for _, dts, *_ in video if dts is not None]
    assert len(stamps) == count and all(one < other for one, other in pairwise(stamps))
    durations = [duration for _, _, duration, *_ in video]
    assert durations == [duration for _, _, duration, *_ in packets(tmp_path / "whole.mp4", "video")]
    assert all(video[start][3] for start in range(0, count, LENGTH))  # keyframes


def test_a_segment_can_be_decoded_alone_with_the_headers_of_the_video(tmp_path: Path) -> None:
    how = Encoding(fps=FPS)
    whole = [shot.image() for shot in open_source(joined(tmp_path / "a.mp4", 3 * LENGTH, how)).shots()]
    middle = segments(tmp_path / "b.mp4", 3 * LENGTH, how)[1]
    join(tmp_path / "b.mp4", [middle], (64, 96, 3), how)
    alone = [shot.image() for shot in open_source(tmp_path / "b.mp4").shots()]
    np.testing.assert_array_equal(alone, whole[LENGTH : 2 * LENGTH])


def test_the_sound_is_the_same(tmp_path: Path) -> None:
    how = Encoding(fps=FPS, audio=Audio(tone(tmp_path / "a.mp4"), 0.5, 1.5))
    encode(tmp_path / "whole.mp4", images(0, 25), how)
    sound = packets(tmp_path / "whole.mp4", "audio")
    assert len(sound) > 40 and packets(joined(tmp_path / "joined.mp4", 25, how), "audio") == sound


def test_a_damaged_segment_is_noticed(tmp_path: Path) -> None:
    stored = encode_segment(tmp_path / "a.mp4", images(0, 2), Encoding(fps=FPS), 0)
    assert read_segment(stored) is not None
    flipped = bytearray(stored)
    flipped[len(stored) // 2] ^= 1
    for damaged in (bytes(flipped), stored[:-9], stored[: len(stored) // 2], b""):
        assert read_segment(damaged) is None
