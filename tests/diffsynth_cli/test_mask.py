"""`diffsynth mask`, with random networks of the real classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import diffsynth_cli as ds
from stages.video import Encoding, encode, frame_files, open_source, read_comment, read_image
from tests.conftest import scene, write_images
from tests.stages.annotators.people_networks import write_detector, write_sam
from tests.typing import Cli, Images

TIMES = np.array([0.0, 0.04, 0.2, 0.24])
Mask = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_detector(folder / "detector")
    write_sam(folder / "sam")
    return folder


@pytest.fixture
def mask(models: Path, tmp_path: Path, cli: Cli) -> Mask:
    """Make masks of an uneven video; return the exit code and the output."""
    encode(tmp_path / "video.mkv", [scene(index, 48, 80) for index in range(4)], Encoding(times=TIMES, codec="ffv1"))

    def run(output: Path, *options: object) -> tuple[int, str]:
        chosen = ("--model", models / "sam", "--detector", models / "detector", "--device", "cpu")
        return cli("mask", tmp_path / "video.mkv", "-o", output, *chosen, "--threshold", 0, *options)

    return run


def masks_in(path: Path) -> Images:
    return np.stack([shot.image() for shot in open_source(path).shots()])


def test_a_lossless_video_and_images_hold_the_same_masks(tmp_path: Path, mask: Mask) -> None:
    code, output = mask(tmp_path / "mask.mkv")
    assert code == 0 and "4 masks" in output
    masks = masks_in(tmp_path / "mask.mkv")
    assert masks.shape == (4, 48, 80, 3) and set(np.unique(masks)) == {0, 255}
    shown = [shot.time for shot in open_source(tmp_path / "mask.mkv").shots()]
    np.testing.assert_allclose(shown, TIMES, atol=2e-3)
    assert mask(tmp_path / "masks")[0] == 0
    np.testing.assert_array_equal(np.stack([read_image(file) for file in frame_files(tmp_path / "masks")]), masks)
    assert read_comment(tmp_path / "mask.mkv").startswith("diffsynth-cli mask")


def test_files_are_not_overwritten(tmp_path: Path, mask: Mask) -> None:
    (tmp_path / "mask.mkv").write_bytes(b"mine")
    for output, message in ((tmp_path / "mask.mkv", "exists"), (tmp_path / "video.mkv", "is the input")):
        code, said = mask(output)
        assert code == 2 and message in said
    assert (tmp_path / "mask.mkv").read_bytes() == b"mine"
    assert mask(tmp_path / "mask.mkv", "--force")[0] == 0


def test_models_are_found_beside_the_user(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(models)
    images = write_images(tmp_path / "images", [scene(0, 48, 80)])
    assert ds.mask(images, tmp_path / "masks", model="./sam", detector="./detector") == tmp_path / "masks"
    code, output = cli("mask", images, "-o", tmp_path / "b", "--model", "./none", "--detector", "./detector")
    assert code == 2 and "none" in output and not (tmp_path / "b").exists()
    with pytest.raises(ds.UsageError, match="threshold"):
        ds.mask(images, tmp_path / "c", threshold=2)
