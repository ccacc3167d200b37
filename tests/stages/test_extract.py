"""Video → frames through the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np
import pytest

import diffsynth_cli as ds
from stages import extract as extract_stage
from stages.base.cache import FrameArray, FrameCache
from stages.base.reporting import Reporter
from stages.jobs.job_file import read_job
from stages.selection import UsedShots
from stages.tasks import DecodeTask
from stages.video import Encoding, Landmark, encode
from tests.conftest import forget, scene
from tests.stages.test_smooth import stopped
from tests.stages.video.clips import damaged_ts, raw_h264, watch_decoding
from tests.stages.video.test_landmarks import CLIPS, COUNT, GOP, REORDERED
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


class Swapping(Reporter):
    """Exchanges an image for another while frames are extracted."""

    def __init__(self, image: Path, other: Path):
        self.image, self.other = image, other

    def advance(self, frames: int) -> None:
        self.image.write_bytes(self.other.read_bytes())


def test_a_source_that_changes_meanwhile_is_read_again(tmp_path: Path, make_job: MakeJob) -> None:
    job, images = make_job(20), tmp_path / "images"
    original = (images / "19.png").read_bytes()
    with pytest.raises(ds.DiffSynthError, match="input changed while extract was reading it"):
        ds.run(job, ["extract"], reporter=Swapping(images / "19.png", images / "0.png"))
    (images / "19.png").write_bytes(original)
    ds.run(job, ["extract"])
    assert np.array_equal(FrameCache(tmp_path / "out/cache.zarr")["frames"][19], scene(19))


def test_a_source_that_changes_after_extraction_costs_no_maps(tmp_path: Path, make_job: MakeJob) -> None:
    job, images = make_job(20), tmp_path / "images"
    ds.run(job, ["extract"])
    ds.run(job, ["control"], reporter=Swapping(images / "19.png", images / "0.png"))
    assert FrameCache(tmp_path / "out/cache.zarr").record("control").complete


def test_a_restart_with_a_wrong_source_loses_nothing(tmp_path: Path, extract: Extract) -> None:
    before = extract()[:]
    (tmp_path / "no.mp4").write_bytes(b"not a video")
    assert "is not a video" in extract.refused(input_video="no.mp4")
    np.testing.assert_array_equal(FrameCache(tmp_path / "out/cache.zarr")["frames"][:], before)


# --- landmarks ------------------------------------------------------------------------------------------

DISTANCE = 7


@pytest.mark.parametrize("keys", [{}, {"frame_interval": 3}, {"start_time": 0.5, "end_time": 2.0}], ids=str)
@pytest.mark.parametrize("kind", ["h264, open GOP, ts", "h264, uneven times, mkv", "hevc, open GOP, mp4"])
def test_any_frame_is_reached_from_a_landmark(
    kind: str, keys: Keys, tmp_path: Path, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_stage, "LANDMARK_DISTANCE", DISTANCE)
    frames = extract(input_video=CLIPS[kind](tmp_path).name, **keys)
    marks = cast(list[list[float]], frames.attrs["landmarks"])
    job, _ = read_job(tmp_path / "job.json")
    distance = max(1, DISTANCE // job.frame_interval)
    assert [mark[0] for mark in marks] == [*range(distance, len(frames), distance)] and len(marks) > 2
    shots = UsedShots(job, [Landmark(int(frame), time, int(check)) for frame, time, check in marks])
    decoded = watch_decoding(monkeypatch)
    for first in range(len(frames) - 1, 0, -3):
        decoded.clear()
        np.testing.assert_array_equal(next(shots(first)).image(), frames[first])
        assert len(decoded) <= 2 + GOP + REORDERED + DISTANCE


@pytest.mark.parametrize("known", [True, False])
def test_a_resumed_extraction_begins_at_a_landmark_if_it_has_been_noted(
    known: bool, tmp_path: Path, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_stage, "LANDMARK_DISTANCE", DISTANCE)
    clip = CLIPS["h264, open GOP, mp4"](tmp_path).name
    straight = extract(input_video=clip)[:]
    with monkeypatch.context() as patch:
        patch.setattr(DecodeTask, "run", stopped(DecodeTask.run, 6))
        assert extract.cli("extract", tmp_path / "job.json", "--restart")[0] == 130
    if not known:  # as in a cache of an earlier version
        forget(FrameCache(tmp_path / "out/cache.zarr")["frames"], "landmarks")
    decoded = watch_decoding(monkeypatch)
    assert extract.cli("extract", tmp_path / "job.json", "-q") == (0, "")
    np.testing.assert_array_equal(FrameCache(tmp_path / "out/cache.zarr")["frames"][:], straight)
    assert (len(decoded) < COUNT) == known


@pytest.mark.parametrize("kind", [damaged_ts, raw_h264])
def test_a_damaged_video_has_no_landmarks(
    kind: Callable[[Path], Path], tmp_path: Path, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_stage, "LANDMARK_DISTANCE", DISTANCE)
    assert extract(input_video=kind(tmp_path).name).attrs["landmarks"] == []
