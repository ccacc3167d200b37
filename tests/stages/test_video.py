"""Sources (one contract for all kinds) and encoding, on files made with PyAV."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from stages import video
from stages.base.errors import DiffSynthError
from stages.video import Audio, Encoding, encode, fit, open_source, read_image
from tests.conftest import scene, write_images

COUNT, FPS = 12, Fraction(25)


def clip(path: Path, count: int = COUNT, **how: object) -> Path:
    encode(path, (scene(i, 64, 96) for i in range(count)), Encoding(fps=FPS, crf=5, **how))
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


def raw_h264(folder: Path) -> Path:
    """A stream without a container: no times, no duration."""
    with av.open(str(clip(folder / "c.mp4"))) as source, av.open(str(folder / "a.h264"), "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return folder / "a.h264"


SOURCES: dict[str, Callable[[Path], Path]] = {
    "mp4, h264": lambda folder: clip(folder / "a.mp4"),
    "mov, prores": lambda folder: clip(folder / "a.mov", codec="prores"),
    "mkv, ffv1": lambda folder: clip(folder / "a.mkv", codec="ffv1"),
    "webm, vp9": lambda folder: clip(folder / "a.webm", codec="vp9"),
    "mp4, hevc": lambda folder: clip(folder / "b.mp4", codec="hevc"),
    "ts, h264": mpeg_ts,
    "h264 alone": raw_h264,
    "folder of images": lambda folder: write_images(folder / "images", (scene(i, 64, 96) for i in range(COUNT))),
}


@pytest.mark.parametrize("seek_worth", [10.0, 0.0])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_keeps_the_contract(kind, seek_worth, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "SEEK_WORTH", seek_worth)  # 0: search even in these short clips
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


def test_images_are_sorted_naturally(tmp_path):
    folder = write_images(tmp_path / "images", [flat(10 * i, 16, 16) for i in range(12)])  # 0.png ... 10.png, 11.png
    assert [int(shot.image().mean()) for shot in open_source(folder).shots()] == [10 * i for i in range(12)]


def test_16_bit_and_grey_images_are_read_as_8_bit_colour(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((8, 8), 0x8000, np.uint16))
    assert read_image(tmp_path / "deep.png").tolist() == np.full((8, 8, 3), 128).tolist()


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_rotation_is_honoured(tmp_path, rotation, corner):
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


def test_pixels_that_are_not_square_are_seen_as_meant(tmp_path):
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


def test_uneven_times_are_kept(tmp_path):
    times = np.array([0, 0.04, 0.08, 0.4, 0.44, 1.0])
    encode(tmp_path / "a.mp4", (flat(40 * i) for i in range(6)), Encoding(times=times))
    shots = list(open_source(tmp_path / "a.mp4").shots())
    np.testing.assert_allclose([shot.time for shot in shots], times, atol=1e-4)
    assert [round(shot.image().mean() / 40) for shot in shots] == [0, 1, 2, 3, 4, 5]
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.duration / 1e6 == pytest.approx(1.04, abs=0.01)


def test_a_last_frame_that_stays_is_no_truncation(tmp_path):
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


def test_a_truncated_file_is_named_with_what_can_be_used(tmp_path):
    whole = clip(tmp_path / "a.mp4", count=100).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    source = open_source(tmp_path / "cut.mp4")
    with pytest.raises(
        DiffSynthError, match=r"is truncated or damaged: it ends after \d\.\d\d s, but says that it lasts 4.00 s"
    ) as error:
        list(source.shots())
    assert '"end_time"' in error.value.hint


def test_damage_in_the_middle_does_not_end_the_video(tmp_path):
    data = bytearray(mpeg_ts(tmp_path, 100).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (tmp_path / "damaged.ts").write_bytes(data)
    source = open_source(tmp_path / "damaged.ts")
    shots = list(source.shots())
    assert 60 < len(shots) <= 100
    assert shots[-1].time == pytest.approx(99 / 25, abs=0.002)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "is not a video"), (b"this is no video" * 100, "is not a video"), (None, "no such file")],
)
def test_what_is_no_video_is_named(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DiffSynthError, match=expected):
        open_source(tmp_path / "a.mp4")


def test_sound_without_picture_and_an_empty_folder_are_named(tmp_path):
    tone(tmp_path / "a.mp4", picture=False)
    with pytest.raises(DiffSynthError, match="holds no video"):
        open_source(tmp_path / "a.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiffSynthError, match="holds no images"):
        open_source(tmp_path / "empty")


# --- fitting --------------------------------------------------------------------------------------------


def test_fit_crops_the_centre():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    assert (fit(image, 10, 10) == 200).all()
    assert (fit(image.transpose(1, 0, 2).copy(), 20, 20) == 200).all()


def test_fit_leaves_frames_of_the_right_size_alone():
    image = scene(0, 64, 96)
    assert np.array_equal(fit(image, 64, 96), image)


@pytest.mark.parametrize("size", [(32, 48), (128, 192), (40, 24)])
def test_fit_gives_the_size_asked_for(size):
    assert fit(scene(0, 64, 96), *size).shape == (*size, 3)


# --- encoding -------------------------------------------------------------------------------------------


def test_mp4_is_what_players_play(tmp_path):
    path = clip(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 25)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is loaded to the end


def test_odd_sizes_are_made_even(tmp_path):
    encode(tmp_path / "a.mp4", (flat(90, 63, 95) for _ in range(3)), Encoding(fps=FPS))
    source = open_source(tmp_path / "a.mp4")
    assert (source.height, source.width) == (64, 96)
    assert np.abs(next(source.shots()).image().astype(int) - 90).max() <= 3


def test_a_failed_encoding_leaves_the_old_file_and_nothing_else(tmp_path):
    path = clip(tmp_path / "a.mp4")
    before = path.read_bytes()

    def frames():
        yield scene(0, 64, 96)
        raise DiffSynthError("damaged")

    with pytest.raises(DiffSynthError, match="damaged"):
        encode(path, frames(), Encoding(fps=FPS))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "h264"), ("a.webm", "h264"), ("a.mp4", "prores")])
def test_what_a_container_cannot_hold_is_refused(tmp_path, name, codec):
    with pytest.raises(DiffSynthError):
        encode(tmp_path / name, [scene(0)], Encoding(fps=FPS, codec=codec))


def tone(path: Path, begins: float = 0.0, seconds: float = 3.0, picture: bool = True) -> Path:
    """White picture and a 440 Hz tone from 1 s on; the sound track begins late."""
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
    return white, float(frames[0].time + np.argmax(np.abs(samples) > 0.1) / rate), len(samples) / rate


@pytest.mark.parametrize("begins", [0.0, 0.7])
@pytest.mark.parametrize("start", [0.0, 0.52])
def test_sound_is_cut_and_stays_in_sync(tmp_path, begins, start):
    source = open_source(tone(tmp_path / "a.mp4", begins))
    assert source.has_audio
    shots = [shot for shot in source.shots(start) if shot.time < 2.0]
    how = Encoding(fps=FPS, audio=Audio(source.path, start, 2.0))
    encode(tmp_path / "b.mp4", (shot.image() for shot in shots), how)
    white, sound, length = onsets(tmp_path / "b.mp4")
    assert white == pytest.approx(1 - start, abs=0.001)
    assert sound == pytest.approx(1 - start, abs=0.03)  # an AAC frame is 23 ms
    assert length == pytest.approx(2 - start, abs=0.05)


def test_encoding_is_repeatable(tmp_path):
    assert clip(tmp_path / "a.mp4").read_bytes() == clip(tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_values_of_images_are_read_as_they_are(kind, tmp_path):
    grey = np.linspace(0, np.iinfo(kind).max, 12 * 20).reshape(12, 20).astype(kind)
    cv2.imwrite(str(tmp_path / "0.png"), grey)
    (shot,) = open_source(tmp_path, values=True).shots()
    image = shot.image()
    assert image.dtype == kind
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))


def test_exr_files_that_this_opencv_cannot_read_are_explained(tmp_path):
    (tmp_path / "0.exr").write_bytes(b"no EXR either")
    with pytest.raises(DiffSynthError, match=r"0\.exr is not an image") as unreadable:
        open_source(tmp_path, values=True)
    assert "built without EXR" in unreadable.value.hint


ENCODE = """
import sys
from fractions import Fraction
from pathlib import Path
import cv2
import numpy as np
from stages.video import Encoding, encode
noise = np.random.default_rng(0).integers(0, 256, (12, 32, 3), np.uint8)
world = cv2.resize(noise, (256, 192), interpolation=cv2.INTER_CUBIC)
frames = [np.ascontiguousarray(world[:48, 2 * t : 2 * t + 64]) for t in range(24)]
encode(Path(sys.argv[1]), frames, Encoding(Fraction(25), codec=sys.argv[2]))
"""


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_encoded_bytes_do_not_depend_on_what_memory_held_before(codec, tmp_path):
    written = []
    for value in ("0", "85"):  # glibc fills memory with it before it is handed out
        path = tmp_path / f"{value}.mp4"
        run = [sys.executable, "-c", ENCODE, str(path), codec]
        subprocess.run(run, env={**os.environ, "MALLOC_PERTURB_": value}, check=True)
        written.append(path.read_bytes())
    assert written[0] == written[1]
