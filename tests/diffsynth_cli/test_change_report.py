"""The change report of `diffsynth smooth`: its image of places before and after, and its summary."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFont

from diffsynth_cli.change_report import COLUMNS, TEXT, WIDTH, changed_caption, kept_caption, lost_caption, write_report
from stages.smoothers.images.changes import Changes, Place
from tests.conftest import write_images
from tests.stages.smoothers.scenes import Scene, scene
from tests.stages.test_smooth import OPTIONS
from tests.typing import Cli


@pytest.fixture
def clip() -> Scene:
    return scene("light", frames=4)


@pytest.fixture
def folders(tmp_path: Path, clip: Scene) -> tuple[Path, Path]:
    return write_images(tmp_path / "guide", clip.guides), write_images(tmp_path / "style", clip.styles)


def test_the_sheet_shows_crops_and_is_reproducible(tmp_path: Path, clip: Scene) -> None:
    for name in ("a.png", "b.png"):
        changes = Changes(keep_places=True)
        list(changes.watch(clip.styles, clip.truth, 4))
        write_report(tmp_path / name, changes)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    place = changes.changed.best()[0]
    for crop in (place.before, place.after):
        large = np.kron(crop, np.ones((2, 2, 1), np.uint8))
        assert cv2.matchTemplate(sheet, large, cv2.TM_SQDIFF_NORMED).min() < 1e-6


def test_captions_of_large_videos_fit() -> None:
    crop = np.zeros((96, 96, 3), np.uint8)
    place = Place(12345, 3744, 2064, 99.0, crop, crop, change=99.9, structure=-0.99, unchanged=0.999)
    font = ImageFont.load_default(TEXT)
    for caption in (changed_caption, lost_caption, kept_caption):
        assert font.getlength(caption(place)) < WIDTH / COLUMNS - 10


def test_smooth_says_what_it_did_and_reports_where(tmp_path: Path, folders: tuple[Path, Path], cli: Cli) -> None:
    code, output = cli(
        "smooth", *folders, "-o", tmp_path / "out", *OPTIONS, "--report", tmp_path / "report.png", "--quiet"
    )
    assert code == 0 and output == ""
    assert Image.open(tmp_path / "report.png").width > 1000
    code, output = cli("smooth", *folders, "-o", tmp_path / "again.mp4", *OPTIONS)
    assert code == 0 and "structure kept 0." in output and output.strip().endswith("of the picture left as it was")
    code, output = cli("smooth", *folders, "-o", tmp_path / "same", *OPTIONS, "--strength", "0", "--json")
    assert code == 0 and "100 % of the picture and 4 of 4 frames left as it was" in output.encode().decode(
        "unicode_escape"
    )


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, folders: tuple[Path, Path], cli: Cli
) -> None:
    for options, expected in (
        (("--report", tmp_path / "report.jpg"), "must end in .png"),
        (("--report", tmp_path / "absent" / "report.png"), "does not exist"),
        (("--report", tmp_path / "report.png", "--mode", "interpolate"), "--mode interpolate"),
    ):
        code, output = cli("smooth", *folders, "-o", tmp_path / "out", *options)
        assert code == 2 and expected in output and not (tmp_path / "out").exists()
