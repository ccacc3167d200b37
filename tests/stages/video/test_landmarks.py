"""Frames after a seek are those that decoding from the beginning gives, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest

from stages.video import Landmark, open_source
from stages.video.video_file import MOST_REORDERED
from tests.conftest import scene, write_images
from tests.stages.video.clips import damaged_ts, mpeg_ts, raw_h264, watch_decoding

COUNT, GOP, DISTANCE = 60, 12, 7
NO_OPTIONS: dict[str, str] = {}
REORDERED = MOST_REORDERED + 4  # frames by which a seek may begin earlier, and some to open the file


def written(
    name: str, codec: str, options: dict[str, str] = NO_OPTIONS, times: np.ndarray | None = None
) -> Callable[[Path], Path]:
    """Return a function that writes a clip with a keyframe every GOP frames."""

    def write(folder: Path) -> Path:
        with av.open(str(folder / name), "w") as container:
            stream = cast("av.VideoStream", container.add_stream(codec, rate=25, options={"g": str(GOP), **options}))
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000) if times is not None else Fraction(1, 25)
            for index in range(COUNT):
                frame = av.VideoFrame.from_ndarray(scene(index, 48, 64), format="rgb24")
                frame.pts = index if times is None else round(times[index] * 1000)
                frame.time_base = stream.codec_context.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return folder / name

    return write


def x264(**options: object) -> dict[str, str]:
    return _parameters("x264-params", **{"keyint": GOP, "scenecut": 0, "bframes": 3, "b-adapt": 0} | options)


def x265(**options: object) -> dict[str, str]:
    return _parameters("x265-params", **{"keyint": GOP, "scenecut": 0, "bframes": 4, "log-level": "none"} | options)


def _parameters(name: str, **options: object) -> dict[str, str]:
    return {name: ":".join(f"{key.replace('_', '-')}={value}" for key, value in options.items())}


UNEVEN = np.cumsum(np.random.default_rng(0).integers(20, 90, COUNT)) / 1000
CLIPS = {
    "h264, B-frames": written("a.mp4", "libx264", x264()),
    "h264, open GOP, mp4": written("a.mp4", "libx264", x264(open_gop=1)),
    "h264, open GOP, mkv": written("a.mkv", "libx264", x264(open_gop=1)),
    "h264, open GOP, ts": written("a.ts", "libx264", x264(open_gop=1)),
    "h264, uneven times, mp4": written("a.mp4", "libx264", x264(), UNEVEN),
    "h264, uneven times, mkv": written("a.mkv", "libx264", x264(open_gop=1), UNEVEN),
    "hevc, open GOP, mp4": written("a.mp4", "libx265", x265(open_gop=1)),
    "hevc, open GOP, mkv": written("a.mkv", "libx265", x265(open_gop=1)),
    "hevc, leading pictures": written("a.mp4", "libx265", x265(open_gop=0, radl=2)),
    "vp9": written("a.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "10", "deadline": "realtime"}),
    "av1": written("a.mp4", "libsvtav1", {"preset": "12"}),
    "mpeg4": written("a.mp4", "mpeg4", {"bf": "2"}),
    "mpeg4, avi": written("a.avi", "mpeg4", {"bf": "2"}),
    "mpeg2": written("a.ts", "mpeg2video", {"bf": "2"}),
    "ffv1": written("a.mkv", "ffv1"),
}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of each frame that is decoded."""
    return watch_decoding(monkeypatch)


def landmarks_of(path: Path) -> tuple[list[tuple[float, bytes]], list[Landmark]]:
    """Return the times and pixels of all frames, and a landmark at every DISTANCE-th."""
    source = open_source(path)
    shots = list(source.shots())
    assert source.seekable
    marks = [Landmark.of(index, shot) for index, shot in enumerate(shots) if index and index % DISTANCE == 0]
    return [(shot.time, shot.image().tobytes()) for shot in shots], marks


@pytest.mark.parametrize("kind", CLIPS)
def test_a_seek_leads_to_the_same_frames(kind: str, tmp_path: Path, decoded: list[float]) -> None:
    path = CLIPS[kind](tmp_path)
    frames, marks = landmarks_of(path)
    assert len(frames) == COUNT and len({pixels for _, pixels in frames}) == COUNT
    for mark in marks:
        decoded.clear()
        shots = mark.shots(open_source(path))
        assert shots is not None
        assert [(shot.time, shot.image().tobytes()) for shot in shots] == frames[mark.frame :]
        if mark.frame > GOP + REORDERED:
            assert len(decoded) <= COUNT - mark.frame + GOP + REORDERED < COUNT


def test_a_landmark_at_a_keyframe_begins_there(tmp_path: Path, decoded: list[float]) -> None:
    path = CLIPS["h264, uneven times, mkv"](tmp_path)
    shots = list(open_source(path).shots())
    for frame in range(GOP, COUNT, GOP):
        decoded.clear()
        found = Landmark.of(frame, shots[frame]).shots(open_source(path))
        assert found is not None and len(list(found)) == COUNT - frame
        assert len(decoded) == 1 + COUNT - frame  # one to open the file


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_video_without_keyframes_is_decoded_from_its_beginning(
    suffix: str, tmp_path: Path, decoded: list[float]
) -> None:
    path = written(f"a.{suffix}", "libx264", x264(intra_refresh=1))(tmp_path)
    frames, marks = landmarks_of(path)
    for mark in marks:
        decoded.clear()
        shots = mark.shots(open_source(path))
        assert shots is not None
        assert [(shot.time, shot.image().tobytes()) for shot in shots] == frames[mark.frame :]
        assert len(decoded) >= COUNT


def test_another_time_or_other_pixels_are_no_landmark(tmp_path: Path, decoded: list[float]) -> None:
    path = CLIPS["h264, B-frames"](tmp_path)
    _, marks = landmarks_of(path)
    for wrong in (replace(marks[3], check=marks[3].check ^ 1), replace(marks[3], time=marks[3].time + 0.001)):
        assert wrong.shots(open_source(path)) is None


def later_b_frames(folder: Path) -> Path:
    """A video whose frames are decoded in another order than shown only in its second half."""
    parts = [written(f"{b_frames}.ts", "libx264", x264(bframes=b_frames))(folder) for b_frames in (0, 3)]
    with av.open(str(parts[0])) as first, av.open(str(folder / "a.ts"), "w") as target:
        stream = target.add_stream_from_template(first.streams.video[0])
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                for packet in source.demux(video=0):
                    if packet.pts is not None and packet.dts is not None:
                        later = round(number * (COUNT + 4) / 25 / packet.time_base)
                        packet.pts, packet.dts, packet.stream = packet.pts + later, packet.dts + later, stream
                        target.mux(packet)
    return folder / "a.ts"


@pytest.mark.parametrize(
    ("seekable", "kind"),
    [
        (True, mpeg_ts),
        (False, damaged_ts),
        (False, raw_h264),
        (False, later_b_frames),
        (False, lambda folder: write_images(folder / "images", [scene(0), scene(1)])),
    ],
    ids=["ts", "damaged", "no times", "later B-frames", "images"],
)
def test_a_source_says_whether_times_find_frames_again(
    seekable: bool, kind: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = open_source(kind(tmp_path))
    assert len(list(source.shots())) > 1
    assert source.seekable == seekable
