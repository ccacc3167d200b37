"""`diffsynth mask`, with random networks of the real classes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
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


@pytest.fixture
def follow(models: Path, tmp_path: Path, cli: Cli) -> Mask:
    """Follow an object through a video of 6 frames; return the exit code and the output."""
    encode(tmp_path / "video.mkv", [scene(index, 48, 80) for index in range(6)], Encoding(Fraction(25), codec="ffv1"))

    def run(output: Path, *options: object) -> tuple[int, str]:
        chosen = ("--model", models / "sam", "--device", "cpu", "--point", "30,20")
        return cli("mask", tmp_path / "video.mkv", "-o", output, *chosen, *options)

    return run


def test_an_object_is_followed_from_its_points_on(tmp_path: Path, follow: Mask) -> None:
    code, output = follow(tmp_path / "mask.mkv")
    assert code == 0 and "6 masks" in output
    whole = masks_in(tmp_path / "mask.mkv")
    assert whole.shape == (6, 48, 80, 3) and set(np.unique(whole)) == {0, 255}
    assert follow(tmp_path / "later.mkv", "--first", 2)[0] == 0
    later = masks_in(tmp_path / "later.mkv")
    assert not later[:2].any() and (later[2:] > 0).any((1, 2, 3)).all()
    assert follow(tmp_path / "other.mkv", "--exclude", "60,10", "--point", "32,22")[0] == 0
    assert (masks_in(tmp_path / "other.mkv") != whole).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--point", "80,0"), "the point 80,0 is not in the frames"),
        (("--exclude", "1;2"), "is no point; give X,Y"),
        (("--first", "6"), "--first 6"),
        (("--threshold", "0.3"), "--detector and --threshold are for finding people"),
        (("--model", "./none"), "none"),
    ],
)
def test_mistakes_about_points_are_named(options: tuple[str, ...], message: str, tmp_path: Path, follow: Mask) -> None:
    code, output = follow(tmp_path / "mask.mkv", *options)
    assert code == 2 and message in " ".join(output.split()) and not (tmp_path / "mask.mkv").exists()


def test_without_points_nothing_is_followed(tmp_path: Path, mask: Mask) -> None:
    code, output = mask(tmp_path / "mask.mkv", "--first", "1")
    assert code == 2 and "give points of it: --point X,Y" in output


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
