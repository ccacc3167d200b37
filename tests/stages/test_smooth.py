"""`diffsynth smooth`: any two videos in, one without flicker out."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from diffsynth_cli.__main__ import Interrupted
from stages import smooth
from stages.smoothing import build
from stages.video import Encoding, encode, open_source
from tests.conftest import write_images
from tests.stages.smoothing.scenes import HEIGHT, WIDTH, scene, squared_error
from tests.stages.test_video import onsets, tone

OPTIONS = ("--window", "4")


@pytest.fixture
def made():
    return scene("light")


@pytest.fixture
def folders(tmp_path, made):
    return write_images(tmp_path / "guide", made.guides), write_images(tmp_path / "style", made.styles)


def video(path: Path, frames, fps: int = 25) -> Path:
    encode(path, frames, Encoding(Fraction(fps), crf=5))
    return path


def images(folder: Path) -> np.ndarray:
    return np.stack([shot.image() for shot in open_source(folder).shots()])


def test_a_folder_of_images_is_written_and_nothing_else_is_left(tmp_path, made, folders, cli):
    code, said = cli("smooth", *folders, "-o", tmp_path / "out", *OPTIONS)
    assert code == 0, said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["guide", "out", "style"]
    assert [file.name for file in sorted((tmp_path / "out").iterdir())][:2] == ["00000.png", "00001.png"]
    expected = build(smooth.SMOOTHER, {"window": 4}, made.guides, made.styles).smooth(0, 12)
    np.testing.assert_array_equal(images(tmp_path / "out"), expected)


def test_the_device_is_what_smooths(tmp_path, made, folders, cli, monkeypatch):
    monkeypatch.setattr("stages.weights.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("stages.smoothing.gpu.load", lambda frame, device: pytest.fail(f"{device} is asked"))
    for mode in ("blend", "interpolate"):
        with pytest.raises(pytest.fail.Exception, match="cuda is asked"):
            cli("smooth", *folders, "-o", tmp_path / mode, "--mode", mode, "--device", "cuda", *OPTIONS)


def test_a_video_keeps_rate_and_sound_of_the_style(tmp_path, cli):
    style = tone(tmp_path / "style.mp4", seconds=1.4)
    output = tmp_path / "out.mp4"
    code, said = cli("smooth", style, style, "-o", output, "--window", "2")
    assert code == 0, said
    before, after = open_source(style), open_source(output)
    assert after.fps == before.fps and len(list(after.shots())) == len(list(before.shots()))
    assert onsets(output)[1] == pytest.approx(onsets(style)[1], abs=0.03)


def test_without_sound_in_the_style_the_guides_is_taken(tmp_path, cli):
    guide = tone(tmp_path / "guide.mp4", seconds=1.4)
    source = open_source(guide)
    style = tmp_path / "style.mp4"
    encode(style, (shot.image() for shot in source.shots()), Encoding(source.fps))
    assert not open_source(style).has_audio
    code, said = cli("smooth", guide, style, "-o", tmp_path / "out.mp4", "--window", "2")
    assert code == 0, said
    assert onsets(tmp_path / "out.mp4")[1] == pytest.approx(onsets(guide)[1], abs=0.03)


def test_images_are_shown_when_the_guides_frames_are(tmp_path, cli):
    guide = tone(tmp_path / "guide.mp4", seconds=1.4)
    painted = write_images(tmp_path / "painted", (shot.image() for shot in open_source(guide).shots()))
    fast = tmp_path / "fast.mp4"
    encode(fast, images(painted), Encoding(Fraction(30)))
    code, said = cli("smooth", fast, painted, "-o", tmp_path / "out.mp4", "--window", "2", "--detail", "1")
    assert code == 0, said
    assert open_source(tmp_path / "out.mp4").fps == 30
    code, said = cli("smooth", guide, painted, "-o", tmp_path / "sound.mp4", "--window", "2", "--detail", "1")
    assert code == 0, said
    assert onsets(tmp_path / "sound.mp4")[1] == pytest.approx(onsets(guide)[1], abs=0.03)


def test_a_call_killed_after_all_was_written_is_cleared_up(tmp_path, folders, cli, monkeypatch):
    monkeypatch.setattr(smooth.shutil, "rmtree", lambda *arguments, **options: None)
    assert cli("smooth", *folders, "-o", tmp_path / "out.mp4", *OPTIONS)[0] == 0
    monkeypatch.undo()
    assert (tmp_path / "out.mp4.cache.zarr").exists()
    code, said = cli("smooth", *folders, "-o", tmp_path / "out.mp4", *OPTIONS)
    assert code == 0, said
    assert not (tmp_path / "out.mp4.cache.zarr").exists()


def test_what_was_done_before_an_interruption_is_not_done_again(tmp_path, folders, cli, monkeypatch):
    output = tmp_path / "out"
    smoothed: list[int] = []
    real = smooth.SmoothTask.run

    def run(task, cache, start, stop):
        if len(smoothed) == 5:
            smoothed.append(-1)
            raise Interrupted
        smoothed.append(start)
        real(task, cache, start, stop)

    monkeypatch.setattr(smooth.SmoothTask, "run", run)
    code, said = cli("smooth", *folders, "-o", output, *OPTIONS)
    assert code == 130 and "goes on" in said and not output.exists()
    code, said = cli("smooth", *folders, "-o", output, *OPTIONS)
    assert code == 0, said
    assert smoothed == [*range(5), -1, *range(5, 12)]
    assert cli("smooth", *folders, "-o", tmp_path / "straight", *OPTIONS)[0] == 0
    np.testing.assert_array_equal(images(output), images(tmp_path / "straight"))


def test_other_options_after_an_interruption_begin_anew(tmp_path, made, folders, cli, monkeypatch):
    real, calls = smooth.SmoothTask.run, []

    def run(task, cache, start, stop):
        calls.append(start)
        if len(calls) == 3:
            raise Interrupted
        real(task, cache, start, stop)

    monkeypatch.setattr(smooth.SmoothTask, "run", run)
    assert cli("smooth", *folders, "-o", tmp_path / "out", *OPTIONS)[0] == 130
    assert cli("smooth", *folders, "-o", tmp_path / "out", "--strength", "0")[0] == 0
    np.testing.assert_array_equal(images(tmp_path / "out"), made.styles)


def test_a_guide_of_another_size_is_fitted(tmp_path, made, folders, cli):
    large = [cv2.resize(image, (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_CUBIC) for image in made.guides]
    code, said = cli("smooth", write_images(tmp_path / "large", large), folders[1], "-o", tmp_path / "out", *OPTIONS)
    assert code == 0, said
    assert squared_error(images(tmp_path / "out"), made.truth) < 0.5 * squared_error(made.styles, made.truth)


def test_videos_of_other_rates_are_paired_by_time(tmp_path, made, cli):
    guide = video(tmp_path / "guide.mp4", made.guides, fps=24)
    style = video(tmp_path / "style.mp4", made.styles[::2], fps=12)
    fast, slow = open_source(guide), open_source(style)
    paired = smooth.pairs(fast, slow, slow.shots())
    assert [round(there.time * 24) for there, _ in paired] == [0, 2, 4, 6, 8, 10]
    paired = smooth.pairs(slow, fast, fast.shots())
    places = [there.time * 12 for there, _ in paired]
    assert len(places) == 12 and np.abs(np.array(places) - np.arange(12) / 2).max() <= 0.51
    code, said = cli("smooth", guide, style, "-o", tmp_path / "out.mp4", *OPTIONS)
    assert code == 0, said
    assert open_source(tmp_path / "out.mp4").fps == 12


def test_a_guide_that_ends_early_is_refused_and_one_frame_less_is_said(tmp_path, made, folders, cli):
    short = write_images(tmp_path / "short", made.guides[:7])
    code, said = cli("smooth", short, folders[1], "-o", tmp_path / "out")
    assert code == 2 and "5 of the 12 frames" in said and not (tmp_path / "out").exists()
    nearly = write_images(tmp_path / "nearly", made.guides[:11])
    code, said = cli("smooth", nearly, folders[1], "-o", tmp_path / "out", *OPTIONS)
    assert code == 0 and "left out" in said and len(images(tmp_path / "out")) == 11


def test_what_cannot_be_written_or_does_not_fit_is_refused_before_work(tmp_path, made, folders, cli):
    guide, style = folders
    tall = write_images(tmp_path / "tall", [image.transpose(1, 0, 2) for image in made.guides])
    for arguments, expected in (
        ((guide, style, "-o", style), "not an empty folder"),
        ((guide, style, "-o", tmp_path / "out.gif"), "unknown kind of video"),
        ((guide, style, "-o", tmp_path / "absent" / "out.mp4"), "there is no folder"),
        ((tall, style, "-o", tmp_path / "out"), "another shape"),
        ((tmp_path / "absent", style, "-o", tmp_path / "out"), "absent"),
        ((guide, style, "-o", tmp_path / "out", "--patch-size", "4"), "must be odd"),
        ((guide, style, "-o", tmp_path / "out", "--device", "cuda:99"), "cuda:99 is not there"),
        ((guide, style, "-o", tmp_path / "out", "--device", "toaster"), "none of the name toaster"),
    ):
        code, said = cli("smooth", *arguments)
        assert code in (1, 2) and expected in said, said
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.cache.zarr").exists()


def test_frames_between_keyframes_are_painted(tmp_path, made, cli):
    guide = video(tmp_path / "guide.mp4", made.guides)
    keyframes = tmp_path / "keyframes"
    keyframes.mkdir()
    for index in (0, 5, 11):
        cv2.imwrite(str(keyframes / f"frame-{index}.png"), made.truth[index][..., ::-1])
    code, said = cli("smooth", guide, keyframes, "-o", tmp_path / "out", "--mode", "interpolate")
    assert code == 0, said
    painted = images(tmp_path / "out")
    assert painted.shape == made.truth.shape
    np.testing.assert_array_equal(painted[[0, 5, 11]], made.truth[[0, 5, 11]])
    assert squared_error(painted, made.truth) < 0.1 * squared_error(made.truth[[0] * 5 + [5] * 6 + [11]], made.truth)
    (keyframes / "frame-11.png").rename(keyframes / "frame-12.png")
    code, said = cli("smooth", guide, keyframes, "-o", tmp_path / "other", "--mode", "interpolate")
    assert code == 2 and "has a keyframe 12" in said
    (keyframes / "frame-12.png").rename(keyframes / "last.png")
    code, said = cli("smooth", guide, keyframes, "-o", tmp_path / "other", "--mode", "interpolate")
    assert code == 2 and "last.png has no frame number" in said
    code, said = cli("smooth", guide, guide, "-o", tmp_path / "other", "--mode", "interpolate")
    assert code == 2 and "not a folder of images" in said
