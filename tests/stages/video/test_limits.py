"""Videos and folders that are too large or too long are refused, unless a part that is not is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest

from stages.base.errors import UsageError
from stages.video import limits, open_source
from stages.video.video_file import VideoFile
from tests.conftest import scene, write_images
from tests.stages.video.clips import COUNT, FPS, clip, flat
from tests.typing import Cli, MakeJob


def with_a_gap(path: Path, seconds: int) -> Path:
    """A video of four frames, the last of which comes this much later."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for time in (0, 1, 2, seconds * FPS):
            frame = av.VideoFrame.from_ndarray(flat(80), format="rgb24")
            frame.pts, frame.time_base = int(time), Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_video_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip(tmp_path / "a.mp4")
    monkeypatch.setattr(limits, "MOST_PIXELS", 64 * 96)
    assert open_source(tmp_path / "a.mp4").width == 96
    monkeypatch.setattr(limits, "MOST_PIXELS", 64 * 96 - 1)

    def decode(*_: object) -> Iterator[av.VideoFrame]:
        yield pytest.fail("decoded")

    monkeypatch.setattr(VideoFile, "_decode", decode)
    with pytest.raises(UsageError, match=r"a\.mp4 is too large"):
        open_source(tmp_path / "a.mp4")


def test_pixels_that_are_not_square_count_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 72, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(flat(80, 64, 72), format="rgb24")))
        container.mux(stream.encode(None))
    monkeypatch.setattr(limits, "MOST_PIXELS", 64 * 72)
    with pytest.raises(UsageError, match=r"a\.mp4 is too large"):
        open_source(tmp_path / "a.mp4")
    monkeypatch.setattr(limits, "MOST_PIXELS", 64 * 96)
    assert open_source(tmp_path / "a.mp4").width == 96


def test_too_many_frames_are_refused_while_they_are_counted(
    tmp_path: Path, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip(tmp_path / "a.mp4")
    job = make_job(input_video="a.mp4")
    monkeypatch.setattr(limits, "MOST_FRAMES", COUNT)
    assert len(list(open_source(tmp_path / "a.mp4").shots())) == COUNT
    monkeypatch.setattr(limits, "MOST_FRAMES", COUNT - 1)
    with pytest.raises(UsageError, match=r"a\.mp4 is too long"):
        list(open_source(tmp_path / "a.mp4").shots())
    code, output = cli("extract", job)
    assert code == 2 and "a.mp4 is too long" in output and "frame_maximum_count" in output
    assert not (tmp_path / "out").exists()
    assert cli("extract", job, "--set", f"frame_maximum_count={COUNT - 2}")[0] == 0


def test_a_folder_of_too_many_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "images", [scene(index) for index in range(3)])
    monkeypatch.setattr(limits, "MOST_FRAMES", 2)
    with pytest.raises(UsageError, match="images is too long"):
        open_source(folder)


def test_a_time_beyond_the_limit_is_refused_unless_it_is_not_used(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    with_a_gap(tmp_path / "a.mkv", limits.MOST_SECONDS + 10)
    job = make_job(input_video="a.mkv", fps=25)
    code, output = cli("extract", job)
    assert code == 2 and "a.mkv is too long" in output and "24 hours" in output and "end_time" in output
    assert cli("extract", job, "--set", "end_time=10")[0] == 0
