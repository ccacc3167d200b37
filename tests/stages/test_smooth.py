"""`diffsynth smooth` on any two videos."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from diffsynth_cli.failures import Interrupted
from stages import smooth, tasks
from stages.base.cache import FrameCache
from stages.base.engine import Task
from stages.pairing import GuideShots, align
from stages.smooth import guidance
from stages.smoothers import Smoother, build
from stages.smoothers.images.offset import Alignment
from stages.video import Encoding, encode, open_source
from stages.video.sources import Source
from tests.conftest import write_images
from tests.diffsynth_cli.test_interruption import wait_for
from tests.processes import Program
from tests.stages.smoothers.images.test_offset import UNEVEN, pan, stylised
from tests.stages.smoothers.scenes import HEIGHT, WIDTH, Scene, scene, squared_error
from tests.stages.video.clips import onsets, tone
from tests.typing import Cli, Image, Keys

LIGHT: Keys = {"window": 2, "detail": 1}  # light only: neighbours' detail takes ten times as long
OPTIONS = [str(word) for key, value in LIGHT.items() for word in (f"--{key}", value)]


@pytest.fixture
def clip() -> Scene:
    return scene("light")


@pytest.fixture
def folders(tmp_path: Path, clip: Scene) -> tuple[Path, Path]:
    return write_images(tmp_path / "guide", clip.guides), write_images(tmp_path / "style", clip.styles)


def video(path: Path, frames: Iterable[Image], fps: int = 25) -> Path:
    encode(path, frames, Encoding(Fraction(fps), crf=5))
    return path


def images(folder: Path) -> np.ndarray:
    return np.stack([shot.image() for shot in open_source(folder).shots()])


def test_a_folder_of_images_is_written_and_nothing_else_is_left(tmp_path: Path, clip: Scene, cli: Cli) -> None:
    guides, styles = clip.guides[:6], clip.styles[:6]
    folders = write_images(tmp_path / "guide", guides), write_images(tmp_path / "style", styles)
    code, output = cli("smooth", *folders, "-o", tmp_path / "out", "--window", 4)
    assert code == 0, output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["guide", "out", "style"]
    assert [file.name for file in sorted((tmp_path / "out").iterdir())][:2] == ["00000.png", "00001.png"]
    expected = build(smooth.SMOOTHER, {"window": 4}, guides, styles).smooth(0, 6)
    np.testing.assert_array_equal(images(tmp_path / "out"), expected)


def test_the_device_is_what_smooths(
    tmp_path: Path, clip: Scene, folders: tuple[Path, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.models.weights.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("stages.smoothers.images.gpu.load", lambda frame, device: pytest.fail(f"{device} is asked"))
    for mode in ("blend", "interpolate"):
        with pytest.raises(pytest.fail.Exception, match="cuda is asked"):
            cli("smooth", *folders, "-o", tmp_path / mode, "--mode", mode, "--device", "cuda", *OPTIONS)


def test_smoothing_is_compiled_if_asked_and_stays_so_when_resumed(
    tmp_path: Path, folders: tuple[Path, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = [], tasks.SmoothTask.run

    def build_as_asked(*arguments: Any, compiled: bool) -> Smoother:
        asked.append(compiled)
        return build(*arguments)

    monkeypatch.setattr(tasks, "build", build_as_asked)
    monkeypatch.setattr(tasks.SmoothTask, "run", stopped(real, 3))
    command = ("smooth", *folders, "-o", tmp_path / "out", *OPTIONS)
    code, output = cli(*command, "--compile")
    assert code == 130 and "--compile" in output  # in the command that resumes it
    monkeypatch.setattr(tasks.SmoothTask, "run", real)
    assert cli(*command)[0] == 0
    assert cli(*command, "--restart")[0] == 0
    assert asked == [True, True, False]


def test_a_video_keeps_rate_and_sound_of_the_style(tmp_path: Path, cli: Cli) -> None:
    style = tone(tmp_path / "style.mp4", seconds=1.4)
    output = tmp_path / "out.mp4"
    code, message = cli("smooth", style, style, "-o", output, *OPTIONS)
    assert code == 0, message
    before, after = open_source(style), open_source(output)
    assert after.fps == before.fps and len(list(after.shots())) == len(list(before.shots()))
    assert onsets(output)[1] == pytest.approx(onsets(style)[1], abs=0.03)


def test_without_sound_in_the_style_the_guides_is_taken(tmp_path: Path, cli: Cli) -> None:
    guide = tone(tmp_path / "guide.mp4", seconds=1.4)
    source = open_source(guide)
    style = tmp_path / "style.mp4"
    encode(style, (shot.image() for shot in source.shots()), Encoding(source.fps))
    assert not open_source(style).has_audio
    code, output = cli("smooth", guide, style, "-o", tmp_path / "out.mp4", *OPTIONS)
    assert code == 0, output
    assert onsets(tmp_path / "out.mp4")[1] == pytest.approx(onsets(guide)[1], abs=0.03)


def test_images_are_shown_when_the_guides_frames_are(tmp_path: Path, cli: Cli) -> None:
    guide = tone(tmp_path / "guide.mp4", seconds=1.4)
    painted = write_images(tmp_path / "painted", (shot.image() for shot in open_source(guide).shots()))
    fast = tmp_path / "fast.mp4"
    encode(fast, images(painted), Encoding(Fraction(30)))
    code, output = cli("smooth", fast, painted, "-o", tmp_path / "out.mp4", *OPTIONS)
    assert code == 0, output
    assert open_source(tmp_path / "out.mp4").fps == 30
    code, output = cli("smooth", guide, painted, "-o", tmp_path / "sound.mp4", *OPTIONS)
    assert code == 0, output
    assert onsets(tmp_path / "sound.mp4")[1] == pytest.approx(onsets(guide)[1], abs=0.03)


def test_a_call_killed_after_all_was_written_is_cleared_up(
    tmp_path: Path, folders: tuple[Path, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.smooth.shutil.rmtree", lambda *arguments, **options: None)
    assert cli("smooth", *folders, "-o", tmp_path / "out.mp4", *OPTIONS)[0] == 0
    monkeypatch.undo()
    assert (tmp_path / "out.mp4.cache.zarr").exists()
    code, output = cli("smooth", *folders, "-o", tmp_path / "out.mp4", *OPTIONS)
    assert code == 0, output
    assert not (tmp_path / "out.mp4.cache.zarr").exists()


def test_chunks_done_before_an_interruption_are_not_redone(
    tmp_path: Path, folders: tuple[Path, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    smoothed: list[int] = []
    real = tasks.SmoothTask.run

    def run(task: tasks.SmoothTask, cache: FrameCache, start: int, stop: int) -> None:
        if len(smoothed) == 5:
            smoothed.append(-1)
            raise Interrupted
        smoothed.append(start)
        real(task, cache, start, stop)

    monkeypatch.setattr(tasks.SmoothTask, "run", run)
    code, message = cli("smooth", *folders, "-o", output, *OPTIONS)
    assert code == 130 and "Resume with: diffsynth smooth" in message and not output.exists()
    code, message = cli("smooth", *folders, "-o", output, *OPTIONS)
    assert code == 0, message
    assert smoothed == [*range(5), -1, *range(5, 12)]
    assert cli("smooth", *folders, "-o", tmp_path / "straight", *OPTIONS)[0] == 0
    np.testing.assert_array_equal(images(output), images(tmp_path / "straight"))


def test_other_options_after_an_interruption_start_over(
    tmp_path: Path, clip: Scene, folders: tuple[Path, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = tasks.SmoothTask.run, []

    def run(task: tasks.SmoothTask, cache: FrameCache, start: int, stop: int) -> None:
        calls.append(start)
        if len(calls) == 3:
            raise Interrupted
        real(task, cache, start, stop)

    monkeypatch.setattr(tasks.SmoothTask, "run", run)
    assert cli("smooth", *folders, "-o", tmp_path / "out", *OPTIONS)[0] == 130
    assert cli("smooth", *folders, "-o", tmp_path / "out", *OPTIONS, "--strength", 0)[0] == 0
    np.testing.assert_array_equal(images(tmp_path / "out"), clip.styles)


def test_a_guide_of_another_size_is_fitted(tmp_path: Path, clip: Scene, folders: tuple[Path, Path], cli: Cli) -> None:
    large = [cv2.resize(image, (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_CUBIC) for image in clip.guides]
    code, output = cli("smooth", write_images(tmp_path / "large", large), folders[1], "-o", tmp_path / "out", *OPTIONS)
    assert code == 0, output
    assert squared_error(images(tmp_path / "out"), clip.truth) < 0.5 * squared_error(clip.styles, clip.truth)


def test_the_style_sets_the_rate(tmp_path: Path, clip: Scene, cli: Cli) -> None:
    guide = video(tmp_path / "guide.mp4", clip.guides, fps=24)
    style = video(tmp_path / "style.mp4", clip.styles[::2], fps=12)
    code, output = cli("smooth", guide, style, "-o", tmp_path / "out.mp4", *OPTIONS)
    assert code == 0, output
    assert open_source(tmp_path / "out.mp4").fps == 12 and len(images(tmp_path / "out.mp4")) == 6


@pytest.mark.parametrize(("frames", "expected"), [(7, "no frames for 5 of the 12"), (11, "no frames for 1 of the 12")])
def test_a_guide_that_ends_early_is_reported_and_no_frame_is_lost(
    tmp_path: Path, clip: Scene, folders: tuple[Path, Path], cli: Cli, frames: int, expected: str
) -> None:
    short = write_images(tmp_path / "short", clip.guides[:frames])
    code, output = cli("smooth", short, folders[1], "-o", tmp_path / "out", *OPTIONS)
    assert code == 0 and expected in output and len(images(tmp_path / "out")) == 12
    guides = [*clip.guides[:frames], *clip.styles[frames:]]
    expected_frames = build(smooth.SMOOTHER, LIGHT, guides, clip.styles).smooth(0, 12)
    np.testing.assert_array_equal(images(tmp_path / "out"), expected_frames)


def test_a_longer_guide_is_reported(tmp_path: Path, clip: Scene, folders: tuple[Path, Path], cli: Cli) -> None:
    style = write_images(tmp_path / "few", clip.styles[:8])
    code, output = cli("smooth", folders[0], style, "-o", tmp_path / "out", *OPTIONS)
    assert code == 0 and "continues for 4 frames after the end of" in output and len(images(tmp_path / "out")) == 8


def test_unusable_arguments_are_refused_before_any_work(
    tmp_path: Path, clip: Scene, folders: tuple[Path, Path], cli: Cli
) -> None:
    guide, style = folders
    tall = write_images(tmp_path / "tall", [image.transpose(1, 0, 2) for image in clip.guides])
    for arguments, expected in (
        ((guide, style, "-o", tmp_path / "out.gif"), "use .mp4, .mov, .mkv or .webm, or the name of a folder"),
        ((guide, style, "-o", tmp_path / "out.AVI"), "cannot write .avi videos"),
        ((guide, style, "-o", tmp_path / "out.png"), "is the name of a single image"),
        ((guide, style, "-o", tmp_path / "absent" / "out.mp4"), "does not exist"),
        ((tall, style, "-o", tmp_path / "out"), "aspect ratio differs"),
        ((tmp_path / "absent", style, "-o", tmp_path / "out"), "absent"),
        ((tmp_path / "absent", "-o", tmp_path / "out"), "absent"),
        ((guide, style, guide, "-o", tmp_path / "out"), "3 videos given"),
        ((guide, style, "-o", tmp_path / "out", "--patch-size", "4"), "must be odd"),
        ((guide, style, "-o", tmp_path / "out", "--offset", "often"), "often is not a number of frames"),
        ((guide, style, "-o", tmp_path / "out", "--offset", "inf"), "inf is not a number of frames"),
        ((guide, style, "-o", tmp_path / "out", "--offset", "2.5", "--mode", "interpolate"), "by whole frames"),
        ((style, "-o", tmp_path / "out", "--mode", "interpolate"), "needs two paths"),
        ((guide, style, "-o", tmp_path / "out", "--device", "cuda:99"), "cuda:99 is not available"),
        ((guide, style, "-o", tmp_path / "out", "--device", "toaster"), "unknown device 'toaster'"),
    ):
        code, output = cli("smooth", *arguments)
        assert code in (1, 2) and expected in output, output
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.cache.zarr").exists()


# --- the guide: at an offset, of something else, or none at all ------------------------------------------


@pytest.fixture
def ahead(tmp_path: Path) -> tuple[Path, Path]:
    """Videos of an uneven camera movement: the guide, and a style of 20 frames that is 3 frames ahead of it."""
    guide = pan(0, UNEVEN[:20])
    return video(tmp_path / "guide.mp4", guide), video(tmp_path / "style.mp4", stylised(pan(0, UNEVEN[3:23])))


def test_an_offset_is_found_reported_and_used(tmp_path: Path, ahead: tuple[Path, Path], cli: Cli) -> None:
    guide, style = ahead
    code, output = cli("smooth", guide, style, "-o", tmp_path / "found", *OPTIONS)
    assert code == 0, output
    assert "style.mp4 is ahead of guide.mp4 by 3 frames (correlation of motion 0." in output
    assert "no frames for 3 of the 20 frames" in output and len(images(tmp_path / "found")) == 20
    code, output = cli("smooth", guide, style, "-o", tmp_path / "given", "--offset", "3", *OPTIONS)
    assert code == 0 and "is ahead of guide.mp4 by 3 frames" in output
    np.testing.assert_array_equal(images(tmp_path / "found"), images(tmp_path / "given"))
    code, output = cli("smooth", guide, style, "-o", tmp_path / "zero", "--offset", "0", *OPTIONS)
    assert code == 0 and "in step" in output
    assert not np.array_equal(images(tmp_path / "found"), images(tmp_path / "zero"))
    guides = [shot.image() for shot in GuideShots(guide, style, 3)(0)]
    expected = build(smooth.SMOOTHER, LIGHT, guides, images(style)).smooth(0, 20)
    np.testing.assert_array_equal(images(tmp_path / "found"), expected)


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.webm"])
def test_a_truncated_output_does_not_count_as_complete(name: str, tmp_path: Path, cli: Cli) -> None:
    output = tmp_path / name
    command = ("smooth", write_images(tmp_path / "style", pan(0, UNEVEN[:6])), "-o", output, *OPTIONS)
    assert cli(*command, "-q")[0] == 0
    whole = output.read_bytes()
    assert "nothing to do" in cli(*command)[1]
    for part in (whole[: len(whole) * 2 // 3], b"x"):
        output.write_bytes(part)
        code, message = cli(*command)
        assert code == 2 and f"{output} exists" in message and output.read_bytes() == part
    assert cli(*command, "-q", "--force")[0] == 0
    assert output.read_bytes() == whole


def test_a_resumed_run_uses_the_offset_that_was_found(
    tmp_path: Path, ahead: tuple[Path, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("smooth", *ahead, "-o", tmp_path / "straight.mp4", *OPTIONS)[0] == 0
    searches: list[int] = []

    def counted(guide: Source, style: Source, progress: Callable[[int], None]) -> Alignment:
        searches.append(1)
        return align(guide, style, progress)

    monkeypatch.setattr(guidance, "align", counted)
    for interrupted, stop_at in ((tasks.DecodeTask, 2), (tasks.DecodeTask, 2), (tasks.SmoothTask, 4)):
        with monkeypatch.context() as patch:
            patch.setattr(interrupted, "run", stopped(interrupted.run, stop_at))
            assert cli("smooth", *ahead, "-o", tmp_path / "out.mp4", *OPTIONS)[0] == 130
        assert not (tmp_path / "out.mp4").exists()
    code, output = cli("smooth", *ahead, "-o", tmp_path / "out.mp4", *OPTIONS)
    assert code == 0 and "is ahead of guide.mp4 by 3 frames" in output and searches == [1]
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "straight.mp4").read_bytes()


def stopped(run: Callable[..., None], calls: int) -> Callable[..., None]:
    """A task's `run` that is interrupted at this call."""
    count = iter(range(1, calls + 1))

    def until(task: Task, cache: FrameCache, start: int, stop: int) -> None:
        if next(count) == calls:
            raise Interrupted
        run(task, cache, start, stop)

    return until


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_run_with_an_offset_gives_the_same_bytes(tmp_path: Path, ahead: tuple[Path, Path], cli: Cli) -> None:
    assert cli("smooth", *ahead, "-o", tmp_path / "straight.mp4", *OPTIONS)[0] == 0
    arguments = ("smooth", *ahead, "-o", tmp_path / "killed.mp4", *OPTIONS)
    for advances in (12, 43, 8):  # while it compares outlines, decodes, and smooths
        program = Program(*arguments, "--json")
        wait_for(program, "advance", advances)
        program.process.kill()
        program.finish()
    code, output = cli(*arguments)
    assert code == 0, output
    assert (tmp_path / "killed.mp4").read_bytes() == (tmp_path / "straight.mp4").read_bytes()
    assert not (tmp_path / "killed.mp4.cache.zarr").exists()


