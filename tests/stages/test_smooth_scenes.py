"""`diffsynth smooth --scenes`: every scene as if it were alone."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import diffsynth_cli as ds
from diffsynth_cli.failures import Interrupted
from stages import tasks
from stages.base.cache import FrameCache
from tests.conftest import scene, write_images
from tests.stages.test_smooth import OPTIONS, images
from tests.typing import Cli, Images

CUT, COUNT = 7, 12


GUIDE = np.stack([scene(i) if i < CUT else 255 - scene(2 * i).transpose(1, 0, 2) for i in range(COUNT)])
TRUTH = np.flip(GUIDE, axis=-1)  # the style without flicker
STYLE = np.stack([(image * (0.9 + 0.05 * (i % 3))).astype(np.uint8) for i, image in enumerate(TRUTH)])


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Guide and style of both scenes and of each."""
    parts = {"": slice(None), " one": slice(CUT), " two": slice(CUT, None)}
    videos = {"guide": GUIDE, "style": STYLE}
    return {
        kind + name: write_images(tmp_path / (kind + name), video[part])
        for kind, video in videos.items()
        for name, part in parts.items()
    }


def smoothed(cli: Cli, output: Path, *arguments: object) -> Images:
    code, said = cli("smooth", *arguments, "-o", output, *OPTIONS)
    assert code == 0, said
    frames: Images = images(output)
    return frames


@pytest.mark.parametrize("kinds", [["guide", "style"], ["style"]])
def test_each_scene_is_smoothed_as_if_it_were_alone(
    kinds: list[str], tmp_path: Path, folders: dict[str, Path], cli: Cli
) -> None:
    alone = [
        smoothed(cli, tmp_path / f"out{name}", *(folders[kind + name] for kind in kinds), "--offset", 0)
        for name in (" one", " two")
    ]
    both = [folders[kind] for kind in kinds]
    listed = smoothed(cli, tmp_path / "listed", *both, "--offset", 0, "--scenes", CUT)
    np.testing.assert_array_equal(listed, np.concatenate(alone))
    assert not np.array_equal(smoothed(cli, tmp_path / "whole", *both, "--offset", 0), listed)
    np.testing.assert_array_equal(smoothed(cli, tmp_path / "auto", *both, "--offset", 0, "--scenes", "auto"), listed)


def test_scenes_that_were_found_are_told_and_kept_when_a_call_resumes(
    tmp_path: Path, folders: dict[str, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("smooth", folders["guide"], folders["style"], "--scenes", "auto", *OPTIONS)
    code, said = cli(*arguments, "-o", tmp_path / "straight")
    assert code == 0 and "found 2 scenes: 0–6, 7–11" in said
    real = tasks.SmoothTask.run

    def interrupted(task: tasks.SmoothTask, cache: FrameCache, start: int, stop: int) -> None:
        if start == CUT + 2:
            raise Interrupted
        real(task, cache, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(tasks.SmoothTask, "run", interrupted)
        code, said = cli(*arguments, "-o", tmp_path / "out")
        assert code == 130 and "--scenes auto" in said
    monkeypatch.setattr("stages.scenes.find_cuts", None)  # finding them again would fail
    chunk = tmp_path / "out.cache.zarr/styles/c.9.0.0.0"
    chunk.rename(tmp_path / "chunk")
    code, said = cli(*arguments, "-o", tmp_path / "out")
    assert code == 1 and "frame 9 of the array 'styles' is missing" in said and "--scenes=auto" in said
    (tmp_path / "chunk").rename(chunk)
    assert cli(*arguments, "-o", tmp_path / "out", "-q")[0] == 0
    np.testing.assert_array_equal(images(tmp_path / "out"), images(tmp_path / "straight"))
    assert "nothing to do" in cli(*arguments, "-o", tmp_path / "out")[1]
    code, said = cli("smooth", folders["guide"], folders["style"], *OPTIONS, "-o", tmp_path / "out")
    assert code == 2 and "made from other videos or with other options" in said


def test_frames_are_painted_from_keyframes_of_their_scene(tmp_path: Path, folders: dict[str, Path], cli: Cli) -> None:
    def keys(name: str, numbers: list[int], first: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in numbers:
            cv2.imwrite(str(folder / f"{number - first}.png"), TRUTH[number][..., ::-1])
        return folder

    painting = ("--mode", "interpolate", "--offset", 0)
    alone = [
        smoothed(cli, tmp_path / "one", folders["guide one"], keys("keys one", [0, 4]), *painting),
        smoothed(cli, tmp_path / "two", folders["guide two"], keys("keys two", [8, 11], CUT), *painting),
    ]
    both = (folders["guide"], keys("keys", [0, 4, 8, 11]), *painting)
    cut = smoothed(cli, tmp_path / "cut", *both, "--scenes", "auto")
    np.testing.assert_array_equal(cut, np.concatenate(alone))
    assert not np.array_equal(smoothed(cli, tmp_path / "whole", *both), cut)
    code, said = cli("smooth", *both, "--scenes", "5,7", "-o", tmp_path / "out")
    assert code == 2 and "keys: no keyframe is in the scene that begins at frame 5" in said
    assert not (tmp_path / "out.cache.zarr").exists()


@pytest.mark.parametrize("scenes", ["often", "0,3", "5,3", "3,3", "3,", ""])
def test_wrong_lists_are_refused(scenes: str, folders: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    code, said = cli("smooth", folders["style"], "-o", tmp_path / "out", "--scenes", scenes)
    message = re.sub(r"[│\s]+", " ", said)  # without its frame
    assert code == 2 and "neither auto nor the first frame of each scene after the first" in message


def test_scenes_after_the_end_are_refused(folders: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    code, said = cli("smooth", folders["style"], "-o", tmp_path / "out", "--scenes", f"3,{COUNT}")
    assert code == 2 and "scenes: the frames are numbered 0 to 11, so no scene begins at 12" in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.cache.zarr").exists()


def test_python_refuses_wrong_lists_too(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ds.UsageError, match=r"scenes: give .* not \[3, 2\]"):
        ds.smooth(None, folders["style"], tmp_path / "out", scenes=[3, 2])
