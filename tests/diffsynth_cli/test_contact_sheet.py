"""The contact sheet: what is where on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from diffsynth_cli.contact_sheet import GAP, LABEL_HEIGHT, write_contact_sheet
from tests.typing import Cli, MakeJob


def test_every_kth_frame_stands_over_its_other_states(tmp_path: Path) -> None:
    grey = [np.full((20, 30, 3), 10 * i, np.uint8) for i in range(11)]
    write_contact_sheet(tmp_path / "sheet.png", {"a": grey, "b": [255 - frame for frame in grey]}, columns=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    for row, expected in enumerate(([0, 50, 100], [255, 205, 155])):
        y = GAP + row * (20 + LABEL_HEIGHT + GAP) + LABEL_HEIGHT + 10
        assert [int(sheet[y, GAP + column * (30 + GAP) + 15, 0]) for column in range(3)] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_preview_shows_what_there_is_so_far(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(2, controlnet_processor=["tile"])
    heights = []
    for stage in ("extract", "control", "render"):
        assert cli(stage, job, "--preview")[0] == 0
        heights.append(Image.open(tmp_path / "out/preview.png").height)
    assert np.diff(heights).tolist() == [64 + LABEL_HEIGHT + GAP] * 2


def test_large_frames_are_made_smaller(tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "sheet.png", {"frames": [np.zeros((1024, 2112, 3), np.uint8)] * 2})
    assert Image.open(tmp_path / "sheet.png").width < 2 * 400
