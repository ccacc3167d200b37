"""The deflickered frames written again: as videos, as images, with painted frames, with alpha."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stages.base.cache import FrameCache
from stages.base.removal import remove_arrays
from stages.frame_rate import Raised
from stages.video import Encoding, encode, open_source, read_comment, write_frames
from tests.conftest import scene, write_images
from tests.stages.test_deflicker import Deflicker, deflicker, frames_in
from tests.stages.video.clips import onsets, tone
from tests.stages.video.test_exr import decode
from tests.typing import Cli, MakeJob

__all__ = ["deflicker"]  # a fixture


def test_export(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    deflicker()
    job = tmp_path / "job.json"
    for codec, name in (
        ("h265", "a.mp4"),
        ("av1", "b.mp4"),
        ("av1", "b.webm"),
        ("vp9", "a.webm"),
        ("prores", "a.mov"),
        ("ffv1", "a.mkv"),
    ):
        code, output = cli("export", job, "--codec", codec, "-o", tmp_path / name, "--fps", 10)
        assert code == 0, output
        source = open_source(tmp_path / name)
        assert len(list(source.shots())) == 10 and source.fps == 10
    lossless = np.stack([shot.image() for shot in open_source(tmp_path / "a.mkv").shots()])
    np.testing.assert_array_equal(lossless, FrameCache(tmp_path / "out/cache.zarr")["deflickered"][:])
    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    assert cli("export", job, "-o", small, "--crf", 40)[0] == cli("export", job, "-o", large, "--crf", 5)[0] == 0
    assert small.stat().st_size < large.stat().st_size
    code, output = cli("export", job, "--codec", "h264", "-o", tmp_path / "a.webm")
    assert code == 2 and "cannot hold h264" in output
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "hevc"


def test_exported_images_are_the_frames_and_export_resumes(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    cache, _ = deflicker()
    job, folder = tmp_path / "job.json", tmp_path / "images of it"
    assert cli("export", job, "-o", folder)[0] == 0
    names = [f"{index:05d}.png" for index in range(10)]
    assert sorted(path.name for path in folder.iterdir()) == names
    np.testing.assert_array_equal(frames_in(folder), cache["deflickered"][:])
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "00003.png").unlink()
    (folder / "00007.png").write_bytes((folder / "00007.png").read_bytes()[:500])  # as a copy that was cut short
    code, output = cli("export", job, "--codec", "png", "-o", folder)
    assert code == 0, output
    np.testing.assert_array_equal(frames_in(folder), cache["deflickered"][:])
    again = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {path.name for path in folder.iterdir() if again[path] != written[path]} == {"00003.png", "00007.png"}


def test_more_frames_are_painted_for_videos_and_images(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    cache, _ = deflicker(scenes=[5])
    job, video, folder = tmp_path / "job.json", tmp_path / "a.mkv", tmp_path / "more"
    code, output = cli("export", job, "-o", video, "--codec", "ffv1", "--fps", "2x")
    assert code == 0 and "20 frames, 8 of them painted, 50 frames/s" in output
    source = open_source(video)
    frames = np.stack([shot.image() for shot in source.shots()])
    assert source.fps == 50 and len(frames) == 20
    np.testing.assert_array_equal(frames[::2], cache["deflickered"][:])
    np.testing.assert_array_equal(frames[9], frames[8])  # the scene ends
    assert "8 of them painted" in read_comment(video)
    assert cli("export", job, "-o", folder, "--fps", "2X")[0] == 0
    np.testing.assert_array_equal(frames_in(folder), frames)
    assert [read_comment(folder / f"{index:05d}.png").endswith("painted") for index in (0, 1, 9)] == [
        False,
        True,
        False,
    ]


def test_frames_are_painted_without_the_original_video(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    cache, _ = deflicker()
    job = tmp_path / "job.json"
    remove_arrays(cache, "extract", ["frames"])
    assert cli("export", job, "-o", tmp_path / "more", "--fps", "2x")[0] == 0
    expected = [*Raised(cache["deflickered"], None, 2)]
    np.testing.assert_array_equal(frames_in(tmp_path / "more"), expected)


def test_painted_frames_keep_the_sound_in_sync(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    tone(tmp_path / "a.mp4")
    deflicker(input_video="a.mp4", start_time=0.4, frame_maximum_count=None)
    code, output = cli("export", tmp_path / "job.json", "-o", tmp_path / "b.mp4", "--fps", "3x")
    assert code == 0 and "with sound" in output
    before, after = onsets(tmp_path / "out/video.mp4"), onsets(tmp_path / "b.mp4")
    assert after == pytest.approx(before, abs=0.045)  # the picture brightens in between


def test_painted_frames_halve_uneven_gaps(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    times = np.array([0.0, 0.04, 0.16, 0.2, 0.24, 0.3, 0.34, 0.4, 0.44, 0.5])
    encode(tmp_path / "uneven.mkv", [scene(index) for index in range(10)], Encoding(times=times, codec="ffv1"))
    deflicker(input_video="uneven.mkv")
    assert cli("export", tmp_path / "job.json", "-o", tmp_path / "a.mkv", "--fps", "2x")[0] == 0
    shown = [shot.time for shot in open_source(tmp_path / "a.mkv").shots()]
    np.testing.assert_allclose(shown[::2], times, atol=2e-3)
    np.testing.assert_allclose(shown[1:-1:2], (times[1:] + times[:-1]) / 2, atol=2e-3)


@pytest.mark.parametrize("fps", ["5x", "fast", "2x3", "x"])
def test_other_factors_are_refused(fps: str, tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    code, output = cli("export", make_job(), "--fps", fps)
    assert code == 2 and "is not a frame rate" in output and "2x, 3x, 4x" in output


def test_exr_images_are_exported_and_resumed(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    cache, _ = deflicker()
    job, folder = tmp_path / "job.json", tmp_path / "out/frames-exr"
    assert cli("export", job, "--codec", "exr")[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"{index:05d}.exr" for index in range(10)]
    share = cache["deflickered"][3] / 255
    expected = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(decode(folder / "00003.exr"), expected, rtol=1e-3, atol=1e-6)
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "00007.exr").write_bytes((folder / "00007.exr").read_bytes()[:900])
    assert cli("export", job, "--codec", "exr")[0] == 0  # its own files are replaced
    changed = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != written[path]}
    assert changed == {"00007.exr"}
    (folder / "00004.exr").write_bytes(b"mine")
    code, output = cli("export", job, "--codec", "exr")
    assert code == 2 and "00004.exr exists" in output


def masks(folder: Path, height: int, width: int) -> Path:
    """A folder of ten masks: the left half of each is opaque, and the right half half transparent."""
    mask = np.full((height, width, 3), 255, np.uint8)
    mask[:, width // 2 :] = 128
    write_frames(folder, [mask] * 10, "by hand")
    return folder


def test_masks_become_the_alpha_channel(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    cache, _ = deflicker()
    job, frames = tmp_path / "job.json", cache["deflickered"][:]
    _, height, width, _ = frames.shape
    mask = masks(tmp_path / "masks", 2 * height, 2 * width)  # which are resized
    assert cli("export", job, "-o", tmp_path / "png", "--alpha", mask)[0] == 0
    assert cli("export", job, "-o", tmp_path / "exr", "--codec", "exr", "--alpha", mask / "00000.png")[0] == 0
    with Image.open(tmp_path / "png/00002.png") as opened:
        png = np.array(opened)
    np.testing.assert_array_equal(png[..., :3], frames[2])
    assert np.all(png[:, : width // 2 - 3, 3] == 255) and np.all(png[:, width // 2 + 3 :, 3] == 128)
    exr = decode(tmp_path / "exr/00002.exr")
    np.testing.assert_allclose(exr[..., 3], png[..., 3] / 255, rtol=1e-3)


@pytest.mark.parametrize(("name", "tolerance"), [("a.mov", 12), ("a.mkv", 0)])
def test_videos_hold_an_alpha_channel(
    name: str, tolerance: int, tmp_path: Path, deflicker: Deflicker, cli: Cli
) -> None:
    cache, _ = deflicker()
    _, height, width, _ = cache["deflickered"].shape
    mask = masks(tmp_path / "masks", height, width)
    assert cli("export", tmp_path / "job.json", "-o", tmp_path / name, "--alpha", mask)[0] == 0
    with av.open(str(tmp_path / name)) as container:
        frames = [frame.to_ndarray(format="rgba") for frame in container.decode(video=0)]
    assert len(frames) == 10
    alpha = frames[4][..., 3].astype(int)
    assert np.all(np.abs(alpha[:, :16] - 255) <= 1) and np.all(np.abs(alpha[:, -16:] - 128) <= 1)
    assert np.abs(frames[4][..., :3].astype(int) - cache["deflickered"][4]).mean() <= tolerance


def test_masks_that_do_not_fit_are_refused(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    cache, _ = deflicker()
    _, height, width, _ = cache["deflickered"].shape
    mask, job = masks(tmp_path / "masks", height, width), tmp_path / "job.json"
    for arguments, message in (
        (("-o", tmp_path / "a.mp4"), "h264 has no alpha channel"),
        (("--codec", "vp9"), "choose one of the codecs png, exr, ffv1, prores"),
        (("-o", tmp_path / "a", "--fps", "2x"), "cannot be combined with --fps 2x"),
        (("-o", mask), "is the input"),
        (("-o", tmp_path / "a", "--alpha", tmp_path / "none.png"), "no such file"),
    ):
        code, output = cli("export", job, "--alpha", mask, *arguments)
        assert code == 2 and message in " ".join(output.split()), output
    (mask / "00009.png").unlink()
    code, output = cli("export", job, "--alpha", mask, "-o", tmp_path / "a")
    assert code == 2 and "holds 9 masks for 10 used frames" in output and not (tmp_path / "a").exists()


def test_images_are_exported_to_the_frames_folder_by_default(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    deflicker()
    job = tmp_path / "job.json"
    code, output = cli("export", job, "--codec", "png")
    assert code == 0 and str(tmp_path / "out/frames") in output
    assert len(list((tmp_path / "out/frames").iterdir())) == 10
    for arguments, message in (
        (("--codec", "png", "-o", tmp_path / "a.mp4"), "png writes a folder of images"),
        (("--codec", "png", "--crf", 3), "--crf and --fps are for videos"),
        (("-o", tmp_path / "images"), "is the input"),
        (("-o", job), "is the input"),
    ):
        code, output = cli("export", job, *arguments)
        assert code == 2 and message in output, output


def test_overwriting_foreign_images_needs_force(tmp_path: Path, deflicker: Deflicker, cli: Cli) -> None:
    cache, _ = deflicker()
    job, mine = tmp_path / "job.json", write_images(tmp_path / "mine", [scene(0)]) / "00004.png"
    (tmp_path / "mine/0.png").rename(mine)
    before = mine.read_bytes()
    code, output = cli("export", job, "-o", mine.parent)
    assert code == 2 and "00004.png exists" in output
    assert mine.read_bytes() == before and len(list(mine.parent.iterdir())) == 1
    assert cli("export", job, "-o", mine.parent, "--force")[0] == 0
    np.testing.assert_array_equal(frames_in(mine.parent), cache["deflickered"][:])
