"""`diffsynth smooth --mode interpolate`: the frames between keyframes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from stages import tasks
from stages.smooth import guidance
from tests.conftest import write_images
from tests.stages.smoothers.images.test_offset import UNEVEN, pan, stylised
from tests.stages.smoothers.scenes import Scene, scene, squared_error
from tests.stages.test_smooth import images, stopped, video
from tests.typing import Cli, Images


@pytest.fixture
def clip() -> Scene:
    return scene("light")


def test_frames_between_keyframes_are_painted(tmp_path: Path, clip: Scene, cli: Cli) -> None:
    guide = video(tmp_path / "guide.mp4", clip.guides)
    keyframes = tmp_path / "keyframes"
    keyframes.mkdir()
    for index in (0, 5, 11):
        cv2.imwrite(str(keyframes / f"frame-{index}.png"), clip.truth[index][..., ::-1])
    code, output = cli("smooth", guide, keyframes, "-o", tmp_path / "out", "--mode", "interpolate")
    assert code == 0, output
    assert "in step" not in output and "ahead" not in output  # 3 keyframes cannot tell
    painted = images(tmp_path / "out")
    assert painted.shape == clip.truth.shape
    np.testing.assert_array_equal(painted[[0, 5, 11]], clip.truth[[0, 5, 11]])
    assert squared_error(painted, clip.truth) < 0.1 * squared_error(clip.truth[[0] * 5 + [5] * 6 + [11]], clip.truth)
    (keyframes / "frame-11.png").rename(keyframes / "frame-12.png")
    code, output = cli("smooth", guide, keyframes, "-o", tmp_path / "other", "--mode", "interpolate")
    assert code == 2 and "has a keyframe 12" in output
    (keyframes / "frame-12.png").rename(keyframes / "last.png")
    code, output = cli("smooth", guide, keyframes, "-o", tmp_path / "other", "--mode", "interpolate")
    assert code == 2 and "last.png has no frame number" in output
    code, output = cli("smooth", guide, guide, "-o", tmp_path / "other", "--mode", "interpolate")
    assert code == 2 and "not a folder of images" in output


@pytest.fixture
def keys_ahead(tmp_path: Path) -> tuple[Path, Path, Images]:
    """A guide of an uneven camera movement, and every 2nd frame of a style that is 3 frames ahead of it; and all."""
    guide = video(tmp_path / "guide.mp4", pan(0, UNEVEN[:23]))
    styles = stylised(pan(0, UNEVEN[3:23]))
    write_images(tmp_path / "keys", styles[::2])
    for number, file in reversed(list(enumerate(sorted((tmp_path / "keys").iterdir())))):
        file.rename(file.with_stem(f"{2 * number:05d}"))
    return guide, tmp_path / "keys", styles


@pytest.mark.slow
def test_keyframes_ahead_of_their_guide_are_shifted_into_place(
    tmp_path: Path, keys_ahead: tuple[Path, Path, Images], cli: Cli
) -> None:
    guide, keys, styles = keys_ahead
    arguments = (guide, keys, "--mode", "interpolate")
    code, output = cli("smooth", *arguments, "-o", tmp_path / "found")
    assert code == 0, output
    assert "keys is ahead of guide.mp4 by 3 frames (correlation of motion 0.8" in output
    painted = images(tmp_path / "found")
    assert len(painted) == 23  # every frame of the style has noise of its own, so frames are not matched exactly
    np.testing.assert_array_equal(painted[3:22:2], styles[:19:2])
    assert squared_error(painted[4:21:2], styles[1:18:2]) < 0.5 * squared_error(styles[0:17:2], styles[1:18:2])
    code, output = cli("smooth", *arguments, "-o", tmp_path / "given", "--offset", "3")
    assert code == 0, output
    np.testing.assert_array_equal(images(tmp_path / "given"), painted)
    code, output = cli("smooth", *arguments, "-o", tmp_path / "less", "--offset", "-3")
    assert code == 0 and "ignored keyframes outside" in output and ": 0, 2" in output
    np.testing.assert_array_equal(images(tmp_path / "less")[1:16:2], styles[4:19:2])
    code, output = cli("smooth", *arguments, "-o", tmp_path / "none", "--offset", "40")
    assert code == 2 and "no keyframe lies within" in output and not (tmp_path / "none.cache.zarr").exists()


def test_a_resumed_run_places_keyframes_as_before(
    tmp_path: Path, keys_ahead: tuple[Path, Path, Images], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*keys_ahead[:2], "--mode", "interpolate")
    assert cli("smooth", *arguments, "-o", tmp_path / "straight")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(tasks.PaintTask, "run", stopped(tasks.PaintTask.run, 6))
        assert cli("smooth", *arguments, "-o", tmp_path / "out")[0] == 130
    monkeypatch.setattr(guidance, "align", None)
    assert cli("smooth", *arguments, "-o", tmp_path / "out")[0] == 0
    np.testing.assert_array_equal(images(tmp_path / "out"), images(tmp_path / "straight"))
