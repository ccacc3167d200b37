"""Rendered frames → smooth frames → video.mp4, with noisy frames in place of rendered ones."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from stages import tasks
from stages.all_stages import all_stages
from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import stage_inputs
from stages.jobs.job_file import read_job
from stages.smoothers import SMOOTHERS, Smoother, build
from stages.video import Encoding, encode, open_source, write_frames
from tests.conftest import scene
from tests.stages.test_smooth import stopped
from tests.stages.video.clips import onsets, tone
from tests.typing import Cli, Images, Keys, MakeJob

NO_MAPS: dict[str, list[str]] = {"controlnet_model_id": [], "controlnet_processor": []}


class Deflicker(Protocol):
    def __call__(self, **keys: object) -> tuple[FrameCache, str]: ...


@pytest.fixture
def deflicker(tmp_path: Path, make_job: MakeJob, cli: Cli) -> Deflicker:
    """Extract, store noisy frames as rendered ones, and deflicker; return the cache and the output."""

    def run(**keys: object) -> tuple[FrameCache, str]:
        job_file = make_job(10, **NO_MAPS, **keys)
        assert cli("extract", job_file, "-q")[0] == 0
        assert cli("control", job_file, "-q")[0] == 0
        job, _ = read_job(job_file)
        cache = FrameCache(tmp_path / "out/cache.zarr")
        noise = np.random.default_rng(0).integers(-20, 20, cache["frames"].shape)
        rendered = np.clip(cache["frames"][:].astype(int) + noise, 0, 255).astype(np.uint8)
        cache.create(ArraySpec("rendered", rendered.shape, "uint8")).write(0, rendered)
        record = cache.record("render")
        record.begin(stage_inputs(all_stages()["render"], all_stages(), job, cache.recorded), chunks=1)
        record.finish("made by hand", len(rendered))
        code, output = cli("deflicker", job_file)
        assert code == 0, output
        return cache, output

    return run


def test_without_a_smoother_frames_pass_through(tmp_path: Path, deflicker: Deflicker) -> None:
    cache, _ = deflicker()
    np.testing.assert_array_equal(cache["deflickered"][:], cache["rendered"][:])
    shots = list(open_source(tmp_path / "out/video.mp4").shots())
    assert len(shots) == 10
    assert np.abs(shots[4].image().astype(int) - cache["deflickered"][4]).mean() < 12


@pytest.mark.parametrize(
    ("keys", "radius"),
    [
        ({"post_smoother": "TemporalMeanSmoother", "post_smoother_config": {"radius": 2}}, 2),
        ({"smoother": "TemporalMeanSmoother"}, None),  # in the loop only
    ],
)
def test_the_requested_smoother_is_used(deflicker: Deflicker, keys: Keys, radius: int | None) -> None:
    cache, _ = deflicker(**keys)
    rendered = cache["rendered"][:]
    if radius is None:
        expected = rendered
    else:
        expected = build("TemporalMeanSmoother", {"radius": radius}, rendered, rendered).smooth(0, 10)
    np.testing.assert_array_equal(cache["deflickered"][:], expected)


@pytest.mark.parametrize(
    "smoother",
    [
        {},
        {"smoother": "TemporalMeanSmoother", "smoother_config": {"radius": 5}},
        {"smoother": "EbsynthSmoother", "smoother_config": {"patch_size": 5, "smooth_index": [1]}},
    ],
    ids=["none", "another", "the same, with options"],
)
def test_the_extra_range_is_ebsynths_window_whatever_the_jobs_smoother_is(smoother: Keys, deflicker: Deflicker) -> None:
    cache, _ = deflicker(**smoother, extra_deflickering_range=2, frame_maximum_count=4)
    guides, rendered = cache["frames"][:], cache["rendered"][:]
    published: Keys = {"smooth_index": [-2, -1, 0, 1, 2], "patch_size": 21, "guide_weight": 100.0}
    expected = build("EbsynthSmoother", published, guides, rendered).smooth(0, 4)
    np.testing.assert_array_equal(cache["deflickered"][:], expected)


def test_what_was_compiled_stays_compiled_when_resumed(
    deflicker: Deflicker, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: Keys = {"post_smoother": "TemporalMeanSmoother", "post_smoother_config": {"radius": 2}}
    asked, real = [], tasks.SmoothTask.run

    def build_as_asked(*arguments: Any, compiled: bool) -> Smoother:
        asked.append(compiled)
        return build(*arguments)

    deflicker(**keys)
    job = make_job(10, **NO_MAPS, **keys)
    monkeypatch.setattr(tasks, "build", build_as_asked)
    monkeypatch.setattr(tasks.SmoothTask, "run", stopped(real, 2))
    assert cli("deflicker", job, "--restart", "--compile")[0] == 130
    monkeypatch.setattr(tasks.SmoothTask, "run", real)
    assert cli("deflicker", job, "-q") == (0, "")
    assert asked == [True, True]
    assert cli("deflicker", job, "--restart", "-q") == (0, "")
    assert asked == [True, True, False]


def test_an_extra_range_beyond_the_video_is_the_whole_video(deflicker: Deflicker) -> None:
    cache, _ = deflicker(extra_deflickering_range=10**9, frame_maximum_count=3)
    guides, rendered = cache["frames"][:], cache["rendered"][:]
    expected = build("EbsynthSmoother", {"smooth_index": [-2, -1, 1, 2]}, guides, rendered).smooth(0, 3)
    np.testing.assert_array_equal(cache["deflickered"][:], expected)


def test_a_post_smoother_takes_the_extra_ranges_place_and_says_so(deflicker: Deflicker) -> None:
    post = {"post_smoother": "TemporalMeanSmoother", "post_smoother_config": {"radius": 2}}
    cache, output = deflicker(**post, extra_deflickering_range=3)
    assert output.count("extra_deflickering_range: ignored, since post_smoother is set") == 1
    rendered = cache["rendered"][:]
    expected = build("TemporalMeanSmoother", {"radius": 2}, rendered, rendered).smooth(0, 10)
    np.testing.assert_array_equal(cache["deflickered"][:], expected)


@pytest.mark.parametrize("name", SMOOTHERS.built_in)
def test_every_smoother_works_at_its_defaults(deflicker: Deflicker, name: str) -> None:
    cache, _ = deflicker(post_smoother=name)
    frames, rendered, smooth = (cache[array][:].astype(int) for array in ("frames", "rendered", "deflickered"))
    assert np.abs(smooth - frames).mean() < 0.9 * np.abs(rendered - frames).mean()


def test_an_unavailable_device_is_refused_before_anything_is_removed(
    deflicker: Deflicker, make_job: MakeJob, cli: Cli
) -> None:
    keys = {"post_smoother": "PatchBlendSmoother", "post_smoother_config": {"detail": 1}}
    cache, _ = deflicker(**keys)
    before = cache["deflickered"][:]
    job = make_job(10, **NO_MAPS, **keys)
    code, output = cli("deflicker", job, "--restart", "--device", "cuda:99")
    assert code == 2 and "cuda:99 is not available" in output
    np.testing.assert_array_equal(FrameCache(cache.path)["deflickered"][:], before)
    assert cli("deflicker", job, "--restart", "--device", "cpu")[0] == 0


def test_the_sources_sound_is_kept_in_sync(tmp_path: Path, deflicker: Deflicker) -> None:
    tone(tmp_path / "a.mp4")
    _, output = deflicker(input_video="a.mp4", frame_width=96, frame_height=64, start_time=0.4, end_time=2.2)
    white, sound, length = onsets(tmp_path / "out/video.mp4")
    assert "with sound" in output
    assert white == pytest.approx(0.6, abs=0.001) and sound == pytest.approx(0.6, abs=0.03)
    assert length == pytest.approx(1.8, abs=0.05)


@pytest.mark.parametrize("keys", [{"keep_audio": False}, {"fps": 12}, {"fps": 50}])
def test_sound_is_left_out_when_asked_or_when_the_speed_changes(
    tmp_path: Path, deflicker: Deflicker, keys: Keys
) -> None:
    tone(tmp_path / "a.mp4", seconds=0.4)
    _, output = deflicker(input_video="a.mp4", **keys)
    assert not open_source(tmp_path / "out/video.mp4").has_audio
    assert ("without sound: at fps" in output) == ("fps" in keys)


def test_every_second_frame_plays_at_half_the_rate(tmp_path: Path, deflicker: Deflicker) -> None:
    deflicker(frame_interval=2)
    source = open_source(tmp_path / "out/video.mp4")
    assert source.fps == Fraction(25, 2)
    assert [shot.time for shot in source.shots()] == pytest.approx([i * 0.08 for i in range(5)])


def test_uneven_times_are_preserved(tmp_path: Path, deflicker: Deflicker) -> None:
    times = np.array([0, 0.04, 0.08, 0.4, 0.44, 1.0])
    encode(tmp_path / "a.mp4", (scene(i) for i in range(6)), Encoding(times=times))
    deflicker(input_video="a.mp4")
    found = [shot.time for shot in open_source(tmp_path / "out/video.mp4").shots()]
    np.testing.assert_allclose(found, times, atol=1e-3)


def test_the_video_is_rewritten_only_when_needed(
    tmp_path: Path, deflicker: Deflicker, make_job: MakeJob, cli: Cli
) -> None:
    deflicker()
    video, job = tmp_path / "out/video.mp4", tmp_path / "job.json"
    written = video.stat().st_mtime_ns
    assert cli("deflicker", job)[0] == 0 and video.stat().st_mtime_ns == written
    assert cli("deflicker", job, "--set", "fps=10")[0] == 0 and video.stat().st_mtime_ns > written
    assert open_source(video).fps == 10
    video.unlink()
    assert cli("deflicker", job)[0] == 0 and open_source(video).fps == 25


def frames_in(folder: Path) -> Images:
    return np.stack([shot.image() for shot in open_source(folder).shots()])


def test_kept_frames_are_written_once_and_follow_the_job(
    tmp_path: Path, deflicker: Deflicker, make_job: MakeJob, cli: Cli
) -> None:
    cache, _ = deflicker(keep_frames=True)
    folder, job = tmp_path / "out/frames", tmp_path / "job.json"
    np.testing.assert_array_equal(frames_in(folder), cache["deflickered"][:])
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cli("deflicker", job)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    (folder / "00002.png").unlink()
    assert cli("deflicker", job)[0] == 0  # nothing else to do
    changed = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != written[path]}
    assert changed == {"00002.png"}
    smoothed = make_job(10, **NO_MAPS, keep_frames=True, post_smoother="TemporalMeanSmoother")
    assert cli("deflicker", smoothed, "--restart")[0] == 0
    np.testing.assert_array_equal(frames_in(folder), FrameCache(cache.path)["deflickered"][:])


def test_frames_of_an_earlier_longer_video_are_removed_and_other_files_kept(tmp_path: Path) -> None:
    frames = np.stack([scene(index) for index in range(5)])
    write_frames(tmp_path, frames, "mine")
    for name in ("notes.txt", "00009.png"):
        (tmp_path / name).write_text("not the program's")
    write_frames(tmp_path, frames[:3], "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000.png", "00001.png", "00002.png", "00009.png", "notes.txt",
    ]  # fmt: skip


def test_a_jobs_folder_of_frames_is_checked_before_anything_runs(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    mine = tmp_path / "out/frames/00000.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    code, output = cli("run", make_job(keep_frames=True))
    assert code == 2 and "00000.png exists" in output and not (tmp_path / "out/cache.zarr").exists()
    assert cli("run", make_job(), "-q")[0] == 0 and mine.read_bytes() == b"mine"


# --- damaged outputs -----------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["", "{", "3", "[]", "\udcff"])
def test_a_damaged_receipt_of_the_video_only_rewrites_the_video(
    damage: str, tmp_path: Path, deflicker: Deflicker, cli: Cli
) -> None:
    deflicker()
    video, note = tmp_path / "out/video.mp4", tmp_path / "out/cache.zarr/receipts/video.json"
    right, written = note.read_text(), video.stat().st_mtime_ns
    note.write_bytes(damage.encode(errors="surrogateescape"))
    code, output = cli("deflicker", tmp_path / "job.json")
    assert code == 0, output
    assert note.read_text() == right and video.stat().st_mtime_ns > written


def test_a_truncated_video_is_rewritten(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    deflicker()
    video, job = tmp_path / "out/video.mp4", tmp_path / "job.json"
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2])
    assert cli("deflicker", job)[0] == 0 and video.read_bytes() == whole
    video.write_bytes(b"x")  # nothing says any more that it is the program's own
    code, output = cli("deflicker", job)
    assert code == 2 and "video.mp4 exists" in output and video.read_bytes() == b"x"
    assert cli("deflicker", job, "--force")[0] == 0 and video.read_bytes() == whole
