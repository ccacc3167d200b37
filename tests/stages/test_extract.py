"""Video → frames through the command line."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stages.base.cache import FrameArray, FrameCache
from stages.video import Encoding, encode
from tests.conftest import scene
from tests.typing import Cli, Keys, MakeJob


class Extract:
    """Extracts a job of so many images with these keys, and gives the array of frames."""

    def __init__(self, folder: Path, make_job: MakeJob, cli: Cli) -> None:
        self.folder, self.make_job, self.cli = folder, make_job, cli

    def __call__(self, frames: int = 12, /, **keys: object) -> FrameArray:
        code, output = self.cli("extract", self.make_job(frames, **keys), "--restart")
        assert code == 0, output
        return FrameCache(self.folder / "out/cache.zarr")["frames"]

    def refused(self, **keys: object) -> str:
        """The message if extraction must fail."""
        code, output = self.cli("extract", self.make_job(12, **keys), "--restart")
        assert code != 0
        return output


@pytest.fixture
def extract(tmp_path: Path, make_job: MakeJob, cli: Cli) -> Extract:
    return Extract(tmp_path, make_job, cli)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, range(12)),
        ({"frame_interval": 5}, [0, 5, 10]),
        ({"frame_maximum_count": 4}, range(4)),
        ({"frame_interval": 3, "frame_maximum_count": 2}, [0, 3]),
        ({"start_time": 0.1}, range(3, 12)),  # images run at 25 frames/s: the 4th is shown at 0.12 s
        ({"end_time": 0.2}, range(5)),
        ({"start_time": 0.08, "end_time": 0.36, "frame_interval": 2}, [2, 4, 6, 8]),
    ],
)
def test_interval_count_and_times_select_frames(extract: Extract, keys: Keys, expected: Sequence[int]) -> None:
    frames = extract(**keys)
    np.testing.assert_array_equal(frames[:], np.stack([scene(i) for i in expected]))
    assert Fraction(str(frames.attrs["fps"])) == Fraction(25, keys.get("frame_interval", 1))
    assert frames.attrs["start"] == pytest.approx(expected[0] / 25)


@pytest.mark.parametrize(
    ("keys", "size"),
    [
        ({"frame_height": 128, "frame_width": 64}, (128, 64)),
        ({"frame_height": 128}, (128, 128)),
        ({"frame_width": 72}, (72, 72)),
    ],
)
def test_frames_get_the_requested_size(extract: Extract, keys: Keys, size: tuple[int, int]) -> None:
    assert extract(**keys).shape == (12, *size, 3)


def test_a_size_that_is_no_multiple_of_8_is_explained(tmp_path: Path, extract: Extract) -> None:
    encode(tmp_path / "odd.mp4", (scene(i, 70, 90) for i in range(3)), Encoding(fps=Fraction(25)))
    output = extract.refused(input_video="odd.mp4")
    assert "90×70; both must be multiples of 8" in output
    assert '"frame_height": 64, "frame_width": 88' in output


def test_an_empty_span_is_explained(extract: Extract) -> None:
    assert "has no frames between 9 s and its end" in extract.refused(start_time=9.0)


def test_uneven_times_are_kept(tmp_path: Path, extract: Extract) -> None:
    times = np.array([0, 0.04, 0.08, 0.4, 0.44, 1.0])
    encode(tmp_path / "a.mp4", (scene(i) for i in range(6)), Encoding(times=times))
    frames = extract(input_video="a.mp4", start_time=0.05)
    np.testing.assert_allclose(np.array(frames.attrs["times"], float), times[2:] - times[2], atol=1e-4)
    assert frames.attrs["start"] == pytest.approx(0.08, abs=1e-4)


def test_times_rounded_by_a_container_count_as_a_constant_rate(tmp_path: Path, extract: Extract) -> None:
    encode(tmp_path / "a.mkv", (scene(i) for i in range(30)), Encoding(fps=Fraction(24000, 1001)))  # mkv keeps ms
    attributes = extract(input_video="a.mkv").attrs
    assert attributes["times"] is None
    assert float(Fraction(str(attributes["fps"]))) == pytest.approx(24000 / 1001, abs=0.01)


def test_a_restart_with_a_wrong_source_loses_nothing(tmp_path: Path, extract: Extract) -> None:
    before = extract()[:]
    (tmp_path / "no.mp4").write_bytes(b"not a video")
    assert "is not a video" in extract.refused(input_video="no.mp4")
    np.testing.assert_array_equal(FrameCache(tmp_path / "out/cache.zarr")["frames"][:], before)