@pytest.mark.slow
@pytest.mark.parametrize("offset", [10, -10])
def test_the_guides_sound_is_moved_by_the_offset(tmp_path: Path, cli: Cli, offset: int) -> None:
    guide = tone(tmp_path / "guide.mp4", seconds=2)
    shots = [shot.image() for shot in open_source(guide).shots()]
    style = video(tmp_path / "style.mp4", [shots[min(max(0, i + offset), 49)] for i in range(40)])
    code, output = cli("smooth", guide, style, "-o", tmp_path / "out.mp4", "--offset", offset, *OPTIONS)
    assert code == 0, output
    white, sound, _ = onsets(tmp_path / "out.mp4")
    assert white == pytest.approx(1 - offset / 25, abs=0.05) and sound == pytest.approx(white, abs=0.05)
    painted = write_images(tmp_path / "painted", images(style))
    code, output = cli("smooth", guide, painted, "-o", tmp_path / "images.mp4", "--offset", offset, *OPTIONS)
    assert code == 0 and len(images(tmp_path / "images.mp4")) == 40, output
    assert onsets(tmp_path / "images.mp4")[1] == pytest.approx(1 - offset / 25, abs=0.05)


@pytest.mark.slow
def test_an_unrelated_guide_is_reported_and_not_used(tmp_path: Path, ahead: tuple[Path, Path], cli: Cli) -> None:
    other = video(tmp_path / "other.mp4", pan(5, UNEVEN[:20]))
    code, output = cli("smooth", other, ahead[1], "-o", tmp_path / "told", *OPTIONS)
    assert code == 0 and "other.mp4 does not seem to match" in output and "--offset FRAMES" in output
    assert cli("smooth", ahead[1], "-o", tmp_path / "alone", *OPTIONS)[0] == 0
    np.testing.assert_array_equal(images(tmp_path / "told"), images(tmp_path / "alone"))
    code, output = cli("smooth", other, ahead[1], "-o", tmp_path / "forced", "--offset", "0", *OPTIONS)
    assert code == 0 and "does not seem" not in output
    assert not np.array_equal(images(tmp_path / "told"), images(tmp_path / "forced"))


