"""Frames → control maps through the command line."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from stages.base.cache import FrameCache
from stages.video import Encoding, encode
from tests.conftest import CONTROLNET, scene, write_images


@pytest.fixture
def control(tmp_path, make_job, cli):
    """Extracts, then makes maps with these annotators; gives the cache, or what was said if that failed."""

    def run(*processors, frames: int = 10, **keys):
        nets = {"controlnet_model_id": [str(CONTROLNET)] * len(processors), "controlnet_processor": list(processors)}
        job = make_job(frames, **nets, **keys)
        assert cli("extract", job, "-q") == (0, "")
        code, said = cli("control", job, "--restart")
        return FrameCache(tmp_path / "out/cache.zarr") if code == 0 else said

    return run


def test_a_map_for_every_controlnet_in_job_order(control):
    cache = control("tile", {"name": "canny", "low_threshold": 50, "high_threshold": 90}, "lineart_standard")
    frames = np.stack([scene(i) for i in range(10)])
    np.testing.assert_array_equal(cache["control/0"][:], frames)
    edges = np.stack([cv2.cvtColor(cv2.Canny(frame, 50, 90), cv2.COLOR_GRAY2RGB) for frame in frames])
    np.testing.assert_array_equal(cache["control/1"][:], edges)
    assert cache["control/2"].shape == (10, 64, 64, 3) and cache["control/2"][3].max() > 100


def test_a_map_of_scale_0_is_not_made(control):
    cache = control("depth", "tile", controlnet_scale=[0.0, 1.0])  # depth is not even in this version
    assert "control/0" not in cache and "control/1" in cache


def test_shuffle_is_one_map_of_the_style_image_for_all_frames(tmp_path, control):
    style = write_images(tmp_path / "style", [scene(7, 128, 200)]) / "0.png"
    maps = control("shuffle", style_image=str(style))["control/0"][:]
    assert (maps == maps[0]).all()
    assert maps[0].std() > 10
    other = control({"name": "shuffle", "seed": 1}, style_image=str(style))["control/0"][0]
    assert not np.array_equal(maps[0], other)


def test_references_go_through_the_same_annotators(tmp_path, control):
    images = [scene(30, 96, 64), scene(40)]
    folder = write_images(tmp_path / "more", images)
    cache = control("canny", frames_reference=[str(folder / "0.png"), str(folder / "1.png")])
    references = cache["references"][:]
    np.testing.assert_array_equal(references[1], images[1])
    expected = [cv2.cvtColor(cv2.Canny(image, 100, 200), cv2.COLOR_GRAY2RGB) for image in references]
    np.testing.assert_array_equal(cache["control_reference/0"][:], np.stack(expected))


def test_maps_from_a_folder_and_from_a_video(tmp_path, control):
    maps = [scene(50 + i) for i in range(10)]
    write_images(tmp_path / "maps", maps)
    encode(tmp_path / "maps.mkv", maps, Encoding(fps=Fraction(25), codec="ffv1"))
    cache = control("file:maps", {"name": "file", "path": "maps.mkv"})
    np.testing.assert_array_equal(cache["control/0"][:], np.stack(maps))
    np.testing.assert_array_equal(cache["control/1"][:], np.stack(maps))


def test_maps_of_another_size_are_fitted_with_a_warning(tmp_path, control, cli):
    write_images(tmp_path / "maps", [scene(i, 128, 128) for i in range(10)])
    assert control("file:maps")["control/0"].shape == (10, 64, 64, 3)


def test_too_few_maps_are_refused(tmp_path, control):
    write_images(tmp_path / "maps", [scene(i) for i in range(9)])
    assert "holds 9 maps for 10 frames" in control("file:maps")


def test_missing_maps_of_references_are_refused(tmp_path, control):
    write_images(tmp_path / "maps", [scene(i) for i in range(10)])
    assert "has no maps for frames_reference" in control("file:maps", frames_reference=["images/0.png"])
