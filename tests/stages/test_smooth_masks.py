"""`diffsynth smooth --mask`: the original where the mask is black, the smoothed style where it is white."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import write_images
from tests.stages.smoothers.scenes import HEIGHT, WIDTH, Scene, scene
from tests.stages.test_smooth import OPTIONS, images
from tests.typing import Cli


@pytest.fixture
def clip() -> Scene:
    return scene("light")


@pytest.fixture
def folders(tmp_path: Path, clip: Scene) -> tuple[Path, Path]:
    return write_images(tmp_path / "guide", clip.guides[:6]), write_images(tmp_path / "style", clip.styles[:6])


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    half = np.zeros((HEIGHT, WIDTH), np.uint8)
    half[:, WIDTH // 2 :] = 255
    cv2.imwrite(str(tmp_path / "half.png"), half)
    return tmp_path / "half.png"


def test_the_guide_shows_where_the_mask_is_black(
    tmp_path: Path, folders: tuple[Path, Path], mask: Path, clip: Scene, cli: Cli
) -> None:
    for name, options in (("whole", []), ("masked", ["--mask", mask, "--mask-feather", 2])):
        code, output = cli("smooth", *folders, "-o", tmp_path / name, *OPTIONS, *options)
        assert code == 0 and "lost structure" not in output, output
    whole, masked, middle = images(tmp_path / "whole"), images(tmp_path / "masked"), WIDTH // 2
    np.testing.assert_array_equal(
        masked[:, :, : middle - 3], np.stack([clip.guides[k] for k in range(6)])[:, :, : middle - 3]
    )
    np.testing.assert_array_equal(masked[:, :, middle + 3 :], whole[:, :, middle + 3 :])


def test_without_a_guide_the_style_shows_where_the_mask_is_black(
    tmp_path: Path, folders: tuple[Path, Path], mask: Path, clip: Scene, cli: Cli
) -> None:
    assert cli("smooth", folders[1], "-o", tmp_path / "out", *OPTIONS, "--mask", mask, "--mask-invert", "-q")[0] == 0
    kept = images(tmp_path / "out")[:, :, WIDTH // 2 + 5 :]
    np.testing.assert_array_equal(kept, np.stack([clip.styles[k] for k in range(6)])[:, :, WIDTH // 2 + 5 :])


def test_another_mask_makes_another_output(tmp_path: Path, folders: tuple[Path, Path], mask: Path, cli: Cli) -> None:
    command = ["smooth", *folders, "-o", tmp_path / "out", *OPTIONS, "--mask", mask]
    assert cli(*command)[0] == 0
    code, output = cli(*command)
    assert code == 0 and "nothing to do" in output
    code, output = cli(*command, "--mask-grow", 4)
    assert code == 2 and "with other options" in output


def test_wrong_masks_are_refused(tmp_path: Path, folders: tuple[Path, Path], mask: Path, cli: Cli) -> None:
    write_images(tmp_path / "two", [np.zeros((8, 8, 3), np.uint8)] * 2)
    for path, message in ((tmp_path / "two", "2 masks for 6 used frames"), (tmp_path / "none.png", "no such file")):
        code, output = cli("smooth", *folders, "-o", tmp_path / "out", *OPTIONS, "--mask", path)
        assert code == 2 and message in output
    code, output = cli("smooth", *folders, "-o", mask, "--mask", mask, "--force")
    assert code == 2 and not (tmp_path / "out").exists()