def test_without_a_guide_the_style_is_its_own_and_stored_once(
    tmp_path: Path, clip: Scene, folders: tuple[Path, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = folders[1]
    with monkeypatch.context() as patch:
        patch.setattr(tasks.SmoothTask, "run", stopped(tasks.SmoothTask.run, 2))
        assert cli("smooth", style, "-o", tmp_path / "out", *OPTIONS)[0] == 130
    cache = FrameCache(tmp_path / "out.cache.zarr")
    assert "styles" in cache and "guides" not in cache
    assert cli("smooth", style, "-o", tmp_path / "out", *OPTIONS)[0] == 0
    expected = build(smooth.SMOOTHER, LIGHT, clip.styles, clip.styles).smooth(0, 12)
    np.testing.assert_array_equal(images(tmp_path / "out"), expected)


def test_a_guide_that_is_a_copy_of_the_style_means_no_guide(
    tmp_path: Path, folders: tuple[Path, Path], cli: Cli
) -> None:
    style = folders[1]
    copy = shutil.copytree(style, tmp_path / "copy")
    assert cli("smooth", style, "-o", tmp_path / "out", *OPTIONS)[0] == 0
    for guide in (style, copy):
        code, output = cli("smooth", guide, style, "-o", tmp_path / "out", *OPTIONS)
        assert code == 0 and "nothing to do" in output
