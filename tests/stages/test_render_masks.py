"""Masks and regions of rendered frames."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from diffsynth_cli.failures import Interrupted
from stages.base.cache import FrameCache
from stages.diffusion.sampler import SAMPLERS
from stages.smoothers import SMOOTHERS
from stages.tasks import DecodeTask
from tests.conftest import scene, write_images
from tests.typing import Cli, Keys, MakeJob, Render

PATTERN: Keys = {"combine_pattern": [-1, 0, 1], "frames": 5}
CASES: dict[str, Keys] = {
    "joint": {},
    "shared": {"attention": "shared"},
    "img2img": {"img2img_strength": 0.75, "num_inference_steps": 4},
    "warped noise": {"noise": "warped", "scheduler": "lcm", "guidance_scale": 1.0},
    "keyframes": {"keyframes": 2, "combine_pattern": [0]},
    "in the loop": {"smoother": "TemporalMeanSmoother", "scheduler": "dpm++2m", "num_inference_steps": 3},
    "scenes": {"scenes": [2]},
}


@pytest.fixture(autouse=True)
def masks(tmp_path: Path) -> None:
    """A moving mask per frame, a still one, a white one, and a half."""
    shapes = [np.zeros((64, 64), np.uint8) for _ in range(5)]
    for index, shape in enumerate(shapes):
        cv2.circle(shape, (20 + 4 * index, 32), 14, 255, -1)
    write_images(tmp_path / "moving", [cv2.cvtColor(shape, cv2.COLOR_GRAY2BGR) for shape in shapes])
    cv2.imwrite(str(tmp_path / "white.png"), np.full((64, 64), 255, np.uint8))
    cv2.imwrite(str(tmp_path / "half.png"), np.repeat([[0, 255]], 32, axis=1).repeat(64, axis=0).astype(np.uint8))


def assert_background_kept(cache: FrameCache) -> None:
    mask, frames = cache["mask"][:], cache["frames"][:]
    for name in ("rendered", "deflickered"):
        images = cache[name][:]
        np.testing.assert_array_equal(images[mask == 0], frames[mask == 0])
        assert np.abs(images[mask == 255].astype(int) - frames[mask == 255]).mean() > 5


@pytest.mark.parametrize("case", CASES)
def test_the_background_keeps_every_byte_of_the_source(case: str, render: Render) -> None:
    cache = render(**{**PATTERN, **CASES[case]}, mask="moving", mask_grow=2, post_smoother="TemporalMeanSmoother")
    assert_background_kept(cache)
    assert "source_latents" not in cache


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTHERS.built_in)
def test_no_smoother_touches_the_background(name: str, render: Render) -> None:
    assert_background_kept(render(**PATTERN, mask="moving", smoother=name, post_smoother=name, num_inference_steps=1))


@pytest.mark.parametrize("case", CASES)
def test_a_white_mask_is_no_mask_to_the_byte(case: str, render: Render) -> None:
    keys: Keys = {**PATTERN, **CASES[case], "post_smoother": "TemporalMeanSmoother"}
    without, white = render("without", **keys), render("white", **keys, mask="white.png")
    for name in ("latents", "rendered", "deflickered"):
        np.testing.assert_array_equal(without[name][:], white[name][:])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_works_with_a_mask(name: str, render: Render) -> None:
    assert_background_kept(render(frames=2, scheduler=name, mask="half.png", num_inference_steps=3, guidance_scale=1.0))


def test_an_inverted_mask_restyles_the_rest(render: Render) -> None:
    one, other = render("one", frames=2, mask="half.png"), render("other", frames=2, mask="half.png", mask_invert=True)
    np.testing.assert_array_equal(one["mask"][:], 255 - other["mask"][:])
    rendered, frames = other["rendered"][:], other["frames"][:]
    np.testing.assert_array_equal(rendered[:, :, 40:], frames[:, :, 40:])


def test_a_mask_of_another_length_is_refused_before_anything_is_rendered(make_job: MakeJob, cli: Cli) -> None:
    code, output = cli("run", make_job(frames=7, mask="moving"))
    assert code == 2 and "mask: " in output and "5 masks for 7 used frames" in output
    code, output = cli("run", make_job(mask="none.png"))
    assert code == 2 and "mask: no such file" in output


def test_a_trial_and_a_preview_take_the_masks_of_their_frames(
    render: Render, make_job: MakeJob, cli: Cli, tmp_path: Path
) -> None:
    whole = render("whole", frames=5, mask="moving", num_inference_steps=1)["mask"][:]
    part = render("part", mask="moving", num_inference_steps=1, frame_interval=2, frame_maximum_count=2)["mask"][:]
    np.testing.assert_array_equal(part, whole[:4:2])
    assert cli("preview", make_job(mask="moving", num_inference_steps=1), "--frames", 2, "--at", 0.08, "-q")[0] == 0
    np.testing.assert_array_equal(FrameCache(tmp_path / "out/preview/1/cache.zarr")["mask"][:], whole[2:4])


def test_a_changed_mask_makes_rendering_stale_and_its_edge_counts_only_with_a_mask(make_job: MakeJob, cli: Cli) -> None:
    assert cli("run", make_job(frames=2), "-q") == (0, "")
    assert cli("run", make_job(frames=2, mask_feather=9), "-q") == (0, "")
    code, output = cli("run", make_job(frames=2, mask="half.png"))
    assert code == 1 and "mask: null" in output


@pytest.mark.parametrize("attention", ["joint", "shared"])
def test_one_white_region_is_a_prompt_to_the_byte(attention: str, render: Render) -> None:
    keys: Keys = {**PATTERN, "combine_pattern": [-10000, -1, 0], "attention": attention}
    single = render("single", **keys, prompt="winter")
    region = render("region", **keys, prompt="summer", regions=[{"mask": "white.png", "prompt": "winter"}])
    for name in ("latents", "rendered"):
        np.testing.assert_array_equal(single[name][:], region[name][:])


@pytest.mark.parametrize("keys", [{}, {"attention": "shared"}, {"prompt": {"0": "spring", "4": "night"}}])
def test_a_region_changes_most_where_its_mask_is_white(keys: Keys, render: Render) -> None:
    keys = {**PATTERN, "num_inference_steps": 1, **keys}
    plain = render("plain", **keys)["latents"][:]
    cache = render("region", **keys, regions=[{"mask": "half.png", "prompt": "summer, day", "scale": 0.9}])
    change = np.abs(cache["latents"][:] - plain).mean(axis=(0, 1, 2))
    assert change[4:].mean() > 1.2 * change[:4].mean() > 0
    assert "region_masks/0" not in cache


def test_a_kill_while_a_mask_is_read_changes_nothing(
    render: Render, make_job: MakeJob, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images", (scene(k) for k in range(20)))
    write_images(tmp_path / "many", (np.full((64, 64, 3), 12 * k, np.uint8) for k in range(20)))
    keys: Keys = {"mask": "many", "regions": [{"mask": "many", "prompt": "night"}], "num_inference_steps": 1}
    straight, killed = render("straight", **keys), make_job(**keys, output_path="killed")
    real, ran = DecodeTask.run, []

    def run(self: DecodeTask, cache: FrameCache, start: int, stop: int) -> None:
        real(self, cache, start, stop)
        ran.append(start)
        if self.source.endswith("many") and len(ran) % 3 == 0:
            raise Interrupted

    monkeypatch.setattr(DecodeTask, "run", run)
    while (code := cli("run", killed, "-q", "--batch-size", 2)[0]) == 130:
        pass
    assert code == 0 and len(ran) > 9
    for name in ("mask", "latents", "deflickered"):
        np.testing.assert_array_equal(straight[name][:], FrameCache(tmp_path / "killed/cache.zarr")[name][:])
