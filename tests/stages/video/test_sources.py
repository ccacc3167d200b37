"""The contract of all sources of frames, on files written with PyAV."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stages.base.errors import DiffSynthError
from stages.video import Audio, Encoding, encode, fit, open_source, read_comment, video_file
from tests.conftest import scene, write_images
from tests.stages.video.clips import COUNT, FPS, clip, damaged_ts, flat, mpeg_ts, raw_h264, tone

SOURCES: dict[str, Callable[[Path], Path]] = {
    "mp4, h264": lambda folder: clip(folder / "a.mp4"),
    "mov, prores": lambda folder: clip(folder / "a.mov", codec="prores"),
    "mkv, ffv1": lambda folder: clip(folder / "a.mkv", codec="ffv1"),
    "webm, vp9": lambda folder: clip(folder / "a.webm", codec="vp9"),
    "mp4, hevc": lambda folder: clip(folder / "b.mp4", codec="hevc"),
    "mp4, av1": lambda folder: clip(folder / "c.mp4", codec="av1"),
    "ts, h264": mpeg_ts,
    "h264 alone": raw_h264,
    "folder of images": lambda folder: write_images(folder / "images", (scene(i, 64, 96) for i in range(COUNT))),
}


@pytest.mark.parametrize("seek_worth", [10.0, 0.0])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_keeps_the_contract(
    kind: str, seek_worth: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_file, "SEEK_WORTH", seek_worth)  # 0: search even in these short clips
    source = open_source(SOURCES[kind](tmp_path))
    shots = list(source.shots())
    times = [shot.time for shot in shots]
    assert (source.height, source.width, source.fps) == (64, 96, FPS)
    assert source.estimate in (None, COUNT)
    assert len(shots) == COUNT
    np.testing.assert_allclose(times, np.arange(COUNT) / 25, atol=0.002)
    assert source.damage == []
    for i in (0, 5, COUNT - 1):
        image = shots[i].image()
        assert image.dtype == np.uint8 and image.shape == (64, 96, 3)
        assert np.abs(image.astype(int) - scene(i, 64, 96)).mean() < 12  # the frame at its place, in its colours
    late = list(source.shots(start_time=0.2))
    assert [shot.time for shot in late] == pytest.approx(times[5:])
    assert np.array_equal(late[0].image(), shots[5].image())
    assert not source.has_audio


def test_images_are_sorted_naturally(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", [flat(10 * i, 16, 16) for i in range(12)])  # 0.png ... 10.png, 11.png
    assert [int(shot.image().mean()) for shot in open_source(folder).shots()] == [10 * i for i in range(12)]


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_rotation_is_honoured(tmp_path: Path, rotation: int, corner: tuple[int, int]) -> None:
    image = flat(0)
    image[:20, :20] = 255
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.set_display_rotation(rotation)
        container.mux([*stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")), *stream.encode(None)])
    source = open_source(tmp_path / "a.mp4")
    (shot,) = source.shots()
    assert (source.height, source.width) == ((96, 64) if rotation % 180 else (64, 96)) == shot.image().shape[:2]
    assert shot.image()[corner].min() > 200


def test_pixels_that_are_not_square_are_seen_as_meant(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 72, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        container.mux(
            [*stream.encode(av.VideoFrame.from_ndarray(flat(9, 64, 72), format="rgb24")), *stream.encode(None)]
        )
    source = open_source(tmp_path / "a.mp4")
    assert (source.height, source.width) == (64, 96)
    (shot,) = source.shots()
    assert fit(shot.image(), 64, 96, (source.height, source.width)).shape == (64, 96, 3)


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    times = np.array([0, 0.04, 0.08, 0.4, 0.44, 1.0])
    encode(tmp_path / "a.mp4", (flat(40 * i) for i in range(6)), Encoding(times=times))
    shots = list(open_source(tmp_path / "a.mp4").shots())
    np.testing.assert_allclose([shot.time for shot in shots], times, atol=1e-4)
    assert [round(shot.image().mean() / 40) for shot in shots] == [0, 1, 2, 3, 4, 5]
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.duration is not None and container.duration / 1e6 == pytest.approx(1.04, abs=0.01)


def test_a_last_frame_that_stays_is_no_truncation(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", (flat(40 * i) for i in range(4)), Encoding(times=np.array([0, 0.04, 0.08, 3.0])))
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts is not None:
                packet.duration = round(2 / packet.time_base) if packet.pts * packet.time_base > 2 else packet.duration
                packet.stream = stream
                target.mux(packet)
    assert [shot.time for shot in open_source(tmp_path / "b.mp4").shots()] == pytest.approx(
        [0, 0.04, 0.08, 3], abs=1e-3
    )


def test_a_truncated_file_is_named_with_what_can_be_used(tmp_path: Path) -> None:
    whole = clip(tmp_path / "a.mp4", count=100).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    source = open_source(tmp_path / "cut.mp4")
    with pytest.raises(
        DiffSynthError, match=r"is truncated or damaged: it ends after \d\.\d\d s, but its header says 4.00 s"
    ) as error:
        list(source.shots())
    assert '"end_time"' in error.value.hint


def test_damage_in_the_middle_does_not_end_the_video(tmp_path: Path) -> None:
    source = open_source(damaged_ts(tmp_path))
    shots = list(source.shots())
    assert 60 < len(shots) <= 100
    assert shots[-1].time == pytest.approx(99 / 25, abs=0.002)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "is not a video"), (b"this is no video" * 100, "is not a video"), (None, "no such file")],
)
def test_files_that_are_no_videos_are_named(tmp_path: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DiffSynthError, match=expected):
        open_source(tmp_path / "a.mp4")


def test_sound_without_picture_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    tone(tmp_path / "a.mp4", picture=False)
    with pytest.raises(DiffSynthError, match="holds no video"):
        open_source(tmp_path / "a.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiffSynthError, match="holds no images"):
        open_source(tmp_path / "empty")


def test_a_codec_without_a_decoder_is_named(tmp_path: Path) -> None:
    file = clip(tmp_path / "a.mp4")
    file.write_bytes(file.read_bytes().replace(b"avc1", b"xxxx"))
    with pytest.raises(DiffSynthError, match="FFmpeg has no decoder"):
        open_source(file)


@pytest.mark.parametrize("name", [b"a:b", b"http:x", b"g\xfc", b"50%d", b"-x", b"a'b"])
def test_odd_file_names_are_written_and_read(name: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for suffix in (".mp4", ".mkv"):
        path = Path(os.fsdecode(name) + suffix)
        source = open_source(clip(path, comment="hello"))
        assert len(list(source.shots())) == COUNT and read_comment(path) == "hello"
        encode(Path("sound.mp4"), [flat(9)], Encoding(fps=FPS, audio=Audio(tone(Path("t.mp4")).replace(path), 0, 1)))
