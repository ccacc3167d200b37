"""`diffsynth metrics` through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from cv2.typing import MatLike

from stages.video import read_image
from tests.conftest import scene, write_images
from tests.typing import Cli


@pytest.fixture
def videos(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    frames = [scene(i, 64, 96) for i in range(8)]
    flickering = [np.clip(frame.astype(int) + rng.integers(-20, 20), 0, 255).astype(np.uint8) for frame in frames]
    return write_images(tmp_path / "guide", frames), write_images(tmp_path / "style", flickering)


def test_table_and_json_and_plot(tmp_path: Path, videos: tuple[Path, Path], cli: Cli) -> None:
    guide, style = videos
    code, output = cli(
        "metrics", guide, style, guide, "--style", style, "--reference", guide, "--json", "--plot", tmp_path / "p.png"
    )
    assert code == 0
    found = json.loads(output)
    assert found["frames"] == 8 and list(found["videos"]) == [str(style), str(guide)]
    bad, good = found["videos"].values()
    assert bad["warp1"] > 3 * good["warp1"] and bad["flicker"] > good["flicker"] and bad["sharp"] == pytest.approx(1)
    assert good["psnr"] == 100 and bad["psnr"] < 40
    assert cv2.imread(str(tmp_path / "p.png")) is not None
    code, output = cli("metrics", guide, style)
    assert code == 0 and "warp1" in output and "psnr" not in output


def test_sharpness_is_measured_without_a_style_too(tmp_path: Path, videos: tuple[Path, Path], cli: Cli) -> None:
    guide, _ = videos
    soft = write_images(tmp_path / "soft", [cv2.GaussianBlur(scene(i, 64, 96), (0, 0), 2) for i in range(8)])
    found = json.loads(cli("metrics", guide, guide, soft, "--json")[1])["videos"]
    variances = [cv2.Laplacian(cv2.cvtColor(scene(i, 64, 96), cv2.COLOR_RGB2GRAY), cv2.CV_64F).var() for i in range(8)]
    assert found[str(guide)]["sharpness"] == pytest.approx(np.mean(variances), rel=0.02)
    assert found[str(soft)]["sharpness"] < 0.5 * found[str(guide)]["sharpness"]
    assert "sharpness" in cli("metrics", guide, soft)[1]
    output = cli("metrics", guide, soft, "--style", guide)[1]
    assert "sharp " in output and "sharpness" not in output


def test_lost_structure_is_reported_in_words(tmp_path: Path, videos: tuple[Path, Path], cli: Cli) -> None:
    guide, style = videos
    frames: list[MatLike] = [read_image(style / f"{index}.png") for index in range(8)]
    frames[3] = cv2.GaussianBlur(frames[3], (0, 0), 9)
    damaged = write_images(tmp_path / "damaged", frames)
    code, output = cli("metrics", guide, style, damaged, "--style", style)
    output = " ".join(output.split())
    assert code == 0 and "invented" in output and "own_warp" in output
    assert f"{damaged}: lost structure in 1 of 8 frames, worst in frame 3 (" in output
    assert f"{style}: lost" not in output
    found = json.loads(cli("metrics", guide, damaged, "--style", style, "--json")[1])["videos"][str(damaged)]
    assert found["lost_frames"] == 1 and found["worst_frame"] == 3 and found["structure_min"] < 0.5
    assert {"invented", "structure", "own_warp", "own_warp_style"} <= set(found)


@pytest.mark.parametrize("frames", [(9, 8), (8, 9), (8, 8)])
def test_a_longer_video_is_named(tmp_path: Path, frames: tuple[int, int], cli: Cli) -> None:
    paths = [write_images(tmp_path / str(k), [scene(i) for i in range(count)]) for k, count in enumerate(frames)]
    code, output = cli("metrics", *paths)
    assert code == 0
    longer = [path for path, count in zip(paths, frames) if count > 8]
    assert ("longer: " in output) == bool(longer)
    assert all(f"longer: {path}" in output.replace("\n", "") for path in longer)


def test_other_sizes_are_fitted_other_shapes_refused(tmp_path: Path, videos: tuple[Path, Path], cli: Cli) -> None:
    guide, style = videos
    large = write_images(tmp_path / "large", [cv2.resize(scene(i, 64, 96), (192, 128)) for i in range(6)])
    code, output = cli("metrics", large, style)
    assert code == 0 and "compared the first 6 frames" in output
    tall = write_images(tmp_path / "tall", [scene(i, 96, 64) for i in range(6)])
    code, output = cli("metrics", tall, style)
    assert code == 2 and "aspect ratio differs" in output
    for plot, expected in (("p.jpg", "must end in .png"), ("absent/p.png", "does not exist")):
        code, output = cli("metrics", guide, style, "--plot", tmp_path / plot)
        assert code == 2 and expected in output
    code, output = cli("metrics", guide, tmp_path / "absent")
    assert code != 0 and "absent" in output
